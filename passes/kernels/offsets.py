"""Kernels of `passes.offsets`: fitting, hill climbing over placement orders, and the canonical search.

The search is in the manner of MiniMalloc (Moffitt, ASPLOS 2023). Some optimal layout rests every block on the floor or on
another block, so blocks are placed in order of (offset, rank), each at the lowest offset that those below it leave: a
choice of the next block, never of an address. A choice dies when
- another block would fit whole below it (placing that one first is never worse),
- a block passed over can no longer be lifted past the ones that went before it, or
- in some section of time, the lowest offset still possible there plus the bytes still to place exceeds the capacity.
Parts of time that no open block connects any more are searched apart: the failure of one is the failure of the choice.

Tables are int64. `blocks` (n, 7), `sections` (m, 2) and `counters` (6,) have the columns named below.
"""

from __future__ import annotations

import numpy as np

from .compiled import kernel
from .fit import fit as _fit

FIRST, END, SIZE, LOW, PLACED, TWIN, OFFSET = range(7)
REST, CROSSING = range(2)
NODES, NODE_LIMIT, TRAIL, WORK, CAPACITY, NEXT_CAPACITY = range(6)
INFEASIBLE, FOUND, UNDECIDED = 0, 1, -1

fit = kernel(_fit)


@kernel
def _height(offset, size):
    height = 0
    for i in range(len(size)):
        height = max(height, offset[i] + size[i])
    return height


@kernel
def climb(order, lower, upper, size, best, goal, tries, seed, offset):
    """Improve the placement `order` in place until nothing ends above `goal`; returns the excess reached.

    Each of `tries` steps takes a block that ends above the goal and an earlier one alive with it, moves it there or makes
    the two change places, and keeps what has no more excess (the sum of what ends above, so that far parts of time improve
    one by one). `offset` receives the lowest layout seen.
    """
    n = len(order)
    stack = np.empty(n, np.int64)
    trial = np.empty(n, np.int64)
    candidate = order.copy()
    excess = fit(order, lower, upper, size, best, goal, 1 << 62, stack, trial)
    current = trial.copy()
    for i in range(n):
        offset[i] = trial[i]
    height = _height(offset, size)
    state = np.uint64(seed * 2 + 1)
    for _ in range(tries):
        if excess == 0:
            break
        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        k = np.int64(state >> np.uint64(33)) % n
        while current[order[k]] + size[order[k]] <= goal:
            k = (k + 1) % n
        if k == 0:
            continue
        block = order[k]
        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        draw = np.int64(state >> np.uint64(33))
        swap = draw & 1
        to = (draw >> 1) % k
        for _ in range(k):
            other = order[to]
            if lower[other] < upper[block] and lower[block] < upper[other]:
                break
            to = (to + 1) % k
        for i in range(n):
            candidate[i] = order[i]
        candidate[to] = block
        if swap:
            candidate[k] = order[to]
        else:
            for i in range(to, k):
                candidate[i + 1] = order[i]
        reached = fit(candidate, lower, upper, size, best, goal, excess, stack, trial)
        if reached <= excess:
            excess = reached
            for i in range(n):
                order[i] = candidate[i]
                current[i] = trial[i]
            reached_height = _height(trial, size)
            if reached_height < height:
                height = reached_height
                for i in range(n):
                    offset[i] = trial[i]
    return excess


@kernel
def _place(block, blocks, sections, overlap_at, overlaps, alive_at, alive, trail, counters):
    """Put `block` at its lowest offset and lift what overlaps it; False when some section cannot hold its rest any more."""
    capacity = counters[CAPACITY]
    offset = blocks[block, LOW]
    nbytes = blocks[block, SIZE]
    top = offset + nbytes
    first, end = blocks[block, FIRST], blocks[block, END]
    blocks[block, PLACED] = 1
    blocks[block, OFFSET] = offset
    for t in range(first, end):
        sections[t, REST] -= nbytes
    for t in range(first + 1, end):
        sections[t, CROSSING] -= 1
    for i in range(overlap_at[block], overlap_at[block + 1]):
        other = overlaps[i]
        if blocks[other, PLACED] == 0 and blocks[other, LOW] < top:
            k = counters[TRAIL]
            trail[k, 0] = other
            trail[k, 1] = blocks[other, LOW]
            counters[TRAIL] = k + 1
            blocks[other, LOW] = top
            if top + blocks[other, SIZE] > capacity:
                counters[NEXT_CAPACITY] = min(counters[NEXT_CAPACITY], top + blocks[other, SIZE])
                return False
            first = min(first, blocks[other, FIRST])
            end = max(end, blocks[other, END])
    for t in range(first, end):
        rest = sections[t, REST]
        if rest > 0:
            floor = capacity
            for i in range(alive_at[t], alive_at[t + 1]):
                other = alive[i]
                if blocks[other, PLACED] == 0 and blocks[other, LOW] < floor:
                    floor = blocks[other, LOW]
            floor = max(floor, offset)
            if floor + rest > capacity:
                counters[NEXT_CAPACITY] = min(counters[NEXT_CAPACITY], floor + rest)
                return False
    return True


