"""Smaller ordering problems whose orders, one after another, are exactly the orders of the whole.

A block that is comparable to all others runs between the same two sets in every order, so what lies between two such blocks
is a problem of its own, and a search that fails in one never has to come back to another (Ahn et al., SERENITY, MLSys 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .problem import OrderingProblem


def restrict(problem: OrderingProblem, before: int, inside: Sequence[int]) -> OrderingProblem:
    """The problem of ordering blocks `inside` (ascending) once the blocks of bit set `before` have run.

    `before` and `before` with `inside` must be down-sets. `members` of the result are block ids of `problem`.
    """
    local = {v: i for i, v in enumerate(inside)}
    size: list[int] = []
    birth: list[int] = []
    users: list[list[int]] = []
    pinned: list[bool] = []
    born: list[list[int]] = [[] for _ in inside]
    used: list[list[int]] = [[] for _ in inside]
    base = problem.base
    start = 0
    for b, made in enumerate(problem.birth):
        is_before = made < 0 or bool(before >> made & 1)
        if not is_before and made not in local:
            continue
        here = [local[u] for u in problem.users[b] if u in local]
        stays = problem.pinned[b] or any(u not in local and not before >> u & 1 for u in problem.users[b])
        if is_before and stays:
            base += problem.size[b]
        elif here or stays:
            at = len(size)
            size.append(problem.size[b])
            birth.append(-1 if is_before else local[made])
            users.append([] if stays else here)
            pinned.append(stays)
            if is_before:
                start += problem.size[b]
            else:
                born[local[made]].append(at)
            if not stays:
                for v in here:
                    used[v].append(at)
    start += base
    end = base + sum(s for s, p in zip(size, pinned, strict=True) if p)
    return OrderingProblem(
        members=tuple((v,) for v in inside),
        prologue=(),
        preds=[[local[u] for u in problem.preds[v] if u in local] for v in inside],
        succs=[[local[w] for w in problem.succs[v] if w in local] for v in inside],
        extra=[problem.extra[v] for v in inside],
        alloc=[problem.alloc[v] for v in inside],
        born=born,
        used=used,
        size=size,
        birth=birth,
        users=users,
        pinned=pinned,
        base=base,
        start=start,
        floor=max(start, end),
    )


def segments(problem: OrderingProblem) -> list[OrderingProblem]:
    """Problems whose orders, one after another, are exactly the orders of `problem`; their `members` are its block ids."""
    n = len(problem)
    ends = [v + 1 for v in range(n) if problem.ancestors[v].bit_count() == v and problem.descendants[v].bit_count() == n - 1 - v]
    bounds = sorted({0, *ends, n})
    return [restrict(problem, (1 << low) - 1, range(low, high)) for low, high in pairwise(bounds)]
