"""Orders: against brute force, against published optima, and every part of the proof on its own."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neaptide.compiler.errors import GraphError, NeaptideError, OrderError
from neaptide.compiler.graph import Graph, GraphBuilder
from neaptide.passes import exact
from neaptide.passes.allocate import allocate, allocate_lifetimes
from neaptide.passes.beam import beam_search
from neaptide.passes.bounds import cut_bound, lower_bound
from neaptide.passes.decompose import segments
from neaptide.passes.exact import Search, blocks_of, sweep_cuts
from neaptide.passes.heuristics import PORTFOLIO
from neaptide.passes.liveness import liveness
from neaptide.passes.problem import OrderingProblem, ordering_problem
from neaptide.passes.schedule import SEARCH_CHUNK, late_weightless, schedule
from neaptide.passes.verify import verify_graph, verify_order, verify_schedule
from neaptide.testing import StepClock, brute_force_optimum, brute_force_peak, graphs, topological_orders
from neaptide.testing.generate import random_graph, random_order

modes = st.sampled_from(("planned", "caller"))


def fresh(b: GraphBuilder, op: str, inputs, nbytes: int) -> int:
    out = b.tensor((nbytes,), "uint8")
    b.node(op, inputs, (out,))
    return out


def fork() -> Graph:
    """Two branches that widen and narrow; traced in turns, best one after the other."""
    b = GraphBuilder("fork")
    x = b.tensor((30,), "uint8", role="input")
    b.inputs.append(x)
    wide = [fresh(b, "widen", (x,), 100) for _ in range(2)]
    narrow = [fresh(b, "narrow", (w,), 10) for w in wide]
    b.outputs.append(fresh(b, "join", narrow, 1))
    return b.build()


def hard_graph(nodes: int = 400) -> Graph:
    """Too large and too tangled to be solved in a second, at its full size."""
    rng = random.Random(5)
    b = GraphBuilder("hard")
    values = [b.tensor((64,), "uint8", role="input")]
    b.inputs += values
    for _ in range(nodes):
        values.append(fresh(b, "op", rng.sample(values[-60:], min(len(values), 2)), rng.randrange(50, 60)))
    b.outputs.append(fresh(b, "end", values[-20:], 1))
    return b.build()


# ---- the whole ------------------------------------------------------------------------------------------------


@settings(max_examples=600, deadline=None)
@given(graphs(max_nodes=11), modes)
def test_schedule_is_the_optimum_over_all_orders(graph, inputs):
    result = schedule(graph, inputs=inputs, clock=StepClock(1e-3))
    assert result.optimal
    assert result.peak == result.lower_bound == brute_force_optimum(graph, inputs=inputs)
    assert brute_force_peak(graph, result.order, inputs=inputs) == result.peak


def test_schedule_finds_the_better_order():
    graph = fork()
    assert liveness(graph).peak == 230
    result = schedule(graph)
    assert result.peak == 140
    assert result.optimal
    assert result == replace(schedule(graph), seconds=result.seconds)


def test_traced_order_is_kept_when_it_is_optimal():
    graph = fork()
    better = [graph.nodes[v] for v in (0, 2, 1, 3, 4)]
    reordered = graph.with_nodes([replace(node, id=i) for i, node in enumerate(better)]).check()
    result = schedule(reordered)
    assert result.order == (0, 1, 2, 3, 4)
    assert result.method.startswith("traced;")


def test_empty_graphs_and_unused_inputs_need_nothing():
    b = GraphBuilder("empty")
    b.inputs.append(b.tensor((10,), "uint8", role="input"))
    result = schedule(b.build())
    assert (result.order, result.peak, result.optimal) == ((), 0, True)


def test_inputs_count_at_the_start_even_where_they_are_not_the_bottleneck():
    """A large input read by a node that leaves nothing behind: no order avoids holding it before the first step."""
    b = GraphBuilder("large input")
    large, x = (b.tensor((n,), "uint8", role="input") for n in (200, 3))
    b.inputs += [large, x]
    wide = [fresh(b, "widen", (x,), 10) for _ in range(2)]
    narrow = [fresh(b, "narrow", (w,), 1) for w in wide]
    b.outputs.append(fresh(b, "join", narrow, 1))
    b.node("check", (large,))
    result = schedule(b.build())
    assert (result.peak, result.optimal) == (203, True)


def test_a_hard_graph_ends_in_time_with_an_honest_gap():
    clock = StepClock(0.01)
    result = schedule(hard_graph(), time_limit=0.6, clock=clock)
    assert 60 <= clock.looks <= 62
    assert not result.optimal
    assert 0 < result.lower_bound < result.peak <= liveness(hard_graph()).peak


def test_a_search_looks_at_its_clock_between_small_pieces_of_work(monkeypatch):
    """A limit ends a search soon after it is spent: no piece between two looks is larger than a chunk and one cut's worth."""
    events: list[int] = []
    advance = Search.advance

    def counted(search: Search, chunk: int) -> bool | None:
        before = search.effort
        answer = advance(search, chunk)
        events.append(search.effort - before)
        return answer

    def clock() -> float:
        events.append(0)
        return 1e-3 * events.count(0)

    monkeypatch.setattr(Search, "advance", counted)
    schedule(hard_graph(200), time_limit=0.5, clock=clock)
    pieces = [sum(work) for look, work in itertools.groupby(events, key=bool) if look]
    assert len(pieces) > 10 and max(pieces) <= 20 * SEARCH_CHUNK
    assert events[-1] == 0, "work was begun when time was up"


