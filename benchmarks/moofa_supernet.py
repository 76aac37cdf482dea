"""MOOFA's supernet on Fashion-MNIST, preset `small`: are networks taken out of it as good as the same networks trained alone?

A small elastic space is shrunk progressively, engine `moofa` searches it under three limits of the true peak, and what it chooses for
each is taken out of the supernet, and also trained alone from scratch, as the teacher was. Both are judged on the test part, which
nothing else looks at.

    python -m benchmarks.moofa_supernet                    12,000 training images
    python -m benchmarks.moofa_supernet --quick            the smoke schedule: shows that it runs, reaches nothing
    python -m benchmarks.moofa_supernet --resume FOLDER    keep checkpoints there, and take up from them
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.figures import Figure, finish, shared_folder
from neaptide.passes.schedule import schedule
from neaptide.search.data import ImageData, load_data
from neaptide.search.engines.moofa import small_images
from neaptide.search.result import Candidate, SearchResult
from neaptide.search.run import search
from neaptide.search.spaces import load_space
from neaptide.search.spaces.ofa import OFAMobileNetV3
from neaptide.search.supernets.phases import SCHEDULES
from neaptide.search.supernets.shrinking import side_of
from neaptide.search.training import TrainSettings, evaluate, train

SPACE = {**small_images(28), "classes": 10}
LIMITS = (15_000, 21_000, 28_000)  # bytes
POINTS = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description="Subnets of a supernet against the same networks trained alone.")
    parser.add_argument("--quick", action="store_true", help="the smoke schedule")
    parser.add_argument("--resume", metavar="FOLDER", help="keep checkpoints there, and take up from them")
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.resume or scratch)
        return report(folder, "smoke" if options.quick else "small", started, options.json)


def report(folder: Path, preset: str, started: float, json_path: str | None) -> int:
    space = load_space("moofa", **SPACE)
    assert isinstance(space, OFAMobileNetV3)
    data = load_data(shared_folder() / "data" / "fashion_mnist.npz", val=2_000, limit=12_000)
    assert isinstance(data, ImageData)
    data = in_colour(data)
    rows, figures, least_gap, over = [], [], np.inf, []
    for limit in LIMITS:
        found = chosen(space, data, folder, preset, limit)
        assert found.best is not None and found.test_accuracy is not None
        planned = schedule(space.graph(found.best.arch)).peak
        over += [t.text for t in found.trials if t.values["peak"] > limit] + ([found.best.text] if planned > limit else [])
        alone, seconds = trained_alone(space, data, folder, preset, found.best)
        gap = found.test_accuracy - alone
        least_gap = min(least_gap, gap)
        rows.append(
            [
                f"{limit:,}", f"{planned:,}", f"{found.best.values['macs'] / 1e6:.2f}", f"{found.best.values['params']:,.0f}",
                f"{found.test_accuracy:.2f}", f"{alone:.2f}", f"{gap:+.2f}", f"{seconds:.0f}", len(found.trials), found.best.text,
            ]
        )  # fmt: skip
    trials = sum(int(r[8]) for r in rows)
    figures = [
        Figure(
            f"subnets taken out of a supernet against the same {len(LIMITS)} networks trained alone, Fashion-MNIST test part",
            f"at most {POINTS:.0f} points lower", f"least difference {least_gap:+.2f} points", bool(least_gap >= -POINTS),
        ),
        Figure(f"networks over their limit, of {trials} tried and {len(LIMITS)} chosen", "none", str(len(over)), not over),
    ]  # fmt: skip
    return finish(
        "MOOFA: supernet against networks trained alone",
        figures,
        ["limit B", "peak B", "M MACs", "params", "subnet %", "alone %", "points", "alone CPU s", "tried", "network"],
        rows,
        notes=[
            f"Preset {preset}, {len(data.train[1]):,} training images, {time.process_time() - started:.0f} s of CPU in this run. The "
            "supernet is trained once; subnets have batch statistics of their own and no training of their own."
        ],
        json_path=json_path,
    )


def chosen(space: OFAMobileNetV3, data: ImageData, folder: Path, preset: str, limit: int) -> SearchResult:
    """The search under one limit. All searches share one supernet, which the first of them trains."""
    own = folder / f"peak{limit}"
    if not own.exists():
        own.mkdir(parents=True)
        (folder / "supernet").mkdir(exist_ok=True)
        (own / "supernet").symlink_to((folder / "supernet").absolute(), target_is_directory=True)
    few = {"samples": 40, "finalists": 8} if preset == "small" else {"samples": 10, "finalists": 2}
    return search(
        space, "moofa", objectives="accuracy", constraints=[f"peak<={limit}"], data=data, preset=preset, options=few, workers=1, folder=own,
        resume=(own / "study.sqlite").exists(),
        progress=lambda stage, done, total: print(f"[{time.process_time():.0f} s] {stage} {done}", file=sys.stderr, flush=True),
    )  # fmt: skip


def trained_alone(space: OFAMobileNetV3, data: ImageData, folder: Path, preset: str, candidate: Candidate) -> tuple[float, float]:
    """Test accuracy of the candidate trained from scratch as the teacher was; and seconds of CPU."""
    plan, started, path = SCHEDULES[preset], time.process_time(), folder / f"alone-{candidate.arch.digest}.safetensors"
    settings = TrainSettings(
        epochs=plan.phases[0].epochs, batch=plan.batch, lr=plan.phases[0].lr, momentum=plan.momentum, nesterov=True,
        weight_decay=plan.weight_decay, decay_norms=False, schedule="cosine", label_smoothing=plan.smoothing, augment=plan.augment,
        images=plan.images,
        resolution=side_of(space, candidate.arch, data), precision="fp32",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = space.module(candidate.arch)
    train(
        module,
        data,
        settings,
        checkpoint=path,
        progress=lambda epoch, loss: print(f"alone {epoch}: {loss:.3f}", file=sys.stderr, flush=True),
    )
    return evaluate(module, data, "test", resolution=settings.resolution), time.process_time() - started


def in_colour(data: ImageData) -> ImageData:
    """Grey images with three equal channels."""
    assert data.test is not None
    train, val, test = ((images.expand(-1, 3, -1, -1), labels) for images, labels in (data.train, data.val, data.test))
    return replace(data, train=train, val=val, test=test, mean=data.mean * 3, std=data.std * 3)


if __name__ == "__main__":
    sys.exit(main())