@kernel
def _lift_off(block, blocks, sections):
    blocks[block, PLACED] = 0
    first, end = blocks[block, FIRST], blocks[block, END]
    for t in range(first, end):
        sections[t, REST] += blocks[block, SIZE]
    for t in range(first + 1, end):
        sections[t, CROSSING] += 1


@kernel
def search(start, stop, w0, w1, after, rank, blocks, sections, overlap_at, overlaps, alive_at, alive, trail, work, counters):
    """Lay out the open blocks `work[w0:w1]`, which live in sections [start, stop), after the choice (offset `after`, `rank`).

    Returns FOUND (offsets in `blocks`), INFEASIBLE, or UNDECIDED at the node limit; after the latter two the tables are as
    before. A block's rank is its row. `counters[NEXT_CAPACITY]` falls to the least capacity at which some refused choice
    would have been looked at: no smaller one can succeed where this one failed.
    """
    if w0 == w1:
        return FOUND
    heaviest = 0
    for t in range(start, stop):
        heaviest = max(heaviest, sections[t, REST])
    least_top = 1 << 62
    for i in range(w0, w1):
        least_top = min(least_top, max(blocks[work[i], LOW], after) + blocks[work[i], SIZE])
    while True:
        offset, block = least_top, -1
        for i in range(w0, w1):
            b = work[i]
            low = blocks[b, LOW]
            later = low > after or (low == after and b > rank)
            if later and (low < offset or (low == offset and 0 <= b < block)):
                twin = blocks[b, TWIN]
                if twin < 0 or blocks[twin, PLACED] == 1:
                    offset, block = low, b
        if block < 0:
            return INFEASIBLE
        if offset + heaviest > counters[CAPACITY]:
            counters[NEXT_CAPACITY] = min(counters[NEXT_CAPACITY], offset + heaviest)
            return INFEASIBLE
        if counters[NODES] >= counters[NODE_LIMIT]:
            return UNDECIDED
        counters[NODES] += 1
        after, rank = offset, block
        trail_mark, work_mark = counters[TRAIL], counters[WORK]
        result = INFEASIBLE
        if _place(block, blocks, sections, overlap_at, overlaps, alive_at, alive, trail, counters):
            result = FOUND
            t = start
            while t < stop and result == FOUND:
                if sections[t, REST] == 0:
                    t += 1
                    continue
                e = t + 1
                while e < stop and sections[e, CROSSING] > 0:
                    e += 1
                k = work_mark
                for i in range(w0, w1):
                    b = work[i]
                    if b != block and t <= blocks[b, FIRST] < e:
                        work[k] = b
                        k += 1
                counters[WORK] = k
                result = search(
                    t, e, work_mark, k, offset, block, blocks, sections, overlap_at, overlaps, alive_at, alive, trail, work, counters
                )
                t = e
            counters[WORK] = work_mark
        if result == FOUND:
            return FOUND
        for i in range(w0, w1):
            if blocks[work[i], PLACED] == 1:
                _lift_off(work[i], blocks, sections)
        while counters[TRAIL] > trail_mark:
            counters[TRAIL] -= 1
            blocks[trail[counters[TRAIL], 0], LOW] = trail[counters[TRAIL], 1]
        if result == UNDECIDED:
            return UNDECIDED


