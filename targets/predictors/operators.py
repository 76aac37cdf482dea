"""Predictors of single operators from the cost database: a table of what was measured, a model per kind of operator for the rest.

The features are those of ProxylessNAS (arXiv 1812.00332, appendix B): kind of operator, input and output size, kernel, stride and
expansion, with the multiply-adds beside them. A network costs the sum of its operators; how far that sum is off is measured on the
networks of the database, never assumed: once as they are, and once on networks left out together with the operators that only they have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...compiler.errors import NeaptideError
from ..database import CostDatabase, NetworkRow, OperatorRow
from .columns import Columns
from .fit import FOLDS, LEAST_NETWORKS, Accuracy, Predictor, accuracy_of, fit, refit

FEATURES = ("macs", "input", "output", "kernel", "stride", "expansion")


@dataclass(frozen=True)
class OperatorPredictor:
    """Costs of operators on one target with one toolchain. `table`: measured costs by signature; `models`: per kind of operator one
    fitted to its features, "" for all kinds together; `sums`: accuracy of summed operators against networks measured whole, every
    operator in the table; `unseen`: the same, by cross-validation, of networks whose own operators the predictor had not seen.
    """

    table: Mapping[str, float]
    models: Mapping[str, Predictor]
    target: str
    toolchain: str
    unit: str
    sums: Accuracy | None = None
    unseen: Accuracy | None = None

    def predict(self, signature: str, features: Mapping[str, Any]) -> tuple[float, float]:
        """Cost of one operator and its expected relative error: 0 from the table. Raises `NeaptideError` when nothing is known."""
        costs, errors, _ = self.predict_all([signature], [features])
        return float(costs[0]), float(errors[0])

    def predict_all(self, signatures: Sequence[str], features: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of n operators: costs, expected relative errors, and whether the table has them, each (n,). One call of each model.

        Raises `NeaptideError` naming an operator of which nothing is known.
        """
        known = np.array([signature in self.table for signature in signatures], bool)
        costs = np.array([self.table.get(signature, 0.0) for signature in signatures], float)
        errors = np.zeros(len(signatures))
        groups: dict[str, list[int]] = {}
        for i in np.flatnonzero(~known).tolist():
            kind = str(features[i].get("op", ""))
            groups.setdefault(kind if kind in self.models else "", []).append(i)
        for kind, members in groups.items():
            model = self.models.get(kind)
            if model is None:
                raise NeaptideError(
                    f"operator {signatures[members[0]]!r} was never measured on {self.target}, and fewer than {LEAST_NETWORKS} others were "
                    f"that a model could learn from; `neaptide measure SOURCE --target {self.target}` networks that have such operators"
                )
            costs[members] = model.predict(_columns([features[i] for i in members]))
            errors[members] = model.accuracy.error
        return costs, errors, known

    def within(self, signatures: Sequence[str], features: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Of n operators, (n,): whether they are in the table, or every number of theirs lies between those of their kind's training."""
        found = np.ones(len(signatures), bool)
        for i, (signature, known) in enumerate(zip(signatures, features, strict=True)):
            model = self.models.get(str(known.get("op", ""))) or self.models.get("")
            if signature not in self.table and model is not None:
                found[i] = bool(model.encoding.within(_columns([known]))[0])
        return found

    def error_of(self, parts: float, known: bool) -> float | None:
        """Expected relative error of a network's sum, whose operators are off by `parts` on average, weighted by cost.

        `known`: all of them are in the table; then it is the error of such sums. Else that of networks left out, or `parts` where that
        is more. None where no network was measured whole and nothing was predicted.
        """
        if known:
            return self.sums.error if self.sums else None
        return max(parts, self.unseen.error) if self.unseen else parts

    def network(self, operators: Iterable[tuple[str, Mapping[str, Any], int]]) -> tuple[float, float | None]:
        """Cost of a network and its expected relative error (see `error_of`), from (signature, features, how often) of each operator."""
        listed = list(operators)
        costs, errors, known = self.predict_all([s for s, _, _ in listed], [f for _, f, _ in listed])
        shares = costs * np.array([times for _, _, times in listed], float)
        total = float(shares.sum())
        return total, self.error_of(float(shares @ errors) / total if total else 0.0, bool(known.all()))


def fit_operators(
    database: CostDatabase, *, target: str, toolchain: str | None = None, boosting: bool = True, seed: int = 0
) -> OperatorPredictor:
    """Everything the database knows of `target`. `toolchain` None: its only one; several are an error that lists them.

    A kind with at least 20 measurements that have features gets a model of its own; all kinds together get one where they have 20.
    """
    toolchain, rows = known_operators(database, target=target, toolchain=toolchain)
    models = {
        kind: fit(
            _columns([row.features for row in members]), _values(members), boosting=boosting, power_law=True,
            seed=seed, target=target, toolchain=toolchain, unit=rows[0].unit,
        )
        for kind, members in _kinds(rows).items()
    }  # fmt: skip
    predictor = OperatorPredictor({row.signature: row.value for row in rows}, models, target, toolchain, rows[0].unit)
    networks = _networks(database, predictor)
    return replace(predictor, sums=_sums(predictor, networks), unseen=_left_out(predictor, rows, networks, seed))


def table_of(database: CostDatabase, *, target: str, toolchain: str | None = None) -> OperatorPredictor:
    """What was measured, without a model for the rest: as `fit_operators`, in milliseconds."""
    toolchain, rows = known_operators(database, target=target, toolchain=toolchain)
    predictor = OperatorPredictor({row.signature: row.value for row in rows}, {}, target, toolchain, rows[0].unit)
    return replace(predictor, sums=_sums(predictor, _networks(database, predictor)))


def known_operators(database: CostDatabase, *, target: str, toolchain: str | None = None) -> tuple[str, list[OperatorRow]]:
    """The toolchain and its measured operators on `target`. Raises `NeaptideError` where there are none, or several toolchains."""
    known = sorted({row[1] for row in database.counts() if row[0] == target and row[2]})
    if not known:
        raise NeaptideError(
            f"{database.path}: target {target!r} has no measured operators; `neaptide measure SOURCE --target {target}` and `neaptide cost "
            f"import FILE` bring some, and `neaptide cost fit --target {target}` then shows how well they predict others"
        )
    if toolchain is None:
        if len(known) != 1:
            raise NeaptideError(
                f"{database.path}: target {target!r} has {len(known)} toolchains; name one with --toolchain: {_listed(known)}"
            )
        toolchain = known[0]
    rows = [row for row in database.rows(OperatorRow, target=target, toolchain=toolchain) if isinstance(row, OperatorRow)]
    if not rows:
        raise NeaptideError(
            f"{database.path}: no operators of {target!r} with toolchain {toolchain!r}; `neaptide cost fit --toolchain NAME` takes one "
            f"that has: {_listed(known)}"
        )
    units = {row.unit for row in rows}
    if len(units) > 1:
        raise NeaptideError(f"{database.path}: operators of {target!r} are counted in {' and '.join(sorted(units))}; prune one of them")
    return toolchain, rows


def _listed(toolchains: Sequence[str]) -> str:
    return ", ".join(repr(toolchain) for toolchain in toolchains)


def _kinds(rows: Iterable[OperatorRow]) -> dict[str, list[OperatorRow]]:
    """Rows by kind of operator, and all of them under "", where a model can be learned from them."""
    groups: dict[str, list[OperatorRow]] = {"": []}
    for row in rows:
        if row.features and row.value > 0:
            groups[""].append(row)
            groups.setdefault(str(row.features.get("op", "?")), []).append(row)
    return {kind: members for kind, members in groups.items() if len(members) >= LEAST_NETWORKS}


def _values(rows: Sequence[OperatorRow]) -> np.ndarray:
    return np.array([row.value for row in rows], float)


def _networks(database: CostDatabase, predictor: OperatorPredictor) -> list[NetworkRow]:
    """Networks measured whole, whose operators are all in the table."""
    rows = database.rows(NetworkRow, target=predictor.target, toolchain=predictor.toolchain)
    return [
        row
        for row in rows
        if isinstance(row, NetworkRow) and row.value > 0 and row.operators and set(row.operators) <= set(predictor.table)
    ]


def _sums(predictor: OperatorPredictor, networks: Sequence[NetworkRow]) -> Accuracy | None:
    if not networks:
        return None
    sums = [sum(predictor.table[op] * times for op, times in row.operators.items()) for row in networks]
    return accuracy_of(np.array(sums, dtype=float), np.array([row.value for row in networks]))


def _left_out(predictor: OperatorPredictor, rows: Sequence[OperatorRow], networks: Sequence[NetworkRow], seed: int) -> Accuracy | None:
    """Accuracy on networks left out in folds, and with them the operators that no network left in has; those are predicted.

    Networks of which nothing new has to be predicted teach nothing here and do not count. None where fewer than two do.
    """
    folds = min(FOLDS, len(networks))
    if folds < 2:
        return None
    features = {row.signature: row.features for row in rows}
    uses = Counter(op for row in networks for op in row.operators)
    fold = np.random.default_rng(seed).permutation(len(networks)) % folds
    predicted, measured = [], []
    for k in range(folds):
        held = [row for row, at in zip(networks, fold, strict=True) if at == k]
        within = Counter(op for row in held for op in row.operators)
        own = {op for op, times in within.items() if times == uses[op]}
        judged = [row for row in held if own & set(row.operators)]
        if not judged:
            continue
        seen = _without(predictor, rows, own, seed)
        for row in judged:
            try:
                predicted.append(seen.network([(op, features[op], times) for op, times in row.operators.items()])[0])
            except NeaptideError:
                continue  # an operator of a kind that no other network has
            measured.append(row.value)
    return accuracy_of(np.array(predicted), np.array(measured)) if len(measured) > 1 else None


def _without(predictor: OperatorPredictor, rows: Sequence[OperatorRow], own: set[str], seed: int) -> OperatorPredictor:
    """`predictor` as it would be had the operators `own` never been measured; each kind keeps the model chosen for it."""
    left = [row for row in rows if row.signature not in own]
    models = {
        kind: refit(predictor.models[kind], _columns([row.features for row in members]), _values(members), seed=seed)
        for kind, members in _kinds(left).items()
    }
    return replace(predictor, table={row.signature: row.value for row in left}, models=models)


def _columns(features: list[Mapping[str, Any]]) -> Columns:
    """Each number as it is and as its logarithm, for sums and for power laws; what is not said is 0."""
    for f in features:
        for name in FEATURES:
            if isinstance(f.get(name), str):
                raise NeaptideError(f"feature {name!r} of an operator is the text {f[name]!r}, and a predictor learns from numbers")
    numbers = {name: np.array([float(f.get(name) or 0.0) for f in features]) for name in FEATURES}
    logs = {f"log {name}": np.log1p(column) for name, column in numbers.items()}
    return Columns({"op": np.array([str(f.get("op", "?")) for f in features])}, {**numbers, **logs})
