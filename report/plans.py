"""A schedule and an allocation on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from .units import format_bytes

if TYPE_CHECKING:
    from ..passes.allocate import Layout
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


def layout_view(name: str, layout: Layout) -> Table:
    """Arena and bound of a layout, and how it was found."""
    proof = "no layout of these blocks is lower" if layout.optimal else f"{100 * layout.waste:.2f} % above the bound"
    state = Text("✓ proven optimal" if layout.optimal else "○ not proven optimal", style="bold green" if layout.optimal else "bold yellow")
    return _facts(
        Text(name, style="bold"),
        [
            ("arena", f"{layout.arena:,} B", format_bytes(layout.arena)),
            ("lower bound", f"{layout.lower_bound:,} B", format_bytes(layout.lower_bound)),
        ],
        [
            state.append(f"  {proof}", style=QUIET),
            Text(f"{len(layout.ids):,} blocks, {layout.method}, {layout.seconds:.3f} s", style=QUIET),
        ],
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
