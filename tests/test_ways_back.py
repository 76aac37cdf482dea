"""A Graph in any order back into fx and ONNX: the same results as the model, in that order."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.onnx_cases import onnx_cases
from neaptide.compiler.errors import FormatError, NeaptideError, OrderError, TraceError
from neaptide.compiler.exported import from_fx
from neaptide.compiler.graph import Graph, GraphBuilder
from neaptide.compiler.ops import node_work, op_facts
from neaptide.compiler.to_fx import missing_values, to_fx
from neaptide.compiler.trace import trace
from neaptide.testing.generate import random_order


class Branches(nn.Module):
    """Parallel convolutions, concatenation, a squeeze-and-excite gate, in-place relus."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.gate, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x), inplace=True)
        y = torch.cat([self.left(x), self.right(x)], 1)
        y = y * self.gate(F.adaptive_avg_pool2d(y, 1)).sigmoid()
        return self.head(F.max_pool2d(y, 2).mean((2, 3))), y.amax(1)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(30, 16), nn.LayerNorm(16)
        self.qkv, self.out, self.up, self.down = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, ids):
        x = self.embed(ids)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Writes(nn.Module):
    """Writes through views and into a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(2))
        self.count: torch.Tensor

    def forward(self, x):
        self.count.add_(1)
        y = torch.zeros(3, 4)
        y[1:] = x[:2]
        z = y * 2
        y[0, ::2] = 5
        return z + y, y.t().contiguous(), self.count * 1


MODELS = {
    "branches": (Branches, lambda: (torch.randn(2, 3, 8, 8),)),
    "transformer": (Transformer, lambda: (torch.randint(0, 30, (2, 6)),)),
    "writes": (Writes, lambda: (torch.randn(3, 4),)),
}


def model_and_inputs(name):
    torch.manual_seed(0)
    build, inputs = MODELS[name]
    return build().eval(), inputs()


def flat(result):
    return list(result) if isinstance(result, tuple) else [result]


# ---- fx ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_any_order_runs_bit_for_bit_as_the_model(name):
    model, inputs = model_and_inputs(name)
    graph = trace(model, inputs)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        expected = [t.clone() for t in flat(model_and_inputs(name)[0](*inputs))]
    for seed in range(4):
        order = list(random_order(random.Random(seed).randrange, graph))
        module = to_fx(graph, order)
        got = module(*inputs)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        stand = [n.meta["node"] for n in module.graph.nodes if "node" in n.meta]
        assert stand == order
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_weights_keep_their_names_and_their_memory_and_written_ones_are_copies():
    model, inputs = model_and_inputs("branches")
    module = to_fx(trace(model, inputs))
    used = {k for k in model.state_dict() if not k.endswith("num_batches_tracked")}
    assert set(module.state_dict()) == used
    assert module.get_parameter("left.weight").data_ptr() == model.left.weight.data_ptr()
    model, inputs = model_and_inputs("writes")
    module = to_fx(trace(model, inputs))
    assert module(*inputs)[2].tolist() == [1, 1]
    assert module(*inputs)[2].tolist() == [2, 2]
    assert model.count.tolist() == [0, 0]


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_comes_back_from_its_own_fx_module(name):
    model, inputs = model_and_inputs(name)
    graph = trace(model, inputs)
    again = from_fx(to_fx(graph), inputs)
    assert [(n.op, n.scope, n.source) for n in again.nodes] == [(n.op, n.scope, n.source) for n in graph.nodes]
    sizes = lambda g: [[g.storages[g.tensors[t].storage].nbytes for t in n.outputs] for n in g.nodes]  # noqa: E731
    assert sizes(again) == sizes(graph)


def test_what_cannot_run_says_why():
    with torch.device("meta"):
        light = nn.Linear(3, 3)
    graph = trace(light, torch.randn(2, 3))
    with pytest.raises(TraceError, match="needs the values of parameter 'weight'"):
        to_fx(graph)
    assert sorted(missing_values(graph)) == ["bias", "weight"]
    plain = GraphBuilder("plain")
    t = plain.tensor((2,), "float32", role="input")
    plain.inputs.append(t)
    plain.node("mystery", (t,), (plain.tensor((2,), "float32"),))
    with pytest.raises(TraceError, match="mystery"):
        to_fx(plain.build())
    model, inputs = model_and_inputs("branches")
    with pytest.raises(OrderError):
        to_fx(trace(model, inputs), list(range(len(trace(model, inputs).nodes)))[::-1])
    graph = trace(model, inputs)
    with pytest.raises(TraceError, match="needs the values"):
        to_fx(Graph.from_json(graph.to_json()))


# ---- ONNX -------------------------------------------------------------------------------------------------------------

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from neaptide.compiler.from_onnx import from_onnx  # noqa: E402
from neaptide.compiler.onnx_ops import to_numpy, to_torch_value  # noqa: E402
from neaptide.compiler.to_onnx import onnx_order, to_onnx  # noqa: E402


def in_onnxruntime(model, inputs):
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: to_numpy(x) for i, x in zip(session.get_inputs(), inputs, strict=True)})


def close(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(np.asarray(a)), b, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_aten_graphs_become_onnx_in_their_order(name):
    pytest.importorskip("onnxscript")
    model, inputs = model_and_inputs(name)
    graph = trace(model, inputs)
    with torch.no_grad():
        expected = flat(model_and_inputs(name)[0](*inputs))
    for seed in (0, 1):
        order = list(random_order(random.Random(seed).randrange, graph))
        made = to_onnx(graph, order)
        runs = onnx_order(made)
        assert len(set(runs)) == len(runs), "the ONNX nodes of one aten node stand together"
        position = {v: i for i, v in enumerate(order)}
        assert [position[v] for v in runs] == sorted(position[v] for v in runs)
        vanished = {graph.nodes[v].op for v in set(order) - set(runs)}
        views = {n.op for n in graph.nodes if graph.is_view(n)}
        assert vanished <= views | {"aten.empty.memory_format", "aten.add_.Tensor", "aten.copy_.default", "aten.fill_.Scalar"}
        close(in_onnxruntime(made, inputs), expected)
        again = from_onnx(made)
        assert [again.tensors[t].shape for t in again.outputs] == [tuple(t.shape) for t in expected]
        close(again.to_fx()(*inputs), expected)


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def onnx_net(condition=None):
    """Branches, a known `If`, an unknown one that captures, an omitted operand, an output that is also an input."""

    def branch(name, op):
        return helper.make_graph([helper.make_node(op, ["r"], [f"{name}_o"])], name, [], [value(f"{name}_o", [1, 4, 6, 6])])

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Clip", ["c", "", "six"], ["r"]),
        helper.make_node("If", ["yes"], ["k"], then_branch=branch("t", "Exp"), else_branch=branch("e", "Neg")),
        helper.make_node("If", ["flag"], ["u"], then_branch=branch("t", "Tanh"), else_branch=branch("e", "Abs"), name="unknown"),
        helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Concat", ["k", "u", "p"], ["y"], axis=1),
        helper.make_node("Flatten", ["y"], ["z"]),
    ]
    weights = [
        numpy_helper.from_array(np.linspace(-1, 1, 108, dtype=np.float32).reshape(4, 3, 3, 3), "w"),
        numpy_helper.from_array(np.array(0.7, np.float32), "six"), numpy_helper.from_array(np.array(True), "yes"),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "net", [value("x", [1, 3, 6, 6]), value("flag", [], TensorProto.BOOL)],
        [value("y", [1, 12, 6, 6]), value("z", [1, 432]), value("k", [1, 4, 6, 6])], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_onnx_graphs_become_onnx_in_any_order():
    original = onnx_net()
    inputs = (torch.randn(1, 3, 6, 6), torch.tensor(False))
    expected = [torch.as_tensor(t) for t in in_onnxruntime(original, inputs)]
    graph = from_onnx(original)
    for seed in range(5):
        order = list(random_order(random.Random(seed).randrange, graph))
        made = to_onnx(graph, order)
        assert onnx_order(made) == order
        assert [o.name for o in made.graph.output] == ["y", "z", "k"]
        close(in_onnxruntime(made, inputs), expected)
        close(graph.to_fx(order)(*inputs), expected)
        assert {n.name for n in made.graph.node} >= {"conv", "unknown"}


def test_a_graph_comes_back_from_its_own_onnx_model():
    graph = from_onnx(onnx_net())
    again = from_onnx(to_onnx(graph))
    assert [n.op for n in again.nodes] == [n.op for n in graph.nodes]
    assert [n.workspace for n in again.nodes] == [n.workspace for n in graph.nodes]


def test_an_output_that_is_an_input_or_a_weight_keeps_its_name():
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["same"]), helper.make_node("Neg", ["x"], ["n"])], "g", [value("x", [2])],
        [value("x", [2]), value("n", [2]), value("n", [2]), value("w", [2])], [numpy_helper.from_array(np.ones(2, np.float32), "w")],
    )  # fmt: skip
    net = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    close(from_onnx(net).to_fx()(torch.tensor([1.0, 2.0])), [torch.tensor(v) for v in ([1.0, 2], [-1.0, -2], [-1.0, -2], [1.0, 1])])


def test_values_are_needed_to_write_and_cheap_refusals_come_first():
    graph = from_onnx(onnx_net())
    bare = Graph.from_json(graph.to_json())
    with pytest.raises(TraceError, match="needs the values of parameter 'w'"):
        to_onnx(bare)
    big = GraphBuilder("big")
    big.tensor((2**29 + 1,), "float32", role="parameter")
    with pytest.raises(FormatError, match="2 GiB"):
        to_onnx(big.build())


@pytest.mark.filterwarnings("ignore")
def test_an_op_without_onnx_form_is_one_clear_error():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.ops.aten._fft_r2c(x, [0], 0, True).real, torch.linalg.eigvals(
                x[:2].reshape(1, 1) if False else x.reshape(2, 2)
            ).real

    x = torch.randn(4)
    with pytest.raises(TraceError, match="has no ONNX form"):
        to_onnx(trace(Odd(), x))


# ---- kernels against onnx's own cases -----------------------------------------------------------------------------------

RANDOM_OR_BF16 = ("bernoulli", "bf16", "bfloat16")


def node_cases(op_types):
    """The cases of one node of these operators; what a function of onnx unfolds to has others."""
    return [c for c in onnx_cases() if len(c.model.graph.node) == 1 and c.model.graph.node[0].op_type in op_types]


CHECKED = (
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "BatchNormalization", "LayerNormalization", "GroupNormalization", "Gemm", "MatMul",
    "Resize", "Slice", "Gather", "GatherND", "ScatterND", "ScatterElements", "Pad", "Reshape", "Squeeze", "Unsqueeze", "Split", "TopK",
    "OneHot", "Softmax", "LogSoftmax", "ReduceMean", "ReduceL2", "ReduceMax", "ReduceSum", "ArgMax", "Clip", "LSTM", "GRU", "RNN", "Loop",
    "If", "Scan", "QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "Einsum", "CumSum", "DepthToSpace", "Mod", "Div",
    "Where", "Expand", "Tile", "Trilu", "LRN", "InstanceNormalization", "GridSample", "Cast", "RMSNormalization", "DynamicQuantizeLinear",
)  # fmt: skip


def runnable(array):
    """Whether torch has a dtype for these values: strings, sequences and types under 8 bits have none."""
    return isinstance(array, (np.ndarray, np.generic)) and array.dtype.kind not in "OSU" and array.dtype.itemsize * 8 >= 8 and not str(
        array.dtype
    ).startswith(("int4", "uint4", "int2", "uint2", "float4"))  # fmt: skip


# A slice as long as the turn of its loop; and Scan as it was in opset 8, over a batch.
REFUSED = ("test_loop11", "test_scan_sum")


def test_kernels_pass_onnx_s_own_cases():
    ran, wrong = set(), []
    for test in node_cases(CHECKED):
        if not test.data_sets or any(word in test.name for word in RANDOM_OR_BF16):
            continue
        inputs, outputs = ([numpy_helper.to_array(v) if isinstance(v, TensorProto) else v for v in side] for side in test.data_sets[0])
        if not all(runnable(v) for v in (*inputs, *outputs)):
            continue
        shapes = {v.name: x.shape for v, x in zip(test.model.graph.input, inputs, strict=False)}
        shapes |= {v.name: x.shape for v, x in zip(test.model.graph.output, outputs, strict=False)}
        try:
            graph = from_onnx(test.model, shapes=shapes)
            assert [graph.tensors[t].shape for t in graph.outputs] == [v.shape for v in outputs]
            got = graph.to_fx()(*[to_torch_value(v) for v in inputs])
            for a, b in zip(got, outputs, strict=True):
                torch.testing.assert_close(
                    a.double(), to_torch_value(b).double(), rtol=2 * test.rtol, atol=max(test.atol, 1e-5), equal_nan=True
                )
            ran.add(test.model.graph.node[0].op_type)
        except FormatError as error:
            assert test.name in REFUSED, error
        except (NeaptideError, AssertionError) as error:
            wrong.append(f"{test.name}: {str(error)[:200]}")
    assert not wrong, wrong
    assert ran >= set(CHECKED) - {"Scan", "Loop"}, set(CHECKED) - ran


def test_work_of_operators_with_facts_is_known_on_onnx_s_own_cases():
    """What a formula cannot read counts as unknown, for a file may hold anything: on honest nodes none may."""
    counted, unknown = 0, []
    for test in onnx_cases():
        try:
            graph = from_onnx(test.model)
        except FormatError:
            continue
        known = [node for node in graph.nodes if op_facts(node.op) is not None]
        counted += len(known)
        unknown += [f"{test.name}: {node.op}" for node in known if node_work(graph, node) is None]
    assert not unknown, unknown
    assert counted > 5_000
