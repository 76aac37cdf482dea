"""Random search: different architectures drawn uniformly from those that keep every limit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..engine import Context, Outcome, Proposal
from ..feasible import FeasibleSampler
from . import engine_settings

PRESETS = {preset: {"batch": 16} for preset in ("smoke", "small", "paper")}


class RandomSearch:
    """Asks for `batch` architectures at a time, none of them twice, until no more are found. Learns nothing from what it is told."""

    name = "random"
    endless = True

    def __init__(self, context: Context):
        self._batch = engine_settings(self.name, context, PRESETS)["batch"]
        self._rng = np.random.default_rng(context.seed)
        self._sampler = FeasibleSampler(context.space, context.constraints)
        self._known: dict[object, None] = {}

    def ask(self) -> list[Proposal]:
        drawn = self._sampler.draw(self._rng, self._batch, self._known)
        self._known.update(dict.fromkeys(drawn))
        return [Proposal(arch, origin="random") for arch in drawn]

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        pass
