"""MOOFA: channel sizing, accuracy predictors, evolution under a peak, the engine on published accuracies."""

from __future__ import annotations

import math

import numpy as np
import pytest

from neaptide.compiler.errors import BudgetError, SourceError
from neaptide.search.accuracy_predictor import Agreement, agreement, fit_accuracy, load_predictor
from neaptide.search.engines.moofa import balanced_rows
from neaptide.search.features import features
from neaptide.search.moofa_sizing import SizingRule, round_channels, size_channels
from neaptide.search.oracle import Oracle
from neaptide.search.run import search
from neaptide.search.spaces import load_space
from neaptide.search.spaces.ofa import MOOFA, Settings
from neaptide.search.surrogate_evolution import EvolutionSettings, evolve, feasible_population


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ---- channel sizing ---------------------------------------------------------------------------------------------------


def test_published_widths_and_how_they_came_about():
    sizing = size_channels("published")
    assert sizing.widths == (3, 8, 24, 96, 288, 360, 384, 392, 392)
    steps = [(s.size, s.channels, s.dominant, round(s.solution, 1), s.rounded) for s in sizing.steps]
    assert steps == [
        (56, 24, "depthwise", 93.8, 96),
        (28, 96, "depthwise", 290.1, 288),
        (14, 288, "expand", 362.4, 360),
        (7, 360, "expand", 381.8, 384),
        (3.5, 384, "expand", 389.7, 392),
        (1.75, 392, "expand", 393.4, 392),
    ]
    assert sizing.steps[0].limits == pytest.approx({"expand": 135.9, "depthwise": 93.8}, abs=0.05)


def test_printed_equations_shrink_the_channels():
    """Equations (5), (7) and (9) read literally: the reason why the solver does not use them."""
    c, size, kernel, e, widths = 24, 56, 7, 4, []
    for _ in range(6):
        area = size * size
        depthwise, expand = e * c * (2 * area + kernel**2), c * area * (1 + e) + e * c * c
        linear = (e + 1) * area / 4
        root = (math.sqrt(linear**2 + 4 * e * e * c * (area + kernel**2 + area / 4)) - linear) / (2 * e)
        printed = c * (area + 4 * kernel**2 + area / 4) / (2 * area + 4 * kernel**2)
        from_expand = (math.sqrt(linear**2 + 4 * e * expand) - linear) / (2 * e)
        c = round_channels(min(printed, root) if depthwise > expand else from_expand)
        widths.append(c)
        size /= 2
    assert widths == [16] * 6


@pytest.mark.parametrize("rule", ["published", "lifetime", "weights-in-flash"])
def test_next_stage_fills_the_budget_and_no_more(rule):
    sizing = size_channels(rule)
    for step in sizing.steps:
        needs = [sizing.rule.memory(op, step.solution, step.next_size) for op in sizing.rule.ops]
        assert max(needs) == pytest.approx(step.budget)


def test_other_accountings_give_other_widths():
    assert size_channels(stride=2).widths[3:] == (56, 128, 192, 216, 224, 224)
    assert size_channels("lifetime").widths[3:] == (96, 296, 384, 408, 416, 416)
    assert size_channels("weights-in-flash").widths[3:6] == (96, 384, 1536)
    bounded = size_channels("weights-in-flash", flash=2_000_000)
    assert all(bounded.rule.stage_weights(w) <= 2_000_000 * 1.05 for w in bounded.widths[3:])


def test_sizing_names_what_it_does_not_know():
    with pytest.raises(SourceError, match="there are published, lifetime, weights-in-flash"):
        size_channels("paper")
    with pytest.raises(SourceError, match="colour"):
        size_channels(colour=3)
    with pytest.raises(SourceError, match="squeeze"):
        SizingRule(ops=("squeeze",))


# ---- predictors -------------------------------------------------------------------------------------------------------


def subnets(shared_dir, name="moofa"):
    file = np.load(shared_dir / "data" / "ofa_accuracy.npz", allow_pickle=False)
    resolution, depth, kernel, expand = (file[f"{name}_{key}"] for key in ("r", "d", "ks", "e"))
    space = MOOFA()
    rows = space.rows(Settings(resolution, depth.astype(np.int16), kernel, expand))
    return space, rows, file[f"{name}_acc"].astype(float) * 100, file[f"{name}_peakmem_elems"].astype(int)


def test_tau_is_kendalls(rng):
    p, y = rng.integers(0, 6, 40), rng.integers(0, 6, 40)
    pairs = [(np.sign(p[i] - p[j]), np.sign(y[i] - y[j])) for i in range(40) for j in range(i)]
    agreed, a, b = sum(x * z for x, z in pairs), sum(x != 0 for x, _ in pairs), sum(z != 0 for _, z in pairs)
    assert agreement(p, y).tau == pytest.approx(agreed / math.sqrt(a * b))
    assert agreement(y, y) == Agreement(1.0, 0.0, 40)
    assert agreement(np.ones(5), np.arange(5)).tau == 0.0


@pytest.mark.parametrize("model", ["ridge", "products", "gp"])
def test_linear_accuracies_are_learned(model, rng):
    space = load_space("moofa")
    rows = space.sample_rows(rng, 260)
    weights = rng.normal(size=features(space, rows).choices.shape[1])
    accuracy = 70 + features(space, rows).choices @ weights + 0.05 * rng.normal(size=260)
    predictor = fit_accuracy(features(space, rows[:200]), accuracy[:200], models=(model,))
    found = agreement(predictor.predict(features(space, rows[200:])), accuracy[200:])
    assert found.tau > 0.8 and predictor.model == model
    assert predictor.error.rmse < accuracy.std() / 2 and predictor.error.samples == 200


