"""The strategies make what they say, and the oracles agree with answers worked out by hand."""

from __future__ import annotations

import ast
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st

from neaptide.compiler.errors import NeaptideError
from neaptide.compiler.graph import GraphBuilder
from neaptide.testing import (
    brute_force_height,
    brute_force_optimum,
    brute_force_peak,
    conv_nets,
    generate,
    graphs,
    lifetimes,
    topological_orders,
)


@settings(max_examples=300, deadline=None)
@given(graphs(min_nodes=2, max_nodes=8), st.data())
def test_graphs_are_well_formed_and_orders_are_orders(graph, data):
    graph.check()
    assert 2 <= len(graph.nodes) <= 8
    order = data.draw(topological_orders(graph))
    assert graph.check_order(order) == order


@settings(max_examples=200, deadline=None)
@given(graphs(views=False, inplace=False, multi_output=False, workspace=False, weights=False))
def test_flags_switch_kinds_off(graph):
    assert not any(graph.is_view(node) or node.writes or node.workspace or len(node.outputs) != 1 for node in graph.nodes)
    assert all(storage.role in ("input", "activation") for storage in graph.storages)


@pytest.mark.parametrize(
    "kind",
    [
        lambda g: any(g.is_view(node) and len(node.outputs) > 1 for node in g.nodes),
        lambda g: any(g.storages[s].role == "input" for node in g.nodes for s in node.writes),
        lambda g: any(len(node.outputs) > 1 and not g.is_view(node) for node in g.nodes),
        lambda g: any(not node.outputs for node in g.nodes),
        lambda g: any(s.nbytes == 0 and s.role == "activation" for s in g.storages),
        lambda g: any(t in g.inputs for t in g.outputs),
        lambda g: any(g.storages[s].role == "parameter" for s in g.pinned),
        lambda g: any(all(t not in node.inputs for node in g.nodes) for t in g.inputs),
        lambda g: any(g.storages[s].name == "rng state" for node in g.nodes for s in node.writes),
        lambda g: any(g.storages[s].role == "optimizer_state" for node in g.nodes for s in node.writes),
        lambda g: any(node.op == "peek" for node in g.nodes),
    ],
)
def test_kinds_of_graphs_occur(kind):
    assert any(kind(generate.random_graph(random.Random(seed).randrange)) for seed in range(500))


def test_failures_shrink_to_few_nodes():
    def prefers_another_order(graph):
        return brute_force_optimum(graph) < brute_force_peak(graph)

    smallest = find(
        graphs(),
        prefers_another_order,
        settings=settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]),
    )
    assert len(smallest.nodes) <= 4
    assert max(s.nbytes for s in smallest.storages) <= 2


def test_bulk_generation_is_reproducible():
    first, second = (generate.random_graph(random.Random(9).randrange, max_nodes=20) for _ in range(2))
    assert first == second


def diamond():
    """Input 5 -> a 10 -> (b 1, c 20 with workspace 3) -> d 2; d is the output, and a weight of 100 bytes stands by."""
    b = GraphBuilder("diamond")
    x = b.tensor((5,), "uint8", role="input")
    w = b.tensor((100,), "uint8", role="parameter")
    sizes = {"a": 10, "b": 1, "c": 20, "d": 2}
    t = {name: b.tensor((n,), "uint8") for name, n in sizes.items()}
    b.node("a", [x, w], [t["a"]])
    b.node("c", [t["a"]], [t["c"]], workspace=3)
    b.node("b", [t["a"]], [t["b"]])
    b.node("d", [t["b"], t["c"]], [t["d"]])
    b.inputs, b.outputs = [x], [t["d"]]
    return b.build()


def test_peaks_worked_out_by_hand():
    graph = diamond()
    assert brute_force_peak(graph) == 10 + 20 + 3
    assert brute_force_peak(graph, [0, 2, 1, 3]) == 10 + 1 + 20 + 3
    assert brute_force_peak(graph, [0, 2, 1, 3], inputs="caller") == 34
    assert brute_force_optimum(graph) == 33
    with pytest.raises(NeaptideError, match="planned"):
        brute_force_peak(graph, inputs="mine")


def test_inputs_live_from_the_start_and_outputs_to_the_end():
    b = GraphBuilder("ends")
    x = b.tensor((7,), "uint8", role="input")
    unused = b.tensor((50,), "uint8", role="input")
    kept = b.tensor((3,), "uint8", role="input")
    y = b.tensor((1,), "uint8")
    z = b.tensor((1,), "uint8")
    b.node("source", [], [y])
    b.node("use", [x, y], [z])
    b.inputs, b.outputs = [x, unused, kept], [kept, z]
    graph = b.build()
    assert brute_force_peak(graph) == 7 + 3 + 1 + 1
    assert brute_force_peak(graph, inputs="caller") == 2
    with pytest.raises(NeaptideError, match="2 nodes are more than max_nodes=1"):
        brute_force_optimum(graph, max_nodes=1)


