"""An analysis on a terminal: the headline, live memory over time, what is alive at the peak, the module tree."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from .console import SafeConsole, drawn
from .units import bar_chart, format_bytes, format_count, format_dtype, format_shape, resample

if TYPE_CHECKING:
    from ..passes.attribution import LiveStorage, ModuleRow
    from ..passes.liveness import Lifetimes
    from .result import Analysis

ROLE_STYLE = {
    "activation": "cyan",
    "input": "blue",
    "gradient": "magenta",
    "optimizer_state": "yellow",
    "workspace": "bright_red",
}
QUIET = "bright_black"
ALIVE_ROWS = 8
TREE_ROWS = 26
LINE_WIDTH = 20
WIDE = 92
BAR = "█"


def render_text(view: RenderableType, width: int | None = None) -> str:
    """`view` as plain text of `width` columns (None: the terminal's, 100 where there is none)."""
    out = io.StringIO()
    if width is None:
        width = Console().width if Console().is_terminal else 100
    SafeConsole(file=out, width=width, color_system=None, legacy_windows=False).print(view)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


class AnalysisView:
    """The whole picture of one analysis, fitted to the width it is printed at; `depth` limits the module tree (None: to a screen)."""

    def __init__(self, analysis: Analysis, depth: int | None = None):
        self.analysis = analysis
        self.depth = depth

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for part in self._parts(options):
            yield from drawn(console.render(part, options))

    def _parts(self, options: ConsoleOptions) -> Iterator[RenderableType]:
        a, width = self.analysis, min(options.max_width, 132)
        yield _title(a)
        yield _inset(_peaks(a, bar=20 if width >= WIDE else 12), top=1)
        yield _inset(_verdict(a))
        yield from (_inset(row, top=int(i == 0)) for i, row in enumerate(_facts(a, width - 2)))
        if a.graph.nodes:
            yield from (_inset(part, top=1) for part in _timelines(a, width))
            yield _inset(_peak_line(a), top=1)
            yield _inset(_alive(a.at_peak, width))
        if len(a.by_module) > 1:
            yield _inset(module_table(a.by_module, self.depth, width), top=1)
        notes = _notes(a)
        if notes:
            yield Text("")
        yield from (_inset(note) for note in notes)


def short_op(op: str) -> str:
    """`aten.convolution.default` as `convolution`; an overload that says something is kept."""
    return op.removeprefix("aten.").removeprefix("onnx.").removesuffix(".default")


def short_source(source: str, width: int = 0) -> str:
    """The last part of a `file:line`, cut from the left to `width` columns when that is not 0."""
    tail = source.replace("\\", "/").rsplit("/", 1)[-1]
    return tail if not width or len(tail) <= width else "…" + tail[1 - width :]


def readable_source(source: str) -> str:
    """A `file:line` from where the reader stands: relative to the current folder or to the installed packages if below them."""
    path = source.replace("\\", "/")
    try:
        here = os.getcwd().replace("\\", "/").rstrip("/") + "/"
    except FileNotFoundError:  # the folder was removed: no source lies below it
        return source
    _, packages, installed = path.partition("/site-packages/")
    return installed if packages else path.removeprefix(here) if path.startswith(here) else source


def _inset(part: RenderableType, top: int = 0) -> Padding:
    return Padding(part, (top, 0, 0, 2))


def _title(a: Analysis) -> Text:
    tensors = [a.graph.tensors[t] for t in a.graph.inputs]
    shown = ", ".join(f"{format_shape(t.shape)} {format_dtype(t.dtype)}" for t in tensors[:2])
    more = f" and {len(tensors) - 2} more" if len(tensors) > 2 else ""
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(a.name, style="bold")
    text.append(f"  {a.mode} on {a.device}" + (f"  ·  {shown}{more}" if shown else "") + f"  ·  {len(a.graph.nodes):,} ops", style=QUIET)
    return text


def _peaks(a: Analysis, bar: int) -> Table:
    rows: list[tuple[str, int, str, str]] = []
    if a.eager_peak is not None:
        rows.append(("eager", a.eager_peak, "yellow", "as Python holds references"))
    rows.append(("traced order", a.graph_peak, "cyan", "freed after last use"))
    if a.order == "best":
        saved = a.graph_peak - a.planned_peak
        rows.append(
            (
                "best order",
                a.planned_peak,
                "green",
                f"{100 * saved / a.graph_peak:.1f} % less" if saved else "no order needs less" if a.optimal else "none better found",
            )
        )
    lost = a.arena - a.planned_peak
    note = f"fixed offsets, {format_bytes(lost)} lost" if lost else "fixed offsets, no gaps"
    rows.append(("one arena", a.arena, "green", note))
    top = max(n for _, n, _, _ in rows) or 1
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for justify in ("left", "right", "right", "left"):
        table.add_column(justify=justify, no_wrap=True)
    table.add_column(style=QUIET, no_wrap=True, overflow="ellipsis", ratio=1)
    for label, n, style, note in rows:
        strong = "bold " + style if label == ("best order" if a.order == "best" else "traced order") else style
        drawn = Text(BAR * max(1, round(bar * n / top)) if n else "", style=style)
        drawn.pad_right(bar - len(drawn))
        table.add_row(label, Text(format_bytes(n), style=strong), Text(f"{n:,} B", style=QUIET), drawn, note)
    return table


def _verdict(a: Analysis) -> Text:
    if a.optimal:
        return Text.assemble(("✓ proven optimal", "bold green"), (f"  no order of these ops peaks below {a.planned_peak:,} B", QUIET))
    left = f", at most {100 * (a.planned_peak - a.lower_bound) / a.planned_peak:.1f} % left to gain" if a.planned_peak else ""
    return Text.assemble(("○ not proven optimal", "bold yellow"), (f"  lower bound {a.lower_bound:,} B{left}", QUIET))


def _facts(a: Analysis, width: int) -> Iterator[Table]:
    """What stands beside the peak, a label over each number, on one row or two."""
    memory = [("weights", format_bytes(a.weights))]
    if a.state:
        memory.append(("grads + state", format_bytes(a.state)))
    memory += [
        ("inputs" if a.inputs_policy == "caller" else "inputs (in peak)", format_bytes(a.inputs)),
        ("workspace", format_bytes(a.workspace)),
        ("in all", format_bytes(a.total_peak)),
    ]
    work = [("parameters", format_count(a.params)), ("MACs", format_count(a.macs)), ("other FLOPs", format_count(a.elementwise_flops))]
    fits = sum(2 + max(map(len, tile)) for tile in memory + work) <= width
    for tiles in [memory + work] if fits else [memory, work]:
        table = Table.grid(padding=(0, 2, 0, 0))
        for _ in tiles:
            table.add_column(justify="right", no_wrap=True)
        table.add_row(*(Text(label, style=QUIET) for label, _ in tiles))
        table.add_row(*(Text(value, style="bold") for _, value in tiles))
        yield table


def _timelines(a: Analysis, width: int) -> Iterator[Table]:
    """Live memory over steps, the order in use and the traced one; each column is the largest of its steps."""
    pairs = [("traced", a.traced, "cyan")]
    if a.planned_peak < a.graph_peak:
        pairs.append(("best", a.planned, "green"))
    columns = max(20, width - 24)
    for label, lifetimes, style in pairs:
        yield _chart(label, lifetimes, style, columns, a.graph_peak, height=4 if len(pairs) == 1 else 3)


def _chart(label: str, lifetimes: Lifetimes, style: str, columns: int, top: int, height: int) -> Table:
    values = resample(lifetimes.live.tolist(), columns)
    if len(values) * 2 <= columns:
        values = [v for v in values for _ in range(columns // len(values))]
    at = values.index(max(values))
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True, justify="right", width=12, style=QUIET)
    table.add_column(no_wrap=True)
    lines = bar_chart(values, height, top)
    while len(lines) > 2 and not lines[0].strip():
        lines.pop(0)
    names = [format_bytes(lifetimes.peak), *[""] * (len(lines) - 2), label]
    for name, line in zip(names, lines, strict=True):
        text = Text(line, style=style)
        text.stylize("bold red", at, at + 1)
        table.add_row(name, text)
    return table


def _peak_line(a: Analysis) -> Text:
    node = a.graph.nodes[a.peak_node]
    text = Text.assemble(("Peak ", "bold"), (format_bytes(a.planned_peak), "bold red"), " at ", (node.op, "bold"))
    if node.scope:
        kind = next((m.kind for m in a.by_module if m.path == node.scope), "")
        text.append(" in ")
        text.append(node.scope, style="bold")
        text.append(f" ({kind})" if kind else "")
    if node.phase != "forward":
        text.append(", backward" if node.phase == "backward" else f", {node.phase} step")
    text.append(f", op {a.planned.peak_step + 1:,} of {len(a.graph.nodes):,}")
    if node.source:
        text.append(f"\n{readable_source(node.source)}", style=QUIET)
    return text


def _alive(alive: Sequence[LiveStorage], width: int) -> Table:
    lines = width >= WIDE and any(r.source for r in alive)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=QUIET, pad_edge=False, width=width - 2)
    table.add_column("alive", justify="right", no_wrap=True, min_width=9)
    table.add_column("", justify="right", no_wrap=True, min_width=5)
    table.add_column("made by", no_wrap=True, overflow="ellipsis", ratio=3)
    table.add_column("shape", no_wrap=True, overflow="ellipsis", ratio=3)
    table.add_column("module", no_wrap=True, overflow="ellipsis", ratio=3)
    if lines:
        table.add_column("line", no_wrap=True, width=LINE_WIDTH, style=QUIET)
    for r in alive[:ALIVE_ROWS]:
        label = {"workspace": "kernel workspace", "input": f"input {r.name}".rstrip()}.get(r.role, short_op(r.op))
        shape = f"{format_shape(r.shape)} {format_dtype(r.dtype)}" if r.dtype else ""
        made = Text(label, style=ROLE_STYLE.get(r.role, "default"))
        cells: list[RenderableType] = [format_bytes(r.nbytes), _per_cent(r.share), made, Text(shape), Text(r.scope)]
        table.add_row(*cells, *([Text(short_source(r.source, LINE_WIDTH))] if lines else []))
    rest = alive[ALIVE_ROWS:]
    if rest:
        total = sum(r.nbytes for r in rest)
        table.add_row(format_bytes(total), _per_cent(sum(r.share for r in rest)), Text(f"{len(rest)} more", style=QUIET))
    return table


def _per_cent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.005 else "<1 %"


def module_table(modules: Sequence[ModuleRow], depth: int | None, width: int) -> Table:
    """The module tree: what each module makes, holds and computes, in at most `width` columns.

    `depth`: levels below the model (None: as many as fit a screen).
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, header_style=QUIET, show_edge=False, width=width - 2)
    table.add_column("module", no_wrap=True, overflow="ellipsis", ratio=1)
    if width >= WIDE:
        table.add_column("output", no_wrap=True)
    for title in ("params", "MACs", "born", "at peak"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("share", no_wrap=True, min_width=10 if width >= WIDE else 5)
    if depth is None:
        depth = max((d for d in range(1, 9) if sum(m.depth <= d for m in modules) <= TREE_ROWS), default=1)
    shown = [m for m in modules if m.depth <= depth]
    for i, m in enumerate(shown):
        label = Text.assemble((_branches(shown, i), QUIET))
        label.append(m.path.rpartition(".")[2] or "model", style="bold" if m.depth <= 1 else "default")
        if m.kind:
            label.append(f" {m.kind}", style=QUIET)
        shape = [format_shape(m.shape) if m.shape else ""] if width >= WIDE else []
        bar = f"{BAR * max(1, round(5 * m.share)):<5} " if width >= WIDE else ""
        share = Text.assemble((bar, "red" if m.share > 0.5 else "yellow"), _per_cent(m.share))
        table.add_row(
            label,
            *shape,
            format_count(m.params) if m.params else "",
            format_count(m.macs) if m.macs else "",
            format_bytes(m.born) if m.born else "",
            format_bytes(m.at_peak) if m.at_peak else "",
            share if m.at_peak else "",
        )
    return table


def _branches(rows: Sequence[ModuleRow], i: int) -> str:
    """The tree lines in front of row `i`: a bar for every ancestor that has a later sibling."""
    depth = rows[i].depth
    if depth == 0:
        return ""

    def more(level: int) -> bool:
        for row in rows[i + 1 :]:
            if row.depth <= level:
                return row.depth == level
        return False

    return "".join("│ " if more(level) else "  " for level in range(1, depth)) + ("├ " if more(depth) else "└ ")


def _notes(a: Analysis) -> list[Text]:
    notes = []
    if a.unknown_ops:
        listed = ", ".join(f"{short_op(op)} ×{n}" for op, n in sorted(a.unknown_ops.items(), key=lambda kv: -kv[1])[:6])
        more = f" and {len(a.unknown_ops) - 6} more" if len(a.unknown_ops) > 6 else ""
        notes.append(Text(f"No FLOP formula for {listed}{more}: their work is in none of the counts.", style="yellow"))
    if a.assumptions:
        first = a.assumptions[0]
        more = f", and {len(a.assumptions) - 1} more" if len(a.assumptions) > 1 else ""
        at = f" at {short_source(first['at'])}" if first.get("at") else ""
        notes.append(Text(f"Depends on data: {short_op(first['op'])}{at}: {first['what']}{more}.", style="yellow"))
    unmeasured = a.graph.meta.get("kernels", {}).get("unmeasured", {})
    if unmeasured:
        op, reason = next(iter(unmeasured.items()))
        more = f" and {len(unmeasured) - 1} more" if len(unmeasured) > 1 else ""
        notes.append(Text(f"Kernel workspace not measured for {short_op(op)}{more}: {reason}.", style="yellow"))
    if a.provenance:
        notes.append(Text(" · ".join(f"{k} {v}" for k, v in a.provenance.items()), style=QUIET))
    return notes
