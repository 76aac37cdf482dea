"""MemNet: its score, its controller and its rounds, on accuracies that are a known function of the network."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from neaptide.compiler.errors import SourceError
from neaptide.search.engine import Context, Objective, Outcome
from neaptide.search.engines.memnet import MemNet, selection_score
from neaptide.search.engines.memnet_controller import Controller, ControllerSettings, average_precision, discounted_gain
from neaptide.search.engines.memnet_paths import path_features
from neaptide.search.spaces import load_space
from neaptide.search.spaces.memnet import MemNet as MemNetSpace
from neaptide.search.weights import inherit

pytestmark = pytest.mark.usefixtures("one_thread")

SPACE = MemNetSpace(width=8, max_blocks=3)
TINY = ControllerSettings(hidden=24, embedding=24, steps=80, lr=5e-3, list_size=20)


# ---- inherited weights -----------------------------------------------------------------------------------------------


def test_a_grown_network_computes_what_it_was_grown_from():
    """One block more behind a block that stays: only channels are new, and what reads them starts without them."""
    space = load_space("memnet", width=4, resolution=8)
    one = "(0,0,conv_3x3,dw_sep_3x3,add)"
    for text in (f"{one}(0,1,max_pool_3x3,fac_conv_7x7,cat)", f"{one}(1,1,dil_conv_3x3,dw_sep_5x5,add)(2,0,avg_pool_3x3,conv_3x3,add)"):
        small, grown = (space.module(space.parse(t)).eval() for t in (one, text))
        images = torch.randn(3, 3, 8, 8)
        assert not torch.allclose(grown(images), small(images), atol=1e-3)
        inherit(grown, small.state_dict())
        torch.testing.assert_close(grown(images), small(images))


def test_weights_of_another_kind_of_layer_are_left():
    dense, depthwise, wide = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 5)
    for module, other in ((dense, depthwise), (depthwise, dense), (dense, wide)):
        before = module.weight.detach().clone()
        assert inherit(module, {"weight": other.weight}) == 0 and torch.equal(module.weight, before)


def test_a_block_cut_off_takes_its_channels_along():
    """A network that reads a block less computes what its parent does where that block gives zeros."""
    space = load_space("memnet", width=4, resolution=16)
    blocks = "(0,0,conv_3x3,dw_sep_3x3,cat)(1,0,max_pool_3x3,fac_conv_7x7,add)(2,0,dw_sep_5x5,conv_3x3,cat)"
    parent = space.parse(blocks)
    images = torch.randn(3, 3, 16, 16)
    for cut in ("1.1", "2.2", "5.1", "1.1,1.2,3.2,5.2"):
        child = space.parse(f"{blocks} cut={cut}")
        whole: Any = space.module(parent).eval()
        part = space.module(child).eval()
        for place in cut.split(","):
            position, block = (int(i) - 1 for i in place.split("."))
            cell = whole.cells[position]
            width = (4, 4, 8, 8, 16)[position]
            gone = slice(0, 2 * width) if block == 0 else slice(2 * width, 3 * width)
            cell.register_forward_hook(lambda _, __, out, gone=gone: out.index_fill(1, torch.arange(gone.start, gone.stop), 0.0))
        inherit(part, space.carried(whole.state_dict(), parent, child))
        torch.testing.assert_close(part(images), whole(images))
        assert not torch.allclose(part(images), space.module(child).eval()(images), atol=1e-3)


# ---- score ----------------------------------------------------------------------------------------------------------


def test_the_score_rises_with_accuracy_and_falls_with_memory_and_parameters():
    pre = (90.0, 100.0, 50.0)
    assert selection_score(*pre, pre) == 0.0
    assert selection_score(91.0, 100.0, 50.0, pre) > 0 > selection_score(90.0, 101.0, 50.0, pre)
    assert selection_score(90.0, 100.0, 51.0, pre) < 0
    weighed = selection_score(99.0, 50.0, 25.0, pre, accuracy_weight=0.5, memory_weight=0.25, params_weight=0.1)
    assert weighed == pytest.approx(0.5 * 0.1 + 0.25 * 0.5 + 0.1 * 0.5)


# ---- controller -------------------------------------------------------------------------------------------------------


def sequences(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of two to five one-hot blocks, each of them worth its number and later ones more; zero blocks behind them."""
    rng = np.random.default_rng(seed)
    kinds, length = rng.integers(0, 6, (n, 5)), rng.integers(2, 6, n)
    there = np.arange(5) < length[:, None]
    worth = (kinds * np.arange(1, 6) * there).sum(1) + rng.normal(0, 0.1, n)
    return np.eye(6, dtype=np.float32)[kinds] * there[..., None], worth


