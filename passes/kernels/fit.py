"""First fit and best fit, as one plain function: called as it is on small problems, compiled by `kernels.offsets` on large ones.

Numba's cache on disk looks at the file of the outermost function only: after a change here, save `kernels/offsets.py` too.
"""

from __future__ import annotations

MOST = 1 << 61


def fit(order, lower, upper, size, best, goal, limit, stack, offset):
    """Place blocks in `order`, each in the lowest (`best` false) or tightest (`best` true) gap; returns the excess.

    That is the sum over blocks of the bytes by which they end above `goal`. `stack` (scratch) keeps the placed blocks by
    offset; `offset` receives the result. Gives up, and returns the excess so far, once that is above `limit`. O(n^2).
    """
    excess = 0
    for k in range(len(order)):
        block = order[k]
        born, dies, nbytes = lower[block], upper[block], size[block]
        top, spot, tightest = 0, -1, -1
        for i in range(k):
            other = stack[i]
            if lower[other] < dies and born < upper[other]:
                gap = offset[other] - top
                if gap >= nbytes and (spot < 0 or gap < tightest):
                    spot, tightest = top, gap
                    if not best:
                        break
                end = offset[other] + size[other]
                if end > top:
                    top = end
        if spot < 0:
            spot = top
        offset[block] = spot
        if spot + nbytes > goal:
            excess = min(excess + spot + nbytes - goal, MOST)
            if excess > limit:
                return excess
        i = k
        while i > 0 and offset[stack[i - 1]] > spot:
            stack[i] = stack[i - 1]
            i -= 1
        stack[i] = block
    return excess
