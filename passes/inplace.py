"""In-place reuse: an elementwise op writes its result over an operand that dies there, so two storages become one.

Only where nothing can tell the difference: the operand fills its storage alone, in the shape, dtype and strides of the
result; its bytes were born inside the graph and are no output; and every other node that touches them must run before the
op in every legal order. So no order is lost, and in no order does the peak rise. The rewrite is off unless asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache

from ..compiler.graph import ITEMSIZE, Graph, Node, Ref, Tensor, contiguous_strides
from ..compiler.ops import op_facts


def inplace(graph: Graph, *, operands: Callable[[Node], Collection[int]] | None = None) -> Graph:
    """`graph` with every legal elementwise result on the storage of an operand that dies at its node; tensors keep their ids.

    `operands`: the indices of a node's inputs that its result may lie over, for ops of a backend's own (a fused convolution and the
    summand of its sum); None: those of elementwise aten and ONNX ops.

    Such a node has that storage in `writes`. Aten ops that have an in-place form take it (`aten.relu.default` becomes
    `aten.relu_.default`) where the operand is their `self`; others keep their name, and a runner may write in place. Storages
    that are no longer needed go, and the record of when the framework released them. Raises nothing of its own.
    O(nodes^2 / 64) for the ancestors.
    """
    merge = _Merge(graph, operands or _elementwise)
    nodes = [merge.rewritten(node) for node in graph.nodes]
    if merge.count == 0:
        return graph
    kept = sorted(set(merge.place))
    new_id = {s: i for i, s in enumerate(kept)}
    role = {merge.place[s]: graph.storages[s].role for s in range(len(graph.storages)) if graph.storages[s].role != "activation"}
    return replace(
        graph,
        nodes=tuple(replace(node, writes=tuple(new_id[merge.place[s]] for s in node.writes)) for node in nodes),
        tensors=tuple(replace(t, storage=new_id[merge.place[t.storage]]) for t in graph.tensors),
        storages=tuple(replace(graph.storages[s], id=new_id[s], role=role.get(s, graph.storages[s].role)) for s in kept),
        released=(),
    ).check()


class _Merge:
    """Which storage each storage lies on, as nodes are taken in turn. `place`: per storage, the one that stands for it."""

    def __init__(self, graph: Graph, operands: Callable[[Node], Collection[int]]):
        self.graph = graph
        self.operands = operands
        self.place = list(range(len(graph.storages)))
        self.count = 0
        self.ancestors: list[int] = []
        for v, preds in enumerate(graph.dependencies()):
            bits = 1 << v
            for u in preds:
                bits |= self.ancestors[u]
            self.ancestors.append(bits)
        self.touched_by = [0] * len(graph.storages)
        for v, touched in enumerate(graph.touches):
            for s in touched:
                self.touched_by[s] |= 1 << v
        self.pinned = set(graph.pinned)

    def rewritten(self, node: Node) -> Node:
        """`node`, over a dying operand if that is legal, with the merge noted."""
        allowed = self.operands(node)
        if not allowed or node.writes or len(node.outputs) != 1:
            return node
        out = self.graph.tensors[node.outputs[0]]
        if self.graph.birth[out.storage] != node.id or not _fills(out, self.graph.storages[out.storage].nbytes):
            return node
        for index, t in enumerate(node.inputs):
            place = self.place[self.graph.tensors[t].storage]
            lying_there = {i for i, u in enumerate(node.inputs) if self.place[self.graph.tensors[u].storage] == place}
            if lying_there.issubset(allowed) and self._dies_alike(node, self.graph.tensors[t], out):
                self._put_on(out.storage, place)
                op = _mutating_form(node.op) if _is_self(node, index) else node.op
                return replace(node, op=op, writes=(out.storage,))
        return node

    def _dies_alike(self, node: Node, operand: Tensor, out: Tensor) -> bool:
        """Whether `operand` fills the bytes it lies on just as `out` does, and nothing needs them but what runs before `node`."""
        graph, place = self.graph, self.place[operand.storage]
        if graph.birth[place] < 0 or place in self.pinned:
            return False
        if (operand.shape, operand.dtype, _strides(operand)) != (out.shape, out.dtype, _strides(out)):
            return False
        if graph.storages[place].nbytes != graph.storages[out.storage].nbytes or not _fills(operand, graph.storages[place].nbytes):
            return False
        same = [graph.tensors[t] for t in node.inputs if self.place[graph.tensors[t].storage] == place]
        if any((t.shape, t.dtype, t.offset, _strides(t)) != (out.shape, out.dtype, 0, _strides(out)) for t in same):
            return False
        return not self._needed_elsewhere(place, node)

    def _needed_elsewhere(self, place: int, node: Node) -> bool:
        """Whether a node that may run after `node` touches `place`."""
        return self.touched_by[place] & ~self.ancestors[node.id] != 0

    def _put_on(self, storage: int, place: int) -> None:
        """Let `storage`, which nothing lies on yet, lie on `place`."""
        self.place[storage] = place
        self.touched_by[place] |= self.touched_by[storage]
        if storage in self.pinned:
            self.pinned.add(place)
        self.count += 1


def _elementwise(node: Node) -> Collection[int]:
    """Every input of an op that computes each element from those at its place."""
    facts = op_facts(node.op)
    return range(len(node.inputs)) if facts is not None and facts.may_inplace else ()


def _is_self(node: Node, index: int) -> bool:
    """Whether the input at `index` is the first argument of an aten node, which its in-place form writes."""
    args = node.attrs.get("args", ())
    return bool(args) and args[0] == Ref(index)


def _strides(tensor: Tensor) -> tuple[int, ...]:
    return contiguous_strides(tensor.shape) if tensor.strides is None else tensor.strides


def _fills(tensor: Tensor, nbytes: int) -> bool:
    """Whether `tensor` covers a storage of `nbytes` > 0 bytes entirely, each byte once."""
    if tensor.offset or not nbytes or tensor.numel * ITEMSIZE[tensor.dtype] != nbytes:
        return False
    reach = 1
    for stride, extent in sorted((s, d) for s, d in zip(_strides(tensor), tensor.shape, strict=True) if d > 1):
        if stride != reach:
            return False
        reach *= extent
    return True


@cache
def _mutating_form(op: str) -> str:
    """The in-place overload of an aten op with the same arguments, `op` itself where there is none."""
    namespace, _, rest = op.partition(".")
    name, _, overload = rest.partition(".")
    if namespace != "aten" or not overload:
        return op
    import torch

    packet, plain = getattr(torch.ops.aten, f"{name}_", None), getattr(torch.ops.aten, name, None)
    if packet is None or plain is None or overload not in packet.overloads() or overload not in plain.overloads():
        return op
    mutating, functional = getattr(packet, overload)._schema, getattr(plain, overload)._schema
    if [(a.name, str(a.type)) for a in mutating.arguments] != [(a.name, str(a.type)) for a in functional.arguments]:
        return op
    return f"aten.{name}_.{overload}"
