"""An analysis as a Chrome trace (JSON), for ui.perfetto.dev and chrome://tracing: one step of the order lasts one microsecond.

Each order is a process with live bytes by role as a counter track, and modules and their operators as nested slices. Format:
"Trace Event Format", events of phase M (metadata), C (counter) and X (complete).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..passes.attribution import profile_by_role

if TYPE_CHECKING:
    from ..compiler.graph import Graph, Node
    from ..passes.liveness import Lifetimes
    from .result import Analysis


def chrome_trace(a: Analysis) -> dict[str, Any]:
    """The trace as JSON values."""
    tracks = [(f"{a.order} order", a.planned)]
    if tuple(a.planned.order) != tuple(a.traced.order):
        tracks.append(("traced order", a.traced))
    if a.eager is not None:
        tracks.append(("eager (references held)", a.eager))
    events: list[dict[str, Any]] = []
    for pid, (title, lifetimes) in enumerate(tracks, start=1):
        events += _track(pid, title, a.graph, lifetimes)
    about = {"model": a.name, "planned_peak": a.planned_peak, "lower_bound": a.lower_bound, **dict(a.provenance)}
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": {k: str(v) for k, v in about.items()}}


def _track(pid: int, title: str, graph: Graph, lifetimes: Lifetimes) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "pid": pid, "tid": 0, "name": "process_name", "args": {"name": title}}
    yield {"ph": "M", "pid": pid, "tid": 0, "name": "process_sort_index", "args": {"sort_index": pid}}
    yield {"ph": "M", "pid": pid, "tid": 1, "name": "thread_name", "args": {"name": "operators"}}
    profile = {role: values.tolist() for role, values in profile_by_role(lifetimes).items()}
    before: dict[str, int] | None = None
    for step in range(len(lifetimes.order)):
        now = {role: values[step] for role, values in profile.items()}
        if now != before:
            yield {"ph": "C", "pid": pid, "tid": 0, "name": "live bytes", "ts": step, "args": now}
        before = now
    if before:
        yield {"ph": "C", "pid": pid, "tid": 0, "name": "live bytes", "ts": len(lifetimes.order), "args": dict.fromkeys(before, 0)}
    yield from _slices(pid, graph, lifetimes)


def _slices(pid: int, graph: Graph, lifetimes: Lifetimes) -> Iterator[dict[str, Any]]:
    """Module slices around operator slices; a module that is left and entered again has a slice each time."""
    open_modules: list[tuple[str, int]] = []
    live = lifetimes.live.tolist()
    for step, v in enumerate([*lifetimes.order, -1]):
        path = graph.nodes[v].scope.split(".") if v >= 0 and graph.nodes[v].scope else []
        kept = 0
        while kept < min(len(path), len(open_modules)) and open_modules[kept][0] == path[kept]:
            kept += 1
        while len(open_modules) > kept:
            scope = ".".join(name for name, _ in open_modules)
            name, since = open_modules.pop()
            yield _slice(pid, name, "module", since, step - since, {"module": scope})
        open_modules += [(name, step) for name in path[kept:]]
        if v >= 0:
            yield _slice(pid, graph.nodes[v].op, "op", step, 1, _about(graph, graph.nodes[v], live[step]))


def _slice(pid: int, name: str, category: str, ts: int, duration: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "X", "pid": pid, "tid": 1, "name": name, "cat": category, "ts": ts, "dur": duration, "args": args}


def _about(graph: Graph, node: Node, live: int) -> dict[str, Any]:
    shapes = [f"{list(graph.tensors[t].shape)} {graph.tensors[t].dtype}" for t in node.outputs]
    about = {"node": node.id, "live_bytes": live, "workspace": node.workspace, "outputs": ", ".join(shapes), "source": node.source}
    return {k: v for k, v in about.items() if v != ""}
