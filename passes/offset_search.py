"""Ways to lay out blocks under a capacity: the complete search by several ranks, and sweeps through time.

Each has a `name`, and `run(kernels, capacity, node_limit)` that returns FOUND (then `offset` holds the layout), UNDECIDED, or
INFEASIBLE (then no layout below `next_capacity` exists). They differ by orders of magnitude on one instance, so they take
turns. None looks at a clock: `node_limit` bounds the work of a run.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .load import crowding, max_load, overlapping_pairs

SEARCH_BLOCKS = 1_500
SEARCH_PAIRS = 1_500_000
SWEEP_CELLS = 8_000_000
SWEEP_MEMORY = 1 << 20
SWEEP_WORK = 80


class Search(Protocol):
    """One way to look for a layout under a capacity, as the module says."""

    name: str
    offset: np.ndarray
    next_capacity: int

    def run(self, kernels, capacity: int, node_limit: int) -> int: ...


def part_searches(lower: np.ndarray, upper: np.ndarray, size: np.ndarray) -> list[Search]:
    """Every way that is feasible at this number of blocks: sweeps, and the search by MiniMalloc's three ranks and by area."""
    n = len(size)
    width = max_load(lower, upper, np.ones(n, np.int64))
    ways: list[Search] = []
    if n * width <= SWEEP_CELLS:
        ways += [Sweep(name, lower, upper, size, width, mode) for mode, name in enumerate(("tightest", "lowest", "random"))]
    if n <= SEARCH_BLOCKS and 2 * overlapping_pairs(lower, upper) + n <= SEARCH_PAIRS:
        duration = upper - lower
        area = duration.astype(np.float64) * size
        load = crowding(lower, upper, size)
        keys = {
            "load, lifetime, area": (-area, -duration, -load),
            "load, area, lifetime": (-duration, -area, -load),
            "lifetime, area, load": (-load, -area, -duration),
            "area, load": (-load, -area),
        }
        ways += [RankedSearch(f"search by {name}", lower, upper, size, np.lexsort(key)) for name, key in keys.items()]
    return ways


class Sweep:
    """`kernels.offsets.sweep`, with another seed at each run; never INFEASIBLE."""

    def __init__(self, spots: str, lower: np.ndarray, upper: np.ndarray, size: np.ndarray, width: int, mode: int):
        self.name = f"sweep, {spots} spots first"
        self.order = np.lexsort((-size, -upper, lower))
        self.tables = [column[self.order] for column in (lower, upper, size)]
        self.width, self.mode = width, mode
        self.offset = np.empty(len(size), np.int64)
        self.next_capacity = 0
        self.seed = 0

    def run(self, kernels, capacity: int, node_limit: int) -> int:
        """One sweep; where few blocks are alive at once, a placement costs less than a choice of the search, and more are tried."""
        self.seed += 1
        found = np.zeros(len(self.order), np.int64)
        failed = np.zeros(SWEEP_MEMORY, np.uint64)
        limit = max(1, SWEEP_WORK * node_limit // self.width)
        result = kernels.sweep(*self.tables, capacity, limit, self.mode, self.seed, self.width, failed, found)
        if result == kernels.FOUND:
            self.offset[self.order] = found
        return result


class RankedSearch:
    """The tables of `kernels.offsets.search` for blocks ranked by `order`."""

    def __init__(self, name: str, lower: np.ndarray, upper: np.ndarray, size: np.ndarray, order: np.ndarray):
        self.name, self.order = name, order
        size = size[order]
        first, end, m = _sections(lower[order], upper[order])
        n = len(order)
        self.blocks = np.zeros((n, 7), np.int64)
        self.blocks[:, 0], self.blocks[:, 1], self.blocks[:, 2] = first, end, size
        self.blocks[:, 5] = -1
        latest: dict[tuple[int, int, int], int] = {}
        for i, key in enumerate(zip(first.tolist(), end.tolist(), size.tolist(), strict=True)):
            self.blocks[i, 5] = latest.get(key, -1)
            latest[key] = i
        change = np.zeros((m + 1, 2), np.int64)
        np.add.at(change[:, 0], first, size)
        np.subtract.at(change[:, 0], end, size)
        np.add.at(change[:, 1], first + 1, 1)
        np.subtract.at(change[:, 1], end, 1)
        self.untouched = np.cumsum(change, axis=0)[:m]
        self.sections = self.untouched.copy()
        self.offset = np.empty(n, np.int64)
        meets = (first[:, None] < end) & (first < end[:, None])
        np.fill_diagonal(meets, False)
        self.overlap_at, self.overlaps = _rows(meets)
        times = np.arange(m)[:, None]
        self.alive_at, self.alive = _rows((first <= times) & (times < end))
        self.trail = np.empty((len(self.overlaps) + n, 2), np.int64)
        self.work = np.empty(n * (n + 3) // 2 + n, np.int64)
        self.next_capacity = 0

    def run(self, kernels, capacity: int, node_limit: int) -> int:
        """One search under `capacity` of at most `node_limit` choices; `offset` when it finds a layout."""
        n = len(self.order)
        self.work[:n] = np.arange(n)
        counters = np.array([0, node_limit, 0, n, capacity, 1 << 62], np.int64)
        tables = (self.blocks, self.sections, self.overlap_at, self.overlaps, self.alive_at, self.alive)
        result = kernels.search(0, len(self.sections), 0, n, 0, -1, *tables, self.trail, self.work, counters)
        self.next_capacity = int(counters[kernels.NEXT_CAPACITY])
        if result == kernels.FOUND:
            self.offset[self.order] = self.blocks[:, 6]
            self.blocks[:, 3:5] = 0
            self.sections[:] = self.untouched
        return result


def _sections(lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Lifetimes in sections: the moments with a largest set of live blocks, which hold every overlap of two blocks.

    Such a moment lies between a birth and the next death. Returns first and end section per block, and how many there are.
    """
    times, index = np.unique(np.concatenate([lower, upper]), return_inverse=True)
    first, end = index[: len(lower)], index[len(lower) :]
    births, deaths = np.zeros(len(times), bool), np.zeros(len(times), bool)
    births[first] = True
    deaths[end] = True
    kept = []
    born = False
    for t in range(len(times) - 1):
        born = born or births[t]
        if born and deaths[t + 1]:
            kept.append(t)
            born = False
    return np.searchsorted(kept, first), np.searchsorted(kept, end), len(kept)


def _rows(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The true columns of each row of a boolean matrix: where a row starts, and the columns row by row."""
    start = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
    return start.astype(np.int64), np.nonzero(mask)[1].astype(np.int64)
