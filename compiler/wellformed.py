"""What makes a Graph well formed, checked rule by rule; the first offender is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import GraphError
from .graph import EXTERNAL_ROLES, ITEMSIZE, PHASES, ROLES, Graph, Ref, Tensor

LARGEST = 1 << 60  # bytes of all storages and workspaces together: sums over any of them then fit 64 bits, with room for alignment


def check_graph(graph: Graph) -> None:
    """Raise `GraphError` unless every rule in the docstring of `compiler.graph` holds. O(size of the graph)."""
    _check_meta(graph)
    _check_tables(graph)
    _check_nodes(graph)
    _check_ends(graph)


def _check_meta(graph: Graph) -> None:
    """What Neaptide itself reads of `meta` has its kind; anything else may stand there."""
    meta = graph.meta
    kernels: Any = meta.get("kernels") if isinstance(meta.get("kernels"), Mapping) else {}
    assumptions, ends = meta.get("assumptions", ()), [meta.get(name, ()) for name in ("input_names", "output_names")]
    for key, fine, wanted in (
        ("versions", _texts(meta.get("versions", {})), "an object of texts"),
        ("kernels", isinstance(meta.get("kernels", {}), Mapping), "an object"),
        *(
            (key, _plain(kernels.get(key, meta.get(key))), "a text or a number")
            for key in ("threads", "isa", "processor", "mode", "device")
        ),
        ("kernels.unmeasured", _texts(kernels.get("unmeasured", {})), "an object of texts"),
        ("opsets", _versions(meta.get("opsets", {})), "an object of versions"),
        ("ir_version", isinstance(meta.get("ir_version", 1), int), "a whole number"),
        ("packed", isinstance(meta.get("packed", ()), (list, tuple)) and all(isinstance(t, int) for t in meta.get("packed", ())), "ids"),
        ("modules", _texts(meta.get("modules", {})), "an object of texts"),
        (
            "assumptions",
            isinstance(assumptions, (list, tuple)) and all(_texts(a) and {"op", "what"} <= set(a) for a in assumptions),
            'a list of {"op", "at", "what"}',
        ),
        ("input_names or output_names", all(isinstance(e, (list, tuple)) and all(isinstance(n, str) for n in e) for e in ends), "names"),
    ):
        if not fine:
            raise GraphError(f"meta.{key} of graph {graph.name!r} is not {wanted}")


def _texts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(v, str) for v in value.values())


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _versions(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(v, int) and 0 <= v < 2**31 for v in value.values())


def tensor_extent(tensor: Tensor) -> int:
    """Bytes from the start of the storage to the end of the last element; 0 for an empty tensor."""
    if tensor.numel == 0:
        return 0
    last = tensor.numel - 1 if tensor.strides is None else sum((d - 1) * s for d, s in zip(tensor.shape, tensor.strides, strict=True))
    return tensor.offset + (last + 1) * ITEMSIZE[tensor.dtype]


def _check_tables(graph: Graph) -> None:
    for i, s in enumerate(graph.storages):
        where = f"storage {i} of graph {graph.name!r}"
        if s.id != i:
            raise GraphError(f"{where} carries id {s.id}; ids are indices")
        if s.nbytes < 0:
            raise GraphError(f"{where} has {s.nbytes} bytes; sizes are never negative")
        if s.role not in ROLES:
            raise GraphError(f"{where} has role {s.role!r}; roles are {', '.join(ROLES)}")
    for i, t in enumerate(graph.tensors):
        where = f"tensor {i} of graph {graph.name!r}"
        if t.id != i:
            raise GraphError(f"{where} carries id {t.id}; ids are indices")
        if not 0 <= t.storage < len(graph.storages):
            raise GraphError(f"{where} lies on storage {t.storage}; the graph has {len(graph.storages)} storages")
        if t.dtype not in ITEMSIZE:
            raise GraphError(f"{where} has dtype {t.dtype!r}, which has no known size")
        if any(d < 0 for d in t.shape) or t.offset < 0:
            raise GraphError(f"{where} has shape {list(t.shape)} at offset {t.offset}; neither is ever negative")
        if t.strides is not None and (len(t.strides) != len(t.shape) or any(s < 0 for s in t.strides)):
            raise GraphError(f"{where} has strides {list(t.strides)} for shape {list(t.shape)}")
        storage = graph.storages[t.storage]
        if tensor_extent(t) > storage.nbytes:
            raise GraphError(f"{where} ends at byte {tensor_extent(t)} of storage {storage.id}, which has {storage.nbytes} bytes")
        if t.numel == 0 and max((*t.shape, *(t.strides or ()), t.offset), default=0) > LARGEST:
            raise GraphError(f"{where} has shape {list(t.shape)} at offset {t.offset}; no dimension is over 2^60")
    _check_total(graph)


def _check_total(graph: Graph) -> None:
    total = 0
    for called, nbytes in (
        *((f"storage {s.id}{f' ({s.name})' if s.name else ''}", s.nbytes) for s in graph.storages),
        *((f"the workspace of node {i} ({node.op})", node.workspace) for i, node in enumerate(graph.nodes)),
    ):
        total += nbytes
        if total > LARGEST:
            raise GraphError(f"graph {graph.name!r} takes over 2^60 bytes, {nbytes:,} of them for {called}; larger graphs are not analyzed")


def _check_nodes(graph: Graph) -> None:
    defined_by: dict[int, int] = {}
    for node in graph.nodes:
        for t in node.outputs:
            if not 0 <= t < len(graph.tensors):
                raise GraphError(f"node {node.id} ({node.op}) of graph {graph.name!r} outputs tensor {t}, which does not exist")
            if t in defined_by:
                raise GraphError(f"tensor {t} is defined twice: by node {defined_by[t]} and node {node.id} ({node.op})")
            defined_by[t] = node.id
    born: set[int] = {s.id for s in graph.storages if s.role in EXTERNAL_ROLES}
    done: set[int] = set()
    for i, node in enumerate(graph.nodes):
        where = f"node {i} ({node.op}) of graph {graph.name!r}"
        if node.id != i:
            raise GraphError(f"{where} carries id {node.id}; ids are indices")
        if node.phase not in PHASES:
            raise GraphError(f"{where} has phase {node.phase!r}; phases are {', '.join(PHASES)}")
        if node.workspace < 0:
            raise GraphError(f"{where} has a workspace of {node.workspace} bytes; sizes are never negative")
        for t in node.inputs:
            if not 0 <= t < len(graph.tensors):
                raise GraphError(f"{where} reads tensor {t}, which does not exist")
            if t in defined_by and t not in done:
                raise GraphError(f"{where} reads tensor {t} before node {defined_by[t]} defines it")
            s = graph.tensors[t].storage
            if t not in defined_by and s not in born:
                _require_carried(graph, s, f"{where} reads tensor {t}")
        for s in node.writes:
            if not 0 <= s < len(graph.storages):
                raise GraphError(f"{where} writes storage {s}, which does not exist")
            if s not in born:
                _require_carried(graph, s, f"{where} writes storage {s}")
        _check_attrs(node.attrs, where)
        _check_refs(node.attrs, len(node.inputs), where)
        for t in node.outputs:
            done.add(t)
            born.add(graph.tensors[t].storage)


def _require_carried(graph: Graph, storage: int, what: str) -> None:
    """An unborn storage may be read only when it is state carried over from an earlier step."""
    role = graph.storages[storage].role
    if role not in ("gradient", "optimizer_state"):
        raise GraphError(f"{what} on storage {storage}, an {role} that nothing has given birth to")


def _check_attrs(attrs: Mapping[str, Any], where: str) -> None:
    """The attributes that the compiler itself reads, whatever the op, have their kinds."""
    for key, kind, called in (
        ("args", (list, tuple), "a list"), ("kwargs", Mapping, "an object"), ("$inputs", (list, tuple), "a list"),
        ("$captures", (list, tuple), "a list"), ("$outputs", (list, tuple), "a list"), ("$name", str, "text"),
    ):  # fmt: skip
        if key in attrs and not isinstance(attrs[key], kind):
            raise GraphError(f"{where} has attribute {key!r} of kind {type(attrs[key]).__name__}; it is {called}")
    if not all(ref is None or isinstance(ref, Ref) for ref in attrs.get("$inputs", ())):
        raise GraphError(f"{where} has '$inputs' that are not its inputs")
    if not all(isinstance(name, str) for name in attrs.get("$captures", ())):
        raise GraphError(f"{where} has '$captures' that are not names")


def _check_refs(value: object, n_inputs: int, where: str) -> None:
    if isinstance(value, Ref):
        if not 0 <= value.index < n_inputs:
            raise GraphError(f"{where} refers to input {value.index} in its attributes; it has {n_inputs} inputs")
    elif isinstance(value, dict):
        for item in value.values():
            _check_refs(item, n_inputs, where)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_refs(item, n_inputs, where)


def _check_ends(graph: Graph) -> None:
    definer = graph.definer
    for kind, ids in (("input", graph.inputs), ("output", graph.outputs)):
        for t in ids:
            if not 0 <= t < len(graph.tensors):
                raise GraphError(f"graph {graph.name!r} names tensor {t} as {kind}; it has {len(graph.tensors)} tensors")
    for t in graph.inputs:
        s = graph.storages[graph.tensors[t].storage]
        if definer[t] != -1:
            raise GraphError(f"graph input {t} is an output of node {definer[t]} ({graph.nodes[definer[t]].op})")
        if s.role != "input":
            raise GraphError(f"graph input {t} lies on storage {s.id} with role {s.role!r}; graph inputs have role 'input'")
    for t in graph.outputs:
        s = graph.storages[graph.tensors[t].storage]
        if definer[t] == -1 and s.role == "activation":
            raise GraphError(f"graph output {t} is an activation that no node defines")
    if graph.released and len(graph.released) != len(graph.storages):
        raise GraphError(f"graph {graph.name!r} has {len(graph.released)} release entries for {len(graph.storages)} storages")
