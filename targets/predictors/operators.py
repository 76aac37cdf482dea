"""Predictors of single operators from the cost database: a table of what was measured, a model per kind of operator for the rest.

The features are those of ProxylessNAS (arXiv 1812.00332, appendix B): kind of operator, input and output size, kernel, stride and
expansion, with the multiply-adds beside them. A network costs the sum of its operators; how far that sum is off is measured on the
networks of the database, never assumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...compiler.errors import NeaptideError
from ..database import CostDatabase, NetworkRow, OperatorRow
from .columns import Columns
from .fit import LEAST_NETWORKS, Accuracy, Predictor, accuracy_of, fit

FEATURES = ("macs", "input", "output", "kernel", "stride", "expansion")


@dataclass(frozen=True)
class OperatorPredictor:
    """Costs of operators on one target with one toolchain. `table`: measured costs by signature; `models`: per kind of operator one
    fitted to its features, "" for all kinds together; `sums`: accuracy of summed operators against networks measured whole.
    """

    table: Mapping[str, float]
    models: Mapping[str, Predictor]
    target: str
    toolchain: str
    unit: str
    sums: Accuracy | None = None

    def predict(self, signature: str, features: Mapping[str, Any]) -> tuple[float, float]:
        """Cost of one operator and its expected relative error: 0 from the table. Raises `NeaptideError` when nothing is known."""
        if signature in self.table:
            return self.table[signature], 0.0
        kind = str(features.get("op", ""))
        model = self.models.get(kind) or self.models.get("")
        if model is None:
            raise NeaptideError(f"operator {signature!r} was never measured on {self.target}, and no model of its kind could be fitted")
        return float(model.predict(_columns([features]))[0]), model.accuracy.error

    def network(self, operators: Iterable[tuple[str, Mapping[str, Any], int]]) -> tuple[float, float]:
        """Cost of a network and its expected relative error, from (signature, features, how often) of each operator.

        The error is that of sums of this database's networks where any were measured whole, else the cost-weighted error of the parts.
        """
        total = doubt = 0.0
        for signature, features, times in operators:
            cost, error = self.predict(signature, features)
            total += cost * times
            doubt += cost * times * error
        parts = doubt / total if total else 0.0
        return total, max(parts, self.sums.error) if self.sums else parts


def fit_operators(
    database: CostDatabase, *, target: str, toolchain: str | None = None, boosting: bool = True, seed: int = 0
) -> OperatorPredictor:
    """Everything the database knows of `target`. `toolchain` None: its only one; several are an error that lists them.

    A kind with at least 20 measurements that have features gets a model of its own; all kinds together get one where they have 20.
    """
    known = sorted({row[1] for row in database.counts() if row[0] == target and row[2]})
    if toolchain is None:
        if len(known) != 1:
            found = f"{len(known)} toolchains: {', '.join(known)}; name one with --toolchain" if known else "no measured operators"
            raise NeaptideError(f"{database.path}: target {target!r} has {found}")
        toolchain = known[0]
    rows = [row for row in database.rows(OperatorRow, target=target, toolchain=toolchain) if isinstance(row, OperatorRow)]
    if not rows:
        raise NeaptideError(
            f"{database.path}: no operators of {target!r} with toolchain {toolchain!r}; known: {', '.join(known) or 'none'}"
        )
    units = {row.unit for row in rows}
    if len(units) > 1:
        raise NeaptideError(f"{database.path}: operators of {target!r} are counted in {' and '.join(sorted(units))}; prune one of them")
    described = [row for row in rows if row.features and row.value > 0]
    groups = {"": described}
    for row in described:
        groups.setdefault(str(row.features.get("op", "?")), []).append(row)
    models = {
        kind: fit(
            _columns([row.features for row in members]), np.array([row.value for row in members]), boosting=boosting, power_law=True,
            seed=seed, target=target, toolchain=toolchain, unit=rows[0].unit,
        )
        for kind, members in groups.items()
        if len(members) >= LEAST_NETWORKS
    }  # fmt: skip
    predictor = OperatorPredictor({row.signature: row.value for row in rows}, models, target, toolchain, rows[0].unit)
    return _with_sums(predictor, database)


def _with_sums(predictor: OperatorPredictor, database: CostDatabase) -> OperatorPredictor:
    """With the accuracy of sums over networks whose operators are all in the table."""
    sums, measured = [], []
    for row in database.rows(NetworkRow, target=predictor.target, toolchain=predictor.toolchain):
        if isinstance(row, NetworkRow) and row.value > 0 and all(op in predictor.table for op in row.operators):
            sums.append(sum(predictor.table[op] * times for op, times in row.operators.items()))
            measured.append(row.value)
    if not sums:
        return predictor
    accuracy = accuracy_of(np.array(sums, dtype=float), np.array(measured))
    return OperatorPredictor(predictor.table, predictor.models, predictor.target, predictor.toolchain, predictor.unit, accuracy)


def _columns(features: list[Mapping[str, Any]]) -> Columns:
    """Each number as it is and as its logarithm, for sums and for power laws; what is not said is 0."""
    numbers = {name: np.array([float(f.get(name) or 0.0) for f in features]) for name in FEATURES}
    logs = {f"log {name}": np.log1p(column) for name, column in numbers.items()}
    return Columns({"op": np.array([str(f.get("op", "?")) for f in features])}, {**numbers, **logs})
