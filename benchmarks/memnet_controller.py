"""MemNet's ranking controller on real accuracies: trained on 200 cells of NAS-Bench-201, it ranks 1,000 others.

`python -m benchmarks.memnet_controller [--quick] [--json PATH]`. Needs `neaptide[search]` and the shared data. Cells are block
sequences: one block an edge, in the features of the paper (input locations, output location, two operations, joining), edges that
cannot reach the cell's output left out. Accuracies are CIFAR-10's after 200 epochs. Neaptide's controller also reads what the paths of
a cell look like (`path_features`), which the paper does not; one row goes without, and ridge and boosting are shown with both. The columns
are those of the paper's Table 4, whose own rows (other networks, fewer of them) stand below ours.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from neaptide.search.engines.memnet_controller import Controller, ControllerSettings, average_precision, discounted_gain
from neaptide.search.engines.memnet_paths import path_features
from neaptide.search.oracle import Oracle
from neaptide.search.spaces import load_space

from .figures import Figure, finish, shared_folder

LOCATIONS, OPERATIONS = 15, 7  # of the paper's block features
FEATURES = 3 * LOCATIONS + 2 * OPERATIONS + 2
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
TRAINED, RANKED = 200, 1_000
SEEDS, QUICK_SEEDS = 10, 2
AP50, NDCG50, OVER_SINGLE = 0.58, 0.72, 0.15
PAPER = (
    ("paper: single RNN", ".066", ".237", ".043", ".078"),
    ("paper: double RNN", ".128", ".268", ".062", ".080"),
    ("paper: proposed", ".196", ".283", ".135", ".201"),
)
OURS, ONE, WITHOUT = "network-cross (Neaptide)", "network-cross, one network", "network-cross, one network, no paths"
RECURRENT = {
    OURS: ControllerSettings(members=2),
    ONE: ControllerSettings(),
    WITHOUT: ControllerSettings(),
    "single RNN, MSE": ControllerSettings(kind="single", loss="mse"),
    "single RNN, ListNet": ControllerSettings(kind="single"),
    "double RNN, MSE": ControllerSettings(kind="double", loss="mse"),
}


@dataclass(frozen=True)
class Cells:
    """The table: operations of each edge (networks, 6), what they cost and reach, and the genes of the space for the oracle."""

    operations: np.ndarray
    accuracy: np.ndarray
    params: np.ndarray
    rows: np.ndarray


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SEEDS} seeds instead of {SEEDS}")
    parser.add_argument("--json", help="write results to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = QUICK_SEEDS if options.quick else SEEDS
    cells = _cells()
    blocks, paths = block_sequences(cells.operations), cell_paths(cells.operations)
    taken: dict[str, list[tuple[float, ...]]] = {}
    seconds: dict[str, float] = {}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(cells.accuracy))
        known, asked = order[:TRAINED], order[TRAINED : TRAINED + RANKED]
        for name, rank in _methods(cells, blocks, paths, seed).items():
            start = time.process_time()
            scores = rank(known, asked)
            seconds[name] = seconds.get(name, 0.0) + (time.process_time() - start) / seeds
            truth = cells.accuracy[asked]
            measures = (average_precision, discounted_gain)
            taken.setdefault(name, []).append(tuple(m(scores, truth, k) for m in measures for k in (50, 100)))
        print(f"seed {seed + 1} of {seeds}", file=sys.stderr)
    means = {name: np.mean(values, axis=0) for name, values in taken.items()}
    spread = {name: np.std(values, axis=0) for name, values in taken.items()}
    rows = [
        (name, *(f"{m:.3f} ± {s:.3f}" for m, s in zip(means[name], spread[name], strict=True)), f"{seconds[name]:.1f}") for name in means
    ]
    ours, single = means[OURS], means["single RNN, MSE"]
    over = float(ours[0] - single[0])
    figures = [
        Figure(f"AP@50, {TRAINED} training nets, {seeds} seeds", f">= {AP50}", f"{ours[0]:.3f}", bool(ours[0] >= AP50)),
        Figure("NDCG@50", f">= {NDCG50}", f"{ours[2]:.3f}", bool(ours[2] >= NDCG50)),
        Figure("AP@50 over the single RNN with MSE", f">= +{OVER_SINGLE}", f"{over:+.3f}", over >= OVER_SINGLE),
    ]
    columns = ("method", "AP@50", "AP@100", "NDCG@50", "NDCG@100", "CPU s")
    errors = [f"{s / max(seeds - 1, 1) ** 0.5:.3f}" for s in spread[OURS]]
    notes = (
        f"mean ± deviation over {seeds} draws of {TRAINED} training and {RANKED} ranked cells; "
        f"standard errors of Neaptide's means: AP@50 {errors[0]}, NDCG@50 {errors[2]}",
        "Neaptide's row is two networks that vote; the row below it is one of them, as in the paper; "
        "both also read numbers about each cell's paths, the third row does not, and neither do the other recurrent rankers",
    )
    return finish(
        "memnet_controller", figures, columns, [*rows, *((*row, "") for row in PAPER)], threads=1, notes=notes, json_path=options.json
    )


def block_sequences(operations: np.ndarray) -> np.ndarray:
    """Cells (networks, 6 edges) as float32 (networks, 6 blocks, 61); an edge that is none, or that nothing reaches or uses, is zeros."""
    source, to = np.array(EDGES).T
    on = operations > 0
    reached, useful = np.zeros((len(operations), 4), bool), np.zeros((len(operations), 4), bool)
    reached[:, 0] = useful[:, 3] = True
    for e in range(len(EDGES)):
        reached[:, to[e]] |= reached[:, source[e]] & on[:, e]
    for e in reversed(range(len(EDGES))):
        useful[:, source[e]] |= useful[:, to[e]] & on[:, e]
    out = np.zeros((len(operations), len(EDGES), FEATURES), np.float32)
    for e in range(len(EDGES)):
        alive = on[:, e] & reached[:, source[e]] & useful[:, to[e]]
        out[alive, e, source[e]] = 1
        out[alive, e, 2 * LOCATIONS + to[e]] = 1
        out[alive, e, 3 * LOCATIONS + operations[alive, e]] = 1
        out[alive, e, FEATURES - 2] = 1  # joined by addition
    return out


def cell_paths(operations: np.ndarray) -> np.ndarray:
    """Cells (networks, 6 edges) as `path_features` of their four operations, none being no edge: float32 (networks, 19)."""
    edges = np.empty((*operations.shape, 3), np.int64)
    edges[..., :2], edges[..., 2] = EDGES, operations - 1
    return path_features(edges, 4, 3)


def _cells() -> Cells:
    table = np.load(shared_folder() / "data" / "nasbench201.npz")
    operations = table["ops"].astype(np.int64)
    space = load_space("nasbench201")
    rows = space.encode([space.parse(text.decode()) for text in table["arch_str"]])
    return Cells(operations, table["cifar10_test_200"].astype(float), table["params_cifar10"].astype(float), rows)


def _pairs(operations: np.ndarray) -> np.ndarray:
    """One-hot operations and their products over pairs of edges."""
    hot = np.eye(5)[operations]
    both = [np.einsum("ni,nj->nij", hot[:, a], hot[:, b]).reshape(len(hot), -1) for a in range(6) for b in range(a)]
    return np.hstack([hot.reshape(len(hot), -1), *both])


def _methods(cells: Cells, blocks: np.ndarray, paths: np.ndarray, seed: int) -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import RidgeCV

    oracle = Oracle(load_space("nasbench201"))
    flat, pairs = np.eye(5)[cells.operations].reshape(len(cells.operations), -1), _pairs(cells.operations)
    seen = paths / np.maximum(paths.std(0), 1e-6)

    def recurrent(settings: ControllerSettings, whole: np.ndarray | None) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        def rank(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
            peaks = oracle.cost(cells.rows[known], ("peak",))["peak"]
            numbers = (None, None) if whole is None else (whole[known], whole[asked])
            controller = Controller(settings, seed=seed).fit(blocks[known], cells.accuracy[known], cells.params[known], peaks, numbers[0])
            return controller.score(blocks[asked], numbers[1])

        return rank

    def regressor(made: Callable[[], object], features: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        def rank(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
            standing = np.argsort(np.argsort(cells.accuracy[known])) / len(known)
            return made().fit(features[known], standing).predict(features[asked])  # type: ignore[attr-defined]

        return rank

    def ridge() -> object:
        return RidgeCV(np.logspace(-1, 4, 11))

    def boosting() -> object:
        return HistGradientBoostingRegressor(max_iter=150, min_samples_leaf=5, random_state=seed)

    methods = {name: recurrent(settings, paths if name in (OURS, ONE) else None) for name, settings in RECURRENT.items()}
    methods["ridge, pairs of edges"] = regressor(ridge, pairs)
    methods["ridge, pairs of edges and paths"] = regressor(ridge, np.hstack([pairs, seen]))
    methods["gradient boosting"] = regressor(boosting, flat)
    methods["gradient boosting, with paths"] = regressor(boosting, np.hstack([flat, paths]))
    return methods


if __name__ == "__main__":
    sys.exit(main())
