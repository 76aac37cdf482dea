"""What accuracy predictors read of an architecture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .space import Space
from .spaces.ofa import OFAMobileNetV3, Settings


@dataclass(frozen=True)
class Features:
    """Three kinds of columns, one row for each of n architectures. choices: 0/1 columns (n, a); sums: what each stage adds up to (n, b),
    which predictors that can multiply with each other; scaled: choices times the logarithm of the resolution (n, c). b and c are 0 for
    spaces without stages.
    """

    choices: np.ndarray
    sums: np.ndarray
    scaled: np.ndarray

    def __len__(self) -> int:
        return len(self.choices)

    def take(self, which: np.ndarray) -> Features:
        """The features of the architectures at `which` (indices or a mask)."""
        return Features(self.choices[which], self.sums[which], self.scaled[which])


def features(space: Space, rows: np.ndarray) -> Features:
    """Features of encoded architectures (n, genes): by stages where the space has them, else its own one-hot genes alone."""
    if isinstance(space, OFAMobileNetV3):
        return settings_features(space, space.settings(rows))
    choices = space.features(rows).astype(float)
    nothing = np.zeros((len(choices), 0))
    return Features(choices, nothing, nothing)


def settings_features(space: OFAMobileNetV3, settings: Settings) -> Features:
    """Features of elastic networks given as the papers count them; values beyond a stage's depth must be 0.

    choices: kernel and expansion of every block one-hot, zeros where it is absent, and the resolution one-hot: the coding of the MOOFA
    paper, 124 columns. sums: for each stage its kernels, the logarithms of its expansions, its depth; and the logarithm of the resolution.
    """
    n, stages = settings.depth.shape
    kernel = np.equal.outer(settings.kernel, np.asarray(space.kernels))
    expand = np.equal.outer(settings.expand, np.asarray(space.expands, np.float32))
    blocks = np.concatenate([kernel.reshape(n, -1), expand.reshape(n, -1)], axis=1).astype(float)
    scale = np.log(settings.resolution / np.sqrt(space.resolutions[0] * space.resolutions[-1]))[:, None]
    there = settings.kernel > 0
    kernels = np.where(there, (settings.kernel.astype(float) - space.kernels[len(space.kernels) // 2]) / 2, 0.0)
    expands = np.log(np.where(there, settings.expand, 1.0))
    by_stage = [values.reshape(n, stages, -1).sum(axis=2) for values in (kernels, expands)]
    resolution = np.equal.outer(settings.resolution, np.asarray(space.resolutions)).astype(float)
    return Features(
        np.concatenate([blocks, resolution], axis=1),
        np.concatenate([*by_stage, settings.depth.astype(float), scale], axis=1),
        blocks * scale,
    )
