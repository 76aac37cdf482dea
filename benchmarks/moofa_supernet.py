"""MOOFA's supernet on small images, preset `small`: are networks taken out of it as good as the same networks trained alone?

A small elastic space is shrunk progressively, engine `moofa` searches it under three limits of the true peak, and what it chooses for
each is taken out of the supernet, and also trained alone from scratch, as the teacher was. Choices are made by the validation part; both
networks are judged on the test part, which nothing else looks at. A seed draws everything: what is carved off for validation, which
12,000 images are trained on, weights, batches and subnets. A run is one data set and one seed: 9 minutes of one core on Fashion-MNIST,
14 on CIFAR-10, so three seeds of the first, the default, stay within half an hour.

    python -m benchmarks.moofa_supernet                               Fashion-MNIST, seeds 0, 1 and 2
    python -m benchmarks.moofa_supernet --data cifar10 --seed 0       files of the shared data; CIFAR-10 as JPEG, which is lossy
    python -m benchmarks.moofa_supernet --quick                       the smoke schedule: shows that it runs, reaches nothing
    python -m benchmarks.moofa_supernet --resume FOLDER               keep checkpoints and finished runs there, and take up from them
    python -m benchmarks.moofa_supernet --long                        train each network alone for as many epochs as the supernet, too
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.figures import Figure, finish, shared_folder
from neaptide.passes.schedule import schedule
from neaptide.search.data import ImageData, load_data
from neaptide.search.engines.moofa import small_images
from neaptide.search.result import SearchResult
from neaptide.search.run import search
from neaptide.search.space import Architecture
from neaptide.search.spaces import load_space
from neaptide.search.spaces.ofa import OFAMobileNetV3
from neaptide.search.supernets.phases import SCHEDULES
from neaptide.search.supernets.shrinking import side_of
from neaptide.search.training import TrainSettings, evaluate, train

POINTS = 2.0
COLUMNS = (
    "data, seed", "limit B", "peak B", "M MACs", "params", "subnet %", "alone %", "points", "alone as long %", "alone CPU s", "tried",
    "network",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A data set of the shared data. `side`: of its images; `limits`: of the peak, in bytes; `seeds`: those it is run with."""

    title: str
    file: str
    side: int
    limits: tuple[int, ...]
    seeds: tuple[int, ...]


SOURCES = {
    "fashion_mnist": Source("Fashion-MNIST", "fashion_mnist.npz", 28, (15_000, 21_000, 28_000), (0, 1, 2)),
    "cifar10": Source("CIFAR-10 (JPEG)", "cifar10_jpeg.npz", 32, (20_000, 28_000, 38_000), (0,)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Subnets of a supernet against the same networks trained alone.")
    parser.add_argument("--data", nargs="+", choices=list(SOURCES), default=["fashion_mnist"])
    parser.add_argument("--seed", nargs="+", type=int, metavar="N", help="default: those the data set is run with")
    parser.add_argument("--quick", action="store_true", help="the smoke schedule, on the first seed")
    parser.add_argument("--long", action="store_true", help="train each network alone for as many epochs as the supernet, too")
    parser.add_argument("--resume", metavar="FOLDER", help="keep checkpoints and finished runs there, and take up from them")
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    torch.set_num_threads(1)
    preset = "smoke" if options.quick else "small"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.resume or scratch)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.data}
        for name in runs:
            seeds = options.seed or SOURCES[name].seeds
            for seed in seeds[:1] if options.quick else seeds:
                place = folder / preset / f"{name}-{seed}"
                finished_run(name, seed, preset, place)
                runs[name].append(lengthened_run(name, preset, place) if options.long else stored_run(place))
        return report(runs, preset, options.json)


def report(runs: dict[str, list[dict[str, Any]]], preset: str, json_path: str | None) -> int:
    """Figures over the seeds of each data set, and a row for each network."""
    figures, tried, over = [], 0, []
    for name, each in runs.items():
        gaps = [row["subnet"] - row["alone"] for run in each for row in run["rows"]]
        seeds = ", ".join(str(run["seed"]) for run in each)
        figures.append(
            Figure(
                f"subnets taken out of a supernet against the same {len(gaps)} networks trained alone, {SOURCES[name].title} test part, "
                f"seed{'s' * (len(each) > 1)} {seeds}",
                f"at most {POINTS:.0f} points lower", f"least difference {min(gaps):+.2f} points", min(gaps) >= -POINTS,
            )
        )  # fmt: skip
        tried += sum(row["tried"] for run in each for row in run["rows"])
        over += [text for run in each for row in run["rows"] for text in row["over"]]
    chosen = sum(len(run["rows"]) for each in runs.values() for run in each)
    figures.append(Figure(f"networks over their limit, of {tried} tried and {chosen} chosen", "none", str(len(over)), not over))
    rows = [
        [
            f"{run['data']}, {run['seed']}", f"{row['limit']:,}", f"{row['peak']:,}", f"{row['macs'] / 1e6:.2f}", f"{row['params']:,.0f}",
            f"{row['subnet']:.2f}", f"{row['alone']:.2f}", f"{row['subnet'] - row['alone']:+.2f}",
            f"{row['long']:.2f}" if "long" in row else "", f"{row['seconds']:.0f}", row["tried"], row["network"],
        ]
        for each in runs.values() for run in each for row in run["rows"]
    ]  # fmt: skip
    cpu = {f"{run['data']}, {run['seed']}": run["seconds"] for each in runs.values() for run in each}
    plan = SCHEDULES[preset]
    return finish(
        "MOOFA: supernet against networks trained alone",
        figures,
        COLUMNS,
        rows,
        notes=[
            f"Preset {preset}, {plan.images or 0:,} training images, 2,000 for validation. CPU seconds of each run: "
            f"{', '.join(f'{name}: {s:.0f}' for name, s in cpu.items())}.",
            "A run's supernet is trained once; subnets have batch statistics of their own and no training of their own. A network alone is "
            f"trained for the teacher's {plan.phases[0].epochs} epochs; the supernet, and a network as long, for {whole(preset)} in all.",
        ],
        json_path=json_path,
    )


