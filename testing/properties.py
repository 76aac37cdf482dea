"""What Neaptide's passes claim about any graph, each claim as a function that a counterexample makes raise `AssertionError`.

Each takes a graph and a source of choices (`generate`). The test suite runs them on graphs that Hypothesis shrinks, `make fuzz`
on a hundred thousand; another implementation of a pass is held to the same claims by copying one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..compiler.graph import Graph
from ..passes.allocate import allocate, allocate_lifetimes
from ..passes.inplace import inplace
from ..passes.liveness import liveness
from ..passes.schedule import schedule
from ..passes.verify import verify_graph, verify_order, verify_schedule
from ..passes.verify_plan import verify_layout, verify_plan
from .generate import Choose, full_lifetimes, random_order
from .oracles import brute_force_height, brute_force_optimum, brute_force_peak

INPUTS = ("planned", "caller")
ALIGNMENTS = (1, 4, 64)
FEW_BLOCKS = 7
TIME_LIMIT = 60.0


def json_gives_the_graph_back(graph: Graph, choose: Choose) -> None:
    """The graph is well formed, and equal after a round trip through JSON."""
    verify_graph(graph)
    assert Graph.from_json(graph.to_json()) == graph


def liveness_is_what_an_interpreter_sees(graph: Graph, choose: Choose) -> None:
    """In a random order, the profile's peak is that of the naive interpreter, however inputs are counted."""
    order = random_order(choose, graph)
    verify_order(graph, order)
    for inputs in INPUTS:
        peak, expected = liveness(graph, order, inputs=inputs).peak, brute_force_peak(graph, order, inputs=inputs)
        assert peak == expected, f"liveness says {peak} in order {order} with inputs {inputs}, the interpreter {expected}"


def schedules_are_optimal(graph: Graph, choose: Choose) -> None:
    """The order found is a topological order, its peak is the least of all orders, and it is proved to be."""
    inputs = INPUTS[choose(2)]
    found = schedule(graph, inputs=inputs, time_limit=TIME_LIMIT)
    verify_schedule(graph, found)
    optimum = brute_force_optimum(graph, inputs=inputs)
    assert found.peak == optimum, f"schedule needs {found.peak} with inputs {inputs} ({found.method}), the optimum is {optimum}"
    assert found.optimal, f"schedule stops at bound {found.lower_bound} and peak {found.peak} with inputs {inputs} ({found.method})"


def plans_hold_the_peak(graph: Graph, choose: Choose) -> None:
    """Lower bound <= peak <= arena, no two live blocks share a byte, and on few blocks no arena is smaller."""
    inputs, alignment = INPUTS[choose(2)], ALIGNMENTS[choose(3)]
    order = random_order(choose, graph)
    plan = allocate(graph, order, inputs=inputs, alignment=alignment, time_limit=TIME_LIMIT)
    verify_plan(graph, plan)
    ranges = liveness(graph, order, inputs=inputs)
    assert ranges.peak <= plan.lower_bound <= plan.arena, f"peak {ranges.peak}, bound {plan.lower_bound}, arena {plan.arena}"
    blocks = [(int(ranges.birth[s]), int(ranges.death[s]), graph.storages[s].nbytes) for s in plan.offsets if graph.storages[s].nbytes]
    blocks += [(step, step + 1, graph.nodes[v].workspace) for step, v in enumerate(order) if graph.nodes[v].workspace]
    if len(blocks) <= FEW_BLOCKS:
        least = brute_force_height(blocks, alignment=alignment)
        assert plan.arena == least, f"arena {plan.arena} at alignment {alignment} ({plan.method}), the least is {least}"


def full_layouts_are_optimal(graph: Graph, choose: Choose) -> None:
    """Blocks that fill their load at every moment, drawn apart from `graph`, get the least height, or are refuted below it."""
    blocks = full_lifetimes(choose, max_blocks=FEW_BLOCKS + 1)
    columns = np.array(blocks, np.int64).reshape(-1, 3).T
    layout = allocate_lifetimes(range(len(blocks)), *columns, time_limit=TIME_LIMIT)
    verify_layout(layout)
    least = brute_force_height(blocks)
    assert layout.arena == least, f"layout of {blocks} has height {layout.arena} ({layout.method}), the least is {least}"
    assert layout.optimal, f"layout of {blocks} stops at bound {layout.lower_bound} and height {layout.arena}"


def reuse_in_place_never_costs(graph: Graph, choose: Choose) -> None:
    """The rewritten graph is well formed, keeps every order, and needs no more in it."""
    reused = inplace(graph)
    order = random_order(choose, graph)
    verify_graph(reused)
    verify_order(reused, order)
    for inputs in INPUTS:
        before, after = (brute_force_peak(g, order, inputs=inputs) for g in (graph, reused))
        assert after <= before, f"in place the peak is {after} in order {order} with inputs {inputs}, before it was {before}"


PROPERTIES: tuple[Callable[[Graph, Choose], None], ...] = (
    json_gives_the_graph_back,
    liveness_is_what_an_interpreter_sees,
    schedules_are_optimal,
    plans_hold_the_peak,
    full_layouts_are_optimal,
    reuse_in_place_never_costs,
)
"""Every claim, cheapest first."""