@settings(max_examples=150, deadline=None)
@given(graphs(max_nodes=6), st.sampled_from(("planned", "caller")))
def test_optimum_is_the_least_peak_over_all_orders(graph, inputs):
    def peaks(order, left):
        if not left:
            yield brute_force_peak(graph, order, inputs=inputs)
        for v in left:
            if not set(graph.dependencies()[v]) & left:
                yield from peaks([*order, v], left - {v})

    assert brute_force_optimum(graph, inputs=inputs) == min(peaks([], frozenset(range(len(graph.nodes)))))


def test_heights_worked_out_by_hand():
    assert brute_force_height([]) == 0
    assert brute_force_height([(0, 2, 3), (2, 4, 5)]) == 5
    assert brute_force_height([(0, 3, 3), (2, 4, 5)]) == 8
    assert brute_force_height([(0, 3, 3), (2, 4, 5)], alignment=4) == 12
    # Load 6 at every moment, but the pieces do not fit together in 6.
    assert brute_force_height([(0, 2, 3), (0, 1, 3), (1, 4, 2), (1, 3, 1), (2, 3, 2), (2, 4, 1), (3, 6, 3), (4, 6, 3)]) == 7


@given(lifetimes(full=True))
def test_full_lifetimes_have_one_load_at_every_moment(blocks):
    end = max((upper for _, upper, _ in blocks), default=0)
    assert len({sum(s for lo, up, s in blocks if lo <= t < up) for t in range(end)}) <= 1


@given(lifetimes(min_blocks=1, max_blocks=5))
def test_height_is_between_load_and_sum(blocks):
    load = max(sum(s for lo, up, s in blocks if lo <= t < up) for t in range(9))
    assert load <= brute_force_height(blocks) <= sum(s for _, _, s in blocks)


@settings(max_examples=60, deadline=None)
@given(conv_nets())
def test_conv_nets_run_and_leave_their_input_alone(pair):
    import torch

    net, args = pair
    before = args[0].clone()
    with torch.no_grad():
        first, second = net(*args), net(*args)
    assert torch.equal(args[0], before)
    for a, b in zip((first,) if torch.is_tensor(first) else first, (second,) if torch.is_tensor(second) else second, strict=True):
        assert torch.equal(a, b)


def test_oracles_need_neither_hypothesis_nor_torch():
    program = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from neaptide.compiler.errors import MissingExtraError\n"
        "from neaptide.testing import brute_force_height\n"
        "assert brute_force_height([(0, 1, 2)]) == 2 and 'torch' not in sys.modules\n"
        "try:\n"
        "    from neaptide.testing import graphs\n"
        "except MissingExtraError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'neaptide[testing]'" in done.stdout


# ---- tests that mean the same on every machine ------------------------------------------------------------------------

CLOCKS = {"perf_counter", "process_time", "thread_time", "monotonic", "time"}


def clock_calls(node: ast.AST, names: set[str] = CLOCKS) -> bool:
    return any(
        isinstance(call, ast.Call) and (getattr(call.func, "attr", None) or getattr(call.func, "id", None)) in names
        for call in ast.walk(node)
    )


def resting_on_time(source: str) -> list[int]:
    """Lines of a test file that measure how long something took, or let time pass in a test and hope that it was enough.

    What is allowed: loops that wait for something, and give up at a deadline.
    """
    tree = ast.parse(source)
    loops = [loop for loop in ast.walk(tree) if isinstance(loop, ast.While)]
    waiting = {id(node) for loop in loops for node in ast.walk(loop)}
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    spans = {
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and clock_calls(node) and id(node) not in waiting
    }
    naps = {
        node.lineno
        for test in tests
        for node in ast.walk(test)
        if isinstance(node, ast.Call) and clock_calls(node, {"sleep"}) and id(node) not in waiting
    }
    return sorted(spans | naps)


def test_no_test_rests_on_the_speed_of_the_machine():
    wrong = "def test_a():\n    begun = time.perf_counter()\n    time.sleep(0.3)\n    work()\n    assert time.perf_counter() - begun < 1\n"
    waits = "def test_b():\n    end = time.monotonic() + 60\n    while not there():\n"
    waits += "        assert time.monotonic() < end\n        time.sleep(0.1)\n"
    assert resting_on_time(wrong) == [3, 5] and resting_on_time(waits) == []
    found = {path.name: resting_on_time(path.read_text(encoding="utf-8")) for path in sorted(Path(__file__).parent.glob("*.py"))}
    assert {name: lines for name, lines in found.items() if lines} == {}