def stored_run(folder: Path) -> dict[str, Any]:
    """What `finished_run` left in the folder."""
    return json.loads((folder / "run.json").read_text())


def lengthened_run(name: str, preset: str, folder: Path) -> dict[str, Any]:
    """A finished run, with the test accuracy of each network trained alone for as many epochs as the supernet."""
    run = stored_run(folder)
    space, data = space_and_data(name, run["seed"])
    for row in run["rows"]:
        if "long" not in row:
            row["long"] = trained_alone(space, data, folder, preset, space.parse(row["network"]), run["seed"], whole(preset))[0]
            (folder / "run.json").write_text(json.dumps(run, indent=1))
    return run


def whole(preset: str) -> int:
    """Epochs of a supernet's training in all."""
    return sum(p.epochs for p in SCHEDULES[preset].phases)


def space_and_data(name: str, seed: int) -> tuple[OFAMobileNetV3, ImageData]:
    """The elastic space for the images of a source, and 12,000 of them."""
    source = SOURCES[name]
    space = load_space("moofa", **small_images(source.side), classes=10)
    assert isinstance(space, OFAMobileNetV3)
    data = load_data(shared_folder() / "data" / source.file, val=2_000, limit=12_000, seed=seed)
    assert isinstance(data, ImageData)
    return space, in_colour(data)


def finished_run(name: str, seed: int, preset: str, folder: Path) -> None:
    """Leave a run's rows and CPU seconds in the folder, where they are not there already."""
    stored = folder / "run.json"
    if stored.is_file():
        return
    started, source = time.process_time(), SOURCES[name]
    space, data = space_and_data(name, seed)
    rows = []
    for limit in source.limits:
        found = chosen(space, data, folder, preset, limit, seed)
        assert found.best is not None and found.test_accuracy is not None
        planned = schedule(space.graph(found.best.arch)).peak
        over = [t.text for t in found.trials if t.values["peak"] > limit] + ([found.best.text] if planned > limit else [])
        alone, seconds = trained_alone(space, data, folder, preset, found.best.arch, seed)
        rows.append(
            {
                "limit": limit, "peak": planned, "macs": found.best.values["macs"], "params": found.best.values["params"],
                "subnet": found.test_accuracy, "alone": alone, "seconds": seconds, "tried": len(found.trials), "over": over,
                "network": found.best.text,
            }
        )  # fmt: skip
    run = {"data": source.title, "seed": seed, "seconds": time.process_time() - started, "rows": rows}
    stored.write_text(json.dumps(run, indent=1))


def chosen(space: OFAMobileNetV3, data: ImageData, folder: Path, preset: str, limit: int, seed: int) -> SearchResult:
    """The search under one limit. All searches of a run share one supernet, which the first of them trains."""
    own = folder / f"peak{limit}"
    if not own.exists():
        own.mkdir(parents=True)
        (folder / "supernet").mkdir(exist_ok=True)
        (own / "supernet").symlink_to((folder / "supernet").absolute(), target_is_directory=True)
    few = {"samples": 40, "finalists": 8} if preset == "small" else {"samples": 10, "finalists": 2}
    return search(
        space, "moofa", objectives="accuracy", constraints=[f"peak<={limit}"], data=data, preset=preset, options=few, workers=1, folder=own,
        seed=seed, resume=(own / "study.sqlite").exists(),
        progress=lambda stage, done, total: print(f"[{time.process_time():.0f} s] {stage} {done}", file=sys.stderr, flush=True),
    )  # fmt: skip


def trained_alone(
    space: OFAMobileNetV3, data: ImageData, folder: Path, preset: str, arch: Architecture, seed: int, epochs: int = 0
) -> tuple[float, float]:
    """Test accuracy of `arch` trained from scratch as the teacher was, for its epochs unless told otherwise; and seconds of CPU."""
    plan, started = SCHEDULES[preset], time.process_time()
    path = folder / f"alone-{arch.digest}{f'-{epochs}' if epochs else ''}.safetensors"
    settings = TrainSettings(
        epochs=epochs or plan.phases[0].epochs, batch=plan.batch, lr=plan.phases[0].lr, momentum=plan.momentum, nesterov=True,
        weight_decay=plan.weight_decay, decay_norms=False, schedule="cosine", label_smoothing=plan.smoothing, augment=plan.augment,
        images=plan.images,
        resolution=side_of(space, arch, data), precision="fp32",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = space.module(arch)
    train(
        module,
        data,
        settings,
        seed=seed,
        checkpoint=path,
        progress=lambda epoch, loss: print(f"alone {epoch}: {loss:.3f}", file=sys.stderr, flush=True),
    )
    return evaluate(module, data, "test", resolution=settings.resolution), time.process_time() - started


def in_colour(data: ImageData) -> ImageData:
    """Grey images with three equal channels; others as they are."""
    if data.shape[0] == 3:
        return data
    assert data.test is not None
    train, val, test = ((images.expand(-1, 3, -1, -1), labels) for images, labels in (data.train, data.val, data.test))
    return replace(data, train=train, val=val, test=test, mean=data.mean * 3, std=data.std * 3)


if __name__ == "__main__":
    sys.exit(main())
