"""The memory of a search: one Optuna study, a trial for each proposal, on disk before the engine is told.

A trial carries the architecture's text and genes, every number that is known of it, and the index of its proposal. Only the process
that runs the search writes. A trial is RUNNING while it is evaluated and becomes COMPLETE in one transaction, so that whenever the
process dies a proposal is either finished with all its numbers or not finished at all; `resume` marks what was left RUNNING as failed.
optuna-dashboard opens the same file or URL.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..compiler.errors import FormatError, NeaptideError, SourceError
from ..compiler.sqlite_files import WAIT_S, check_tables, connect, write_ahead
from .engine import Objective, Outcome, Proposal
from .optuna_session import import_optuna, quiet
from .space import Architecture

if TYPE_CHECKING:
    from .space import Space

KEY, RESULT = "neaptide", "neaptide_result"  # attributes of the study: what search it is of, and how it ended
CONSTRAINTS = "constraints"  # where Optuna and its dashboard look for a trial's feasibility
MAY_DIFFER = ("budget", "versions")  # a study can be continued for longer, and with other versions as long as they ask the same
INFINITE = ("inf", "-inf")  # how they stand among the attributes of a trial: JSON has no such numbers
# Attributes of a trial that are no metric of it.
FACTS = ("index", "architecture", "parent", "origin", "settings", "violation", "seconds", "stale")


@dataclass(frozen=True, slots=True)
class Trial:
    """A finished proposal. `values`: every number known of it by metric; `seconds`: what its evaluation took."""

    index: int
    arch: Architecture
    origin: str
    values: Mapping[str, float]
    violation: float
    seconds: float

    @property
    def feasible(self) -> bool:
        """Whether it keeps every limit."""
        return not self.violation

    def outcome(self, proposal: Proposal) -> Outcome:
        """What the engine is told of it."""
        return Outcome(proposal, self.values, self.feasible, self.violation)


class Study:
    """One search on disk. `open` makes it or takes it up; `finished` holds the trials that need not run again, by index."""

    def __init__(self, storage: Any, study: int, url: str, space: Space, objectives: tuple[Objective, ...]):
        self._storage, self._id, self._space, self._objectives = storage, study, space, objectives
        self._running: dict[int, int] = {}
        self.url = url
        self._file = _sqlite_file(url)
        self.finished: dict[int, Trial] = {}

    @classmethod
    def open(
        cls, url: str, name: str, space: Space, objectives: tuple[Objective, ...], description: Mapping[str, Any], *, resume: bool
    ) -> Study:
        """The study called `name` at a storage URL of Optuna's (`sqlite:///FILE`, `postgresql://...`), new or, with `resume`, continued.

        `description`: JSON values that a continued study must have been made with. Raises `SourceError` when a study of that name is
        there and `resume` was not asked for, or when it is of another search, naming what differs.
        """
        optuna = import_optuna()
        storage = _storage(url)
        with quiet(), _storage_errors(url), _reading(url):
            if name not in optuna.get_all_study_names(storage):
                directions = ["maximize" if o.maximize else "minimize" for o in objectives]
                optuna.create_study(study_name=name, storage=storage, directions=directions)
            study = optuna.load_study(study_name=name, storage=storage)
            found = study.user_attrs.get(KEY)
            if found is None:
                if study.get_trials(deepcopy=False):
                    raise SourceError(f"study {name!r} at {url} is not one of Neaptide's; give another --study or --storage")
                study.set_metric_names([o.metric for o in objectives])
                study.set_user_attr(KEY, dict(description))
            elif not resume:
                raise SourceError(f"study {name!r} is at {url} already: --resume continues it, another --study or --out begins a new one")
            elif differing := differences(found, description):
                raise SourceError(f"study {name!r} at {url} is of another search: {'; '.join(differing)}")
            elif found != description:
                study.set_user_attr(KEY, dict(description))
            made = cls(storage, storage.get_study_id_from_name(name), url, space, objectives)
            made._take_up()
        return made

    def start(self, index: int, proposal: Proposal, costs: Mapping[str, float]) -> None:
        """Write that `proposal` is being evaluated; `costs`: what is known of it already."""
        with _storage_errors(self.url), _reading(self.url):
            trial = self._trial(index, proposal, costs, import_optuna().trial.TrialState.RUNNING)
            self._running[index] = self._storage.create_new_trial(self._id, template_trial=trial)

    def finish(self, index: int, outcome: Outcome, seconds: float) -> Trial:
        """Write what came of the proposal that was started as `index`, or all of it at once when it was not."""
        if self._file is not None and not self._file.exists():
            raise NeaptideError(f"{self._file} is gone: its folder was removed while the search ran; begin again in another --out")
        state, told = self._state(outcome)
        facts = {**outcome.values, "violation": outcome.violation, "seconds": seconds}
        with _storage_errors(self.url), _reading(self.url):
            if index in self._running:
                trial = self._running.pop(index)
                known = self._storage.get_trial(trial).user_attrs
                for key, value in facts.items():
                    if key not in known:
                        self._storage.set_trial_user_attr(trial, key, _attribute(value))
                self._storage.set_trial_system_attr(trial, CONSTRAINTS, [outcome.violation])
                self._storage.set_trial_state_values(trial, state, told)
            else:
                self._storage.create_new_trial(self._id, template_trial=self._trial(index, outcome.proposal, facts, state, told))
        proposal, values = outcome.proposal, MappingProxyType(dict(outcome.values))
        self.finished[index] = Trial(index, proposal.arch, proposal.origin, values, outcome.violation, seconds)
        return self.finished[index]

    def replayed(self, index: int, proposal: Proposal) -> Trial | None:
        """The finished trial of this index, or None. Raises `NeaptideError` when the study holds another architecture there."""
        trial = self.finished.get(index)
        if trial is not None and trial.arch != proposal.arch:
            raise NeaptideError(
                f"trial {index} of the study at {self.url} is {self._space.text(trial.arch)}, but the engine now asks for "
                f"{self._space.text(proposal.arch)}: the study was made with other versions; begin a new one"
            )
        return trial

    @property
    def result(self) -> dict[str, Any] | None:
        """What `set_result` kept last, or None. Raises `FormatError` for what it cannot have kept."""
        with _storage_errors(self.url), _reading(self.url):
            found = self._storage.get_study_user_attrs(self._id).get(RESULT)
        if found is None:
            return None
        accuracy = found.get("test_accuracy") if isinstance(found, dict) else found
        if not isinstance(found, dict) or not (accuracy is None or _is_number(accuracy)):
            raise FormatError(f"the study at {self.url} is damaged: the end of its search is told as {found!r:.80}")
        return found

    def set_result(self, result: Mapping[str, Any]) -> None:
        """Keep JSON values about the end of the search with the study."""
        with _storage_errors(self.url), _reading(self.url):
            self._storage.set_study_user_attr(self._id, RESULT, dict(result))

    def abandon(self) -> None:
        """Mark what was started and not finished as failed: after an error or Ctrl-C, so that a dashboard does not show it running."""
        left, self._running = self._running, {}
        for trial in left.values():
            self._fail(trial)

    def close(self) -> None:
        """Let go of the storage."""
        self._storage.remove_session()

    def _trial(self, index: int, proposal: Proposal, values: Mapping[str, Any], state: Any, told: list[float] | None = None) -> Any:
        """A trial in Optuna's form."""
        optuna = import_optuna()
        names = [f"g{i:03}" for i in range(len(proposal.arch.genes))]
        choices = [optuna.distributions.IntDistribution(0, int(c) - 1) for c in self._space.cardinalities]
        facts: dict[str, Any] = {
            "index": index,
            "architecture": self._space.text(proposal.arch),
            "origin": proposal.origin,
        }
        if proposal.parent is not None:
            facts["parent"] = self._space.text(proposal.parent)
        if proposal.settings:
            facts["settings"] = json.dumps(dict(proposal.settings), sort_keys=True)
        return optuna.trial.create_trial(
            state=state,
            values=told,
            params=dict(zip(names, map(int, proposal.arch.genes), strict=True)),
            distributions=dict(zip(names, choices, strict=True)),
            user_attrs={**facts, **{key: _attribute(value) for key, value in values.items()}},
            system_attrs={CONSTRAINTS: [values["violation"]]} if "violation" in values else {},
        )

    def _state(self, outcome: Outcome) -> tuple[Any, list[float] | None]:
        """COMPLETE with the objectives' values; PRUNED for what broke a limit before they were known."""
        states = import_optuna().trial.TrialState
        if all(o.metric in outcome.values for o in self._objectives):
            return states.COMPLETE, [float(outcome.values[o.metric]) for o in self._objectives]
        return states.PRUNED, None

    def _fail(self, trial: int) -> None:
        with _storage_errors(self.url), _reading(self.url):
            self._storage.set_trial_user_attr(trial, "stale", True)
            self._storage.set_trial_state_values(trial, import_optuna().trial.TrialState.FAIL)

    def _take_up(self) -> None:
        """Take finished trials over, and mark as failed what a process that died left running."""
        states = import_optuna().trial.TrialState
        for trial in self._storage.get_all_trials(self._id, deepcopy=False):
            facts = trial.user_attrs
            if trial.state == states.RUNNING:
                self._fail(trial._trial_id)
            elif trial.state in (states.COMPLETE, states.PRUNED):
                if "index" not in facts:
                    raise FormatError(f"trial {trial.number} at {self.url} was not written by Neaptide; keep other trials out of the study")
                self.finished[facts["index"]] = self._finished(trial)

    def _finished(self, trial: Any) -> Trial:
        """A trial as it was told. Raises `FormatError` for one whose numbers are none, or whose genes are not of this space."""
        facts, where = trial.user_attrs, f"trial {trial.number} of the study at {self.url}"
        values = {k: float(v) if v in INFINITE else v for k, v in facts.items() if k not in FACTS}
        numbers = {**values, **{k: facts.get(k) for k in ("violation", "seconds")}}
        for name, value in numbers.items():
            if not isinstance(name, str) or not _is_number(value):
                raise FormatError(f"{where} is damaged: its {name} is {value!r:.80}, which is no number of ours")
        if type(facts["index"]) is not int or facts["index"] < 0 or not isinstance(facts.get("origin"), str):
            raise FormatError(f"{where} is damaged: it has the index {facts['index']!r} and the origin {facts.get('origin')!r}")
        genes = tuple(trial.params[name] for name in sorted(trial.params))
        most = [int(c) for c in self._space.cardinalities]
        if len(genes) != len(most) or not all(type(g) is int and 0 <= g < c for g, c in zip(genes, most, strict=True)):
            raise FormatError(f"{where} is damaged: its genes {genes!r} are not of {self._space}")
        arch = Architecture(self._space.name, genes)
        return Trial(facts["index"], arch, facts["origin"], MappingProxyType(values), facts["violation"], facts["seconds"])


