"""A cost in the terminal: the verdict, what it took, and where the instructions or the time went."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..targets.cost import Cost

QUIET = "bright_black"
SHOWN = 12


def measurement_view(cost: Cost, *, shown: int = SHOWN) -> RenderableType:
    """Totals, memories and the `shown` dearest operators of a cost in instructions or seconds. What is not known has no row."""
    counted = cost.instructions is not None
    total = sum((op.instructions if counted else op.seconds) or 0 for op in cost.per_op)
    head = Text.assemble((f"{cost.name} on {cost.target}", "bold"), (f"  {cost.kind}", QUIET))
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    facts.add_column(style=QUIET, no_wrap=True)
    facts.add_column()
    if counted:
        facts.add_row("instructions", f"{cost.instructions or 0:,}{_doubt(cost)}")
    elif cost.latency is not None:
        facts.add_row("latency", ("at least " if cost.kind == "bound" else "") + _seconds(cost.latency) + _doubt(cost))
    if cost.cycles is not None:
        facts.add_row("cycles", f"about {cost.cycles:,}: an estimate from the target's table, not measured")
    if cost.estimated_seconds is not None:
        facts.add_row("time", f"about {_seconds(cost.estimated_seconds)} at the target's clock: an estimate from those cycles")
    for peer, latency in cost.peers.items():
        facts.add_row(f"in {peer}", f"{_seconds(latency)} ± {cost.peer_spreads.get(peer, 0.0):.0%}")
    if cost.arena is not None:
        facts.add_row("arena", f"{cost.arena:,} B, as planned" if cost.arena == cost.plan else f"{cost.arena:,} B")
    elif cost.plan is not None:
        facts.add_row("arena", f"{cost.plan:,} B in the plan")
    if cost.peak is not None:
        beside = "".join(f"; {peer} {nbytes:,} B" for peer, nbytes in cost.peer_peaks.items())
        facts.add_row("peak", f"{cost.peak:,} B by the device's allocator{beside}")
    if cost.stack is not None:
        facts.add_row("stack", f"{cost.stack:,} B at most")
    if cost.flash is not None:
        parts = ", ".join(f"{part} {nbytes:,}" for part, nbytes in cost.sections.items())
        facts.add_row("flash" if counted else "constants", f"{cost.flash:,} B: {parts}")
    if cost.max_error is not None:
        facts.add_row("outputs", f"within {cost.max_error:.1e} of the framework's, relative to the largest")
    for reason in cost.reasons:
        facts.add_row("verdict", Text(reason, style="green" if cost.fits else "red" if cost.correct is False else ""))
    facts.add_row("tools", ", ".join(f"{tool} {number}" for tool, number in cost.versions.items()))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=QUIET, pad_edge=False)
    table.add_column("operator", no_wrap=True, overflow="ellipsis")
    for column in ("instructions" if counted else "time", "share", "workspace"):
        table.add_column(column, justify="right", no_wrap=True)
    mixed = len({op.kind for op in cost.per_op}) > 1
    if mixed:
        table.add_column("known", no_wrap=True)
    for op in cost.slowest(shown):
        n = (op.instructions if counted else op.seconds) or 0
        shown_as = f"{n:,}" if counted else "untuned" if op.seconds is None and op.tuned is False else _seconds(n)
        table.add_row(op.name, shown_as, f"{n / total:.1%}" if total else "", f"{op.bytes:,} B", *([op.kind] if mixed else []))
    rest = len(cost.per_op) - shown
    more = [Text(f"and {rest} more operators", style=QUIET)] if rest > 0 else []
    return Group(head, facts, Text(""), table, *more)


def _doubt(cost: Cost) -> str:
    """What a total may be off by: the expected error of a prediction, the spread of a measurement."""
    if cost.kind == "predicted":
        return "" if cost.error is None else f" ± {cost.error:.2%} expected"
    return "" if cost.spread is None else f" ± {cost.spread:.0%}"


def _seconds(seconds: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= scale:
            return f"{seconds / scale:,.3g} {unit}"
    return f"{seconds * 1e9:,.3g} ns"
