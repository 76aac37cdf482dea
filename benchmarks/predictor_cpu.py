"""Latency of 200 unseen networks on this machine's CPU, predicted from the operators of networks measured before.

Networks of inverted residuals are drawn at random; every distinct operator is tuned and every network run, on one thread. Operators of
the training networks make a predictor; what an unseen network takes is the sum of its operators, from the table where they were
measured and from a model of their kind where not. With --database the measurements are kept, and a run that was stopped goes on.

    python -m benchmarks.predictor_cpu --database costs.sqlite
    python -m benchmarks.predictor_cpu --quick
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.figures import Figure, finish
from benchmarks.predictor_mcu import EXPANSIONS, KERNELS, Block, learned, module, name_of, predicted_both_ways
from neaptide.targets.database import CostDatabase, NetworkRow
from neaptide.targets.predictors.fit import accuracy_of
from neaptide.targets.spec import load_target

SIDE = 112
WIDTHS = ((12, 16, 24), (24, 32, 40), (24, 32, 40), (48, 64, 80), (64, 80, 112))
TRIALS = 6
LEAST_RANK, MOST_ERROR = 0.95, 0.12


def drawn(n: int, seed: int) -> list[tuple[Block, ...]]:
    """`n` distinct networks."""
    rng = random.Random(seed)
    found: dict[tuple[Block, ...], None] = {}
    while len(found) < n:
        found[tuple((rng.choice(KERNELS), rng.choice(EXPANSIONS), rng.choice(widths)) for widths in WIDTHS)] = None
    return list(found)


def fill(database: CostDatabase, networks: list[tuple[Block, ...]], trials: int) -> dict[str, NetworkRow]:
    """Measure what the database does not know of `networks`; their rows by name, in their order."""
    import torch

    from neaptide.targets.tvm.cpu import measure_cpu

    torch.set_num_threads(1)
    target, libraries, image = load_target("cpu"), dict[str, Any](), torch.randn(1, 3, SIDE, SIDE)
    known = {row.signature for row in database.rows(NetworkRow, target=target.name)}
    left = [blocks for blocks in networks if name_of(blocks) not in known]
    started = time.perf_counter()
    for i, blocks in enumerate(left, 1):
        measure_cpu(
            module(blocks),
            (image,),
            target=target,
            name=name_of(blocks),
            trials=trials,
            peers=False,
            libraries=libraries,
            database=database,
        )
        if i % 10 == 0 or i == len(left):
            print(f"{i} of {len(left)}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    rows = {row.signature: row for row in database.rows(NetworkRow, target=target.name) if isinstance(row, NetworkRow)}
    return {name_of(blocks): rows[name_of(blocks)] for blocks in networks}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 training networks and 10 unseen ones")
    parser.add_argument("--training", type=int, default=60)
    parser.add_argument("--unseen", type=int, default=200)
    parser.add_argument("--trials", type=int, default=TRIALS, help=f"schedules per operator (default {TRIALS})")
    parser.add_argument("--database", metavar="FILE")
    parser.add_argument("--json", metavar="PATH")
    arguments = parser.parse_args()
    n_training, n_unseen = (30, 10) if arguments.quick else (arguments.training, arguments.unseen)
    networks = drawn(n_training + n_unseen, seed=0)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, CostDatabase(arguments.database or Path(scratch) / "costs.sqlite") as database:
        rows = fill(database, networks, arguments.trials)
        names = list(rows)
        predictor, seconds = learned({name: rows[name] for name in names[:n_training]}, database, "cpu", Path(scratch))
        spread = float(np.median([row.spread or 0.0 for row in rows.values()]))
    took = time.perf_counter() - started
    unseen = [rows[name] for name in names[n_training:]]
    measured = np.array([row.value for row in unseen])
    lines, results = [], {}
    for label, predicted in predicted_both_ways(predictor, unseen).items():
        results[label] = accuracy = accuracy_of(predicted, measured)
        bias = float(np.mean(predicted / measured) - 1)
        lines.append((label, len(unseen), f"{accuracy.error:.2%}", f"{accuracy.error_90:.2%}", f"{accuracy.spearman:.4f}", f"{bias:+.2%}"))
    new = {s for row in unseen for s in row.operators} - set(predictor.table)
    best = results["table, models for the rest"]
    figure = Figure(
        f"latency of {len(unseen)} unseen networks on this CPU, 1 thread",
        f"mean error <= {MOST_ERROR:.0%}, Spearman >= {LEAST_RANK}",
        f"{best.error:.2%}, {best.spearman:.4f}",
        best.error <= MOST_ERROR and best.spearman >= LEAST_RANK,
    )
    return finish(
        "predictor_cpu",
        [figure],
        ("operators from", "unseen networks", "mean error", "90 % below", "Spearman", "mean difference"),
        lines,
        notes=(
            f"{n_training} training networks hold {len(predictor.table)} distinct operators; {len(new)} of the unseen networks' were new. "
            f"{arguments.trials} schedules were timed for each operator.",
            f"Measuring took {took - seconds:.0f} s (what the database knew is not measured again), fitting {seconds:.1f} s.",
            f"Measured latencies span {measured.min() * 1e6:,.0f} to {measured.max() * 1e6:,.0f} us; the half range of one is {spread:.1%} "
            "(median). A network also pays for calls between its operators, which the sum leaves out.",
        ),
        json_path=arguments.json,
    )


if __name__ == "__main__":
    sys.exit(main())
