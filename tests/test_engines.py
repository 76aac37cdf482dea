"""What holds for every engine: one seed gives one search, a replay is the search, limits are kept, and it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from neaptide.compiler.errors import BudgetError, SourceError
from neaptide.search.constraints import Constraints
from neaptide.search.data import TabularData
from neaptide.search.engine import Context, Outcome, Proposal
from neaptide.search.engines import PRESETS, list_engines, load_engine
from neaptide.search.engines.moofa import small_images
from neaptide.search.objectives import parse_objectives
from neaptide.search.space import Space
from neaptide.search.spaces import load_space

ROUNDS = 12
CELLS = load_space("nasbench201", C=4, N=1)
GROWN = load_space("memnet", width=8, max_blocks=3)
TABLE = TabularData("made up", CELLS.name, CELLS.cardinalities, np.arange(CELLS.size), np.zeros(CELLS.size), np.zeros(CELLS.size))


def cell_prices(rows):
    return {"params": 1000 * (1 + rows.sum(axis=1)), "peak": 10_000 * (1 + rows[:, :4].max(axis=1))}


def grown_prices(rows):
    """Blocks cost; each trim saves a little; the operations of the first block are what the peak follows."""
    return {"params": 1000 * (1 + rows[:, 0]) - 10 * rows[:, 16:].sum(axis=1), "peak": 10_000 * (1 + rows[:, 3:5].max(axis=1))}


@dataclass(frozen=True)
class Played:
    """How an engine is played. `options`: with them it asks for more than 30 networks in `ROUNDS`; `limits`: two that leave as many.

    `few`: an architecture is among the few that tight limits leave when its genes from `few` on are `genes`; `narrow`: options to be
    played with there, `least`: how many of those few it then finds. `counted`: its option of how many it asks for at once. `refusal`: of
    limits that exclude each other.
    """

    name: str
    space: Space = CELLS
    prices: Callable[[Any], dict[str, Any]] = cell_prices
    limits: tuple[str, str] = ("params<=12k", "peak<=40000")
    data: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    few: int = 3
    genes: tuple[int, ...] = (1, 1, 1)
    narrow: Mapping[str, Any] = field(default_factory=dict)
    least: int = 100
    counted: str = "batch"
    refusal: str = "params<=10, macs<=10"


BRIEF = {"controller_steps": 4}
ENGINES = (
    Played("random"),
    Played("evolution"),
    Played("nsga2"),
    Played(  # its cells grow, so the few are those without trims: all 56 of one block, then 60 of two and 60 of three
        "memnet",
        GROWN,
        grown_prices,
        ("params<=2500", "peak<=60000"),
        options={"rounds": 6, "candidates": 8, **BRIEF},
        few=16,
        genes=(0,) * 45,
        narrow={"rounds": 200, "candidates": 60, **BRIEF},
        least=56 + 60 + 60,
        counted="candidates",
        refusal="",
    ),
    Played(  # accuracies are told by a table, so no supernet is trained
        "moofa",
        data=TABLE,
        options={"samples": 30, "finalists": 8},
        narrow={"samples": 80, "rounds": 200, "finalists": 30, "population": 200},
        counted="samples",
        refusal="keep all limits together",
    ),
)


class Prices:
    """An oracle whose prices follow from the genes by `prices(rows)`: {metric: array}."""

    def __init__(self, space, prices, cheapest=None):
        self.space, self._prices = space, prices
        self._cheapest = cheapest or (0,) * len(space.cardinalities)

    def cost(self, archs, metrics):
        rows = archs if isinstance(archs, np.ndarray) else self.space.encode(archs)
        return {name: np.asarray(self._prices(rows)[name]) for name in metrics}

    def least(self, metric):
        arch = self.space.architecture(self._cheapest)
        return self.cost([arch], (metric,))[metric][0], arch


@pytest.fixture(params=ENGINES, ids=lambda e: e.name)
def engine(request):
    return request.param


@pytest.fixture
def oracle(engine):
    return Prices(engine.space, engine.prices)


@pytest.fixture
def cells():
    """For tests of one engine."""
    return Prices(CELLS, cell_prices)


def context(oracle, tmp_path, *, seed=0, limits=(), objectives="accuracy,peak", preset="smoke", options=None, data=None):
    constraints = Constraints(limits, oracle)
    return Context(oracle.space, oracle, parse_objectives(objectives), constraints, seed, preset, tmp_path, data, options or {})


def made(engine, oracle, tmp_path, **given):
    """The engine, made as it is played."""
    given = {"limits": engine.limits[:1], "options": engine.options, **given}
    return load_engine(engine.name)(context(oracle, tmp_path, data=engine.data, **given))


def value(arch, sign=1) -> float:
    """An accuracy that prefers large genes at the end, or small ones."""
    return 50 + sign * sum((i + 1) * g for i, g in enumerate(arch.genes)) / 20


def outcome(proposal: Proposal, oracle, sign=1) -> Outcome:
    costs = oracle.cost([proposal.arch], ("params", "peak"))
    return Outcome(proposal, {"accuracy": value(proposal.arch, sign), **{name: float(v[0]) for name, v in costs.items()}})


def played(engine, oracle, rounds=ROUNDS, sign=1):
    """What an engine asks for in so many rounds."""
    asked = []
    for _ in range(rounds):
        proposals = engine.ask()
        if not proposals:
            break
        asked.append(proposals)
        engine.tell([outcome(p, oracle, sign) for p in proposals])
    return asked


def test_every_engine_that_is_listed_is_played():
    assert tuple(e.name for e in ENGINES) == list_engines()
    for e in ENGINES:
        assert load_engine(e.name).name == e.name and load_engine(e.name).__doc__
    with pytest.raises(SourceError, match="did you mean 'evolution'"):
        load_engine("evolutio")


def test_one_seed_one_search(engine, oracle, tmp_path):
    first = played(made(engine, oracle, tmp_path), oracle)
    assert first and played(made(engine, oracle, tmp_path), oracle) == first
    assert played(made(engine, oracle, tmp_path, seed=1), oracle) != first


def test_a_replay_is_the_search(engine, oracle, tmp_path):
    """Told the same, an engine made anew asks the same, from any moment on: nothing hides in the process."""
    live = made(engine, oracle, tmp_path)
    history = played(live, oracle, 2)
    again = made(engine, oracle, tmp_path)
    np.random.seed(7)  # nothing draws from the process's own generator
    for proposals in history:
        assert again.ask() == proposals
        again.tell([outcome(p, oracle) for p in proposals])
    rest = played(live, oracle, 5)
    assert rest and played(again, oracle, 5) == rest


def test_what_it_is_told_matters(engine, oracle, tmp_path):
    """Engines that learn ask for something else when they are told something else."""
    asked = [played(made(engine, oracle, tmp_path), oracle, sign=sign) for sign in (1, -1)]
    assert (asked[0] != asked[1]) == (engine.name != "random")


def test_limits_are_kept_and_nothing_is_asked_twice(engine, oracle, tmp_path):
    for limits in ((), engine.limits[:1], engine.limits):
        rounds = played(made(engine, oracle, tmp_path, limits=limits), oracle)
        archs = [p.arch for proposals in rounds for p in proposals]
        assert len(set(archs)) == len(archs) > 30
        assert Constraints(limits, oracle).feasible_rows(oracle.space.encode(archs)).all()
        assert all(p.origin for proposals in rounds for p in proposals)


def test_it_ends_when_nothing_is_left(engine, tmp_path):
    """The limits leave few architectures: each is asked for at most once, most are found, and then comes the end."""

    def prices(rows):
        return dict.fromkeys(("params", "peak"), np.where((rows[:, engine.few :] == engine.genes).all(axis=1), 1, 100))

    narrow = Prices(engine.space, prices, (0,) * engine.few + engine.genes)
    rounds = played(made(engine, narrow, tmp_path, limits=("params<=10",), options=engine.narrow), narrow, rounds=200)
    archs = [p.arch for proposals in rounds for p in proposals]
    assert len(rounds) < 200 and len(set(archs)) == len(archs)
    assert len(archs) >= engine.least
    assert all(a.genes[engine.few :] == engine.genes for a in archs)


def test_limits_that_exclude_each_other_are_no_endless_loop(engine, tmp_path):
    """An error that says so; or nothing is asked at all, which the search makes into one (`test_study.py`)."""
    never = Prices(engine.space, lambda r: {"params": np.where(r[:, 0] == 0, 1, 100), "macs": np.where(r[:, 0] == 0, 100, 1)})
    asking = made(engine, never, tmp_path, limits=("params<=10", "macs<=10"), objectives="accuracy,params")
    if not engine.refusal:
        assert asking.ask() == []
        return
    with pytest.raises(BudgetError, match=engine.refusal):
        asking.ask()


def test_presets_and_options(engine, oracle, tmp_path):
    for preset in PRESETS:
        assert made(engine, oracle, tmp_path, preset=preset, options={}).ask()
    assert len(made(engine, oracle, tmp_path, options={engine.counted: 3}).ask()) == 3
    wrong = engine.counted[:-1] + "k"
    for options, word in (({wrong: 3}, repr(wrong)), ({engine.counted: 2.5}, "int"), ({engine.counted: True}, "int")):
        with pytest.raises(SourceError, match=word):
            made(engine, oracle, tmp_path, options=options)


@pytest.mark.parametrize("name, better", [("evolution", 1.15), ("nsga2", 1.1)])
def test_learning_pays(name, better, cells, tmp_path):
    """Ten searches of 120 trials: their best is well above that of random search."""

    def best(engine, seed):
        asking = load_engine(engine)(context(cells, tmp_path, seed=seed, objectives="accuracy", options={"batch": 4}))
        tried: list[float] = []
        while len(tried) < 120:
            proposals = asking.ask()
            tried += [value(p.arch) - 50 for p in proposals]
            asking.tell([Outcome(p, {"accuracy": value(p.arch)}) for p in proposals])
        return float(np.mean(sorted(tried)[-20:]))

    learned, chance = (np.mean([best(engine, seed) for seed in range(4)]) for engine in (name, "random"))
    assert learned > better * chance


def test_evolution_forgets_the_oldest(cells, tmp_path):
    """Aging: a member as good as can be leaves the population after as many births as the population is large."""
    asking = load_engine("evolution")(context(cells, tmp_path, objectives="accuracy", options={"population": 4, "batch": 4}))
    first = asking.ask()
    asking.tell([Outcome(p, {"accuracy": 1000.0}) for p in first])
    near = {arch for p in first for arch in cells.space.neighbours(p.arch)}
    children = asking.ask()
    assert {p.arch for p in children} <= near
    asking.tell([Outcome(p, {"accuracy": 0.0}) for p in children])
    near = {arch for p in children for arch in cells.space.neighbours(p.arch)}
    assert {p.arch for p in asking.ask()} <= near


@pytest.mark.parametrize(("engine", "space", "side", "options"), [
    ("memnet", "memnet", 32, {"smoke": {"width": 8, "resolution": 16}, "small": {"width": 16, "resolution": 16}, "paper": {}}),
    ("moofa", "moofa", 28, {"smoke": small_images(28), "small": small_images(28), "paper": {}}),
    ("moofa", "compofa", 32, {"small": small_images(32, "compofa")}),
    ("moofa", "ofa_mbv3", 224, {"small": {}}),
])  # fmt: skip
def test_presets_make_networks_that_this_machine_can_train(engine, space, side, options):
    """An engine says how its own space is made for its quick presets; the space takes that, and its networks take such images."""
    quick = load_engine(engine).quick_space
    for preset, wanted in options.items():
        assert quick(space, preset, side) == wanted
        made = load_space(space, **wanted)
        assert not wanted or made.input_shape(made.sample(np.random.default_rng(0)))[-1] <= side
    assert quick("nasbench201", "small", side) == {}
