"""Predictors of a network's cost: additive models, boosting on what they leave, and the choice between them.

Costs of networks spread over an order of magnitude and are judged by relative error, so least squares weighs by 1/y^2. An additive
model is a look-up table learned from whole networks; boosted trees on its residual find what operators do to each other (dead
branches, fusion, caches). Which of them, and on which view of the columns, is decided by 5-fold cross-validation on the smallest
product of mean relative error and 1 - Spearman's rank correlation: a predictor has to say both how much and which is more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ...compiler.errors import NeaptideError
from .boosting import Trees, grow
from .columns import VIEWS, Columns, Encoding, View

FOLDS = 5
LEAST_NETWORKS = 20
RIDGES = (1e-6, 1e-2, 1.0)
LIKELY = 0.9


@dataclass(frozen=True)
class Accuracy:
    """Of predictions against measurements: mean relative error, the relative error that 90 % stay below, Spearman's correlation."""

    networks: int
    error: float
    error_90: float
    spearman: float

    @property
    def score(self) -> float:
        """What the choice of a model minimises."""
        return (self.error + 1e-6) * (1 - self.spearman + 1e-6)


@dataclass(frozen=True)
class Model:
    """One way to predict: `power` of the 1/y^power weights, `view` and `ridge` of the additive part, whether trees follow it, and
    whether it is the logarithm of the cost that adds up (a power law of the numbers).
    """

    view: View = "places"
    power: int = 2
    ridge: float = 1e-2
    boosted: bool = False
    log: bool = False

    @property
    def name(self) -> str:
        """In words."""
        kind = "power law" if self.log else "additive"
        return f"{kind} on {self.view}, 1/y^{self.power}, ridge {self.ridge:g}" + (" + boosting" if self.boosted else "")


@dataclass(frozen=True)
class Fitted:
    """The parameters of one model after fitting; `floor`: no prediction is below half of the smallest cost seen."""

    model: Model
    coefficients: np.ndarray
    intercept: float
    trees: Trees | None
    floor: float

    def predict(self, additive: np.ndarray, places: np.ndarray) -> np.ndarray:
        """From the matrix of the model's view and, for its trees, that of the places."""
        total = additive @ self.coefficients + self.intercept
        if self.trees is not None:
            total = total + self.trees.predict(places)
        return np.maximum(np.exp(np.minimum(total, 700.0)) if self.model.log else total, self.floor)


@dataclass(frozen=True)
class Predictor:
    """Costs of networks from their columns. `accuracy`: of the chosen model on networks it had not seen, by cross-validation;
    `tried`: that of every model. `target`, `toolchain`, `unit` say what was measured.
    """

    encoding: Encoding
    fitted: Fitted
    accuracy: Accuracy
    tried: tuple[tuple[str, Accuracy], ...] = ()
    target: str = ""
    toolchain: str = ""
    unit: str = ""

    def predict(self, columns: Columns) -> np.ndarray:
        """Costs of `columns`, float64 (n,), in `unit`."""
        places = self.encoding.matrix(columns, "places")
        view = self.fitted.model.view
        return self.fitted.predict(places if view == "places" else self.encoding.matrix(columns, view), places)


def fit(
    columns: Columns, costs: np.ndarray, *, boosting: bool = True, power_law: bool = False, seed: int = 0, target: str = "",
    toolchain: str = "", unit: str = "",
) -> Predictor:  # fmt: skip
    """The predictor that cross-validates best on measured networks, fitted to all of them.

    `costs`: above zero, (n,). `boosting` False tries additive models only and needs no scikit-learn. `power_law`: try models of the
    logarithm as well, for single operators whose sizes multiply. Raises `NeaptideError` with fewer than 20 networks.
    """
    costs = np.asarray(costs, dtype=float)
    if len(costs) != len(columns):
        raise ValueError(f"{len(costs)} costs for {len(columns)} networks")
    if len(costs) < LEAST_NETWORKS:
        raise NeaptideError(f"a predictor needs at least {LEAST_NETWORKS} measurements to be checked on; there are {len(costs)}")
    if not (np.isfinite(costs) & (costs > 0)).all():
        raise NeaptideError("costs have to be finite and above zero; leave out what was not measured")
    encoding = Encoding.of(columns)
    matrices: dict[View, np.ndarray] = {view: encoding.matrix(columns, view) for view in VIEWS}
    views = VIEWS if len(columns.texts) > 1 else VIEWS[:1]
    fold = np.random.default_rng(seed).permutation(len(costs)) % FOLDS
    tried = {model: _validate(model, matrices, costs, fold, seed) for model in _additive(views, power_law)}
    if boosting:
        for model in _boosted(min(tried, key=lambda m: tried[m].score), power_law):
            tried[model] = _validate(model, matrices, costs, fold, seed)
    best = min(tried, key=lambda m: tried[m].score)
    return Predictor(
        encoding,
        _fit(best, matrices, costs, np.arange(len(costs)), seed),
        tried[best],
        tuple((model.name, accuracy) for model, accuracy in sorted(tried.items(), key=lambda item: item[1].score)),
        target=target,
        toolchain=toolchain,
        unit=unit,
    )


