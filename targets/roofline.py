"""Rooflines: the least time an operator needs on a device whose peaks are known, from the bytes it moves and its arithmetic.

Williams, Waterman and Patterson, "Roofline" (CACM 2009). An operator is taken to read its inputs from device memory and to write its
outputs there, each byte once, at the full bandwidth; launching costs nothing. Operators run one after another, so that bounds add up.
What stays in a cache between two operators, and what an operator skips of an input, is not known to it. Arithmetic is that of the direct
algorithm, on padding too: Winograd's convolutions, or ones that skip padding, may need less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..compiler.errors import SourceError
from ..compiler.graph import ITEMSIZE, Graph, Node
from .spec import Target

PICKS = ("take", "gather", "slice", "embedding")  # operators that read a part of an input, which part is not in their shapes


@dataclass(frozen=True, slots=True)
class OpBound:
    """Least time of one node. `bytes`: read and written; `flops`: single precision; `limit`: which of both takes longer."""

    node: int
    seconds: float
    bytes: int
    flops: float
    limit: Literal["memory", "arithmetic"]


def roofline(graph: Graph, target: Target, flops: Mapping[str, float]) -> tuple[OpBound, ...]:
    """One bound per node that computes, in the order of the nodes; `reshape` nodes are views and cost nothing.

    `flops`: per op of the graph, a multiply-add is two. Arithmetic in half precision is not counted, for the peak is that of single
    precision. O(nodes). Raises `SourceError` where `target` has no `[roofline]` peaks or `flops` lacks an op.
    """
    peaks = target.roofline
    if peaks is None:
        raise SourceError(f"target {target.name} gives no peaks: its file needs [roofline] with flops and bandwidth")
    bounds = []
    for node in graph.nodes:
        if node.op == "reshape":
            continue
        if node.op not in flops:
            raise SourceError(f"operator {node.op!r} has no count of its arithmetic")
        moved = moved_bytes(graph, node)
        work = flops[node.op] if all(graph.tensors[t].dtype == "float32" for t in node.outputs) else 0.0
        memory, arithmetic = moved / peaks.bandwidth, work / peaks.flops
        limit: Literal["memory", "arithmetic"] = "memory" if memory >= arithmetic else "arithmetic"
        bounds.append(OpBound(node.id, max(memory, arithmetic), moved, work, limit))
    return tuple(bounds)


def moved_bytes(graph: Graph, node: Node) -> int:
    """Bytes that `node` reads and writes, each storage once; of operators that pick from an input only what they write."""
    picks = any(word in node.op for word in PICKS)
    largest: dict[int, int] = {}
    for t in node.outputs if picks else (*node.inputs, *node.outputs):
        tensor = graph.tensors[t]
        nbytes = tensor.numel * ITEMSIZE[tensor.dtype]
        largest[tensor.storage] = max(largest.get(tensor.storage, 0), nbytes)
    return sum(largest.values())
