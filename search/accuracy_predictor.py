"""Accuracy of architectures predicted from the accuracies of some: several models, the one that cross-validates best, an error bar.

What each model reads is a `Features` (see `search.features`); accuracies are in whatever unit they were given in. The models:
- `ridge`: least squares with a penalty on the one-hot choices, the penalty chosen by leave-one-out error in closed form;
- `products`: the same on choices, stage sums, products of those sums in pairs, and block choices times the logarithm of the resolution;
- `gp`: the same columns, each of the four kinds with a variance of its own, by marginal likelihood: a Gaussian process whose mean is
  linear in the columns. The best with few samples, where `products` overfits and `ridge` cannot bend;
- `mlp`: the paper's network, three hidden layers of 400 on the one-hot choices, trained as Once-for-All's authors advise (Adam at 1e-3,
  decay 1e-4); `mlp-published`: as MOOFA's program trains it (3e-2), which often does not converge. Slow, and worse on published accuracies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..compiler.errors import FormatError, MissingExtraError, SourceError
from .features import Features
from .weights import load_weights, save_weights

MODELS = ("ridge", "products", "gp")
FEWEST = 10
SUBSET = 400  # samples that choose the Gaussian process's variances


@dataclass(frozen=True, slots=True)
class Agreement:
    """How predictions agree with accuracies: Kendall's tau-b, root mean square error in the accuracies' unit, and how many there were."""

    tau: float
    rmse: float
    samples: int


@dataclass(frozen=True)
class AccuracyPredictor:
    """A fitted model. `error`: what cross-validation found, the error bar of `predict`; `considered`: the same for every model tried."""

    model: str
    arrays: Mapping[str, np.ndarray]
    error: Agreement
    considered: Mapping[str, Agreement]

    def predict(self, features: Features) -> np.ndarray:
        """Predicted accuracies, float64 (n,). Raises `SourceError` for features of another space."""
        return predict_model(self.model, self.arrays, features)

    def save(self, path: str | Path) -> None:
        """Write it as one safetensors file."""
        import torch

        facts = {"model": self.model, "error": asdict(self.error), "considered": {name: asdict(a) for name, a in self.considered.items()}}
        save_weights(path, {name: torch.from_numpy(np.array(a)) for name, a in self.arrays.items()}, {"accuracy_predictor": facts})


def load_predictor(path: str | Path) -> AccuracyPredictor:
    """The predictor that `save` wrote. Raises `SourceError` or `FormatError` naming the file."""
    tensors, facts = load_weights(path)
    if "accuracy_predictor" not in facts:
        raise FormatError(f"{path} holds no accuracy predictor")
    facts = facts["accuracy_predictor"]
    considered = {name: Agreement(**a) for name, a in facts["considered"].items()}
    return AccuracyPredictor(facts["model"], {name: t.numpy() for name, t in tensors.items()}, Agreement(**facts["error"]), considered)


def fit_accuracy(
    features: Features, accuracy: np.ndarray, *, models: Sequence[str] = MODELS, folds: int = 5, seed: int = 0
) -> AccuracyPredictor:
    """The model of `models` with the least cross-validated square error, fitted to all n samples.

    accuracy: (n,). Raises `SourceError` for fewer than 10 samples, a model that does not exist, or accuracies that are not finite.
    """
    y = np.asarray(accuracy, float)
    if len(y) != len(features) or len(y) < FEWEST:
        raise SourceError(f"{len(y)} accuracies of {len(features)} architectures: a predictor needs as many, and at least {FEWEST}")
    if not np.isfinite(y).all():
        raise SourceError(f"accuracy {y[~np.isfinite(y)][0]} of architecture {int(np.argmin(np.isfinite(y)))} is no number to learn from")
    unknown = [m for m in models if m not in _FIT]
    if unknown or not models:
        raise SourceError(f"no accuracy model {', '.join(unknown) or 'given'}; there are {', '.join(_FIT)}")
    fold = np.random.default_rng(seed).permutation(len(y)) % folds
    considered = {}
    for model in models:
        predicted = np.zeros(len(y))
        for k in range(folds):
            arrays = fit_model(model, features.take(fold != k), y[fold != k], seed=seed)
            predicted[fold == k] = predict_model(model, arrays, features.take(fold == k))
        considered[model] = agreement(predicted, y)
    best = min(models, key=lambda m: considered[m].rmse)
    return AccuracyPredictor(best, fit_model(best, features, y, seed=seed), considered[best], considered)


def fit_model(model: str, features: Features, accuracy: np.ndarray, *, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of one model, without cross-validation. On one thread: matrices are small, and BLAS threads that find every core busy
    wait for each other a hundred times as long as they compute.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise MissingExtraError("threadpoolctl", "search", "fitting accuracy predictors") from error
    with threadpool_limits(1):
        return _FIT[model](features, np.asarray(accuracy, float), seed)


def predict_model(model: str, arrays: Mapping[str, np.ndarray], features: Features) -> np.ndarray:
    """Accuracies by the arrays of one model, float64 (n,). Raises `SourceError` for features of another space."""
    width = len(arrays["center"]) if "center" in arrays else arrays["w0"].shape[1]
    columns = _columns(model, features)
    if columns.shape[1] != width:
        raise SourceError(f"this predictor reads {width} columns; the architectures given have {columns.shape[1]}: another space?")
    return _PREDICT[model](arrays, columns)


def agreement(predicted: np.ndarray, accuracy: np.ndarray) -> Agreement:
    """Tau and root mean square error of predictions; O(n^2)."""
    p, y = np.asarray(predicted, float), np.asarray(accuracy, float)
    i, j = np.triu_indices(len(p), 1)
    a, b = np.sign(p[i] - p[j]), np.sign(y[i] - y[j])
    untied = math.sqrt(np.count_nonzero(a) * np.count_nonzero(b))
    tau = float(a @ b) / untied if untied else 0.0
    return Agreement(tau, float(np.sqrt(np.mean((p - y) ** 2))), len(p))


# ---- linear models ----------------------------------------------------------------------------------------------------


def _columns(model: str, features: Features) -> np.ndarray:
    """What `model` is linear in (or its input, for networks), float64 (n, columns)."""
    if model in ("ridge", "mlp", "mlp-published"):
        return features.choices
    return np.concatenate(list(_kinds(features)), axis=1)


def _kinds(features: Features) -> tuple[np.ndarray, ...]:
    """Choices, sums, sums and their products in pairs, choices times resolution.

    Sums are taken as they are: their products are centred later, and where sums have a mean a product holds some of each sum.
    """
    i, j = np.triu_indices(features.sums.shape[1])
    return features.choices, features.sums, features.sums[:, i] * features.sums[:, j], features.scaled


def _predict_linear(arrays: Mapping[str, np.ndarray], columns: np.ndarray) -> np.ndarray:
    # Columns that hardly varied in training must not run away elsewhere: 8 deviations are the most they count.
    scaled = np.clip((columns - arrays["center"]) / arrays["scale"], -8, 8)
    return scaled @ arrays["weight"] + arrays["mean"][0]


def _standardised(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    center, scale = columns.mean(axis=0), columns.std(axis=0)
    scale = np.where(scale > 1e-6, scale, np.inf)  # a column that never varied has no say
    return (columns - center) / scale, center, scale


def _fit_ridge(model: str) -> Callable[[Features, np.ndarray, int], dict[str, np.ndarray]]:
    def fit(features: Features, y: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        x, center, scale = _standardised(_columns(model, features))
        u, d, vt = np.linalg.svd(x, full_matrices=False)
        projected, mean = u.T @ (y - y.mean()), y.mean()
        best = (np.inf, np.zeros(len(d)))
        for penalty in np.logspace(-1, 4.5, 34):
            shrunk = d**2 / (d**2 + penalty)
            leverage = (u**2) @ shrunk + 1 / len(y)
            left_out = (y - mean - u @ (shrunk * projected)) / (1 - np.minimum(leverage, 1 - 1e-6))
            best = min(best, (float(np.mean(left_out**2)), d / (d**2 + penalty)), key=lambda b: b[0])
        return {"center": center, "scale": scale, "weight": vt.T @ (best[1] * projected), "mean": np.array([mean])}

    return fit


def _fit_process(features: Features, y: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Weights with independent normal priors of one variance for each kind of column; the variances maximise the marginal likelihood
    of the first `SUBSET` samples, their common scale in closed form, the ratios to the noise by coordinate search.
    """
    kinds = [k for k in _kinds(features) if k.shape[1]]
    x, center, scale = _standardised(np.concatenate(kinds, axis=1))
    widths = [k.shape[1] for k in kinds]
    edges = np.cumsum([0, *widths])
    per_column = 1 / np.sqrt(widths)
    mean, deviation = y.mean(), y.std() or 1.0
    target = (y - mean) / deviation
    some = x[:SUBSET]
    kernels = [some[:, a:b] @ some[:, a:b].T * w**2 for a, b, w in zip(edges[:-1], edges[1:], per_column, strict=True)]
    ratio = _likeliest(kernels, target[:SUBSET])
    prior = np.repeat(np.exp(ratio / 2) * per_column, widths)
    z = x * prior
    if z.shape[0] < z.shape[1]:
        weight = z.T @ np.linalg.solve(z @ z.T + np.eye(len(z)), target)
    else:
        weight = np.linalg.solve(z.T @ z + np.eye(z.shape[1]), z.T @ target)
    return {"center": center, "scale": scale, "weight": prior * weight * deviation, "mean": np.array([mean])}


