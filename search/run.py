"""`search`: a space, an engine and limits in; the front, its best network and a study that can be taken up again out.

The engine asks, the oracle prices, an evaluator tells what each proposal is worth, the study keeps it, and the engine is told, in the
order in which it asked. A search that was killed is taken up by asking again from the beginning: what the study holds is told without
being evaluated, so the search comes to where it was and goes on as if it had never stopped.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..compiler.errors import BudgetError, NeaptideError
from .engine import Objective, Outcome, Proposal
from .farm import Farm, open_farm
from .metrics import METRICS, format_amount
from .objectives import parse_objectives
from .outputs import measure_candidate
from .own_files import check_unchanged
from .result import Candidate, SearchResult, front_of
from .setup import Budget, Setup, describe, describe_arguments, parse_budget, tool_versions
from .study import Study, Trial, only_one, stored_description

if TYPE_CHECKING:
    from ..targets.database import CostDatabase
    from ..targets.spec import Target
    from .space import Space

ALWAYS = ("params", "macs", "peak")
Progress = Callable[[str, int, int], None]


def search(
    space: str | Space | None = None,
    engine: str | None = None,
    *,
    objectives: str | Sequence[str] | None = None,
    constraints: Sequence[str] | None = None,
    target: str | Target | None = None,
    data: Any = None,
    preset: str | None = None,
    budget: str | int | None = None,
    seed: int | None = None,
    options: Mapping[str, Any] | None = None,
    space_options: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    accounting: str | None = None,
    weights: str | None = None,
    workers: int | None = None,
    farm: str = "processes",
    folder: str | Path | None = None,
    storage: str | None = None,
    study: str | None = None,
    resume: bool = False,
    measure: int | None = None,
    database: CostDatabase | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Search `space` with `engine` for architectures that are best by `objectives` and keep every limit.

    `space`: a name that `list_spaces` gives, `FILE.py:CLASS` or a `Space`; `space_options`: what it is made with. `engine`: a name that
    `list_engines` gives; `options`: its own, over its `preset` ("smoke", a minute on two cores; "small", twenty; "paper").
    `objectives`: "accuracy,latency", the first one matters most. `constraints`: `["peak<=320KiB", "flash<=1MB"]`; a `target`'s memories
    are limits too. `data`: a folder, an `.npz` file (`data_options`: as in `load_data`), an `ImageData` or a `TabularData`.
    `training`: fields of `TrainSettings`. `budget`: how many proposals, or how long; only a number of proposals makes a search that
    gives the same result again. `accounting`, `weights`: as in `Oracle`.

    `folder`: for the study, trained weights and what comes out (None: `neaptide-search`); `storage`: an Optuna storage URL (None:
    `study.sqlite` in the folder); `study`: its name there. `resume`: continue it; what is not given is as it was. `workers`: how many
    evaluations at once (None: as many as there are cores, for evaluations that take long); `farm`: "processes" or "ray". None of
    these changes what is found. `measure`: run so many of the front, best first, on the target (None: one, where there is a target);
    `database` remembers what they cost.
    `progress(stage, done, total)`: `total` 0 when it is not known.

    Raises `BudgetError` before anything is evaluated when no architecture keeps a limit, `SourceError` for names and options.
    """
    folder = Path(folder or "neaptide-search")
    url = storage or f"sqlite:///{folder.absolute() / 'study.sqlite'}"
    name = study or "search"
    given = {
        **describe_arguments(space, target, data),
        "engine": engine,
        "objectives": None if objectives is None else [o.metric for o in parse_objectives(objectives)],
        "constraints": None if constraints is None else list(constraints),
        "preset": preset,
        "seed": seed,
        "budget": None if budget is None else str(budget),
        "accounting": accounting,
        "weights": weights,
    }
    for key, value in (("space_options", space_options), ("data_options", data_options), ("options", options), ("training", training)):
        if value is not None:
            given[key] = dict(value)
    with only_one(folder):
        stored = stored_description(url, name)
        description = describe(given, stored if resume else None, f"study {name!r} at {url}")
        if space is None:
            check_unchanged(description["space"], f"study {name!r} at {url}")
        predictor = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.predictor.npz"
        parts = {"space": space, "target": target, "data": data, "folder": folder, "database": database}
        setup = Setup.of(description, **parts, predictor=predictor, begun=stored is not None)
        opened = Study.open(url, name, setup.space, setup.objectives, {**description, "versions": tool_versions()}, resume=resume)
        try:
            loop = _Search(setup, opened, progress or (lambda *_: None))
            loop.prepare()
            with open_farm(farm, workers, setup.evaluator, setup.context) as workplace:
                loop.run(workplace)
            return loop.result(name, int(setup.target is not None) if measure is None else measure, database)
        finally:
            try:
                opened.abandon()
            finally:
                opened.close()


