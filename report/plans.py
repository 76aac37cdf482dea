"""A schedule and an allocation on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from .units import format_bytes

if TYPE_CHECKING:
    from .result import Analysis

QUIET = "bright_black"


def schedule_view(a: Analysis) -> Table:
    """Peak before and after, the bound, and how both were found."""
    s = a.schedule
    state = Text("✓ proven optimal", style="bold green") if s.optimal else Text("○ not proven optimal", style="bold yellow")
    return _facts(
        Text(a.name, style="bold"),
        [
            ("traced order", f"{a.graph_peak:,} B", format_bytes(a.graph_peak)),
            ("best order", f"{s.peak:,} B", format_bytes(s.peak)),
            ("lower bound", f"{s.lower_bound:,} B", format_bytes(s.lower_bound)),
        ],
        [state, Text(f"{len(s.order):,} ops, {s.method}, {s.seconds:.3f} s", style=QUIET)],
    )


def _facts(title: Text, rows: list[tuple[str, str, str]], below: list[Text]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True, style="bold")
    table.add_column(justify="right", no_wrap=True, style=QUIET)
    for label, exact, human in rows:
        table.add_row(label, exact, human)
    outer = Table.grid()
    outer.add_row(title)
    outer.add_row(table)
    for line in below:
        outer.add_row(line)
    return outer
