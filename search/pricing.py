"""Pricing the segments of networks that are not known yet, here or in other processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from ..compiler.children import ChildContext
from ..compiler.errors import NeaptideError
from ..passes.attribution import parameter_elements
from .accountings import Accounting, Weights
from .segment_costs import Solved, Work, largest_need, node_key, planning_key, solve, work
from .segments import Cutter
from .space import Space
from .stretches import same_genes, stretches, whole_segment, window_bound

NEARLY = 0.8
"""Windows are looked at for stretches that need this share of the worst one's bytes: the others never decide."""
Wanted = tuple[np.ndarray, frozenset[int]]
Answer = tuple[str, list["Priced"], list[bytes]]


@dataclass(frozen=True, slots=True)
class Priced:
    """One segment solved: its slot, what its orders depend on, its work, its memory, and its price where that is not its lifetimes."""

    slot: int
    key: bytes
    work: Work
    solved: Solved
    price: int | None


@dataclass(frozen=True, slots=True)
class Pricing:
    """All that is needed to price a network in any process."""

    space: Space
    cutter: Cutter
    accounting: Accounting
    weights: Weights
    time_limit: float

    def price(self, row: np.ndarray, wanted: frozenset[int], known: dict[bytes, Solved]) -> tuple[str, list[Priced], list[bytes]]:
        """Why the architecture `row` is not cut, or ""; its segments in the slots `wanted`; the planning keys of all its segments.

        `known`: memory by planning key, which this fills.
        """
        (arch,) = self.space.decode(row[None])
        graph = self.space.graph(arch)
        cut = self.cutter.cut(graph)
        if isinstance(cut, str):
            return cut, [], []
        keys = [planning_key(segment) for segment in cut]
        elements = parameter_elements(graph)
        found = []
        for segment in cut:
            key = keys[segment.slot]
            if segment.slot in wanted:
                if key not in known:
                    known[key] = solve(segment, time_limit=self.time_limit)
                price = self.accounting.price(segment, self.weights)
                found.append(Priced(segment.slot, key, work(segment, elements), known[key], price))
        return "", found, keys


@dataclass(frozen=True, slots=True)
class PartPricing(Pricing):
    """The same for parts, of which only sums are of use, and the largest need of a node as a bound."""

    def price(self, row: np.ndarray, wanted: frozenset[int], known: dict[bytes, Solved]) -> tuple[str, list[Priced], list[bytes]]:
        (arch,) = self.space.decode(row[None])
        graph = self.space.graph(arch)
        parts, elements = self.cutter.split(graph), parameter_elements(graph)
        keys = [node_key(part) for part in parts]
        found = []
        for k in wanted:
            need = largest_need(parts[k]) if self.accounting.name == "lifetime" else 0
            found.append(Priced(k, keys[k], work(parts[k], elements), Solved(need, need, np.zeros((0, 3), np.int64)), None))
        return "", found, keys


@dataclass(frozen=True, slots=True)
class StretchPricing(Pricing):
    """The same for stretches, each with the least peak of its own orders, and as a bound that of a window over it and the next."""

    def price(self, row: np.ndarray, wanted: frozenset[int], known: dict[bytes, Solved]) -> Answer:
        (arch,) = self.space.decode(row[None])
        graph = self.space.graph(arch)
        elements = parameter_elements(graph)
        segments, graphs = stretches(self.cutter, graph)
        wholes = [whole_segment(own) for own in graphs]
        keys = [planning_key(whole) for whole in wholes]
        for k in wanted:
            if keys[k] not in known:
                known[keys[k]] = solve(wholes[k], time_limit=self.time_limit)
        worst = max((known[key].peak for key in keys if key in known), default=0)
        found = []
        for k in wanted:
            bound = 0
            if known[keys[k]].peak >= NEARLY * worst and same_genes(self.cutter.slots, k):
                pair = b"window" + keys[k] + keys[k + 1]
                if pair not in known:
                    least = window_bound(graph, (*segments[k].nodes, *segments[k + 1].nodes), time_limit=self.time_limit)
                    known[pair] = Solved(least, least, np.zeros((0, 3), np.int64))
                bound = known[pair].bound
            solved = Solved(known[keys[k]].peak, bound, np.zeros((0, 3), np.int64))
            price = self.accounting.price(segments[k], self.weights)
            found.append(Priced(k, b"stretch" + keys[k], work(segments[k], elements), solved, price))
        return "", found, [b"stretch" + key for key in keys]


def price_all(pricing: Pricing, wanted: Sequence[Wanted], known: dict[bytes, Solved], *, workers: int = 1) -> Iterable[Answer]:
    """`pricing.price` of each row with its slots, in order; in `workers` processes where there is enough to do."""
    if workers < 2 or len(wanted) < 2 * workers:
        return (pricing.price(row, slots, known) for row, slots in wanted)
    with ProcessPoolExecutor(workers, ChildContext(), _start, (pricing,)) as pool:
        try:
            return list(pool.map(_price, *zip(*wanted, strict=True), chunksize=max(1, len(wanted) // (8 * workers))))
        except BrokenProcessPool:
            raise NeaptideError("a process that priced networks died (out of memory, or killed); try fewer workers") from None


def covering(rows: np.ndarray, index: np.ndarray, missing: np.ndarray) -> list[Wanted]:
    """Rows that together have every table row of `index` that is `missing`, and the slots in which each is the first to have it."""
    chosen: list[Wanted] = []
    while missing.any():
        i = int(missing.sum(axis=1).argmax())
        slots = np.flatnonzero(missing[i])
        chosen.append((rows[i], frozenset(slots.tolist())))
        missing[:, slots] &= index[:, slots] != index[i, slots]
    return chosen


_worker: Pricing | None = None
_worker_known: dict[bytes, Solved] = {}


def _start(pricing: Pricing) -> None:
    global _worker
    _worker = pricing


def _price(row: np.ndarray, wanted: frozenset[int]) -> tuple[str, list[Priced], list[bytes]]:
    assert _worker is not None
    return _worker.price(row, wanted, _worker_known)