def test_predictor_of_two_hundred_published_accuracies(shared_dir, tmp_path):
    space, rows, accuracy, _ = subnets(shared_dir)
    order = np.random.default_rng(0).permutation(len(rows))
    known, held = order[:200], order[-500:]
    predictor = fit_accuracy(features(space, rows[known]), accuracy[known])
    found = agreement(predictor.predict(features(space, rows[held])), accuracy[held])
    assert found.tau > 0.91 and found.rmse < 0.65
    assert set(predictor.considered) == {"ridge", "products", "gp"}
    assert predictor.error == min(predictor.considered.values(), key=lambda a: a.rmse)
    predictor.save(tmp_path / "p.safetensors")
    again = load_predictor(tmp_path / "p.safetensors")
    assert (again.predict(features(space, rows[held])) == predictor.predict(features(space, rows[held]))).all()
    assert again.error == predictor.error and again.considered == predictor.considered


def test_the_papers_network_is_saved_too(tmp_path, rng):
    space = load_space("compofa", kernel="fixed", resolutions=(128, 160))
    rows = space.sample_rows(rng, 40)
    predictor = fit_accuracy(features(space, rows), 70.0 + rows.sum(1), models=("mlp-published",), folds=2)
    predictor.save(tmp_path / "p.safetensors")
    assert (load_predictor(tmp_path / "p.safetensors").predict(features(space, rows)) == predictor.predict(features(space, rows))).all()


def test_predictors_say_what_they_cannot_use(rng):
    space = load_space("moofa")
    some = features(space, space.sample_rows(rng, 20))
    with pytest.raises(SourceError, match="at least 10"):
        fit_accuracy(some.take(np.arange(5)), np.ones(5))
    with pytest.raises(SourceError, match="nan of architecture 3"):
        fit_accuracy(some, np.where(np.arange(20) == 3, np.nan, 1.0))
    with pytest.raises(SourceError, match="forest"):
        fit_accuracy(some, np.ones(20), models=("forest",))
    predictor = fit_accuracy(some, rng.normal(size=20))
    other = load_space("ofa_mbv3")
    with pytest.raises(SourceError, match="another space"):
        predictor.predict(features(other, other.sample_rows(rng, 3)))


def test_features_of_spaces_without_stages_are_their_genes(rng):
    space = load_space("nasbench201")
    rows = space.sample_rows(rng, 30)
    assert (features(space, rows).choices == space.features(rows)).all()
    predictor = fit_accuracy(features(space, rows), rows.sum(1).astype(float))
    assert np.isfinite(predictor.predict(features(space, rows))).all()


# ---- evolution --------------------------------------------------------------------------------------------------------


def smallest(space):
    rows = np.zeros((space.cardinalities[0], len(space.cardinalities)), np.int16)
    rows[:, 0] = np.arange(len(rows))
    return rows


@pytest.mark.parametrize("limit", [0, 1, 12, 40])
def test_evolution_keeps_the_limit_and_climbs(limit, rng):
    """Score and cost are the sum of the genes, so the best feasible score is the limit itself."""
    space = load_space("moofa")

    def total(rows):
        assert (rows == space.canonical_rows(rows)).all()
        return rows.sum(axis=1)

    settings = EvolutionSettings(population=40, generations=80)
    found = evolve(space, lambda rows: total(rows).astype(float), lambda rows: total(rows) <= limit, smallest(space), rng, settings)
    assert (found.rows.sum(1) <= limit).all() and found.scores[0] >= 0.9 * limit
    assert (np.diff(found.scores) <= 0).all() and (np.diff(found.best) >= 0).all()
    assert len(np.unique(found.rows, axis=0)) == len(found.rows)


def test_evolution_under_a_limit_that_nothing_keeps(rng):
    space = load_space("moofa")
    with pytest.raises(BudgetError, match="8,192 random architectures of moofa"):
        evolve(space, lambda rows: rows.sum(1), lambda rows: np.zeros(len(rows), bool), smallest(space), rng)


def test_first_population_has_every_resolution_that_the_limit_allows(shared_dir):
    """By chance alone all would have 128 pixels, which evolution does not leave: five points of top-1 lower."""
    space = MOOFA()
    oracle = Oracle(space, accounting="moofa-published", memory=False)

    def feasible(rows):
        return oracle.cost(rows, metrics=("peak",))["peak"] <= 4 * 325_000

    rows = feasible_population(space, feasible, smallest(space), 100, np.random.default_rng(0))
    assert set(rows[:, 0]) == {0, 1, 2} and feasible(rows).all()
    assert (np.bincount(rows[:, 0]) >= 20).all()


def test_balanced_rows_spread_over_the_costs(rng):
    rows = np.arange(1000)[:, None]
    costs = np.concatenate([np.zeros(900), np.linspace(0, 100, 100)])
    chosen = balanced_rows(rows, costs, 40, 4, rng)[:, 0]
    assert (np.histogram(costs[chosen], bins=4, range=(0, 100))[0] == 10).all()
    assert len(balanced_rows(rows[:5], costs[:5], 40, 4, rng)) == 5
    assert len(set(balanced_rows(rows, costs, 990, 4, rng)[:, 0])) == 990


# ---- the engine, of published accuracies ------------------------------------------------------------------------------


def test_engine_searches_published_accuracies(tmp_path, shared_dir):
    options = {"table": str(shared_dir / "data" / "ofa_accuracy.npz"), "population": 40, "generations": 60}
    result = search(
        "moofa", "moofa", constraints=["peak<=1600KB"], accounting="moofa-published", options=options, preset="smoke", folder=tmp_path
    )
    assert result.best is not None
    assert result.best.values["accuracy"] > 73 and result.best.values["peak"] <= 1_600_000
