"""Networks without cuts, between whose stretches several tensors pass: peaks that two bounds decide.

A space whose networks have no cuts may still run them stretch by stretch. Let stretch k be the nodes of its k-th slot, with every storage
that was born before and is used in it or later as its input, and every storage that is used later as its output. Best orders of the
stretches, one after another, are an order of the network, in which a node holds what its stretch as a graph of its own holds: so the
least peak of the network is at most the largest least peak of a stretch.

It is at least the least peak of any *window*: some of the nodes, with what they read from elsewhere made by sources that read nothing.
Take any order of the network and leave out all other nodes, each source standing right before the first node that reads it: nothing
lives longer than before. A window of two neighbours sees what a stretch alone does not, that a tensor must outlive the one for the other.

Both depend on the genes of the slots they span. Where they meet, the peak is proved without any order of the whole network; where they do
not, the scheduler answers. In the DARTS space they meet when the slots hand over early: slot k also holds the layers of cell k + 1 that
read cell k - 1, so that a cell's four times wider output need not be kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..compiler.errors import SourceError
from ..compiler.graph import Graph, GraphBuilder
from ..passes.liveness import counted_storages
from ..passes.schedule import schedule
from .segments import Cutter, Segment
from .space import Slot


def stretches(cutter: Cutter, graph: Graph) -> tuple[tuple[Segment, ...], tuple[Graph, ...]]:
    """Nodes and weights of each slot of `graph`, and each stretch as a graph of its own.

    Raises `SourceError` where a node depends on one of a later slot.
    """
    parts = cutter.split(graph)
    at = [0] * len(graph.nodes)
    for part in parts:
        for v in part.nodes:
            at[v] = part.slot
    for v, before in enumerate(graph.dependencies()):
        if any(at[u] > at[v] for u in before):
            raise SourceError(f"node {v} of slot {at[v]} of space {cutter.name} depends on a later slot; stretches run one after another")
    counted = counted_storages(graph, "planned").tolist()
    last = {s: max(at[v] for v in users) for s, users in _users(graph).items() if counted[s]}
    last.update(dict.fromkeys(graph.pinned, len(parts)))
    window_of: dict[int, int] = {}
    for t in graph.tensors:
        window_of.setdefault(t.storage, t.id)
    first = {s: at[graph.birth[s]] if graph.birth[s] >= 0 else -1 for s in last}
    made = []
    for k, part in enumerate(parts):
        passing = [window_of[s] for s in last if first[s] < k <= last[s]] if k else []
        inputs = passing if k else [t for t in graph.inputs if graph.tensors[t].storage in last]
        outputs = [window_of[s] for s in last if first[s] <= k < last[s]]
        made.append(induced(graph, part.nodes, inputs=inputs, outputs=outputs))
    return parts, tuple(made)


def window_bound(graph: Graph, nodes: Iterable[int], *, time_limit: float) -> int:
    """Bytes that no order of any network with these `nodes` of `graph` undercuts."""
    return schedule(induced(graph, sorted(nodes)), time_limit=time_limit).lower_bound


def induced(graph: Graph, nodes: Sequence[int], *, inputs: Sequence[int] = (), outputs: Sequence[int] = ()) -> Graph:
    """`nodes` of `graph`, ascending, as a graph of their own with tensors `inputs` and `outputs`; anything else that they read and other
    nodes make comes from sources, nodes that read nothing, each standing before its first reader.
    """
    b = GraphBuilder(graph.name)
    storages: dict[int, int] = {}
    tensors: dict[int, int] = {}
    kept = set(nodes)

    def storage(s: int, role: str | None = None) -> int:
        if s not in storages:
            storages[s] = b.storage(graph.storages[s].nbytes, role or graph.storages[s].role)
        return storages[s]

    def tensor(t: int, role: str | None = None) -> int:
        if t not in tensors:
            window = graph.tensors[t]
            at = storage(window.storage, role)
            tensors[t] = b.tensor(window.shape, window.dtype, at, offset=window.offset, strides=window.strides)
        return tensors[t]

    b.inputs = [tensor(t, "input") for t in inputs]
    for v in nodes:
        node = graph.nodes[v]
        for t in node.inputs:
            outside = graph.definer[t] >= 0 and graph.definer[t] not in kept
            if outside and t not in tensors and graph.tensors[t].storage not in storages:
                b.node("source", (), [tensor(t)])
        ins, outs, writes = map(tensor, node.inputs), map(tensor, node.outputs), map(storage, node.writes)
        b.node(node.op, tuple(ins), tuple(outs), writes=tuple(writes), workspace=node.workspace, scope=node.scope)
    b.outputs = [tensor(t) for t in outputs]
    return b.build(check=False)


def whole_segment(graph: Graph) -> Segment:
    """All of `graph` as one segment."""
    return Segment(graph, 0, tuple(range(len(graph.nodes))), frozenset(), None, None, ())


def same_genes(slots: Sequence[Slot], k: int) -> bool:
    """Whether slot `k` and the next follow the same genes, so that a window over both does too."""
    return k + 1 < len(slots) and slots[k].genes == slots[k + 1].genes


def _users(graph: Graph) -> dict[int, list[int]]:
    users: dict[int, list[int]] = {}
    for v, touched in enumerate(graph.touches):
        for s in touched:
            users.setdefault(s, []).append(v)
    return users