@kernel
def sweep(lower, upper, size, capacity, node_limit, mode, seed, width, failed, offset):
    """Place blocks, sorted by `lower`, from first to last against the floor, the ceiling or a block alive; FOUND or UNDECIDED.

    Depth first, and local where `search` is global: a dead end takes back what is near in time. What is still possible
    depends only on the layout of the blocks alive, so layouts that led nowhere are remembered in `failed` (uint64, a power
    of two long, zero where empty). Not complete: an optimal layout may leave gaps on both sides of a new block.
    `mode`: which spot first: 0 the tightest gap, beside what dies at about the same time; 1 the lowest; 2 any.
    `width`: most blocks alive at once.
    """
    n = len(size)
    horizon = np.float64(upper.max())
    span = horizon - np.float64(lower[0])
    alive = np.empty((n + 1, width + 1), np.int64)
    alive_count = np.zeros(n + 1, np.int64)
    spots = np.empty((n, 2 * width + 4), np.int64)
    spots_left = np.zeros(n, np.int64)
    costs = np.empty(2 * width + 4, np.float64)
    keys = np.zeros(n, np.uint64)
    mask = np.uint64(len(failed) - 1)
    state = np.uint64(seed * 2 + 1)
    nodes = 0
    k = 0
    arrived = True
    while k < n:
        if arrived:
            m = 0
            key = np.uint64(k) * np.uint64(0x9E3779B97F4A7C15)
            for i in range(alive_count[k]):
                b = alive[k, i]
                if upper[b] > lower[k]:
                    alive[k, m] = b
                    m += 1
                    mixed = (np.uint64(offset[b]) * np.uint64(0xBF58476D1CE4E5B9)) ^ (np.uint64(b) * np.uint64(0x94D049BB133111EB))
                    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
                    key += mixed ^ (mixed >> np.uint64(32))
            alive_count[k] = m
            keys[k] = key | np.uint64(1)
            spots_left[k] = 0
            if failed[np.int64((key >> np.uint64(20)) & mask)] != keys[k]:
                count = 0
                floor = 0
                below = -1
                for i in range(m + 1):
                    above = alive[k, i] if i < m else -1
                    ceiling = offset[above] if i < m else capacity
                    gap = ceiling - floor
                    if gap >= size[k]:
                        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
                        chance = np.float64(state >> np.uint64(40)) / 16777216.0
                        slack = np.float64(gap - size[k]) / capacity
                        apart_below = abs((horizon if below < 0 else np.float64(upper[below])) - upper[k]) / span
                        apart_above = abs((horizon if above < 0 else np.float64(upper[above])) - upper[k]) / span
                        if mode == 0:
                            low_cost = (slack + 0.05 * apart_below) * (0.7 + 0.6 * chance)
                            high_cost = (slack + 0.05 * apart_above) * (1.3 - 0.6 * chance)
                        elif mode == 1:
                            low_cost, high_cost = np.float64(floor), np.float64(ceiling)
                        else:
                            low_cost, high_cost = chance, 1.0 - chance
                        if gap == size[k] and mode != 1:
                            low_cost = -1.0
                        spots[k, count] = floor
                        costs[count] = low_cost
                        count += 1
                        if gap > size[k]:
                            spots[k, count] = ceiling - size[k]
                            costs[count] = high_cost
                            count += 1
                    if i < m:
                        floor = ceiling + size[above]
                        below = above
                for i in range(1, count):
                    spot, cost = spots[k, i], costs[i]
                    j = i
                    while j > 0 and costs[j - 1] < cost:
                        spots[k, j], costs[j] = spots[k, j - 1], costs[j - 1]
                        j -= 1
                    spots[k, j], costs[j] = spot, cost
                spots_left[k] = count
        if spots_left[k] == 0:
            failed[np.int64((keys[k] >> np.uint64(20)) & mask)] = keys[k]
            k -= 1
            if k < 0:
                return UNDECIDED
            arrived = False
            continue
        if nodes >= node_limit:
            return UNDECIDED
        nodes += 1
        spots_left[k] -= 1
        offset[k] = spots[k, spots_left[k]]
        m = alive_count[k]
        i = 0
        while i < m and offset[alive[k, i]] < offset[k]:
            alive[k + 1, i] = alive[k, i]
            i += 1
        alive[k + 1, i] = k
        for j in range(i, m):
            alive[k + 1, j + 1] = alive[k, j]
        alive_count[k + 1] = m + 1
        k += 1
        arrived = True
    return FOUND