def test_a_busy_machine_finds_what_an_idle_one_does(monkeypatch):
    """The limit is processor time, which a thread that waits for its turn does not spend; hours of waiting change nothing."""
    graph = hard_graph()
    idle = schedule(graph, time_limit=0.6, clock=StepClock(0.01))
    proved = schedule(hard_graph(60), clock=StepClock(0.01))
    hours = itertools.count(0.0, 3600.0)
    for name in ("time.perf_counter", "time.monotonic", "time.time", "neaptide.passes.schedule.wall_clock"):
        monkeypatch.setattr(name, lambda: next(hours))
    busy = schedule(graph, time_limit=0.6, clock=StepClock(0.01))
    assert replace(busy, seconds=0.0) == replace(idle, seconds=0.0) and busy.seconds >= 3600.0
    assert idle.peak < liveness(graph).peak and idle.method != schedule(graph, time_limit=0.0).method
    by_default = schedule(hard_graph(60), time_limit=3600)
    assert replace(by_default, seconds=0.0) == replace(proved, seconds=0.0) and proved.optimal
    for limited in (schedule, allocate, allocate_lifetimes):
        assert signature(limited).parameters["clock"].default is time.thread_time


def test_inputs_mode_is_checked():
    with pytest.raises(NeaptideError, match="inputs='owned'"):
        schedule(fork(), inputs="owned")  # pyright: ignore[reportArgumentType]


