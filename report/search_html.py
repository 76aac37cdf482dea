"""What a search found as one offline HTML file: every network that was tried, the front, and the memory of each of its networks over time.

Any two metrics span the picture. Live memory is that of the planned order, step by step, drawn for the network that is chosen by a click
or in the table; limits are lines in both.
"""

from __future__ import annotations

import math
from typing import Any

from ..passes.liveness import liveness
from ..passes.schedule import schedule
from ..search.metrics import METRICS
from ..search.result import Candidate, SearchResult
from .page import render_page
from .search import format_metric, metrics_of

TIMELINES = 60


def render_search(result: SearchResult, *, timelines: int = TIMELINES) -> str:
    """The page of `result`; the first `timelines` networks of the front come with their memory over time."""
    best, first = result.best, result.objectives[0].metric if result.objectives else ""
    return render_page(
        "search.html.j2",
        ("search.js", "theme.js"),
        title=f"{result.engine} on {result.space.name}",
        versions=result.versions,
        data=_data(result, timelines),
        result=result,
        best=best,
        figure=format_metric(first, best.values[first]) if best is not None and first in best.values else "nothing found",
        first=METRICS[first].title if first else "",
        metrics=metrics_of(result),
        titles={name: METRICS[name].title for name in METRICS},
        shown=format_metric,
        cost=best.measured if best is not None else None,
    )


def _data(result: SearchResult, timelines: int) -> dict[str, Any]:
    """What the script draws: one column of numbers for each metric, the front, and live memory by step."""
    names = metrics_of(result)
    front = {c.index: i for i, c in enumerate(result.front)}
    x, y = _axes(result, names)
    return {
        "metrics": [{"name": n, "title": METRICS[n].title, "unit": METRICS[n].unit, "maximize": METRICS[n].maximize} for n in names],
        "x": x,
        "y": y,
        "limits": {name: limit for name, limit in result.limits.items() if name in names},
        "index": [c.index for c in result.trials],
        "text": [c.text for c in result.trials],
        "origin": [c.origin for c in result.trials],
        "feasible": [int(c.feasible) for c in result.trials],
        "front": [front.get(c.index, -1) for c in result.trials],
        "values": [[_finite(c.values.get(name)) for c in result.trials] for name in names],
        "timelines": [_timeline(result, c) for c in result.front[:timelines]],
    }


def _finite(value: float | None) -> float | None:
    """A number that JSON can say: nothing is drawn for a score of -inf."""
    return value if value is not None and math.isfinite(value) else None


def _axes(result: SearchResult, names: list[str]) -> tuple[str, str]:
    """The metric across and the one upwards that the page begins with: what is paid, and the first objective."""
    first = result.objectives[0].metric if result.objectives else names[0]
    paid = (
        [o.metric for o in result.objectives[1:]] + [n for n in result.limits if n in names] + [n for n in ("peak", "macs") if n in names]
    )
    return next((n for n in paid if n != first), first), first


def _timeline(result: SearchResult, candidate: Candidate) -> dict[str, Any]:
    """Live bytes at each step of the planned order, and the modules and ops that run there."""
    graph = result.space.graph(candidate.arch)
    order = schedule(graph, inputs="planned").order
    lifetimes = liveness(graph, order, inputs="planned")
    nodes = [graph.nodes[v] for v in order]
    return {
        "live": [int(n) for n in lifetimes.live],
        "ops": [f"{node.scope or graph.name}: {node.op.removeprefix('aten.').removesuffix('.default')}" for node in nodes],
    }
