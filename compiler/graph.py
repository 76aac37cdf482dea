"""The Graph: what every model becomes, and what memory means in Neaptide.

A **Storage** is a run of bytes that is born and dies as one. A **Tensor** is a typed, strided window on one Storage;
views, in-place results and outputs share a Storage, so lifetimes belong to Storages and never to Tensors. A **Node** is
one executed operator. A **Graph** holds all three in dense tables (an id is an index) with its nodes in traced order.

Rules that `Graph.check` proves:
- A tensor is defined once: it is a graph input, a constant of some kind, or an output of exactly one node. An in-place op
  defines a *new* tensor on the *old* storage and lists that storage in `writes`.
- A storage is *external* when its bytes exist before the first node (roles input, parameter, buffer, constant, and
  gradients or optimizer state carried over from an earlier step); otherwise the first node that outputs a tensor on it
  without reading it gives birth to it.
- Graph inputs and outputs are tensors; the storages of outputs are pinned: they stay alive to the end.

While node v runs, memory holds every storage born at or before v and used at or after v (inputs and outputs of v both),
plus `v.workspace` bytes that live only during v.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

from .errors import OrderError

if TYPE_CHECKING:
    import networkx

ROLES: tuple[str, ...] = ("input", "parameter", "buffer", "constant", "activation", "gradient", "optimizer_state")
EXTERNAL_ROLES = frozenset(("input", "parameter", "buffer", "constant"))
WEIGHT_ROLES = frozenset(("parameter", "buffer", "constant"))
PHASES = ("forward", "backward", "optimizer")

ITEMSIZE = {
    "bool": 1, "uint8": 1, "int8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex32": 4, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "qint8": 1, "quint8": 1, "qint32": 4, "string": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes that live and die as one. `nbytes` is the true size; `name` is the parameter, input or value name if it has one."""

    id: int
    nbytes: int
    role: str = "activation"
    name: str = ""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A window on a storage. `offset` is in bytes from the start of the storage; `strides` in elements, None when contiguous."""

    id: int
    shape: tuple[int, ...]
    dtype: str
    storage: int
    offset: int = 0
    strides: tuple[int, ...] | None = None
    name: str = ""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Ref:
    """Inside `Node.attrs`: stands for the node's `inputs[index]`."""

    index: int


@dataclass(frozen=True, slots=True)
class Atom:
    """Inside `Node.attrs`: a non-JSON scalar by kind and text, e.g. `Atom("dtype", "float32")`, `Atom("device", "cpu")`."""

    kind: str
    value: str


@dataclass(frozen=True, slots=True)
class Node:
    """One executed operator.

    `inputs`, `outputs`: tensor ids. `writes`: ids of storages it mutates (not the ones it gives birth to). `attrs`: for aten
    ops `args` and `kwargs`, where tensors are `Ref`s into `inputs`; for ONNX ops the attributes. `scope`: the module path,
    dotted. `source`: the user's `file:line`. `workspace`: bytes alive only while it runs. `phase`: one of PHASES.
    """

    id: int
    op: str
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    scope: str = ""
    source: str = ""
    workspace: int = 0
    phase: str = "forward"


