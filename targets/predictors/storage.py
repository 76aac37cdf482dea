"""Predictors as files: one `.npz` of plain arrays with a JSON header. Reading one runs no code."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ...compiler.errors import FormatError
from ...compiler.npz_files import Array, NpzFile, open_npz
from ...compiler.output_files import write_bytes
from ..database import UNITS
from .boosting import Trees
from .columns import Encoding
from .fit import Fitted, Predictor
from .operators import OperatorPredictor
from .stored_header import Fields

FORMAT, VERSION = "neaptide.predictor", 1
TREE_ARRAYS = ("feature", "threshold", "left", "right", "value", "roots")
LIMIT = 1 << 30  # bytes of all arrays
LARGEST = 1e30  # of any coefficient, threshold and leaf: sums of them stay finite
DEEPEST = 64


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
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, header=np.frombuffer(written, np.uint8), **arrays)
    write_bytes(path, packed.getvalue())


def load_predictor(path: str | Path) -> Predictor | OperatorPredictor:
    """The predictor in `path`. Raises `FormatError` when it holds none, one of another version, or one whose parts do not fit."""
    with open_npz(path, limit=LIMIT) as file:
        written = file.read({"header": Array("u", (("n",),), "uint8")})["header"].tobytes()
        try:
            document = json.loads(written)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path}: not a predictor that `neaptide cost fit` wrote: its header is no JSON ({error})") from None
        header = Fields(str(path), document)
        if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
            raise FormatError(
                f"{path}: not a predictor that `neaptide cost fit` wrote (format {header.get('format')!r} version "
                f"{header.get('version')!r}, wanted {FORMAT!r} version {VERSION})"
            )
        if header.choice("kind", ("networks", "operators")) == "networks":
            return _unpack(header, "", file)
        return OperatorPredictor(
            header.numbers("table", least=0),
            {kind: _unpack(header.inside("models", kind), f"{i}/", file) for i, kind in enumerate(header.mapping("models"))},
            header.text("target"),
            header.text("toolchain"),
            header.choice("unit", UNITS),
            header.accuracy("sums") if header.get("sums") is not None else None,
            header.accuracy("unseen") if header.get("unseen") is not None else None,
        )


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


def _unpack(header: Fields, prefix: str, file: NpzFile) -> Predictor:
    model = header.model("model")
    encoding = Encoding(header.levels("levels"), header.ranges("ranges"))
    wanted = {f"{prefix}coefficients": Array("f", ((encoding.width(model.view),),), "float64", -LARGEST, LARGEST)}
    coefficients = file.read(wanted)[f"{prefix}coefficients"]
    trees = _trees(header, prefix, file, encoding.width("places")) if model.boosted else None
    fitted = Fitted(model, coefficients, header.number("intercept", -LARGEST, LARGEST), trees, header.number("floor", 0, LARGEST))
    return Predictor(
        encoding, fitted, header.accuracy("accuracy"), header.tried("tried"), header.text("target"), header.text("toolchain"),
        header.text("unit"),
    )  # fmt: skip


def _trees(header: Fields, prefix: str, file: NpzFile, features: int) -> Trees:
    """The trees, whose nodes read features that exist and lead to nodes that exist and come later, or to themselves: never in a circle."""
    known = file.headers.get(f"{prefix}feature")
    nodes = known.shape[0] if known is not None and len(known.shape) == 1 else 0
    index, number = Array("i", (("nodes",),), "", 0, nodes - 1), Array("f", (("nodes",),), "float64", -LARGEST, LARGEST)
    wanted = {
        "feature": Array("i", (("nodes",),), "", 0, features - 1), "threshold": number, "left": index, "right": index, "value": number,
        "roots": Array("i", (("roots",),), "", 0, nodes - 1),
    }  # fmt: skip
    found = file.read({f"{prefix}{name}": array for name, array in wanted.items()})
    arrays = {name: found[f"{prefix}{name}"] for name in TREE_ARRAYS}
    for side in ("left", "right"):
        if (arrays[side] < np.arange(nodes)).any():
            raise FormatError(f"{file.label}: array {prefix + side!r} leads a tree back to a node that it has passed")
    return Trees(**arrays, depth=header.whole("depth", 0, DEEPEST))