@pytest.mark.parametrize("settings", [TINY, ControllerSettings(kind="single", hidden=24, embedding=24, steps=80, lr=5e-3)])
def test_the_controller_ranks_what_it_has_not_seen(settings):
    blocks, worth = sequences(300)
    controller = Controller(settings, seed=1).fit(blocks[:150], worth[:150], worth[:150] + 50, worth[:150] + 50)
    scores = controller.score(blocks[150:])
    assert average_precision(scores, worth[150:], 30) > 0.6
    assert np.array_equal(
        scores, Controller(settings, seed=1).fit(blocks[:150], worth[:150], worth[:150] + 50, worth[:150] + 50).score(blocks[150:])
    )
    again = Controller(settings).load(controller.state())
    assert np.array_equal(again.score(blocks[150:]), scores)


def test_padding_does_not_change_a_score():
    blocks, worth = sequences(60)
    controller = Controller(ControllerSettings(kind="single", hidden=16, embedding=16, steps=20)).fit(blocks, worth, worth + 50, worth + 50)
    padded = np.concatenate([blocks, np.zeros((60, 4, 6), np.float32)], axis=1)
    assert np.allclose(controller.score(blocks), controller.score(padded), atol=1e-6)


def test_an_order_averaged_ranking_hardly_depends_on_the_order():
    blocks, worth = sequences(120)
    settings = ControllerSettings(hidden=24, embedding=24, steps=80, lr=5e-3, list_size=20, orders=24)
    controller = Controller(settings).fit(blocks[:60], worth[:60], worth[:60] + 50, worth[:60] + 50)
    straight, turned = controller.score(blocks[60:]), controller.score(blocks[60:][::-1])[::-1]
    assert np.corrcoef(straight, turned)[0, 1] > 0.995


def test_numbers_of_the_whole_tell_what_blocks_do_not():
    blocks, _ = sequences(300)
    worth = np.random.default_rng(3).normal(0, 1, 300)  # nothing that the blocks show
    whole = np.stack([1000 + 5 * worth, np.full(300, 7.0)], axis=1)  # in a unit of its own, and one number that never changes
    settings = ControllerSettings(hidden=24, embedding=24, steps=120, lr=5e-3, list_size=20)
    known = (blocks[:150], worth[:150], np.full(150, 9.0), np.full(150, 9.0))
    controller = Controller(settings, seed=1).fit(*known, whole[:150])
    scores = controller.score(blocks[150:], whole[150:])
    assert average_precision(scores, worth[150:], 30) > 0.7
    assert average_precision(Controller(settings, seed=1).fit(*known).score(blocks[150:]), worth[150:], 30) < 0.5
    changed = whole[150:] + np.array([0.0, 50.0])
    assert np.array_equal(controller.score(blocks[150:], changed), scores)
    assert np.array_equal(Controller(settings).load(controller.state()).score(blocks[150:], whole[150:]), scores)
    with pytest.raises(SourceError, match="fitted with 2 numbers a network, not 0 for 150"):
        controller.score(blocks[150:])
    with pytest.raises(SourceError, match="fitted with 2 numbers a network, not 0 for 150"):
        controller.fit(*known)


