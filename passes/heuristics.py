"""Orders that are often good: the upper bounds that scheduling starts from. None of them proves anything.

All take an `OrderingProblem` and return an order of its blocks; all are deterministic.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator

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

    Where none does, the ready block that needs least. Growth changes only when a load comes down to its last user.
    O((blocks + uses) log blocks).
    """
    size, extra, used, users = problem.size, problem.extra, problem.used, problem.users
    missing = [len(p) for p in problem.preds]
    left = [len(u) for u in users]
    last_user = [0] * len(size)
    growth = list(problem.alloc)
    for b, us in enumerate(users):
        for v in us:
            last_user[b] ^= v
        if len(us) == 1:
            growth[us[0]] -= size[b]
    ready = _Ready(extra if within_peak else [0] * len(problem))
    for v, m in enumerate(missing):
        if not m:
            ready.put(v, growth[v])
    held = peak = problem.start
    order: list[int] = []
    while len(order) < len(problem):
        v = ready.pop(peak - held)
        order.append(v)
        peak = max(peak, held + extra[v])
        held += growth[v]
        for b in used[v]:
            left[b] -= 1
            last_user[b] ^= v
            if left[b] == 1:
                u = last_user[b]
                growth[u] -= size[b]
                if u in ready:
                    ready.put(u, growth[u])
        for w in problem.succs[v]:
            missing[w] -= 1
            if not missing[w]:
                ready.put(w, growth[w])
    return order


class _Ready:
    """The ready blocks: a tree of minima over all blocks in the order of what they need, so that limits are prefixes."""

    def __init__(self, needs: list[int]):
        self._count = len(needs)
        by_need = sorted(range(len(needs)), key=needs.__getitem__)
        self._needs = [needs[v] for v in by_need]
        self._leaf = [0] * len(needs)
        for i, v in enumerate(by_need):
            self._leaf[v] = len(needs) + i
        self._least: list[int] = [_NONE] * (2 * len(needs))  # growth * count + block: least growth first, then the lowest block

    def __contains__(self, v: int) -> bool:
        return self._least[self._leaf[v]] != _NONE

    def put(self, v: int, growth: int) -> None:
        """Block `v` is ready, and leaves so many bytes more than before."""
        self._set(v, growth * self._count + v)

    def pop(self, limit: int) -> int:
        """Of the blocks that need at most `limit` the one that grows least; where there is none, of those that need least."""
        found = self._before(bisect_right(self._needs, limit))
        if found == _NONE:
            found = self._before(bisect_right(self._needs, self._needs[self._first()]))
        v = found % self._count
        self._set(v, _NONE)
        return v

    def _set(self, v: int, key: int) -> None:
        least, i = self._least, self._leaf[v]
        least[i] = key
        while i > 1:
            i >>= 1
            key = min(least[2 * i], least[2 * i + 1])
            if least[i] == key:
                return
            least[i] = key

    def _before(self, end: int) -> int:
        """The least key of the first `end` leaves."""
        least, low, high = self._least, self._count, self._count + end
        found = _NONE
        while low < high:
            if low & 1:
                found = min(found, least[low])
                low += 1
            if high & 1:
                high -= 1
                found = min(found, least[high])
            low >>= 1
            high >>= 1
        return found

    def _first(self) -> int:
        """The place of the first ready block among the leaves."""
        low, high = 0, self._count
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._before(middle) != _NONE else (middle, high)
        return low


_NONE = 1 << 126  # above every key: sizes are below 2^62, blocks below 2^63
