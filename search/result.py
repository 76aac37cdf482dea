"""What a search found: its trials, the front, the best of it, and how to read them again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from .engine import Objective, Proposal
from .objectives import front, losses

if TYPE_CHECKING:
    from ..targets.cost import Cost
    from .space import Architecture, Space

FORMAT, VERSION = "neaptide.search", 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """One architecture that was tried. `values`: every number known of it, by metric; `measured`: its real cost, where it was run;
    `note`: why it could not be; `settings`: the proposal's, which tell its trained weights from others of the architecture.
    """

    index: int
    arch: Architecture
    text: str
    origin: str
    values: Mapping[str, float]
    feasible: bool
    measured: Cost | None = None
    note: str = ""
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def proposal(self) -> Proposal:
        """What was evaluated: the architecture, under its settings."""
        return Proposal(self.arch, origin=self.origin, settings=self.settings)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: `architecture` is the text, `cost` the measured cost; a score that is not finite is null."""
        whole = {name: _plain(name, value) for name, value in self.values.items()}
        found = {"index": self.index, "architecture": self.text, "genes": list(self.arch.genes), "origin": self.origin, **whole}
        return {**found, "cost": self.measured.to_dict() if self.measured else None, **({"note": self.note} if self.note else {})}


@dataclass(frozen=True)
class SearchResult:
    """The end of a search. `best`: of the front, the best by the first objective, then the next; None when nothing was feasible.

    `front`: feasible candidates that no other one beats in every objective, best first. `trials`: all, in the order they were asked
    for. `limits`: by metric, the tightest of the constraints. `test_accuracy`: of `best`, in percent, on what no search has seen; None
    where there is nothing of the kind. `kinds`: how the oracle knows each metric ("exact", "predicted", "measured" or "bound"). `study`,
    `study_name`: where Optuna finds it. `taken_over`: trials that a study taken up had already; `seconds`: what this run took.
    """

    space: Space
    engine: str
    preset: str
    seed: int
    objectives: tuple[Objective, ...]
    constraints: tuple[str, ...]
    target: str
    best: Candidate | None
    front: tuple[Candidate, ...]
    trials: tuple[Candidate, ...]
    test_accuracy: float | None
    kinds: Mapping[str, str]
    taken_over: int
    study: str
    study_name: str
    folder: str
    seconds: float
    versions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    limits: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def to_dict(self, *, trials: bool = False) -> dict[str, Any]:
        """As versioned JSON values; with `trials`, those too."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "space": self.space.describe(),
            "engine": self.engine,
            "preset": self.preset,
            "seed": self.seed,
            "objectives": [o.metric for o in self.objectives],
            "constraints": list(self.constraints),
            "limits": dict(self.limits),
            "target": self.target or None,
            "study": self.study,
            "study_name": self.study_name,
            "trials": len(self.trials),
            "taken_over": self.taken_over,
            "seconds": round(self.seconds, 3),
            "kinds": dict(self.kinds),
            "versions": dict(self.versions),
            "test_accuracy": self.test_accuracy,
            "best": self.best.to_dict() if self.best else None,
            "front": [c.to_dict() for c in self.front],
        }
        return {**document, "all": [c.to_dict() for c in self.trials]} if trials else document


def _plain(name: str, value: float) -> float | None:
    """A metric's value as JSON can say it, counts and bytes as whole numbers."""
    if not math.isfinite(value):
        return None
    return int(value) if name != "accuracy" and float(value).is_integer() and abs(value) < 2**53 else value


def front_of(candidates: Sequence[Candidate], objectives: Sequence[Objective]) -> list[Candidate]:
    """The feasible candidates that nothing beats, best first: by the first objective, then the next, then the earlier."""
    feasible = [c for c in candidates if c.feasible]
    points = [losses(objectives, c.values) for c in feasible]
    keep = front(np.array(points).reshape(len(points), len(objectives)))
    order = sorted(np.flatnonzero(keep).tolist(), key=lambda i: (points[i], feasible[i].index))
    return [feasible[i] for i in order]
