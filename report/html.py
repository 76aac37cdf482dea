"""An analysis as one offline HTML file: live memory, the arena, the module tree, and what is alive at any step.

The page holds its data as JSON in a `<script type="application/json">`; `report.page` makes the frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .page import render_page
from .table import readable_source
from .units import format_bytes, format_count, format_dtype, format_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..passes.liveness import Lifetimes
    from .result import Analysis


def render_html(a: Analysis) -> str:
    """The page of `a`."""
    return render_page(
        "report.html.j2",
        ("model.js", "charts.js", "page.js", "theme.js"),
        title=a.name,
        versions=a.provenance,
        data=page_data(a),
        a=a,
        bytes=format_bytes,
        count=format_count,
        inputs=", ".join(f"{format_shape(a.graph.tensors[t].shape)} {a.graph.tensors[t].dtype}" for t in a.graph.inputs[:3]),
        bars=_bars(a),
        readable=readable_source,
        peak_node=a.graph.nodes[a.peak_node] if a.peak_node >= 0 else None,
    )


def page_data(a: Analysis) -> dict[str, Any]:
    """What the script draws: tables by column, strings by index, lifetimes per order."""
    names = _Strings()
    counted = np.flatnonzero((a.planned.birth >= 0) | (a.traced.birth >= 0))
    counted = [s for s in counted.tolist() if a.graph.storages[s].nbytes]
    first: dict[int, int] = {}
    for t in a.graph.tensors:
        first.setdefault(t.storage, t.id)
    views = []
    if a.eager is not None:
        views.append(_view("eager", "Eager", "references held as Python holds them", a.eager, counted))
    views.append(_view("traced", "Traced order", "freed after last use", a.traced, counted))
    if a.order == "best":
        views.append(_view("best", "Best order", "proven optimal" if a.optimal else "best found", a.planned, counted))
    nodes = a.graph.nodes
    return {
        "name": a.name,
        "lowerBound": a.lower_bound,
        "arena": a.arena,
        "inUse": a.order,
        "views": views,
        "strings": names.table,
        "nodes": {
            "op": [names.index(n.op) for n in nodes],
            "scope": [names.index(n.scope) for n in nodes],
            "source": [names.index(readable_source(n.source)) for n in nodes],
            "phase": [names.index(n.phase) for n in nodes],
            "workspace": [n.workspace for n in nodes],
            "workspaceAt": [int(a.plan.workspace_offsets.get(n.id, -1)) for n in nodes],
        },
        "storages": {
            "id": counted,
            "nbytes": [a.graph.storages[s].nbytes for s in counted],
            "role": [names.index(a.graph.storages[s].role) for s in counted],
            "name": [names.index(a.graph.storages[s].name) for s in counted],
            "node": [a.graph.birth[s] for s in counted],
            "shape": [names.index(_type(a, first.get(s))) for s in counted],
            "offset": [int(a.plan.offsets.get(s, -1)) for s in counted],
        },
        "modules": [
            [names.index(m.path), m.depth, names.index(m.kind), m.params, m.weights, m.macs, m.born, m.at_peak] for m in a.by_module
        ],
    }


def _view(key: str, title: str, note: str, lifetimes: Lifetimes, counted: Sequence[int]) -> dict[str, Any]:
    return {
        "key": key,
        "title": title,
        "note": note,
        "peak": lifetimes.peak,
        "peakStep": lifetimes.peak_step,
        "order": list(lifetimes.order),
        "birth": lifetimes.birth[list(counted)].tolist(),
        "death": lifetimes.death[list(counted)].tolist(),
    }


def _type(a: Analysis, tensor: int | None) -> str:
    return "" if tensor is None else f"{format_shape(a.graph.tensors[tensor].shape)} {format_dtype(a.graph.tensors[tensor].dtype)}"


def _bars(a: Analysis) -> list[tuple[str, str, int, float]]:
    """Rows of the summary: class, label, bytes, per cent of the largest."""
    rows = [("eager", "Eager today", a.eager_peak), ("traced", "Traced order", a.graph_peak)]
    if a.order == "best":
        rows.append(("best", "Best order", a.planned_peak))
    rows += [("bound", "Lower bound", a.lower_bound), ("arena", "One arena", a.arena)]
    known = [(css, label, n) for css, label, n in rows if n is not None]
    top = max(n for _, _, n in known) or 1
    return [(css, label, n, 100 * n / top) for css, label, n in known]


class _Strings:
    """Distinct strings by index, so that ten thousand nodes do not repeat their module's path."""

    def __init__(self) -> None:
        self.table: list[str] = []
        self._at: dict[str, int] = {}

    def index(self, text: str) -> int:
        if text not in self._at:
            self._at[text] = len(self.table)
            self.table.append(text)
        return self._at[text]
