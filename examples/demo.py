"""The demo: one real network, from trace to a proven plan that runs, and a report to look at. `make demo` runs it.

DARTS-V2 for CIFAR-10 (Liu et al. 2018): 20 cells whose branches can run in many orders, so the order matters.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from rich.console import Console

import neaptide
from neaptide.compiler.reference_models import REFERENCE_MODELS
from neaptide.report.units import format_bytes


def main(name: str = "darts_cifar") -> int:
    console = Console()
    torch.manual_seed(0)
    reference = REFERENCE_MODELS[name]
    model, args = reference.module(), reference.args()

    console.rule(f"[bold]1  analyze[/bold]  {reference.description}")
    analysis = neaptide.analyze(model, args, progress=True)
    console.print(analysis.table(depth=1))

    console.rule("[bold]2  a better order, proven; one arena[/bold]")
    best, plan = analysis.schedule, analysis.plan
    console.print(f"traced order   {format_bytes(analysis.graph_peak)}")
    console.print(
        f"best order     {format_bytes(best.peak)}  ({analysis.graph_peak / best.peak:.2f}x less, {'proven optimal' if best.optimal else 'not proven'})"
    )
    console.print(f"lower bound    {format_bytes(best.lower_bound)}")
    console.print(f"arena          {format_bytes(plan.arena)}  for {len(plan.offsets)} storages, alignment {plan.alignment}")

    console.rule("[bold]3  run it in that arena[/bold]")
    with torch.no_grad():
        eager = model.eval()(*args)
    result = neaptide.execute_in_arena(analysis.graph, plan, args, order=best.order)
    same = result.matches(eager)
    console.print(f"poisoned arena of {format_bytes(plan.arena)}: outputs {'equal eager, bit for bit' if same else 'DIFFER from eager'}")

    report = Path("out") / f"{name}.html"
    report.parent.mkdir(exist_ok=True)
    analysis.save_html(str(report))
    console.rule("[bold]4  look at it[/bold]")
    console.print(f"report: {report}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