def _likeliest(kernels: list[np.ndarray], y: np.ndarray) -> np.ndarray:
    """Log of each kernel's variance over the noise's at the greatest marginal likelihood of `y`."""

    def cost(log_ratio: np.ndarray) -> float:
        covariance = sum((np.exp(r) * k for r, k in zip(log_ratio, kernels, strict=True)), np.eye(len(y)))
        factor = np.linalg.cholesky(covariance)
        whitened = np.linalg.solve(factor, y)
        return 0.5 * len(y) * np.log(whitened @ whitened) + np.log(np.diag(factor)).sum()

    at = np.full(len(kernels), 2.0)
    best, step = cost(at), 1.6
    while step > 0.2:
        moved = False
        for i in range(len(at)):
            for signed in (step, -step):
                trial = at.copy()
                trial[i] = np.clip(trial[i] + signed, -8, 10)
                value = cost(trial)
                if value < best - 1e-3:
                    at, best, moved = trial, value, True
                    break
        if not moved:
            step /= 2
    return at


# ---- the paper's network ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """How the network is trained: Adam at `rate` with `decay`, batches of 32, `epochs`, accuracies divided by `unit` (their deviation
    if 0). `plateau`: the rate is halved after 5 epochs without a lower square error on a fifth of the samples, which are not trained
    on; else it falls as a cosine, and all are.
    """

    rate: float
    decay: float
    epochs: int
    unit: float
    plateau: bool


def _fit_network(settings: NetworkSettings) -> Callable[[Features, np.ndarray, int], dict[str, np.ndarray]]:
    def fit(features: Features, y: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        import torch
        from torch import nn

        columns, mean = _columns("mlp", features), y.mean()
        unit = settings.unit or float(y.std()) or 1.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Linear(columns.shape[1], 400), nn.Linear(400, 400), nn.Linear(400, 400), nn.Linear(400, 1, bias=False)]
            net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.ReLU(), layers[3], nn.Flatten(0))
            x, target = torch.from_numpy(columns).float(), torch.from_numpy((y - mean) / unit).float()
            order = torch.randperm(len(y))
            held, training = order[: len(y) // 5], order[len(y) // 5 if settings.plateau else 0 :]
            optimizer = torch.optim.Adam(net.parameters(), lr=settings.rate, weight_decay=settings.decay)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=5)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
            for _ in range(settings.epochs):
                for batch in training[torch.randperm(len(training))].split(32):
                    optimizer.zero_grad(set_to_none=True)
                    nn.functional.mse_loss(net(x[batch]), target[batch]).backward()
                    optimizer.step()
                if settings.plateau:
                    with torch.no_grad():
                        plateau.step(nn.functional.mse_loss(net(x[held]), target[held]).item())
                else:
                    cosine.step()
        arrays = {f"w{i}": layer.weight.detach().double().numpy() for i, layer in enumerate(layers)}
        biases = {f"b{i}": layer.bias.detach().double().numpy() for i, layer in enumerate(layers[:3])}
        return {**arrays, **biases, "mean": np.array([mean]), "unit": np.array([unit])}

    return fit


def _predict_network(arrays: Mapping[str, np.ndarray], columns: np.ndarray) -> np.ndarray:
    x = columns
    for i in range(3):
        x = np.maximum(x @ arrays[f"w{i}"].T + arrays[f"b{i}"], 0)
    return (x @ arrays["w3"].T)[:, 0] * arrays["unit"][0] + arrays["mean"][0]


_FIT: dict[str, Callable[[Features, np.ndarray, int], dict[str, np.ndarray]]] = {
    "ridge": _fit_ridge("ridge"),
    "products": _fit_ridge("products"),
    "gp": _fit_process,
    "mlp": _fit_network(NetworkSettings(rate=1e-3, decay=1e-4, epochs=100, unit=0.0, plateau=False)),
    "mlp-published": _fit_network(NetworkSettings(rate=3e-2, decay=0.0, epochs=50, unit=100.0, plateau=True)),
}
_PREDICT: dict[str, Callable[[Mapping[str, np.ndarray], np.ndarray], np.ndarray]] = {
    "ridge": _predict_linear,
    "products": _predict_linear,
    "gp": _predict_linear,
    "mlp": _predict_network,
    "mlp-published": _predict_network,
}
