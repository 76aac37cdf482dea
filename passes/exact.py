"""Is there an order within a peak budget? A complete search over down-sets, with dominance and memoised failures.

Depth first over down-sets. *Dominance*: a ready block, or a chain of blocks each of which the one before made ready, that
fits the budget and ends at or below the bytes now held is run at once and never taken back. That loses nothing: let D be
the state after it, the first along the chain to hold no more than now. All down-sets between now and D are prefixes of the
chain, and none holds less than D; so by submodularity running D first lowers every later state of any order. *Failures*
are remembered per down-set under two 64-bit Zobrist keys. *Cuts*: the bound of `passes.bounds`, over down-sets that contain
what has run, grows with every decision; a block whose cut from here exceeds the budget ends this branch and every frame
above for which it still does. Cuts cost far more than states, so they are tried at once after one that succeeded and ever
more rarely after those that did not. When the search is exhausted, the least need that it refused is the next budget worth
trying, hence a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .problem import OrderingProblem

INFINITE = 1 << 62
TABLE_LIMIT = 1 << 24  # slots of 16 bytes


def flatten(lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Row starts, int64 (len + 1,), and the concatenated items of `lists`."""
    starts = np.zeros(len(lists) + 1, np.int64)
    np.cumsum([len(x) for x in lists], out=starts[1:])
    return starts, np.array([y for x in lists for y in x], np.int64)


class Blocks(NamedTuple):
    """An `OrderingProblem` as kernels read it: int64 arrays, lists of lists as row starts and items; `pinned` is bool."""

    base: int
    extra: np.ndarray
    alloc: np.ndarray
    size: np.ndarray
    birth: np.ndarray
    pinned: np.ndarray
    used_at: np.ndarray
    used: np.ndarray
    users_at: np.ndarray
    users: np.ndarray
    preds_at: np.ndarray
    preds: np.ndarray
    succs_at: np.ndarray
    succs: np.ndarray


class SearchState(NamedTuple):
    """Everything a search works on, by block unless said otherwise.

    `code`: Zobrist keys, uint64 (n, 2); `key`: of the down-set now, uint64 (2,). `missing`: predecessors yet to run. `left`,
    per load: users yet to run, and one for the pinned. `ready`: the ready blocks, and `place` where each stands, -1 once run.
    `order`: what ran so far. `frame_*`: decisions, by depth. `rivals`: blocks whose cuts to try, most promising first.
    `snapshot`, `side`, `vertex`, `stack`: scratch. `registers`: counters, see the kernel.
    """

    code: np.ndarray
    key: np.ndarray
    missing: np.ndarray
    left: np.ndarray
    ready: np.ndarray
    place: np.ndarray
    order: np.ndarray
    frame_start: np.ndarray
    frame_low: np.ndarray
    frame_high: np.ndarray
    frame_next: np.ndarray
    rivals: np.ndarray
    snapshot: np.ndarray
    side: np.ndarray
    vertex: np.ndarray
    stack: np.ndarray
    registers: np.ndarray


def blocks_of(problem: OrderingProblem) -> Blocks:
    """The arrays of `problem`."""
    return Blocks(
        problem.base,
        np.array(problem.extra, np.int64),
        np.array(problem.alloc, np.int64),
        np.array(problem.size, np.int64),
        np.array(problem.birth, np.int64),
        np.array(problem.pinned, np.bool_),
        *flatten(problem.used),
        *flatten(problem.users),
        *flatten(problem.preds),
        *flatten(problem.succs),
    )


def sweep_cuts(blocks: Blocks, candidates: np.ndarray, first: int, needs: np.ndarray, bound: int, upper: int, work: int) -> tuple[int, int]:
    """`passes.bounds.lower_bound` by kernel, from `candidates[first]` on: the bound and the first candidate not looked at."""
    from .kernels.cut import sweep

    raised, at = sweep(candidates, first, bound, upper, work, needs, blocks)
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
    blocks = blocks_of(pair)
    sweep_cuts(blocks, np.arange(2), 0, np.array([3, 3]), 0, 3, 100)
    search = Search(pair, blocks, 3)
    search.advance(10)
    search.grow_table()


