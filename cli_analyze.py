"""`neaptide analyze SOURCE`: the command, its files, and its budget."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .compiler.errors import BudgetError, FormatError, NeaptideError
from .report.console import Stages, output

if TYPE_CHECKING:
    from .report.result import Analysis

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A built-in model (`neaptide models`), `package.module:factory`, `file.py:factory`, `timm:NAME`, `torchvision:NAME`, "
        "`model.onnx`, `model.pt2` or a graph `.json`.",
    ),
]
Inputs = Annotated[
    list[str], typer.Option("--input", "-i", help="Shape of an input: `1x3x224x224`, `1x128:int64`, `mask=1x128:bool`; repeat it.")
]
Dtype = Annotated[str, typer.Option("--dtype", help="Floating dtype of weights and inputs, e.g. `bfloat16`.")]
Mode = Annotated[Literal["inference", "training"], typer.Option("--mode", help="Training is forward, backward and an optimizer step.")]
Optimizer = Annotated[str, typer.Option("--optimizer", help="For `--mode training`: `sgd`, `adam`, `adamw`.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Intra-op threads the kernels run with (0: torch's own count).")]
Policy = Annotated[
    Literal["auto", "caller", "planned"],
    typer.Option(
        "--inputs",
        help="Graph inputs are the `caller`'s (beside the peaks) or `planned` (in them). Auto: planned for graph files without a model.",
    ),
]
Kernels = Annotated[bool, typer.Option("--kernels/--no-kernels", help="Measure the workspace of each distinct kernel once.")]
TimeLimit = Annotated[float, typer.Option("--time-limit", min=0.0, help="Seconds for the search of an order.")]
RealRun = Annotated[bool, typer.Option("--allow-real-run", help="Run the model for real when it cannot be traced without.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, nothing else, on standard output.")]


def analyze(
    source: Source,
    input: Inputs = [],  # noqa: B006
    dtype: Dtype = "",
    mode: Mode = "inference",
    optimizer: Optimizer = "",
    order: Annotated[
        Literal["best", "traced"], typer.Option("--order", help="Search for the best order, or keep the traced one.")
    ] = "best",
    budget: Annotated[
        list[str],
        typer.Option(
            "--budget", help="Exit with 3 when over it: `320KB` (KB is 1000 B, KiB 1024 B) for the peak; `arena:320KB`, `total:8GB`."
        ),
    ] = [],  # noqa: B006
    inputs: Policy = "auto",
    threads: Threads = 0,
    alignment: Annotated[int, typer.Option("--alignment", min=1, help="Of offsets in the arena, in bytes.")] = 64,
    kernels: Kernels = True,
    time_limit: TimeLimit = 10.0,
    allow_real_run: RealRun = False,
    depth: Annotated[int, typer.Option("--depth", min=0, help="Levels of the module tree (0: as many as fit a screen).")] = 0,
    json: Json = False,
    html: Annotated[str, typer.Option("--html", metavar="FILE", help="Write the interactive report.")] = "",
    trace: Annotated[str, typer.Option("--trace", metavar="FILE", help="Write a trace for ui.perfetto.dev.")] = "",
    snapshot: Annotated[str, typer.Option("--snapshot", metavar="FILE", help="Write a snapshot for pytorch.org/memory_viz.")] = "",
    dot: Annotated[str, typer.Option("--dot", metavar="FILE", help="Write the graph for Graphviz.")] = "",
) -> int:
    """Peak memory, where it is, what is alive there, and a better order with its proof."""
    from .report.units import parse_bytes

    limits = [(text, *_budget(text, parse_bytes)) for text in budget]
    files = {"save_html": html, "save_chrome_trace": trace, "save_memory_snapshot": snapshot, "save_dot": dot}
    check_writable(files.values())
    with on_threads(threads):
        result = analyzed(
            source, input, dtype, mode, optimizer, order=order, inputs=inputs, threads=threads, alignment=alignment, kernels=kernels,
            time_limit=time_limit, allow_real_run=allow_real_run,
        )  # fmt: skip
    for method, path in files.items():
        if path:
            getattr(result, method)(path)
            print(f"wrote {path}", file=sys.stderr)
    over = [(text, kind, limit) for text, kind, limit in limits if _need(result, kind) > limit]
    if json:
        import json as codec

        document = result.to_dict()
        document["budgets"] = [
            {"of": kind, "nbytes": limit, "needs": _need(result, kind), "fits": _need(result, kind) <= limit} for _, kind, limit in limits
        ]
        print(codec.dumps(document, indent=2, allow_nan=False))
    else:
        console = output()
        console.print(result.rich(depth or None))
        for text, kind, limit in limits:
            if (text, kind, limit) not in over:
                console.print(f"  [green]✓ fits[/] {kind} {_need(result, kind):,} B of {limit:,} B")
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


def check_writable(paths: Any) -> None:
    """Raise `FormatError` now for a path that could not be written later."""
    for path in filter(None, paths):
        folder = Path(path).parent
        if Path(path).is_dir():
            raise FormatError(f"cannot write {path!r}: it is a folder")
        if not folder.is_dir():
            raise FormatError(f"cannot write {path!r}: there is no folder {str(folder)!r}")
        if not os.access(folder, os.W_OK):
            raise FormatError(f"cannot write {path!r}: no permission to write in {str(folder)!r}")


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
