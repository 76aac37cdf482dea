"""Who owns the memory: the storages alive at one step, and a module tree with what each module holds and does.

Bytes belong to the module whose node gave birth to the storage; parameters belong to the module that registered them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..compiler.graph import ITEMSIZE, Graph
from .liveness import Lifetimes

WORKSPACE = "workspace"


@dataclass(frozen=True, slots=True)
class LiveStorage:
    """One run of bytes alive at a step.

    `storage`: its id, -1 for kernel workspace. `nbytes`, and `share` of the live bytes, 0 to 1. `role`: its storage role or
    `workspace`. `node`: the id of the node that gave birth to it, -1 for graph inputs; `op`, `scope`, `source` are that node's.
    `shape`, `dtype`: of the first tensor on it. `name`: the input, parameter or value name if it has one.
    """

    storage: int
    nbytes: int
    share: float
    role: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    node: int
    op: str
    scope: str
    source: str


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """One module of the tree, everything below it included.

    `path`: dotted, `""` for the model. `depth`: 0 for the model. `kind`: its class name, `""` when unknown. `nodes`: operators run.
    `params`: elements of its parameters (a tied one counts where it was registered first). `weights`: bytes of its parameters,
    buffers and constants. `macs`: multiply-adds. `born`: bytes of the storages its nodes gave birth to. `at_peak`: bytes it owns
    at the peak, workspace included, and `share` of the peak, 0 to 1. `shape`: of the last tensor its forward pass made, `()` if none.
    """

    path: str
    depth: int
    kind: str
    nodes: int
    params: int
    weights: int
    macs: int
    born: int
    at_peak: int
    share: float
    shape: tuple[int, ...]


def live_storages(graph: Graph, alive: Iterable[int], node: int) -> tuple[LiveStorage, ...]:
    """The storages `alive` while `node` runs, largest first, with that node's workspace; storages of zero bytes are left out."""
    birth = graph.birth
    first: dict[int, int] = {}
    for t in graph.tensors:
        first.setdefault(t.storage, t.id)
    found = [(graph.storages[s].nbytes, s) for s in alive if graph.storages[s].nbytes]
    workspace = graph.nodes[node].workspace if graph.nodes else 0
    total = sum(n for n, _ in found) + workspace
    rows = []
    for nbytes, s in found:
        storage = graph.storages[s]
        maker = graph.nodes[birth[s]] if birth[s] >= 0 else None
        tensor = graph.tensors[first[s]] if s in first else None
        rows.append(
            LiveStorage(
                s,
                nbytes,
                nbytes / total,
                storage.role,
                storage.name,
                tensor.shape if tensor else (),
                tensor.dtype if tensor else "",
                maker.id if maker else -1,
                maker.op if maker else "",
                maker.scope if maker else "",
                maker.source if maker else "",
            )
        )
    if workspace:
        v = graph.nodes[node]
        rows.append(LiveStorage(-1, workspace, workspace / total, WORKSPACE, "", (), "", v.id, v.op, v.scope, v.source))
    return tuple(sorted(rows, key=lambda r: (-r.nbytes, r.storage)))


def module_rows(
    graph: Graph, macs: Sequence[int], at_peak: Sequence[LiveStorage], kinds: Mapping[str, str] | None = None
) -> tuple[ModuleRow, ...]:
    """The module tree of `graph`, parents before children and children in order of first use; the first row is the model.

    `macs`: multiply-adds per node id. `kinds`: class names by module path.
    """
    kinds = kinds or {}
    rows: dict[str, dict[str, int]] = {"": _empty()}
    shapes: dict[str, tuple[int, ...]] = {}
    birth = graph.birth

    def add(path: str, **amounts: int) -> None:
        for prefix in ("", *_prefixes(path)):
            row = rows.setdefault(prefix, _empty())
            for key, amount in amounts.items():
                row[key] += amount

    for node in graph.nodes:
        add(node.scope, nodes=1, macs=macs[node.id] if macs else 0)
        if node.outputs and node.phase == "forward":
            for prefix in ("", *_prefixes(node.scope)):
                shapes[prefix] = graph.tensors[node.outputs[0]].shape
    elements = parameter_elements(graph)
    for s in graph.storages:
        if birth[s.id] >= 0:
            add(graph.nodes[birth[s.id]].scope, born=s.nbytes)
        elif s.role in ("parameter", "buffer", "constant"):
            add(s.name.rpartition(".")[0], weights=s.nbytes, params=elements.get(s.id, 0))
    for live in at_peak:
        if live.node >= 0:
            add(live.scope, at_peak=live.nbytes)
        else:
            rows[""]["at_peak"] += live.nbytes
    peak = sum(live.nbytes for live in at_peak)
    ordered = _depth_first(list(rows))
    return tuple(
        ModuleRow(
            path=path,
            depth=0 if not path else path.count(".") + 1,
            kind=kinds.get(path, ""),
            share=rows[path]["at_peak"] / peak if peak else 0.0,
            shape=shapes.get(path, ()),
            **rows[path],
        )
        for path in ordered
    )


def parameter_elements(graph: Graph) -> dict[int, int]:
    """Elements of every parameter storage, by storage id."""
    dtype: dict[int, str] = {}
    for t in graph.tensors:
        dtype.setdefault(t.storage, t.dtype)
    return {s.id: s.nbytes // ITEMSIZE.get(dtype.get(s.id, "uint8"), 1) for s in graph.storages if s.role == "parameter"}


def _empty() -> dict[str, int]:
    return {"nodes": 0, "params": 0, "weights": 0, "macs": 0, "born": 0, "at_peak": 0}


def _prefixes(path: str) -> list[str]:
    if not path:
        return []
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _depth_first(paths: list[str]) -> list[str]:
    children: dict[str, list[str]] = {}
    for path in paths:
        if path:
            children.setdefault(path.rpartition(".")[0], []).append(path)
    ordered, stack = [], [""]
    while stack:
        path = stack.pop()
        ordered.append(path)
        stack.extend(reversed(children.get(path, ())))
    return ordered


def profile_by(lifetimes: Lifetimes, keys: Sequence[str], workspace_keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Live bytes per step split by key: int64 (n_steps,) each, summing to `lifetimes.live`; keys by their largest value.

    `keys`: one per storage; `workspace_keys`: one per node, for its workspace. O(storages + steps x keys).
    """
    graph, n = lifetimes.graph, len(lifetimes.order)
    change: dict[str, np.ndarray] = {}
    for s in map(int, np.flatnonzero(lifetimes.birth >= 0)):
        nbytes = graph.storages[s].nbytes
        if nbytes:
            row = change.setdefault(keys[s], np.zeros(n + 1, np.int64))
            row[lifetimes.birth[s]] += nbytes
            row[lifetimes.death[s]] -= nbytes
    profile = {key: np.cumsum(row[:n]) for key, row in change.items()}
    for step, v in enumerate(lifetimes.order):
        if graph.nodes[v].workspace:
            profile.setdefault(workspace_keys[v], np.zeros(n, np.int64))[step] += graph.nodes[v].workspace
    return dict(sorted(profile.items(), key=lambda item: (-int(item[1].max(initial=0)), item[0])))


def profile_by_role(lifetimes: Lifetimes) -> dict[str, np.ndarray]:
    """`profile_by` storage role, kernel workspace under `workspace`."""
    graph = lifetimes.graph
    return profile_by(lifetimes, [s.role for s in graph.storages], [WORKSPACE] * len(graph.nodes))
