"""Exact search over down-sets under a peak budget, in numba.

State is kept in flat arrays that the caller owns, so that a search runs in chunks: the caller looks at the clock, grows what
is full and lets Ctrl-C through between them. `Search` in `passes.exact` is that caller, and says what the algorithm does;
its `Blocks` and `SearchState` are the arguments `blocks` and `state` here.
"""

from __future__ import annotations

import numpy as np

from .compiled import kernel
from .cut import cut_bound

INFEASIBLE, FOUND, PAUSED, TABLE_FULL, MOVES_FULL = 0, 1, 2, 3, 4

# Slots of the register array.
HELD, N_READY, N_RUN, DEPTH, MOVES_TOP, NEXT_BUDGET, STATES, FILLED, IDLE, WAIT, TURN, CUT_WORK, FROZEN = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    11,
    12,
)
N_REGISTERS = 13

CHAIN_LIMIT = 256
RIVALS_TRIED = 4
LONGEST_WAIT = 1024
CUT_CHUNK = 200_000


@kernel
def growth(v, blocks, left):
    """Bytes by which running block v now changes what is held."""
    change = blocks.alloc[v]
    for k in range(blocks.used_at[v], blocks.used_at[v + 1]):
        if left[blocks.used[k]] == 1:
            change -= blocks.size[blocks.used[k]]
    return change


@kernel
def run(v, blocks, state):
    """Run ready block v."""
    registers, ready, place = state.registers, state.ready, state.place
    registers[HELD] += growth(v, blocks, state.left)
    for k in range(blocks.used_at[v], blocks.used_at[v + 1]):
        state.left[blocks.used[k]] -= 1
    top = registers[N_READY] - 1
    mover = ready[top]
    ready[place[v]] = mover
    place[mover] = place[v]
    place[v] = -1
    for k in range(blocks.succs_at[v], blocks.succs_at[v + 1]):
        w = blocks.succs[k]
        state.missing[w] -= 1
        if state.missing[w] == 0:
            ready[top] = w
            place[w] = top
            top += 1
    registers[N_READY] = top
    state.order[registers[N_RUN]] = v
    registers[N_RUN] += 1
    state.key[0] ^= state.code[v, 0]
    state.key[1] ^= state.code[v, 1]


@kernel
def undo(blocks, state):
    """Take back the block that ran last."""
    registers, ready, place = state.registers, state.ready, state.place
    registers[N_RUN] -= 1
    v = state.order[registers[N_RUN]]
    top = registers[N_READY]
    for k in range(blocks.succs_at[v], blocks.succs_at[v + 1]):
        w = blocks.succs[k]
        if state.missing[w] == 0:
            top -= 1
            mover = ready[top]
            ready[place[w]] = mover
            place[mover] = place[w]
        state.missing[w] += 1
    ready[top] = v
    place[v] = top
    registers[N_READY] = top + 1
    for k in range(blocks.used_at[v], blocks.used_at[v + 1]):
        state.left[blocks.used[k]] += 1
    registers[HELD] -= growth(v, blocks, state.left)
    state.key[0] ^= state.code[v, 0]
    state.key[1] ^= state.code[v, 1]


@kernel
def remember(table, a, b, frozen):
    """False when key (a, b) is in the open-addressing table; else True, and it is put there unless `frozen`."""
    mask = np.uint64(table.shape[0] - 1)
    if a == np.uint64(0) and b == np.uint64(0):
        a = np.uint64(1)
    i = (a ^ (b >> np.uint64(17))) & mask
    while True:
        x = table[np.int64(i), 0]
        y = table[np.int64(i), 1]
        if x == np.uint64(0) and y == np.uint64(0):
            if not frozen:
                table[np.int64(i), 0] = a
                table[np.int64(i), 1] = b
            return True
        if x == a and y == b:
            return False
        i = (i + np.uint64(1)) & mask


@kernel
def rehash(old, new):
    """Move every key of table `old` into the empty, larger table `new`."""
    for i in range(old.shape[0]):
        if old[i, 0] != np.uint64(0) or old[i, 1] != np.uint64(0):
            remember(new, old[i, 0], old[i, 1], False)


@kernel
def commit(budget, blocks, state):
    """Run every ready block, and every chain of blocks, that fits the budget and ends at or below the bytes now held."""
    registers, ready, left = state.registers, state.ready, state.left
    moved = True
    while moved:
        moved = False
        i = 0
        while i < registers[N_READY]:
            v = ready[i]
            if registers[HELD] + blocks.extra[v] <= budget and growth(v, blocks, left) <= 0:
                run(v, blocks, state)
                moved = True
            else:
                i += 1
        if moved:
            continue
        count = registers[N_READY]
        for q in range(count):
            state.snapshot[q] = ready[q]
        for q in range(count):
            v = state.snapshot[q]
            held, ran = registers[HELD], registers[N_RUN]
            for _ in range(CHAIN_LIMIT):
                if registers[HELD] + blocks.extra[v] > budget:
                    break
                run(v, blocks, state)
                if registers[HELD] <= held:
                    moved = True
                    break
                follower = -1
                least = np.int64(0)
                for k in range(blocks.succs_at[v], blocks.succs_at[v + 1]):
                    w = blocks.succs[k]
                    if state.missing[w] == 0:
                        g = growth(w, blocks, left)
                        if follower < 0 or g < least:
                            follower, least = w, g
                if follower < 0:
                    break
                v = follower
            if moved:
                break
            while registers[N_RUN] > ran:
                undo(blocks, state)


