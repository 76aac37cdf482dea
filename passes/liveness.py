"""Live ranges of storages: from the op that gives birth to a run of bytes to the last op that needs it.

A storage, not a tensor, is what memory holds (views and in-place results share one), so ranges belong to storages.
Half-open, in steps of the given order: storage s is alive at step t when `birth[s] <= t < death[s]`.

What is counted: storages that a node gives birth to, whatever their role, and with `inputs="planned"` the storages of
graph inputs, from step 0 to their last use. Weights and every other storage whose bytes exist before the first node stand
apart from peaks. A storage that is born and never used lives for one step; one that a graph output shows lives to the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import numpy as np

from ..compiler.errors import GraphError, NeaptideError
from ..compiler.graph import Graph

Inputs = Literal["planned", "caller"]


@dataclass(frozen=True, eq=False)
class Lifetimes:
    """Live ranges of every storage of `graph` under one order.

    `birth`, `death`: int64 (n_storages,), half-open steps; both -1 for storages that are not counted. `live`: int64
    (n_steps,), bytes alive while the step's node runs, its workspace included. `order`: node id per step.
    """

    graph: Graph = field(repr=False)
    order: tuple[int, ...] = field(repr=False)
    birth: np.ndarray = field(repr=False)
    death: np.ndarray = field(repr=False)
    live: np.ndarray
    inputs: Inputs = "planned"

    @property
    def peak(self) -> int:
        """Largest `live`, in bytes; 0 for a graph without nodes."""
        return int(self.live.max(initial=0))

    @property
    def peak_step(self) -> int:
        """First step at which `live` is `peak`; -1 for a graph without nodes."""
        return int(self.live.argmax()) if self.live.size else -1

    def alive_at(self, step: int) -> tuple[int, ...]:
        """Ids of the counted storages alive at `step`, ascending; zero-byte ones included."""
        self._check_step(step)
        return tuple(np.flatnonzero((self.birth <= step) & (step < self.death)).tolist())

    def by_role(self, step: int) -> dict[str, int]:
        """Bytes alive at `step` per storage role, and under `workspace` those of the running node; they sum to `live[step]`.

        Where the step let go of what an earlier one left, those bytes stand under `let go`, negative.

        Roles with nothing alive do not occur.
        """
        total: dict[str, int] = {}
        for s in self.alive_at(step):
            storage = self.graph.storages[s]
            if storage.nbytes:
                total[storage.role] = total.get(storage.role, 0) + storage.nbytes
        workspace = self.graph.nodes[self.order[step]].workspace
        if workspace:
            total["workspace"] = workspace
        rest = int(self.live[step]) - sum(total.values())
        if rest:
            total["let go"] = rest
        return total

    def by_module(self, step: int) -> dict[str, int]:
        """Bytes alive at `step` per module path of the node that gave birth to them, largest first; they sum to `live[step]`.

        Workspace belongs to the running node's module; graph inputs and code outside any module are under `""`.
        """
        total: dict[str, int] = {}
        graph = self.graph
        for s in self.alive_at(step):
            scope = graph.nodes[graph.birth[s]].scope if graph.birth[s] >= 0 else ""
            total[scope] = total.get(scope, 0) + graph.storages[s].nbytes
        running = graph.nodes[self.order[step]]
        total[running.scope] = total.get(running.scope, 0) + running.workspace
        total[""] = total.get("", 0) + int(self.live[step]) - sum(total.values())
        return dict(sorted(((k, b) for k, b in total.items() if b), key=lambda item: (-item[1], item[0])))

    def _check_step(self, step: int) -> None:
        if not 0 <= step < len(self.order):
            raise NeaptideError(f"step {step} is outside graph {self.graph.name!r}, which runs steps 0 to {len(self.order) - 1}")


def check_inputs_mode(inputs: str) -> None:
    """Raise `NeaptideError` unless `inputs` is `"planned"` or `"caller"`."""
    if inputs not in ("planned", "caller"):
        raise NeaptideError(
            f'inputs={inputs!r}: graph inputs are "planned" (live from the start to their last use) or the "caller"\'s (not counted)'
        )


def counted_storages(graph: Graph, inputs: Inputs) -> np.ndarray:
    """Bool (n_storages,): which storages peaks count under `inputs`, used or not."""
    check_inputs_mode(inputs)
    counted = np.fromiter(graph.birth, np.int64, len(graph.storages)) >= 0
    if inputs == "planned":
        counted[list(graph.input_storages)] = True
    return counted


def liveness(graph: Graph, order: Sequence[int] | None = None, *, inputs: Inputs = "planned") -> Lifetimes:
    """Live ranges of every storage of `graph` when its nodes run in `order` (traced order if None).

    `inputs`: `"planned"` counts the storages of graph inputs from step 0 to their last use (unused ones not at all),
    `"caller"` leaves them out. O(nodes + uses). Raises `OrderError` naming the first node that runs too early. The table
    of MemNet section 3.4 (arXiv 1907.09569), with inputs and outputs of a node alive together.
    """
    n = len(graph.nodes)
    counted = counted_storages(graph, inputs)
    first = np.full(len(graph.storages), n, np.int64)
    last = np.full(len(graph.storages), -1, np.int64)
    lengths = np.fromiter(map(len, graph.touches), np.int64, n)
    touched = np.fromiter(chain.from_iterable(graph.touches), np.int64, int(lengths.sum()))
    if order is None:
        order = tuple(range(n))
        steps = np.repeat(np.arange(n), lengths)
    else:
        order = graph.check_order(order)
        position = np.empty(n, np.int64)
        position[list(order)] = np.arange(n)
        steps = np.repeat(position, lengths)
    np.minimum.at(first, touched, steps)
    np.maximum.at(last, touched, steps)
    if graph.pinned:
        pinned = list(graph.pinned)
        last[pinned] = n - 1
    if inputs == "planned":
        first[list(graph.input_storages)] = 0
    counted &= last >= 0
    birth = np.where(counted, first, -1)
    death = np.where(counted, last + 1, -1)
    return Lifetimes(graph, order, birth, death, _profile(graph, order, birth, death), inputs)


def eager_liveness(graph: Graph, *, inputs: Inputs = "caller") -> Lifetimes:
    """Live ranges the framework really gave while `graph` was traced: bytes stay until their last Python reference goes.

    A storage lives from the node that gives birth to it until the framework lets go of it (`graph.released`), through the
    node that had started last by then; one still held when the trace ended lives to the end. Optimizer state from an earlier step that is
    replaced (`let_go`) is taken off from then on. Raises `GraphError` when the graph carries no such record (graphs that were not traced
    by running Python).
    """
    n = len(graph.nodes)
    if len(graph.released) != len(graph.storages):
        raise GraphError(
            f"graph {graph.name!r} has no record of when the framework released its storages "
            f"({len(graph.released)} entries for {len(graph.storages)} storages); use liveness(), or trace() the model"
        )
    counted = counted_storages(graph, inputs)
    first = np.maximum(np.fromiter(graph.birth, np.int64, len(graph.storages)), 0)
    last = np.fromiter((n - 1 if k is None else min(k, n - 1) for k in graph.released), np.int64, len(graph.storages))
    from_outside = np.fromiter(graph.birth, np.int64, len(graph.storages)) < 0
    last = np.where(from_outside, last, np.maximum(last, first))
    counted &= last >= 0
    birth = np.where(counted, first, -1)
    death = np.where(counted, last + 1, -1)
    order = tuple(range(n))
    live = _profile(graph, order, birth, death)
    for s in let_go(graph):
        live[graph.released[s] + 1 :] -= graph.storages[s].nbytes  # type: ignore[operator]
    return Lifetimes(graph, order, birth, death, live, inputs)


def let_go(graph: Graph) -> list[int]:
    """Optimizer state from before a traced step that was replaced during it, ascending; its bytes are a gain.

    Gradients that an earlier step left, and this one clears, are none: they stand beside the step, as in the profiler's account of it.
    """
    outside = (s for s in graph.storages if s.role == "optimizer_state" and graph.birth[s.id] < 0)
    return [s.id for s in outside if graph.released[s.id] is not None]


def _profile(graph: Graph, order: tuple[int, ...], birth: np.ndarray, death: np.ndarray) -> np.ndarray:
    """Bytes alive per step: the running sum of what is born and what dies, and each node's workspace."""
    n = len(order)
    size = np.fromiter((s.nbytes for s in graph.storages), np.int64, len(graph.storages))
    counted = birth >= 0
    change = np.zeros(n + 1, np.int64)
    np.add.at(change, birth[counted], size[counted])
    np.subtract.at(change, death[counted], size[counted])
    workspace = np.fromiter((graph.nodes[v].workspace for v in order), np.int64, n)
    return np.cumsum(change[:n]) + workspace
