"""What a search drives up or down, which of two outcomes is better, and the front of those that nothing beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..compiler.errors import SourceError
from .engine import Objective
from .metrics import metric


def parse_objectives(text: str | Sequence[str]) -> tuple[Objective, ...]:
    """`accuracy,latency`, or names in a list: each metric once, driven the way that is better for it.

    Raises `SourceError` for a metric that does not exist or stands twice.
    """
    names = [part.strip() for part in text.split(",")] if isinstance(text, str) else list(text)
    if not names:
        raise SourceError("no objective is named; write for example accuracy,latency")
    found: dict[str, Objective] = {}
    for name in names:
        if not name:
            raise SourceError(f"objective {text!r} has an empty name; write for example accuracy,latency")
        known = metric(name)
        if known.name in found:
            raise SourceError(f"objective {text!r} names {known.name} twice")
        found[known.name] = Objective(known.name, known.maximize)
    return tuple(found.values())


def losses(objectives: Sequence[Objective], values: Mapping[str, float]) -> tuple[float, ...]:
    """One number for each objective, smaller is better. Raises `SourceError` naming the metric that nothing told."""
    try:
        return tuple(-float(values[o.metric]) if o.maximize else float(values[o.metric]) for o in objectives)
    except KeyError as error:
        raise SourceError(f"nothing measures the objective {error.args[0]}; there are {', '.join(values) or 'no values'}") from None


def front(points: np.ndarray) -> np.ndarray:
    """Which rows of `points` (n, objectives; smaller is better) no other row dominates; of equal rows the first. O(n^2)."""
    points = np.asarray(points, float)
    keep = np.ones(len(points), bool)
    for i, point in enumerate(points):
        no_worse = (points <= point).all(axis=1)
        better = (points < point).any(axis=1)
        equal_before = no_worse & ~better
        keep[i] = not (no_worse & better).any() and not equal_before[:i].any()
    return keep