def _is_number(value: Any) -> bool:
    """Whether `value` is a number as a search tells it: a float, or an integer of 64 bits, which every sum of floats takes."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _attribute(value: Any) -> Any:
    return str(float(value)) if isinstance(value, float) and math.isinf(value) else value


def stored_description(url: str, name: str) -> dict[str, Any] | None:
    """What the study called `name` was made with, or None where there is no such study."""
    optuna = import_optuna()
    if (file := _sqlite_file(url)) is not None and not file.exists():
        return None
    storage = _storage(url)
    with quiet(), _storage_errors(url), _reading(url):
        if name not in optuna.get_all_study_names(storage):
            return None
        found = optuna.load_study(study_name=name, storage=storage).user_attrs.get(KEY)
        if not (found is None or isinstance(found, dict)):
            raise FormatError(f"study {name!r} at {url} is damaged: what it was made with is {found!r:.80}")
        return found


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two descriptions, in words; what may is left out."""
    keys = [k for k in {**found, **wanted} if k not in MAY_DIFFER]
    return [f"its {k} is {found.get(k)!r}, not {wanted.get(k)!r}" for k in keys if found.get(k) != wanted.get(k)]


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process: two searches that continue one study would undo each other. Freed when the process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        db = connect(folder / "lock.sqlite", timeout=0, isolation_level=None)
    except (OSError, sqlite3.OperationalError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NeaptideError(f"a search cannot be kept in {folder}: {reason}; give another --out") from None
    try:
        try:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise NeaptideError(f"a search cannot be kept in {folder}: {error}; free space there, or give another --out") from None
            raise NeaptideError(
                f"{folder}: another search is running in this folder ({error}); wait for it, or give another --out"
            ) from None
        except sqlite3.DatabaseError as error:
            raise NeaptideError(f"{folder}: its lock.sqlite is damaged ({error}); remove that file, or give another --out") from None
        yield
    finally:
        db.close()


def _storage(url: str) -> Any:
    """An Optuna storage. SQLite files keep a write-ahead log, so that a dashboard reads while the search writes.

    A file may come from anyone: one that holds other things than Optuna's tables is refused before Optuna reads it. So are storages
    that Optuna unpickles from.
    """
    optuna = import_optuna()
    file = _sqlite_file(url)
    if file is None:
        if url.startswith("redis"):
            raise SourceError(f"storage {url!r}: Optuna unpickles what is on a Redis server, which runs any code; give a SQL database")
        try:
            return optuna.storages.get_storage(url)
        except Exception as error:  # whatever the driver of that database raises
            raise SourceError(f"storage {url!r} cannot be used: {error}") from error
    from optuna.storages._rdb.models import BaseModel

    def connected() -> sqlite3.Connection:
        file.parent.mkdir(parents=True, exist_ok=True)
        db = connect(file, timeout=WAIT_S, check_same_thread=False)
        try:
            check_tables(db, [*BaseModel.metadata.tables, "alembic_version"])
            write_ahead(db)
            db.execute("PRAGMA synchronous=NORMAL")
        except BaseException:
            db.close()
            raise
        return db

    with quiet(), _storage_errors(url), _reading(url):
        return optuna.storages.RDBStorage(url, engine_kwargs={"creator": connected})


def _sqlite_file(url: str) -> Path | None:
    """The file of a storage URL, None for one of a server. Raises `SourceError` for SQLite named in another way than by its file."""
    prefix = "sqlite:///"
    if url.startswith(prefix):
        return Path(url[len(prefix) :])
    if url.startswith("sqlite"):
        raise SourceError(f"storage {url!r}: a SQLite file is named as sqlite:///FILE")
    return None


@contextmanager
def _storage_errors(url: str) -> Iterator[None]:
    optuna = import_optuna()
    import sqlalchemy.exc

    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.DatabaseError, sqlite3.DatabaseError) as error:
        cause = getattr(error.__cause__ or error, "orig", None) or error
        kept = "what was told before is kept, and --resume goes on from there"
        raise NeaptideError(f"the study at {url} cannot be read or written ({' '.join(str(cause).split())}); {kept}") from error


@contextmanager
def _reading(url: str) -> Iterator[None]:
    """Optuna believes what its tables hold: a wrong type in one rises as whatever the first use of it raises."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError) as error:
        raise FormatError(f"the study at {url} is damaged, or of another Optuna: {' '.join(str(error).split())}") from error
