"""Accuracy predictors on the published accuracies of MOOFA, Once-for-All and CompOFA subnets on ImageNet.

A fifth of each set is held out, five times over; predictors learn from the rest, or from 200 of it, and choose their model by
cross-validation there. Beside them the MOOFA paper's network on the same samples.

    python -m benchmarks.moofa_predictor            five seeds, the networks two
    python -m benchmarks.moofa_predictor --quick    two seeds, the networks once
"""

from __future__ import annotations

import argparse
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.figures import Figure, finish, shared_folder
from benchmarks.moofa_data import SETS, Published, published
from neaptide.search.accuracy_predictor import Agreement, agreement, fit_accuracy, fit_model, predict_model

SEEDS = 5
FEW = 200
REACH = {"MOOFA": (0.950, 0.33, 0.91), "OFA": (0.902, 0.325, 0.87)}  # tau and RMSE with 80 %, tau with 200 samples


def parts(data: Published, samples: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which subnets are trained on and which are held out."""
    order = np.random.default_rng(seed).permutation(len(data))
    split = int(0.8 * len(data))
    return order[: samples or split], order[split:]


def chosen(data: Published, samples: int | None, seed: int) -> tuple[Agreement, float, str, float]:
    """Agreement on the fifth held out, the error the predictor expected, the model it chose, and seconds of CPU to choose and fit."""
    training, held = parts(data, samples, seed)
    started = time.process_time()
    predictor = fit_accuracy(data.features.take(training), data.accuracy[training], seed=seed)
    seconds = time.process_time() - started
    return agreement(predictor.predict(data.features.take(held)), data.accuracy[held]), predictor.error.rmse, predictor.model, seconds


def network(model: str, data: Published, samples: int | None, seeds: range) -> tuple[float, float]:
    """Mean tau and RMSE of a network on the fifths held out."""
    found = []
    for seed in seeds:
        training, held = parts(data, samples, seed)
        arrays = fit_model(model, data.features.take(training), data.accuracy[training], seed=seed)
        found.append(agreement(predict_model(model, arrays, data.features.take(held)), data.accuracy[held]))
    return float(np.mean([a.tau for a in found])), float(np.mean([a.rmse for a in found]))


def main() -> int:
    parser = argparse.ArgumentParser(description="Accuracy predictors on published accuracies.")
    parser.add_argument("--quick", action="store_true", help="two seeds, the networks once")
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(2 if options.quick else SEEDS)
    rows, figures = [], []
    for name in SETS:
        data = published(shared_folder() / "data", name)
        for samples in (None, FEW):
            ours = [chosen(data, samples, seed) for seed in seeds]
            tau, rmse = (float(np.mean([getattr(a[0], key) for a in ours])) for key in ("tau", "rmse"))
            peers = [network(model, data, samples, range(1 if options.quick else 2)) for model in ("mlp", "mlp-published")]
            count = f"{samples or int(0.8 * len(data))}"
            models = ", ".join(sorted({m for *_, m, _ in ours}))
            rows.append(
                [
                    name,
                    count,
                    f"{tau:.4f}",
                    f"{rmse:.3f}",
                    f"{np.mean([r[1] for r in ours]):.3f}",
                    models,
                    f"{np.mean([r[3] for r in ours]):.1f}",
                ]
                + [f"{t:.3f} / {e:.3f}" for t, e in peers]
            )
            if name in REACH:
                least_tau, most_rmse, few_tau = REACH[name]
                beside = f"the paper's network {peers[0][0]:.3f} / {peers[0][1]:.3f}"
                if samples is None:
                    what, reach = f"{name} accuracies, a fifth held out, {len(seeds)} seeds", f"tau >= {least_tau:.3f}, RMSE <= {most_rmse}"
                    figures.append(Figure(what, reach, f"{tau:.4f}, {rmse:.3f}", tau >= least_tau and rmse <= most_rmse, beside))
                else:
                    what = f"{name} accuracies from {FEW} samples"
                    figures.append(Figure(what, f"tau >= {few_tau}", f"{tau:.4f}", tau >= few_tau, beside))
    return finish(
        "Accuracy predictors on published accuracies",
        figures,
        ["set", "samples", "tau", "RMSE", "expected", "model", "CPU s", "network", "as published"],
        rows,
        notes=[
            "RMSE in points of top-1. `expected`: what the predictor's own cross-validation said. `network`: the paper's three layers of "
            "400, trained as Once-for-All's authors advise; `as published`: with the learning rate of MOOFA's program."
        ],
        json_path=options.json,
    )


if __name__ == "__main__":
    sys.exit(main())