@dataclass(frozen=True)
class Graph:
    """Nodes in traced order over dense tables of tensors and storages.

    `inputs`, `outputs`: tensor ids, in the caller's order. `meta`: JSON values about where the graph came from (`frontend`,
    `device`, `mode`, `threads`, `versions`, ...). `released`: for traced graphs, per storage the id of the last node that had
    started when the framework let go of it (None: still held at the end); empty when unknown. `values`: runtime tensors of
    external storages by tensor id, for execution; never compared or written.
    """

    name: str
    nodes: tuple[Node, ...]
    tensors: tuple[Tensor, ...]
    storages: tuple[Storage, ...]
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    released: tuple[int | None, ...] = ()
    values: Mapping[int, Any] = field(default_factory=dict, compare=False, repr=False)

    # ---- facts derived once -------------------------------------------------------------------------------------

    @cached_property
    def definer(self) -> tuple[int, ...]:
        """Per tensor: the node that defines it, -1 for graph inputs and other external tensors."""
        by = [-1] * len(self.tensors)
        for node in self.nodes:
            for t in node.outputs:
                by[t] = node.id
        return tuple(by)

    @cached_property
    def birth(self) -> tuple[int, ...]:
        """Per storage: the node that gives birth to it in traced order, -1 for external ones."""
        by = [-2] * len(self.storages)
        storage_of = [t.storage for t in self.tensors]
        for node in self.nodes:
            for t in node.inputs:
                if by[storage_of[t]] == -2:
                    by[storage_of[t]] = -1
            for s in node.writes:
                if by[s] == -2:
                    by[s] = -1
            for t in node.outputs:
                if by[storage_of[t]] == -2:
                    by[storage_of[t]] = -1 if self.storages[storage_of[t]].role in EXTERNAL_ROLES else node.id
        return tuple(-1 if b == -2 else b for b in by)

    @cached_property
    def touches(self) -> tuple[tuple[int, ...], ...]:
        """Per node: the distinct storages it reads, writes or outputs, ascending."""
        storage_of = [t.storage for t in self.tensors]
        return tuple(tuple(sorted({storage_of[t] for t in (*node.inputs, *node.outputs)} | set(node.writes))) for node in self.nodes)

    @cached_property
    def pinned(self) -> frozenset[int]:
        """Storages of graph outputs: alive to the end."""
        return frozenset(self.tensors[t].storage for t in self.outputs)

    @cached_property
    def input_storages(self) -> tuple[int, ...]:
        """Distinct storages with role input, ascending."""
        return tuple(s.id for s in self.storages if s.role == "input")

    def is_view(self, node: Node) -> bool:
        """True when `node` only makes new windows on storages it reads: no bytes are born, none are written."""
        if node.writes or not node.outputs or not node.inputs:
            return False
        read = {self.tensors[t].storage for t in node.inputs}
        return all(self.tensors[t].storage in read for t in node.outputs)

    def bytes_by_role(self) -> dict[str, int]:
        """Total bytes of all storages per role; 0 for roles that do not occur."""
        total = dict.fromkeys(ROLES, 0)
        for s in self.storages:
            total[s.role] += s.nbytes
        return total

    def dependencies(self) -> tuple[tuple[int, ...], ...]:
        """Per node: the nodes that must run before it, ascending.

        Data edges (a tensor's definer before its users) plus the hazards through storages: read after write, write after
        read, write after write. Views take no part in hazards of their own: they touch no bytes. O(nodes + uses + hazards).
        """
        return self._dependencies

    @cached_property
    def _dependencies(self) -> tuple[tuple[int, ...], ...]:
        definer, birth = self.definer, self.birth
        last_writer: dict[int, int] = {}
        readers: dict[int, list[int]] = {}
        preds: list[tuple[int, ...]] = []
        for node in self.nodes:
            before = {definer[t] for t in node.inputs}
            written = set(node.writes)
            born = set()
            for t in node.outputs:
                s = self.tensors[t].storage
                if birth[s] == node.id:
                    born.add(s)
            if self.is_view(node):
                before.update(birth[self.tensors[t].storage] for t in node.inputs)
            else:
                read = {self.tensors[t].storage for t in node.inputs} - written
                for s in read:
                    if s in last_writer:
                        before.add(last_writer[s])
                    readers.setdefault(s, []).append(node.id)
            for s in written:
                if s in last_writer:
                    before.add(last_writer[s])
                before.update(readers.get(s, ()))
                before.add(birth[s])
            for s in written | born:
                last_writer[s] = node.id
                readers[s] = []
            before.discard(-1)
            before.discard(node.id)
            preds.append(tuple(sorted(before)))
        return tuple(preds)

    def successors(self) -> tuple[tuple[int, ...], ...]:
        """Per node: the nodes that depend on it, ascending."""
        succ: list[list[int]] = [[] for _ in self.nodes]
        for v, preds in enumerate(self._dependencies):
            for u in preds:
                succ[u].append(v)
        return tuple(map(tuple, succ))

    # ---- checks -------------------------------------------------------------------------------------------------

    def check(self) -> Graph:
        """Prove well-formedness; returns self. Raises `GraphError` naming the first offender. O(size of the graph)."""
        from .wellformed import check_graph

        check_graph(self)
        return self

    def check_order(self, order: Sequence[int]) -> tuple[int, ...]:
        """`order` as a tuple if it is a topological order of this graph.

        Raises `OrderError` naming the first node that is missing, repeated, or runs before something it depends on.
        """
        order = tuple(int(v) for v in order)
        if len(order) != len(self.nodes):
            raise OrderError(f"order has {len(order)} nodes, graph {self.name!r} has {len(self.nodes)}")
        seen = [False] * len(self.nodes)
        preds = self._dependencies
        for v in order:
            if not 0 <= v < len(self.nodes):
                raise OrderError(f"order names node {v}; graph {self.name!r} has nodes 0 to {len(self.nodes) - 1}")
            if seen[v]:
                raise OrderError(f"order runs node {v} ({self.nodes[v].op}) twice")
            for u in preds[v]:
                if not seen[u]:
                    raise OrderError(f"node {v} ({self.nodes[v].op}) runs before node {u} ({self.nodes[u].op}), which it depends on")
            seen[v] = True
        return order

    # ---- in and out ---------------------------------------------------------------------------------------------

    def to_text(self) -> str:
        """The stable text form: a header, one line a node, the outputs. Golden tests compare it."""
        from .text import graph_text

        return graph_text(self)

    def __str__(self) -> str:
        return self.to_text()

    def to_json(self, *, indent: int | None = None) -> str:
        """Versioned JSON (`format: neaptide.graph`); `from_json` gives an equal graph back."""
        from .serialize import dumps

        return dumps(self, indent=indent)

    def save_json(self, path: str) -> None:
        """Write `to_json` to `path`, atomically."""
        from .output_files import write_text

        write_text(path, self.to_json())

    @classmethod
    def from_json(cls, source: str | bytes | Mapping[str, Any], *, name: str = "graph") -> Graph:
        """Read Neaptide's JSON or the plain `{"nodes", "bufs", "out"}` form, from text or a parsed mapping.

        Raises `FormatError` that names the place, `GraphError` when the content is not a well-formed graph.
        """
        from .serialize import loads

        return loads(source, name=name)

    @classmethod
    def load_json(cls, path: str) -> Graph:
        """`from_json` of a file."""
        from .serialize import load

        return load(path)

    @classmethod
    def from_exported_program(cls, program: Any, *, name: str = "exported") -> Graph:
        """Graph of a `torch.export.ExportedProgram` or the path of a `.pt2` file."""
        from .exported import from_exported_program

        return from_exported_program(program, name=name)

    @classmethod
    def from_fx(cls, module: Any, args: Sequence[Any] = (), *, name: str = "fx") -> Graph:
        """Graph of a `torch.fx.GraphModule`; `args` are example inputs where its nodes carry no `meta["val"]`."""
        from .exported import from_fx

        return from_fx(module, args, name=name)

    @classmethod
    def from_onnx(cls, model: Any, *, name: str | None = None, shapes: Mapping[str, Sequence[int] | int] | None = None) -> Graph:
        """Graph of an ONNX model given by path, bytes or `ModelProto`; nothing outside its folder is read.

        `shapes` gives concrete shapes of inputs, `{"x": (1, 3, 224, 224)}`, and sizes of named dimensions, `{"batch": 1}`.
        """
        from .from_onnx import from_onnx

        return from_onnx(model, name=name, shapes=shapes)

    def to_fx(self, order: Sequence[int] | None = None) -> Any:
        """A runnable `torch.fx.GraphModule` whose nodes stand in `order` (traced order if None)."""
        from .to_fx import to_fx

        return to_fx(self, order)

    def to_onnx(self, order: Sequence[int] | None = None) -> Any:
        """An `onnx.ModelProto` whose nodes stand in `order` (traced order if None)."""
        from .to_onnx import to_onnx

        return to_onnx(self, order)

    def to_networkx(self) -> networkx.DiGraph:
        """Dependencies as a `networkx.DiGraph`: node ids with `op`, `scope`, `workspace`; edges with `storages` and `nbytes`.

        An edge's `storages` are those born at or written by its tail that its head touches; hazard edges may carry none.
        """
        import networkx

        out = networkx.DiGraph(name=self.name)
        for node in self.nodes:
            out.add_node(node.id, op=node.op, scope=node.scope, workspace=node.workspace)
        made = [{self.tensors[t].storage for t in node.outputs} | set(node.writes) for node in self.nodes]
        for v, preds in enumerate(self._dependencies):
            for u in preds:
                carried = tuple(s for s in self.touches[v] if s in made[u])
                out.add_edge(u, v, storages=carried, nbytes=sum(self.storages[s].nbytes for s in carried))
        return out

    def with_nodes(self, nodes: Sequence[Node]) -> Graph:
        """The same tables with other nodes (for passes that only change node fields)."""
        return replace(self, nodes=tuple(nodes))


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides of `shape`, in elements."""
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * max(1, shape[i + 1])
    return tuple(strides)


class GraphBuilder:
    """Fills the dense tables of a Graph in order; the one way front ends and generators make graphs."""

    def __init__(self, name: str):
        self.name = name
        self.nodes: list[Node] = []
        self.tensors: list[Tensor] = []
        self.storages: list[Storage] = []
        self.inputs: list[int] = []
        self.outputs: list[int] = []
        self.meta: dict[str, Any] = {}
        self.released: list[int | None] = []
        self.values: dict[int, Any] = {}

    def storage(self, nbytes: int, role: str = "activation", name: str = "") -> int:
        """Add a storage; returns its id."""
        self.storages.append(Storage(len(self.storages), int(nbytes), role, name))
        return len(self.storages) - 1

    def tensor(
        self,
        shape: Sequence[int],
        dtype: str,
        storage: int | None = None,
        *,
        role: str = "activation",
        offset: int = 0,
        strides: Sequence[int] | None = None,
        name: str = "",
    ) -> int:
        """Add a tensor, on a new storage of its own exact size unless one is given; returns its id."""
        shape = tuple(int(d) for d in shape)
        if storage is None:
            n = ITEMSIZE[dtype]
            for d in shape:
                n *= d
            storage = self.storage(n, role, name)
        kept = None if strides is None or tuple(strides) == contiguous_strides(shape) else tuple(int(s) for s in strides)
        self.tensors.append(Tensor(len(self.tensors), shape, dtype, storage, int(offset), kept, name))
        return len(self.tensors) - 1

    def node(self, op: str, inputs: Sequence[int] = (), outputs: Sequence[int] = (), **fields: Any) -> int:
        """Add a node; `fields` as in `Node`. Returns its id."""
        self.nodes.append(Node(len(self.nodes), op, tuple(inputs), tuple(outputs), **fields))
        return len(self.nodes) - 1

    def build(self, *, check: bool = True) -> Graph:
        """The finished graph, checked unless `check` is False."""
        graph = Graph(
            self.name,
            tuple(self.nodes),
            tuple(self.tensors),
            tuple(self.storages),
            tuple(self.inputs),
            tuple(self.outputs),
            self.meta,
            tuple(self.released),
            self.values,
        )
        return graph.check() if check else graph
