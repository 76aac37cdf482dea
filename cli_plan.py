"""`neaptide schedule SOURCE` and `neaptide allocate LIFETIMES.csv`: one pass alone, for graphs and lifetimes of any origin."""

from __future__ import annotations

import json as codec
from typing import TYPE_CHECKING, Any

import typer

from . import cli_options as opt
from .cli_analyze import analyzed, on_threads
from .cli_outputs import Outputs
from .compiler.errors import BudgetError, PlanError
from .report.console import Stages, output
from .report.units import parse_bytes

if TYPE_CHECKING:
    from .passes.allocate import Layout
    from .report.result import Analysis


def schedule(
    source: opt.Source,
    input: opt.Inputs = [],  # noqa: B006
    dtype: opt.Dtype = "",
    mode: opt.Mode = "inference",
    optimizer: opt.Optimizer = "",
    allow_real_run: opt.RealRun = False,
    inputs: opt.Policy = "auto",
    kernels: opt.Kernels = True,
    threads: opt.Threads = 0,
    time_limit: opt.TimeLimit = 10.0,
    json: opt.Json = False,
    graph: opt.GraphFile = "",
) -> int:
    """The order of operators that needs least memory, with its lower bound."""
    outputs = Outputs(graph)
    with on_threads(threads):
        a = analyzed(
            source, input, dtype, mode, optimizer, inputs=inputs, threads=threads, kernels=kernels, time_limit=time_limit,
            allow_real_run=allow_real_run,
        )  # fmt: skip
    outputs.write(graph, a.graph.save_json)
    if json:
        print(codec.dumps(schedule_document(a), indent=2))
    else:
        from .report.plans import schedule_view

        output().print(schedule_view(a))
    outputs.raise_failed()
    return 0


def allocate(
    lifetimes: opt.Lifetimes,
    capacity: opt.Capacity = "",
    alignment: opt.BlockAlignment = 1,
    time_limit: opt.TimeLimit = 10.0,
    json: opt.Json = False,
    out: opt.PlanFile = "",
) -> int:
    """The smallest arena for blocks with given lifetimes, with its lower bound."""
    from .passes.allocate import allocate_lifetimes
    from .passes.lifetimes_csv import format_plan, read_lifetimes, write_plan

    if json and out == "-":
        raise typer.BadParameter("--json and --output - both print on standard output: give one of them")
    outputs = Outputs("" if out == "-" else out)
    limit = parse_bytes(capacity) if capacity else None
    table = read_lifetimes(lifetimes)
    with Stages() as stages:
        stages(f"laying out {len(table.ids):,} blocks")
        try:
            layout = allocate_lifetimes(
                table.ids, table.lower, table.upper, table.size, alignment=alignment, capacity=limit, time_limit=time_limit
            )
        except PlanError as error:
            if limit is None:
                raise
            raise BudgetError(str(error)) from None
    if out == "-":
        print(format_plan(layout), end="")
    else:
        outputs.write(out, lambda path: write_plan(path, layout))
    if json:
        print(codec.dumps(layout_document(layout), indent=2))
    elif out != "-":
        from .report.plans import layout_view

        output().print(layout_view(lifetimes, layout))
    outputs.raise_failed()
    return 0


def layout_document(layout: Layout) -> dict[str, Any]:
    """A layout as versioned JSON values."""
    return {
        "format": "neaptide.layout",
        "version": 1,
        "arena": layout.arena,
        "lower_bound": layout.lower_bound,
        "optimal": layout.optimal,
        "alignment": layout.alignment,
        "method": layout.method,
        "seconds": layout.seconds,
        "offsets": {str(i): int(o) for i, o in zip(layout.ids, layout.offsets, strict=True)},
    }


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
