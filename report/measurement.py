"""A measured cost in the terminal: the verdict, what it took, and where the instructions went."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..targets.cost import Cost

QUIET = "bright_black"
SHOWN = 12


def measurement_view(cost: Cost, *, shown: int = SHOWN) -> RenderableType:
    """Totals, memories and the `shown` dearest operators of a cost counted in instructions."""
    total = cost.instructions or 0
    head = Text.assemble((f"{cost.name} on {cost.target}", "bold"), (f"  {cost.kind}", QUIET))
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    facts.add_column(style=QUIET, no_wrap=True)
    facts.add_column()
    facts.add_row("instructions", f"{total:,}")
    facts.add_row("arena", f"{cost.arena or 0:,} B, as planned" if cost.arena == cost.plan else f"{cost.arena or 0:,} B")
    facts.add_row("stack", f"{cost.stack or 0:,} B at most")
    facts.add_row("flash", f"{cost.flash or 0:,} B: " + ", ".join(f"{part} {nbytes:,}" for part, nbytes in cost.sections.items()))
    if cost.max_error is not None:
        facts.add_row("outputs", f"within {cost.max_error:.1e} of the framework's, relative to the largest")
    for reason in cost.reasons:
        facts.add_row("verdict", Text(reason, style="green" if cost.fits else ""))
    facts.add_row("tools", ", ".join(f"{tool} {number}" for tool, number in cost.versions.items()))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=QUIET, pad_edge=False)
    table.add_column("operator", no_wrap=True, overflow="ellipsis")
    for column in ("instructions", "share", "workspace"):
        table.add_column(column, justify="right", no_wrap=True)
    for op in cost.slowest(shown):
        n = op.instructions or 0
        table.add_row(op.name, f"{n:,}", f"{n / total:.1%}" if total else "", f"{op.bytes:,} B")
    rest = len(cost.per_op) - shown
    more = [Text(f"and {rest} more operators", style=QUIET)] if rest > 0 else []
    return Group(head, facts, Text(""), table, *more)