def test_ctrl_c_stops_a_search():
    """A search that would take ten minutes is interrupted; the signal must get through while kernels run."""
    script = (
        "import signal, sys, test_schedule\n"
        "from neaptide.passes.exact import compile_kernels\n"
        "compile_kernels()\n"
        "signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
        "signal.setitimer(signal.ITIMER_REAL, 1.0)\n"
        "try:\n"
        "    test_schedule.schedule(test_schedule.hard_graph(), time_limit=600)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(42)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, timeout=300, check=False).returncode == 42


def test_graphs_that_are_optimal_as_traced_never_import_numba(shared_dir):
    script = (
        "import sys\n"
        "from neaptide.compiler.graph import Graph\n"
        "from neaptide.passes.schedule import schedule\n"
        "result = schedule(Graph.load_json(sys.argv[1]))\n"
        "assert result.optimal and result.method.startswith('traced'), result\n"
        "assert 'numba' not in sys.modules and 'torch' not in sys.modules\n"
    )
    for name in ("timm_resnet50", "timm_hrnet_w18", "timm_densenet121", "timm_vit_tiny_patch16_224"):
        path = shared_dir / "bench" / "graphs" / f"{name}.json"
        subprocess.run([sys.executable, "-c", script, str(path)], check=True)


def test_public_graphs_reach_their_published_optima(shared_dir):
    folder = shared_dir / "bench" / "graphs"
    optimum = json.loads((folder / "optimum.json").read_text())
    for path in sorted(folder.glob("*.json")):
        if path.stem == "optimum":
            continue
        result = schedule(Graph.load_json(str(path)), clock=StepClock(1e-3))
        assert result.optimal, path.stem
        assert result.peak == optimum.get(path.stem, result.peak), path.stem


# ---- the parts ------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(graphs(max_nodes=10), modes, st.data())
def test_merging_blocks_keeps_orders_and_peaks(graph, inputs, data):
    problem = ordering_problem(graph, inputs)
    order = list(random_order_of_blocks(problem, random.Random(data.draw(st.integers(0, 999)))))
    expanded = problem.expand(order)
    assert graph.check_order(expanded) == expanded
    assert problem.peak(problem.needs(order)) == liveness(graph, expanded, inputs=inputs).peak


def random_order_of_blocks(problem: OrderingProblem, rng: random.Random):
    """A random topological order of blocks."""
    missing = [len(p) for p in problem.preds]
    ready = [v for v, m in enumerate(missing) if not m]
    while ready:
        v = ready.pop(rng.randrange(len(ready)))
        yield v
        for w in problem.succs[v]:
            missing[w] -= 1
            if not missing[w]:
                ready.append(w)


@settings(max_examples=200, deadline=None)
@given(graphs(max_nodes=12), modes, st.integers(0, 999))
def test_orders_of_segments_make_orders_of_the_whole(graph, inputs, seed):
    problem = ordering_problem(graph, inputs)
    parts = segments(problem)
    rng = random.Random(seed)
    orders = [list(random_order_of_blocks(part, rng)) for part in parts]
    whole = [v for part, order in zip(parts, orders, strict=True) for v in part.expand(order)]
    graph.check_order(problem.expand(whole))
    apart = {}
    for part, order in zip(parts, orders, strict=True):
        apart.update({v: need for (v,), need in zip(part.members, part.needs(order), strict=True)})
    assert [apart[v] for v in range(len(problem))] == problem.needs(whole)


@settings(max_examples=200, deadline=None)
@given(graphs(max_nodes=11), modes)
def test_heuristics_give_orders_and_cuts_stay_below_them(graph, inputs):
    problem = ordering_problem(graph, inputs)
    least = problem.needs(range(len(problem)))
    for heuristic in PORTFOLIO.values():
        order = heuristic(problem)
        graph.check_order(problem.expand(order))
        least = [min(a, b) for a, b in zip(least, problem.needs(order), strict=True)]
    for v, need in enumerate(least):
        assert cut_bound(problem, v)[0] <= need
    optimum = brute_force_optimum(graph, inputs=inputs)
    assert lower_bound(problem, least, 1 << 60, work=1 << 30)[0] <= max(optimum, problem.floor)


@settings(max_examples=200, deadline=None)
@given(graphs(max_nodes=10), modes, st.integers(1, 4))
def test_beams_give_orders_below_what_is_known(graph, inputs, width):
    problem = ordering_problem(graph, inputs)
    optimum = brute_force_optimum(graph, inputs=inputs)
    wide = _last(beam_search(problem, 1 << 10, 0, optimum + 1))
    assert wide is not None
    assert problem.peak(problem.needs(wide)) == optimum
    if len(problem):
        assert _last(beam_search(problem, width, 0, max(problem.extra))) is None
    narrow = _last(beam_search(problem, width, 0, 1 << 40))
    assert narrow is not None
    graph.check_order(problem.expand(narrow))


def _last(generator):
    """What a generator returns."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


@settings(max_examples=200, deadline=None)
@given(graphs(max_nodes=14), modes)
def test_kernel_cuts_equal_python_cuts(graph, inputs):
    problem = ordering_problem(graph, inputs)
    needs = np.full(len(problem), 1 << 40)
    candidates = np.arange(len(problem))
    bound, at = sweep_cuts(blocks_of(problem), candidates, 0, needs, 0, 1 << 50, 1 << 30)
    cuts = [cut_bound(problem, v)[0] for v in range(len(problem))]
    assert needs.tolist() == cuts
    assert (bound, at) == (max(cuts, default=0), len(problem))


@settings(max_examples=300, deadline=None)
@given(graphs(max_nodes=10), modes)
def test_search_alone_finds_the_optimum_from_below(graph, inputs):
    problem = ordering_problem(graph, inputs)
    arrays = blocks_of(problem)
    budget = 0
    search = Search(problem, arrays, budget)
    while not search.advance(1 << 20):
        assert search.next_budget > budget
        budget = search.next_budget
        search = Search(problem, arrays, budget)
    order = search.order
    assert problem.peak(problem.needs(order)) == max(budget, problem.floor) == brute_force_optimum(graph, inputs=inputs)


def test_a_search_in_small_chunks_gives_the_same_answer():
    rng = random.Random(11)
    for _ in range(20):
        graph = random_graph(rng.randrange, min_nodes=25, max_nodes=30)
        problem = ordering_problem(graph)
        arrays = blocks_of(problem)
        budget = problem.peak(problem.needs(range(len(problem)))) - 1
        whole, parts = Search(problem, arrays, budget), Search(problem, arrays, budget)
        assert whole.advance(1 << 30) is _run_in_chunks(parts)
        assert (parts.states, parts.next_budget) == (whole.states, whole.next_budget)
        assert parts.order == whole.order


def test_a_search_that_may_remember_no_more_gives_the_same_answer(monkeypatch):
    problem = ordering_problem(hard_graph(60))
    budget = problem.peak(problem.needs(range(len(problem)))) * 7 // 10
    free = Search(problem, blocks_of(problem), budget)
    answer = free.advance(1 << 30)
    assert free.states > 4096, "the table never filled"
    monkeypatch.setattr(exact, "TABLE_LIMIT", 1 << 12)
    frozen = Search(problem, blocks_of(problem), budget)
    assert _run_in_chunks(frozen, 10_000) is answer
    assert frozen.next_budget == free.next_budget


def _run_in_chunks(search: Search, chunk: int = 3) -> bool:
    while (answer := search.advance(chunk)) is None:
        pass
    return answer


# ---- the checkers ---------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(graphs(min_nodes=2, max_nodes=10), st.data())
def test_checkers_agree_on_swapped_orders(graph, data):
    verify_graph(graph)
    order = list(data.draw(topological_orders(graph)))
    verify_order(graph, order)
    i = data.draw(st.integers(0, len(order) - 2))
    order[i], order[i + 1] = order[i + 1], order[i]
    try:
        graph.check_order(order)
    except OrderError:
        with pytest.raises(OrderError):
            verify_order(graph, order)
    else:
        verify_order(graph, order)


def test_verify_order_names_what_went_wrong():
    b = GraphBuilder("hazards")
    x = b.tensor((8,), "uint8", role="input")
    b.inputs.append(x)
    y = fresh(b, "a", (x,), 8)
    b.outputs.append(fresh(b, "read", (y,), 8))
    out = b.tensor((8,), "uint8", b.tensors[y].storage)
    b.node("relu_", (y,), (out,), writes=(b.tensors[y].storage,))
    graph = b.build()
    verify_order(graph, (0, 1, 2))
    with pytest.raises(OrderError, match=r"node 1 \(read\) .* sees other bytes than as traced"):
        verify_order(graph, (0, 2, 1))
    with pytest.raises(OrderError, match="before its input tensor 1 is defined"):
        verify_order(graph, (1, 0, 2))
    with pytest.raises(OrderError, match="exactly once"):
        verify_order(graph, (0, 1))


def test_verify_schedule_refuses_false_claims():
    graph = fork()
    result = schedule(graph)
    verify_schedule(graph, result)
    with pytest.raises(OrderError, match="says a peak of 139 bytes; its order needs 140"):
        verify_schedule(graph, replace(result, peak=139))
    with pytest.raises(OrderError, match="lower bound 141"):
        verify_schedule(graph, replace(result, lower_bound=141, optimal=False))
    with pytest.raises(OrderError, match="optimal=True"):
        verify_schedule(graph, replace(result, lower_bound=139))
    with pytest.raises(OrderError, match="its order needs 120"):
        verify_schedule(graph, replace(result, inputs="caller"))


def test_verify_graph_names_what_went_wrong():
    graph = fork()
    swapped = [replace(graph.nodes[v], id=i) for i, v in enumerate((2, 0, 1, 3, 4))]
    with pytest.raises(GraphError, match=r"node 0 \(narrow\) .* reads tensor 1, which nothing has defined"):
        verify_graph(graph.with_nodes(swapped))


def test_verified_orders_compute_the_same_bytes():
    """Random orders of random graphs pass, orders with a broken dependency fail, in bulk."""
    rng = random.Random(3)
    refused = 0
    for _ in range(300):
        graph = random_graph(rng.randrange, min_nodes=4, max_nodes=12)
        verify_order(graph, random_order(rng.randrange, graph))
        order = list(range(len(graph.nodes)))
        rng.shuffle(order)
        try:
            verify_order(graph, order)
        except OrderError:
            refused += 1
        else:
            graph.check_order(order)
    assert refused > 100


@given(graphs(max_nodes=11), modes, st.data())
def test_weightless_nodes_wait_at_no_cost(graph, mode, data):
    order = data.draw(topological_orders(graph))
    later = late_weightless(graph, order, mode)
    verify_order(graph, later)
    assert liveness(graph, later, inputs=mode).peak == liveness(graph, order, inputs=mode).peak


def test_weightless_nodes_run_where_they_are_needed():
    b = GraphBuilder("weightless")
    x = b.tensor((4,), "float32", role="input")
    b.inputs.append(x)
    empties = []
    y = x
    for _ in range(3):
        empty = b.tensor((0,), "float32")
        empties.append(b.node("empty", (), (empty,)))
        z = b.tensor((4,), "float32")
        b.node("op", (y,), (z,))
        y = z
    b.outputs.append(y)
    graph = b.build()
    hoisted = (*empties, *(n.id for n in graph.nodes if n.op == "op"))
    assert late_weightless(graph, hoisted) == tuple(range(6))
