"""Accountings of memory by name: what is counted as a network's peak, ours and those of published tables.

An accounting prices a segment; the peak of a network is the largest price of its segments. `lifetime` is the true one: everything that
is alive at once in the best order of operators, and weights, where they lie in RAM, beside it. The others reproduce what papers printed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ..compiler.errors import SourceError
from .segments import Segment

Weights = Literal["flash", "ram"]
_LAYER = re.compile(r"cells\.0\.blocks\.\d+\.(?:first|second)")


@dataclass(frozen=True, slots=True)
class Accounting:
    """A way to count. `weights`: where it puts them unless told. `title`: what it counts, in words. `on_top`: weights in RAM come on top
    of the network's peak, and are no part of the price of segments.
    """

    name: str
    weights: Weights
    title: str
    on_top: bool = True

    def price(self, segment: Segment, weights: Weights) -> int | None:
        """Bytes of one segment; None where the lifetimes of its storages are the price."""
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
    """Rule of MemNet's repository (`cal_in`; arXiv 1907.09569): layers in rounds, all that are ready in the same one.

    Counts the first cell alone, and of a round every layer that runs in it, as 4 bytes for each of (input + output channels) x 32 x 32
    elements; what merely waits for a later round does not count. It is no lifetime, and no peak that any schedule has.
    """

    def price(self, segment: Segment, weights: Weights) -> int | None:
        graph = segment.graph
        if segment.slot:
            return 0
        round_of: dict[int, int] = {}
        layers: dict[str, tuple[int, int]] = {}
        made: dict[str, int] = {}
        for v in segment.nodes:
            node = graph.nodes[v]
            ready = max((round_of[u] for u in graph.dependencies()[v] if u in round_of), default=0)
            layer = _LAYER.match(node.scope)
            round_of[v] = ready
            if layer is None or not node.inputs or ("convolution" not in node.op and layer[0] not in layers):
                continue
            if layer[0] not in layers:
                layers[layer[0]] = ready, graph.tensors[node.inputs[0]].shape[1]
            round_of[v] = layers[layer[0]][0] + 1
            made[layer[0]] = graph.tensors[node.outputs[0]].shape[1]
        if not layers:
            raise SourceError(f"memnet-published counts the blocks of memnet's first cell, which {graph.name} does not have")
        rounds: dict[int, int] = {}
        for name, (first, channels) in layers.items():
            rounds[first] = rounds.get(first, 0) + (channels + made[name]) * 32 * 32
        return 4 * max(rounds.values())


ACCOUNTINGS: Mapping[str, Accounting] = MappingProxyType(
    {
        a.name: a
        for a in (
            Accounting("lifetime", "flash", "everything alive at once, in the best order of operators"),
            MoofaPublished("moofa-published", "ram", "input, output and weights of one convolution, as MOOFA's tables count", False),
            MemNetPublished("memnet-published", "flash", "layers of the first cell that run in one round, as MemNet's repository counts"),
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
