"""The options of the command line, each in one place: their names, what they take, and what help says about them."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

MODEL, SEARCH, OUTPUT = "The model", "What is computed", "What comes out"


def _option(*names: str, panel: str, metavar: str | None = None, least: float | None = None, help: str) -> typer.models.OptionInfo:
    return typer.Option(*names, rich_help_panel=panel, metavar=metavar, min=least, help=help, show_default=False)


Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A built-in model (`neaptide models`), `package.module:factory`, `file.py:factory`, `timm:NAME`, `torchvision:NAME`, "
        "`model.onnx`, `model.pt2` or a graph `.json`.",
    ),
]
Inputs = Annotated[
    list[str],
    _option("--input", "-i", panel=MODEL, metavar="SHAPE", help="`1x3x224x224`, `1x128:int64` or `mask=1x128:bool`; once for each input."),
]
Dtype = Annotated[str, _option("--dtype", panel=MODEL, metavar="DTYPE", help="Of floating weights and inputs: `bfloat16`.")]
Mode = Annotated[
    Literal["inference", "training"],
    _option("--mode", panel=MODEL, metavar="MODE", help="`inference` (default), or `training`: forward, backward, optimizer step."),
]
Optimizer = Annotated[str, _option("--optimizer", panel=MODEL, metavar="NAME", help="For training: `sgd`, `adam`, `adamw`.")]
RealRun = Annotated[bool, _option("--allow-real-run", panel=MODEL, help="Run the model when it cannot be traced without.")]
Order = Annotated[
    Literal["best", "traced"], _option("--order", panel=SEARCH, metavar="ORDER", help="`best` (default), or `traced`: no other order.")
]
Policy = Annotated[
    Literal["auto", "caller", "planned"],
    _option(
        "--inputs",
        panel=SEARCH,
        metavar="WHOSE",
        help="Graph inputs are the `caller`'s, beside the peaks, or `planned`, inside them. Default: planned for plain graphs only.",
    ),
]
Kernels = Annotated[bool, _option("--kernels/--no-kernels", panel=SEARCH, help="Measure each distinct kernel's workspace (default).")]
Threads = Annotated[
    int, _option("--threads", panel=SEARCH, metavar="N", least=0, help="Threads of the kernels. Default: torch's own count.")
]
Alignment = Annotated[int, _option("--alignment", panel=SEARCH, metavar="BYTES", least=1, help="Of offsets in the arena. Default: 64.")]
TimeLimit = Annotated[
    float, _option("--time-limit", panel=SEARCH, metavar="SECONDS", least=0.0, help="Of each search, in processor time. Default: 10.")
]
Budget = Annotated[
    list[str],
    _option(
        "--budget",
        panel=OUTPUT,
        metavar="SIZE",
        help="Exit with 3 when over it: `320KB` for the peak, `arena:320KiB`, `total:8GB`; KB is 1000 B, KiB 1024 B.",
    ),
]
Depth = Annotated[int, _option("--depth", panel=OUTPUT, metavar="N", least=0, help="Levels of the module tree. Default: a screenful.")]
Json = Annotated[bool, _option("--json", panel=OUTPUT, help="Print JSON and nothing else on standard output.")]
Html = Annotated[str, _option("--html", panel=OUTPUT, metavar="FILE", help="Write the interactive report.")]
Trace = Annotated[str, _option("--trace", panel=OUTPUT, metavar="FILE", help="Write a trace for ui.perfetto.dev.")]
Snapshot = Annotated[str, _option("--snapshot", panel=OUTPUT, metavar="FILE", help="Write a snapshot for pytorch.org/memory_viz.")]
Dot = Annotated[str, _option("--dot", panel=OUTPUT, metavar="FILE", help="Write the graph for Graphviz.")]
GraphFile = Annotated[str, _option("--graph", panel=OUTPUT, metavar="FILE", help="Write the graph as JSON; the order names its node ids.")]

Lifetimes = Annotated[
    str, typer.Argument(metavar="LIFETIMES.csv", help="Blocks as `id,lower,upper,size` with half-open times: MiniMalloc's format.")
]
Capacity = Annotated[
    str, _option("--capacity", panel=SEARCH, metavar="SIZE", help="Stop at the first layout within it; exit with 3 when none is: `1MiB`.")
]
BlockAlignment = Annotated[int, _option("--alignment", panel=SEARCH, metavar="BYTES", least=1, help="Of offsets. Default: 1.")]
PlanFile = Annotated[
    str, _option("--output", "-o", panel=OUTPUT, metavar="FILE", help="Write the blocks with offsets as CSV; `-` prints it.")
]