def test_path_features_against_every_path_walked():
    rng = np.random.default_rng(0)
    pairs = np.array([(a, b) for b in range(1, 6) for a in range(b)])
    edges = np.concatenate([np.broadcast_to(pairs, (200, *pairs.shape)), rng.integers(-1, 3, (200, len(pairs), 1))], axis=2)
    edges[:20, rng.permutation(len(pairs))[:8], 2] = -1
    edges[20, :, 2] = -1
    got = path_features(edges, 3, 5)
    assert got.shape == (200, 15) and got.dtype == np.float32
    for row, network in zip(got, edges.tolist(), strict=True):
        walked = list(ways(network, 0, 5))
        counts = np.array([[sum(network[e][2] == o for e in way) for o in range(3)] for way in walked]).reshape(-1, 3)
        used = {e for way in walked for e in way}
        lengths = counts.sum(1)
        wanted = [
            *(sum(network[e][2] == o for e in used) for o in range(3)),
            *(counts.max(0) if walked else [-1] * 3),
            *(counts.min(0) if walked else [-1] * 3),
            *np.log1p((counts == lengths[:, None]).sum(0)),
            *((lengths.max(), lengths.min()) if walked else (-1, -1)),
            np.log1p(len(walked)),
        ]
        assert row == pytest.approx(wanted, abs=1e-5)


def ways(network: list[list[int]], at: int, output: int) -> Iterator[list[int]]:
    """Every path from location `at` to `output`, as indices of edges."""
    if at == output:
        yield []
        return
    for e, (source, to, operation) in enumerate(network):
        if source == at and operation >= 0:
            yield from ([e, *way] for way in ways(network, to, output))


def test_path_features_do_not_know_the_names_of_locations():
    edges = np.array([[[0, 1, 2], [0, 2, 0], [1, 3, 1], [2, 3, 2]], [[0, 2, 2], [0, 1, 0], [2, 3, 1], [1, 3, 2]]])
    first, second = path_features(edges, 3, 3)
    assert np.array_equal(first, second) and first[-1] == pytest.approx(np.log(3))


def test_a_controller_that_learned_nothing_says_so():
    with pytest.raises(SourceError, match="learned nothing yet"):
        Controller().score(np.zeros((2, 3, 6), np.float32))
    with pytest.raises(SourceError, match="two networks or more, not 1"):
        Controller().fit(np.zeros((1, 3, 6), np.float32), np.ones(1), np.ones(1), np.ones(1))


def test_rank_measures_against_their_definitions():
    accuracy = np.array([1.0, 5.0, 3.0, 4.0, 2.0])
    assert average_precision(accuracy, accuracy, 2) == 1.0 and discounted_gain(accuracy, accuracy, 3) == pytest.approx(1.0)
    assert average_precision(np.array([0, 9, 0, 0, 8.0]), accuracy, 2) == 0.5
    # Chosen: the best (rank 1) in first place, the fourth best in second.
    got, ideal = 1 / np.log2(2) / 1 + 1 / np.log2(3) / 4, 1 / np.log2(2) / 1 + 1 / np.log2(3) / 2
    assert discounted_gain(np.array([0, 9, 0, 0, 8.0]), accuracy, 2) == pytest.approx(got / ideal)


# ---- engine -----------------------------------------------------------------------------------------------------------


class Priced:
    """An oracle of made-up costs: params and peak that are functions of the genes."""

    def cost(self, rows: np.ndarray, metrics: Any = ()) -> dict[str, np.ndarray]:
        blocks = rows[:, 0] + 1.0
        trims = rows[:, 1 + 5 * SPACE.max_blocks :].sum(1)
        return {"params": 1000.0 * blocks - 10 * trims, "peak": 500.0 + 100 * blocks - 20 * trims}


class Limits:
    """At most so much peak."""

    def __init__(self, most: float = np.inf):
        self.most = most

    def feasible_rows(self, rows: np.ndarray) -> np.ndarray:
        return Priced().cost(rows)["peak"] <= self.most


def context(seed: int = 0, **options: Any) -> Context:
    found: dict[str, Any] = {"candidates": 8, "rounds": 6, "controller_from": 2, "controller_steps": 4, **options}
    limits = Limits(found.pop("most", np.inf))
    objectives = (Objective("accuracy", True), Objective("peak", False))
    return Context(SPACE, Priced(), objectives, limits, seed, "paper", Path("nowhere"), None, found)  # type: ignore[arg-type]


