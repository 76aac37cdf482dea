"""Latency predictors on measured networks: 900 to learn from, the rest of each device's networks to be judged on.

`hwnas_latency.npz` holds NAS-Bench-201, FBNet and OFA networks measured on phones, CPUs, GPUs and accelerators (HELP and OneProxy).
Cells whose output does not depend on their input are no networks and are left out.

    python -m benchmarks.predictors                 every device
    python -m benchmarks.predictors --quick         the five devices of the figures
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.figures import Figure, finish, shared_folder
from neaptide.targets.predictors import Columns, fit
from neaptide.targets.predictors.fit import Accuracy, accuracy_of

TRAINING = 900
REACH = {  # Spearman at least, mean relative error at most
    "OneProxy eagle_cpu_855": (0.98, 0.035),
    "OneProxy true_a76": (0.98, 0.035),
    "OneProxy rice_edgetpu": (0.98, 0.035),
    "OneProxy true_vpu": (0.98, 0.035),
    "NB201 raspi4": (0.975, None),
}
EDGES = ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))  # of a NAS-Bench-201 cell, as (to, from)
FBNET_SHAPES = (0, 1, *[2] * 3, 3, *[4] * 3, 5, *[6] * 3, 7, *[8] * 3, 9, *[10] * 3, 11)  # per block: equal input, output and stride


def nb201_columns(ops: np.ndarray, names: np.ndarray) -> tuple[Columns, np.ndarray]:
    """Cells as columns, and which of them connect input and output.

    Beside the operator of each edge: what runs after dead code is gone (edges that lead to the output), and what matters (those that
    the input reaches too); and the only operator into a node that nothing reads, which some runtimes run although the sum of
    several is removed there.
    """
    on = ops != 0
    reached, leads = np.zeros((len(ops), 4), bool), np.zeros((len(ops), 4), bool)
    reached[:, 0] = leads[:, 3] = True
    for edge, (to, source) in enumerate(EDGES):
        reached[:, to] |= reached[:, source] & on[:, edge]
    for edge, (to, source) in reversed(list(enumerate(EDGES))):
        leads[:, source] |= leads[:, to] & on[:, edge]
    into = {node: sum(on[:, edge].astype(int) for edge, (to, _) in enumerate(EDGES) if to == node) for node in (1, 2, 3)}
    texts: dict[str, np.ndarray] = {}
    for edge, (to, source) in enumerate(EDGES):
        op, runs = names[ops[:, edge]], on[:, edge] & leads[:, to]
        texts[f"op {to}<-{source}"] = op
        texts[f"runs {to}<-{source}"] = np.where(runs, np.char.add("runs ", op), "dead")
        texts[f"live {to}<-{source}"] = np.where(runs & reached[:, source], np.char.add("live ", op), "cut")
        alone = on[:, edge] & ~leads[:, to] & (into[to] == 1)
        texts[f"left {to}<-{source}"] = np.where(alone, np.char.add("left ", op), "gone")
    return Columns(texts, {}), reached[:, 3]


def fbnet_columns(ops: np.ndarray, names: np.ndarray) -> Columns:
    """The 22 searched blocks; blocks of equal shape share their texts."""
    return Columns({f"block {i}": np.char.add(names[ops[:, i]], f" @ {shape}") for i, shape in enumerate(FBNET_SHAPES)}, {})


def ofa_columns(kernel: np.ndarray, expansion: np.ndarray, depth: np.ndarray, resolution: np.ndarray) -> Columns:
    """Five stages of up to four blocks; and how many blocks of each shape there are, times the area of the image."""
    texts, numbers = {}, {"side": resolution.astype(float), "area": resolution.astype(float) ** 2}
    for stage in range(5):
        for place in range(4):
            i = 4 * stage + place
            shape = f"{stage} {'first' if place == 0 else 'rest'}"
            texts[f"block {i}"] = np.array(
                [
                    f"k{k} e{e} @ {shape}" if place < d else "absent"
                    for k, e, d in zip(kernel[:, i], expansion[:, i], depth[:, stage], strict=True)
                ]
            )
    for text in sorted({t for column in texts.values() for t in column} - {"absent"}):
        numbers[f"{text} x area"] = sum((column == text).astype(float) for column in texts.values()) * numbers["area"]
    return Columns(texts, numbers)


def devices(folder: Path) -> Iterator[tuple[str, Columns, np.ndarray]]:
    """Name, networks and measured latencies of every device in the file."""
    measured = np.load(folder / "hwnas_latency.npz", allow_pickle=False)
    cells = np.load(folder / "nasbench201.npz", allow_pickle=False)
    nb201, connected = nb201_columns(cells["ops"], cells["op_names"])
    fbnet = fbnet_columns(measured["fbnet_ops"], measured["fbnet_op_names"])
    ofa = ofa_columns(measured["ofa_ks"], measured["ofa_e"], measured["ofa_d"], measured["ofa_r"])
    index = measured["oneproxy_nb201_index"].astype(int)
    sets = {
        "oneproxy": ("OneProxy", nb201.take(index), connected[index]),
        "nasbench201": ("NB201", nb201, connected),
        "fbnet": ("FBNet", fbnet, np.ones(len(fbnet), bool)),
        "ofa": ("OFA", ofa, np.ones(len(ofa), bool)),
    }
    for prefix, (title, columns, valid) in sets.items():
        for key in sorted(measured.files):
            if key.startswith(f"{prefix}__"):
                latency = measured[key].astype(float)
                kept = valid & (latency > 0)
                yield f"{title} {key.removeprefix(f'{prefix}__')}", columns.take(kept), latency[kept]


def judged(columns: Columns, latency: np.ndarray, seed: int) -> tuple[Accuracy, Accuracy, str, float]:
    """Accuracy on networks not trained on, the predictor's own idea of it, the model chosen, and seconds to fit."""
    order = np.random.default_rng(seed).permutation(len(latency))
    training, rest = order[:TRAINING], order[TRAINING:]
    started = time.perf_counter()
    predictor = fit(columns.take(training), latency[training], seed=seed, unit="seconds")
    seconds = time.perf_counter() - started
    return accuracy_of(predictor.predict(columns.take(rest)), latency[rest]), predictor.accuracy, predictor.fitted.model.name, seconds


