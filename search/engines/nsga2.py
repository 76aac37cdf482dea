"""NSGA-II (Deb et al. 2002) as Optuna's sampler has it, with its constrained domination.

The sampler works on a study of this engine's own, in memory; the search's study only sees what is worth evaluating. Architectures that
break a limit the oracle can check, and such as were told before, never leave the engine: the sampler is told of them at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..engine import Context, Outcome, Proposal
from ..feasible import FeasibleSampler
from ..objectives import losses
from ..optuna_session import import_optuna, quiet
from ..space import Architecture
from . import engine_settings

if TYPE_CHECKING:
    import optuna

PRESETS = {
    "smoke": {"population": 16, "batch": 8},
    "small": {"population": 32, "batch": 16},
    "paper": {"population": 100, "batch": 50},
}
PATIENCE = 48


class NSGA2:
    """A `population` that Optuna's NSGAIISampler moves on, `batch` architectures asked for at once."""

    name = "nsga2"
    endless = True

    def __init__(self, context: Context):
        optuna = import_optuna("engine nsga2")
        settings = engine_settings(self.name, context, PRESETS)
        self._context, self._batch = context, settings["batch"]
        self._rng = np.random.default_rng(context.seed)
        self._sampler = FeasibleSampler(context.space, context.constraints)
        self._told: dict[Architecture, tuple[tuple[float, ...], float]] = {}
        self._asked: list[optuna.Trial] = []
        self._genes = {f"g{i}": optuna.distributions.IntDistribution(0, c - 1) for i, c in enumerate(context.space.cardinalities)}
        with quiet():
            self._study = optuna.create_study(
                directions=["minimize"] * len(context.objectives),
                sampler=optuna.samplers.NSGAIISampler(
                    population_size=settings["population"], seed=context.seed, constraints_func=lambda trial: trial.user_attrs["violation"]
                ),
            )

    def ask(self) -> list[Proposal]:
        """Up to `batch` feasible architectures that were never asked for; [] when none is left."""
        proposals: dict[Architecture, Proposal] = {}
        idle = 0
        while len(proposals) < self._batch and idle < PATIENCE:
            trial, arch = self._suggested()
            idle += 1
            if arch in self._told:
                self._tell(trial, *self._told[arch])
            elif arch in proposals:
                self._study.tell(trial, state=import_optuna("engine nsga2").trial.TrialState.FAIL)
            elif violation := self._violation(arch):
                self._tell(trial, None, violation)
            else:
                proposals[arch] = Proposal(arch, origin="nsga2")
                self._asked.append(trial)
                idle = 0
        if not proposals:  # the sampler goes round in what is known: bring in chance
            for arch in self._sampler.draw(self._rng, self._batch, self._told):
                self._study.enqueue_trial({f"g{i}": gene for i, gene in enumerate(arch.genes)})
                self._asked.append(self._study.ask(self._genes))
                proposals[arch] = Proposal(arch, origin="random")
        return list(proposals.values())

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        for trial, outcome in zip(self._asked, outcomes, strict=True):
            loss = losses(self._context.objectives, outcome.values) if outcome.feasible else None
            self._told[outcome.proposal.arch] = (loss or (), outcome.violation)
            self._tell(trial, loss, outcome.violation)
        self._asked = []

    def _suggested(self) -> tuple[optuna.Trial, Architecture]:
        with quiet():
            trial = self._study.ask(self._genes)
        return trial, self._context.space.architecture([trial.params[name] for name in self._genes])

    def _violation(self, arch: Architecture) -> float:
        return float(self._context.constraints.row_violations(self._context.space.encode([arch]))[0])

    def _tell(self, trial: optuna.Trial, loss: tuple[float, ...] | None, violation: float) -> None:
        """`loss` None or (): not known, which does not matter among trials that break a limit."""
        trial.set_user_attr("violation", [violation])
        with quiet():
            self._study.tell(trial, list(loss or [0.0] * len(self._context.objectives)))
