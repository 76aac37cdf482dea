"""Is there an order within a peak budget? A complete search over down-sets, with dominance and memoised failures.

Depth first over down-sets. *Dominance*: a ready block, or a chain of blocks each of which the one before made ready, that
fits the budget and ends at or below the bytes now held is run at once and never taken back. That loses nothing: let D be
the state after it, the first along the chain to hold no more than now. All down-sets between now and D are prefixes of the
chain, and none holds less than D; so by submodularity running D first lowers every later state of any order. *Failures*
are remembered per down-set under two 64-bit Zobrist keys. When the search is exhausted, the least need that it refused is
the next budget worth trying, hence a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .problem import OrderingProblem

INFINITE = 1 << 62


def flatten(lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Row starts, int64 (len + 1,), and the concatenated items of `lists`."""
    starts = np.zeros(len(lists) + 1, np.int64)
    np.cumsum([len(x) for x in lists], out=starts[1:])
    return starts, np.array([y for x in lists for y in x], np.int64)


class BlockArrays:
    """An `OrderingProblem` as the int64 arrays that kernels read."""

    def __init__(self, problem: OrderingProblem):
        self.extra = np.array(problem.extra, np.int64)
        self.alloc = np.array(problem.alloc, np.int64)
        self.size = np.array(problem.size, np.int64)
        self.birth = np.array(problem.birth, np.int64)
        self.pinned = np.array(problem.pinned, np.bool_)
        self.used_at, self.used = flatten(problem.used)
        self.users_at, self.users = flatten(problem.users)
        self.preds_at, self.preds = flatten(problem.preds)
        self.succs_at, self.succs = flatten(problem.succs)


def sweep_cuts(
    problem: OrderingProblem, arrays: BlockArrays, candidates: np.ndarray, first: int, needs: np.ndarray, bound: int, upper: int, work: int
) -> tuple[int, int]:
    """`passes.bounds.lower_bound` by kernel, from `candidates[first]` on: the bound and the first candidate not looked at."""
    from .kernels.cut import sweep

    a = arrays
    raised, at = sweep(
        candidates,
        first,
        bound,
        upper,
        work,
        needs,
        problem.base,
        a.extra,
        a.size,
        a.birth,
        a.pinned,
        a.users_at,
        a.users,
        a.preds_at,
        a.preds,
        a.succs_at,
        a.succs,
    )
    return int(raised), int(at)


def compile_kernels() -> None:
    """Compile every kernel, or load it from numba's cache, by solving a problem of two blocks."""
    pair = OrderingProblem(
        members=((0,), (1,)),
        prologue=(),
        preds=[[], []],
        succs=[[], []],
        extra=[2, 2],
        alloc=[1, 1],
        born=[[0], [1]],
        used=[[], []],
        size=[1, 1],
        birth=[0, 1],
        users=[[], []],
        pinned=[True, True],
        base=0,
        start=0,
        floor=2,
    )
    arrays = BlockArrays(pair)
    sweep_cuts(pair, arrays, np.arange(2), 0, np.array([3, 3]), 0, 3, 100)
    search = Search(pair, arrays, 3)
    search.advance(10)
    search.grow_table()


class Search:
    """A resumable search for an order of `problem` whose peak is at most `budget`."""

    def __init__(self, problem: OrderingProblem, arrays: BlockArrays, budget: int):
        from .kernels import search as kernel

        self._kernel = kernel
        n = len(problem)
        self.budget = budget
        self._arrays = arrays
        missing = np.diff(arrays.preds_at)
        left = np.diff(arrays.users_at) + arrays.pinned
        code = np.random.default_rng(0x5EED).integers(0, 1 << 64, (n, 2), np.uint64)
        ready = np.zeros(n + 1, np.int64)
        place = np.full(n, -1, np.int64)
        sources = np.flatnonzero(missing == 0)
        ready[: len(sources)] = sources
        place[sources] = np.arange(len(sources))
        self.order = np.zeros(n, np.int64)
        registers = np.zeros(kernel.N_REGISTERS, np.int64)
        registers[kernel.HELD] = problem.start
        registers[kernel.N_READY] = len(sources)
        registers[kernel.NEXT_BUDGET] = INFINITE
        frames = [np.full(n + 2, -1, np.int64) for _ in range(4)]
        self._state = (code, missing, left, ready, place, self.order, np.zeros(2, np.uint64), np.zeros(n + 1, np.int64), *frames)
        self._registers = registers
        self._moves = (np.zeros(16 * (n + 16), np.int64), np.zeros(16 * (n + 16), np.int64))
        self._table = np.zeros((1 << 12, 2), np.uint64)

    @property
    def states(self) -> int:
        """Down-sets looked at so far."""
        return int(self._registers[self._kernel.STATES])

    @property
    def next_budget(self) -> int:
        """Least need above `budget` that was refused: after an exhausted search, a lower bound on every peak."""
        return int(self._registers[self._kernel.NEXT_BUDGET])

    def advance(self, chunk: int) -> bool | None:
        """Look at about `chunk` more down-sets. True: `order` holds an order; False: there is none; None: not known yet."""
        kernel, a = self._kernel, self._arrays
        target = self.states + chunk
        while True:
            status = kernel.advance(
                self.budget,
                target - self.states,
                a.extra,
                a.alloc,
                a.size,
                a.used_at,
                a.used,
                a.succs_at,
                a.succs,
                *self._state,
                *self._moves,
                self._table,
                self._registers,
            )
            if status == kernel.TABLE_FULL:
                self.grow_table()
            elif status == kernel.MOVES_FULL:
                self._moves = tuple(np.concatenate((m, np.zeros_like(m))) for m in self._moves)
            else:
                return {kernel.FOUND: True, kernel.INFEASIBLE: False, kernel.PAUSED: None}[status]

    def grow_table(self) -> None:
        """Make room for four times as many remembered down-sets."""
        larger = np.zeros((4 * len(self._table), 2), np.uint64)
        self._kernel.rehash(self._table, larger)
        self._table = larger
