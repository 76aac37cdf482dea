"""The phases of progressive shrinking: what each trains, for how long, and the subnets it draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ..augmentation import Augmentation
from ..spaces.ofa import STAGES, CompOFA, OFAMobileNetV3

ALL = 99


@dataclass(frozen=True, slots=True)
class Phase:
    """kernels, depths, expands: how many choices of each are open, from the largest down. subnets: trained on each batch, their
    gradients added up. lr: at the top of the cosine, for one process; the rate rises to it from `warmup_lr` over `warmup` epochs.
    """

    name: str
    epochs: int
    lr: float
    kernels: int = 1
    depths: int = 1
    expands: int = 1
    subnets: int = 1
    warmup: int = 0
    warmup_lr: float = 0.0

    def rate(self, epoch: float) -> float:
        """Learning rate at a moment, in epochs from the start of the phase."""
        if epoch < self.warmup:
            return self.warmup_lr + (self.lr - self.warmup_lr) * epoch / self.warmup
        return self.lr / 2 * (1 + math.cos(math.pi * min(1.0, (epoch - self.warmup) / max(1, self.epochs - self.warmup))))


@dataclass(frozen=True, slots=True)
class Schedule:
    """Phases in order, the first training the largest network alone, which teaches the others.

    batch: images of a process and step; images: training images of an epoch, None for all. kd: weight of the cross-entropy with the
    teacher's soft labels beside that with the smoothed labels. recalibration: images that a subnet's batch statistics are taken from.
    augment: images are padded, cropped and flipped; random_resized_crop to saturation: see `search.augmentation`. continuous_sizes:
    images of a batch have a size drawn from all multiples of 4 between the space's resolutions, not from these alone.
    """

    phases: tuple[Phase, ...]
    batch: int = 64
    images: int | None = None
    momentum: float = 0.9
    weight_decay: float = 3e-5
    smoothing: float = 0.1
    kd: float = 1.0
    recalibration: int = 2_000
    augment: bool = True
    random_resized_crop: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    continuous_sizes: bool = False
    precision: str = "fp32"

    @property
    def augmentation(self) -> Augmentation:
        """What is done to training images."""
        return Augmentation(self.augment, self.random_resized_crop, self.brightness, self.contrast, self.saturation)


SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {
        # As MOOFA's program trains on ImageNet, on 8 GPUs, where the paper's table is an image.
        "paper": Schedule(
            (
                Phase("teacher", 180, 3e-2, warmup_lr=3e-3),
                Phase("kernel", 120, 3e-3, ALL, warmup=5, warmup_lr=3e-3),
                Phase("depth1", 25, 2.5e-4, ALL, 2, subnets=2, warmup_lr=2.5e-3),
                Phase("depth2", 120, 7.5e-4, ALL, ALL, subnets=2, warmup=5, warmup_lr=7.5e-5),
                Phase("expand1", 25, 2.5e-4, ALL, ALL, 2, subnets=4, warmup_lr=2.5e-5),
                Phase("expand2", 120, 2.5e-4, ALL, ALL, ALL, subnets=4, warmup=5, warmup_lr=7.5e-5),
            ),
            random_resized_crop=0.08,
            brightness=32 / 255,
            saturation=0.5,
            continuous_sizes=True,
        ),
        # Short trainings need greater rates, and one subnet a step, which makes more steps of as much work. Crops and flips cost them more
        # than they give: 7 points on Fashion-MNIST at 16 pixels after 4 epochs.
        "small": Schedule(
            (
                Phase("teacher", 12, 0.15),
                Phase("kernel", 2, 0.06, ALL),
                Phase("depth1", 1, 0.06, ALL, 2),
                Phase("depth2", 2, 0.06, ALL, ALL),
                Phase("expand1", 2, 0.06, ALL, ALL, 2),
                Phase("expand2", 24, 0.1, ALL, ALL, ALL),
            ),
            images=12_000,
            augment=False,
        ),
        "smoke": Schedule(
            (
                Phase("teacher", 2, 0.1),
                Phase("kernel", 1, 0.05, ALL),
                Phase("depth2", 1, 0.05, ALL, ALL),
                Phase("expand2", 2, 0.05, ALL, ALL, ALL),
            ),
            batch=32,
            images=2_000,
            recalibration=250,
            augment=False,
        ),
    }
)


def phase_rows(space: OFAMobileNetV3, phase: Phase, rng: np.random.Generator, n: int) -> np.ndarray:
    """`n` random subnets of what a phase has open, as canonical rows, all at one resolution, drawn too."""
    cards = np.asarray(space.cardinalities)
    open_choices = cards.copy()
    open_choices[1 : 1 + STAGES] = phase.depths
    blocks = open_choices[1 + STAGES :]
    if isinstance(space, CompOFA):  # expansions go with depths there, so they have no phase and no genes
        blocks[:] = phase.kernels
    else:
        blocks[0::2], blocks[1::2] = phase.kernels, phase.expands
    rows = rng.integers(cards - np.minimum(open_choices, cards), cards, (n, len(cards)), dtype=np.int16)
    rows[:, 0] = rows[0, 0]
    return space.canonical_rows(rows)


def image_sizes(space: OFAMobileNetV3, rows: np.ndarray, rng: np.random.Generator | None = None) -> list[int]:
    """Sides of the images of batches whose subnets are `rows` (n, genes), one of each batch: their resolutions, or with `rng` (continuous
    image sizes) each drawn from the resolutions and all multiples of 4 between them, as Once-For-All's program does.
    """
    if rng is None:
        return [space.resolutions[r] for r in rows[:, 0].tolist()]
    least, greatest = space.resolutions[0], space.resolutions[-1]
    sizes = sorted({*space.resolutions, *range(-(-least // 4) * 4, greatest + 1, 4)})
    return [sizes[i] for i in rng.integers(len(sizes), size=len(rows)).tolist()]
