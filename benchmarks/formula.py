"""Peaks as formulas: `peak_formula` against concrete traces, five sizes each, graph and eager peaks, inference and training.

Batch for all models, sequence length too for transformers, resolution too for convolutional nets. Every size that is compared is one
at which the formula was not checked while it was made.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

from neaptide.compiler.reference_models import REFERENCE_MODELS
from neaptide.compiler.trace import trace
from neaptide.passes.formula import PeakFormula, peak_formula
from neaptide.passes.liveness import eager_liveness, liveness

from .figures import Figure, finish

BATCHES = tuple({"B": b} for b in (2, 6, 13, 24, 70))
LENGTHS = tuple({"B": b, "S": s} for b, s in ((2, 17), (3, 33), (6, 8), (12, 50), (20, 100)))
SIDES = tuple({"B": b, "H": h} for b, h in ((3, 64), (4, 96), (6, 160), (10, 256), (20, 352)))


@dataclass(frozen=True)
class Case:
    """One model: which dimensions vary, the example's sizes, and the sizes to compare at."""

    model: str
    dynamic: dict[int, Any]
    example: dict[str, int]
    at: tuple[dict[str, int], ...]
    mode: str = "inference"

    def args(self, sizes: dict[str, int]) -> tuple[Any, ...]:
        """Arguments of these sizes."""
        reference = REFERENCE_MODELS[self.model]
        return reference.args(batch=sizes["B"], resolution=sizes.get("H"), length=sizes.get("S"))


def batch(model: str, mode: str = "inference") -> Case:
    return Case(model, {0: "B"}, {"B": 4}, BATCHES, mode)


def length(model: str, mode: str = "inference") -> Case:
    return Case(model, {0: "B", 1: "S"}, {"B": 4, "S": 24}, LENGTHS, mode)


def resolution(model: str) -> Case:
    return Case(model, {0: "B", 2: ("H", 64, 512, 32), 3: "H"}, {"B": 2, "H": 128}, SIDES)


CASES = (
    batch("resnet18"),
    batch("resnet50"),
    batch("mobilenet_v2"),
    batch("mobilenet_v3_small"),
    batch("densenet121"),
    batch("googlenet"),
    batch("unet"),
    batch("vit_tiny"),
    batch("ds_cnn"),
    batch("lstm"),
    length("gpt2_small"),
    length("bert_tiny"),
    length("transformer_block"),
    resolution("resnet18"),
    resolution("unet"),
    batch("resnet8", "training"),
    batch("resnet18", "training"),
    batch("lstm", "training"),
    length("transformer_block", "training"),
    length("bert_tiny", "training"),
)
QUICK = (batch("resnet18"), length("transformer_block"), batch("lstm"), batch("resnet8", "training"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="four models")
    parser.add_argument("--json", metavar="PATH", help="write the results there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[list[object]] = []
    notes: list[str] = []
    models: dict[str, bool] = {}
    for case in QUICK if options.quick else CASES:
        training: dict[str, Any] = {"mode": "training", "optimizer": "adamw"} if case.mode == "training" else {}
        model = REFERENCE_MODELS[case.model].module()
        for which in ("graph", "eager"):
            started = time.perf_counter()
            formula = peak_formula(model, case.args(case.example), dynamic={0: case.dynamic}, which=which, name=case.model, **training)
            seconds = time.perf_counter() - started
            equal = sum(formula.evaluate(**at) == concrete(model, case.args(at), which, training) for at in case.at)
            models[case.model] = models.get(case.model, True) and equal == len(case.at)
            shown = " + ".join(formula_sizes(formula))
            rows.append(
                [case.model, case.mode, which, shown, formula.method, formula_text(formula), f"{equal}/{len(case.at)}", f"{seconds:.1f}"]
            )
            print(*rows[-1], sep="  ", flush=True)
            notes.append(f"`{case.model}`, {case.mode}, {which}: {where(formula)}")
    need = len(models) if options.quick else 10
    good = sum(models.values())
    figure = Figure(
        "peak_formula equal to concrete analyses at five sizes, models",
        f">= {need}, every size equal",
        f"{good} of {len(models)}",
        good == len(models) and good >= need,
    )
    columns = ["model", "mode", "peak", "sizes", "method", "bytes", "equal", "s"]
    return finish("Peaks as formulas", [figure], columns, rows, threads=1, notes=notes, json_path=options.json)


def concrete(model: torch.nn.Module, args: tuple[Any, ...], which: str, training: dict[str, Any]) -> int:
    """The peak of a concrete trace."""
    graph = trace(model, args, **training)
    return (liveness(graph, inputs="caller") if which == "graph" else eager_liveness(graph)).peak


def formula_sizes(formula: PeakFormula) -> list[str]:
    return [s.name for s in formula.sizes]


def formula_text(formula: PeakFormula) -> str:
    """The pieces of the example's branch."""
    text = ", ".join(map(str, formula.pieces))
    return f"max({text})" if len(formula.pieces) > 1 else text


def where(formula: PeakFormula) -> str:
    """Where each branch holds."""
    return "; ".join(" or ".join(r.text(formula.sizes) for r in b.regions) for b in formula.branches)


if __name__ == "__main__":
    sys.exit(main())
