"""Regularised evolution (Real et al. 2019, "Regularized Evolution for Image Classifier Architecture Search", algorithm 1) under limits.

A tournament picks a parent, one mutation makes a child, the child joins the population and the oldest member leaves it. What differs
from the paper: children that break a limit are drawn again before anything is trained; children are made `batch` at a time from one
population, so that they can be evaluated side by side; children already tried are drawn again; and with several objectives, or after
outcomes that broke a limit that only measuring shows, the tournament goes to a random one of those that nothing in it beats.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from ..engine import Context, Outcome, Proposal
from ..feasible import FeasibleSampler
from ..objectives import front, losses
from ..space import Architecture
from . import engine_settings

PRESETS = {
    "smoke": {"population": 16, "tournament": 5, "batch": 4},
    "small": {"population": 40, "tournament": 10, "batch": 8},
    "paper": {"population": 100, "tournament": 25, "batch": 8},
}
ATTEMPTS = 100


class Evolution:
    """`population` members, `tournament` of them compared for each child, `batch` children asked for at once."""

    name = "evolution"
    endless = True

    def __init__(self, context: Context):
        settings = engine_settings(self.name, context, PRESETS)
        self._size, self._tournament, self._batch = settings["population"], settings["tournament"], settings["batch"]
        self._context = context
        self._rng = np.random.default_rng(context.seed)
        self._sampler = FeasibleSampler(context.space, context.constraints)
        self._population: deque[tuple[Architecture, tuple[float, ...], float]] = deque(maxlen=self._size)
        self._known: dict[Architecture, None] = {}
        self._started = 0

    def ask(self) -> list[Proposal]:
        """The first population at random, and then children; [] when no new feasible architecture is found."""
        if self._started < self._size:
            drawn = self._sampler.draw(self._rng, min(self._batch, self._size - self._started), self._known)
            self._started += len(drawn) if drawn else self._size
            if drawn or not self._population:
                return self._new([Proposal(arch, origin="random") for arch in drawn])
        children: list[Proposal] = []
        for _ in range(self._batch):
            child = self._child({p.arch for p in children})
            if child is not None:
                children.append(child)
        return self._new(children)

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            loss = losses(self._context.objectives, outcome.values) if outcome.feasible else ()
            self._population.append((outcome.proposal.arch, loss, outcome.violation))

    def _new(self, proposals: list[Proposal]) -> list[Proposal]:
        self._known.update(dict.fromkeys(p.arch for p in proposals))
        return proposals

    def _child(self, siblings: set[Architecture]) -> Proposal | None:
        """A feasible mutation that was never tried; a random architecture when mutations of this parent find none in ATTEMPTS."""
        parent = self._parent()
        space, arch = self._context.space, parent
        for attempt in range(ATTEMPTS):
            arch = space.mutate(parent if attempt % 4 == 0 else arch, self._rng)  # farther away when what is near has been tried
            if arch not in self._known and arch not in siblings and self._context.constraints.feasible_rows(space.encode([arch]))[0]:
                return Proposal(arch, origin="mutation")
        drawn = self._sampler.draw(self._rng, 1, {**self._known, **dict.fromkeys(siblings)})
        return Proposal(drawn[0], origin="random") if drawn else None

    def _parent(self) -> Architecture:
        entrants = [self._population[i] for i in self._rng.integers(len(self._population), size=self._tournament)]
        feasible = [e for e in entrants if not e[2] and e[1]]
        if not feasible:
            return min(entrants, key=lambda e: e[2])[0]
        best = np.flatnonzero(front(np.array([e[1] for e in feasible])))
        return feasible[int(self._rng.choice(best))][0]
