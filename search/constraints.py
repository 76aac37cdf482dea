"""Limits on what an architecture may cost: `peak<=320KiB`, `flash<=1MB`, `params<=500k`, `latency<=5ms`.

Those that the oracle prices are kept before anything is trained: engines ask `feasible_rows`, and `check` refuses a search that no
architecture can satisfy. How far an outcome is over is relative to each limit and added up, so that limits in bytes and seconds compare.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compiler.errors import BudgetError, SourceError
from .metrics import METRICS, Metric, format_amount, metric, parse_amount

if TYPE_CHECKING:
    from ..targets.spec import Target

_FORM = re.compile(r"\s*([A-Za-z_][\w-]*)\s*(<=|>=|==|=|<|>)\s*(.+?)\s*")
DRAWN = 64
FORMS = "write for example peak<=320KiB, flash<=1MB, params<=500k, macs<=10M, latency<=5ms or instructions<=20M"


@dataclass(frozen=True, slots=True)
class Constraint:
    """`metric` at most `limit`, in bytes, a count or seconds. `text`: as it was written, or whose limit it is."""

    metric: str
    limit: float
    text: str

    def excess(self, value: float) -> float:
        """How far `value` is over the limit, relative to it; 0.0 when it keeps it."""
        return max(0.0, float(value) / self.limit - 1.0)


def parse_constraint(text: str) -> Constraint:
    """The constraint that `text` writes. Raises `SourceError` that quotes it and says what is allowed."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise SourceError(f"constraint {text!r} is not METRIC<=LIMIT: {FORMS}")
    name, relation, amount = match.groups()
    try:
        known = metric(name)
    except SourceError as error:
        raise SourceError(f"constraint {text!r}: {error}") from None
    if not known.priced:
        raise SourceError(f"constraint {text!r}: {known.name} is to be driven up, not limited; give it as an objective")
    if relation != "<=":
        raise SourceError(f"constraint {text!r}: costs are limited from above, with <=: {FORMS}")
    try:
        limit = parse_amount(amount, known.unit)
    except ValueError as error:
        raise SourceError(f"constraint {text!r}: {amount!r}: {error}") from None
    return Constraint(known.name, limit, text.strip())


def target_constraints(target: Target | None) -> tuple[Constraint, ...]:
    """What the memories of `target` allow: its SRAM the planned peak, its flash the weights."""
    if target is None:
        return ()
    found = []
    for name, limit, memory in (("peak", target.sram, "SRAM"), ("flash", target.flash, "flash")):
        if limit is not None:
            found.append(Constraint(name, float(limit), f"{target.name}'s {memory} of {limit:,} B"))
    return tuple(found)


class Constraints:
    """All limits of one search, and the oracle that prices them. `Constraints(("peak<=320KiB",), oracle)`; texts or `Constraint`s.

    Iterates over its constraints; false when there are none.
    """

    def __init__(self, constraints: Sequence[str | Constraint] = (), oracle: Any = None, target: Target | None = None):
        own = tuple(parse_constraint(c) if isinstance(c, str) else c for c in constraints)
        self.constraints = own + target_constraints(target)
        self.oracle = oracle

    def __iter__(self):
        return iter(self.constraints)

    def __len__(self) -> int:
        return len(self.constraints)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that are limited, each once, in order."""
        return tuple(dict.fromkeys(c.metric for c in self.constraints))

    def violations(self, values: Mapping[str, float]) -> tuple[float, ...]:
        """How far over each limit `values` is, relative; 0.0 where it keeps it. A metric that `values` lacks raises `SourceError`."""
        missing = [c for c in self.constraints if c.metric not in values]
        if missing:
            raise SourceError(f"constraint {missing[0].text!r}: nothing told {missing[0].metric}")
        return tuple(c.excess(values[c.metric]) for c in self.constraints)

    def violation(self, values: Mapping[str, float]) -> float:
        """The violations of all limits together; 0.0 when every one is kept."""
        return float(sum(self.violations(values)))

    def feasible_rows(self, rows: np.ndarray) -> np.ndarray:
        """Which encoded architectures (n, genes) keep every limit, as booleans (n,)."""
        return self.row_violations(rows) <= 0

    def row_violations(self, rows: np.ndarray) -> np.ndarray:
        """The violation of each encoded architecture, (n,); one call of the oracle for all of them."""
        over = np.zeros(len(rows))
        if self.constraints and len(rows):
            costs = self.oracle.cost(rows, metrics=self.metrics)
            for c in self.constraints:
                over += np.maximum(np.asarray(costs[c.metric], float) / c.limit - 1.0, 0.0)
        return over

    def check(self) -> None:
        """Refuse limits that no architecture of the space keeps, before anything runs.

        Raises `BudgetError` with the least value that can be reached, and the architecture that has it. The oracle, which may have to
        price the whole space for that, is asked only for limits that none of a few random architectures keeps.
        """
        if not self.constraints:
            return
        rows = self.oracle.space.sample_rows(np.random.default_rng(0), DRAWN)
        costs = self.oracle.cost(rows, metrics=self.metrics)
        for c in self.constraints:
            if np.asarray(costs[c.metric]).min() <= c.limit:
                continue
            value, arch = self.oracle.least(c.metric)
            if value > c.limit:
                known: Metric = METRICS[c.metric]
                space = self.oracle.space
                raise BudgetError(
                    f"no architecture of {space.name} keeps {c.text}: the least {known.title} is "
                    f"{format_amount(value, known.unit)}, over {format_amount(c.limit, known.unit)} (that of {space.text(arch)}); "
                    "raise the limit, or search a space of smaller networks"
                )

    def describe(self) -> list[str]:
        """As `METRIC<=LIMIT` texts that parse back to the same limits."""
        return [f"{c.metric}<={c.limit!r}" for c in self.constraints]
