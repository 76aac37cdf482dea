"""Random architectures that keep every limit, found in a bounded number of draws whatever the limits are.

Architectures are drawn in growing batches, which the oracle prices at once. Where limits are so tight that none is met by chance, a
walk goes from the cheapest architectures towards chance ones, one gene at a time, and never leaves the limits.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from ..compiler.errors import BudgetError
from .constraints import Constraints
from .metrics import METRICS, format_amount
from .space import Architecture, Space

BATCHES = (32, 128, 512, 2048, 8192)
WALKS = 32
STEPS = 24


class FeasibleSampler:
    """Draws from `space` under `constraints`. Its whole state is the generator it is given, so equal generators draw alike."""

    def __init__(self, space: Space, constraints: Constraints):
        self._space, self._constraints = space, constraints
        self._starts: list[Architecture] | None = None

    def draw(self, rng: np.random.Generator, n: int, known: Container[Architecture] = ()) -> list[Architecture]:
        """Up to `n` different feasible architectures that are not in `known`; fewer when no more are found, [] when there are none left.

        Raises `BudgetError` when nothing feasible is found at all, known or not.
        """
        found: dict[Architecture, None] = {}
        met, rows = False, np.zeros((0, len(self._space.cardinalities)), np.int16)
        for size in BATCHES:
            rows = self._space.sample_rows(rng, max(size, 2 * n))
            kept = self._space.decode(rows[self._constraints.feasible_rows(rows)])
            met = met or bool(kept)
            for arch in kept:
                if arch not in known:
                    found[arch] = None
                if len(found) == n:
                    return list(found)
        for _ in range(WALKS):
            arch = self._walk(rng)
            met = met or arch is not None
            if arch is not None and arch not in known:
                found[arch] = None
            if len(found) == n:
                break
        if not met:
            limits = ", ".join(c.text for c in self._constraints)
            raise BudgetError(
                f"{sum(BATCHES):,} architectures of {self._space.name} were drawn and none keeps all of {limits}; "
                f"the least among them: {self._least_of(rows)}; loosen a limit"
            )
        return list(found)

    def _least_of(self, rows: np.ndarray) -> str:
        """The least that one of `rows`, or a cheapest architecture, has of each limited metric."""
        cheapest = self._space.encode([self._constraints.oracle.least(name)[1] for name in self._constraints.metrics])
        costs = self._constraints.oracle.cost(np.concatenate([rows, cheapest]), metrics=self._constraints.metrics)
        least = {name: np.asarray(costs[name]).min().item() for name in self._constraints.metrics}
        return ", ".join(f"{METRICS[name].title} {format_amount(value, METRICS[name].unit)}" for name, value in least.items())

    def _walk(self, rng: np.random.Generator) -> Architecture | None:
        """Somewhere feasible, from a cheapest architecture on; None when none of those keeps the limits."""
        starts = self._cheapest()
        if not starts:
            return None
        arch = starts[rng.integers(len(starts))]
        for _ in range(STEPS):
            near = self._space.encode([self._space.mutate(arch, rng) for _ in range(8)])
            kept = near[self._constraints.feasible_rows(near)]
            if len(kept):
                arch = self._space.decode(kept[:1])[0]
        return arch

    def _cheapest(self) -> list[Architecture]:
        if self._starts is None:
            least = [self._constraints.oracle.least(name)[1] for name in self._constraints.metrics]
            rows = self._space.encode(least)
            self._starts = self._space.decode(rows[self._constraints.feasible_rows(rows)]) if least else []
        return self._starts
