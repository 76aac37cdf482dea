"""Exact search over down-sets under a peak budget, in numba.

State is kept in flat arrays that the caller owns, so that a search runs in chunks: the caller looks at the clock, grows what
is full and lets Ctrl-C through between them. `Search` in `passes.exact` is that caller, and says what the algorithm does.
"""

from __future__ import annotations

import numpy as np
from numba import njit

INFEASIBLE, FOUND, PAUSED, TABLE_FULL, MOVES_FULL = 0, 1, 2, 3, 4

# Slots of the register array.
HELD, N_READY, N_RUN, DEPTH, MOVES_TOP, NEXT_BUDGET, STATES, FILLED = 0, 1, 2, 3, 4, 5, 6, 7
N_REGISTERS = 8

CHAIN_LIMIT = 256


@njit(cache=True, nogil=True)
def growth(v, alloc, used_at, used, left, size):
    """Bytes by which running block v now changes what is held."""
    change = alloc[v]
    for k in range(used_at[v], used_at[v + 1]):
        if left[used[k]] == 1:
            change -= size[used[k]]
    return change


@njit(cache=True, nogil=True)
def run(v, alloc, used_at, used, left, size, succs_at, succs, missing, ready, place, order, code, registers, key):
    """Run ready block v."""
    registers[HELD] += growth(v, alloc, used_at, used, left, size)
    for k in range(used_at[v], used_at[v + 1]):
        left[used[k]] -= 1
    top = registers[N_READY] - 1
    mover = ready[top]
    ready[place[v]] = mover
    place[mover] = place[v]
    for k in range(succs_at[v], succs_at[v + 1]):
        w = succs[k]
        missing[w] -= 1
        if missing[w] == 0:
            ready[top] = w
            place[w] = top
            top += 1
    registers[N_READY] = top
    order[registers[N_RUN]] = v
    registers[N_RUN] += 1
    key[0] ^= code[v, 0]
    key[1] ^= code[v, 1]


@njit(cache=True, nogil=True)
def undo(alloc, used_at, used, left, size, succs_at, succs, missing, ready, place, order, code, registers, key):
    """Take back the block that ran last."""
    registers[N_RUN] -= 1
    v = order[registers[N_RUN]]
    top = registers[N_READY]
    for k in range(succs_at[v], succs_at[v + 1]):
        w = succs[k]
        if missing[w] == 0:
            top -= 1
            mover = ready[top]
            ready[place[w]] = mover
            place[mover] = place[w]
        missing[w] += 1
    ready[top] = v
    place[v] = top
    registers[N_READY] = top + 1
    for k in range(used_at[v], used_at[v + 1]):
        left[used[k]] += 1
    registers[HELD] -= growth(v, alloc, used_at, used, left, size)
    key[0] ^= code[v, 0]
    key[1] ^= code[v, 1]


@njit(cache=True, nogil=True)
def remember(table, a, b):
    """Put key (a, b) into the open-addressing table; False when it was there."""
    mask = np.uint64(table.shape[0] - 1)
    if a == np.uint64(0) and b == np.uint64(0):
        a = np.uint64(1)
    i = (a ^ (b >> np.uint64(17))) & mask
    while True:
        x = table[np.int64(i), 0]
        y = table[np.int64(i), 1]
        if x == np.uint64(0) and y == np.uint64(0):
            table[np.int64(i), 0] = a
            table[np.int64(i), 1] = b
            return True
        if x == a and y == b:
            return False
        i = (i + np.uint64(1)) & mask


@njit(cache=True, nogil=True)
def rehash(old, new):
    """Move every key of table `old` into the empty, larger table `new`."""
    for i in range(old.shape[0]):
        if old[i, 0] != np.uint64(0) or old[i, 1] != np.uint64(0):
            remember(new, old[i, 0], old[i, 1])


