"""Offsets against brute force, published instances, refusals, and plans of graphs."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neaptide.compiler.errors import OrderError, PlanError
from neaptide.compiler.graph import GraphBuilder
from neaptide.passes.allocate import Layout, allocate, allocate_lifetimes
from neaptide.passes.lifetimes_csv import read_lifetimes, write_plan
from neaptide.passes.load import crowding, max_load
from neaptide.passes.offset_search import part_searches
from neaptide.passes.schedule import schedule
from neaptide.passes.verify_plan import verify_layout, verify_plan
from neaptide.testing import StepClock, brute_force_height, brute_force_peak, graphs, lifetimes, topological_orders


def lay_out(blocks, **options):
    """The layout found within ten thousand looks at the clock."""
    lower, upper, size = (list(column) for column in zip(*blocks, strict=True)) if blocks else ([], [], [])
    return allocate_lifetimes(range(len(blocks)), lower, upper, size, **{"clock": StepClock(1e-3), **options})


@settings(max_examples=400, deadline=None)
@given(lifetimes(), st.integers(1, 4))
@example([(0, 2, 1), (1, 3, 2), (2, 5, 1), (0, 1, 2), (4, 6, 3), (3, 5, 1)], 1)
def test_height_is_the_exhaustive_minimum(blocks, alignment):
    layout = lay_out(blocks, alignment=alignment)
    assert layout.arena == brute_force_height(blocks, alignment=alignment)
    assert layout.optimal


@settings(max_examples=100, deadline=None)
@given(lifetimes(min_blocks=1), st.data())
def test_capacity_is_reached_exactly_when_it_can_be(blocks, data):
    least = brute_force_height(blocks)
    capacity = data.draw(st.integers(0, least + 3))
    if capacity >= least:
        assert lay_out(blocks, capacity=capacity).arena <= capacity
    else:
        with pytest.raises(PlanError, match=f"do not fit {capacity:,} B"):
            lay_out(blocks, capacity=capacity)


ABOVE_LOAD = [(0, 2, 3), (0, 1, 3), (1, 4, 2), (1, 3, 1), (2, 3, 2), (2, 4, 1), (3, 6, 3), (4, 6, 3)]
"""Load 6 at every moment; no layout of height 6 exists."""


def test_a_bound_above_the_load_is_proved():
    layout = lay_out(ABOVE_LOAD)
    assert max_load(layout.lower, layout.upper, layout.size) == 6
    assert (layout.arena, layout.lower_bound, layout.optimal) == (7, 7, True) and brute_force_height(ABOVE_LOAD) == 7


@settings(max_examples=100, deadline=None)
@given(lifetimes(full=True, max_blocks=9))
@example(ABOVE_LOAD)
@example([(0, 1, 3), (0, 3, 3), (1, 2, 2), (1, 4, 1), (2, 3, 1), (2, 5, 1), (3, 4, 2), (3, 5, 2), (4, 5, 3)])
def test_full_loads_are_laid_out_or_refuted(blocks):
    layout = lay_out(blocks)
    assert layout.optimal
    assert layout.arena == brute_force_height(blocks)


@settings(max_examples=100, deadline=None)
@given(lifetimes(full=True, max_blocks=9))
@example(ABOVE_LOAD)
def test_every_kernel_answers_truly(blocks):
    """Each search, forced on instances that a first fit would solve, finds or refutes capacities as brute force does."""
    from neaptide.passes.kernels import offsets as kernels

    if not blocks:
        return
    lower, upper, size = (np.array(column, np.int64) for column in zip(*blocks, strict=True))
    load, least = max_load(lower, upper, size), brute_force_height(blocks)
    for search in part_searches(lower, upper, size):
        for capacity in {load, least, least + 1}:
            result = search.run(kernels, capacity, 1_000_000)
            if result == kernels.FOUND:
                assert (search.offset + size).max() <= capacity
                assert capacity >= least
                verify_layout(Layout(tuple(range(len(size))), lower, upper, size, search.offset, capacity, load, 1, search.name, 0.0))
            elif result == kernels.INFEASIBLE:
                assert capacity < search.next_capacity <= least
            else:
                assert search.name.startswith("sweep")


@settings(max_examples=300, deadline=None)
@given(graphs(max_nodes=12), st.sampled_from(("planned", "caller")), st.sampled_from((1, 16, 64)), st.data())
def test_plans_hold_the_peak_of_any_order(graph, inputs, alignment, data):
    order = data.draw(topological_orders(graph))
    plan = allocate(graph, order, inputs=inputs, alignment=alignment)
    assert brute_force_peak(graph, order, inputs=inputs) <= plan.lower_bound <= plan.arena
    assert plan.order == order
    assert set(plan.workspace_offsets) == {node.id for node in graph.nodes if node.workspace}
    verify_plan(graph, plan)


def test_half_open_times_let_blocks_follow_each_other():
    layout = allocate_lifetimes(["a", "b"], [0, 3], [3, 5], [7, 9])
    assert layout.arena == 9
    assert layout.offsets.tolist() == [0, 0]


def test_empty_and_zero_byte_blocks_need_no_arena():
    assert lay_out([]).arena == 0
    layout = lay_out([(0, 1, 0), (0, 2, 0)])
    assert (layout.arena, layout.optimal, layout.waste) == (0, True, 0.0)


@settings(max_examples=60, deadline=None)
@given(lifetimes(full=True, max_blocks=8), st.sampled_from((-100, -8, 1 << 40)), st.sampled_from((1, 3, 1 << 50)))
@example([(0, 2, 3), (0, 1, 3), (1, 4, 2), (1, 3, 1), (2, 3, 2), (2, 4, 1), (3, 6, 3), (4, 6, 3)], -6, 1 << 55)
def test_only_differences_of_times_and_ratios_of_sizes_matter(blocks, shift, factor):
    moved = lay_out([(lower + shift, upper + shift, size * factor) for lower, upper, size in blocks])
    assert moved.arena == factor * lay_out(blocks).arena
    assert moved.optimal


def test_results_repeat():
    rng = np.random.default_rng(5)
    lower = rng.integers(0, 60, 150)
    upper = lower + rng.integers(1, 25, 150)
    size = rng.integers(1, 99, 150)
    first, second = (allocate_lifetimes(range(150), lower, upper, size, time_limit=0) for _ in range(2))
    assert first.arena == second.arena
    assert (first.offsets == second.offsets).all()


def test_crowding_is_the_largest_load_in_each_lifetime():
    rng = np.random.default_rng(3)
    lower = rng.integers(0, 40, 60)
    upper = lower + rng.integers(1, 30, 60)
    size = rng.integers(1, 9, 60)
    load = [int(size[(lower <= t) & (t < upper)].sum()) for t in range(80)]
    assert crowding(lower, upper, size).tolist() == [max(load[a:z]) for a, z in zip(lower, upper, strict=True)]


@pytest.mark.parametrize("name", ["A", "B", "C", "D", "E"])
def test_minimalloc_instances_fit_their_capacity(shared_dir, name):
    table = read_lifetimes(shared_dir / "bench" / "alloc" / f"{name}.1048576.csv")
    layout = allocate_lifetimes(table.ids, table.lower, table.upper, table.size, capacity=1_048_576, clock=StepClock(1e-2))
    assert layout.arena <= 1_048_576


@pytest.mark.parametrize("name", ["G_1", "resnet50"])
def test_large_instances_waste_little(shared_dir, name):
    table = read_lifetimes(shared_dir / "bench" / "alloc" / f"{name}.csv")
    assert allocate_lifetimes(table.ids, table.lower, table.upper, table.size, clock=StepClock(1e-2)).waste <= 0.005


def test_refusals_name_the_block():
    good: list[Any] = [["x", "y"], [0, 0], [2, 2], [4, 4]]
    for column, value, message in (
        (1, [0, 2], "'y' lives from 2 to 2"),
        (3, [4, -1], "'y' has size -1"),
        (0, ["x", "x"], "'x' stands twice"),
        (1, [0, 0.5], "lower of block 'y' is 0.5; lifetimes and sizes are integers"),
        (1, np.array([0.0, 0.5]), "lower holds float64"),
        (3, np.array([4, 1 << 63], np.uint64), "size of block 'y' is 9223372036854775808"),
        (3, [4, 1 << 63], "size of block 'y' is 9223372036854775808"),
        (2, [2], r"upper has shape \[1\]; there are 2 ids"),
        (3, [True, False], "size of block 'x' is True"),
    ):
        columns = good.copy()
        columns[column] = value
        with pytest.raises(PlanError, match=message):
            allocate_lifetimes(*columns)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"alignment": 0}, "alignment=0"),
        ({"capacity": -1}, "capacity=-1"),
        ({"capacity": 1.5}, "capacity=1.5"),
        ({"time_limit": -1.0}, "time_limit=-1.0"),
    ]
    for options, message in refused:
        with pytest.raises(PlanError, match=message):
            allocate_lifetimes(*good, **options)
    with pytest.raises(PlanError, match="together; more than"):
        allocate_lifetimes(["x", "y"], [0, 0], [2, 2], [1 << 60, 1 << 61])


def test_capacity_below_the_load_names_the_offenders():
    b = GraphBuilder("two")
    x = b.tensor((1000,), "uint8", role="input", name="image")
    b.inputs.append(x)
    h = b.tensor((500,), "uint8")
    b.node("aten.relu.default", [x], [h], scope="stem.relu", workspace=300)
    graph = b.build()
    with pytest.raises(
        PlanError,
        match=r"graph 'two' does not fit 1,024 B.*1,856 B are alive at time 0.*image \(1,024 B\).*relu.*stem\.relu.*workspace of node 0",
    ):
        allocate(graph, capacity=1024)


def test_a_refuted_capacity_says_that_it_is_proved():
    with pytest.raises(PlanError, match=r"do not fit 6 B: a complete search has proved that no layout is below 7 B \(largest load 6 B"):
        lay_out(ABOVE_LOAD, capacity=6)


def test_an_undecided_capacity_says_that_time_ran_out(shared_dir):
    table, clock = read_lifetimes(shared_dir / "bench" / "alloc" / "D.1048576.csv"), StepClock(1e-2)
    with pytest.raises(PlanError, match=r"do not fit 990,000 B: no layout was found in .* largest load is 986,112 B"):
        allocate_lifetimes(table.ids, table.lower, table.upper, table.size, capacity=990_000, time_limit=0.5, clock=clock)
    assert 50 <= clock.looks <= 55, "it goes on when time is up, or ends before"


def test_a_busy_machine_finds_what_an_idle_one_does(shared_dir, monkeypatch):
    """The limit is processor time by default, as for orders: hours of the wall clock at each look change nothing."""
    table = read_lifetimes(shared_dir / "bench" / "alloc" / "C.1048576.csv")
    columns = table.ids, table.lower, table.upper, table.size
    cut_short = [allocate_lifetimes(*columns, time_limit=0.1, clock=StepClock(1e-2)) for _ in range(2)]
    assert (cut_short[0].offsets == cut_short[1].offsets).all() and cut_short[0].method == cut_short[1].method
    first_fit = allocate_lifetimes(*columns, time_limit=0)
    idle = allocate_lifetimes(*columns, clock=StepClock(1e-2))
    hours = itertools.count(0.0, 3600.0)
    for name in ("time.perf_counter", "time.monotonic", "time.time", "neaptide.passes.offsets.wall_clock"):
        monkeypatch.setattr(name, lambda: next(hours))
    busy = allocate_lifetimes(*columns, time_limit=3600)
    assert busy.arena == idle.arena < first_fit.arena and busy.optimal
    assert (busy.offsets == idle.offsets).all() and busy.method == idle.method


def test_orders_are_checked():
    b = GraphBuilder("chain")
    t = b.tensor((4,), "uint8")
    b.node("first", [], [t])
    b.node("second", [t], [b.tensor((4,), "uint8")])
    with pytest.raises(OrderError, match="node 1"):
        allocate(b.build(), [1, 0])


def test_the_checker_refuses_wrong_layouts():
    layout = allocate_lifetimes(["a", "b", "c"], [0, 1, 4], [3, 5, 6], [8, 8, 8], alignment=8)
    verify_layout(layout)
    for change, message in (
        ({"offsets": np.array([0, 0, 0])}, "overlap while both are alive"),
        ({"offsets": np.array([0, 8, 4])}, "no multiple of the alignment"),
        ({"offsets": np.array([0, 16, 0])}, "outside its arena"),
        ({"offsets": np.array([-8, 0, 8])}, "outside its arena"),
        ({"lower_bound": 24}, "lower bound of 24"),
    ):
        with pytest.raises(PlanError, match=message):
            verify_layout(replace(layout, **change))


@settings(max_examples=200, deadline=None)
@given(lifetimes(min_blocks=2), st.data())
def test_the_checker_finds_every_overlap(blocks, data):
    layout = lay_out(blocks)
    offsets = np.array([data.draw(st.integers(0, 30)) for _ in blocks])
    wrong = any(
        a[0] < b[1] and b[0] < a[1] and a[2] and b[2] and offsets[i] < offsets[j] + b[2] and offsets[j] < offsets[i] + a[2]
        for i, a in enumerate(blocks)
        for j, b in enumerate(blocks[:i])
    )
    moved = replace(layout, offsets=offsets, arena=100)
    if wrong:
        with pytest.raises(PlanError, match="overlap while both are alive"):
            verify_layout(moved)
    else:
        verify_layout(moved)


def test_the_checker_refuses_wrong_plans():
    b = GraphBuilder("pair")
    t = b.tensor((64,), "uint8")
    u = b.tensor((64,), "uint8")
    b.node("first", [], [t], workspace=10)
    b.node("second", [t], [u])
    b.outputs.append(u)
    graph = b.build()
    plan = allocate(graph)
    for change, message in (
        ({"offsets": {0: 0}}, "storage 1 .* has no offset"),
        ({"offsets": {**plan.offsets, 7: 0}}, "storage 7 .* not counted"),
        ({"workspace_offsets": {}}, "node 0 .* has no offset for it"),
        ({"offsets": {0: 0, 1: 0}}, "overlap"),
    ):
        with pytest.raises(PlanError, match=message):
            verify_plan(graph, replace(plan, **change))


def test_best_orders_of_stored_graphs_need_no_more_than_their_peak(shared_dir):
    from neaptide.compiler.graph import Graph

    for name in ("timm_resnet50_fused", "timm_mobilenetv2_100", "unet64_256"):
        graph = Graph.load_json(str(shared_dir / "bench" / "graphs" / f"{name}.json"))
        best = schedule(graph)
        plan = allocate(graph, best)
        assert best.peak <= plan.arena <= 1.01 * best.peak


def test_a_layout_written_is_read_back(tmp_path):
    layout = allocate_lifetimes(["a", "b, c", 'd"'], [0, 1, 4], [3, 5, 6], [8, 8, 8])
    path = tmp_path / "plan.csv"
    write_plan(path, layout)
    table = read_lifetimes(path)
    assert table.ids == layout.ids
    assert table.offset is not None
    assert (table.offset == layout.offsets).all()
    assert (table.lower == layout.lower).all()
