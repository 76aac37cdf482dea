"""MOOFA (Girard et al., CADL workshop of ECCV 2024): a supernet trained once, accuracies of some of its subnets, a predictor of the
others, and evolution of the predicted accuracy under hard limits.

`prepare` trains the supernet by progressive shrinking, or takes it from the folder. Subnets spread evenly over memory are then asked
for, evaluated with batch statistics of their own, and teach the predictor; what evolution finds with it is evaluated in the same way.

Where this leaves the paper and its program:
- Subnets are judged on the validation part. The program judges them, and so teaches its predictor, on ImageNet's validation images, which
  are also what it reports.
- Samples are spread between the least and the greatest memory that the limits leave, by random walks from the smallest networks; the
  program draws at random until each of 15 bins is full and, after 1,000 failures, with small expansions.
- A limit that nothing meets is an error at once; the program draws for ever. Redrawing is bounded.
- The predictor is whichever model cross-validates best, not the paper's network alone.

Two other sources of accuracies need no training here: a `TabularData` benchmark, whose table answers instead of the supernet; and
`table=FILE`, published accuracies of some subnets (an `.npz` of the form of MOOFA's: `NAME_ks, NAME_e, NAME_d, NAME_r, NAME_acc`, where
NAME is `table_name`), which teach the predictor that then stands in for everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ...compiler.errors import FormatError, SourceError
from ...compiler.npz_files import Array, open_npz
from ..accuracy_predictor import AccuracyPredictor, fit_accuracy
from ..data import ImageData
from ..engine import Context, Outcome, Proposal
from ..features import features
from ..metrics import METRICS
from ..space import Architecture, Space
from ..spaces.ofa import STAGES, OFAMobileNetV3, Settings
from ..surrogate_evolution import EvolutionSettings, evolve, feasible_population
from . import engine_settings

_COMMON = {"rounds": 1, "table": "", "table_name": "moofa"}
PRESETS = {
    "smoke": {**_COMMON, "samples": 20, "bins": 4, "levels": 2, "finalists": 4, "population": 50, "generations": 50, "schedule": "smoke"},
    "small": {
        **_COMMON,
        "samples": 100,
        "bins": 8,
        "levels": 4,
        "finalists": 12,
        "population": 100,
        "generations": 200,
        "schedule": "small",
    },
    "paper": {
        **_COMMON,
        "samples": 2_000,
        "bins": 15,
        "levels": 10,
        "finalists": 50,
        "population": 100,
        "generations": 500,
        "schedule": "paper",
    },
}
TOGETHER = 20  # proposals asked for at once
TABLE_LIMIT = 1 << 30  # bytes of a table of subnets
LARGEST_CHOICE = 4096  # resolution, depth, kernel or expansion in one
ELASTIC = ("ofa_mbv3", "compofa", "moofa")


def small_images(side: int, space: str = "moofa") -> dict[str, Any]:
    """Options of the elastic space for images of `side` pixels, 24 to 40: narrow and shallow, a supernet that a CPU trains in minutes.

    Few resolutions, for they get into each other's way: after 4 epochs on Fashion-MNIST a teacher of one has 84 %, of three 79 to 81 %.
    """
    paired = {"expands": [3, 6]} if space == "compofa" else {}  # one for each depth
    return {
        **paired,
        "resolutions": [side - 8, side - 4],
        "widths": [8, 8, 16, 24, 32, 48, 64, 96, 128],
        "strides": [1, 2, 1, 2, 1, 1],
        "depths": [1, 2],
    }


class MOOFA:
    """`samples` subnets, balanced over `bins` of memory, teach the predictor; then `rounds` times evolution (`population`,
    `generations`) proposes `finalists`, of which the predictor learns too. With a second objective they are spread over `levels` of it,
    each a limit of its own. `schedule`: of the supernet's training, a name in `supernets.phases.SCHEDULES`.
    """

    name = "moofa"

    def __init__(self, context: Context):
        self._settings = engine_settings(self.name, context, PRESETS)
        self._context, self._rng = context, np.random.default_rng(context.seed)
        self._predictor: AccuracyPredictor | None = None
        self._known: dict[Architecture, float] = {}
        self._waiting: list[Architecture] | None = None
        self._rounds = 0
        if "accuracy" not in [o.metric for o in context.objectives]:
            raise SourceError("engine moofa searches for accuracy; name it among the objectives, or take another engine")
        other = next((o.metric for o in context.objectives if o.metric != "accuracy" and METRICS[o.metric].priced), None)
        limited = next(iter(context.constraints.metrics), None)
        self._metric, self._levels = other or limited or "peak", self._settings["levels"] if other else 1
        self.evaluator = self._evaluator()

    @staticmethod
    def quick_space(space: str, preset: str, side: int) -> dict[str, Any]:
        """Options of the space for a preset on images of `side` pixels, where none are given: {} for those of the paper."""
        return small_images(side, space) if space in ELASTIC and preset != "paper" and 24 <= side <= 40 else {}

    def prepare(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Train the supernet, or take up where its training was broken off; or read the table. `progress(stage, epochs done, of all)`."""
        context = self._context
        if self._settings["table"]:
            rows, accuracy = read_table(context.space, self._settings["table"], self._settings["table_name"])
            self._predictor = fit_accuracy(features(context.space, rows), accuracy, seed=context.seed)
            self.evaluator.predictor = self._predictor
        elif isinstance(self.evaluator, SupernetAccuracy):
            from ..supernets.phases import SCHEDULES
            from ..supernets.shrinking import shrink

            assert isinstance(context.space, OFAMobileNetV3)
            schedule = SCHEDULES[self._settings["schedule"]]
            epochs = [p.epochs for p in schedule.phases]
            before = dict(zip((p.name for p in schedule.phases), accumulate(epochs, initial=0), strict=False))

            def told(phase: str, epoch: int, loss: float) -> None:
                if progress is not None:
                    progress(f"supernet, {phase}, loss {loss:.2f}", before[phase] + epoch, sum(epochs))

            shrink(context.space, context.data, schedule, seed=context.seed, folder=context.folder / "supernet", progress=told)

    def ask(self) -> list[Proposal]:
        """Samples for the predictor, some at a time; then what evolution finds; then []."""
        if self._predictor is None or not self._settings["table"]:
            if self._waiting is None:
                self._waiting = self._balanced()
            if self._waiting:
                batch, self._waiting = self._waiting[:TOGETHER], self._waiting[TOGETHER:]
                return [Proposal(arch, origin="balanced") for arch in batch]
        if self._rounds >= self._settings["rounds"]:
            return []
        self._rounds += 1
        if not self._settings["table"]:
            archs = list(self._known)
            space = self._context.space
            accuracy = np.asarray([self._known[a] for a in archs])
            self._predictor = fit_accuracy(features(space, space.encode(archs)), accuracy, seed=self._context.seed)
            self._predictor.save(self._context.folder / "predictor.safetensors")
        return [Proposal(arch, origin="evolution") for arch in self._finalists()]

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Accuracies of what was asked; outcomes without one, over a limit that only measuring shows, teach nothing."""
        self._known.update({o.proposal.arch: o.values["accuracy"] for o in outcomes if "accuracy" in o.values})

    def _evaluator(self) -> Any:
        context = self._context
        if self._settings["table"]:
            return PredictedAccuracy()
        if not isinstance(context.data, ImageData):
            return None
        from ..supernets.phases import SCHEDULES

        if self._settings["schedule"] not in SCHEDULES:
            raise SourceError(f"no schedule {self._settings['schedule']!r}; there are {', '.join(SCHEDULES)}")
        if not isinstance(context.space, OFAMobileNetV3):
            raise SourceError(
                f"engine moofa trains supernets of {', '.join(ELASTIC)}, not of {context.space.name}: take one of them, "
                "another engine, or a benchmark's table as data"
            )
        side = context.data.shape[-1]
        if context.space.resolutions[0] > 2 * side:
            ready = " ".join(
                f"--space-option '{k}={json.dumps(v, separators=(',', ':'))}'"
                for k, v in small_images(max(24, min(side, 40)), context.space.name).items()
            )
            raise SourceError(
                f"networks of {context.space.name} take images of {context.space.resolutions[0]} pixels and more; those of "
                f"{context.data.name} have {side}: make the space for small images, for example {ready}"
            )
        return SupernetAccuracy(SCHEDULES[self._settings["schedule"]].recalibration)

    # ---- architectures --------------------------------------------------------------------------------------------

    def _balanced(self) -> list[Architecture]:
        """Feasible architectures spread evenly over what the limits leave of the metric."""
        n = self._settings["samples"]
        pool = self._feasible(10 * n)
        return self._context.space.decode(balanced_rows(pool, self._cost(pool), n, self._settings["bins"], self._rng))

    def _finalists(self) -> list[Architecture]:
        """The best by prediction that were not evaluated yet, level by level."""
        context, space, predictor = self._context, self._context.space, self._predictor
        assert predictor is not None
        settings = EvolutionSettings(population=self._settings["population"], generations=self._settings["generations"])
        found: dict[Architecture, None] = {}
        each = -(-self._settings["finalists"] // self._levels)
        for limit in self._limits():

            def feasible(rows: np.ndarray, limit: float = limit) -> np.ndarray:
                within = context.constraints.feasible_rows(rows)
                return within & (self._cost(rows) <= limit) if np.isfinite(limit) else within

            evolved = evolve(space, lambda rows: predictor.predict(features(space, rows)), feasible, self._cheapest, self._rng, settings)
            fresh = (a for a in space.decode(evolved.rows) if a not in self._known and a not in found)
            found.update(dict.fromkeys(a for a, _ in zip(fresh, range(each), strict=False)))
        return list(found)

    def _limits(self) -> list[float]:
        """The levels of the metric besides the user's own limits: none for the first, then evenly down to the least."""
        if self._levels == 1:
            return [np.inf]
        costs = self._cost(self._feasible(10 * self._levels))
        return [np.inf, *np.linspace(costs.max(), costs.min(), self._levels + 1)[1:-1].tolist()]

    def _feasible(self, n: int) -> np.ndarray:
        """Rows within the user's limits, from the smallest networks on."""
        return feasible_population(self._context.space, self._context.constraints.feasible_rows, self._cheapest, n, self._rng)

    def _cost(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self._context.oracle.cost(rows, metrics=(self._metric,))[self._metric], float)

    @cached_property
    def _cheapest(self) -> np.ndarray:
        """The smallest network of each first choice (the resolution), and those the oracle knows to be least in what is limited."""
        space, oracle = self._context.space, self._context.oracle
        rows = np.zeros((space.cardinalities[0], len(space.cardinalities)), np.int16)
        rows[:, 0] = np.arange(len(rows))
        least = [oracle.least(metric)[1] for metric in self._context.constraints.metrics]
        return np.concatenate([space.canonical_rows(rows), space.encode(least)]) if least else space.canonical_rows(rows)


