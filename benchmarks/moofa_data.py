"""The published accuracies of once-for-all subnets (`ofa_accuracy.npz`), as rows of the spaces they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neaptide.search.features import Features, settings_features
from neaptide.search.spaces import load_space
from neaptide.search.spaces.ofa import OFAMobileNetV3, Settings

SETS = {"MOOFA": ("moofa", "moofa"), "OFA": ("mit_ofa", "ofa_mbv3"), "CompOFA": ("compofa", "compofa")}


@dataclass(frozen=True)
class Published:
    """Subnets of a space with their published top-1 accuracy in percent (n,) and peak in elements (n,)."""

    space: OFAMobileNetV3
    settings: Settings
    features: Features
    accuracy: np.ndarray
    peak: np.ndarray

    def __len__(self) -> int:
        return len(self.accuracy)


def published(folder: Path, name: str) -> Published:
    """The set called `name` in SETS."""
    prefix, space_name = SETS[name]
    space = load_space(space_name)
    assert isinstance(space, OFAMobileNetV3)
    file = np.load(folder / "ofa_accuracy.npz", allow_pickle=False)
    resolution, depth, kernel, expand = (file[f"{prefix}_{key}"] for key in ("r", "d", "ks", "e"))
    there = np.arange(20) % 4 < depth[:, np.arange(20) // 4]
    settings = Settings(resolution, depth.astype(np.int16), np.where(there, kernel, 0).astype(np.int16), np.where(there, expand, 0))
    accuracy = file[f"{prefix}_acc"].astype(float) * 100
    return Published(space, settings, settings_features(space, settings), accuracy, file[f"{prefix}_peakmem_elems"].astype(np.int64))
