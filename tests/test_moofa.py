"""MOOFA: channel sizing, accuracy predictors, evolution under a peak, elastic supernets, progressive shrinking, the engine."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from neaptide.compiler.errors import BudgetError, SourceError
from neaptide.search.accuracy_predictor import Agreement, agreement, fit_accuracy, load_predictor
from neaptide.search.data import ImageData
from neaptide.search.engine import Proposal
from neaptide.search.engines import moofa as engine_module
from neaptide.search.engines.moofa import balanced_rows
from neaptide.search.evaluate import weights_path
from neaptide.search.features import features
from neaptide.search.moofa_sizing import SizingRule, round_channels, size_channels
from neaptide.search.oracle import Oracle
from neaptide.search.run import search
from neaptide.search.spaces import load_space
from neaptide.search.spaces.ofa import MOOFA, OFAMobileNetV3, Settings
from neaptide.search.supernets.elastic import ElasticSupernet, largest, load_supernet, sort_channels
from neaptide.search.supernets.phases import SCHEDULES, Phase, Schedule, phase_rows
from neaptide.search.supernets.shrinking import shrink, side_of, subnet_accuracy
from neaptide.search.surrogate_evolution import EvolutionSettings, evolve, feasible_population
from neaptide.search.training import evaluate, recalibrate
from neaptide.search.weights import load_weights, save_weights


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


# ---- supernet ---------------------------------------------------------------------------------------------------------

TINY = {
    "resolutions": (8, 12), "strides": (1, 1, 2, 1, 1, 1), "stem_stride": 2, "depths": (1, 2), "classes": 3,
    "widths": (8, 8, 8, 8, 8, 8, 8, 8, 8),
}  # fmt: skip


def elastic(name="moofa", **options):
    space = load_space(name, **{**TINY, **options})
    assert isinstance(space, OFAMobileNetV3)
    return space


def images(n=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    pictures = torch.randint(0, 120, (n, 3, 12, 12), generator=generator, dtype=torch.uint8)
    pictures += (60 * labels).to(torch.uint8).view(-1, 1, 1, 1)
    part = (pictures, labels)
    return ImageData("synthetic", part, (pictures[:48], labels[:48]), part, (0.4,) * 3, (0.2,) * 3, ("a", "b", "c"))


def grown(space, seed=0):
    """A supernet whose kernel maps are no longer the identity, whose norms are no longer plain."""
    torch.manual_seed(seed)
    supernet = ElasticSupernet(space)
    with torch.no_grad():
        for name, tensor in supernet.state_dict().items():
            if name.startswith("maps") or "norm.weight" in name or "norm.bias" in name or "running_mean" in name:
                tensor += 0.2 * torch.randn_like(tensor)
    return supernet


@pytest.mark.parametrize(
    "name, options", [("moofa", {}), ("moofa", {"expands": (1, 1.5, 2)}), ("ofa_mbv3", {}), ("compofa", {"depths": (1, 2, 3)})]
)
def test_a_subnet_in_place_is_the_subnet_taken_out(name, options, rng):
    space = elastic(name, **options)
    supernet, data = grown(space), images()
    for arch in [*space.decode(space.sample_rows(rng, 4)), largest(space)]:
        supernet.active = arch
        side = side_of(space, arch, data)
        x = data.normalized(data.val[0][:8], resolution=side)
        module = supernet.extract(arch)
        assert type(module) is type(space.module(arch)) and set(module.state_dict()) == set(space.module(arch).state_dict())
        assert torch.equal(supernet.eval()(x), module.eval()(x))
        recalibrate(supernet, data, images=64, resolution=side)
        recalibrate(module, data, images=64, resolution=side)
        assert torch.equal(supernet.eval()(x), module.eval()(x))
        statistics = supernet.extract(arch).state_dict()
        assert all(torch.equal(statistics[n], t) for n, t in module.state_dict().items() if "running" in n)


def test_smaller_kernels_are_centres_through_their_maps():
    space = elastic()
    supernet = ElasticSupernet(space)
    weight = supernet.net.stages.get_submodule("0.0").depthwise.conv.weight
    genes = [0, *[1] * 5, *[0, 2] * 10]
    three = supernet.extract(space.architecture(genes)).state_dict()["stages.0.0.depthwise.conv.weight"]
    assert torch.equal(three, weight[:, :, 2:5, 2:5])  # maps begin as the identity
    with torch.no_grad():
        seven_to_five = supernet.maps["stages-0-0-7to5"]
        seven_to_five += torch.randn_like(seven_to_five)
        supernet.maps["stages-0-0-5to3"] *= 2
    five = (seven_to_five @ weight[:, 0, 1:6, 1:6].reshape(-1, 25).T).T.reshape(-1, 5, 5)
    three = supernet.extract(space.architecture(genes)).state_dict()["stages.0.0.depthwise.conv.weight"]
    assert torch.allclose(three[:, 0], 2 * five[:, 1:4, 1:4], atol=1e-6)


def test_sorted_channels_leave_the_largest_network_and_put_what_matters_first():
    space = elastic()
    supernet, data = grown(space).eval(), images()
    x = data.normalized(data.val[0][:8])
    before = supernet(x)
    sort_channels(supernet)
    assert torch.allclose(supernet(x), before, atol=1e-5)
    for stage in range(5):
        for block in (0, 1):
            importance = supernet.net.get_submodule(f"stages.{stage}.{block}").project.conv.weight.abs().sum((0, 2, 3))
            assert (importance.diff() <= 0).all()


def test_supernets_know_their_subnets_and_weights():
    space = elastic()
    supernet = ElasticSupernet(space)
    with pytest.raises(SourceError, match="no subnet of this supernet of moofa"):
        supernet.extract(elastic("ofa_mbv3").sample(np.random.default_rng(0)))
    with pytest.raises(SourceError, match="differs"):
        load_supernet(elastic(classes=4), supernet.state_dict())


# ---- progressive shrinking --------------------------------------------------------------------------------------------

SHORT = Schedule(
    (Phase("teacher", 2, 0.05), Phase("kernel", 1, 0.02, 9), Phase("depth", 1, 0.02, 9, 9, subnets=2), Phase("expand", 2, 0.02, 9, 9, 9)),
    batch=32, recalibration=64,
)  # fmt: skip


def test_phases_open_one_kind_of_choice_after_another(rng):
    space = elastic(resolutions=(128, 160), depths=(2, 3, 4))
    opened = {p.name: space.settings(phase_rows(space, p, rng, 200)) for p in SCHEDULES["paper"].phases}

    def values(name):
        s = opened[name]
        return [set(np.unique(a[a > 0]).tolist()) for a in (s.kernel, s.depth, s.expand)]

    assert values("teacher") == [{7}, {4}, {4}]
    assert values("kernel") == [{3, 5, 7}, {4}, {4}]
    assert values("depth1") == [{3, 5, 7}, {3, 4}, {4}]
    assert values("depth2") == [{3, 5, 7}, {2, 3, 4}, {4}]
    assert values("expand1") == [{3, 5, 7}, {2, 3, 4}, {3, 4}]
    assert values("expand2") == [{3, 5, 7}, {2, 3, 4}, {2, 3, 4}]
    assert all(len(set(s.resolution.tolist())) == 1 for s in opened.values())


def test_published_schedule():
    phases = SCHEDULES["paper"].phases
    assert [(p.epochs, p.lr, p.warmup, p.warmup_lr, p.subnets) for p in phases] == [
        (180, 3e-2, 0, 3e-3, 1), (120, 3e-3, 5, 3e-3, 1), (25, 2.5e-4, 0, 2.5e-3, 2), (120, 7.5e-4, 5, 7.5e-5, 2),
        (25, 2.5e-4, 0, 2.5e-5, 4), (120, 2.5e-4, 5, 7.5e-5, 4),
    ]  # fmt: skip
    assert phases[3].rate(0) == 7.5e-5 and phases[3].rate(5) == pytest.approx(7.5e-4) and phases[3].rate(120) == pytest.approx(0)


class Killed(Exception):
    pass


def test_a_shrinking_that_was_killed_after_any_epoch_ends_as_one_that_was_not(tmp_path):
    space, data = elastic(), images()
    told = []
    whole = shrink(space, data, SHORT, seed=3, progress=lambda *what: told.append(what)).state_dict()
    assert [(phase, epoch) for phase, epoch, _ in told] == [
        ("teacher", 1),
        ("teacher", 2),
        ("kernel", 1),
        ("depth", 1),
        ("expand", 1),
        ("expand", 2),
    ]

    def kill(*_):
        raise Killed

    for _ in told:
        with pytest.raises(Killed):
            shrink(space, data, SHORT, seed=3, folder=tmp_path, progress=kill)
    resumed = shrink(space, data, SHORT, seed=3, folder=tmp_path, progress=kill).state_dict()
    assert all(torch.equal(resumed[name], t) for name, t in whole.items())
    with pytest.raises(SourceError, match="another space, schedule or seed"):
        shrink(space, data, SHORT, seed=4, folder=tmp_path)


def test_subnets_learn_by_shrinking():
    space, data = elastic(), images()
    longer = Schedule(tuple(replace(p, epochs=3 * p.epochs) for p in SHORT.phases), batch=32, augment=False)
    supernet = shrink(space, data, longer)
    smallest_arch = space.decode(smallest(space)[-1:])[0]
    assert subnet_accuracy(supernet, smallest_arch, data, recalibration=96) > 60
    assert subnet_accuracy(supernet, largest(space), data, recalibration=96) > 60


def _one_of_two(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    supernet = shrink(elastic(), images(), replace(SHORT, batch=16), seed=1, folder=f"{folder}/run")
    save_weights(f"{folder}/rank{rank}.safetensors", supernet.state_dict())
    torch.distributed.destroy_process_group()


def test_two_processes_train_one_supernet(tmp_path):
    method = "spawn" if torch.cuda.is_available() else "fork"  # autograd's threads, which a GPU brings, do not survive a fork
    start_processes(_one_of_two, (str(tmp_path),), nprocs=2, start_method=method)
    first, second = (load_weights(tmp_path / f"rank{rank}.safetensors")[0] for rank in (0, 1))
    assert all(torch.equal(first[name], t) for name, t in second.items())
    kept, facts = load_weights(tmp_path / "run" / "supernet.safetensors")
    assert all(torch.equal(kept[f"m.{name}"], t) for name, t in first.items()) and facts["phase"] == 3
    alone = shrink(elastic(), images(), replace(SHORT, batch=16), seed=1).state_dict()
    assert not all(torch.equal(first[name], t) for name, t in alone.items())


# ---- the engine -------------------------------------------------------------------------------------------------------


def test_engine_searches_a_supernet_and_never_leaves_its_limit(tmp_path, monkeypatch):
    monkeypatch.setitem(engine_module.PRESETS, "smoke", {**engine_module.PRESETS["smoke"], "samples": 12, "generations": 5})
    monkeypatch.setattr("neaptide.search.supernets.phases.SCHEDULES", {"smoke": SHORT})
    space, data = elastic(), images()
    arguments = {"constraints": ["peak<=4KiB"], "data": data, "preset": "smoke", "workers": 1}
    result = search(space, "moofa", objectives="accuracy,peak", folder=tmp_path / "a", **arguments)
    assert {t.origin for t in result.trials} == {"balanced", "evolution"} and len(result.trials) > 12
    assert all(t.values["peak"] <= 4096 and t.feasible for t in result.trials)
    assert result.test_accuracy is not None and (tmp_path / "a" / "predictor.safetensors").is_file()
    best = result.best
    assert best is not None
    module = space.module(best.arch)
    module.load_state_dict(load_weights(weights_path(tmp_path / "a", Proposal(best.arch)))[0])
    assert evaluate(module.eval(), data, "test", resolution=side_of(space, best.arch, data)) == result.test_accuracy
    again = search(space, "moofa", objectives="accuracy,peak", folder=tmp_path / "a", resume=True, **arguments)
    assert [t.text for t in again.trials] == [t.text for t in result.trials]


def test_engine_searches_published_accuracies(tmp_path, shared_dir):
    options = {"table": str(shared_dir / "data" / "ofa_accuracy.npz"), "population": 40, "generations": 60}
    result = search(
        "moofa", "moofa", constraints=["peak<=1600KB"], accounting="moofa-published", options=options, preset="smoke", folder=tmp_path
    )
    assert result.best is not None
    assert result.best.values["accuracy"] > 73 and result.best.values["peak"] <= 1_600_000


def test_engine_says_what_it_cannot_search(tmp_path):
    with pytest.raises(SourceError, match="not of nasbench201"):
        search("nasbench201", "moofa", data=images(), folder=tmp_path)
    with pytest.raises(SourceError, match=r"128 pixels and more; those of synthetic have 12.*--space-option 'depths=\[1,2\]'"):
        search("moofa", "moofa", data=images(), folder=tmp_path)
    with pytest.raises(SourceError, match="searches for accuracy"):
        search("moofa", "moofa", objectives="macs", folder=tmp_path)
    with pytest.raises(BudgetError, match="least"):
        search(elastic(), "moofa", constraints=["peak<=1KB"], data=images(), folder=tmp_path)