@njit(cache=True, nogil=True)
def advance(
    budget,
    chunk,
    extra,
    alloc,
    size,
    used_at,
    used,
    succs_at,
    succs,
    code,
    missing,
    left,
    ready,
    place,
    order,
    key,
    snapshot,
    frame_start,
    frame_low,
    frame_high,
    frame_next,
    move_block,
    move_rank,
    table,
    registers,
):
    """Search on for at most `chunk` new states; returns one of the status codes above.

    Frame d holds the state reached by the d-th decision: where its committed blocks start in `order` and which slice of the
    move stack is left to try. `frame_next[d] < 0` marks a frame that has yet to commit and to list its moves.
    """
    n = extra.shape[0]
    stop_at = registers[STATES] + chunk
    while True:
        d = registers[DEPTH]
        if frame_next[d] < 0:
            if registers[STATES] >= stop_at:
                return PAUSED
            if registers[FILLED] * 2 > table.shape[0]:
                return TABLE_FULL
            if registers[MOVES_TOP] + n > move_block.shape[0]:
                return MOVES_FULL
            frame_start[d] = registers[N_RUN]
            moved = True
            while moved:
                moved = False
                i = 0
                while i < registers[N_READY]:
                    v = ready[i]
                    if registers[HELD] + extra[v] <= budget and growth(v, alloc, used_at, used, left, size) <= 0:
                        run(v, alloc, used_at, used, left, size, succs_at, succs, missing, ready, place, order, code, registers, key)
                        moved = True
                    else:
                        i += 1
                if moved:
                    continue
                count = registers[N_READY]
                for q in range(count):
                    snapshot[q] = ready[q]
                for q in range(count):
                    v = snapshot[q]
                    held, ran = registers[HELD], registers[N_RUN]
                    for _ in range(CHAIN_LIMIT):
                        if registers[HELD] + extra[v] > budget:
                            break
                        run(v, alloc, used_at, used, left, size, succs_at, succs, missing, ready, place, order, code, registers, key)
                        if registers[HELD] <= held:
                            moved = True
                            break
                        follower = -1
                        least = np.int64(0)
                        for k in range(succs_at[v], succs_at[v + 1]):
                            w = succs[k]
                            if missing[w] == 0:
                                g = growth(w, alloc, used_at, used, left, size)
                                if follower < 0 or g < least:
                                    follower, least = w, g
                        if follower < 0:
                            break
                        v = follower
                    if moved:
                        break
                    while registers[N_RUN] > ran:
                        undo(alloc, used_at, used, left, size, succs_at, succs, missing, ready, place, order, code, registers, key)
            if registers[N_RUN] == n:
                return FOUND
            frame_low[d] = registers[MOVES_TOP]
            frame_next[d] = frame_low[d]
            top = frame_low[d]
            if remember(table, key[0], key[1]):
                registers[FILLED] += 1
                registers[STATES] += 1
                for i in range(registers[N_READY]):
                    v = ready[i]
                    need = registers[HELD] + extra[v]
                    if need <= budget:
                        g = growth(v, alloc, used_at, used, left, size)
                        j = top
                        while j > frame_low[d] and (move_rank[j - 1] > g or (move_rank[j - 1] == g and move_block[j - 1] > v)):
                            move_rank[j] = move_rank[j - 1]
                            move_block[j] = move_block[j - 1]
                            j -= 1
                        move_rank[j] = g
                        move_block[j] = v
                        top += 1
                    elif need < registers[NEXT_BUDGET]:
                        registers[NEXT_BUDGET] = need
            frame_high[d] = top
            registers[MOVES_TOP] = top
        if frame_next[d] < frame_high[d]:
            v = move_block[frame_next[d]]
            frame_next[d] += 1
            run(v, alloc, used_at, used, left, size, succs_at, succs, missing, ready, place, order, code, registers, key)
            registers[DEPTH] = d + 1
            frame_next[d + 1] = -1
        else:
            registers[MOVES_TOP] = frame_low[d]
            while registers[N_RUN] > frame_start[d]:
                undo(alloc, used_at, used, left, size, succs_at, succs, missing, ready, place, order, code, registers, key)
            if d == 0:
                return INFEASIBLE
            undo(alloc, used_at, used, left, size, succs_at, succs, missing, ready, place, order, code, registers, key)
            registers[DEPTH] = d - 1
