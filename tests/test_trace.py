"""`trace`: what a traced graph says, every way to give a model and its arguments, errors, and the model left as it was."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from neaptide.compiler.args import call_args, decode, encode, operator
from neaptide.compiler.errors import TraceError
from neaptide.compiler.graph import Atom, Graph
from neaptide.compiler.trace import trace
from neaptide.passes.liveness import eager_liveness, liveness


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu_(self.norm(self.conv(x))) + x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 2)

    def forward(self, x, scale=None):
        y = self.head(self.blocks(x).mean((2, 3)))
        return y if scale is None else y * scale


IMAGE = torch.zeros(1, 4, 8, 8)

GOLDEN = """\
graph Block(%7: float32[1,4,8,8] @7) {
  %0: float32[4,4,3,3] @0 = parameter conv.weight
  %1: float32[4] @1 = parameter conv.bias
  %2: float32[4] @2 = parameter norm.weight
  %3: float32[4] @3 = parameter norm.bias
  %4: float32[4] @4 = buffer norm.running_mean
  %5: float32[4] @5 = buffer norm.running_var
  %8: float32[1,4,8,8] @8 = aten.convolution.default(%7, %0, %1)  # conv
  %9: uint8[0] @9 = aten.empty.memory_format()  # norm
  %10: float32[1,4,8,8] @10, %11: float32[0] @11, %12: float32[0] @12 = aten.native_batch_norm.default(%8, %2, %3, %4, %5)  # norm
  %13: float32[1,4,8,8] @10! = aten.relu_.default(%10)
  %14: float32[1,4,8,8] @13 = aten.add.Tensor(%13, %7)
} -> (%14)
"""


def without_sources(graph: Graph) -> Graph:
    return graph.with_nodes([dataclasses.replace(node, source="") for node in graph.nodes])


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def test_text_of_a_small_net():
    assert without_sources(trace(Block(), (IMAGE,))).to_text() == GOLDEN


def test_graph_and_eager_peak_of_a_small_net():
    graph = trace(Block(), (IMAGE,))
    one = 4 * 8 * 8 * 4
    assert liveness(graph, inputs="caller").peak == 2 * one
    assert eager_liveness(graph).peak == 2 * one
    assert liveness(graph, inputs="planned").peak == 3 * one


def test_eager_peak_counts_what_python_still_holds():
    class Holding(nn.Module):
        def forward(self, x):
            a = x + 1
            b = a + 1
            c = b + 1
            return c + 1

    graph = trace(Holding(), (torch.zeros(256),))
    assert liveness(graph, inputs="caller").peak == 2 * 1024
    assert eager_liveness(graph).peak == 4 * 1024


def test_scopes_and_sources():
    graph = trace(Net(), (IMAGE,))
    assert [n.scope for n in graph.nodes if n.op == "aten.convolution.default"] == ["blocks.0.conv", "blocks.1.conv"]
    assert graph.nodes[-1].scope == "head"
    relu = next(n for n in graph.nodes if n.op == "aten.relu_.default")
    assert relu.scope == "blocks.0"
    assert relu.source == f"{__file__}:{Block.forward.__code__.co_firstlineno + 1}"


def test_meta_says_where_the_graph_came_from():
    graph = trace(Net(), (IMAGE,))
    assert graph.meta["frontend"] == "recorder" and graph.meta["rung"] == "fake" and graph.meta["mode"] == "inference"
    assert graph.meta["threads"] == torch.get_num_threads() and graph.meta["versions"]["torch"] == torch.__version__
    assert graph.meta["model"].endswith("Net") and "assumptions" not in graph.meta


def test_weights_are_storages_with_names_and_values():
    net = Net()
    graph = trace(net, (IMAGE,))
    named = {graph.storages[graph.tensors[t].storage].name: v for t, v in graph.values.items()}
    assert named["head.weight"] is net.head.weight and named["x"] is IMAGE
    assert {s.name for s in graph.storages if s.role == "parameter"} == {name for name, _ in net.named_parameters()}
    assert {s.name for s in graph.storages if s.role == "buffer"} == {name for name, _ in net.named_buffers()}


def test_tied_weights_are_one_storage():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(16, 4)
            self.out = nn.Linear(4, 16, bias=False)
            self.out.weight = self.table.weight

        def forward(self, ids):
            return self.out(self.table(ids))

    with torch.device("meta"):
        on_meta = Tied()
    for model in (Tied(), on_meta, Tied):
        graph = trace(model, (torch.zeros(3, dtype=torch.int64),))
        assert graph.bytes_by_role()["parameter"] == 16 * 4 * 4
        assert graph.meta["tied"] == {"table.weight": ["out.weight"]}


def test_parameters_that_are_views_of_one_storage_share_it():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            whole = torch.randn(2, 8)
            self.a, self.b = nn.Parameter(whole[0]), nn.Parameter(whole[1])

        def forward(self, x):
            return x * self.a + self.b

    graph = trace(Fused(), (torch.zeros(8),))
    assert graph.bytes_by_role()["parameter"] == 64
    assert [t.offset for t in graph.tensors[:2]] == [0, 32]


# ---- arguments and results ------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Batch:
    image: torch.Tensor
    extra: dict[str, Any]


class Pair(NamedTuple):
    first: Any
    second: Any


class Bag:
    def __init__(self, tensor):
        self.tensor = tensor


class Nested(nn.Module):
    def forward(self, batch, *rest, bag: Any = None, factor=2):
        y = batch.image * factor + batch.extra["bias"][0]
        for r in rest:
            y = y + r
        return {"batch": Batch(y, {"n": 3}), "pair": Pair(y + 1, [y.sum(), None]), "bag": Bag(bag.tensor * 2)}


def test_nested_arguments_and_results():
    batch = Batch(torch.zeros(4), {"bias": [torch.ones(4)]})
    bag = Bag(torch.zeros(2))
    graph = trace(Nested(), (batch, torch.zeros(4), torch.zeros(1)), {"bag": bag, "factor": 3})
    names = [graph.storages[graph.tensors[t].storage].name for t in graph.inputs]
    assert names == ["batch.image", "batch.extra.bias[0]", "rest[0]", "rest[1]", "bag.tensor"]
    assert [graph.tensors[t].shape for t in graph.outputs] == [(4,), (4,), (), (2,)]
    assert graph.nodes[0].attrs["args"][1] == 3
    assert type(batch.image) is torch.Tensor and type(bag.tensor) is torch.Tensor


def test_one_tensor_given_twice_is_one_storage():
    class Two(nn.Module):
        def forward(self, a, b):
            return a.add_(1) + b

    x = torch.zeros(8)
    graph = trace(Two(), (x, x))
    assert len(graph.inputs) == 2 and len(graph.input_storages) == 1
    assert graph.bytes_by_role()["input"] == 32
    assert torch.equal(x, torch.zeros(8))
    assert len(trace(Two(), (x, x.clone())).input_storages) == 2


def test_inputs_that_alias_share_a_storage():
    base = torch.zeros(4, 4)
    graph = trace(lambda a, b: a.sum() + b.sum(), (base[0], base[:, 1]))
    assert [(graph.tensors[t].offset, graph.tensors[t].strides) for t in graph.inputs] == [(0, None), (4, (4,))]
    assert graph.bytes_by_role()["input"] == 64


def test_a_tensor_alone_stands_for_one_argument():
    assert ops(trace(Net(), IMAGE)) == ops(trace(Net(), (IMAGE,)))


def test_zero_sizes_and_models_without_ops():
    graph = trace(nn.Linear(4, 0), (torch.zeros(0, 4),))
    assert graph.tensors[graph.outputs[0]].shape == (0, 0)
    assert trace(nn.Identity(), (torch.zeros(3),)).nodes == ()
    assert trace(nn.Identity(), (None,)).outputs == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.int32])
def test_dtypes(dtype):
    graph = trace(lambda x: x + x, (torch.zeros(8, dtype=dtype),))
    assert graph.tensors[graph.outputs[0]].dtype == str(dtype).removeprefix("torch.")
    assert graph.storages[-1].nbytes == 8 * dtype.itemsize


def test_conjugate_inputs_stay_lazy():
    graph = trace(lambda x: torch.view_as_real(x.resolve_conj()), (torch.zeros(4, dtype=torch.complex64).conj(),))
    assert ops(graph)[-1] == "aten.view_as_real.default"


def test_channels_last_inputs_keep_their_strides():
    graph = trace(Block(), (IMAGE.to(memory_format=torch.channels_last),))
    assert graph.tensors[graph.inputs[0]].strides == (256, 1, 32, 4)
    assert graph.tensors[graph.outputs[0]].strides == (256, 1, 32, 4)


# ---- ways to give a model -------------------------------------------------------------------------------------------------


def test_a_real_model_one_on_meta_and_a_factory_give_one_graph():
    real, meta, factory = (trace(m, (IMAGE,)) for m in (Net(), Net().to("meta"), Net))
    assert (real.meta["rung"], meta.meta["rung"], factory.meta["rung"]) == ("fake", "fake", "meta")
    assert real.to_text() == meta.to_text() == factory.to_text()
    assert real.released == meta.released == factory.released
    weights = {t for t in meta.values if meta.storages[meta.tensors[t].storage].role != "input"}
    assert weights == set()


def test_a_factory_is_built_without_its_weights_and_small_tables_keep_their_values():
    class Big(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(200_000, 50_000)
            nn.init.trunc_normal_(self.fc.weight)
            self.register_buffer("order", torch.arange(4).flip(0))

        def forward(self, x):
            return self.fc(x) * int(self.get_buffer("order").max())

    graph = trace(Big, (torch.zeros(1, 200_000),))
    assert graph.meta["rung"] == "meta"
    assert graph.bytes_by_role()["parameter"] == 4 * (200_000 * 50_000 + 50_000)
    assert graph.nodes[-1].attrs["args"][1] == 3


def test_a_constructor_that_looks_at_values_is_built_for_real():
    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            widths = torch.empty(3)
            for i in range(3):
                widths[i] = 2 ** (i + 1)
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(int(widths[1].item())))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    graph = trace(Looking, (torch.zeros(1, 4),))
    assert graph.meta["rung"] == "fake" and ops(graph).count("aten.addmm.default") == 4


def test_functions_and_compiled_models():
    assert ops(trace(lambda x: x * 2, (IMAGE,))) == ["aten.mul.Tensor"]
    assert ops(trace(torch.compile(Net()), (IMAGE,))) == ops(trace(Net(), (IMAGE,)))


def test_recurrent_layers_read_their_own_weights():
    net = nn.LSTM(4, 8, num_layers=2)
    graph = trace(net, (torch.zeros(5, 1, 4),))
    assert sum(s.role == "parameter" for s in graph.storages) == 8
    assert not [s for s in graph.storages if s.role == "constant"]
    assert all(w is p for w, p in zip(net._flat_weights, net.parameters(), strict=True))


def test_attention_takes_the_kernel_of_the_cpu():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    assert ops(trace(layer, (torch.zeros(1, 6, 16),))) == ["aten._transformer_encoder_layer_fwd.default"]
    attention = lambda q: nn.functional.scaled_dot_product_attention(q, q, q)  # noqa: E731
    assert ops(trace(attention, (torch.zeros(1, 2, 6, 8),))) == ["aten._scaled_dot_product_flash_attention_for_cpu.default"]


# ---- the model is left as it was ------------------------------------------------------------------------------------------


class Stateful(nn.Module):
    def __init__(self, trouble: type[BaseException] | None = None):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))
        self.table = torch.arange(4.0)
        self.seen: list[Any] = []
        self.trouble = trouble

    def forward(self, x):
        y = self.fc(x) + self.table
        self.count += 1
        self.seen.append(y)
        self.last = y
        self.fc.bias = nn.Parameter(self.fc.bias * 2)
        if self.trouble is not None:
            raise self.trouble("stop here")
        return y


@pytest.mark.parametrize("trouble", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("real_run", [False, True])
def test_model_is_untouched(trouble, real_run):
    from neaptide.compiler.trace import _record_real

    model = Stateful(trouble)
    model.train()
    model.fc.eval()
    model.register_forward_hook(lambda *a: None)
    x = torch.randn(2, 4)
    before = {k: (id(v), v.clone()) for k, v in (*model.named_parameters(), *model.named_buffers())}
    attributes = set(vars(model))
    try:
        _record_real(model, (x,), {}) if real_run else trace(model, (x,))
    except (TraceError, KeyboardInterrupt):
        assert trouble is not None
    after = {k: (id(v), v) for k, v in (*model.named_parameters(), *model.named_buffers())}
    assert {k: i for k, (i, _) in after.items()} == {k: i for k, (i, _) in before.items()}
    assert all(torch.equal(after[k][1], v) for k, (_, v) in before.items())
    assert set(vars(model)) == attributes and model.seen == [] and type(model.table) is torch.Tensor
    assert model.training and not model.fc.training and len(model._forward_hooks) == 1
    assert torch.is_grad_enabled() and not torch.nn.modules.module._global_forward_pre_hooks
    assert torch.equal(model.fc(x), nn.functional.linear(x, model.fc.weight, model.fc.bias))


def test_inference_runs_in_eval_mode_without_gradients():
    seen = {}

    class Spy(nn.Module):
        def forward(self, x):
            seen.update(training=self.training, grad=torch.is_grad_enabled())
            return x + 1

    trace(Spy().train(), (torch.zeros(1),))
    assert seen == {"training": False, "grad": False}


# ---- errors ---------------------------------------------------------------------------------------------------------------


def test_a_wrong_shape_names_the_users_line_and_the_reason():
    line = Block.forward.__code__.co_firstlineno + 1
    with pytest.raises(TraceError, match=rf"Net raised RuntimeError at .*test_trace.py:{line} .*to have 4 channels, but got 3"):
        trace(Net(), (torch.zeros(1, 3, 8, 8),))


def test_wrong_arguments_are_named():
    with pytest.raises(TraceError, match=r"missing 1 required positional argument: 'x'"):
        trace(Net())
    with pytest.raises(TraceError, match=r"unexpected keyword argument 'scales'"):
        trace(Net(), (IMAGE,), {"scales": 1})


def test_an_exception_of_the_model_is_kept_as_the_cause():
    with pytest.raises(TraceError, match=r"Stateful raised ValueError at .*test_trace.py:\d+ while it was traced: stop here") as caught:
        trace(Stateful(ValueError), (torch.zeros(2, 4),))
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"mode": "serving"}, "choose 'inference', 'training' or 'step'"),
        ({"device": "cuda"}, "only 'cpu' can be traced exactly"),
        ({"loss": torch.sum}, "belongs to mode='training'"),
        ({"args": 3}, "give a tuple"),
        ({"kwargs": [1]}, "give a mapping"),
        ({"model": 3}, "give a torch.nn.Module"),
        ({"model": lambda: 3}, "returned a int, not a torch.nn.Module"),
    ],
)
def test_requests_that_make_no_sense(request_, message):
    with pytest.raises(TraceError, match=message):
        trace(**{"model": Net(), "args": (IMAGE,), **request_})


def test_torchscript_is_recorded_op_by_op():
    model = nn.Sequential(nn.Conv2d(IMAGE.shape[1], 4, 3), nn.ReLU())
    before = [p.detach().clone() for p in model.parameters()]
    scripted: Any
    for scripted in (torch.jit.script(model), torch.jit.trace(model, IMAGE)):
        assert [n.op for n in trace(scripted, (IMAGE,)).nodes][1:] == ["aten.relu.default"]
        assert torch.equal(scripted(IMAGE), model(IMAGE))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@torch.library.custom_op("neaptide_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@torch.library.custom_op("neaptide_tests::halved", mutates_args=())
def halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2


@halved.register_fake
def _(x):
    return torch.empty_like(x)


def test_custom_ops_are_nodes():
    graph = trace(lambda x: halved(x) + 1, (torch.zeros(4),))
    assert ops(graph) == ["neaptide_tests.halved.default", "aten.add.Tensor"]


def test_a_custom_op_without_a_fake_kernel_is_named_with_both_ways_out():
    with pytest.raises(TraceError, match=r"neaptide_tests::doubled at .*register_fake\('neaptide_tests::doubled'\).*allow_real_run=True"):
        trace(lambda x: doubled(x) + 1, (torch.zeros(4),))
    graph = trace(lambda x: doubled(x) + 1, (torch.zeros(4),), allow_real_run=True)
    assert graph.meta["rung"] == "run" and ops(graph) == ["neaptide_tests.doubled.default", "aten.add.Tensor"]


def test_a_real_run_needs_values():
    with pytest.raises(TraceError, match="a real run needs values, and x is on the meta device"):
        trace(lambda x: doubled(x), (torch.zeros(4, device="meta"),), allow_real_run=True)


# ---- the codec of arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, 2.5, "mean", [1, [2, None]], torch.float16, torch.strided, torch.channels_last, torch.device("cpu"),
        1 + 2j, float("inf"), float("-inf"), torch.float8_e4m3fn,
    ],
)  # fmt: skip
def test_arguments_come_back(value):
    assert decode(encode(value, lambda t: pytest.fail("no tensors here")), []) == value


def test_not_a_number_comes_back():
    assert decode(encode(float("nan"), lambda t: pytest.fail("no tensors here")), []) != 0


def test_an_opaque_argument_is_refused_when_it_is_needed():
    with pytest.raises(TraceError, match="object"):
        decode(Atom("object", "Thing"), [])
    with pytest.raises(TraceError, match=r"no operator 'aten\.nothing\.default'"):
        operator("aten.nothing.default")


def test_the_recorded_calls_compute_what_the_model_computes():
    net = Net().eval()
    x = torch.randn(1, 4, 8, 8)
    graph = trace(net, (x,))
    values = dict(graph.values)
    with torch.no_grad():
        for node in graph.nodes:
            args, kwargs = call_args(node.attrs, [values[t] for t in node.inputs])
            result = operator(node.op)(*args, **kwargs)
            results = [result] if isinstance(result, torch.Tensor) else [r for r in result if isinstance(r, torch.Tensor)]
            values.update(zip(node.outputs, results, strict=True))
        assert torch.equal(values[graph.outputs[0]], net(x))
