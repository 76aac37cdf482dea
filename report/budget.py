"""Over budget: how far, who holds the bytes, and what would help."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .table import short_op, short_source
from .units import format_bytes, format_shape

if TYPE_CHECKING:
    from ..passes.attribution import LiveStorage
    from .result import Analysis

OFFENDERS = 4


def explain(a: Analysis, kind: str, limit: int) -> str:
    """One paragraph on why the `peak`, `arena` or `total` of `a` is above `limit` bytes, with the offenders and the ways out."""
    need = {"peak": a.planned_peak, "arena": a.arena, "total": a.total_peak}[kind]
    lines = [f"{a.name!r} does not fit: {kind} {need:,} B, budget {limit:,} B ({format_bytes(need - limit)} over)"]
    if kind == "total":
        parts = {"weights": a.weights, "gradients and optimizer state": a.state, "peak": a.planned_peak}
        if a.inputs_policy == "caller":
            parts["inputs"] = a.inputs
        lines.append("  total = " + " + ".join(f"{name} {n:,} B" for name, n in parts.items() if n))
    if a.peak_node >= 0:
        node = a.graph.nodes[a.peak_node]
        place = f" in {node.scope}" if node.scope else ""
        line = f" ({short_source(node.source)})" if node.source else ""
        lines.append(f"  peak at {node.op}{place}{line}")
    lines += [f"  {r.nbytes:>14,} B  {_who(r)}" for r in a.at_peak[:OFFENDERS]]
    lines += [f"  {hint}" for hint in _ways_out(a, kind, limit)]
    if 4 * a.workspace > a.planned_peak:
        lines.append("  much of the peak is kernel workspace, which depends on threads: compare --threads 1")
    return "\n".join(lines)


def _who(r: LiveStorage) -> str:
    if r.role == "workspace":
        return f"workspace of {short_op(r.op)}" + (f" in {r.scope}" if r.scope else "")
    made = short_op(r.op) if r.op else f"{r.role} {r.name}".rstrip()
    return f"{made} {format_shape(r.shape)} {r.dtype}" + (f" of {r.scope}" if r.scope else "")


def _ways_out(a: Analysis, kind: str, limit: int) -> list[str]:
    """What could bring the need below `limit`, and what could not."""
    beside = a.total_peak - a.planned_peak if kind == "total" else 0
    if beside > limit:
        return [f"what stands beside the peak already takes {beside:,} B: a smaller --dtype or a smaller model is needed"]
    if a.lower_bound + beside > limit:
        return [f"no order of these ops fits (proven bound {a.lower_bound + beside:,} B): a smaller --input, --dtype or model is needed"]
    if a.order == "traced":
        return ["the traced order was kept: --order best may fit"]
    if kind == "arena" and a.planned_peak <= limit:
        return [f"the peak itself fits ({a.planned_peak:,} B); the layout loses {a.arena - a.planned_peak:,} B: try a smaller --alignment"]
    return [f"an order that fits is not ruled out (bound {a.lower_bound + beside:,} B): try a longer --time-limit"]
