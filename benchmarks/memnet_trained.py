"""MemNet's ranking controller on networks that were trained here: those of the random searches that `benchmarks.memnet_search` ran.

`python -m benchmarks.memnet_trained [--quick] [--studies FOLDER] [--json PATH]`. Needs `neaptide[search]` and the studies that
`memnet_search --resume FOLDER` leaves, in out/bench/memnet_search.rows unless told otherwise. The networks are of MemNet's own space, up to
five blocks in each of five positions, all trained alike from scratch on CIFAR-10; accuracies are of the validation part. Columns are those
of the paper's Table 4, for the ten and twenty best of the networks that are ranked; a random order is the row to compare with.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from neaptide.search.engines.memnet_controller import Controller, ControllerSettings, average_precision, discounted_gain
from neaptide.search.run import search
from neaptide.search.spaces.memnet import MemNet

from .figures import Figure, finish

STUDIES = Path(__file__).resolve().parent.parent / "out" / "bench" / "memnet_search.rows"
DRAWS, QUICK_DRAWS = 10, 2
TRAINED = 70
TOP = (10, 20)
RECURRENT = {
    "network-cross (Neaptide)": ControllerSettings(members=2),
    "network-cross, one network": ControllerSettings(),
    "single RNN, MSE": ControllerSettings(kind="single", loss="mse"),
    "single RNN, ListNet": ControllerSettings(kind="single"),
    "double RNN, MSE": ControllerSettings(kind="double", loss="mse"),
}
Rank = Callable[[np.ndarray, np.ndarray], np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_DRAWS} draws instead of {DRAWS}")
    parser.add_argument("--studies", type=Path, default=STUDIES, metavar="FOLDER", help="what memnet_search left")
    parser.add_argument("--json", help="write results to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draws = QUICK_DRAWS if options.quick else DRAWS
    blocks, accuracy, params, peaks = trained_networks(options.studies)
    taken: dict[str, list[tuple[float, ...]]] = {}
    seconds: dict[str, float] = {}
    for draw in range(draws):
        order = np.random.default_rng(draw).permutation(len(accuracy))
        known, asked = order[:TRAINED], order[TRAINED:]
        for name, rank in _methods(blocks, accuracy, params, peaks, draw).items():
            start = time.process_time()
            scores = rank(known, asked)
            seconds[name] = seconds.get(name, 0.0) + (time.process_time() - start) / draws
            found = tuple(measure(scores, accuracy[asked], k) for measure in (average_precision, discounted_gain) for k in TOP)
            taken.setdefault(name, []).append(found)
        print(f"draw {draw + 1} of {draws}", file=sys.stderr)
    means = {name: np.mean(values, axis=0) for name, values in taken.items()}
    rows = [
        (name, *(f"{m:.3f} ± {s:.3f}" for m, s in zip(means[name], np.std(values, axis=0), strict=True)), f"{seconds[name]:.1f}")
        for name, values in taken.items()
    ]
    ours, single = means["network-cross (Neaptide)"], means["single RNN, MSE"]
    figures = [
        Figure("AP@10 of networks trained here, over the single RNN with MSE", "stated", f"{ours[0]:.3f}, {ours[0] - single[0]:+.3f}", True)
    ]
    columns = ("method", *(f"{name}@{k}" for name in ("AP", "NDCG") for k in TOP), "CPU s")
    notes = (f"mean ± deviation over {draws} draws of {TRAINED} training and {len(accuracy) - TRAINED} ranked networks",)
    return finish("memnet_trained", figures, columns, rows, threads=1, notes=notes, json_path=options.json)


def trained_networks(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Blocks (networks, 25, 61), accuracies, parameters and peaks (networks,) of the random searches under `folder`, each network once."""
    places = sorted(place for place in folder.glob("random-*") if (place / "study.sqlite").is_file())
    if not places:
        raise SystemExit(f"no studies in {folder}: run benchmarks.memnet_search --resume {folder} first")
    results = [search(folder=place, resume=True, measure=0) for place in places]
    space = results[0].space
    assert isinstance(space, MemNet)
    networks = {c.arch: c.values for result in results for c in result.trials}
    values = np.array([[v[name] for name in ("accuracy", "params", "peak")] for v in networks.values()])
    return space.block_features(space.encode(list(networks))), *values.T


def _methods(blocks: np.ndarray, accuracy: np.ndarray, params: np.ndarray, peaks: np.ndarray, seed: int) -> dict[str, Rank]:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import RidgeCV

    counts = blocks.sum(axis=1)

    def recurrent(settings: ControllerSettings) -> Rank:
        def rank(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
            controller = Controller(settings, seed=seed).fit(blocks[known], accuracy[known], params[known], peaks[known])
            return controller.score(blocks[asked])

        return rank

    def regressor(made: Callable[[], object]) -> Rank:
        def rank(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
            standing = np.argsort(np.argsort(accuracy[known])) / len(known)
            return made().fit(counts[known], standing).predict(counts[asked])  # type: ignore[attr-defined]

        return rank

    methods = {name: recurrent(settings) for name, settings in RECURRENT.items()}
    methods["ridge, how often each feature occurs"] = regressor(lambda: RidgeCV(np.logspace(-1, 4, 11)))
    methods["gradient boosting, the same"] = regressor(
        lambda: HistGradientBoostingRegressor(max_iter=100, min_samples_leaf=5, random_state=seed)
    )
    methods["fewest parameters first"] = lambda _, asked: -params[asked]
    methods["random order"] = lambda _, asked: np.random.default_rng(seed).random(len(asked))
    return methods


if __name__ == "__main__":
    sys.exit(main())
