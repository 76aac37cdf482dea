"""What a search found, in the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..search.metrics import METRICS
from ..search.result import Candidate, SearchResult
from .costs import format_seconds
from .units import format_bytes, format_count

QUIET = "bright_black"
ROWS, TEXT = 20, 48  # lines of the front, and how much of an architecture stands in one
FIRST = ("accuracy", "peak", "params", "macs")


def search_view(result: SearchResult) -> RenderableType:
    """The chosen network, the front with a column for each metric, and where the study is."""
    before = f", {result.taken_over:,} of them from before," if result.taken_over else ""
    head = Text(f"{result.engine} on {result.space.name}: {len(result.trials):,} networks{before} in {result.seconds:.1f} s", style="bold")
    if result.best is None:
        return Group(head, Text("nothing that was tried keeps every limit"), *_feet(result))
    return Group(head, "", _front(result), "", *_chosen(result, result.best), *_feet(result))


def _front(result: SearchResult) -> Table:
    metrics = metrics_of(result)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=QUIET, pad_edge=False)
    wanted = {o.metric for o in result.objectives}
    for name in metrics:
        table.add_column(f"{name} *" if name in wanted else name, justify="right", no_wrap=True)
    if any(c.measured for c in result.front):
        table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("architecture")
    for i, c in enumerate(result.front[:ROWS]):
        cells = [format_metric(name, c.values[name]) if name in c.values else "" for name in metrics]
        if any(c.measured for c in result.front):
            cells.append(_measured(c))
        table.add_row(*cells, c.text if len(c.text) <= TEXT else f"{c.text[: TEXT - 1]}…", style="bold green" if i == 0 else "")
    return table


def _chosen(result: SearchResult, best: Candidate) -> list[Text]:
    lines = [Text(f"chosen: {best.text}", style="bold", no_wrap=True, overflow="ignore")]
    if result.test_accuracy is not None:
        lines.append(Text(f"accuracy on the held-out part, which the search never saw: {result.test_accuracy:.2f} %"))
    for name, error in best.values.items():
        metric = name.removesuffix("_error")
        if metric != name and metric in best.values:
            told = format_metric(metric, best.values[metric])
            lines.append(Text(f"{metric} predicted: {told}, expected to be {error:.1%} off (networks left out were)"))
    if best.measured is not None:
        fits = {True: ", fits", False: ", does not fit", None: ""}[best.measured.fits]
        lines.append(Text(f"{best.measured.kind} on {best.measured.target}: {_measured(best)}{fits}"))
    if best.note:
        lines.append(Text(best.note))
    return lines


def _feet(result: SearchResult) -> list[Text]:
    kinds = ", ".join(f"{name} {kind}" for name, kind in result.kinds.items())
    more = len(result.front) - ROWS
    feet = [Text(f"{more:,} more on the front; --csv has all", style=QUIET)] if more > 0 else []
    options = ", ".join(f"{name}={value}" for name, value in result.space.describe()["options"].items())
    if options:
        feet.append(Text(f"space {result.space.name}: {options}", style=QUIET))
    if result.constraints:
        feet.append(Text(f"limits: {'; '.join(result.constraints)}", style=QUIET))
    if kinds:
        feet.append(Text(f"how costs are known: {kinds}", style=QUIET))
    feet.append(Text(f"study {result.study_name!r} at {result.study}", style=QUIET, no_wrap=True, overflow="ignore"))
    return feet


def metrics_of(result: SearchResult) -> list[str]:
    """Objectives first, then what says most, then the rest that is a known metric."""
    present = dict.fromkeys(name for c in result.front or result.trials for name in c.values if name in METRICS)
    order = [o.metric for o in result.objectives] + [n for n in FIRST if n in present] + list(present)
    return list(dict.fromkeys(n for n in order if n in present))


def _measured(candidate: Candidate) -> str:
    cost = candidate.measured
    if cost is None or cost.value is None:
        return ""
    return f"{format_count(cost.instructions)} instructions" if cost.instructions is not None else format_seconds(cost.value)


def format_metric(name: str, value: float) -> str:
    """A metric's value as people read it: `91.20 %`, `256 KiB`, `1.04 M`, `5.2 ms`."""
    unit = METRICS[name].unit
    if name == "accuracy":
        return f"{value:.2f} %"
    if unit == "bytes":
        return format_bytes(value)
    return format_count(value) if unit == "count" else format_seconds(value) if unit == "seconds" else f"{value:.4g}"
