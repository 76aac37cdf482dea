"""The cost database and its predictors as tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..targets.database import OperatorRow, Row
from ..targets.predictors import OperatorPredictor, Predictor
from ..targets.predictors.fit import Accuracy
from .units import format_count

QUIET = "bright_black"


def summary_table(known: Sequence[tuple[str, str, int, int]], path: str) -> RenderableType:
    """One line a target and toolchain: how many operators and networks are known."""
    table = _table("target", "toolchain", right=("operators", "networks"))
    for target, toolchain, operators, networks in known:
        table.add_row(target, toolchain, f"{operators:,}", f"{networks:,}")
    return Group(table, Text(path, style=QUIET))


def rows_table(rows: Sequence[Row]) -> Table:
    """One line a measurement: what, where, how much, how steady, when."""
    table = _table("signature", "target", right=("cost", "spread", "workspace", "measured"))
    for row in rows:
        cost = format_count(row.value) if row.unit == "instructions" else format_seconds(row.value)
        spread = "" if row.spread is None else f"{100 * row.spread:.1f} %"
        workspace = f"{row.bytes:,} B" if isinstance(row, OperatorRow) else "network"
        day = datetime.fromtimestamp(row.created, timezone.utc).strftime("%Y-%m-%d")
        table.add_row(row.signature, row.target, cost, spread, workspace, day)
    return table


def predictor_view(predictor: Predictor | OperatorPredictor) -> RenderableType:
    """The models tried, best first, and what the chosen one may be off by."""
    table = _table("model", right=("measured", "error", "90 % below", "Spearman"))
    if isinstance(predictor, Predictor):
        for i, (name, accuracy) in enumerate(predictor.tried):
            table.add_row(Text(name, style="bold green" if i == 0 else ""), *_accuracy(accuracy))
        return Group(table, Text("on networks left out, in five folds; the first is kept", style=QUIET))
    table.add_row(f"table of {len(predictor.table):,} operators", f"{len(predictor.table):,}", "as measured", "", "")
    for kind, model in predictor.models.items():
        table.add_row(f"{kind or 'all kinds'}: {model.fitted.model.name}", *_accuracy(model.accuracy))
    if predictor.sums:
        table.add_row("sums of measured operators against whole networks", *_accuracy(predictor.sums))
    if predictor.unseen:
        table.add_row("sums for networks left out with their own operators", *_accuracy(predictor.unseen))
        return table
    missing = "fewer than two networks have operators of their own" if predictor.sums else "no network was measured whole"
    return Group(table, Text(f"{missing}: the error of a sum with predicted operators is not known", style=QUIET))


def format_seconds(seconds: float) -> str:
    """`1.52 ms`, `38.1 µs`, `2.40 s`."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _accuracy(accuracy: Accuracy) -> tuple[str, str, str, str]:
    return f"{accuracy.networks:,}", f"{accuracy.error:.2%}", f"{accuracy.error_90:.2%}", f"{accuracy.spearman:.4f}"


def _table(*left: str, right: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=QUIET, pad_edge=False)
    for i, name in enumerate(left):
        table.add_column(name, style="bold" if i == 0 else "", overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table
