"""What an architecture is worth: its accuracy from a table or from training, a score without training, or what an engine predicts.

Evaluators are pure: equal proposals under equal contexts give equal numbers, in whatever process. Accuracies are percent on the
validation part. The test part, or the held-out column of a table, is looked at by `test` alone: once, for the network that was chosen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from ..compiler.errors import SourceError
from .data import ImageData, TabularData
from .engine import Context, Objective, Proposal
from .metrics import METRICS
from .scores import SCORES, score

if TYPE_CHECKING:
    import torch

    from .space import Architecture, Space

Budgets = Mapping[str, int]


class Evaluator(Protocol):
    """Gives a proposal its numbers."""

    @property
    def cheap(self) -> bool:
        """Whether it takes milliseconds, and so runs in the search's own process."""
        ...

    @property
    def trials(self) -> Budgets:
        """By preset, how many proposals an engine that never ends by itself is given."""
        ...

    def evaluate(self, proposal: Proposal, context: Context) -> dict[str, float]:
        """Numbers by metric. The context may lack its oracle and constraints."""
        ...

    def test(self, proposal: Proposal, context: Context) -> float | None:
        """Accuracy on what no search has seen, in percent; None where there is nothing of the kind."""
        ...


@dataclass(frozen=True)
class CostsAlone:
    """Nothing beyond what the oracle says."""

    cheap = True
    trials = MappingProxyType({"smoke": 500, "small": 5_000, "paper": 20_000})

    def evaluate(self, proposal: Proposal, context: Context) -> dict[str, float]:
        return {}

    def test(self, proposal: Proposal, context: Context) -> float | None:
        return None


@dataclass(frozen=True)
class Tabular:
    """Accuracies of a benchmark's table."""

    cheap = True
    trials = MappingProxyType({"smoke": 300, "small": 2_000, "paper": 10_000})

    def evaluate(self, proposal: Proposal, context: Context) -> dict[str, float]:
        return {"accuracy": context.data.of(proposal.arch)}

    def test(self, proposal: Proposal, context: Context) -> float | None:
        return context.data.of(proposal.arch, held_out=True)


@dataclass(frozen=True)
class Scored:
    """Training-free scores of freshly initialised weights; `names` out of `SCORES`."""

    names: tuple[str, ...]
    cheap = False
    trials = MappingProxyType({"smoke": 100, "small": 2_000, "paper": 10_000})

    def evaluate(self, proposal: Proposal, context: Context) -> dict[str, float]:
        with fresh(proposal, context) as (module, seed):
            return {
                name: score(name, module, context.data, seed=seed, resolution=resolution_of(context, proposal.arch)) for name in self.names
            }

    def test(self, proposal: Proposal, context: Context) -> float | None:
        return None


