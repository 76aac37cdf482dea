"""First and best fit for many blocks: each looks at those that are alive with it, not at all that were placed before.

`fit_among` places what `kernels.fit.fit` places, at the same offsets, given who overlaps whom; `fit_in_time` needs no such table and
has one order, that of birth.
"""

from __future__ import annotations

import numpy as np

from .compiled import kernel


@kernel
def overlaps(lower, upper, by_start, starts):
    """Per block the blocks alive with it: row starts, int64 (n + 1,), and their numbers, int32. O(pairs + n log n).

    `by_start`: blocks in order of `lower`; `starts`: `lower` in that order.
    """
    n = len(lower)
    row = np.zeros(n + 1, np.int64)
    for i in range(n):
        block = by_start[i]
        end = np.searchsorted(starts, upper[block])
        row[block + 1] += end - i - 1
        for k in range(i + 1, end):
            row[by_start[k] + 1] += 1
    for i in range(n):
        row[i + 1] += row[i]
    fill = row[:n].copy()
    met = np.empty(row[n], np.int32)
    for i in range(n):
        block = by_start[i]
        for k in range(i + 1, np.searchsorted(starts, upper[block])):
            other = by_start[k]
            met[fill[block]] = other
            met[fill[other]] = block
            fill[block] += 1
            fill[other] += 1
    return row, met


@kernel
def _spot(tops, ends, count, nbytes, best):
    """The lowest gap of `nbytes` between `count` places (`best` false), or the tightest; above them all where there is none."""
    by_top = np.argsort(tops[:count])
    top, spot, tightest = np.int64(0), np.int64(-1), np.int64(-1)
    for i in by_top:
        gap = tops[i] - top
        if gap >= nbytes and (spot < 0 or gap < tightest):
            spot, tightest = top, gap
            if not best:
                break
        top = max(top, ends[i])
    return top if spot < 0 else spot


@kernel
def fit_among(order, row, met, size, best, offset):
    """Place blocks in `order`; `row`, `met` as from `overlaps`. `offset` receives the result."""
    offset[:] = -1
    tops, ends = np.empty(len(size), np.int64), np.empty(len(size), np.int64)
    for block in order:
        count = 0
        for k in range(row[block], row[block + 1]):
            other = met[k]
            if offset[other] >= 0:
                tops[count], ends[count] = offset[other], offset[other] + size[other]
                count += 1
        offset[block] = _spot(tops, ends, count, size[block], best)


@kernel
def fit_in_time(by_start, lower, upper, size, best, offset):
    """Place blocks in order of birth, each among those that live then. O(n times the most blocks alive at once)."""
    n = len(by_start)
    live = np.empty(n, np.int64)  # by offset
    alive = 0
    for block in by_start:
        born, nbytes = lower[block], size[block]
        kept = 0
        top, spot, tightest, at = np.int64(0), np.int64(-1), np.int64(-1), np.int64(0)
        settled = False
        for i in range(alive):
            other = live[i]
            if upper[other] <= born:
                continue
            if not settled:
                gap = offset[other] - top
                if gap >= nbytes and (spot < 0 or gap < tightest):
                    spot, tightest, at = top, gap, kept
                    settled = not best
                top = max(top, offset[other] + size[other])
            live[kept] = other
            kept += 1
        if spot < 0:
            spot, at = top, kept
        for i in range(kept, at, -1):
            live[i] = live[i - 1]
        live[at] = block
        alive = kept + 1
        offset[block] = spot