class _Search:
    """One run of the loop. `_index`: proposals asked for and dealt with so far."""

    def __init__(self, setup: Setup, study: Study, progress: Progress):
        self._setup, self._study, self._progress = setup, study, progress
        self._metrics = tuple(dict.fromkeys([*ALWAYS, *setup.context.constraints.metrics, *_priced_objectives(setup.objectives)]))
        self._begin = time.perf_counter()
        budget = parse_budget(setup.description["budget"])
        self._trials = budget.trials
        self._seconds, self._end = budget.seconds, None
        self._taken_over = len(study.finished)
        self._earlier = sum(t.seconds for t in study.finished.values())
        if budget == Budget() and getattr(setup.engine, "endless", False):
            self._trials = setup.evaluator.trials[setup.context.preset]
        self._index = 0
        self._candidates: list[Candidate] = []
        self._known: dict[tuple[Any, ...], Trial] = {}
        self._best: float | None = None

    def prepare(self) -> None:
        """Let the engine do what comes first: train a supernet, or take it from the folder. Its evaluator may need that."""
        if hasattr(self._setup.engine, "prepare"):
            self._progress("preparing the engine", 0, 0)
            self._setup.engine.prepare(self._progress)

    def run(self, farm: Farm) -> None:
        """Ask, evaluate and tell until the engine or the budget ends. A budget of seconds counts what earlier runs took to evaluate."""
        engine = self._setup.engine
        self._end = None if self._seconds is None else self._begin + self._seconds - self._earlier / farm.workers
        while not self._spent():
            proposals = engine.ask()
            if not proposals:
                if not self._index:
                    raise BudgetError(self._nothing())
                return
            room = len(proposals) if self._trials is None else self._trials - self._index
            trials = self._told(proposals[:room], farm)
            self._index += len(trials)
            if len(trials) < len(proposals):
                return  # what was asked together is told together, or not at all
            engine.tell([t.outcome(p) for t, p in zip(trials, proposals, strict=True)])

    def result(self, name: str, measure: int, database: CostDatabase | None) -> SearchResult:
        """The front of what was tried; its best networks measured, and the best one tested, once for all."""
        setup, context = self._setup, self._setup.context
        found = front_of(self._candidates, context.objectives)
        kept = self._study.result or {}
        for i, candidate in enumerate(found[:measure]):
            self._progress("measuring on the target", i, min(measure, len(found)))
            found[i] = measure_candidate(candidate, context, setup.target, database)
        best = found[0] if found else None
        kinds = context.oracle.cost([c.arch for c in found], metrics=self._metrics).kinds if found else {}
        accuracy = None
        if best is not None:
            accuracy = kept.get("test_accuracy") if kept.get("digest") == best.arch.digest else self._tested(best)
            self._study.set_result({"index": best.index, "digest": best.arch.digest, "architecture": best.text, "test_accuracy": accuracy})
        return SearchResult(
            space=context.space,
            engine=setup.description["engine"],
            preset=context.preset,
            seed=context.seed,
            objectives=context.objectives,
            constraints=tuple(c.text for c in context.constraints),
            limits=MappingProxyType({m: min(c.limit for c in context.constraints if c.metric == m) for m in context.constraints.metrics}),
            target=setup.target.name if setup.target is not None else "",
            best=best,
            front=tuple(found),
            trials=tuple(self._candidates),
            test_accuracy=accuracy,
            kinds=MappingProxyType(dict(kinds)),
            taken_over=self._taken_over,
            study=self._study.url,
            study_name=name,
            folder=str(context.folder),
            seconds=time.perf_counter() - self._begin,
            versions=MappingProxyType(tool_versions()),
        )

    def _nothing(self) -> str:
        limits = ", ".join(c.text for c in self._setup.context.constraints) or "nothing"
        name, space = self._setup.description["engine"], self._setup.space.name
        return f"engine {name} finds no architecture of {space} to begin with under {limits}; loosen a limit, or take another engine"

    def _spent(self) -> bool:
        if self._trials is not None and self._index >= self._trials:
            return True
        return self._end is not None and time.perf_counter() >= self._end

    def _told(self, proposals: Sequence[Proposal], farm: Farm) -> list[Trial]:
        """What comes of proposals that were asked together, in their order."""
        study, first = self._study, self._index
        trials: dict[int, Trial] = {}
        for i, proposal in enumerate(proposals):
            done = study.replayed(first + i, proposal)
            if done is not None:
                trials[i] = self._known[_key(proposal)] = done
        fresh = [i for i in range(len(proposals)) if i not in trials]
        costs = self._priced(proposals, fresh)
        wanted: dict[tuple[Any, ...], int] = {}
        for i in fresh:
            violation = self._setup.context.constraints.violation(costs[i])
            if violation:
                trials[i] = study.finish(first + i, Outcome(proposals[i], costs[i], False, violation), 0.0)
            elif _key(proposals[i]) not in self._known:
                wanted.setdefault(_key(proposals[i]), i)
        places = list(wanted.values())
        self._show(first + len(trials), trials.values())
        for done in farm.run([proposals[i] for i in places], lambda position: self._start(places[position], proposals, costs)):
            i = places[done.position]
            trials[i] = study.finish(first + i, self._outcome(proposals[i], costs[i], done.values), done.seconds)
            self._known[_key(proposals[i])] = trials[i]
            self._show(first + len(trials), [trials[i]])
        for i in fresh:
            if i not in trials:  # evaluated before: an evaluation that is repeated gives what it gave
                before = self._known[_key(proposals[i])]
                trials[i] = study.finish(first + i, self._outcome(proposals[i], costs[i], before.values), 0.0)
        self._candidates += [self._candidate(trials[i], p) for i, p in enumerate(proposals)]
        return [trials[i] for i in range(len(proposals))]

    def _start(self, i: int, proposals: Sequence[Proposal], costs: Mapping[int, Mapping[str, float]]) -> None:
        """Write that an evaluation begins; one that takes milliseconds is written when it is done."""
        if not getattr(self._setup.evaluator, "cheap", False):
            self._study.start(self._index + i, proposals[i], costs[i])

    def _priced(self, proposals: Sequence[Proposal], fresh: Sequence[int]) -> dict[int, dict[str, float]]:
        """What the oracle says of the proposals at `fresh`, by position; METRIC_error is the expected relative error of a prediction."""
        if not fresh:
            return {}
        costs = self._setup.context.oracle.cost([proposals[i].arch for i in fresh], metrics=self._metrics)
        known = {f"{name}_error": errors.tolist() for name, errors in costs.errors.items()}
        more = [{name: errors[k] for name, errors in known.items() if math.isfinite(errors[k])} for k in range(len(fresh))]
        return {i: {**costs.values(k), **more[k]} for k, i in enumerate(fresh)}

    def _outcome(self, proposal: Proposal, costs: Mapping[str, float], values: Mapping[str, float]) -> Outcome:
        merged = {**costs, **values}
        for objective in self._setup.objectives:
            if math.isnan(merged.get(objective.metric, math.nan)):
                text = self._setup.space.text(proposal.arch)
                raise NeaptideError(
                    f"{objective.metric} of {text} is {merged.get(objective.metric, 'not told')}; every objective needs a number"
                )
        violation = self._setup.context.constraints.violation(merged)
        return Outcome(proposal, merged, not violation, violation)

    def _candidate(self, trial: Trial, proposal: Proposal) -> Candidate:
        text = self._setup.space.text(proposal.arch)
        return Candidate(trial.index, proposal.arch, text, trial.origin, trial.values, trial.feasible, settings=proposal.settings)

    def _tested(self, best: Candidate) -> float | None:
        test = getattr(self._setup.evaluator, "test", None)
        self._progress("testing the chosen network", 0, 0)
        return None if test is None else test(best.proposal, self._setup.context)

    def _show(self, done: int, new: Iterable[Trial]) -> None:
        """Say how many proposals are done, and the best value of the first objective; `new`: trials not shown before."""
        first = self._setup.objectives[0]
        told = [t.values[first.metric] for t in new if t.feasible and first.metric in t.values]
        if self._best is not None:
            told.append(self._best)
        self._best = (max if first.maximize else min)(told, default=None)
        so_far = "" if self._best is None else f", best {first.metric} {format_amount(self._best, METRICS[first.metric].unit)}"
        self._progress(f"{self._setup.description['engine']} on {self._setup.space.name}{so_far}", done, self._trials or 0)


def _priced_objectives(objectives: Sequence[Objective]) -> list[str]:
    return [o.metric for o in objectives if METRICS[o.metric].priced]


def _key(proposal: Proposal) -> tuple[Any, ...]:
    """What an evaluation depends on."""
    return proposal.arch, proposal.parent, json.dumps(dict(proposal.settings), sort_keys=True)
