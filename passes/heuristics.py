"""Orders that are often good: the upper bounds that scheduling starts from. None of them proves anything.

All take an `OrderingProblem` and return an order of its blocks; all are deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush

from .problem import OrderingProblem


def reverse_post_order(problem: OrderingProblem) -> list[int]:
    """Depth first from the sources along successors, in reverse order of leaving: what most compilers run."""
    sources = (v for v in range(len(problem)) if not problem.preds[v])
    return _post_order(sources, lambda v: reversed(problem.succs[v]), len(problem))[::-1]


def depth_first(problem: OrderingProblem) -> list[int]:
    """Each block as soon as its operands are there, operands in their given order: depth first from the sinks."""
    return _post_order(_sinks(problem), lambda v: problem.preds[v], len(problem))


def depth_first_late(problem: OrderingProblem) -> list[int]:
    """As `depth_first`, with the operands of a block taken last first."""
    return _post_order(_sinks(problem), lambda v: reversed(problem.preds[v]), len(problem))


def sethi_ullman(problem: OrderingProblem) -> list[int]:
    """Depth first, operands with the largest peak above what they leave behind first.

    The rule of Sethi and Ullman (1970), optimal on trees with one result each; on a DAG shared operands make the subtree
    peaks estimates.
    """
    peaks = [0] * len(problem)
    turn: list[list[int]] = [[] for _ in range(len(problem))]
    for v in range(len(problem)):
        turn[v] = sorted(problem.preds[v], key=lambda u: (problem.alloc[u] - peaks[u], u))
        held = highest = 0
        for u in turn[v]:
            highest = max(highest, held + peaks[u])
            held += problem.alloc[u]
        peaks[v] = max(highest, held + problem.extra[v])
    return _post_order(_sinks(problem), lambda v: turn[v], len(problem))


def least_peak_first(problem: OrderingProblem) -> list[int]:
    """Greedy: of the ready blocks that do not raise the peak the one that leaves least behind, else the one that needs least."""
    return _greedy(problem, within_peak=True)


def least_left_first(problem: OrderingProblem) -> list[int]:
    """Greedy: of all ready blocks the one that leaves least behind."""
    return _greedy(problem, within_peak=False)


PORTFOLIO: dict[str, Callable[[OrderingProblem], list[int]]] = {
    "least-peak-first": least_peak_first,
    "least-left-first": least_left_first,
    "sethi-ullman": sethi_ullman,
    "depth-first": depth_first,
    "depth-first-late": depth_first_late,
    "reverse-post-order": reverse_post_order,
}


def _sinks(problem: OrderingProblem) -> Iterator[int]:
    return (v for v in range(len(problem)) if not problem.succs[v])


def _post_order(roots: Iterable[int], neighbours: Callable[[int], Iterable[int]], n: int) -> list[int]:
    """Nodes in the order in which a depth-first walk from `roots` leaves them."""
    seen = [False] * n
    left: list[int] = []
    for root in roots:
        if seen[root]:
            continue
        seen[root] = True
        stack = [(root, iter(neighbours(root)))]
        while stack:
            v, rest = stack[-1]
            for u in rest:
                if not seen[u]:
                    seen[u] = True
                    stack.append((u, iter(neighbours(u))))
                    break
            else:
                left.append(v)
                stack.pop()
    return left


def _greedy(problem: OrderingProblem, *, within_peak: bool) -> list[int]:
    """Run the ready block with the least growth; `within_peak` prefers those that stay at or below the peak so far.

    Growth changes only when a load comes down to its last user, so the heap of (growth, block) is kept up to date by
    pushing such blocks again; stale entries are dropped when met. O((blocks + uses) log blocks) but for blocks that fit late.
    """
    n = len(problem)
    size, alloc, extra, used, users = problem.size, problem.alloc, problem.extra, problem.used, problem.users
    missing = [len(p) for p in problem.preds]
    left = [len(u) for u in users]
    last_user = [0] * len(size)
    for b, us in enumerate(users):
        for v in us:
            last_user[b] ^= v
    growth = list(alloc)
    for b, us in enumerate(users):
        if len(us) == 1:
            growth[us[0]] -= size[b]
    done = [False] * n
    ready = [missing[v] == 0 for v in range(n)]
    by_growth = [(growth[v], v) for v in range(n) if ready[v]]
    by_extra = [(extra[v], growth[v], v) for v in range(n) if ready[v]]
    by_growth.sort()
    by_extra.sort()
    held = peak = problem.start
    order: list[int] = []
    while len(order) < n:
        chosen = -1
        too_big = []
        while by_growth:
            g, v = by_growth[0]
            if done[v] or g != growth[v]:
                heappop(by_growth)
            elif within_peak and held + extra[v] > peak:
                too_big.append(heappop(by_growth))
            else:
                chosen = v
                break
        if chosen < 0:
            while done[by_extra[0][2]] or by_extra[0][1] != growth[by_extra[0][2]]:
                heappop(by_extra)
            chosen = by_extra[0][2]
        for entry in too_big:
            heappush(by_growth, entry)
        v = chosen
        done[v] = True
        order.append(v)
        peak = max(peak, held + extra[v])
        held += growth[v]
        for b in used[v]:
            left[b] -= 1
            last_user[b] ^= v
            if left[b] == 1:
                u = last_user[b]
                growth[u] -= size[b]
                if ready[u]:
                    heappush(by_growth, (growth[u], u))
                    heappush(by_extra, (extra[u], growth[u], u))
        for w in problem.succs[v]:
            missing[w] -= 1
            if not missing[w]:
                ready[w] = True
                heappush(by_growth, (growth[w], w))
                heappush(by_extra, (extra[w], growth[w], w))
    return order
