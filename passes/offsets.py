"""Minimum-height offsets for blocks with known lifetimes: dynamic storage allocation, offline.

The most bytes alive at once, the load, bounds every layout from below. Cheap things first: first fit and best fit over
several sort keys, in plain Python on small problems. What does not meet the load is cut where nothing is alive and each
part goes to the numba kernels: all sort keys, hill climbing over placement orders, sweeps through time, and a complete
search under a capacity, raised from below to what the search says is the next one worth trying, and lowered from above.
NP-hard (Garey and Johnson, SR2): a time limit stops it with the best layout and bound so far. Work between two looks at the
clock is counted, so that time decides where it stops and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .clock import Clock, Limit, Stopwatch, processor_clock, wall_clock
from .kernels.fit import fit
from .load import crowding, max_load, overlapping_pairs
from .offset_search import part_searches

PYTHON_BLOCKS = 1_500
FIRST_NODES = 2_000
MOST_NODES = 1 << 20
CLIMB_WORK = 4_000_000
CLIMB_BLOCKS = 20_000  # a step of climbing places all blocks of a part anew, in quadratic time
MANY_BLOCKS = 4_000
MOST_PAIRS = 50_000_000  # that overlap, 8 bytes each in a table


@dataclass(frozen=True, slots=True)
class Offsets:
    """What `solve` found: `offset` int64 (n,), the `height` it needs, a `lower_bound` on any height, how, and seconds spent."""

    offset: np.ndarray
    height: int
    lower_bound: int
    method: str
    seconds: float


def solve(
    lower: np.ndarray,
    upper: np.ndarray,
    size: np.ndarray,
    *,
    enough: int = 0,
    time_limit: float = 10.0,
    clock: Clock = processor_clock,
) -> Offsets:
    """Offsets of least height for blocks alive over [lower, upper); int64 arrays (n,), sizes > 0.

    Stops at a height of `enough` or the lower bound, whichever is larger, or after about `time_limit` seconds of `clock`,
    kernel compilation not counted; when that is 0, after the first fits. A `lower_bound` above the load was proved by
    exhausting the search below it.
    """
    wall, limit = Stopwatch(wall_clock), Limit(time_limit, clock)
    bound = max_load(lower, upper, size)
    if not len(size):
        return Offsets(np.zeros(0, np.int64), 0, 0, "nothing to place", 0.0)
    layout = _Layout(lower, upper, size)
    goal = max(bound, enough)
    orders = list(_placement_orders(lower, upper, size))
    n = len(size)
    if n <= PYTHON_BLOCKS:
        layout.try_orders(fit, orders if n <= PYTHON_BLOCKS // 3 else orders[:1], goal, plain=True)
    if layout.height <= goal or (limit.spent() and n <= PYTHON_BLOCKS):
        return Offsets(layout.offset, layout.height, bound, layout.method, wall.taken())

    with wall.paused(), limit.paused():
        kernels = compile_kernels()
        among = compile_overlap_kernels() if n > MANY_BLOCKS else None
    if among:
        layout.try_among(among, orders, goal, limit)
    elif n > PYTHON_BLOCKS // 3:
        layout.try_orders(kernels.fit, orders, goal, limit=limit)
    parts = [_Part(lower[rows], upper[rows], size[rows], rows, layout.offset[rows]) for rows in _apart(lower, upper)]
    parts.sort(key=lambda part: -part.height)
    for i, part in enumerate(parts):
        if part.height > goal:
            _minimize(part, kernels, goal, limit.share(len(parts) - i))
            layout.take(part)
            bound = max(bound, part.proved)
            goal = max(goal, part.height)
    return Offsets(layout.offset, layout.height, bound, layout.method, wall.taken())


class _Layout:
    """The best layout so far, and how it was found."""

    def __init__(self, lower: np.ndarray, upper: np.ndarray, size: np.ndarray):
        self.lower, self.upper, self.size = lower, upper, size
        self.offset = np.zeros(len(size), np.int64)
        self.height = 1 << 62
        self.method = ""

    def try_orders(self, fit, orders: list[tuple[str, np.ndarray]], goal: int, *, plain: bool = False, limit: Limit | None = None) -> None:
        """First and best fit in each order until one reaches `goal`, or time is up and there is a layout.

        `plain` calls the function on lists, for Python.
        """
        n = len(self.size)
        tables = [self.lower, self.upper, self.size]
        if plain:
            tables = [table.tolist() for table in tables]
        for name, order in orders:
            for best in (False, True):
                if self.height <= goal or (limit and self.method and limit.spent()):
                    return
                scratch = ([0] * n, [0] * n) if plain else (np.empty(n, np.int64), np.empty(n, np.int64))
                fit(order.tolist() if plain else order, *tables, best, goal, 1 << 62, *scratch)
                self.keep(np.array(scratch[1], np.int64), f"{'best' if best else 'first'} fit by {name}")

    def try_among(self, kernels, orders: list[tuple[str, np.ndarray]], goal: int, limit: Limit) -> None:
        """As `try_orders`, for many blocks: in order of birth, then in each order if a table of who overlaps whom is not too large."""
        offset = np.empty(len(self.size), np.int64)
        by_start = np.argsort(self.lower, kind="stable")
        for best in (False, True):
            kernels.fit_in_time(by_start, self.lower, self.upper, self.size, best, offset)
            self.keep(offset, f"{'best' if best else 'first'} fit by birth")
            if self.height <= goal or limit.spent():
                return
        if overlapping_pairs(self.lower, self.upper) > MOST_PAIRS:
            return
        table = kernels.overlaps(self.lower, self.upper, by_start, self.lower[by_start])
        for name, order in orders:
            for best in (False, True):
                if self.height <= goal or limit.spent():
                    return
                kernels.fit_among(order, *table, self.size, best, offset)
                self.keep(offset, f"{'best' if best else 'first'} fit by {name}")

    def keep(self, offset: np.ndarray, method: str) -> None:
        """Take a layout of all blocks over when it is lower."""
        height = int((offset + self.size).max())
        if height < self.height:
            self.height, self.offset, self.method = height, offset.copy(), method

    def take(self, part: _Part) -> None:
        """Put a part's layout in place of what is here."""
        self.offset[part.rows] = part.offset
        self.height = int((self.offset + self.size).max())
        if part.method:
            self.method = part.method


