"""What makes graphs of 200,000 operators possible: every shortcut for size against the plain way, on graphs where both can be done."""

from __future__ import annotations

import random
from bisect import insort

import numpy as np
import pytest

from neaptide.compiler.graph import Graph, GraphBuilder
from neaptide.passes import bounds, problem
from neaptide.passes.decompose import segments
from neaptide.passes.heuristics import least_left_first, least_peak_first
from neaptide.passes.kernels import fit_overlaps
from neaptide.passes.kernels.fit import fit
from neaptide.passes.load import overlapping_pairs
from neaptide.passes.problem import comparable_to_all, ordering_problem
from neaptide.passes.schedule import schedule
from neaptide.testing import brute_force_optimum, brute_force_peak
from neaptide.testing.generate import random_graph

SEEDS = range(200)


def dag(seed: int, n: int = 40) -> Graph:
    """Operators that read one to three of the ten results before them: stretches with and without blocks comparable to all."""
    draw = random.Random(seed)
    b = GraphBuilder(f"dag {seed}")
    results = [b.tensor((draw.choice((1, 5, 9)),), "uint8", role="input")]
    b.inputs.append(results[0])
    for _ in range(n):
        operands = sorted({draw.choice(results[-draw.choice((1, 2, 10)) :]) for _ in range(draw.randrange(1, 4))})
        results.append(b.tensor((draw.choice((0, 1, 3, 20, 100)),), "uint8"))
        b.node("op", operands, (results[-1],))
    b.outputs.append(results[-1])
    return b.build()


def reachable(neighbours, v: int) -> set[int]:
    found, stack = set(), [v]
    while stack:
        for u in neighbours[stack.pop()]:
            if u not in found:
                found.add(u)
                stack.append(u)
    return found


@pytest.mark.parametrize("seed", SEEDS[:60])
def test_blocks_comparable_to_all_are_those_with_everything_before_or_behind_them(seed):
    graph = dag(seed)
    preds, succs = graph.dependencies(), graph.successors()
    plainly = [v for v in range(len(preds)) if len(reachable(preds, v)) + len(reachable(succs, v)) == len(preds) - 1]
    assert comparable_to_all(preds, succs) == plainly


@pytest.mark.parametrize("seed", SEEDS[:60])
def test_only_immediate_predecessors_and_last_users_are_left(seed):
    found = ordering_problem(dag(seed))
    for v, preds in enumerate(found.preds):
        assert not any(u in reachable(found.preds, w) for u in preds for w in preds)
        assert found.ancestors(v) == sum(1 << u for u in reachable(found.preds, v))
        assert found.descendants(v) == sum(1 << u for u in reachable(found.succs, v))
    for users in found.users:
        assert not any(u in reachable(found.preds, w) for u in users for w in users)


def test_ancestors_beyond_each_others_reach_change_no_optimum(monkeypatch):
    """Windows of two blocks: predecessors that are not immediate stay, bit sets are made one by one, and answers are the same."""
    cases = [random_graph(random.Random(seed).randrange, max_nodes=9) for seed in SEEDS] + [dag(seed) for seed in SEEDS[:20]]
    known = [schedule(graph, time_limit=1000.0) for graph in cases]
    monkeypatch.setattr(problem, "REACH", 2)
    redundant = 0
    for graph, plain in zip(cases, known, strict=True):
        found = schedule(graph, time_limit=1000.0)
        assert found.optimal and plain.optimal and (found.peak, found.lower_bound) == (plain.peak, plain.lower_bound)
        if len(graph.nodes) <= 9:
            assert found.peak == brute_force_optimum(graph)
        assert brute_force_peak(graph, found.order) == found.peak
        blocks = ordering_problem(graph)
        redundant += any(u in reachable(blocks.preds, w) for preds in blocks.preds for u in preds for w in preds)
    assert redundant


def test_a_cut_too_large_for_python_is_left_to_the_kernels(monkeypatch):
    blocks = ordering_problem(dag(3))
    needs = blocks.needs(range(len(blocks)))
    bound, complete = bounds.lower_bound(blocks, list(needs), 1 << 60, work=1 << 30)
    assert complete and bound > blocks.floor
    monkeypatch.setattr(bounds, "MOST_UNDECIDED", 0)
    assert bounds.lower_bound(blocks, list(needs), 1 << 60, work=1 << 30) == (blocks.floor, False)


@pytest.mark.parametrize("seed", SEEDS[:40])
def test_segments_need_what_the_whole_needs(seed):
    """Whatever order the parts are run in, one after another, a block needs in its part what it needs in the whole."""
    whole = ordering_problem(dag(seed, 60))
    needs = whole.needs(range(len(whole)))
    parts = segments(whole)
    assert [v for part in parts for (v,) in part.members] == list(range(len(whole)))
    assert [n for part in parts for n in part.needs(range(len(part)))] == needs


@pytest.mark.parametrize("within_peak", [True, False])
def test_greedy_takes_what_a_look_at_all_ready_blocks_would(within_peak):
    heuristic = least_peak_first if within_peak else least_left_first
    for seed in SEEDS[:40]:
        blocks = ordering_problem(dag(seed, 50))
        assert heuristic(blocks) == plain_greedy(blocks, within_peak)


def plain_greedy(blocks, within_peak: bool) -> list[int]:
    held = peak = blocks.start
    left = [set(users) for users in blocks.users]
    order: list[int] = []
    ready = [v for v in range(len(blocks)) if not blocks.preds[v]]
    while ready:

        def growth(v: int) -> int:
            return blocks.alloc[v] - sum(blocks.size[b] for b in blocks.used[v] if left[b] == {v})

        fitting = [v for v in ready if not within_peak or held + blocks.extra[v] <= peak]
        least = min(blocks.extra[v] for v in ready)
        v = min(fitting or [v for v in ready if blocks.extra[v] == least], key=lambda v: (growth(v), v))
        peak = max(peak, held + blocks.extra[v])
        held += growth(v)
        for b in blocks.used[v]:
            left[b].discard(v)
        order.append(v)
        ready.remove(v)
        for w in blocks.succs[v]:
            if all(u in order for u in blocks.preds[w]):
                insort(ready, w)
    return order


@pytest.mark.parametrize("n, span", [(1, 2), (2, 2), (40, 4), (200, 30), (300, 300)])
def test_many_blocks_lie_where_a_look_at_all_placed_blocks_puts_them(n, span):
    draw = np.random.default_rng(n)
    lower = draw.integers(0, n, n)
    upper, size = lower + draw.integers(1, span, n), draw.integers(1, 50, n)
    meets = (lower[:, None] < upper) & (lower < upper[:, None])
    np.fill_diagonal(meets, False)
    assert overlapping_pairs(lower, upper) == meets.sum() // 2
    by_start = np.argsort(lower, kind="stable")
    row, met = fit_overlaps.overlaps(lower, upper, by_start, lower[by_start])
    assert all(sorted(met[row[i] : row[i + 1]]) == np.flatnonzero(meets[i]).tolist() for i in range(n))
    for best in (False, True):
        for order in (by_start, draw.permutation(n)):
            plain, found = [0] * n, np.empty(n, np.int64)
            fit(order.tolist(), lower.tolist(), upper.tolist(), size.tolist(), best, 0, 1 << 62, [0] * n, plain)
            fit_overlaps.fit_among(order, row, met, size, best, found)
            assert found.tolist() == plain
            if order is by_start:
                fit_overlaps.fit_in_time(by_start, lower, upper, size, best, found)
                assert found.tolist() == plain