def played(context: Context, trim_gain: float = -0.5) -> list[list[Outcome]]:
    """All rounds; a network is as accurate as it has separable convolutions, and each trim changes that by `trim_gain`."""
    engine, rounds = MemNet(context), []
    while proposals := engine.ask():
        outcomes = []
        for proposal in proposals:
            row = SPACE.encode([proposal.arch])
            blocks = np.asarray(proposal.arch.genes[1 : 1 + 5 * SPACE.max_blocks]).reshape(-1, 5)[: proposal.arch.genes[0] + 1]
            trims = sum(proposal.arch.genes[1 + 5 * SPACE.max_blocks :])
            accuracy = 50.0 + 2 * (blocks[:, 2:4] == 5).sum() + 5 * len(blocks) + trim_gain * trims
            costs = {name: float(v[0]) for name, v in Priced().cost(row).items()}
            outcomes.append(Outcome(proposal, {"accuracy": float(accuracy), **costs}))
        engine.tell(outcomes)
        rounds.append(outcomes)
    return rounds


def test_rounds_are_steps_from_the_best_of_the_round_before():
    rounds = played(context())
    assert len(rounds) == 6 and [o.proposal.origin for o in rounds[0]] == ["augment"] * 8
    seen = [o.proposal.arch for outcomes in rounds for o in outcomes]
    assert len(set(seen)) == len(seen)
    for before, outcomes in pairwise(rounds):
        parents = {o.proposal.parent for o in outcomes}
        assert parents <= {o.proposal.arch for o in before}
        for outcome in outcomes:
            assert outcome.proposal.parent is not None
            moves = SPACE.augment if outcome.proposal.origin == "augment" else SPACE.trim
            steps = moves(outcome.proposal.parent)
            assert outcome.proposal.arch in steps
            assert outcome.proposal.settings["epochs"] == (60 if outcome.proposal.origin == "augment" else 20)
            assert ("weights" in outcome.proposal.settings) == (outcome.proposal.origin == "trim")


def test_a_trim_that_wins_is_made_in_the_others_of_its_round():
    rounds = played(context(candidates=30, memory_weight=0.9, params_weight=0.9, accuracy_weight=0.1), trim_gain=2.0)
    followed = 0
    for before, outcomes in pairwise(rounds):
        if len({o.proposal.parent for o in outcomes}) > 1:
            followed += 1
            assert all(o.proposal.origin == "trim" and o.proposal.parent != o.proposal.arch for o in outcomes)
            steps = [(o.proposal.parent.genes, o.proposal.arch.genes) for o in outcomes if o.proposal.parent is not None]
            added = {next(i for i, (a, b) in enumerate(zip(*step, strict=True)) if b > a) for step in steps}
            assert len(added) == 1 and {o.proposal.parent for o in outcomes} <= {o.proposal.arch for o in before}
    assert followed


def test_few_candidates_keep_places_for_grown_networks():
    """Where a trim always looks better, `grown` of a round's candidates grow all the same."""
    options = {"candidates": 4, "memory_weight": 0.9, "params_weight": 0.9, "accuracy_weight": 0.1, "controller_from": 1}
    for grown in (0, 2):
        rounds = [[o.proposal for o in outcomes] for outcomes in played(context(grown=grown, **options))]
        ranked = [r for r in rounds[1:] if len({p.parent for p in r}) == 1 and len(SPACE.augment(r[0].parent)) >= 2]
        assert ranked and {sum(p.origin == "augment" for p in proposals) for proposals in ranked} == {grown}


def test_the_same_seed_gives_the_same_rounds_and_another_does_not():
    def archs(seed: int) -> list[list[Any]]:
        return [[o.proposal for o in outcomes] for outcomes in played(context(seed, rounds=3))]

    assert archs(1) == archs(1) != archs(2)


def test_limits_hold_and_the_search_ends_where_no_step_keeps_them():
    rounds = played(context(most=650.0))
    assert all(o.values["peak"] <= 650.0 for outcomes in rounds for o in outcomes) and all(o.proposal.arch.genes[0] == 0 for o in rounds[0])
    assert played(context(most=100.0)) == []


def test_it_grows_memnet_and_nothing_else():
    with pytest.raises(SourceError, match="grows the cells of space memnet, not of nasbench201"):
        MemNet(SimpleNamespace(space=load_space("nasbench201"), objectives=(), options={}, preset="smoke"))  # type: ignore[arg-type]
