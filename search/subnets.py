"""Subnets of once-for-all spaces as arrays: what accuracy predictors read of them, and their peak by the published rule.

A subnet is a depth for each stage, a kernel and an expansion ratio for each block that its stage's depth reaches, and a resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..compiler.errors import SourceError
from .moofa_sizing import round_channels


@dataclass(frozen=True)
class Choices:
    """What the genes of a family of subnets choose from, each list ascending."""

    kernels: tuple[int, ...] = (3, 5, 7)
    expands: tuple[float, ...] = (2, 3, 4)
    depths: tuple[int, ...] = (2, 3, 4)
    resolutions: tuple[int, ...] = (128, 160, 192, 224)


@dataclass(frozen=True)
class Subnets:
    """n subnets. kernel, expand: (n, stages x blocks), of any value where a stage's depth does not reach; depth: (n, stages), in
    blocks; resolution: (n,), in pixels.
    """

    kernel: np.ndarray
    expand: np.ndarray
    depth: np.ndarray
    resolution: np.ndarray

    def __post_init__(self) -> None:
        n, blocks = self.kernel.shape
        if self.expand.shape != (n, blocks) or self.depth.shape[0] != n or self.resolution.shape != (n,) or blocks % self.depth.shape[1]:
            shapes = ", ".join(str(a.shape) for a in (self.kernel, self.expand, self.depth, self.resolution))
            raise SourceError(f"kernel, expand, depth and resolution of subnets have shapes {shapes}, which do not go together")

    def __len__(self) -> int:
        return len(self.resolution)

    @property
    def per_stage(self) -> int:
        """Blocks of a stage at most."""
        return self.kernel.shape[1] // self.depth.shape[1]

    @property
    def present(self) -> np.ndarray:
        """Which blocks exist: bool (n, stages x blocks)."""
        place = np.arange(self.kernel.shape[1])
        return place % self.per_stage < self.depth[:, place // self.per_stage]

    def take(self, which: np.ndarray) -> Subnets:
        """The subnets at `which` (indices or a mask)."""
        return Subnets(self.kernel[which], self.expand[which], self.depth[which], self.resolution[which])


@dataclass(frozen=True)
class Features:
    """What a predictor reads. choices: 0/1 columns (n, a); sums: what each stage adds up to (n, b), multiplied with each other by
    predictors that can; scaled: the blocks' columns times the logarithm of the resolution (n, c). b and c are 0 for spaces without stages.
    """

    choices: np.ndarray
    sums: np.ndarray
    scaled: np.ndarray

    def __len__(self) -> int:
        return len(self.choices)

    def take(self, which: np.ndarray) -> Features:
        """The features of the architectures at `which`."""
        return Features(self.choices[which], self.sums[which], self.scaled[which])


def plain_features(choices: np.ndarray) -> Features:
    """Features of a space of which nothing but its one-hot genes is known."""
    nothing = np.zeros((len(choices), 0))
    return Features(np.asarray(choices, float), nothing, nothing)


def subnet_features(subnets: Subnets, choices: Choices) -> Features:
    """Kernel and expansion of every block one-hot (zeros where it is absent) and the resolution one-hot: the coding of the paper, 124
    columns for 20 blocks; and for each stage its depth, its kernels and the logarithms of its expansion ratios summed up.
    """
    n, present = len(subnets), subnets.present
    kernel = np.equal.outer(subnets.kernel, choices.kernels) & present[:, :, None]
    expand = np.equal.outer(subnets.expand, choices.expands) & present[:, :, None]
    blocks = np.concatenate([kernel.reshape(n, -1), expand.reshape(n, -1)], axis=1).astype(float)
    scale = np.log(subnets.resolution / np.sqrt(choices.resolutions[0] * choices.resolutions[-1]))[:, None]

    def staged(values: np.ndarray) -> np.ndarray:
        return np.where(present, values, 0.0).reshape(n, -1, subnets.per_stage).sum(axis=2)

    middle = choices.kernels[len(choices.kernels) // 2]
    expanded = np.log(np.where(present, subnets.expand, 1.0))
    sums = np.concatenate(
        [staged((subnets.kernel.astype(float) - middle) / 2), staged(expanded), subnets.depth.astype(float), scale], axis=1
    )
    resolution = np.equal.outer(subnets.resolution, choices.resolutions).astype(float)
    return Features(np.concatenate([blocks, resolution], axis=1), sums, blocks * scale)


@dataclass(frozen=True)
class Trunk:
    """Widths and strides that all subnets of a family share: stem, first block, stages, and the head's expanding convolution."""

    stem: int
    first: int
    stages: tuple[int, ...]
    strides: tuple[int, ...]
    head: int


MOOFA_TRUNK = Trunk(3, 8, (24, 96, 288, 360, 384), (2, 2, 2, 2, 2), 392)
OFA_TRUNK = Trunk(16, 16, (24, 40, 80, 112, 160), (2, 2, 2, 1, 2), 960)


def published_peak(subnets: Subnets, trunk: Trunk) -> np.ndarray:
    """Peak of each subnet in items, int64 (n,), as the MOOFA paper's tables count it.

    The largest, over the convolutions from the stem to the head's expansion, of input + output + weights; in blocks with a shortcut
    the depthwise convolution also has the block's input, the projection (wrongly) has not; squeeze-and-excitation, normalisation,
    activations and what follows the head's expansion are not counted. Equals `peakmem` of all configurations the authors published.
    """
    kernel, expand = subnets.kernel.astype(np.int64), np.asarray(subnets.expand, float)
    size = subnets.resolution.astype(np.int64)
    after = (size + 1) // 2
    peak = 3 * size**2 + trunk.stem * after**2 + 27 * trunk.stem
    size, c = after, trunk.first
    residual = trunk.stem * size**2 if trunk.stem == c else 0
    peak = np.maximum(peak, 2 * trunk.stem * size**2 + 9 * trunk.stem + residual)
    peak = np.maximum(peak, (trunk.stem + c) * size**2 + trunk.stem * c)
    present = subnets.present
    for stage, (width, stride) in enumerate(zip(trunk.stages, trunk.strides, strict=True)):
        for place in range(subnets.per_stage):
            block = stage * subnets.per_stage + place
            after = (size + 1) // 2 if stride == 2 and place == 0 else size
            middle = _middles(c, expand[:, block])
            kept = c * size**2 if place or (stride == 1 and c == width) else 0
            need = np.maximum(c * size**2 + middle * size**2 + c * middle, middle * (size**2 + after**2 + kernel[:, block] ** 2) + kept)
            need = np.maximum(need, (middle + width) * after**2 + middle * width)
            peak = np.where(present[:, block], np.maximum(peak, need), peak)
            size, c = after, width
    return np.maximum(peak, (c + trunk.head) * size**2 + c * trunk.head)


def _middles(channels: int, expand: np.ndarray) -> np.ndarray:
    """Channels between expansion and projection for each ratio."""
    ratios, index = np.unique(expand, return_inverse=True)
    return np.asarray([round_channels(round(channels * ratio)) for ratio in ratios], np.int64)[index]


def subnets_from(
    kernel: Sequence[Sequence[int]], expand: Sequence[Sequence[float]], depth: Sequence[Sequence[int]], resolution: Sequence[int]
) -> Subnets:
    """`Subnets` of lists or arrays of any number type."""
    return Subnets(np.asarray(kernel, np.int64), np.asarray(expand, float), np.asarray(depth, np.int64), np.asarray(resolution, np.int64))
