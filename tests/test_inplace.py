"""In-place reuse: what is merged and what is not, by hand; values and peaks in any order; real nets in their arenas."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neaptide.compiler.graph import Graph, GraphBuilder, Ref
from neaptide.compiler.trace import trace
from neaptide.passes.allocate import allocate
from neaptide.passes.execute import execute_in_arena
from neaptide.passes.inplace import inplace
from neaptide.passes.liveness import liveness
from neaptide.passes.schedule import schedule
from neaptide.testing import brute_force_optimum, brute_force_peak, conv_nets, generate, graphs, topological_orders

UNARY = {"args": [Ref(0)], "kwargs": {}}
BINARY = {"args": [Ref(0), Ref(1)], "kwargs": {}}


class Net:
    """A builder of small float32 graphs: every value has shape (4,) unless told."""

    def __init__(self):
        self.b = GraphBuilder("net")

    def input(self) -> int:
        self.b.inputs.append(self.b.tensor((4,), "float32", role="input"))
        return self.b.inputs[-1]

    def op(self, op: str, *inputs: int, **options) -> int:
        out = self.b.tensor(options.pop("shape", (4,)), options.pop("dtype", "float32"), strides=options.pop("strides", None))
        attrs = {"args": [Ref(i) for i in range(len(inputs))], "kwargs": {}} if op.startswith("aten") else {}
        self.b.node(op, inputs, [out], attrs=attrs, **options)
        return out

    def relu(self, x: int, **options) -> int:
        return self.op("aten.relu.default", x, **options)

    def view(self, x: int, *, shape=(4,), offset=0) -> int:
        out = self.b.tensor(shape, "float32", self.b.tensors[x].storage, offset=offset)
        self.b.node("aten.alias.default", [x], [out], attrs=UNARY)
        return out

    def graph(self, *outputs: int) -> Graph:
        self.b.outputs = list(outputs)
        return self.b.build()


def writes(graph: Graph) -> list[bool]:
    return [bool(node.writes) for node in graph.nodes]


def test_a_chain_lives_in_one_storage():
    net = Net()
    t = net.op("source")
    for op in ("aten.relu.default", "aten.sigmoid.default", "aten.neg.default"):
        t = net.op(op, t)
    result = inplace(net.graph(t))
    assert [node.op for node in result.nodes] == ["source", "aten.relu_.default", "aten.sigmoid_.default", "aten.neg_.default"]
    assert len(result.storages) == 1
    assert liveness(result).peak == 16


def test_the_callers_bytes_are_never_written():
    net = Net()
    graph = net.graph(net.relu(net.input()))
    assert inplace(graph) is graph


def test_what_is_read_later_or_returned_stays():
    net = Net()
    x = net.op("source")
    y = net.relu(x)
    z = net.op("aten.add.Tensor", y, x)
    result = inplace(net.graph(z, y))
    assert writes(result) == [False, False, True]
    assert [node.op for node in result.nodes][-1] == "aten.add.Tensor", "the second operand is reused; the op keeps its name"
    assert result.tensors[z].storage == result.tensors[x].storage


def test_a_reader_that_may_run_later_forbids_reuse():
    net = Net()
    x = net.op("source")
    other = net.op("reader", x)
    y = net.relu(x)
    assert writes(inplace(net.graph(other, y))) == [False, False, False]


def test_a_reader_that_must_run_earlier_does_not():
    net = Net()
    x = net.op("source")
    other = net.op("reader", x)
    z = net.op("aten.mul.Tensor", x, other)
    result = inplace(net.graph(z))
    assert writes(result) == [False, False, True]
    assert result.nodes[2].op == "aten.mul_.Tensor"


def test_views_are_touches_too():
    net = Net()
    x = net.op("source")
    window = net.view(x, shape=(2,), offset=8)
    y = net.relu(x)
    assert not any(writes(inplace(net.graph(y, net.op("reader", window)))))
    net = Net()
    x = net.op("source")
    y = net.relu(net.view(x))
    assert writes(inplace(net.graph(y))) == [False, False, True]


def test_an_operand_must_lie_just_as_the_result():
    for options in ({"shape": (2, 2)}, {"dtype": "int32"}, {"dtype": "float64"}):
        net = Net()
        net.relu(net.op("source"), **options)
        assert not any(writes(inplace(net.graph())))
    net = Net()
    x = net.op("source", shape=(2, 2), strides=(1, 2))
    y = net.relu(x, shape=(2, 2), strides=(1, 2))
    net.relu(y, shape=(2, 2))
    assert writes(inplace(net.graph())) == [False, True, False]


def test_a_window_on_more_bytes_is_not_reused():
    net = Net()
    x = net.op("source", shape=(8,))
    y = net.relu(net.view(x, offset=16))
    assert not any(writes(inplace(net.graph(y))))


def test_an_operand_read_through_another_window_at_once_is_not_reused():
    net = Net()
    x = net.op("source", shape=(2, 2))
    flipped = net.b.tensor((2, 2), "float32", net.b.tensors[x].storage, strides=(1, 2))
    net.b.node("aten.t.default", [x], [flipped], attrs=UNARY)
    y = net.op("aten.add.Tensor", x, flipped, shape=(2, 2))
    assert not any(writes(inplace(net.graph(y))))
    net = Net()
    x = net.op("source")
    y = net.op("aten.add.Tensor", x, x)
    assert writes(inplace(net.graph(y))) == [False, True]


def test_results_that_are_outputs_may_take_over_storage():
    net = Net()
    x = net.op("source")
    y = net.relu(x)
    z = net.relu(y)
    result = inplace(net.graph(y, z))
    assert writes(result) == [False, True, False]
    assert result.pinned == {result.tensors[y].storage, result.tensors[z].storage}


def test_onnx_ops_keep_their_name():
    net = Net()
    t = net.op("onnx.Relu", net.op("source"))
    t = net.op("onnx.Softmax", t)
    result = inplace(net.graph(t))
    assert [node.op for node in result.nodes] == ["source", "onnx.Relu", "onnx.Softmax"]
    assert writes(result) == [False, True, False]


@settings(max_examples=400, deadline=None)
@given(graphs(max_nodes=10), st.sampled_from(("planned", "caller")), st.data())
def test_no_order_is_lost_and_no_peak_rises(graph, inputs, data):
    result = inplace(graph)
    order = data.draw(topological_orders(graph))
    assert result.check_order(order) == order
    assert brute_force_peak(result, order, inputs=inputs) <= brute_force_peak(graph, order, inputs=inputs)
    assert brute_force_optimum(result, inputs=inputs) <= brute_force_optimum(graph, inputs=inputs)


@settings(max_examples=400, deadline=None)
@given(graphs(max_nodes=10), st.data())
def test_every_op_reads_what_it_read_before(graph, data):
    result = inplace(graph)
    assert meaning(result, data.draw(topological_orders(result))) == meaning(graph, range(len(graph.nodes)))


def meaning(graph: Graph, order):
    """What each node reads, and what outputs and external tensors show at the end: storages hold terms, nodes make new ones."""
    external = [t.id for t in graph.tensors if graph.definer[t.id] == -1]
    content: dict[int, object] = {s.id: ("outside", s.name) for s in graph.storages}
    content.update((graph.tensors[t].storage, ("outside", t)) for t in external)
    windowless = set(content) - {t.storage for t in graph.tensors}

    def shown(t: int):
        tensor = graph.tensors[t]
        return content[tensor.storage], tensor.offset, tensor.shape

    reads = {}
    for v in order:
        node = graph.nodes[v]
        if graph.is_view(node):
            continue
        reads[v] = (*map(shown, node.inputs), *(content[s] for s in node.writes if s in windowless))
        made = {} if graph.is_view(node) else dict.fromkeys(node.writes, -1)
        for i, t in enumerate(node.outputs):
            s = graph.tensors[t].storage
            if graph.birth[s] == v or s in made:
                made[s] = i
        content.update((s, ("made", v, i, hash(reads[v]))) for s, i in made.items())
    return reads, [shown(t) for t in graph.outputs], [shown(t) for t in external]


@settings(max_examples=25, deadline=None)
@given(conv_nets(), st.sampled_from(("planned", "caller")))
def test_conv_nets_give_eager_results_in_place(pair, inputs):
    net, args = pair
    graph = trace(net, args)
    result = inplace(graph)
    with torch.no_grad():
        expected = net(*args)
    assert liveness(result, inputs=inputs).peak <= liveness(graph, inputs=inputs).peak
    for order in (None, schedule(result, time_limit=1.0, inputs=inputs)):
        run = execute_in_arena(result, allocate(result, order, inputs=inputs), args)
        assert run.difference(expected) is None
    with torch.no_grad():
        assert run.matches(result.to_fx()(*args))


def test_a_training_step_means_the_same_in_place():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 64, 5)
    )
    step = trace(
        net,
        (torch.randn(2, 3, 8, 8),),
        mode="training",
        loss=lambda y: y.square().sum(),
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
    )
    result = inplace(step)
    assert len(result.storages) < len(step.storages)
    assert liveness(result, inputs="caller").peak <= liveness(step, inputs="caller").peak
    expected = meaning(step, range(len(step.nodes)))
    for seed in range(5):
        assert meaning(result, generate.random_order(random.Random(seed).randrange, result)) == expected


@pytest.mark.parametrize("functional", [True, False])
def test_a_residual_block_needs_less(functional):
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            y = torch.relu(x * 2)
            return torch.sigmoid(self.conv(y) + y) if functional else (self.conv(y) + y).sigmoid_()

    net, x = Block().eval(), torch.randn(1, 8, 16, 16)
    graph = trace(net, (x,))
    result = inplace(graph)
    assert liveness(graph, inputs="caller").peak == 3 * x.nbytes
    assert liveness(result, inputs="caller").peak == 2 * x.nbytes
    run = execute_in_arena(result, allocate(result, inputs="caller"), (x,))
    with torch.no_grad():
        assert run.matches(net(x))
