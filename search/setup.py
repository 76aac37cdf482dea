"""What a search was asked for, as JSON values, and the parts that are made from it.

The description decides everything that a search finds. It is kept with the study, so that `resume` needs nothing but the study.
"""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..compiler.errors import FormatError, SourceError
from .constraints import Constraints, parse_constraint
from .data import ImageData, TabularData, load_data
from .engine import Context, Objective
from .engines import PRESETS, load_engine
from .evaluate import evaluator_for
from .objectives import parse_objectives
from .space import Space
from .spaces import load_space

PACKAGES = ("neaptide", "torch", "numpy", "optuna")
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "space_options": {}, "objectives": ["accuracy"], "constraints": [], "target": None, "data": None, "data_options": {},
        "preset": "small", "seed": 0, "budget": "", "options": {}, "training": {}, "accounting": "lifetime", "weights": None,
    }
)  # fmt: skip
_TEXT, _OPTIONS = (str, type(None)), (dict, type(None))
KINDS: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "space": (str,), "engine": (str,), "space_options": _OPTIONS, "objectives": (list,), "constraints": (list,), "target": _TEXT,
        "data": _TEXT, "data_options": _OPTIONS, "preset": (str,), "seed": (int,), "budget": (str,), "options": _OPTIONS,
        "training": _OPTIONS, "accounting": (str,), "weights": _TEXT,
    }
)  # fmt: skip
DATA_OPTIONS: Mapping[str, type] = MappingProxyType({"val": int, "seed": int, "size": int, "limit": int, "dataset": str})
PREDICTED = frozenset(("latency", "instructions"))
VALIDATION_IMAGES: Mapping[str, int] = MappingProxyType({"smoke": 1_000, "small": 2_500})
_SPAN = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Budget:
    """When an engine that never ends is stopped: after `trials` proposals, or when `seconds` have gone by. None: not by that."""

    trials: int | None = None
    seconds: float | None = None


def parse_budget(text: str) -> Budget:
    """`200` proposals, or `90s`, `20m`, `1h30m`; "" for no budget. Raises `SourceError` quoting it."""
    if text == "":
        return Budget()
    if text.isdigit():
        if int(text) > 0:
            return Budget(trials=int(text))
    elif (match := _SPAN.fullmatch(text.replace(" ", ""))) and any(match.groups()):
        hours, minutes, seconds = (int(g or 0) for g in match.groups())
        if hours or minutes or seconds:
            return Budget(seconds=3600.0 * hours + 60.0 * minutes + seconds)
    raise SourceError(f"budget {text!r}: write a number of networks to try, such as 200, or a time, such as 90s, 20m or 1h30m")


def describe(given: Mapping[str, Any], stored: Mapping[str, Any] | None, study: str) -> dict[str, Any]:
    """Everything that decides what a search finds, as JSON values: what is given, else what `stored` says, else the defaults.

    `study`: its name and place, for the error when neither says which space and engine. Raises `FormatError` where `stored` holds other
    things than a description does.
    """
    if stored:
        _check_stored(stored, study)
    base = {k: v for k, v in stored.items() if k != "versions"} if stored else dict(DEFAULTS)
    description = {**base, **{k: v for k, v in given.items() if v is not None}}
    for key in ("space", "engine"):
        if description.get(key) is None:
            raise SourceError(f"there is no {study} to continue, so say which: --space and --engine")
    if description["preset"] not in PRESETS:
        raise SourceError(f"there is no preset {description['preset']!r}; there are {', '.join(PRESETS)}")
    parse_budget(description["budget"])
    return json.loads(json.dumps(description))


def _check_stored(stored: Mapping[str, Any], study: str) -> None:
    """Raise `FormatError` unless a study's description, which anybody may have written, has the keys and the kinds of values of one."""
    for key in KINDS:
        if key not in stored:
            raise FormatError(f"{study} is damaged: its description has no {key!r}")
    for key, value in stored.items():
        kinds = KINDS.get(key, (dict,) if key == "versions" else ())
        right = type(value) in kinds and not (isinstance(value, list) and any(not isinstance(item, str) for item in value))
        if not right:
            raise FormatError(f"{study} is damaged: its description says {key!r} is {value!r:.80}")


def describe_arguments(space: Any, target: Any, data: Any) -> dict[str, Any]:
    """Objects by what they say of themselves, texts as they are; None where nothing was given."""
    known = space.describe() if isinstance(space, Space) else {"name": space, "options": None}
    if data is not None:
        data = str(Path(data).expanduser().absolute()) if isinstance(data, (str, Path)) else f"object {data.name}"
    return {
        "space": known["name"],
        "space_options": known["options"],
        "target": target if target is None or isinstance(target, str) else target.path or target.name,
        "data": data,
    }


