"""What a search engine is: something that asks for architectures to be tried and is told what came of it.

An engine is a pure function of its context's seed and of what it was told, in order. A search that was killed is therefore taken up by
asking again and telling what the study remembers; nothing of an engine but trained weights needs to be kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .oracle import Oracle
    from .space import Architecture, Space


@dataclass(frozen=True, slots=True)
class Proposal:
    """An architecture to try. `parent`: the one whose trained weights it may inherit. `settings`: JSON values for whoever evaluates it
    (epochs, the weights it reads); `origin`: how it came about, in a word ("random", "mutation", "augment", "trim").
    """

    arch: Architecture
    parent: Architecture | None = None
    origin: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a proposal. `values`: one number per metric by name ("accuracy", "peak", "params", "macs", "latency", ...), in the
    metric's own unit; `feasible`: whether every constraint holds; `violation`: how far over in all, relative, 0.0 when feasible.
    """

    proposal: Proposal
    values: Mapping[str, float]
    feasible: bool = True
    violation: float = 0.0


@dataclass(frozen=True)
class Objective:
    """A metric to drive up or down."""

    metric: str
    maximize: bool


@dataclass(frozen=True)
class Context:
    """What an engine may know: the space, the oracle that prices architectures, what is wanted and allowed, and where to keep weights.

    `feasible_rows(rows)` of the constraints tells which encoded architectures keep every constraint that the oracle alone can check.
    `preset`: "smoke", "small" or "paper"; `options`: engine options from the user, by name. `folder`: for checkpoints; may not exist yet.
    `data`: an `ImageData` or a tabular benchmark (see `search.data`), or None.
    """

    space: Space
    oracle: Oracle
    objectives: tuple[Objective, ...]
    constraints: Any
    seed: int
    preset: str
    folder: Path
    data: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """`ask` and `tell`, in turns. Everything asked in one call is told in one call, in the order in which it was asked.

    An engine may have more: `endless` (it asks until a budget ends it), `prepare(progress)` (work before the first proposal), `evaluator`
    (what tells its proposals' accuracy), and `quick_space(space, preset, side)`, options of a space on images of `side` pixels under
    which its presets end in the time they promise.
    """

    name: str

    def ask(self) -> list[Proposal]:
        """What to try next, together; [] when the engine has no more to ask."""
        ...

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """What came of everything the last `ask` gave."""
        ...
