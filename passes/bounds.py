"""Lower bounds on the peak of every order, by minimum cuts.

Before block v runs, its ancestors have run and neither v nor its descendants have. Of all down-sets between, the one that
holds least bounds what any order needs at v: min over S of held(S) + extra[v]. Held bytes are a cut function, so that
minimum is a minimum cut: blocks in S lie on the source side, a load costs its size when its birth is in S and a user is
not. The bound of the graph is the largest over all blocks, and only blocks whose need in every known order exceeds the
bound so far can raise it.
"""

from __future__ import annotations

from collections.abc import Iterable

from .problem import OrderingProblem

INFINITE = 1 << 62
MOST_UNDECIDED = 20_000
SCANNED = 64  # blocks that are gone over in the time in which a cut decides about one


def cut_bound(problem: OrderingProblem, v: int) -> tuple[int, int]:
    """Least need of block `v` over all orders, in bytes, and how many blocks the cut had to decide about."""
    return _cut_between(problem, v, *_sides(problem, v))


def _sides(problem: OrderingProblem, v: int) -> tuple[int, int]:
    """What runs before block `v` in every order, and what does not, as bit sets."""
    return problem.ancestors(v), problem.descendants(v) | 1 << v


def _cut_between(problem: OrderingProblem, v: int, before: int, after: int) -> tuple[int, int]:
    network = _cut_network(problem, before, after)
    return network.fixed + network.maximum_flow() + problem.extra[v], len(network.blocks)


def _cut_network(problem: OrderingProblem, before: int, after: int) -> _Network:
    """Network whose cuts are the down-sets that contain bit set `before` and nothing of `after`, at the bytes they hold."""
    network = _Network(list(_bits(((1 << len(problem)) - 1) & ~(before | after))))
    vertex = {u: i + 2 for i, u in enumerate(network.blocks)}
    network.fixed = problem.base
    for b, (birth, size, pinned) in enumerate(zip(problem.birth, problem.size, problem.pinned, strict=True)):
        if birth < 0 or before >> birth & 1:
            tail = 0
        elif birth in vertex:
            tail = vertex[birth]
        else:
            continue
        undecided = [vertex[u] for u in problem.users[b] if u in vertex]
        if pinned or any(after >> u & 1 for u in problem.users[b]):
            if tail == 0:
                network.fixed += size
            else:
                network.add(tail, 1, size)
        elif len(undecided) == 1:
            network.add(tail, undecided[0], size)
        elif undecided:
            load = network.vertex()
            network.add(tail, load, size)
            for head in undecided:
                network.add(load, head, INFINITE)
    for u, i in vertex.items():
        for p in problem.preds[u]:
            if p in vertex:
                network.add(i, vertex[p], INFINITE)
    return network


def lower_bound(problem: OrderingProblem, needs: list[int], upper: int, *, work: int) -> tuple[int, bool]:
    """Largest `cut_bound` over blocks, and whether all blocks that could raise it were looked at.

    `needs`: per block the least need over known orders, an upper bound on its `cut_bound`. Stops at `upper`, or when the
    cuts have had to decide about `work` blocks in total; going over all blocks for a cut counts as well. A cut that would have to
    decide about more than `MOST_UNDECIDED` blocks is left to the kernels.
    """
    bound = problem.floor
    each = 1 + len(problem) // SCANNED
    for v in sorted(range(len(problem)), key=lambda u: (-needs[u], u)):
        if needs[v] <= bound or bound >= upper:
            break
        if work <= 0:
            return bound, False
        before, after = _sides(problem, v)
        if len(problem) - before.bit_count() - after.bit_count() > MOST_UNDECIDED:
            return bound, False
        value, undecided = _cut_between(problem, v, before, after)
        needs[v] = value
        bound = max(bound, value)
        work -= undecided + each
    return bound, True


def _bits(mask: int) -> Iterable[int]:
    """Positions of the one bits of `mask`, ascending."""
    for i, byte in enumerate(mask.to_bytes((mask.bit_length() + 7) // 8, "little")):
        if byte:
            for k in range(8):
                if byte >> k & 1:
                    yield 8 * i + k


class _Network:
    """A flow network with source 0, sink 1 and vertex i + 2 for `blocks[i]`; Dinic's algorithm (1970).

    `fixed`: bytes that every cut costs on top.
    """

    def __init__(self, blocks: list[int]):
        self.blocks = blocks
        self.fixed = 0
        self.edges: list[list[int]] = [[] for _ in range(len(blocks) + 2)]
        self.head: list[int] = []
        self.room: list[int] = []

    def vertex(self) -> int:
        self.edges.append([])
        return len(self.edges) - 1

    def add(self, tail: int, head: int, capacity: int) -> None:
        self.edges[tail].append(len(self.head))
        self.edges[head].append(len(self.head) + 1)
        self.head += (head, tail)
        self.room += (capacity, 0)

    def maximum_flow(self) -> int:
        """Value of a maximum flow, equal to that of a minimum cut."""
        edges, head, room = self.edges, self.head, self.room
        total = 0
        while True:
            level = [-1] * len(edges)
            level[0] = 0
            queue = [0]
            for u in queue:
                for e in edges[u]:
                    if room[e] and level[head[e]] < 0:
                        level[head[e]] = level[u] + 1
                        queue.append(head[e])
                if level[1] >= 0:
                    break
            if level[1] < 0:
                return total
            turn = [0] * len(edges)
            path: list[int] = []
            u = 0
            while True:
                if u == 1:
                    push = min(room[e] for e in path)
                    total += push
                    first_full = len(path)
                    for i in range(len(path) - 1, -1, -1):
                        room[path[i]] -= push
                        room[path[i] ^ 1] += push
                        if not room[path[i]]:
                            first_full = i
                    u = head[path[first_full] ^ 1]
                    del path[first_full:]
                    continue
                while turn[u] < len(edges[u]):
                    e = edges[u][turn[u]]
                    if room[e] and level[head[e]] == level[u] + 1:
                        break
                    turn[u] += 1
                if turn[u] < len(edges[u]):
                    path.append(edges[u][turn[u]])
                    u = head[path[-1]]
                elif u == 0:
                    break
                else:
                    level[u] = -1
                    u = head[path.pop() ^ 1]
                    turn[u] += 1
