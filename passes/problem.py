"""The ordering problem: what is left of a Graph when only the peak of its orders matters.

Nodes become *blocks* (one or more graph nodes that some best order runs back to back), storages become *loads* (bytes that
outlive the block which gives birth to them). A set S of finished blocks, closed under predecessors, is a *down-set*:

    held(S) = base + sum of size[b] over loads b born in S (or alive from the start) that are pinned or have a user outside S
    need(v, S) = held(S) + extra[v],  the peak while block v runs after S

so the peak of an order is the largest need along it, never below held of the empty and of the full set. held is submodular
(a cut function), which is what the bounds and the dominance rule of the search rest on.

Blocks are merged only where a best order survives it. Write alloc[v] for the bytes v leaves behind, own[v] for those that
it frees in every order, growth = alloc - freed. Moving a block next to another keeps every state between them at or below
its old bytes when the growth of what moves earlier is never positive, and of what moves later never negative:

- *early*: v has one immediate predecessor u, growth(v) <= 0 always, and v's need right after u is within u's need;
- *late*: v has one immediate successor w, frees in no order anything but own[v], growth(v) >= 0, and its need just before w
  is within w's need;
- *together*: v and w are each other's only neighbour on that side, growth(v) >= 0 is the same in every order and
  growth(w) <= 0: both move to the state between them that holds least.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..compiler.graph import Graph
from .liveness import Inputs, counted_storages

REACH = 1 << 15  # blocks whose ancestors are known to each other at once: bit sets of all pairs of them take 128 MiB


@dataclass(frozen=True, eq=False)
class OrderingProblem:
    """Blocks in a topological order, loads, and what ties them. All sizes in bytes; a block's id is its index.

    `members`: graph nodes per block, in the order they run. `prologue`: graph nodes that run before every block. `preds`,
    `succs`: immediate neighbours only. `born`: loads a block gives birth to; `used`: loads born earlier of which it may be
    the last user; `users`: the inverse of `used`; `birth`: block per load, -1 for alive from the start. `extra`, `alloc` as
    in the module docstring. `floor`: max(held of the empty set, held of the full set), below which no order can stay.
    """

    members: tuple[tuple[int, ...], ...]
    prologue: tuple[int, ...]
    preds: list[list[int]]
    succs: list[list[int]]
    extra: list[int]
    alloc: list[int]
    born: list[list[int]]
    used: list[list[int]]
    size: list[int]
    birth: list[int]
    users: list[list[int]]
    pinned: list[bool]
    base: int
    start: int = field(repr=False)
    floor: int = field(repr=False)

    def __len__(self) -> int:
        return len(self.members)

    def ancestors(self, v: int) -> int:
        """The ancestors of block `v` as a bit set in an int."""
        return self._ancestors[v] if len(self) <= REACH else _reached(self.preds, v)

    def descendants(self, v: int) -> int:
        """The descendants of block `v` as a bit set in an int."""
        return self._descendants[v] if len(self) <= REACH else _reached(self.succs, v)

    @cached_property
    def _ancestors(self) -> list[int]:
        return _reach(self.preds, range(len(self)))

    @cached_property
    def _descendants(self) -> list[int]:
        return _reach(self.succs, range(len(self) - 1, -1, -1))

    def expand(self, order: Iterable[int]) -> tuple[int, ...]:
        """The graph order that an order of blocks stands for."""
        members = self.members
        return self.prologue + tuple(v for block in order for v in members[block])

    def needs(self, order: Iterable[int]) -> list[int]:
        """Peak bytes while each block runs, by block id. O(blocks + uses)."""
        left = [len(u) + p for u, p in zip(self.users, self.pinned, strict=True)]
        size, alloc, extra, used = self.size, self.alloc, self.extra, self.used
        held = self.start
        needs = [0] * len(self)
        for v in order:
            needs[v] = held + extra[v]
            held += alloc[v]
            for b in used[v]:
                left[b] -= 1
                if not left[b]:
                    held -= size[b]
        return needs

    def peak(self, needs: Sequence[int]) -> int:
        """Peak of the order that has these needs."""
        return max(self.floor, max(needs, default=0))


def ordering_problem(graph: Graph, inputs: Inputs = "planned") -> OrderingProblem:
    """The ordering problem of `graph`, with every merge that the module docstring allows.

    O(nodes * s / 64 + uses) a round, s the longest stretch of nodes between two that are comparable to all. Where s is beyond
    `REACH`, a predecessor or user that only far nodes make redundant may stay: a larger problem with the same optimum.
    """
    draft = _Draft(graph, inputs)
    draft.reduce()
    while draft.merge():
        draft.reduce()
    return draft.finish()


def _reach(neighbours: Sequence[Iterable[int]], order: Iterable[int]) -> list[int]:
    """Bit set of everything reachable over `neighbours`, per node; `order` visits neighbours first."""
    reach = [0] * len(neighbours)
    for v in order:
        mask = 0
        for u in neighbours[v]:
            mask |= reach[u] | 1 << u
        reach[v] = mask
    return reach


def _reached(neighbours: Sequence[Iterable[int]], v: int) -> int:
    """Bit set of everything reachable from `v` over `neighbours`. O(what is reached + blocks)."""
    seen = np.zeros(len(neighbours), np.bool_)
    stack = [v]
    while stack:
        for u in neighbours[stack.pop()]:
            if not seen[u]:
                seen[u] = True
                stack.append(u)
    return int.from_bytes(np.packbits(seen, bitorder="little").tobytes(), "little")


def comparable_to_all(preds: Sequence[Collection[int]], succs: Sequence[Collection[int]]) -> list[int]:
    """The nodes, in a topological order 0, 1, ..., that every other node is an ancestor or a descendant of. O(nodes + edges).

    Node v is a descendant of all before it when each of those has a successor at or before v: following these leads to v.
    """
    n = len(preds)
    farthest, all_before = -1, []
    for v in range(n):
        all_before.append(farthest <= v)
        farthest = max(farthest, min(succs[v], default=n))
    nearest, found = n, []
    for v in range(n - 1, -1, -1):
        if nearest >= v and all_before[v]:
            found.append(v)
        nearest = min(nearest, max(preds[v], default=-1))
    return found[::-1]


def _windows(ends: Sequence[int], n: int) -> list[tuple[int, int]]:
    """Per place of an order of `n`: its gate and the start of its window.

    The gate is the first place behind the last of `ends` before it: all before the gate are its ancestors. A window, in which bit sets
    tell ancestors, is what lies between two gates, or a part of that of at most `REACH` places.
    """
    found = []
    for gate, end in zip((0, *(e + 1 for e in ends)), (*(e + 1 for e in ends), n), strict=True):
        found += [(gate, gate + (i - gate) // REACH * REACH) for i in range(gate, end)]
    return found


class _Draft:
    """Blocks under merging. `rank` is a topological order of the living ones; dead blocks have rank -1."""

    def __init__(self, graph: Graph, inputs: Inputs):
        n = len(graph.nodes)
        counted = counted_storages(graph, inputs).tolist()
        birth = graph.birth
        self.size = [s.nbytes for s in graph.storages]
        self.birth = list(birth)
        self.users: list[set[int]] = [set() for _ in graph.storages]
        self.pinned = [False] * len(graph.storages)
        self.born: list[set[int]] = [set() for _ in range(n)]
        self.used: list[set[int]] = [set() for _ in range(n)]
        self.alloc = [0] * n
        self.extra = [node.workspace for node in graph.nodes]
        self.base = 0
        kept = [c and s.nbytes > 0 for c, s in zip(counted, graph.storages, strict=True)]
        for s in graph.pinned:
            self.pinned[s] = True
            if kept[s] and birth[s] < 0:
                self.base += self.size[s]
                kept[s] = False
        for v, touched in enumerate(graph.touches):
            for s in touched:
                if not kept[s]:
                    continue
                if birth[s] == v:
                    self.born[v].add(s)
                    self.extra[v] += self.size[s]
                elif not self.pinned[s]:
                    self.users[s].add(v)
                    self.used[v].add(s)
        self.start = self.base + sum(self.size[s] for s in range(len(kept)) if kept[s] and birth[s] < 0 and self.users[s])
        end = self.base + sum(self.size[s] for s in graph.pinned if kept[s])
        self.floor = max(self.start, end) if n else 0
        self.drop_short_lived(range(n))
        self.preds = [set(p) for p in graph.dependencies()]
        self.succs = [set(s) for s in graph.successors()]
        self.members: list[tuple[int, ...]] = [(v,) for v in range(n)]
        self.prologue: list[int] = []
        self.rank = list(range(n))
        self.order = list(range(n))

    def drop_short_lived(self, blocks: Iterable[int]) -> None:
        """Forget loads that die inside the block of their birth, and add up what the others weigh."""
        for v in blocks:
            self.born[v] = {s for s in self.born[v] if self.pinned[s] or self.users[s]}
            self.alloc[v] = sum(self.size[s] for s in self.born[v])

    def reduce(self) -> None:
        """Keep immediate predecessors and possible last users only.

        Between two nodes that are comparable to all others ancestors are told apart by bit sets; what lies before the first of them is
        an ancestor of all that lies behind it.
        """
        place = {v: i for i, v in enumerate(self.order)}
        ends = comparable_to_all(*([[place[u] for u in near[v]] for v in self.order] for near in (self.preds, self.succs)))
        ancestors = [0] * len(self.order)  # by place, of the blocks of a place's own window: bit k is place `start` + k
        starts = _windows(ends, len(self.order))
        for i, v in enumerate(self.order):
            gate, start = starts[i]
            direct = {place[u]: u for u in self.preds[v]}
            near = [j for j in direct if j >= start]
            indirect = 0
            for j in near:
                indirect |= ancestors[j]
            behind_gate = any(j >= gate for j in direct)
            for j, u in direct.items():
                redundant = indirect >> (j - start) & 1 if j >= start else j < gate - (not behind_gate)
                if redundant:
                    self.preds[v].discard(u)
                    self.succs[u].discard(v)
            for j in near:
                indirect |= 1 << (j - start)
            ancestors[i] = indirect
        for s, users in enumerate(self.users):
            if len(users) > 1:
                gate = starts[max(place[v] for v in users)][0]
                before: dict[int, int] = {}
                for v in users:
                    start = starts[place[v]][1]
                    before[start] = before.get(start, 0) | ancestors[place[v]]
                for v in list(users):
                    i = place[v]
                    start = starts[i][1]
                    if i < gate or before[start] >> (i - start) & 1:
                        users.discard(v)
                        self.used[v].discard(s)

    def merge(self) -> bool:
        """One pass of merges over all blocks; True if any was made."""
        any_made = False
        for v in self.order:
            while self.rank[v] >= 0:
                made = self.merge_one(v)
                any_made |= made
                if not made:
                    break
        self.order = sorted((v for v in self.order if self.rank[v] >= 0), key=self.rank.__getitem__)
        return any_made

    def own(self, v: int) -> int:
        """Bytes that block v frees in every order."""
        return sum(self.size[s] for s in self.used[v] if len(self.users[s]) == 1)

    def merge_one(self, v: int) -> bool:
        """Merge living block v with a neighbour if a rule allows it."""
        own = self.own(v)
        shrinks = self.alloc[v] <= own
        if shrinks:
            if not self.preds[v] and self.extra[v] <= 0:
                self.to_prologue(v)
                return True
            if len(self.preds[v]) == 1:
                (u,) = self.preds[v]
                if self.alloc[u] - self.own(u) + self.extra[v] <= self.extra[u]:
                    self.join(u, v, self.extra[u], self.rank[u])
                    return True
        if len(self.succs[v]) == 1 and self.alloc[v] >= own:
            (w,) = self.succs[v]
            steady = all(len(self.users[s]) == 1 or w in self.users[s] for s in self.used[v])
            both = self.alloc[v] - own + self.extra[w]
            if steady and (self.extra[v] <= both or (len(self.preds[w]) == 1 and self.alloc[w] <= self.own(w))):
                self.join(v, w, max(self.extra[v], both), self.rank[w])
                return True
        return False

    def to_prologue(self, v: int) -> None:
        """Run v before every block: it has no predecessor, allocates nothing and needs nothing."""
        self.prologue += self.members[v]
        self.rank[v] = -1
        for s in self.used[v]:
            self.users[s].discard(v)
            if not self.users[s]:
                self.start -= self.size[s]
        for w in self.succs[v]:
            self.preds[w].discard(v)

    def join(self, u: int, v: int, extra: int, rank: int) -> None:
        """Merge v into u, which runs just before it."""
        self.members[u] += self.members[v]
        self.extra[u], self.rank[u], self.rank[v] = extra, rank, -1
        for s in self.used[v]:
            self.users[s].discard(v)
            if s not in self.born[u]:
                self.users[s].add(u)
                self.used[u].add(s)
        for s in self.born[v]:
            self.birth[s] = u
        self.born[u] |= self.born[v]
        self.drop_short_lived((u,))
        self.succs[u].discard(v)
        self.preds[v].discard(u)
        for p in self.preds[v]:
            self.succs[p].discard(v)
            self.succs[p].add(u)
        self.preds[u] |= self.preds[v]
        for w in self.succs[v]:
            self.preds[w].discard(v)
            self.preds[w].add(u)
        self.succs[u] |= self.succs[v]

    def finish(self) -> OrderingProblem:
        """Number the living blocks by rank and put loads with the same birth and users together."""
        index = {v: i for i, v in enumerate(self.order)}
        index[-1] = -1
        bundles: dict[tuple[int, tuple[int, ...], bool], int] = {}
        living = [s for v in self.order for s in sorted(self.born[v])]
        living += [s for s, b in enumerate(self.birth) if b < 0 and self.users[s]]
        for s in living:
            key = (index[self.birth[s]], tuple(sorted(index[v] for v in self.users[s])), self.pinned[s])
            bundles[key] = bundles.get(key, 0) + self.size[s]
        born: list[list[int]] = [[] for _ in self.order]
        used: list[list[int]] = [[] for _ in self.order]
        for b, (birth, users, _) in enumerate(bundles):
            if birth >= 0:
                born[birth].append(b)
            for v in users:
                used[v].append(b)
        return OrderingProblem(
            members=tuple(self.members[v] for v in self.order),
            prologue=tuple(self.prologue),
            preds=[sorted(index[u] for u in self.preds[v]) for v in self.order],
            succs=[sorted(index[w] for w in self.succs[v]) for v in self.order],
            extra=[self.extra[v] for v in self.order],
            alloc=[self.alloc[v] for v in self.order],
            born=born,
            used=used,
            size=list(bundles.values()),
            birth=[birth for birth, _, _ in bundles],
            users=[list(users) for _, users, _ in bundles],
            pinned=[pinned for _, _, pinned in bundles],
            base=self.base,
            start=self.start,
            floor=self.floor,
        )
