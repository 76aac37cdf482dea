"""Boosted regression trees: grown by scikit-learn, kept and evaluated as plain arrays, so that a saved predictor needs neither
scikit-learn nor pickle.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import numpy as np

from ...compiler.errors import MissingExtraError

TREES, DEPTH, RATE = 600, 5, 0.03
ROW_SHARE, FEATURE_SHARE, LEAF = 0.6, 0.3, 3


@dataclass(frozen=True)
class Trees:
    """A sum of binary trees in one table of nodes: a row goes left when `row[feature] <= threshold`. A leaf adds its `value`.

    `roots`: the first node of each tree. A leaf is its own child on both sides, so that every row may take `depth` steps.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    roots: np.ndarray
    depth: int

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Per row of `x` (n, features) the sum of one leaf of each tree."""
        rows = x.astype(np.float32)
        total, every = np.zeros(len(rows)), np.arange(len(rows))
        for root in self.roots:
            at = np.full(len(rows), root)
            for _ in range(self.depth):
                at = np.where(rows[every, self.feature[at]] <= self.threshold[at], self.left[at], self.right[at])
            total += self.value[at]
        return total


def grow(x: np.ndarray, y: np.ndarray, weight: np.ndarray, *, seed: int = 0) -> Trees:
    """Trees fitted to `y` (n,) by weighted least squares. Friedman, Greedy function approximation (2001), with subsampling."""
    try:
        ensemble = import_module("sklearn.ensemble")
    except ImportError:
        raise MissingExtraError("scikit-learn", "search", "Fitting a predictor with boosting") from None
    model = ensemble.GradientBoostingRegressor(
        init="zero", n_estimators=TREES, max_depth=DEPTH, learning_rate=RATE, subsample=ROW_SHARE, max_features=FEATURE_SHARE,
        min_samples_leaf=LEAF, random_state=seed,
    )  # fmt: skip
    model.fit(x.astype(np.float32), y, sample_weight=weight / weight.mean())
    trees = [estimator.tree_ for estimator in model.estimators_[:, 0]]
    starts = np.cumsum([0, *(tree.node_count for tree in trees)])
    own = np.arange(starts[-1])
    joined = {name: np.concatenate([getattr(tree, name) for tree in trees]) for name in ("feature", "threshold")}
    leaf = joined["feature"] < 0
    left, right = (
        np.concatenate([getattr(tree, side) + start for tree, start in zip(trees, starts, strict=False)])
        for side in ("children_left", "children_right")
    )
    return Trees(
        feature=np.where(leaf, 0, joined["feature"]).astype(np.int32),
        threshold=joined["threshold"],
        left=np.where(leaf, own, left).astype(np.int32),
        right=np.where(leaf, own, right).astype(np.int32),
        value=np.concatenate([tree.value[:, 0, 0] for tree in trees]) * RATE,
        roots=starts[:-1].astype(np.int32),
        depth=max(tree.max_depth for tree in trees),
    )
