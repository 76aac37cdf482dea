"""An analysis in a notebook: a summary and live memory as one static inline SVG, no script."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from ..compiler.foreign_text import shown
from ..passes.attribution import profile_by_role
from .table import short_op, short_source
from .units import format_bytes, format_count

if TYPE_CHECKING:
    from ..passes.liveness import Lifetimes
    from .result import Analysis

ROLE_COLOR = {
    "activation": "#4269d0",
    "input": "#6cc5b0",
    "gradient": "#a463f2",
    "optimizer_state": "#efb118",
    "workspace": "#ff725c",
}
OTHER_COLOR = "#9498a0"
_FACT = "white-space:nowrap;margin-right:1.4em"


def escape(text: str) -> str:
    """Foreign text as HTML."""
    return html.escape(shown(text))


def notebook_html(a: Analysis) -> str:
    """A `<div>` of inline-styled HTML; every name in it is escaped."""
    proof = "proven optimal" if a.optimal else f"not proven optimal, lower bound {a.lower_bound:,} B"
    facts = [
        ("peak", f"{format_bytes(a.planned_peak)} ({a.planned_peak:,} B)"),
        ("", proof),
        ("traced order", format_bytes(a.graph_peak)),
        *([("eager", format_bytes(a.eager_peak))] if a.eager_peak is not None else []),
        ("arena", format_bytes(a.arena)),
        ("weights", format_bytes(a.weights)),
        ("in all", format_bytes(a.total_peak)),
        ("parameters", format_count(a.params)),
        ("MACs", format_count(a.macs)),
    ]
    cells = " ".join(f'<span style="{_FACT}"><span style="opacity:.6">{escape(k)}</span> <b>{escape(v)}</b></span>' for k, v in facts)
    where = ""
    if a.peak_node >= 0:
        node = a.graph.nodes[a.peak_node]
        parts = [f"peak at {short_op(node.op)}", node.scope and f"in {node.scope}", short_source(node.source)]
        where = f'<div style="opacity:.7;margin:.3em 0">{escape(" ".join(filter(None, parts)))}</div>'
    heading = f'<div style="font-weight:600;font-size:15px">{escape(a.name)}</div>'
    return f'<div style="font:13px/1.6 system-ui,sans-serif;max-width:760px">{heading}<div>{cells}</div>{where}{live_svg(a.planned)}</div>'


def live_svg(lifetimes: Lifetimes, width: int = 740, height: int = 130) -> str:
    """Live bytes by role over the steps as a stacked SVG; each column is the step of its slice that holds most."""
    n = len(lifetimes.order)
    if n == 0 or lifetimes.peak == 0:
        return ""
    columns = min(n, width // 2)
    live = lifetimes.live.tolist()
    slices = [range(n * i // columns, max(n * i // columns + 1, n * (i + 1) // columns)) for i in range(columns)]
    steps = [max(part, key=live.__getitem__) for part in slices]
    scale, dx = (height - 4) / lifetimes.peak, width / columns
    base = [0.0] * columns
    shapes = []
    for role, values in profile_by_role(lifetimes).items():
        top = [b + float(values[s]) for b, s in zip(base, steps, strict=True)]
        path = _outline(base, top, dx, scale, height)
        shapes.append(f'<path d="{path}" fill="{ROLE_COLOR.get(role, OTHER_COLOR)}"><title>{escape(role)}</title></path>')
        base = top
    at = steps.index(lifetimes.peak_step) if lifetimes.peak_step in steps else 0
    marker = f'<path d="M{(at + 0.5) * dx:.1f} 0V{height}" stroke="#d33" stroke-dasharray="3 2"/>'
    return (
        f'<svg viewBox="0 0 {width} {height}" width="100%" role="img" aria-label="live memory over steps">{"".join(shapes)}{marker}</svg>'
    )


def _outline(base: list[float], top: list[float], dx: float, scale: float, height: int) -> str:
    """A closed path between two step functions."""

    def y(value: float) -> str:
        return f"{height - value * scale:.1f}"

    forth = "".join(f"L{i * dx:.1f} {y(v)}L{(i + 1) * dx:.1f} {y(v)}" for i, v in enumerate(top))
    back = "".join(f"L{(i + 1) * dx:.1f} {y(v)}L{i * dx:.1f} {y(v)}" for i, v in reversed(list(enumerate(base))))
    return "M" + forth[1:] + back + "Z"
