"""Instructions of 200 unseen networks on a microcontroller, predicted from the operators of networks measured before.

Networks of inverted residuals are drawn at random, built into firmware and counted in an emulator. Operators of the training networks
fill a cost database; what an unseen network costs is the sum of its operators, from the table where they were measured and from a
model of their kind where not. With --database the measurements are kept, and a run that was stopped goes on.

    python -m benchmarks.predictor_mcu --database costs.sqlite
    python -m benchmarks.predictor_mcu --quick
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.figures import Figure, finish
from neaptide.compiler.errors import NeaptideError
from neaptide.targets.cost import Cost
from neaptide.targets.database import CostDatabase, NetworkRow
from neaptide.targets.predictors import OperatorPredictor, fit_operators
from neaptide.targets.predictors.fit import accuracy_of
from neaptide.targets.remember import features, measure_all, remember

SIDE, STEM = 32, 8
STRIDES = (1, 2, 1, 2, 1)
WIDTHS = ((8, 12, 16), (16, 20, 24), (16, 20, 24), (24, 32, 40), (24, 32, 40))
KERNELS, EXPANSIONS = (3, 5), (1, 3, 6)
LEAST_RANK, MOST_ERROR = 0.99, 0.03

Block = tuple[int, int, int]  # kernel, expansion, output channels


def drawn(n: int, seed: int) -> list[tuple[Block, ...]]:
    """`n` distinct networks."""
    rng = random.Random(seed)
    found: dict[tuple[Block, ...], None] = {}
    while len(found) < n:
        found[tuple((rng.choice(KERNELS), rng.choice(EXPANSIONS), rng.choice(widths)) for widths in WIDTHS)] = None
    return list(found)


def module(blocks: tuple[Block, ...]) -> Any:
    """A network as a torch module in inference mode."""
    import torch
    from torch import nn

    def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True) -> list[nn.Module]:
        layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
        return [*layers, nn.ReLU6()] if relu else layers

    class InvertedResidual(nn.Module):
        def __init__(self, inputs: int, kernel: int, expansion: int, outputs: int, stride: int):
            super().__init__()
            hidden = inputs * expansion
            expand = conv(inputs, hidden, 1) if expansion > 1 else []
            self.layers = nn.Sequential(
                *expand, *conv(hidden, hidden, kernel, stride, groups=hidden), *conv(hidden, outputs, 1, relu=False)
            )
            self.residual = stride == 1 and inputs == outputs

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.layers(x) if self.residual else self.layers(x)

    torch.manual_seed(0)
    layers, channels = conv(3, STEM, 3, 2), STEM
    for (kernel, expansion, outputs), stride in zip(blocks, STRIDES, strict=True):
        layers.append(InvertedResidual(channels, kernel, expansion, outputs, stride))
        channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)).eval()


def counted(item: tuple[str, tuple[Block, ...], str]) -> Cost:
    """One network in the emulator. `item`: its name, its blocks, the target."""
    import torch

    from neaptide.targets.mcu.measure import measure_mcu

    torch.set_num_threads(1)
    name, blocks, target = item
    return measure_mcu(module(blocks), (torch.zeros(1, 3, SIDE, SIDE),), target=target, name=name)


def name_of(blocks: tuple[Block, ...]) -> str:
    return " ".join(f"k{k}e{e}c{c}" for k, e, c in blocks)


def fill(database: CostDatabase, networks: list[tuple[Block, ...]], target: str, workers: int) -> dict[str, NetworkRow]:
    """Measure what the database does not know of `networks`; their rows by name, in their order."""
    known = {row.signature for row in database.rows(NetworkRow, target=target)}
    left = [(name_of(blocks), blocks, target) for blocks in networks if name_of(blocks) not in known]
    started, step = time.perf_counter(), 10 * workers
    for at in range(0, len(left), step):
        for cost in measure_all(counted, left[at : at + step], workers=workers):
            if isinstance(cost, NeaptideError):
                raise cost
            remember(cost, database)
        print(f"{at + len(left[at : at + step])} of {len(left)}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    rows = {row.signature: row for row in database.rows(NetworkRow, target=target) if isinstance(row, NetworkRow)}
    return {name_of(blocks): rows[name_of(blocks)] for blocks in networks}


def learned(training: Mapping[str, NetworkRow], everything: CostDatabase, target: str, folder: Path) -> tuple[OperatorPredictor, float]:
    """A predictor that has seen the operators of `training` only, and the seconds that fitting it took."""
    operators = {signature for row in training.values() for signature in row.operators}
    with CostDatabase(folder / "training.sqlite") as seen:
        seen.put_all(row for row in everything.rows(target=target) if row.signature in operators)
        seen.put_all(training.values())
        started = time.perf_counter()
        return fit_operators(seen, target=target), time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 training networks and 10 unseen ones")
    parser.add_argument("--target", default="cortex-m4f")
    parser.add_argument("--training", type=int, default=40)
    parser.add_argument("--unseen", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--database", metavar="FILE")
    parser.add_argument("--json", metavar="PATH")
    arguments = parser.parse_args()
    n_training, n_unseen = (30, 10) if arguments.quick else (arguments.training, arguments.unseen)
    networks = drawn(n_training + n_unseen, seed=0)
    with tempfile.TemporaryDirectory() as scratch:
        with CostDatabase(arguments.database or Path(scratch) / "costs.sqlite") as database:
            rows = fill(database, networks, arguments.target, arguments.workers)
            names = list(rows)
            predictor, seconds = learned({k: rows[k] for k in names[:n_training]}, database, arguments.target, Path(scratch))
        unseen = [rows[name] for name in names[n_training:]]
        measured = np.array([row.value for row in unseen])
        lines, results = [], {}
        for label, predicted in predicted_both_ways(predictor, unseen).items():
            results[label] = accuracy = accuracy_of(predicted, measured)
            lines.append((label, len(unseen), f"{accuracy.error:.2%}", f"{accuracy.error_90:.2%}", f"{accuracy.spearman:.4f}"))
        new = {s for row in unseen for s in row.operators} - set(predictor.table)
    best = results["table, models for the rest"]
    figure = Figure(
        f"instructions of {len(unseen)} unseen networks on {arguments.target}",
        f"mean error <= {MOST_ERROR:.0%}, Spearman >= {LEAST_RANK}",
        f"{best.error:.2%}, {best.spearman:.4f}",
        best.error <= MOST_ERROR and best.spearman >= LEAST_RANK,
    )
    return finish(
        "predictor_mcu",
        [figure],
        ("operators from", "unseen networks", "mean error", "90 % below", "Spearman"),
        lines,
        notes=(
            f"{n_training} training networks hold {len(predictor.table)} distinct operators; {len(new)} of the unseen networks' were new.",
            f"Fitting took {seconds:.1f} s. Measured instructions span {measured.min():,.0f} to {measured.max():,.0f}.",
        ),
        json_path=arguments.json,
    )


def predicted_both_ways(predictor: OperatorPredictor, networks: Sequence[NetworkRow]) -> dict[str, np.ndarray]:
    """What `predictor` says of each network, with its table of measured operators and from its models alone."""
    models_only = OperatorPredictor({}, predictor.models, predictor.target, predictor.toolchain, predictor.unit)
    return {
        label: np.array([how.network([(s, features(s), n) for s, n in row.operators.items()])[0] for row in networks])
        for label, how in (("table, models for the rest", predictor), ("models alone", models_only))
    }


if __name__ == "__main__":
    sys.exit(main())