def balanced_rows(rows: np.ndarray, costs: np.ndarray, n: int, bins: int, rng: np.random.Generator) -> np.ndarray:
    """`n` of `rows` (or all, if fewer), as many from each of `bins` equal stretches of `costs` as there are to have."""
    order = rng.permutation(len(rows))
    edges = np.linspace(costs.min(), costs.max(), bins + 1)
    stretch = np.clip(np.searchsorted(edges, costs[order], side="right") - 1, 0, bins - 1)
    place = np.empty(len(rows), int)  # within its stretch: those of low place come first
    for s in range(bins):
        place[stretch == s] = np.arange(np.count_nonzero(stretch == s))
    return rows[order[np.argsort(place, kind="stable")[:n]]]


def read_table(space: Space, path: str | Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and accuracies, in percent, of the subnets called `name` in a file of MOOFA's form. Raises `SourceError` or `FormatError`."""
    if not isinstance(space, OFAMobileNetV3):
        raise SourceError(f"tables of subnets are of ofa_mbv3, compofa and moofa, not of space {space.name}")
    if not Path(path).is_file():
        raise SourceError(f"no table at {path}")
    per_block = ("n", STAGES * space.deepest)
    wanted = {
        "r": Array("iu", (("n",),), "", 0, LARGEST_CHOICE), "d": Array("iu", (("n", STAGES),), "", 0, LARGEST_CHOICE),
        "ks": Array("iu", (per_block,), "", 0, LARGEST_CHOICE), "e": Array("fiu", (per_block,), "", 0, LARGEST_CHOICE),
        "acc": Array("f", (("n",),), "", 0, 100),
    }  # fmt: skip
    with open_npz(path, limit=TABLE_LIMIT) as file:
        if f"{name}_acc" not in file.headers:
            known = ", ".join(sorted(n.removesuffix("_acc") for n in file.headers if n.endswith("_acc"))[:8])
            raise FormatError(f"{path} has no subnets called {name!r} with ks, e, d, r and acc; it has {known or 'none'}")
        found = file.read({f"{name}_{key}": array for key, array in wanted.items()})
    resolution, depth, kernel, expand, accuracy = (found[f"{name}_{key}"] for key in wanted)
    accuracy = accuracy.astype(float)
    settings = Settings(resolution, depth.astype(np.int16), kernel.astype(np.int16), expand.astype(np.float32))
    return space.rows(settings), accuracy * 100 if accuracy.max(initial=0) <= 1 else accuracy


# ---- evaluators -------------------------------------------------------------------------------------------------------


class PredictedAccuracy:
    """Accuracies by the predictor alone, set when it is there."""

    cheap = True
    trials = MappingProxyType({"smoke": 500, "small": 500, "paper": 500})
    predictor: AccuracyPredictor

    def evaluate(self, proposal: Proposal, context: Context) -> dict[str, float]:
        row = context.space.encode([proposal.arch])
        return {"accuracy": float(self.predictor.predict(features(context.space, row))[0])}

    def test(self, proposal: Proposal, context: Context) -> float | None:
        """Nothing: no network was trained."""
        return None


@dataclass(frozen=True)
class SupernetAccuracy:
    """Validation accuracy, in percent, of subnets of the supernet in the context's folder, each with batch statistics of its own from
    `recalibration` training images. What evolution proposed, and the network that is tested, leave their weights in the folder.
    """

    recalibration: int
    cheap = False
    trials = MappingProxyType({"smoke": 500, "small": 500, "paper": 5_000})

    def evaluate(self, proposal: Proposal, context: Context) -> dict[str, float]:
        from ..training import evaluate

        with self._subnet(proposal.arch, context) as (module, side):
            if proposal.origin == "evolution":
                self._keep(module, proposal, context)
            return {"accuracy": evaluate(module, context.data, "val", resolution=side)}

    def test(self, proposal: Proposal, context: Context) -> float | None:
        from ..training import evaluate

        if context.data.test is None:
            return None
        with self._subnet(proposal.arch, context) as (module, side):
            self._keep(module, proposal, context)
            return evaluate(module, context.data, "test", resolution=side)

    @contextmanager
    def _subnet(self, arch: Architecture, context: Context) -> Iterator[tuple[Any, int | None]]:
        """The subnet, recalibrated, and the side of its images; on one thread, as everything that a search compares."""
        import torch

        from ..supernets.shrinking import side_of, take_out

        assert isinstance(context.space, OFAMobileNetV3)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            supernet = _supernet(context.space, str(context.folder / "supernet" / "supernet.safetensors"))
            yield take_out(supernet, arch, context.data, recalibration=self.recalibration), side_of(context.space, arch, context.data)
        finally:
            torch.set_num_threads(threads)

    def _keep(self, module: Any, proposal: Proposal, context: Context) -> None:
        from ..evaluate import weights_path
        from ..weights import save_weights

        save_weights(weights_path(context.folder, proposal), module.state_dict(), {"supernet": True})


@lru_cache(maxsize=1)
def _supernet(space: OFAMobileNetV3, path: str) -> Any:
    """The trained supernet of a file, kept as long as it is the last one asked for."""
    from ..supernets.elastic import load_supernet
    from ..weights import load_weights

    tensors, _ = load_weights(path)
    return load_supernet(space, {name[2:]: t for name, t in tensors.items() if name.startswith("m.")})
