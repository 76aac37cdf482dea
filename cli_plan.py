"""`neaptide schedule SOURCE` and `neaptide allocate LIFETIMES.csv`: one pass alone, for graphs and lifetimes of any origin."""

from __future__ import annotations

import json as codec
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_analyze import (
    Dtype,
    Inputs,
    Json,
    Kernels,
    Mode,
    Optimizer,
    Policy,
    RealRun,
    Source,
    Threads,
    TimeLimit,
    analyzed,
    check_writable,
    on_threads,
)
from .report.console import output

if TYPE_CHECKING:
    from .report.result import Analysis


def schedule(
    source: Source,
    input: Inputs = [],  # noqa: B006
    dtype: Dtype = "",
    mode: Mode = "inference",
    optimizer: Optimizer = "",
    inputs: Policy = "auto",
    threads: Threads = 0,
    kernels: Kernels = True,
    time_limit: TimeLimit = 10.0,
    allow_real_run: RealRun = False,
    json: Json = False,
    graph: Annotated[str, typer.Option("--graph", metavar="FILE", help="Write the graph as JSON; node ids below are its ids.")] = "",
) -> int:
    """The order of operators that needs least memory, with its lower bound."""
    check_writable([graph])
    with on_threads(threads):
        a = analyzed(
            source, input, dtype, mode, optimizer, inputs=inputs, threads=threads, kernels=kernels, time_limit=time_limit,
            allow_real_run=allow_real_run,
        )  # fmt: skip
    if graph:
        a.graph.save_json(graph)
    if json:
        print(codec.dumps(schedule_document(a), indent=2))
        return 0
    from .report.plans import schedule_view

    output().print(schedule_view(a))
    return 0


def schedule_document(a: Analysis) -> dict[str, Any]:
    """A schedule as versioned JSON values."""
    s = a.schedule
    return {
        "format": "neaptide.schedule",
        "version": 1,
        "name": a.name,
        "inputs_policy": a.inputs_policy,
        "graph_peak": a.graph_peak,
        "peak": s.peak,
        "lower_bound": s.lower_bound,
        "optimal": s.optimal,
        "method": s.method,
        "seconds": s.seconds,
        "order": list(s.order),
    }
