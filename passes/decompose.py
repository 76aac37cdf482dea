"""Smaller ordering problems whose orders, one after another, are exactly the orders of the whole.

A block that is comparable to all others runs between the same two sets in every order, so what lies between two such blocks
is a problem of its own, and a search that fails in one never has to come back to another (Ahn et al., SERENITY, MLSys 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from .problem import OrderingProblem, comparable_to_all


def segments(problem: OrderingProblem) -> list[OrderingProblem]:
    """Problems whose orders, one after another, are exactly the orders of `problem`; their `members` are its block ids.

    O(blocks + edges + uses).
    """
    ends = [v + 1 for v in comparable_to_all(problem.preds, problem.succs)]
    bounds = sorted({0, *ends, len(problem)})
    pieces = [_Piece(problem, low, high) for low, high in pairwise(bounds)]
    at = [k for k, (low, high) in enumerate(pairwise(bounds)) for _ in range(low, high)]
    passing = [0] * (len(pieces) + 1)  # change of the bytes that are alive all through a piece, by piece
    for b, born in enumerate(problem.birth):
        first = at[born] if born >= 0 else -1
        last = len(pieces) if problem.pinned[b] else max((at[u] for u in problem.users[b]), default=first)
        if last > first + 1:
            passing[first + 1] += problem.size[b]
            passing[min(last, len(pieces))] -= problem.size[b]
        if first >= 0 and (last > first or problem.users[b]):
            pieces[first].add(b, stays=last > first)
        if first < last < len(pieces):
            pieces[last].add(b, stays=False)
    return [piece.finish(base) for piece, base in zip(pieces, accumulate(passing), strict=False)]


class _Piece:
    """The problem of ordering blocks `low` to `high` - 1 once those before `low` have run; loads are added in their order."""

    def __init__(self, problem: OrderingProblem, low: int, high: int):
        self.problem, self.low, self.high = problem, low, high
        self.size: list[int] = []
        self.birth: list[int] = []
        self.users: list[list[int]] = []
        self.pinned: list[bool] = []
        self.born: list[list[int]] = [[] for _ in range(low, high)]
        self.used: list[list[int]] = [[] for _ in range(low, high)]

    def add(self, load: int, *, stays: bool) -> None:
        """A load that is born here, or dies here; `stays`: it outlives this piece."""
        problem, at = self.problem, len(self.size)
        born = problem.birth[load] - self.low
        users = [] if stays else [u - self.low for u in problem.users[load] if self.low <= u < self.high]
        self.size.append(problem.size[load])
        self.birth.append(max(born, -1))
        self.users.append(users)
        self.pinned.append(stays)
        if born >= 0:
            self.born[born].append(at)
        for v in users:
            self.used[v].append(at)

    def finish(self, passing: int) -> OrderingProblem:
        """The problem; `passing`: bytes alive all through it, beside the base of the whole."""
        problem, low, high = self.problem, self.low, self.high
        base = problem.base + passing
        start = base + sum(size for size, birth in zip(self.size, self.birth, strict=True) if birth < 0)
        end = base + sum(size for size, stays in zip(self.size, self.pinned, strict=True) if stays)
        return OrderingProblem(
            members=tuple((v,) for v in range(low, high)),
            prologue=(),
            preds=[self._here(problem.preds[v]) for v in range(low, high)],
            succs=[self._here(problem.succs[v]) for v in range(low, high)],
            extra=problem.extra[low:high],
            alloc=problem.alloc[low:high],
            born=self.born,
            used=self.used,
            size=self.size,
            birth=self.birth,
            users=self.users,
            pinned=self.pinned,
            base=base,
            start=start,
            floor=max(start, end),
        )

    def _here(self, blocks: Sequence[int]) -> list[int]:
        return [u - self.low for u in blocks if self.low <= u < self.high]
