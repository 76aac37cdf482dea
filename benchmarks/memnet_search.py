"""MemNet's small preset on CIFAR-10 against random search that trains on as many images: accuracy and planned peak of what each chooses.

`python -m benchmarks.memnet_search [--quick] [--seeds N] [--json PATH] [--resume FOLDER]`. Needs `neaptide[search]` and the shared data.
Both search the same space (MemNet's cells at width 16 on images of 16 pixels) from the same seed. MemNet chooses by its score, equation
(4) with the preset's weights, relative to the median of what it trained; random search chooses its most accurate network, as is usual.
Accuracies are of the validation part; those on the held-out test part, looked at for the chosen networks alone, stand beside them. The
images of a search are all that any of its networks was shown: MemNet's go on from their parents' weights, which those images paid for,
and the networks of random search start anew.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from neaptide.search.data import load_data
from neaptide.search.engines.memnet import PRESETS, selection_score
from neaptide.search.evaluate import TRAININGS
from neaptide.search.result import Candidate, SearchResult
from neaptide.search.run import search

from .figures import Figure, finish, shared_folder

SPACE = {"width": 16, "resolution": 16}
SEEDS, QUICK_SEEDS = 3, 1
PRESET, QUICK_PRESET = "small", "smoke"


@dataclass(frozen=True)
class Chosen:
    """What one search ended with. `images`: shown in training, in all; `front`: accuracy and peak of each network of its front."""

    engine: str
    seed: int
    networks: int
    images: int
    accuracy: float
    test: float
    peak: int
    params: int
    front: tuple[tuple[float, float], ...]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed of the smoke preset")
    parser.add_argument("--seeds", type=int, help=f"how many (default {SEEDS})")
    parser.add_argument("--json", help="write results to this file")
    parser.add_argument("--resume", metavar="FOLDER", help="keep the studies there, and take up those that are")
    options = parser.parse_args()
    torch.set_num_threads(1)
    preset = QUICK_PRESET if options.quick else PRESET
    pairs = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(options.seeds or (QUICK_SEEDS if options.quick else SEEDS)):
            pairs.append(_pair(seed, preset, Path(options.resume or temporary)))
            print(*pairs[-1], sep="\n", file=sys.stderr)
    better = sum(ours.accuracy > theirs.accuracy and ours.peak < theirs.peak for ours, theirs in pairs)
    figures = [Figure("MemNet more accurate at a lower peak than random search of the same training", f"{len(pairs)} of {len(pairs)} seeds",
                      f"{better} of {len(pairs)}", better == len(pairs))]  # fmt: skip
    rows = [(c.engine, c.seed, c.networks, f"{c.images:,}", f"{c.accuracy:.2f} %", f"{c.test:.2f} %", f"{c.peak:,}", f"{c.params:,}")
            for pair in pairs for c in pair]  # fmt: skip
    columns = ("engine", "seed", "networks", "images trained on", "validation", "test", "peak B", "params")
    beaten, front = sum(_beaten(*pair) for pair in pairs), sum(len(theirs.front) for _, theirs in pairs)
    notes = (
        f"of the {front} networks on the fronts of random search, {beaten} are beaten by one on MemNet's",
        "MemNet's networks go on from their parents' weights, those of random search start anew",
        f"preset {preset}, width {SPACE['width']}, images of {SPACE['resolution']} pixels; CIFAR-10 as JPEG: not comparable with published",
    )
    return finish("memnet_search", figures, columns, rows, threads=1, notes=notes, json_path=options.json)


def _pair(seed: int, preset: str, folder: Path) -> tuple[Chosen, Chosen]:
    """MemNet's choice, and that of random search with as many images."""
    data = shared_folder() / "data" / "cifar10_jpeg.npz"

    def run(engine: str, **more: object) -> SearchResult:
        place = folder / f"{engine}-{seed}"
        return search(
            "memnet", engine, objectives="accuracy,peak", data=data, preset=preset, seed=seed, space_options=SPACE, folder=place,
            resume=(place / "study.sqlite").is_file(), **more,  # type: ignore[arg-type]
        )  # fmt: skip

    ours = run("memnet")
    images = sum(_images(c, preset) for c in ours.trials)
    epochs = TRAININGS[preset]["epochs"]
    theirs = run("random", budget=max(2, round(images / (epochs * TRAININGS[preset]["images"]))))
    feasible = [c for c in ours.trials if c.feasible]
    best = max(feasible, key=_score(feasible, preset))
    rival = max((c for c in theirs.trials if c.feasible), key=lambda c: c.values["accuracy"])
    return _chosen(ours, best, images), _chosen(theirs, rival, sum(_images(c, preset) for c in theirs.trials))


def _score(trained: list[Candidate], preset: str) -> Callable[[Candidate], float]:
    """Equation (4) of a network against the medians of `trained`."""
    a, m, p = (median(c.values[metric] for c in trained) for metric in ("accuracy", "peak", "params"))
    weights = {name: PRESETS[preset][name] for name in ("accuracy_weight", "memory_weight", "params_weight")}
    return lambda c: selection_score(c.values["accuracy"], c.values["peak"], c.values["params"], (a, m, p), **weights)


def _beaten(ours: Chosen, theirs: Chosen) -> int:
    """How many networks of their front one of ours beats: as accurate at least, no larger, and better in one of the two."""
    return sum(any(a >= b and m <= n and (a, m) != (b, n) for a, m in ours.front) for b, n in theirs.front)


def _images(candidate: Candidate, preset: str) -> int:
    return int(candidate.settings.get("epochs", TRAININGS[preset]["epochs"])) * int(TRAININGS[preset]["images"])


def _chosen(result: SearchResult, candidate: Candidate, images: int) -> Chosen:
    """The candidate with its accuracy on the test part, from the weights that the search kept."""
    from neaptide.search.outputs import network
    from neaptide.search.training import evaluate

    data = load_data(shared_folder() / "data" / "cifar10_jpeg.npz")
    module, trained = network(result.space, candidate, result.folder)
    if not trained:
        raise SystemExit(f"no weights of {candidate.text} in {result.folder}")
    values = candidate.values
    test = evaluate(module, data, "test", resolution=SPACE["resolution"])  # type: ignore[arg-type]
    return Chosen(result.engine, result.seed, len(result.trials), images, values["accuracy"], test, int(values["peak"]),
                  int(values["params"]), tuple((c.values["accuracy"], c.values["peak"]) for c in result.front))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
