"""What a segment costs: its work, the least memory of its orders, and keys by which equal segments are known as equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import numpy as np

from ..compiler.ops import node_work
from ..passes.attribution import parameter_elements
from ..passes.liveness import counted_storages, liveness
from ..passes.schedule import schedule
from .segments import Segment, as_graph

UNKNOWN = -(1 << 56)


@dataclass(frozen=True, slots=True)
class Work:
    """What a segment adds to a network: elements of parameters, multiply-adds, bytes of weights. `unknown`: an op of unknown work, if
    there is one; `macs` is then `UNKNOWN`, so far below zero that the sum over a network is too.
    """

    params: int
    macs: int
    weight_bytes: int
    unknown: str = ""


@dataclass(frozen=True, eq=False)
class Solved:
    """Memory of a segment. `peak`: bytes an order attains; `bound`: bytes no order undercuts, of its live nodes alone.

    `blocks`: int64 (n, 3), the half-open lifetime and the bytes of everything alive under that order, workspaces too; `ends`: rows of
    the tensors that enter and leave, -1 where there is none.
    """

    peak: int
    bound: int
    blocks: np.ndarray = field(repr=False)
    ends: tuple[int, int] = (-1, -1)


def work(segment: Segment, elements: Mapping[int, int] | None = None) -> Work:
    """Parameters, multiply-adds and weights of a segment. `elements`: `parameter_elements` of its graph, if they are there already."""
    graph = segment.graph
    elements = parameter_elements(graph) if elements is None else elements
    macs, unknown = 0, ""
    for v in segment.nodes:
        done = node_work(graph, graph.nodes[v])
        if done is None:
            unknown = graph.nodes[v].op
        else:
            macs += done.macs
    params = sum(elements[s] for s in segment.weights if s in elements)
    held = sum(graph.storages[s].nbytes for s in segment.weights)
    return Work(params, UNKNOWN if unknown else macs, held, unknown)


def solve(segment: Segment, *, time_limit: float = 10.0) -> Solved:
    """The least memory that orders of `segment` need, by `passes.schedule`, which checks its result; milliseconds mostly."""
    if not segment.nodes:
        return Solved(0, 0, np.zeros((0, 3), np.int64))
    whole = as_graph(segment)
    found = schedule(whole, time_limit=time_limit)
    bound = found.lower_bound
    if segment.dead:
        bound = schedule(as_graph(replace(segment, nodes=tuple(v for v in segment.nodes if v not in segment.dead))), time_limit=time_limit)
        bound = min(bound.lower_bound, found.peak)
    ranges = liveness(whole, found.order)
    alive = np.flatnonzero(ranges.death > ranges.birth)
    sizes = np.array([s.nbytes for s in whole.storages], np.int64)[alive]
    blocks = [np.stack([ranges.birth[alive], ranges.death[alive], sizes], 1)]
    for step, v in enumerate(found.order):
        if whole.nodes[v].workspace:
            blocks.append(np.array([[step, step + 1, whole.nodes[v].workspace]], np.int64))
    row = {s: i for i, s in enumerate(alive.tolist())}
    enters = -1 if segment.entering is None else row.get(whole.tensors[whole.inputs[0]].storage, -1)
    leaves = -1 if segment.leaving is None else row.get(whole.tensors[whole.outputs[0]].storage, -1)
    return Solved(found.peak, bound, np.concatenate(blocks), (enters, leaves))


def largest_need(segment: Segment) -> int:
    """Bytes that one node of `segment` reads, makes and works in: no order of any network with that node needs less."""
    graph = segment.graph
    counted = counted_storages(graph, "planned").tolist()
    needs = (sum(graph.storages[s].nbytes for s in graph.touches[v] if counted[s]) + graph.nodes[v].workspace for v in segment.nodes)
    return max(needs, default=0)


def planning_key(segment: Segment) -> bytes:
    """16 bytes that are equal for segments whose orders need equal memory: counted bytes, who touches them, and dependencies."""
    graph = segment.graph
    storages, nodes = graph.storages, graph.nodes
    predecessors, birth = graph.dependencies(), graph.birth
    local: dict[int, int] = {}
    at: dict[int, int] = {}
    parts: list[object] = []
    if segment.entering is not None:
        s = graph.tensors[segment.entering].storage
        local[s] = 0
        parts.append(storages[s].nbytes)
    for v in segment.nodes:
        at[v] = len(at)
        touched: list[object] = []
        windows = (*nodes[v].inputs, *nodes[v].outputs)
        for s in dict.fromkeys([*(graph.tensors[t].storage for t in windows), *nodes[v].writes]):
            if s not in local:
                if (birth[s] < 0 and storages[s].role != "input") or not storages[s].nbytes:
                    continue
                local[s] = len(local)
                touched.append((local[s], storages[s].nbytes, birth[s] == v))
            else:
                touched.append(local[s])
        parts.append((nodes[v].workspace, v in segment.dead, tuple(touched), tuple(at[u] for u in predecessors[v] if u in at)))
    ends = graph.outputs if segment.leaving is None else (segment.leaving,)
    parts.append((segment.entering is not None, tuple(local.get(graph.tensors[t].storage, -1) for t in ends)))
    return blake2b(repr(parts).encode(), digest_size=16).digest()


def node_key(segment: Segment) -> bytes:
    """16 bytes that are equal for segments of equal operators on tensors of equal shapes, whatever stands between them."""
    graph = segment.graph
    nodes = (graph.nodes[v] for v in segment.nodes)
    parts = [(node.op, node.workspace, [graph.tensors[t].shape for t in (*node.inputs, *node.outputs)]) for node in nodes]
    return blake2b(repr(parts).encode(), digest_size=16).digest()
