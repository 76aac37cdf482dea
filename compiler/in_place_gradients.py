"""Gradients that meet: autograd adds them in place where a recording shows a new tensor.

A gradient with several contributions is summed as they arrive. In a plain run autograd writes the sum over the first one when nothing
else refers to it or to its storage; a recorder does. `accumulate_in_place` restores what a plain run does.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from .graph import Graph


def accumulate_in_place(graph: Graph, candidates: Collection[int]) -> Graph:
    """`graph` with those `aten.add.Tensor` nodes among `candidates` made `aten.add_.Tensor` whose first argument dies there.

    The sum then lies on the argument's storage, which lives as long as the sum did; the sum's own storage is gone. O(size).
    """
    external = {s.id for s in graph.storages if graph.birth[s.id] < 0}
    onto: dict[int, int] = {}
    storages = list(graph.storages)
    released = list(graph.released)
    nodes = list(graph.nodes)

    def home(s: int) -> int:
        while s in onto:
            s = onto[s]
        return s

    for v in sorted(candidates):
        node = graph.nodes[v]
        target = home(graph.tensors[node.inputs[0]].storage)
        born = graph.tensors[node.outputs[0]].storage
        if target in external or released[target] != v or storages[target].nbytes != storages[born].nbytes or graph.birth[born] != v:
            continue
        onto[born] = target
        storages[target] = replace(storages[born], id=target)
        released[target] = released[born]
        nodes[v] = replace(node, op="aten.add_.Tensor", writes=(target,))
    if not onto:
        return graph
    kept = [s.id for s in graph.storages if s.id not in onto]
    new_id = {s: i for i, s in enumerate(kept)}
    return replace(
        graph,
        nodes=tuple(replace(node, writes=tuple(dict.fromkeys(new_id[home(s)] for s in node.writes))) for node in nodes),
        tensors=tuple(replace(t, storage=new_id[home(t.storage)]) for t in graph.tensors),
        storages=tuple(replace(storages[s], id=new_id[s]) for s in kept),
        released=tuple(released[s] for s in kept),
    ).check()
