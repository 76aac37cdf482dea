"""The minimum cuts of `passes.bounds` in numba, for graphs on which Python would take too long."""

from __future__ import annotations

import numpy as np

from .compiled import kernel

INFINITE = 1 << 60
BEFORE, OPEN, AFTER = 1, 0, 2
SCANNED = 64  # as in `passes.bounds`


@kernel
def maximum_flow(n_vertices, n_edges, tail, head, room):
    """Value of a maximum flow from vertex 0 to vertex 1; edge e and e ^ 1 are each other's reverse. Dinic (1970)."""
    edges_at = np.zeros(n_vertices + 1, np.int64)
    for e in range(n_edges):
        edges_at[tail[e] + 1] += 1
    for i in range(n_vertices):
        edges_at[i + 1] += edges_at[i]
    fill = edges_at[:n_vertices].copy()
    edges = np.empty(n_edges, np.int64)
    for e in range(n_edges):
        edges[fill[tail[e]]] = e
        fill[tail[e]] += 1
    level = np.empty(n_vertices, np.int64)
    turn = np.empty(n_vertices, np.int64)
    queue = np.empty(n_vertices, np.int64)
    path = np.empty(n_vertices + 1, np.int64)
    total = np.int64(0)
    while True:
        level[:] = -1
        level[0] = 0
        queue[0] = 0
        first, end = 0, 1
        while first < end and level[1] < 0:
            u = queue[first]
            first += 1
            for k in range(edges_at[u], edges_at[u + 1]):
                e = edges[k]
                if room[e] > 0 and level[head[e]] < 0:
                    level[head[e]] = level[u] + 1
                    queue[end] = head[e]
                    end += 1
        if level[1] < 0:
            return total
        turn[:] = edges_at[:n_vertices]
        depth = 0
        u = np.int64(0)
        while True:
            if u == 1:
                push = room[path[0]]
                for i in range(1, depth):
                    push = min(push, room[path[i]])
                full = 0
                for i in range(depth - 1, -1, -1):
                    room[path[i]] -= push
                    room[path[i] ^ 1] += push
                    if room[path[i]] == 0:
                        full = i
                total += push
                depth = full
                u = tail[path[full]]
                continue
            while turn[u] < edges_at[u + 1]:
                e = edges[turn[u]]
                if room[e] > 0 and level[head[e]] == level[u] + 1:
                    break
                turn[u] += 1
            if turn[u] < edges_at[u + 1]:
                path[depth] = edges[turn[u]]
                depth += 1
                u = head[path[depth - 1]]
            elif u == 0:
                break
            else:
                level[u] = -1
                depth -= 1
                u = tail[path[depth]]
                turn[u] += 1


@kernel
def cut_bound(v, ran, count, blocks, side, vertex, stack):
    """Least need of block v over all orders that start with the `count` first blocks of `ran`; and how many blocks are open.

    `blocks`: as `passes.exact.Blocks`. `side`, `vertex`, `stack`: scratch, int64 (n,), (n,) and (n + 1,).
    """
    n = blocks.extra.shape[0]
    side[:] = OPEN
    for k in range(count):
        side[ran[k]] = BEFORE
    side[v] = AFTER
    for goal, at, neighbours in ((AFTER, blocks.succs_at, blocks.succs), (BEFORE, blocks.preds_at, blocks.preds)):
        stack[0] = v
        top = 1
        while top > 0:
            top -= 1
            u = stack[top]
            for k in range(at[u], at[u + 1]):
                w = neighbours[k]
                if side[w] == OPEN:
                    side[w] = goal
                    stack[top] = w
                    top += 1
    n_vertices = 2
    n_edges = 0
    for u in range(n):
        if side[u] == OPEN:
            vertex[u] = n_vertices
            n_vertices += 1
            n_edges += 2 * (blocks.preds_at[u + 1] - blocks.preds_at[u])
    undecided = n_vertices - 2
    if undecided > 0:
        n_edges += 2 * (blocks.users.shape[0] + 2 * blocks.size.shape[0])
    tail = np.empty(n_edges, np.int64)
    head = np.empty(n_edges, np.int64)
    room = np.empty(n_edges, np.int64)
    fixed = blocks.base + blocks.extra[v]
    e = 0
    for b in range(blocks.size.shape[0]):
        p = blocks.birth[b]
        if p < 0 or side[p] == BEFORE:
            source = np.int64(0)
        elif side[p] == OPEN:
            source = vertex[p]
        else:
            continue
        surely = blocks.pinned[b]
        n_open = 0
        for k in range(blocks.users_at[b], blocks.users_at[b + 1]):
            if side[blocks.users[k]] == AFTER:
                surely = True
            elif side[blocks.users[k]] == OPEN:
                n_open += 1
        if surely:
            if source == 0:
                fixed += blocks.size[b]
                continue
            tail[e], head[e], room[e] = source, 1, blocks.size[b]
        elif n_open == 0:
            continue
        else:
            load = np.int64(n_vertices)
            n_vertices += 1
            tail[e], head[e], room[e] = source, load, blocks.size[b]
            for k in range(blocks.users_at[b], blocks.users_at[b + 1]):
                if side[blocks.users[k]] == OPEN:
                    e += 2
                    tail[e], head[e], room[e] = load, vertex[blocks.users[k]], INFINITE
        e += 2
    for u in range(n):
        if side[u] == OPEN:
            for k in range(blocks.preds_at[u], blocks.preds_at[u + 1]):
                if side[blocks.preds[k]] == OPEN:
                    tail[e], head[e], room[e] = vertex[u], vertex[blocks.preds[k]], INFINITE
                    e += 2
    if e == 0:
        return fixed, undecided
    for i in range(0, e, 2):
        tail[i + 1], head[i + 1], room[i + 1] = head[i], tail[i], 0
    return fixed + maximum_flow(n_vertices, e, tail, head, room), undecided


@kernel
def sweep(candidates, first, bound, upper, work, needs, blocks):
    """Raise `bound` by the cuts of `candidates[first:]`, descending in `needs`, until about `work` blocks were decided about.

    Returns the bound and the index of the first candidate not looked at; their number when none is left that could raise it.
    """
    n = blocks.extra.shape[0]
    side = np.empty(n, np.int64)
    vertex = np.empty(n, np.int64)
    stack = np.empty(n + 1, np.int64)
    i = first
    while i < candidates.shape[0] and work > 0:
        v = candidates[i]
        if needs[v] <= bound or bound >= upper:
            return bound, candidates.shape[0]
        value, undecided = cut_bound(v, candidates, 0, blocks, side, vertex, stack)
        needs[v] = value
        bound = max(bound, value)
        work -= undecided + 1 + n // SCANNED
        i += 1
    return bound, i
