"""Beam search over down-sets: the strongest upper bound where heuristics and cuts do not meet."""

from __future__ import annotations

from collections.abc import Generator

from .problem import OrderingProblem


def beam_search(problem: OrderingProblem, width: int, lower: int, upper: int) -> Generator[None, None, list[int] | None]:
    """An order of `problem` that needs less than `upper` bytes, or None; yields once a step, so that callers can stop it.

    Of all down-sets of k blocks that were reached, the `width` with the least peak so far, and among these with the least
    bytes held, are taken on to k + 1; peaks up to `lower`, which no order avoids, count the same. A block that fits under
    the peak so far and leaves no more behind than was held is run without alternatives, as in `passes.exact`. Deterministic.
    O(blocks * width * ready blocks).
    """
    n = len(problem)
    size, alloc, extra, used, succs = problem.size, problem.alloc, problem.extra, problem.used, problem.succs
    before = [_mask(p) for p in problem.preds]
    users = [_mask(u) for u in problem.users]
    sources = tuple(v for v in range(n) if not before[v])
    states = {0: (lower, problem.start, sources)}
    came_from: list[dict[int, tuple[int, int]]] = []
    for _ in range(n):
        reached: dict[int, tuple[int, int, int, int]] = {}
        for ran, (peak, held, ready) in states.items():
            moves = []
            for v in ready:
                need = held + extra[v]
                if need >= upper:
                    continue
                after = held + alloc[v]
                now = ran | 1 << v
                for b in used[v]:
                    if users[b] & now == users[b]:
                        after -= size[b]
                if after <= held and need <= peak:
                    moves = [(now, peak, after, v)]
                    break
                moves.append((now, max(peak, need), after, v))
            for now, high, after, v in moves:
                known = reached.get(now)
                if known is None or high < known[0]:
                    reached[now] = (high, after, ran, v)
        best = sorted(reached.items(), key=lambda item: item[1][:2])[:width]
        came_from.append({now: (ran, v) for now, (_, _, ran, v) in best})
        following = {}
        for now, (high, after, ran, v) in best:
            opened = [w for w in succs[v] if before[w] & now == before[w]]
            following[now] = (high, after, tuple(u for u in states[ran][2] if u != v) + tuple(opened))
        states = following
        yield
    if not states:
        return None
    now = next(iter(states))
    order = []
    for layer in reversed(came_from):
        now, v = layer[now]
        order.append(v)
    return order[::-1]


def _mask(blocks: list[int]) -> int:
    mask = 0
    for v in blocks:
        mask |= 1 << v
    return mask
