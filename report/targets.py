"""Targets as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ..targets.spec import Target
from .units import format_bytes

QUIET = "bright_black"


def targets_table(targets: Sequence[Target]) -> Table:
    """One line a target: name, core, clock, memories, what emulates it, what it is."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=QUIET, pad_edge=False)
    table.add_column("target", style="bold", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("core", no_wrap=True)
    for name in ("clock", "SRAM", "flash"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what it is", style=QUIET)
    for t in targets:
        memories = ("" if size is None else format_bytes(size) for size in (t.sram, t.flash))
        clock = "" if t.clock_hz is None else f"{t.clock_hz / 1e6:,.0f} MHz"
        table.add_row(t.name, t.kind, t.core, clock, *memories, t.title)
    return table
