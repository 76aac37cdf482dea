"""Stretches of a graph made once and placed many times, for spaces that build very many graphs.

Placing gives a stretch its numbers in the tables of the graph it becomes part of. What is placed at the same numbers under the same
module path is the same, so that a space remembers it and a graph costs little more than its nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from ...compiler.graph import Graph, Node, Storage, Tensor

INPUT = -1
"""Stands in a placed node for the tensor that the stretch reads."""

_new = object.__new__
_id, _op, _inputs, _outputs, _writes, _attrs, _scope, _source, _workspace, _phase = [getattr(Node, f.name).__set__ for f in fields(Node)]


def inference_node(
    at: int, op: str, inputs: tuple[int, ...], outputs: tuple[int, ...], writes: tuple[int, ...], attrs: Any, scope: str
) -> Node:
    """`Node(at, op, inputs, outputs, writes, attrs, scope)` in half the time: its slots are filled without the detour of frozen classes."""
    node = _new(Node)
    _id(node, at)
    _op(node, op)
    _inputs(node, inputs)
    _outputs(node, outputs)
    _writes(node, writes)
    _attrs(node, attrs)
    _scope(node, scope)
    _source(node, "")
    _workspace(node, 0)
    _phase(node, "forward")
    return node


class Placed(NamedTuple):
    """A stretch with its numbers. `nodes`: operator, input tensors, output tensors, storages written, attributes, module path.

    `result`: the tensor that it hands on.
    """

    tensors: tuple[Tensor, ...]
    storages: tuple[Storage, ...]
    nodes: tuple[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...], Any, str], ...]
    result: int

    def append(self, nodes: list[Node], x: int) -> int:
        """Add its nodes, reading tensor `x`, to `nodes`; returns the tensor that it hands on."""
        at = len(nodes)
        for op, inputs, outputs, writes, attrs, scope in self.nodes:
            if INPUT in inputs:
                inputs = tuple([x if t == INPUT else t for t in inputs])
            nodes.append(inference_node(at, op, inputs, outputs, writes, attrs, scope))
            at += 1
        return self.result


def place(stretch: Graph, tensor: int, storage: int, scope: str) -> Placed:
    """`stretch`, a graph of one input and one result, with its tables from `tensor` and `storage` on, its input left out.

    `scope` is the module path in which it stands; the names of weights and the scopes of nodes are taken to be relative to it.
    """
    (source,) = stretch.inputs
    home = stretch.tensors[source].storage
    if any(t.storage == home for t in stretch.tensors if t.id != source) or any(home in node.writes for node in stretch.nodes):
        raise ValueError(f"stretch {stretch.name!r} has views of its input or writes it, so that it cannot be placed apart")
    tensor_at = [tensor + i - (i > source) for i in range(len(stretch.tensors))]
    storage_at = [storage + i - (i > home) for i in range(len(stretch.storages))]
    tensor_at[source] = INPUT
    tensors = tuple(
        Tensor(tensor_at[t.id], t.shape, t.dtype, storage_at[t.storage], t.offset, t.strides, _under(scope, t.name) if t.name else "")
        for t in stretch.tensors
        if t.id != source
    )
    storages = tuple(
        Storage(storage_at[s.id], s.nbytes, s.role, _under(scope, s.name) if s.name else "") for s in stretch.storages if s.id != home
    )
    nodes = tuple(
        (
            node.op,
            tuple(tensor_at[t] for t in node.inputs),
            tuple(tensor_at[t] for t in node.outputs),
            tuple(storage_at[s] for s in node.writes),
            node.attrs,
            _under(scope, node.scope),
        )
        for node in stretch.nodes
    )
    return Placed(tensors, storages, nodes, tensor_at[stretch.outputs[0]])


def place_all(stretches: Sequence[tuple[Graph, str]], tensor: int, storage: int) -> tuple[Placed, ...]:
    """Each of `stretches`, with its module path, placed behind the one before."""
    placed = []
    for stretch, scope in stretches:
        placed.append(place(stretch, tensor, storage, scope))
        tensor += len(placed[-1].tensors)
        storage += len(placed[-1].storages)
    return tuple(placed)


def _under(scope: str, name: str) -> str:
    return f"{scope}.{name}" if scope and name else scope or name