def _placement_orders(lower: np.ndarray, upper: np.ndarray, size: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Named orders for first and best fit, the most often successful first."""
    duration = upper - lower
    area = duration.astype(np.float64) * size
    crowd = crowding(lower, upper, size)
    keys = {
        "lifetime": (-size, -duration),
        "size": (-duration, -size),
        "start": (-size, lower),
        "area": (-size, -area),
        "load, lifetime": (-size, -duration, -crowd),
        "load, area": (-area, -crowd),
        "load": (-size, -crowd),
        "size x log lifetime": (-size, -(size * np.log2(1.0 + duration))),
        "end": (-size, -upper),
    }
    for name, key in keys.items():
        yield name, np.lexsort(key)


def _apart(lower: np.ndarray, upper: np.ndarray) -> list[np.ndarray]:
    """Rows of the blocks in each stretch of time that no block connects to another stretch."""
    order = np.argsort(lower, kind="stable")
    reach = np.maximum.accumulate(upper[order])
    cuts = np.flatnonzero(lower[order][1:] >= reach[:-1]) + 1
    return [np.sort(rows) for rows in np.split(order, cuts)]


# ---- one part: hill climbing, sweeps and the complete search ---------------------------------------------------------


@dataclass
class _Part:
    """Blocks that no moment without life separates; `proved`: no layout of them is lower."""

    lower: np.ndarray
    upper: np.ndarray
    size: np.ndarray
    rows: np.ndarray
    offset: np.ndarray
    method: str = ""
    height: int = field(init=False)
    proved: int = field(init=False)

    def __post_init__(self) -> None:
        self.height = int((self.offset + self.size).max())
        self.proved = max_load(self.lower, self.upper, self.size)

    def improve(self, offset: np.ndarray, method: str) -> None:
        height = int((offset + self.size).max())
        if height < self.height:
            self.offset, self.height, self.method = offset.copy(), height, method


def _minimize(part: _Part, kernels, goal: int, limit: Limit) -> None:
    """Lower `part.height` towards `goal` and raise `part.proved` until they meet or time is up.

    Rounds with a growing node limit. Each climbs, then searches at the floor: a refutation raises the floor to the next
    capacity that the search names. While the floor stays undecided, shorter searches half way to the height lower that, and
    where `goal` leaves room, others below the floor: a tighter capacity is at times the easier one.
    """
    searches = part_searches(part.lower, part.upper, part.size)
    climber = _Climber(part) if len(part.size) <= CLIMB_BLOCKS else None
    node_limit = FIRST_NODES
    floor = max(goal, part.proved)

    def settle(capacity: int, nodes: int) -> bool:
        """Search under `capacity` in each way; True when one has found a layout or refuted the capacity."""
        nonlocal floor
        for search in searches:
            if limit.spent():
                return False
            result = search.run(kernels, capacity, nodes)
            if result == kernels.FOUND:
                part.improve(search.offset, search.name)
                return True
            if result == kernels.INFEASIBLE:
                part.proved = max(part.proved, search.next_capacity)
                floor = max(floor, part.proved)
                return True
        return False

    while part.height > floor and not limit.spent() and (climber or searches):
        if climber:
            climber.turn(kernels, floor)
        while part.height > floor and settle(floor, node_limit):
            pass
        if part.height > floor > part.proved:
            settle(part.proved, node_limit // 2)
        while part.height > floor and settle((floor + part.height) // 2, node_limit // 4):
            pass
        node_limit = min(2 * node_limit, MOST_NODES)


class _Climber:
    """Hill climbing on a part, first fit and best fit by turns, each going on from the order where its last turn ended."""

    def __init__(self, part: _Part):
        self.part = part
        self.orders = (np.argsort(part.offset, kind="stable"), np.lexsort((-part.size, part.lower)))
        self.turns = 0

    def turn(self, kernels, goal: int) -> None:
        """Some ten milliseconds of climbing towards `goal`."""
        part, best = self.part, self.turns % 2
        self.turns += 1
        n = len(part.size)
        tries = CLIMB_WORK // (n * n // 4 + 1000) + 1
        offset = np.empty(n, np.int64)
        kernels.climb(self.orders[best], part.lower, part.upper, part.size, best, goal, tries, self.turns, offset)
        part.improve(offset, f"hill climbing, {'best' if best else 'first'} fit")


def compile_kernels():
    """The kernels' module, every kernel compiled (or read from the cache on disk)."""
    from .kernels import offsets as kernels

    zero, one = np.zeros(1, np.int64), np.ones(1, np.int64)
    kernels.fit(zero, zero, one, one, True, 1, 1, zero.copy(), zero.copy())
    kernels.climb(zero.copy(), zero, one, one, True, 1, 1, 1, zero.copy())
    for search in part_searches(zero, one, one):
        search.run(kernels, 1, 10)
    return kernels


def compile_overlap_kernels():
    """The kernels for many blocks, compiled or read from the cache on disk."""
    from .kernels import fit_overlaps as kernels

    zero, one = np.zeros(1, np.int64), np.ones(1, np.int64)
    table = kernels.overlaps(zero, one, zero, zero)
    kernels.fit_among(zero, *table, one, True, zero.copy())
    kernels.fit_in_time(zero, zero, one, one, True, zero.copy())
    return kernels
