"""Networks cut where one tensor is all that passes, and what each piece between two cuts costs.

A space says in `slots()` where its networks can be cut. A graph whose nodes fall into slots 0..K by their scopes is *cut* when

1. behind every slot k < K exactly one tensor `out(k)` is defined in slots 0..k (or is the graph's input) and read behind them or
   returned, and it fills its storage; no other counted storage, no written weight and no zero-byte tensor is touched on both sides;
2. every live node of slot k depends on `out(k - 1)`, where slots before k hold live nodes;
3. no node depends on a dead node of another slot.

A node of slot k < K is *dead* when `out(k)` does not depend on it, and live otherwise; nodes of slot K are live. Nodes that touch no
counted byte and need no workspace take no part: they may run at any time and hold nothing.

Let segment k be the nodes of slot k as a graph of their own, with `out(k - 1)` as its input, alive from the start to its last use in
the segment, and `out(k)` as its output, alive to the end. Write opt(k) for the least peak over its orders, live(k) for the same without
its dead nodes. For the least peak of the whole network:

- It is at most max opt(k). One best order of each segment after another is an order of the network. While a node of segment k runs,
  what is alive is what was born in the segment and is used later in it, `out(k - 1)` if it is used later in it, and `out(k)` once born:
  by (1) nothing else crosses. That is what the segment as a graph of its own holds.
- It is at least max live(k). Take any order of the network and leave out the dead nodes: nothing lives longer than before, and by (3)
  what remains is an order. In it all live nodes of slot k run before all of slot k + 1: those of slot k are ancestors of `out(k)` or its
  maker, those of slot k + 1 depend on it by (2). So its stretches are orders of the segments, each holding what the segment holds.

Where the two are equal, and mostly nothing is dead, the peak of the network is the maximum over its segments, proved. Parameters,
weights and multiply-adds are sums, since by (1) no weight is touched in two slots.

What a segment holds depends on its nodes alone: sizes follow from its own shapes, since tensors that cross fill their storage. A space
promises that equal genes of a slot make equal nodes in it, handing on the same result, so segments are solved once for each value of
those genes; `digest` lets the oracle check the promise whenever it meets a value again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..compiler.errors import SourceError
from ..compiler.graph import ITEMSIZE, WEIGHT_ROLES, Graph, Node, Storage, Tensor
from ..passes.liveness import counted_storages
from .space import Slot


@dataclass(frozen=True, slots=True)
class Segment:
    """The nodes of one slot of `graph` and what passes its ends. `nodes`: ids in traced order; `dead`: those nothing later depends on.

    `entering`, `leaving`: tensor ids, None at the ends of the network. `weights`: storage ids of the slot's weights.
    """

    graph: Graph = field(repr=False)
    slot: int
    nodes: tuple[int, ...]
    dead: frozenset[int]
    entering: int | None
    leaving: int | None
    weights: tuple[int, ...]


class Cutter:
    """Cuts graphs of the space called `name` at its `slots`; without slots the whole network is the one segment."""

    def __init__(self, name: str, slots: Sequence[Slot]):
        self.name = name
        self.slots = tuple(slots) or (Slot("", ()),)
        self._prefixes = {part: k for k, slot in enumerate(self.slots) for part in slot.scope.split("|")}
        self._places: dict[str, int] = {}

    def place(self, scope: str) -> int:
        """The slot that module path `scope` belongs to, by its longest prefix; -1 where there is none."""
        found = self._places.get(scope)
        if found is None:
            path = scope
            while path and path not in self._prefixes:
                path = path.rpartition(".")[0]
            found = self._places[scope] = self._prefixes.get(path, -1)
        return found

    def cut(self, graph: Graph) -> tuple[Segment, ...] | str:
        """The segments of `graph`, one a slot, some without nodes; or, where it is not cut there, why, in words.

        Raises `SourceError` for a node that no slot covers.
        """
        at = self._slots_of(graph)
        last = len(self.slots) - 1
        storages = graph.storages
        counted = counted_storages(graph, "planned").tolist()
        solid = [c and s.nbytes > 0 for c, s in zip(counted, storages, strict=True)]

        # where each storage is first and last touched; storages that are not counted stay in one slot
        first = [-1] * len(storages)
        final = [-1] * len(storages)
        for v, touched in enumerate(graph.touches):
            k = at[v]
            for s in touched:
                if first[s] < 0 or k < first[s]:
                    first[s] = k
                if k > final[s]:
                    final[s] = k
        for s, is_solid in enumerate(solid):
            if not is_solid and first[s] != final[s]:
                return f"{storages[s].role} {storages[s].name or s} is touched in slots {first[s]} and {final[s]}"

        crossing = self._crossing(graph, at, solid)
        if isinstance(crossing, str):
            return crossing
        for s in graph.input_storages:
            first[s] = -1
        for s in graph.pinned:
            final[s] = last + 1
        held = [0] * last
        for s, is_solid in enumerate(solid):
            if is_solid and (final[s] >= 0):
                for k in range(max(first[s], 0), min(final[s], last)):
                    held[k] += 1
        if any(n != 1 for n in held):
            k = next(k for k, n in enumerate(held) if n != 1)
            return f"{held[k]} storages are alive behind slot {k}"

        nodes: list[list[int]] = [[] for _ in self.slots]
        for v, k in enumerate(at):
            nodes[k].append(v)
        weights = self._weights(graph, first)
        if isinstance(weights, str):
            return weights
        segments = []
        seen = False
        alive = [False] * len(graph.nodes)
        for k, members in enumerate(nodes):
            entering = crossing[k - 1] if k else None
            leaving = crossing[k] if k < last else None
            heavy = [v for v in members if graph.nodes[v].workspace or any(solid[s] for s in graph.touches[v])]
            dead = self._dead(graph, at, k, members, heavy, leaving)
            reason = self._loose(graph, at, k, members, heavy, dead, entering if seen else None, alive)
            if reason:
                return reason
            for v in members:
                alive[v] = v not in dead
            seen = seen or len(heavy) > len(dead)
            segments.append(Segment(graph, k, tuple(members), dead, entering, leaving, tuple(weights[k])))
        return tuple(segments)

    def split(self, graph: Graph) -> tuple[Segment, ...]:
        """The nodes and weights of each slot, wherever they lie: good for sums, and no proof of anything else.

        Raises `SourceError` for a node that no slot covers, and for a weight that two slots touch.
        """
        at = self._slots_of(graph)
        first = [-1] * len(graph.storages)
        for v, touched in enumerate(graph.touches):
            for s in touched:
                if graph.storages[s].role in WEIGHT_ROLES and first[s] not in (-1, at[v]):
                    raise SourceError(f"parts {first[s]} and {at[v]} of space {self.name} both touch {graph.storages[s].name!r}")
                first[s] = at[v]
        weights = self._weights(graph, first)
        if isinstance(weights, str):
            raise SourceError(f"space {self.name}: {weights}")
        nodes: list[list[int]] = [[] for _ in self.slots]
        for v, k in enumerate(at):
            nodes[k].append(v)
        return tuple(Segment(graph, k, tuple(nodes[k]), frozenset(), None, None, tuple(weights[k])) for k in range(len(nodes)))

    def _slots_of(self, graph: Graph) -> list[int]:
        """The slot of each node."""
        at = [self.place(node.scope) for node in graph.nodes]
        if -1 in at:
            node = graph.nodes[at.index(-1)]
            raise SourceError(f"no slot of space {self.name} covers node {node.id} ({node.op}) in scope {node.scope!r}; slots() covers all")
        return at

    def _weights(self, graph: Graph, first: Sequence[int]) -> list[list[int]] | str:
        """Weights of each slot: those its nodes touch first, and by their names those that nothing touches."""
        weights: list[list[int]] = [[] for _ in self.slots]
        for s, storage in enumerate(graph.storages):
            if storage.role in WEIGHT_ROLES:
                k = first[s] if first[s] >= 0 else self.place(storage.name)
                if k < 0:
                    return f"{storage.role} {storage.name or s}, which nothing touches, is in no slot"
                weights[k].append(s)
        return weights

    def _crossing(self, graph: Graph, at: list[int], solid: list[bool]) -> list[int] | str:
        """The one tensor that passes behind each slot but the last, or why there is none."""
        last = len(self.slots) - 1
        tensors = graph.tensors
        reach: dict[int, int] = {}
        for node in graph.nodes:
            k = at[node.id]
            for t in node.inputs:
                if k > reach.get(t, -1):
                    reach[t] = k
        reach.update(dict.fromkeys(graph.outputs, last + 1))
        crossing = [-1] * last
        for t, k in reach.items():
            maker = graph.definer[t]
            start = at[maker] if maker >= 0 else 0
            if start >= min(k, last) or (maker < 0 and graph.storages[tensors[t].storage].role != "input"):
                continue
            if not solid[tensors[t].storage]:
                return f"tensor {t} without counted bytes passes from slot {start} to slot {k}"
            if tensors[t].offset or tensors[t].numel * ITEMSIZE[tensors[t].dtype] != graph.storages[tensors[t].storage].nbytes:
                return f"tensor {t}, which passes from slot {start} to slot {k}, is a part of its storage"
            for j in range(start, min(k, last)):
                if crossing[j] >= 0:
                    return f"tensors {crossing[j]} and {t} pass behind slot {j}"
                crossing[j] = t
        if -1 in crossing:
            return f"nothing passes behind slot {crossing.index(-1)}"
        return crossing

    @staticmethod
    def _dead(graph: Graph, at: list[int], k: int, members: list[int], heavy: list[int], leaving: int | None) -> frozenset[int]:
        """Nodes of slot `k` with counted bytes that `leaving` does not depend on."""
        if leaving is None:
            return frozenset()
        needed = {graph.definer[leaving]}
        predecessors = graph.dependencies()
        for v in reversed(members):
            if v in needed:
                needed.update(predecessors[v])
        return frozenset(v for v in heavy if v not in needed)

    def _loose(
        self, graph: Graph, at: list[int], k: int, members: list[int], heavy: list[int], dead: frozenset[int], entering: int | None,
        alive: list[bool],
    ) -> str:  # fmt: skip
        """Why the live nodes of slot `k` may run before what enters is there; "" when they may not."""
        predecessors = graph.dependencies()
        bound: set[int] = set()
        for v in members:
            for u in predecessors[v]:
                if at[u] != k and not alive[u]:
                    return f"node {v} of slot {k} depends on node {u}, from which nothing passes to slot {at[u] + 1}"
            if entering is None or entering in graph.nodes[v].inputs or any(u in bound for u in predecessors[v]):
                bound.add(v)
        for v in heavy:
            if v not in bound and v not in dead:
                return f"node {v} ({graph.nodes[v].op}) of slot {k} does not depend on what passes to it"
        return ""


def as_graph(segment: Segment) -> Graph:
    """`segment` as a graph of its own: what enters is its input, what leaves its output; ids are renumbered."""
    source = segment.graph
    tensors: list[Tensor] = []
    storages: list[Storage] = []
    tensor_at: dict[int, int] = {}
    storage_at: dict[int, int] = {}

    def storage(s: int, role: str = "") -> int:
        if s not in storage_at:
            storage_at[s] = len(storages)
            storages.append(replace(source.storages[s], id=len(storages), role=role or source.storages[s].role))
        return storage_at[s]

    def tensor(t: int, role: str = "") -> int:
        if t not in tensor_at:
            at = storage(source.tensors[t].storage, role)
            tensor_at[t] = len(tensors)
            tensors.append(replace(source.tensors[t], id=len(tensors), storage=at))
        return tensor_at[t]

    ends = source.inputs if segment.entering is None else (segment.entering,)
    inputs = tuple(tensor(t, "input") for t in ends)
    nodes = []
    for v in segment.nodes:
        node = source.nodes[v]
        ins, outs = tuple(map(tensor, node.inputs)), tuple(map(tensor, node.outputs))
        nodes.append(_renumbered(node, len(nodes), ins, outs, tuple(map(storage, node.writes))))
    outputs = tuple(map(tensor, source.outputs if segment.leaving is None else (segment.leaving,)))
    return Graph(f"{source.name}:{segment.slot}", tuple(nodes), tuple(tensors), tuple(storages), inputs, outputs)


def _renumbered(node: Node, v: int, inputs: tuple[int, ...], outputs: tuple[int, ...], writes: tuple[int, ...]) -> Node:
    return Node(v, node.op, inputs, outputs, writes, node.attrs, node.scope, node.source, node.workspace, node.phase)