def mean(results: list[tuple[Accuracy, Accuracy, str, float]], value: Callable[[tuple[Accuracy, Accuracy, str, float]], float]) -> float:
    """Over the seeds."""
    return float(np.mean([value(r) for r in results]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the devices of the figures")
    parser.add_argument("--seeds", type=int, default=3, help="splits that each figure is the mean of (other devices: one)")
    parser.add_argument("--json", metavar="PATH")
    arguments = parser.parse_args()
    folder = shared_folder() / "data"
    if not folder.is_dir():
        print(f"benchmark inputs are not at {folder}; set NEAPTIDE_SHARED to the folder that holds data/", file=sys.stderr)
        return 1
    figures, rows = [], []
    for name, columns, latency in devices(folder):
        if arguments.quick and name not in REACH:
            continue
        results = [judged(columns, latency, seed) for seed in range(arguments.seeds if name in REACH else 1)]
        rank, error = mean(results, lambda r: r[0].spearman), mean(results, lambda r: r[0].error)
        own = mean(results, lambda r: r[1].error)
        rows.append(
            (
                name,
                len(latency) - TRAINING,
                f"{rank:.4f}",
                f"{error:.2%}",
                f"{own:.2%}",
                results[0][2],
                f"{mean(results, lambda r: r[3]):.1f}",
            )
        )
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
        if name in REACH:
            least, most = REACH[name]
            reach = f"Spearman >= {least}" + (f", error <= {most:.1%}" if most else "")
            figures.append(
                Figure(f"predictor, {name}", reach, f"{rank:.4f}, {error:.2%}", rank >= least and (most is None or error <= most))
            )
    return finish(
        "predictors",
        figures,
        ("device", "unseen", "Spearman", "error", "error by its own account", "model chosen", "fit, s"),
        rows,
        threads=1,
        notes=(
            f"{TRAINING} training networks; figures are means over {arguments.seeds} splits, other devices one split.",
            "FBNet raspi4, pixel3, eyeriss, fpga and NB201 eyeriss, fpga are themselves sums of look-up tables: they prove nothing.",
        ),
        json_path=arguments.json,
    )


if __name__ == "__main__":
    sys.exit(main())
