"""Independent checkers of what passes return: slow where that is clearer, obvious, and sharing no code with the passes.

`verify_graph` checks the rules of `compiler.graph`, `verify_order` that an order computes what the traced order computes,
`verify_schedule` that a schedule needs the bytes it says, `verify_plan` and `verify_layout` (from `verify_plan.py`) that
nothing alive overlaps. All return None or raise with the first offender's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..compiler.errors import GraphError, OrderError
from ..compiler.graph import Graph
from .verify_plan import verify_layout, verify_plan

__all__ = ["verify_graph", "verify_layout", "verify_order", "verify_plan", "verify_schedule"]

EXISTS_BEFORE = {"input", "parameter", "buffer", "constant"}


class ScheduleLike(Protocol):
    """What `verify_schedule` reads of a schedule."""

    @property
    def order(self) -> tuple[int, ...]: ...
    @property
    def peak(self) -> int: ...
    @property
    def lower_bound(self) -> int: ...
    @property
    def optimal(self) -> bool: ...
    @property
    def inputs(self) -> str: ...


def verify_graph(graph: Graph) -> None:
    """Raise `GraphError` unless running the nodes as traced finds every tensor defined once, in time, on bytes that exist."""
    exists = {s.id for s in graph.storages if s.role in EXISTS_BEFORE or s.role in ("gradient", "optimizer_state")}
    made = {t for node in graph.nodes for t in node.outputs}
    defined = {t.id for t in graph.tensors} - made
    for node in graph.nodes:
        where = f"node {node.id} ({node.op}) of graph {graph.name!r}"
        for t in node.inputs:
            if t not in defined:
                raise GraphError(f"{where} reads tensor {t}, which nothing has defined yet")
            if graph.tensors[t].storage not in exists:
                raise GraphError(f"{where} reads tensor {t} on storage {graph.tensors[t].storage}, which does not exist yet")
        for s in node.writes:
            if s not in exists:
                raise GraphError(f"{where} writes storage {s}, which does not exist yet")
        for t in node.outputs:
            if t in defined:
                raise GraphError(f"{where} defines tensor {t} a second time")
            defined.add(t)
            exists.add(graph.tensors[t].storage)
    for t in (*graph.inputs, *graph.outputs):
        if t not in defined:
            raise GraphError(f"graph {graph.name!r} has tensor {t} among its inputs or outputs; it does not exist")


def verify_order(graph: Graph, order: Sequence[int]) -> None:
    """Raise `OrderError` unless every node of `graph` runs once in `order` and sees the very bytes it sees as traced.

    Runs both orders, keeping for each storage the node that wrote it last: every node must find the same last writers on
    what it reads and writes, and the same ones must remain at the end. O(nodes + uses).
    """
    order = list(order)
    if sorted(order) != list(range(len(graph.nodes))):
        raise OrderError(f"order does not run each of the {len(graph.nodes)} nodes of graph {graph.name!r} exactly once")
    expected, at_end = _writers_seen(graph, range(len(graph.nodes)))
    seen, left = _writers_seen(graph, order)
    for v in order:
        if seen[v] != expected[v]:
            node = graph.nodes[v]
            raise OrderError(
                f"node {v} ({node.op}) of graph {graph.name!r} sees other bytes than as traced: "
                f"{{storage: last writer}} is {seen[v]}, as traced {expected[v]}"
            )
    if left != at_end:
        raise OrderError(f"order leaves other last writers on the storages of graph {graph.name!r} than the traced order does")


def _writers_seen(graph: Graph, order: Sequence[int]) -> tuple[dict[int, dict[int, int]], dict[int, int]]:
    """Per node, the last writer of each storage whose bytes it reads or writes; and the last writers at the end."""
    writer = {s.id: -1 for s in graph.storages}
    pending = {t for node in graph.nodes for t in node.outputs}
    exists = set(writer) - _born_inside(graph)
    seen: dict[int, dict[int, int]] = {}
    for v in order:
        node = graph.nodes[v]
        read = {graph.tensors[t].storage for t in node.inputs}
        shown = {graph.tensors[t].storage for t in node.outputs}
        for t in node.inputs:
            if t in pending:
                raise OrderError(f"node {v} ({node.op}) of graph {graph.name!r} runs before its input tensor {t} is defined")
        for s in read | set(node.writes):
            if s not in exists:
                raise OrderError(f"node {v} ({node.op}) of graph {graph.name!r} runs before storage {s} is born")
        only_windows = bool(node.inputs) and bool(node.outputs) and not node.writes and shown <= read
        seen[v] = {} if only_windows else {s: writer[s] for s in read | set(node.writes)}
        for s in set(node.writes) | (shown - exists):
            writer[s] = v
        exists |= shown
        pending.difference_update(node.outputs)
    return seen, writer


def _born_inside(graph: Graph) -> set[int]:
    """Storages whose bytes do not exist before the first node."""
    outside = {s.id for s in graph.storages if s.role in EXISTS_BEFORE}
    inside: set[int] = set()
    for node in graph.nodes:
        outside |= ({graph.tensors[t].storage for t in node.inputs} | set(node.writes)) - inside
        inside |= {graph.tensors[t].storage for t in node.outputs} - outside
    return inside


def verify_schedule(graph: Graph, schedule: ScheduleLike) -> None:
    """Raise `OrderError` unless `schedule` holds a true order with the peak it says and a bound that does not exceed it."""
    verify_order(graph, schedule.order)
    peak = _peak(graph, schedule.order, schedule.inputs)
    if schedule.peak != peak:
        raise OrderError(f"schedule of graph {graph.name!r} says a peak of {schedule.peak} bytes; its order needs {peak}")
    if not 0 <= schedule.lower_bound <= schedule.peak:
        raise OrderError(f"schedule of graph {graph.name!r} has lower bound {schedule.lower_bound} and peak {schedule.peak} bytes")
    if schedule.optimal != (schedule.lower_bound == schedule.peak):
        raise OrderError(
            f"schedule of graph {graph.name!r} says optimal={schedule.optimal} with bound {schedule.lower_bound} and peak {schedule.peak}"
        )


def _peak(graph: Graph, order: Sequence[int], inputs: str) -> int:
    """Bytes a run that allocates at birth and frees after the last use holds at most."""
    born_inside = _born_inside(graph)
    last_use: dict[int, int] = {}
    touched = []
    for step, v in enumerate(order):
        node = graph.nodes[v]
        touched.append({graph.tensors[t].storage for t in (*node.inputs, *node.outputs)} | set(node.writes))
        last_use.update(dict.fromkeys(touched[-1], step))
    last_use.update({graph.tensors[t].storage: len(order) for t in graph.outputs})
    alive: set[int] = set()
    if inputs == "planned":
        alive = {s.id for s in graph.storages if s.role == "input" and s.id in last_use}
    held = sum(graph.storages[s].nbytes for s in alive)
    peak = 0
    for step, v in enumerate(order):
        for s in (touched[step] & born_inside) - alive:
            alive.add(s)
            held += graph.storages[s].nbytes
        peak = max(peak, held + graph.nodes[v].workspace)
        for s in [s for s in touched[step] & alive if last_use[s] == step]:
            alive.discard(s)
            held -= graph.storages[s].nbytes
    return peak
