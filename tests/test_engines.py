"""What holds for every engine: one seed gives one search, a replay is the search, limits are kept, and it ends."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from neaptide.compiler.errors import BudgetError, SourceError
from neaptide.search.constraints import Constraints
from neaptide.search.engine import Context, Outcome, Proposal
from neaptide.search.engines import PRESETS, list_engines, load_engine
from neaptide.search.objectives import parse_objectives
from neaptide.search.spaces import load_space

BASELINES = ("random", "evolution", "nsga2")
ROUNDS = 12


class Prices:
    """An oracle whose prices follow from the genes by `prices(rows)`: {metric: array}."""

    space = load_space("nasbench201", C=4, N=1)

    def __init__(self, prices, cheapest=(0,) * 6):
        self._prices, self._cheapest = prices, cheapest

    def cost(self, archs, metrics):
        rows = archs if isinstance(archs, np.ndarray) else self.space.encode(archs)
        return {name: np.asarray(self._prices(rows)[name]) for name in metrics}

    def least(self, metric):
        arch = self.space.architecture(self._cheapest)
        return self.cost([arch], (metric,))[metric][0], arch


@pytest.fixture(scope="module")
def oracle():
    return Prices(lambda rows: {"params": 1000 * (1 + rows.sum(axis=1)), "peak": 10_000 * (1 + rows[:, :4].max(axis=1))})


@pytest.fixture(params=BASELINES)
def engine(request):
    return request.param


def context(oracle, tmp_path, *, seed=0, limits=("params<=12k",), objectives="accuracy,peak", preset="smoke", options=None):
    constraints = Constraints(limits, oracle)
    return Context(oracle.space, oracle, parse_objectives(objectives), constraints, seed, preset, tmp_path, None, options or {})


def value(arch) -> float:
    """An accuracy that prefers large genes at the end."""
    return float(sum((i + 1) * g for i, g in enumerate(arch.genes)))


def outcome(proposal: Proposal, oracle) -> Outcome:
    return Outcome(proposal, {"accuracy": value(proposal.arch), "peak": float(oracle.cost([proposal.arch], ("peak",))["peak"][0])})


def played(made, oracle, rounds=ROUNDS):
    """What an engine asks for in so many rounds."""
    asked = []
    for _ in range(rounds):
        proposals = made.ask()
        if not proposals:
            break
        asked.append(proposals)
        made.tell([outcome(p, oracle) for p in proposals])
    return asked


def test_every_engine_that_is_listed_is_there():
    assert set(BASELINES) <= set(list_engines())
    for name in BASELINES:
        assert load_engine(name).name == name
    with pytest.raises(SourceError, match="did you mean 'evolution'"):
        load_engine("evolutio")


def test_one_seed_one_search(engine, oracle, tmp_path):
    make = load_engine(engine)
    first = played(make(context(oracle, tmp_path)), oracle)
    assert first and played(make(context(oracle, tmp_path)), oracle) == first
    assert played(make(context(oracle, tmp_path, seed=1)), oracle) != first


def test_a_replay_is_the_search(engine, oracle, tmp_path):
    """Told the same, an engine made anew asks the same, from any moment on: nothing hides in the process."""
    make = load_engine(engine)
    live = make(context(oracle, tmp_path))
    history = played(live, oracle, 6)
    again = make(context(oracle, tmp_path))
    np.random.seed(7)  # nothing draws from the process's own generator
    for proposals in history:
        assert again.ask() == proposals
        again.tell([outcome(p, oracle) for p in proposals])
    assert played(again, oracle, 3) == played(live, oracle, 3)


def test_what_it_is_told_matters(oracle, tmp_path):
    """Engines that learn ask for something else when they are told something else."""
    for name in ("evolution", "nsga2"):
        asked = []
        for sign in (1, -1):
            made = load_engine(name)(context(oracle, tmp_path, objectives="accuracy"))
            for _ in range(8):
                proposals = made.ask()
                made.tell([Outcome(p, {"accuracy": sign * value(p.arch)}) for p in proposals])
            asked.append(made.ask())
        assert asked[0] != asked[1], name


def test_limits_are_kept_and_nothing_is_asked_twice(engine, oracle, tmp_path):
    for limits in ((), ("params<=12k",), ("params<=12k", "peak<=40000")):
        rounds = played(load_engine(engine)(context(oracle, tmp_path, limits=limits)), oracle)
        archs = [p.arch for proposals in rounds for p in proposals]
        assert len(set(archs)) == len(archs) > 30
        assert Constraints(limits, oracle).feasible_rows(oracle.space.encode(archs)).all()
        assert all(p.origin for proposals in rounds for p in proposals)


def test_it_ends_when_nothing_is_left(engine, tmp_path):
    """The limits leave few architectures: each is asked for at most once, most are found, and then comes the end."""

    narrow = Prices(lambda rows: dict.fromkeys(("params", "peak"), np.where((rows[:, 3:] == 1).all(axis=1), 1, 100)), (0, 0, 0, 1, 1, 1))
    rounds = played(load_engine(engine)(context(narrow, tmp_path, limits=("params<=10",))), narrow, rounds=200)
    archs = [p.arch for proposals in rounds for p in proposals]
    assert len(rounds) < 200 and len(set(archs)) == len(archs)
    assert len(archs) >= 100  # of 125
    assert all(a.genes[3:] == (1, 1, 1) for a in archs)


def test_limits_that_exclude_each_other_end_in_an_error(engine, tmp_path):
    never = Prices(lambda rows: {"params": np.where(rows[:, 0] == 0, 1, 100), "macs": np.where(rows[:, 0] == 0, 100, 1)})
    made = load_engine(engine)(context(never, tmp_path, limits=("params<=10", "macs<=10"), objectives="params"))
    with pytest.raises(BudgetError, match="params<=10, macs<=10"):
        made.ask()


def test_presets_and_options(engine, oracle, tmp_path):
    make = load_engine(engine)
    for preset in PRESETS:
        assert make(context(oracle, tmp_path, preset=preset)).ask()
    assert len(make(context(oracle, tmp_path, options={"batch": 3})).ask()) == 3
    for options, word in (({"bach": 3}, "'bach'"), ({"batch": 2.5}, "int"), ({"batch": True}, "int")):
        with pytest.raises(SourceError, match=word):
            make(context(oracle, tmp_path, options=options))


@pytest.mark.parametrize("name, better", [("evolution", 1.15), ("nsga2", 1.1)])
def test_learning_pays(name, better, oracle, tmp_path):
    """Ten searches of 120 trials: their best is well above that of random search."""

    def best(engine, seed):
        made = load_engine(engine)(context(oracle, tmp_path, seed=seed, limits=(), objectives="accuracy", options={"batch": 4}))
        tried: list[float] = []
        while len(tried) < 120:
            proposals = made.ask()
            tried += [value(p.arch) for p in proposals]
            made.tell([Outcome(p, {"accuracy": value(p.arch)}) for p in proposals])
        return float(np.mean(sorted(tried)[-20:]))

    learned, chance = (np.mean([best(engine, seed) for seed in range(4)]) for engine in (name, "random"))
    assert learned > better * chance


def test_evolution_forgets_the_oldest(oracle, tmp_path):
    """Aging: a member as good as can be leaves the population after as many births as the population is large."""
    made = load_engine("evolution")(context(oracle, tmp_path, limits=(), objectives="accuracy", options={"population": 4, "batch": 4}))
    first = made.ask()
    made.tell([Outcome(p, {"accuracy": 1000.0}) for p in first])
    near = {arch for p in first for arch in oracle.space.neighbours(p.arch)}
    children = made.ask()
    assert {p.arch for p in children} <= near
    made.tell([Outcome(p, {"accuracy": 0.0}) for p in children])
    near = {arch for p in children for arch in oracle.space.neighbours(p.arch)}
    assert {p.arch for p in made.ask()} <= near


@pytest.mark.parametrize("name", [n for n in list_engines() if n not in BASELINES])
def test_other_engines_say_what_they_are(name):
    if find_spec(f"neaptide.search.engines.{name}") is None:
        pytest.skip(f"engine {name} is not there")
    made = load_engine(name)
    assert made.name == name and callable(made.ask) and callable(made.tell) and made.__doc__
