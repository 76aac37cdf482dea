"""A cost as one offline HTML file: the verdict, the memories against the device's, and where the instructions or the time went.

The page says what it knows and how: a measured cost, a predicted one with its error, or a lower bound. It reads without JavaScript, which
only sorts the operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..targets.cost import Cost, OpCost
from ..targets.spec import Target
from .costs import format_seconds
from .page import render_page
from .units import format_bytes, format_count

PALETTE = ("#4269d0", "#efb118", "#3ca951", "#d15cb4", "#6cc5b0", "#a463f2", "#ff8ab7", "#97bbf5", "#9c6b4e", "#c4a000")
OTHER = "#9498a0"


@dataclass(frozen=True)
class Row:
    """One operator of the profile: its place in the run, from 1, its cost as text and as shares in per cent."""

    step: int
    op: OpCost
    kind: str
    color: str
    value: float
    text: str
    share: float
    of_largest: float

    @property
    def label(self) -> str:
        """Its kind and the shape of what it makes, without the number that tells it from others of its kind."""
        _, arrow, shape = self.op.name.partition(" -> ")
        return f"{self.kind} → {shape}" if arrow else self.op.name


@dataclass(frozen=True)
class Group:
    """Operators of one kind together. `share` in per cent of all."""

    kind: str
    color: str
    operators: int
    text: str
    share: float


@dataclass(frozen=True)
class Memory:
    """One memory of the device and what is in it: parts as (class, label, bytes), and the bytes there are, None where not known."""

    title: str
    parts: tuple[tuple[str, str, int], ...]
    limit: int | None

    @property
    def used(self) -> int:
        """Bytes of all parts."""
        return sum(nbytes for _, _, nbytes in self.parts)

    def share(self, nbytes: int) -> float:
        """`nbytes` in per cent of the whole bar."""
        return 100 * nbytes / max(self.limit or 0, self.used, 1)


def render_measurement(cost: Cost, target: Target | None = None) -> str:
    """The page of `cost`; with `target`, its memories and title are shown too."""
    rows = profile(cost)
    return render_page(
        "measurement.html.j2",
        ("measurement.js", "theme.js"),
        title=f"{cost.name or 'model'} on {cost.target}",
        versions=cost.versions,
        cost=cost,
        target=target,
        figure=_figure(cost),
        badge=_badge(cost),
        memories=memories(cost, target),
        rows=rows,
        groups=_groups(rows, cost),
        mixed=len({row.op.kind for row in rows}) > 1,
        runtimes=_runtimes(cost),
        workspaces=cost.instructions is not None or any(op.bytes for op in cost.per_op),
        counted=cost.instructions is not None,
        bytes=format_bytes,
        seconds=format_seconds,
    )


def profile(cost: Cost) -> list[Row]:
    """The operators in the order they run."""
    values = [float((op.instructions if cost.instructions is not None else op.seconds) or 0) for op in cost.per_op]
    total, largest = sum(values) or 1.0, max(values, default=0.0) or 1.0
    by_kind: dict[str, float] = {}
    for op, value in zip(cost.per_op, values, strict=True):
        by_kind[_kind(op)] = by_kind.get(_kind(op), 0.0) + value
    colors = dict(zip(sorted(by_kind, key=lambda kind: -by_kind[kind]), PALETTE, strict=False))
    return [
        Row(step, op, _kind(op), colors.get(_kind(op), OTHER), value, _text(cost, op, value), 100 * value / total, 100 * value / largest)
        for step, (op, value) in enumerate(zip(cost.per_op, values, strict=True), 1)
    ]


def memories(cost: Cost, target: Target | None) -> list[Memory]:
    """What the model takes of each memory. A GPU's one memory holds weights and arena; this machine's CPU has no limit."""
    limits = (target.sram, target.flash) if target is not None else (None, None)
    arena = cost.plan if cost.arena is None else cost.arena
    tensors = [] if arena is None else [("arena", "arena", arena)]
    weights = cost.sections.get("weights")
    if target is not None and target.kind == "gpu":
        return [Memory("device memory", (*tensors, *([] if weights is None else [("weights", "weights", weights)])), limits[0])]
    found = []
    if tensors:
        stack = [] if cost.stack is None else [("stack", "stack, high-water mark", cost.stack)]
        found.append(Memory("arena" if limits[0] is None else "SRAM", (*tensors, *stack), limits[0]))
    if cost.sections:
        code = cost.flash - weights if cost.flash is not None and weights is not None else None
        parts = [] if weights is None else [("weights", "weights", weights)]
        parts += [] if code is None else [("code", "code and the rest", code)]
        found.append(Memory("constants" if limits[1] is None else "flash", tuple(parts), limits[1]))
    return found


def _kind(op: OpCost) -> str:
    return op.signature.partition("(")[0] or op.name.partition(" ")[0]


def _text(cost: Cost, op: OpCost, value: float) -> str:
    if cost.instructions is None and op.seconds is None:
        return "untuned" if op.tuned is False else "not known"
    return f"{value:,.0f}" if cost.instructions is not None else format_seconds(value)


def _groups(rows: Sequence[Row], cost: Cost) -> list[Group]:
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(row.kind, []).append(row)
    groups = [
        Group(
            kind,
            of[0].color,
            len(of),
            f"{sum(r.value for r in of):,.0f}" if cost.instructions is not None else format_seconds(sum(r.value for r in of)),
            sum(r.share for r in of),
        )
        for kind, of in members.items()
    ]
    return sorted(groups, key=lambda group: -group.share)


def _figure(cost: Cost) -> tuple[str, str]:
    """The number and what it counts."""
    if cost.instructions is not None:
        return format_count(cost.instructions), f"instructions, {cost.instructions:,}"
    if cost.latency is not None:
        return ("≥ " if cost.kind == "bound" else "") + format_seconds(cost.latency), "one inference"
    return "no time", "operators that were never tuned have none"


def _badge(cost: Cost) -> tuple[str, str]:
    """How the number is known: a class of the style sheet, and words."""
    if cost.kind == "bound":
        return "open", "≥ a lower bound, nothing ran"
    if cost.kind == "predicted":
        return "open", "≈ predicted, nothing ran" + ("" if cost.error is None else f"; ± {cost.error:.2%} expected")
    spread = "" if cost.spread is None else f", ± {cost.spread:.0%}"
    emulator = cost.versions.get("emulator")
    return "proven", "✓ measured" + (f" in {emulator}" if emulator else spread)


def _runtimes(cost: Cost) -> list[tuple[str, str, str, float]]:
    """This and other runtimes: class, label, median time, per cent of the slowest; none where it ran alone."""
    if not cost.peers or cost.latency is None:
        return []
    known = [("best", "Neaptide", cost.latency, cost.spread)]
    known += [("eager", peer, seconds, cost.peer_spreads.get(peer)) for peer, seconds in cost.peers.items()]
    top = max(seconds for _, _, seconds, _ in known)
    return [
        (css, label, format_seconds(seconds) + ("" if spread is None else f" ± {spread:.0%}"), 100 * seconds / top)
        for css, label, seconds, spread in known
    ]
