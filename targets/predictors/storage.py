"""Predictors as files: one `.npz` of plain arrays with a JSON header. Reading one runs no code."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ...compiler.errors import FormatError
from .boosting import Trees
from .columns import Encoding
from .fit import Accuracy, Fitted, Model, Predictor
from .operators import OperatorPredictor

FORMAT, VERSION = "neaptide.predictor", 1
TREE_ARRAYS = ("feature", "threshold", "left", "right", "value", "roots")


def save_predictor(predictor: Predictor | OperatorPredictor, path: str | Path) -> None:
    """Write `predictor` to `path`, whose name should end in .npz."""
    arrays: dict[str, np.ndarray] = {}
    if isinstance(predictor, Predictor):
        header: dict[str, Any] = {"kind": "networks", **_pack(predictor, "", arrays)}
    else:
        header = {
            "kind": "operators",
            "target": predictor.target,
            "toolchain": predictor.toolchain,
            "unit": predictor.unit,
            "table": dict(predictor.table),
            "sums": asdict(predictor.sums) if predictor.sums else None,
            "unseen": asdict(predictor.unseen) if predictor.unseen else None,
            "models": {kind: _pack(model, f"{i}/", arrays) for i, (kind, model) in enumerate(predictor.models.items())},
        }
    written = json.dumps({"format": FORMAT, "version": VERSION, **header}).encode()
    with open(path, "wb") as out:
        np.savez_compressed(out, allow_pickle=False, header=np.frombuffer(written, np.uint8), **arrays)


def load_predictor(path: str | Path) -> Predictor | OperatorPredictor:
    """The predictor in `path`. Raises `FormatError` when it holds none, or one of another version."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays.pop("header").tobytes())
        if (header["format"], header["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {header['format']!r} version {header['version']!r}, wanted {FORMAT!r} version {VERSION}")
        if header["kind"] == "networks":
            return _unpack(header, "", arrays)
        sums, unseen = (Accuracy(**header[name]) if header.get(name) else None for name in ("sums", "unseen"))
        models = {kind: _unpack(model, f"{i}/", arrays) for i, (kind, model) in enumerate(header["models"].items())}
        return OperatorPredictor(header["table"], models, header["target"], header["toolchain"], header["unit"], sums, unseen)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path}: not a predictor that `neaptide cost fit` wrote ({error})") from None


def _pack(predictor: Predictor, prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    fitted = predictor.fitted
    arrays[f"{prefix}coefficients"] = fitted.coefficients
    if fitted.trees is not None:
        arrays.update({f"{prefix}{name}": getattr(fitted.trees, name) for name in TREE_ARRAYS})
    return {
        "levels": {name: list(levels) for name, levels in predictor.encoding.levels.items()},
        "ranges": {name: list(bounds) for name, bounds in predictor.encoding.ranges.items()},
        "model": asdict(fitted.model),
        "intercept": fitted.intercept,
        "floor": fitted.floor,
        "depth": fitted.trees.depth if fitted.trees else 0,
        "accuracy": asdict(predictor.accuracy),
        "tried": [[name, asdict(accuracy)] for name, accuracy in predictor.tried],
        "target": predictor.target,
        "toolchain": predictor.toolchain,
        "unit": predictor.unit,
    }


def _unpack(header: Mapping[str, Any], prefix: str, arrays: Mapping[str, np.ndarray]) -> Predictor:
    model = Model(**header["model"])
    trees = Trees(**{name: arrays[f"{prefix}{name}"] for name in TREE_ARRAYS}, depth=header["depth"]) if model.boosted else None
    return Predictor(
        Encoding({k: tuple(v) for k, v in header["levels"].items()}, {k: (v[0], v[1]) for k, v in header["ranges"].items()}),
        Fitted(model, arrays[f"{prefix}coefficients"], header["intercept"], trees, header["floor"]),
        Accuracy(**header["accuracy"]),
        tuple((name, Accuracy(**accuracy)) for name, accuracy in header["tried"]),
        header["target"],
        header["toolchain"],
        header["unit"],
    )
