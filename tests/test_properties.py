"""Every claim about passes, on graphs of every kind: views, in-place, several outputs, pinned outputs, workspaces.

Together at least 2,000 graphs: 6 claims of 350 shrinkable examples each, and 600 seeded larger ones. `make fuzz` runs 100,000.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from neaptide.compiler.graph import Graph
from neaptide.passes.allocate import allocate, allocate_lifetimes
from neaptide.passes.inplace import inplace
from neaptide.passes.liveness import Inputs, _profile, liveness
from neaptide.passes.schedule import Schedule
from neaptide.testing import generate, graphs, properties
from neaptide.testing.properties import PROPERTIES


@pytest.mark.parametrize("claim", PROPERTIES, ids=lambda claim: claim.__name__)
@settings(max_examples=350, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graph=graphs(max_nodes=9), data=st.data())
def test_claim(claim, graph, data):
    claim(graph, lambda n: data.draw(st.integers(0, n - 1)))


@pytest.mark.parametrize("batch", range(6))
def test_claims_on_larger_graphs(batch):
    for seed in range(100 * batch, 100 * (batch + 1)):
        choose = random.Random(seed).randrange
        graph = generate.random_graph(choose, max_nodes=13)
        for claim in PROPERTIES:
            claim(graph, choose)


def broken_liveness(graph, order=None, *, inputs: Inputs = "planned"):
    """Frees storages one step early."""
    true = liveness(graph, order, inputs=inputs)
    early = np.maximum(true.death - 1, true.birth)
    return replace(true, death=early, live=_profile(graph, true.order, true.birth, early))


def lazy_schedule(graph, *, time_limit=10.0, inputs: Inputs = "planned"):
    """The traced order, called optimal."""
    order = tuple(range(len(graph.nodes)))
    peak = liveness(graph, order, inputs=inputs).peak
    return Schedule(order, peak, peak, True, "as traced", 0.0, inputs)


def sloppy_plan(graph, order, **options):
    """All storages at the bottom of the arena."""
    plan = allocate(graph, order, **options)
    return replace(plan, offsets=dict.fromkeys(plan.offsets, 0))


def wasteful_layout(ids, lower, upper, size, **options):
    """A bound too high, and a layout that is not as low as can be."""
    layout = allocate_lifetimes(ids, lower, upper, size, **options)
    if not len(layout.ids):
        return layout
    return replace(layout, offsets=layout.offsets + 1, arena=layout.arena + 1, lower_bound=layout.arena + 1)


def greedy_inplace(graph):
    """Takes storages over though others may still read them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neaptide.passes.inplace._Merge._needed_elsewhere", lambda *_: False)
        return inplace(graph)


@pytest.mark.parametrize(
    ("name", "wrong", "claim"),
    [
        ("liveness", broken_liveness, properties.liveness_is_what_an_interpreter_sees),
        ("schedule", lazy_schedule, properties.schedules_are_optimal),
        ("allocate", sloppy_plan, properties.plans_hold_the_peak),
        ("allocate_lifetimes", wasteful_layout, properties.full_layouts_are_optimal),
        ("inplace", greedy_inplace, properties.reuse_in_place_never_costs),
    ],
)
def test_a_wrong_pass_is_caught_and_reported(monkeypatch, capsys, name, wrong, claim):
    monkeypatch.setattr(properties, name, wrong)
    chunk = fuzz.check_seeds(range(300))
    assert chunk.counterexample is not None
    assert chunk.counterexample.claim == claim.__name__
    assert fuzz.report(chunk.counterexample) == 1
    printed = capsys.readouterr().out
    assert f"--seed {chunk.counterexample.seed} --examples 1" in printed
    assert Graph.from_json(printed[: printed.index("\nclaim ")]).nodes
