"""The demo: one real network, from trace to a proven plan that runs, and a report to look at. `make demo` runs it.

DARTS-V2 for CIFAR-10 (Liu et al. 2018): 20 cells whose branches can run in many orders, so the order matters. Any other name from
`neaptide models` may be given. Then a network small enough for a microcontroller is measured on one, and a minute of search finds
networks for that microcontroller: cells of NAS-Bench-201, trained on the handwritten digits that come with scikit-learn.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import torch

import neaptide
from neaptide.compiler.output_files import write_text
from neaptide.compiler.reference_models import reference_model
from neaptide.report.console import Stages, output
from neaptide.report.measurement import measurement_view
from neaptide.report.measurement_html import render_measurement
from neaptide.report.search import search_view
from neaptide.report.search_html import render_search
from neaptide.report.units import format_bytes
from neaptide.search.run import search
from neaptide.targets.measure import measure

SMALL, PART = "resnet8", "stm32f746"
OUT = Path("out")
CELLS = {"C": 8, "N": 1, "resolution": 16}


def main(name: str = "darts_cifar") -> int:
    console = output()
    torch.manual_seed(0)
    make_model, make_args = reference_model(name)
    model, args = make_model(), make_args()

    console.rule("[bold]1  trace and analyze")
    with Stages() as stages:
        analysis = neaptide.analyze(model, args, name=name, progress=stages)
    console.print(analysis.table(depth=1))

    console.rule("[bold]2  a better order, proven, in one arena")
    best, plan = analysis.schedule, analysis.plan
    proof = "proven optimal" if best.optimal else f"no order needs less than {format_bytes(best.lower_bound)}"
    rows = (
        ("order as traced", analysis.graph_peak, ""),
        ("best order", best.peak, f"{analysis.graph_peak / best.peak:.2f}x less, {proof}, found in {best.seconds:.2f} s"),
        ("lower bound", best.lower_bound, f"by {best.method}"),
        ("arena", plan.arena, f"{len(plan.offsets)} storages at fixed offsets"),
    )
    for what, size, remark in rows:
        console.print(f"  {what:16} {size:>12,} B  {remark}", highlight=False)

    console.rule("[bold]3  run it in that arena")
    with torch.no_grad():
        eager = model.eval()(*args)
    run = neaptide.execute_in_arena(analysis.graph, plan, args)
    difference = run.difference(eager)
    verdict = "outputs equal eager PyTorch bit for bit" if difference is None else f"NOT equal to eager: {difference}"
    console.print(f"  poisoned arena of {run.arena_bytes:,} B: {verdict}", highlight=False)

    report = OUT / f"{name}.html"
    report.parent.mkdir(exist_ok=True)
    analysis.save_html(str(report))
    console.rule(f"[bold]4  measure {SMALL} on an emulated {PART}")
    make_model, make_args = reference_model(SMALL)
    with Stages() as stages:
        cost = measure(make_model(), make_args(), target=PART, name=SMALL, progress=stages)
    console.print(measurement_view(cost, shown=5))
    page = OUT / f"{SMALL}-{PART}.html"
    write_text(page, render_measurement(cost, neaptide.load_target(PART)))

    console.rule(f"[bold]5  search networks for an {PART}")
    with Stages() as stages:
        result = search(
            "nasbench201", "evolution", objectives="accuracy,peak", target=PART, data=digits(), preset="smoke", budget=32,
            space_options=CELLS, training={"epochs": 4, "augment": False}, folder=clean(OUT / "search"), progress=stages,
        )  # fmt: skip
    console.print(search_view(result))
    front = OUT / "search.html"
    write_text(front, render_search(result))

    console.rule("[bold]6  look at it")
    console.print(f"  {report}\n  {page}\n  {front}", highlight=False)
    return 0 if difference is None else 1


def digits() -> Path:
    """The 1,797 handwritten digits of scikit-learn as a file of images, every sixth held out for the end."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images, held = (images.reshape(-1, 8, 8) * 15).astype(np.uint8), np.arange(len(labels)) % 6 == 0
    path = OUT / "digits.npz"
    np.savez(path, x_train=images[~held], y_train=labels[~held], x_test=images[held], y_test=labels[held])
    return path


def clean(folder: Path) -> Path:
    """`folder` without the search that an earlier demo left there."""
    if (folder / "study.sqlite").is_file():
        shutil.rmtree(folder)
    return folder


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