@kernel
def hopeless(budget, blocks, state):
    """Depth of the shallowest frame that one block's cut puts beyond the budget; -1 when no cut tried does.

    A cut that ruled out one state is likely to rule out the next, so such blocks are tried first, and one more in turn.
    """
    registers, rivals = state.registers, state.rivals
    n = blocks.extra.shape[0]
    for attempt in range(RIVALS_TRIED + 1):
        at = attempt
        if attempt == RIVALS_TRIED:
            registers[TURN] = (registers[TURN] + 1) % n
            at = registers[TURN]
        if at >= n:
            continue
        v = rivals[at]
        if state.missing[v] == 0 and state.place[v] < 0:
            continue
        value, open_blocks = cut_bound(v, state.order, registers[N_RUN], blocks, state.side, state.vertex, state.stack)
        registers[CUT_WORK] += open_blocks + 1
        if value <= budget:
            continue
        for i in range(at, 0, -1):
            rivals[i] = rivals[i - 1]
        rivals[0] = v
        d = registers[DEPTH]
        while d > 0:
            above, open_blocks = cut_bound(v, state.order, state.frame_start[d] - 1, blocks, state.side, state.vertex, state.stack)
            registers[CUT_WORK] += open_blocks + 1
            if above <= budget:
                break
            value = above
            d -= 1
        registers[NEXT_BUDGET] = min(registers[NEXT_BUDGET], value)
        return d
    return np.int64(-1)


@kernel
def list_moves(budget, blocks, state, move_block, move_rank):
    """Put the ready blocks that fit the budget on the move stack, least growth first; returns the new top."""
    registers = state.registers
    low = registers[MOVES_TOP]
    top = low
    for i in range(registers[N_READY]):
        v = state.ready[i]
        need = registers[HELD] + blocks.extra[v]
        if need <= budget:
            g = growth(v, blocks, state.left)
            j = top
            while j > low and (move_rank[j - 1] > g or (move_rank[j - 1] == g and move_block[j - 1] > v)):
                move_rank[j] = move_rank[j - 1]
                move_block[j] = move_block[j - 1]
                j -= 1
            move_rank[j] = g
            move_block[j] = v
            top += 1
        elif need < registers[NEXT_BUDGET]:
            registers[NEXT_BUDGET] = need
    return top


@kernel
def advance(budget, chunk, blocks, state, move_block, move_rank, table):
    """Search on for at most `chunk` new states; returns one of the status codes above.

    Frame d holds the state reached by the d-th decision: where its committed blocks start in `order` and which slice of the
    move stack is left to try. `frame_next[d] < 0` marks a frame that has yet to commit and to list its moves.
    """
    n = blocks.extra.shape[0]
    registers, frame_start, frame_next = state.registers, state.frame_start, state.frame_next
    stop_states = registers[STATES] + chunk
    stop_work = registers[CUT_WORK] + CUT_CHUNK
    while True:
        d = registers[DEPTH]
        if frame_next[d] < 0:
            if registers[STATES] >= stop_states or registers[CUT_WORK] >= stop_work:
                return PAUSED
            if registers[FILLED] * 2 > table.shape[0] and registers[FROZEN] == 0:
                return TABLE_FULL
            if registers[MOVES_TOP] + n > move_block.shape[0]:
                return MOVES_FULL
            frame_start[d] = registers[N_RUN]
            commit(budget, blocks, state)
            if registers[N_RUN] == n:
                return FOUND
            low = registers[MOVES_TOP]
            top = low
            if remember(table, state.key[0], state.key[1], registers[FROZEN] == 1):
                registers[FILLED] += 1 - registers[FROZEN]
                registers[STATES] += 1
                registers[IDLE] += 1
                failed = np.int64(-1)
                if registers[IDLE] >= registers[WAIT]:
                    registers[IDLE] = 0
                    failed = hopeless(budget, blocks, state)
                    registers[WAIT] = 1 if failed >= 0 else min(2 * registers[WAIT], LONGEST_WAIT)
                if failed >= 0:
                    for k in range(failed, d):
                        frame_next[k] = state.frame_high[k]
                else:
                    top = list_moves(budget, blocks, state, move_block, move_rank)
            state.frame_low[d] = low
            frame_next[d] = low
            state.frame_high[d] = top
            registers[MOVES_TOP] = top
        if frame_next[d] < state.frame_high[d]:
            v = move_block[frame_next[d]]
            frame_next[d] += 1
            run(v, blocks, state)
            registers[DEPTH] = d + 1
            frame_next[d + 1] = -1
        else:
            registers[MOVES_TOP] = state.frame_low[d]
            while registers[N_RUN] > frame_start[d]:
                undo(blocks, state)
            if d == 0:
                return INFEASIBLE
            undo(blocks, state)
            registers[DEPTH] = d - 1