@dataclass(frozen=True)
class Setup:
    """The parts of a search, made from its description."""

    description: Mapping[str, Any]
    context: Context
    engine: Any
    evaluator: Any
    target: Any

    @property
    def space(self) -> Space:
        """What is searched."""
        return self.context.space

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What is driven up or down."""
        return self.context.objectives

    @staticmethod
    def of(
        description: Mapping[str, Any], *, space: Any, target: Any, data: Any, folder: Path, database: Any, predictor: Path, begun: bool
    ) -> Setup:
        """All parts; objects are taken as they are, the rest is made. Raises `BudgetError` where no architecture keeps a limit.

        `predictor`: where a study that was `begun` before keeps what it predicts costs with.
        """
        from ..targets.spec import load_target
        from .oracle import Oracle

        make = load_engine(description["engine"])
        objectives = parse_objectives(description["objectives"])
        if description["data"] is not None and (data is None or isinstance(data, (str, Path))):
            data = _loaded(description)
        if not isinstance(space, Space):
            space = _made(description, data)
        if isinstance(data, ImageData):
            data = _in_channels(data, space)
        if description["target"] is not None and (target is None or isinstance(target, str)):
            target = load_target(description["target"])
        kept = None
        priced = {o.metric for o in objectives} | {parse_constraint(c).metric for c in description["constraints"]}
        if target is not None and priced & PREDICTED:
            kept = _kept_predictor(predictor, target, database, begun)
        accounted = {"accounting": description["accounting"], "weights": description["weights"]}
        oracle = Oracle(space, target, database=database, predictor=kept, **accounted)
        constraints = Constraints(description["constraints"], oracle, target)
        constraints.check()
        options = MappingProxyType(description["options"])
        context = Context(space, oracle, objectives, constraints, description["seed"], description["preset"], folder, data, options)
        engine = make(context)
        evaluator = getattr(engine, "evaluator", None) or evaluator_for(objectives, data, space, description["training"])
        return Setup(description, context, engine, evaluator, target)


def _kept_predictor(path: Path, target: Any, database: Any, begun: bool) -> Path:
    """`path`, with a predictor in it. What a search measures teaches the database; were its predictor fitted to that when it is taken up
    again, it would ask for other architectures than the study holds.
    """
    from ..targets.predictors import save_predictor
    from .predicted import operator_predictor

    if not (begun and path.is_file()):
        fitted = operator_predictor(target, database)
        save_predictor(fitted, path)  # into the folder of the search, which is there
    return path


def tool_versions() -> dict[str, str]:
    """Of Python and the packages that decide what a search finds."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _loaded(description: Mapping[str, Any]) -> Any:
    """The data; unless their options say how many, the quick presets look at fewer validation images, evenly taken."""
    options = description["data_options"]
    for name, value in options.items():
        if name not in DATA_OPTIONS:
            raise SourceError(f"data have no option {name!r}; there are {', '.join(DATA_OPTIONS)}")
        if isinstance(value, bool) or not isinstance(value, DATA_OPTIONS[name]):
            raise SourceError(f"data option {name} is {value!r}; wanted {DATA_OPTIONS[name].__name__}")
    data = load_data(description["data"], **options)
    for name in options:
        if (name == "dataset") != isinstance(data, TabularData):
            wanted, found = ("tables", "images") if name == "dataset" else ("images", "a table")
            raise SourceError(f"data option {name} is for {wanted}, and {description['data']} holds {found}: leave it out")
    most = VALIDATION_IMAGES.get(description["preset"])
    if isinstance(data, ImageData) and most is not None and "val" not in options:
        images, labels = data.val
        step = math.ceil(len(labels) / most)
        data = replace(data, val=(images[::step].clone(), labels[::step].clone()))
    return data


def _made(description: Mapping[str, Any], data: Any) -> Space:
    """The space, with as many classes as the data have unless its options say otherwise.

    Where there are images and no options, an engine may make the networks of its own space so small that its preset ends in time.
    """
    options = description["space_options"]
    if isinstance(data, ImageData):
        quick = getattr(load_engine(description["engine"]), "quick_space", None)
        options = options or (quick(description["space"], description["preset"], data.shape[-1]) if quick else {})
    space = load_space(description["space"], **options)
    if isinstance(data, ImageData):
        for name in {"classes", "num_classes"} & (set(space.describe()["options"]) - set(options)):
            space = load_space(description["space"], **{**options, name: len(data.classes)})
    return space


def _in_channels(data: ImageData, space: Space) -> ImageData:
    """Grey images for networks that take colours: the same in every channel."""
    import numpy as np

    wanted = space.input_shape(space.sample(np.random.default_rng(0)))[1]
    if data.shape[0] != 1 or wanted == 1:
        return data
    parts = {n: (p[0].expand(-1, wanted, -1, -1), p[1]) for n, p in (("train", data.train), ("val", data.val), ("test", data.test)) if p}
    return replace(data, mean=data.mean * wanted, std=data.std * wanted, **parts)
