"""Live ranges: hand-made corner cases, the naive interpreter, and the framework's own releases."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neaptide.compiler.errors import GraphError, NeaptideError, OrderError
from neaptide.compiler.graph import Graph, GraphBuilder
from neaptide.passes.liveness import Inputs, eager_liveness, liveness
from neaptide.testing import brute_force_peak, graphs, topological_orders


def ranges(graph: Graph, order=None, inputs: Inputs = "planned") -> dict[int, tuple[int, int]]:
    """Half-open range per counted storage."""
    life = liveness(graph, order, inputs=inputs)
    return {s: (int(b), int(d)) for s, (b, d) in enumerate(zip(life.birth, life.death, strict=True)) if b >= 0}


def fresh(b: GraphBuilder, op: str, inputs, nbytes: int, **fields) -> int:
    out = b.tensor((nbytes,), "uint8")
    b.node(op, inputs, (out,), **fields)
    return out


def chain_with_inputs() -> Graph:
    """x -> a -> b -> c (output); y is used by b only; z is used by nothing."""
    b = GraphBuilder("chain")
    x, y, z = (b.tensor((n,), "uint8", role="input") for n in (10, 20, 40))
    b.inputs += [x, y, z]
    first = fresh(b, "a", (x,), 100)
    second = fresh(b, "b", (first, y), 200)
    b.outputs.append(fresh(b, "c", (second,), 300))
    return b.build()


def test_planned_inputs_live_from_the_start_to_their_last_use():
    graph = chain_with_inputs()
    assert ranges(graph) == {0: (0, 1), 1: (0, 2), 3: (0, 2), 4: (1, 3), 5: (2, 3)}
    assert liveness(graph).live.tolist() == [130, 320, 500]


def test_inputs_of_the_caller_are_not_counted():
    graph = chain_with_inputs()
    assert ranges(graph, inputs="caller") == {3: (0, 2), 4: (1, 3), 5: (2, 3)}
    assert liveness(graph, inputs="caller").live.tolist() == [100, 300, 500]


def test_an_input_that_is_an_output_lives_to_the_end():
    b = GraphBuilder("through")
    x = b.tensor((10,), "uint8", role="input")
    b.inputs.append(x)
    out = fresh(b, "a", (x,), 1)
    fresh(b, "b", (out,), 1)
    b.outputs += [x, out]
    assert ranges(b.build()) == {0: (0, 2), 1: (0, 2), 2: (1, 2)}


def test_views_keep_their_storage_alive_and_dead_results_live_one_step():
    b = GraphBuilder("views")
    x = b.tensor((8,), "uint8", role="input")
    b.inputs.append(x)
    base = fresh(b, "a", (x,), 64)
    window = b.tensor((32,), "uint8", b.tensors[base].storage, offset=32)
    b.node("slice", (base,), (window,))
    used, unused = b.tensor((5,), "uint8"), b.tensor((7,), "uint8")
    b.node("split", (x,), (used, unused))
    b.outputs.append(fresh(b, "add", (window, used), 3))
    assert ranges(b.build()) == {0: (0, 3), 1: (0, 4), 2: (2, 4), 3: (2, 3), 4: (3, 4)}


def test_in_place_results_extend_the_storage_they_write():
    b = GraphBuilder("in place")
    x = b.tensor((8,), "uint8", role="input")
    b.inputs.append(x)
    y = fresh(b, "a", (x,), 64)
    storage = b.tensors[y].storage
    written = b.tensor((64,), "uint8", storage)
    b.node("relu_", (y,), (written,), writes=(storage,))
    b.node("fill_", (), (), writes=(storage,))
    b.outputs.append(fresh(b, "sum", (written,), 1))
    assert ranges(b.build())[storage] == (0, 4)


def test_weights_and_carried_state_are_never_counted_and_gradients_born_inside_are():
    b = GraphBuilder("training")
    weight = b.tensor((100,), "uint8", role="parameter")
    momentum = b.tensor((100,), "uint8", role="optimizer_state")
    gradient = b.tensor((100,), "uint8", role="gradient")
    b.node("grad", (weight,), (gradient,), phase="backward")
    updated = b.tensor((100,), "uint8", b.tensors[momentum].storage)
    b.node("mul_", (momentum,), (updated,), writes=(b.tensors[momentum].storage,), phase="optimizer")
    b.node("sgd_", (weight, gradient, updated), (), writes=(b.tensors[weight].storage,), phase="optimizer")
    b.outputs.append(weight)
    graph = b.build()
    assert ranges(graph) == {2: (0, 3)}
    assert liveness(graph).by_role(0) == {"gradient": 100}


def test_workspace_counts_while_its_node_runs():
    b = GraphBuilder("workspace")
    first = fresh(b, "a", (), 10, workspace=1000)
    b.outputs.append(fresh(b, "b", (first,), 20, workspace=5))
    life = liveness(b.build())
    assert life.live.tolist() == [1010, 35]
    assert (life.peak, life.peak_step) == (1010, 0)


def test_who_is_alive_at_a_step():
    b = GraphBuilder("modules")
    x = b.tensor((10,), "uint8", role="input")
    b.inputs.append(x)
    first = fresh(b, "a", (x,), 100, scope="stem")
    second = fresh(b, "b", (first,), 50, scope="head")
    b.outputs.append(fresh(b, "c", (first, second, x), 1, scope="head", workspace=7))
    life = liveness(b.build())
    assert life.alive_at(2) == (0, 1, 2, 3)
    assert life.by_role(2) == {"input": 10, "activation": 151, "workspace": 7}
    assert list(life.by_module(2).items()) == [("stem", 100), ("head", 58), ("", 10)]
    with pytest.raises(NeaptideError, match="step 3 is outside graph 'modules'"):
        life.alive_at(3)


def test_an_empty_graph_has_no_peak():
    b = GraphBuilder("empty")
    b.inputs.append(b.tensor((10,), "uint8", role="input"))
    b.outputs += b.inputs
    life = liveness(b.build())
    assert (life.peak, life.peak_step, life.live.tolist()) == (0, -1, [])


def test_a_wrong_order_is_refused_by_name():
    graph = chain_with_inputs()
    with pytest.raises(OrderError, match=r"node 1 \(b\) runs before node 0 \(a\)"):
        liveness(graph, [1, 0, 2])
    with pytest.raises(NeaptideError, match="inputs='resident'"):
        liveness(graph, inputs="resident")  # pyright: ignore[reportArgumentType]


@given(graphs(), st.data())
def test_peak_is_what_a_naive_interpreter_sees(graph, data):
    order = data.draw(topological_orders(graph))
    for inputs in ("planned", "caller"):
        assert liveness(graph, order, inputs=inputs).peak == brute_force_peak(graph, order, inputs=inputs)


@given(graphs(), st.data())
def test_every_step_is_accounted_for(graph, data):
    life = liveness(graph, data.draw(topological_orders(graph)))
    for step, live in enumerate(life.live.tolist()):
        assert sum(life.by_role(step).values()) == live
        assert sum(life.by_module(step).values()) == live
        running = graph.nodes[life.order[step]]
        assert sum(graph.storages[s].nbytes for s in life.alive_at(step)) + running.workspace == live


@given(graphs(min_nodes=1))
def test_eager_lifetimes_equal_planned_ones_when_nothing_is_held(graph):
    life = liveness(graph, inputs="caller")
    last_use = tuple(int(d) - 1 for d in life.death)
    released = tuple(None if s in graph.pinned or k < 0 else k for s, k in enumerate(last_use))
    eager = eager_liveness(replace(graph, released=released))
    assert eager.live.tolist() == life.live.tolist()
    held = eager_liveness(replace(graph, released=(None,) * len(graph.storages)))
    assert (held.live >= life.live).all()


def test_a_held_reference_keeps_bytes_alive():
    graph = replace(chain_with_inputs(), released=(None, None, None, 1, 1, None))
    life = eager_liveness(graph)
    assert life.birth.tolist() == [-1, -1, -1, 0, 1, 2]
    assert life.death.tolist() == [-1, -1, -1, 2, 2, 3]
    held = replace(graph, released=(None, None, None, None, 2, None))
    assert eager_liveness(held).live.tolist() == [100, 300, 600]
    assert eager_liveness(held, inputs="planned").live.tolist() == [170, 370, 670]
    with pytest.raises(GraphError, match="no record of when the framework released"):
        eager_liveness(replace(graph, released=()))
