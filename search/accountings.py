"""Accountings of memory by name: what is counted as a network's peak, ours and those of published tables.

An accounting prices a segment; the peak of a network is the largest price of its segments. `lifetime` is the true one: everything that
is alive at once in the best order of operators, and weights, where they lie in RAM, beside it. The others reproduce what papers printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ..compiler.errors import SourceError
from .segments import Segment

Weights = Literal["flash", "ram"]


@dataclass(frozen=True, slots=True)
class Accounting:
    """A way to count. `weights`: where it puts them unless told. `title`: what it counts, in words."""

    name: str
    weights: Weights
    title: str

    def price(self, segment: Segment, weights: Weights) -> int | None:
        """Bytes of one segment; None where the lifetimes of its storages are the price, and weights in RAM come on top of the network."""
        return None


@dataclass(frozen=True, slots=True)
class MoofaPublished(Accounting):
    """Rule of the logger that made the tables of MOOFA (ECCV-W 2024; `neaptide` reproduces its 16 peaks and its data sets).

    Of each convolution: elements of its input, output and, loaded for it alone, weights; batch norm, activations, pooling, squeeze and
    excitation not at all. The input of a residual block counts for its depthwise convolution only, though it lives on through the
    projection. Layers behind the global pooling are left out. Bytes are 4 an element.
    """

    def price(self, segment: Segment, weights: Weights) -> int | None:
        graph = segment.graph
        largest = 0
        kept = _residuals(segment)
        for v in segment.nodes:
            node = graph.nodes[v]
            if node.op != "aten.convolution.default":
                continue
            source, kernel, result = graph.tensors[node.inputs[0]], graph.tensors[node.inputs[1]], graph.tensors[node.outputs[0]]
            if source.shape[2:] == (1, 1):
                continue
            elements = source.numel + result.numel + (kernel.numel if weights == "ram" else 0)
            if kernel.shape[1] == 1 and kernel.shape[0] > 1:
                elements += sum(graph.tensors[t].numel for t, (after, until) in kept.items() if after < v < until)
            largest = max(largest, elements)
        return 4 * largest


@dataclass(frozen=True, slots=True)
class MemNetPublished(Accounting):
    """Rule of MemNet's repository (`cal_in`, arXiv 1907.09569), as far as it is known: all operators that are ready run in one step.

    A result is counted from the step that makes it to the last step that reads it, inputs of a step and its results together; in-place
    results and views are no results of their own. The published numbers count the first cell alone and take every tensor at a fixed
    size, so they are not reproduced; steps and lifetimes are.
    """

    def price(self, segment: Segment, weights: Weights) -> int | None:
        graph = segment.graph
        step: dict[int, int] = {}
        predecessors = graph.dependencies()
        for v in segment.nodes:
            step[v] = max((step[u] + (0 if graph.is_view(graph.nodes[v]) else 1) for u in predecessors[v] if u in step), default=0)
        born: dict[int, int] = {}
        last: dict[int, int] = {}
        end = max(step.values(), default=0)
        for v in segment.nodes:
            for s in graph.touches[v]:
                if graph.birth[s] >= 0 or graph.storages[s].role == "input":
                    born[s] = min(born.get(s, end), step[v]) if graph.birth[s] in step else 0
                    last[s] = max(last.get(s, 0), step[v])
        leaving = graph.outputs if segment.leaving is None else (segment.leaving,)
        for t in leaving:
            if graph.tensors[t].storage in last:
                last[graph.tensors[t].storage] = end
        live = [sum(graph.storages[s].nbytes for s in born if born[s] <= t <= last[s]) for t in range(end + 1)] if segment.nodes else [0]
        return max(live)


ACCOUNTINGS: Mapping[str, Accounting] = MappingProxyType(
    {
        a.name: a
        for a in (
            Accounting("lifetime", "flash", "everything alive at once, in the best order of operators"),
            MoofaPublished("moofa-published", "ram", "input, output and weights of one convolution, as MOOFA's tables count"),
            MemNetPublished("memnet-published", "flash", "all ready operators in one step, as MemNet's repository counts"),
        )
    }
)


def load_accounting(name: str) -> Accounting:
    """The accounting called `name`. Raises `SourceError` that lists them."""
    if name not in ACCOUNTINGS:
        raise SourceError(f"no accounting {name!r}; there are {', '.join(ACCOUNTINGS)}")
    return ACCOUNTINGS[name]


def _residuals(segment: Segment) -> dict[int, tuple[int, int]]:
    """Tensors that an addition reads long after they were made: by id, the node of their first other reader and the addition."""
    graph = segment.graph
    found: dict[int, tuple[int, int]] = {}
    first: dict[int, int] = {}
    for v in segment.nodes:
        node = graph.nodes[v]
        if node.op in ("aten.add.Tensor", "aten.add_.Tensor"):
            found.update({t: (first[t], v) for t in node.inputs if t in first})
        for t in node.inputs:
            first.setdefault(t, v)
    return found