def refit(predictor: Predictor, columns: Columns, costs: np.ndarray, *, seed: int = 0) -> Predictor:
    """The model that was chosen for `predictor`, fitted to other networks; its accuracy stays the one it was chosen with."""
    encoding = Encoding.of(columns)
    model = predictor.fitted.model
    views: tuple[View, ...] = (model.view, "places")
    matrices: dict[View, np.ndarray] = {view: encoding.matrix(columns, view) for view in views}
    fitted = _fit(model, matrices, np.asarray(costs, dtype=float), np.arange(len(costs)), seed)
    return replace(predictor, encoding=encoding, fitted=fitted)


def accuracy_of(predicted: np.ndarray, measured: np.ndarray) -> Accuracy:
    """How well `predicted` says `measured`, both (n,)."""
    errors = np.abs(predicted - measured) / measured
    return Accuracy(len(measured), float(errors.mean()), float(np.quantile(errors, LIKELY)), spearman(predicted, measured))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 when one side is constant."""
    a, b = _ranks(a), _ranks(b)
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm else 0.0


def _additive(views: tuple[View, ...], power_law: bool) -> Iterator[Model]:
    for view in views:
        for ridge in RIDGES:
            yield Model(view, 2, ridge)
            if power_law:
                yield Model(view, 0, ridge, log=True)


def _boosted(best: Model, power_law: bool) -> Iterator[Model]:
    """Trees after the best additive model, after one weighted less, and, where it is a power law, in the logarithm."""
    yield Model(best.view, 2, best.ridge, boosted=True)
    yield Model(best.view, 1, best.ridge, boosted=True)
    if power_law:
        yield Model(best.view, 0, best.ridge, boosted=True, log=True)


def _validate(model: Model, matrices: dict[View, np.ndarray], costs: np.ndarray, fold: np.ndarray, seed: int) -> Accuracy:
    predicted = np.zeros(len(costs))
    for k in range(FOLDS):
        held = fold == k
        fitted = _fit(model, matrices, costs, np.flatnonzero(~held), seed)
        predicted[held] = fitted.predict(matrices[model.view][held], matrices["places"][held])
    return accuracy_of(predicted, costs)


def _fit(model: Model, matrices: dict[View, np.ndarray], costs: np.ndarray, rows: np.ndarray, seed: int) -> Fitted:
    x, y = matrices[model.view][rows], costs[rows]
    weight = y ** -float(model.power)
    goal = np.log(y) if model.log else y
    coefficients, intercept = _least_squares(x, goal, weight, model.ridge)
    trees = None
    if model.boosted:
        trees = grow(matrices["places"][rows], goal - (x @ coefficients + intercept), weight, seed=seed)
    return Fitted(model, coefficients, intercept, trees, float(y.min()) / 2)


def _least_squares(x: np.ndarray, y: np.ndarray, weight: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    """Weighted least squares with an intercept; `ridge` times the mean weight pulls the coefficients to zero and keeps them defined."""
    weight = weight / weight.mean()
    centre, level = weight @ x / len(y), float(weight @ y) / len(y)
    root = np.sqrt(weight)
    xc, yc = (x - centre) * root[:, None], (y - level) * root
    coefficients = np.linalg.solve(xc.T @ xc + ridge * np.eye(x.shape[1]), xc.T @ yc)
    return coefficients, level - float(centre @ coefficients)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[at]