class Search:
    """A resumable search for an order of `problem` whose peak is at most `budget`.

    `rivals`: all blocks, those first whose cuts are the most likely to rule out a state; in their given order by default.
    """

    def __init__(self, problem: OrderingProblem, blocks: Blocks, budget: int, rivals: np.ndarray | None = None):
        from .kernels import search as kernel

        self._kernel = kernel
        n = len(problem)
        self.budget = budget
        self._blocks = blocks
        missing = np.diff(blocks.preds_at)
        sources = np.flatnonzero(missing == 0)
        ready = np.zeros(n + 1, np.int64)
        ready[: len(sources)] = sources
        place = np.full(n, -1, np.int64)
        place[sources] = np.arange(len(sources))
        registers = np.zeros(kernel.N_REGISTERS, np.int64)
        registers[kernel.HELD] = problem.start
        registers[kernel.N_READY] = len(sources)
        registers[kernel.NEXT_BUDGET] = INFINITE
        registers[kernel.WAIT] = 1
        self._state = SearchState(
            code=np.random.default_rng(0x5EED).integers(0, 1 << 64, (n, 2), np.uint64),
            key=np.zeros(2, np.uint64),
            missing=missing,
            left=np.diff(blocks.users_at) + blocks.pinned,
            ready=ready,
            place=place,
            order=np.zeros(n, np.int64),
            frame_start=np.zeros(n + 2, np.int64),
            frame_low=np.zeros(n + 2, np.int64),
            frame_high=np.zeros(n + 2, np.int64),
            frame_next=np.full(n + 2, -1, np.int64),
            rivals=np.arange(n) if rivals is None else rivals.copy(),
            snapshot=np.zeros(n + 1, np.int64),
            side=np.zeros(n, np.int64),
            vertex=np.zeros(n, np.int64),
            stack=np.zeros(n + 1, np.int64),
            registers=registers,
        )
        self._move_block = np.zeros(16 * (n + 16), np.int64)
        self._move_rank = np.zeros_like(self._move_block)
        self._table = np.zeros((1 << 12, 2), np.uint64)

    @property
    def order(self) -> list[int]:
        """The order found, once `advance` returned True."""
        return self._state.order.tolist()

    @property
    def states(self) -> int:
        """Down-sets looked at so far."""
        return int(self._state.registers[self._kernel.STATES])

    @property
    def effort(self) -> int:
        """Work done so far, in about the time of a down-set that no cut was tried on."""
        return self.states + int(self._state.registers[self._kernel.CUT_WORK]) // 8

    @property
    def next_budget(self) -> int:
        """Least need above `budget` that was refused: after an exhausted search, a lower bound on every peak."""
        return int(self._state.registers[self._kernel.NEXT_BUDGET])

    def advance(self, chunk: int) -> bool | None:
        """Look at about `chunk` more down-sets. True: `order` holds an order; False: there is none; None: not known yet."""
        kernel = self._kernel
        target = self.states + chunk
        while True:
            status = kernel.advance(
                self.budget, target - self.states, self._blocks, self._state, self._move_block, self._move_rank, self._table
            )
            if status == kernel.TABLE_FULL:
                self.grow_table()
            elif status == kernel.MOVES_FULL:
                self._move_block = np.concatenate((self._move_block, np.zeros_like(self._move_block)))
                self._move_rank = np.concatenate((self._move_rank, np.zeros_like(self._move_rank)))
            else:
                return {kernel.FOUND: True, kernel.INFEASIBLE: False, kernel.PAUSED: None}[status]

    def grow_table(self) -> None:
        """Make room for four times as many remembered down-sets; at `TABLE_LIMIT`, remember no more of them."""
        if len(self._table) >= TABLE_LIMIT:
            self._state.registers[self._kernel.FROZEN] = 1
            return
        larger = np.zeros((4 * len(self._table), 2), np.uint64)
        self._kernel.rehash(self._table, larger)
        self._table = larger
