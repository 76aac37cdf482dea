"""Whether what a target computed is what the framework computes: the tolerance, and the sentence when it is not.

An output is held against the framework's by its largest difference, relative to the largest magnitude that the framework gives; a NaN
or an infinity is right where the framework has the same. Whole numbers and truth values are right when they are equal. Floats may differ
by `TOLERANCE`, and by more where an element is a sum of many products: rounding grows with the square root of their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from .cost import Cost

# Relative to the largest magnitude, up to `TERMS` multiply-adds for each element of an output.
TOLERANCE: Mapping[str, float] = MappingProxyType({"float16": 2e-2, "bfloat16": 5e-2, "float32": 1e-4, "float64": 1e-6})
TERMS = 1 << 20


def tolerance(dtype: str, terms: float = 1.0) -> float:
    """The relative difference allowed in an output of `dtype` whose elements took `terms` multiply-adds each; 0 for whole numbers."""
    return TOLERANCE.get(dtype, 0.0) * math.sqrt(max(1.0, terms / TERMS))


def difference(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference relative to the largest finite magnitude of `want`; infinite where one is not finite and the other is not it."""
    a, b = got.astype(np.float64).reshape(-1), want.astype(np.float64).reshape(-1)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(a - b))
    scale = np.abs(b[np.isfinite(b)]).max(initial=0.0) or 1.0
    worst = float(apart.max(initial=0.0)) if np.isfinite(apart).all() else math.inf
    return worst / scale


def judged(cost: Cost, outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray], *, macs: int = 0) -> Cost:
    """`cost` with `max_error` and whether its outputs are right; with the reason first, and fitting nowhere, where they are not.

    `macs`: multiply-adds of the whole network, of which each element of an output is taken to need its share.
    """
    errors = [difference(got, want) for got, want in zip(outputs, expected, strict=True)]
    terms = macs / max(1, sum(want.size for want in expected))
    allowed = [tolerance(str(want.dtype), terms) for want in expected]
    wrong = [i for i, (error, most) in enumerate(zip(errors, allowed, strict=True)) if error > most]
    found = replace(cost, max_error=max(errors, default=0.0), correct=not wrong)
    if not wrong:
        return found
    i = wrong[0]
    said = (
        f"wrong outputs: output {i} is off by {errors[i]:.2g} of its largest magnitude, and {expected[i].dtype} may be by "
        f"{allowed[i]:.2g}; nothing of this is kept"
    )
    return replace(found, fits=False, reasons=(said, *(r for r in cost.reasons if not r.startswith("fits"))))