# How long candidates are trained. Precision is fixed: timing decides "auto", and another choice gives other accuracies.
TRAININGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "smoke": {"epochs": 1, "images": 1_500, "batch": 64, "lr": 0.05, "schedule": "cosine", "precision": "fp32"},
        "small": {
            "epochs": 3, "images": 5_000, "batch": 32, "lr": 0.02, "schedule": "cosine", "precision": "fp32", "augment": False,
            "head_width": 64,
        },
        "paper": {"epochs": 60, "batch": 128, "lr": 0.01, "schedule": "sgdr", "precision": "fp32"},
    }
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """Accuracy after training on the images; weights are kept in the context's folder.

    `settings`: fields of `TrainSettings` over the preset's; a proposal's own `settings` of those names go over both. A proposal with a
    parent starts from the parent's weights where they are in the folder (`settings["weights"]` names others, relative to the folder).
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    cheap = False
    trials = MappingProxyType({"smoke": 6, "small": 24, "paper": 200})

    def evaluate(self, proposal: Proposal, context: Context) -> dict[str, float]:
        from .training import train
        from .weights import inherit, load_weights, save_weights

        with fresh(proposal, context) as (module, seed):
            settings = self._settings(proposal, context)
            path = weights_path(context.folder, proposal)
            key = {"training": asdict(settings), "seed": seed}
            if path.is_file():  # trained before the search was killed, but not yet in its study
                _, facts = load_weights(path)
                if facts.get("key") == key:
                    return facts["values"]
            source = _inherited(proposal, context)
            if source is not None:
                tensors = load_weights(source)[0]
                inherit(module, context.space.carried(tensors, proposal.parent, proposal.arch) if proposal.parent else tensors)
            partial = path.with_suffix(".training.safetensors")
            done = train(module, context.data, settings, seed=seed, checkpoint=partial if settings.epochs > 1 else None)
            values = {"accuracy": done.accuracy, **({"loss": done.loss} if math.isfinite(done.loss) else {})}
            save_weights(path, module.state_dict(), {"key": key, "values": values})
            partial.unlink(missing_ok=True)
            return values

    def test(self, proposal: Proposal, context: Context) -> float | None:
        from .training import evaluate
        from .weights import load_weights

        path = weights_path(context.folder, proposal)
        if context.data.test is None or not path.is_file():
            return None
        with fresh(proposal, context) as (module, _):
            module.load_state_dict(load_weights(path)[0])
            return evaluate(module, context.data, "test", resolution=resolution_of(context, proposal.arch))

    def _settings(self, proposal: Proposal, context: Context) -> Any:
        from .training import TrainSettings

        names = {f.name for f in fields(TrainSettings)}
        own = {k: v for k, v in proposal.settings.items() if k in names}
        return TrainSettings(**{**TRAININGS[context.preset], "resolution": resolution_of(context, proposal.arch), **self.settings, **own})


@dataclass(frozen=True)
class Together:
    """Several evaluators, each giving its own numbers."""

    parts: tuple[Any, ...]

    @property
    def cheap(self) -> bool:
        """Whether all of them are."""
        return all(p.cheap for p in self.parts)

    @property
    def trials(self) -> Budgets:
        """The smallest of theirs."""
        return {preset: min(p.trials[preset] for p in self.parts) for preset in self.parts[0].trials}

    def evaluate(self, proposal: Proposal, context: Context) -> dict[str, float]:
        values: dict[str, float] = {}
        for part in self.parts:
            values.update(part.evaluate(proposal, context))
        return values

    def test(self, proposal: Proposal, context: Context) -> float | None:
        return self.parts[0].test(proposal, context)


def evaluator_for(objectives: Sequence[Objective], data: Any, space: Space, training: Mapping[str, Any]) -> Evaluator:
    """What tells every objective that the oracle does not: by a table, by training on images, by scores.

    `training`: settings of `TrainSettings` that were asked for. Raises `SourceError` when the data cannot tell an objective.
    """
    asked = [o.metric for o in objectives if not METRICS[o.metric].priced]
    parts: list[Any] = []
    if isinstance(data, TabularData) and data.space != space.name:
        raise SourceError(f"{data.name} is a table of space {data.space}, not of {space.name}: give --space {data.space}")
    if "accuracy" in asked:
        if data is None:
            raise SourceError("objective accuracy needs --data: a folder or an .npz of images, or the table of a benchmark")
        if isinstance(data, TabularData) and training:
            raise SourceError(f"{data.name} is a table, nothing is trained: leave out the training settings {', '.join(training)}")
        parts.append(Tabular() if isinstance(data, TabularData) else Trained(training_settings(training)))
    names = tuple(name for name in asked if name in SCORES)
    if names:
        if not isinstance(data, ImageData):
            raise SourceError(f"objective {names[0]} scores networks on images: give --data, a folder or an .npz of images")
        parts.append(Scored(names))
    return CostsAlone() if not parts else parts[0] if len(parts) == 1 else Together(tuple(parts))


def training_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` as fields of `TrainSettings`. Raises `SourceError` naming one that there is not, or that would differ from run to run."""
    from .training import TrainSettings

    defaults = {f.name: f.default for f in fields(TrainSettings)}
    for name, value in given.items():
        if name not in defaults:
            raise SourceError(f"there is no training setting {name!r}; there are {', '.join(defaults)}")
        if name == "precision" and value not in ("fp32", "bf16"):
            raise SourceError(f"precision {value!r}: a search takes fp32 or bf16, which give the same accuracies in every run")
    try:
        replace(TrainSettings(), **given)
    except TypeError as error:
        raise SourceError(f"training settings: {error}") from error
    return dict(given)


def seed_of(context: Context, proposal: Proposal) -> int:
    """A seed that depends on the search's seed and on what is evaluated, and on nothing else: not when, where or how often."""
    parent = proposal.parent.digest if proposal.parent else ""
    words = [context.seed, proposal.arch.digest, parent, json.dumps(dict(proposal.settings), sort_keys=True)]
    return int.from_bytes(blake2b(json.dumps(words).encode(), digest_size=4).digest(), "big") >> 1


def resolution_of(context: Context, arch: Architecture) -> int | None:
    """The side that images are resized to for `arch`; None when they have it."""
    side = context.space.input_shape(arch)[-1]
    return None if side == context.data.shape[-1] else side


def weights_path(folder: str | Path, proposal: Proposal) -> Path:
    """Where the search in `folder` keeps the weights of a proposal."""
    name = proposal.arch.digest
    if proposal.settings:
        name += "-" + blake2b(json.dumps(dict(proposal.settings), sort_keys=True).encode(), digest_size=4).hexdigest()
    return Path(folder) / "weights" / f"{name}.safetensors"


def _inherited(proposal: Proposal, context: Context) -> Path | None:
    if "weights" in proposal.settings:
        return context.folder / proposal.settings["weights"]
    if proposal.parent is None:
        return None
    path = weights_path(context.folder, Proposal(proposal.parent))
    return path if path.is_file() else None


@contextmanager
def fresh(proposal: Proposal, context: Context) -> Iterator[tuple[torch.nn.Module, int]]:
    """The proposal's network with weights drawn by its own seed, and that seed.

    Within, torch computes on one thread, as everywhere else in a search: sums are taken in another order on more, and a search with
    other --workers would give other numbers. torch's generator and threads are as before afterwards.
    """
    import torch

    shape, given = context.space.input_shape(proposal.arch), context.data.shape
    if shape[1] != given[0]:
        raise SourceError(f"networks of {context.space.name} take {shape[1]} channels; images of {context.data.name} have {given[0]}")
    seed, threads = seed_of(context, proposal), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield context.space.module(proposal.arch), seed
    finally:
        torch.set_num_threads(threads)
