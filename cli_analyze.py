"""`neaptide analyze SOURCE`: the command, its files, and its budget."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal

import typer

from . import cli_options as opt
from .cli_outputs import Outputs
from .compiler.errors import BudgetError, NeaptideError
from .report.console import Stages, output

if TYPE_CHECKING:
    from .report.result import Analysis


def analyze(
    source: opt.Source,
    input: opt.Inputs = [],  # noqa: B006
    dtype: opt.Dtype = "",
    mode: opt.Mode = "inference",
    optimizer: opt.Optimizer = "",
    allow_real_run: opt.RealRun = False,
    order: opt.Order = "best",
    inputs: opt.Policy = "auto",
    kernels: opt.Kernels = True,
    threads: opt.Threads = 0,
    alignment: opt.Alignment = 64,
    time_limit: opt.TimeLimit = 10.0,
    budget: opt.Budget = [],  # noqa: B006
    depth: opt.Depth = 0,
    json: opt.Json = False,
    html: opt.Html = "",
    trace: opt.Trace = "",
    snapshot: opt.Snapshot = "",
    dot: opt.Dot = "",
) -> int:
    """Peak memory, where it is, what is alive there, and a better order with its proof."""
    from .report.units import parse_bytes

    limits = [(text, *_budget(text, parse_bytes)) for text in budget]
    files = {"save_html": html, "save_chrome_trace": trace, "save_memory_snapshot": snapshot, "save_dot": dot}
    outputs = Outputs(*files.values())
    with on_threads(threads):
        result = analyzed(
            source, input, dtype, mode, optimizer, order=order, inputs=inputs, threads=threads, alignment=alignment, kernels=kernels,
            time_limit=time_limit, allow_real_run=allow_real_run,
        )  # fmt: skip
    for method, path in files.items():
        outputs.write(path, getattr(result, method))
    over = [(text, kind, limit) for text, kind, limit in limits if _need(result, kind) > limit]
    if json:
        import json as codec

        document = result.to_dict()
        document["budgets"] = [
            {"of": kind, "nbytes": limit, "needs": _need(result, kind), "fits": _need(result, kind) <= limit} for _, kind, limit in limits
        ]
        print(codec.dumps(document, indent=2, allow_nan=False))
    else:
        from rich.text import Text

        console = output()
        console.print(result.rich(depth or None))
        for text, kind, limit in limits:
            if (text, kind, limit) not in over:
                console.print(Text.assemble("  ", ("✓ fits", "green"), f" {kind} {_need(result, kind):,} B of {limit:,} B"))
    outputs.raise_failed()
    if over:
        from .report.budget import explain

        raise BudgetError("\n".join(explain(result, kind, limit) for _, kind, limit in over))
    return 0


def analyzed(
    source: str,
    input: list[str],
    dtype: str,
    mode: str,
    optimizer: str,
    *,
    inputs: Literal["auto", "caller", "planned"],
    threads: int,
    kernels: bool,
    **options: Any,
) -> Analysis:
    """The Analysis of `source`, with progress on standard error."""
    from .analysis import analyze as run
    from .compiler.graph import Graph
    from .sources import InputSpec, resolve

    specs = [InputSpec.parse(text) for text in input]
    if optimizer and mode != "training":
        raise NeaptideError(f"--optimizer {optimizer} has no effect without --mode training")
    with Stages() as stages:
        stages("building the model")
        model = resolve(source, specs, dtype, runnable=bool(options.get("allow_real_run")))
        is_graph = isinstance(model.target, Graph)
        if is_graph and mode != "inference":
            raise NeaptideError(f"{source!r} is a graph already; --mode {mode} needs a model: a built-in one or a factory")
        return run(
            model.target,
            model.args,
            model.kwargs,
            mode=mode,
            optimizer=optimizer or None,
            inputs=None if inputs == "auto" else inputs,
            kernels=kernels and (not is_graph or source.endswith(".pt2")),
            threads=threads or None,
            name=model.name,
            progress=stages,
            **options,
        )


@contextlib.contextmanager
def on_threads(threads: int) -> Any:
    """Inside: torch runs with `threads` intra-op threads (0: as it is)."""
    if not threads:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _budget(text: str, parse_bytes: Any) -> tuple[str, int]:
    kind, colon, amount = text.rpartition(":")
    if not colon:
        kind = "peak"
    if kind not in _NEEDS:
        raise typer.BadParameter(f"--budget {text!r}: a budget is for the {', the '.join(_NEEDS)}; write for example total:8GB")
    return kind, parse_bytes(amount)


_NEEDS = {"peak": "planned_peak", "arena": "arena", "total": "total_peak"}


def _need(result: Analysis, kind: str) -> int:
    return getattr(result, _NEEDS[kind])
