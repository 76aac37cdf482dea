"""Counting the work of a graph: multiply-adds, FLOPs, and the elementwise FLOPs beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from .errors import GraphError
from .graph import Graph
from .ops import Work, node_work

MOST = 1 << 62  # operations that one node may have, so that a sum of two is a number of 64 bits


@dataclass(frozen=True, slots=True)
class Counts:
    """Work of a graph, by the conventions of `ops`.

    `macs`: multiply-adds of contractions; `flops`: two per multiply-add; `elementwise_flops`: everything else that computes.
    `unknown`: how often each op occurs whose work is not known; such nodes count in none of the totals. `node_macs` and
    `node_elementwise` (int64) and `node_known` (bool) hold one entry per node of the graph.
    """

    macs: int
    elementwise_flops: int
    unknown: Mapping[str, int]
    node_macs: np.ndarray = field(repr=False)
    node_elementwise: np.ndarray = field(repr=False)
    node_known: np.ndarray = field(repr=False)
    scopes: tuple[str, ...] = field(repr=False)

    @property
    def flops(self) -> int:
        """Two per multiply-add; elementwise work is not in it."""
        return 2 * self.macs

    def by_module(self) -> dict[str, Work]:
        """Work per module path, that of its submodules included; the empty path is the graph itself."""
        totals: dict[str, list[int]] = {"": [0, 0]}
        for scope, macs, elementwise in zip(self.scopes, self.node_macs.tolist(), self.node_elementwise.tolist(), strict=True):
            parts = scope.split(".") if scope else []
            for depth in range(len(parts) + 1):
                total = totals.setdefault(".".join(parts[:depth]), [0, 0])
                total[0] += macs
                total[1] += elementwise
        return {scope: Work(*total) for scope, total in totals.items()}


def count(graph: Graph, *, causal: Literal["full", "half"] | None = None) -> Counts:
    """Count the work of every node of `graph`; O(nodes).

    `causal` is how attention called with `is_causal` counts: all query-key pairs ("full", the default), or exactly the
    pairs that the mask keeps ("half"). Attention masks passed as tensors are always counted in full.
    """
    if causal not in (None, "full", "half"):
        raise ValueError(f"causal is 'full', 'half' or None, not {causal!r}")
    half = causal == "half"
    works = [node_work(graph, node, causal_half=half) for node in graph.nodes]
    node_known = np.array([work is not None for work in works], bool)
    unknown = Counter(node.op for node, work in zip(graph.nodes, works, strict=True) if work is None)
    for node, work in zip(graph.nodes, works, strict=True):
        if work is not None and max(work.macs, work.elementwise) > MOST:
            raise GraphError(f"node {node.id} ({node.op}) of graph {graph.name!r} has over {MOST:,} operations: is its shape right?")
    node_macs = np.array([work.macs if work else 0 for work in works], np.int64)
    node_elementwise = np.array([work.elementwise if work else 0 for work in works], np.int64)
    return Counts(
        sum(node_macs.tolist()),
        sum(node_elementwise.tolist()),
        dict(unknown.most_common()),
        node_macs,
        node_elementwise,
        node_known,
        tuple([node.scope for node in graph.nodes]),
    )
