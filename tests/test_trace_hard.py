"""Models that are hard to trace: aliasing, mutation, constants, dtypes, data-dependent values. One small net, many forwards."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from neaptide.compiler.errors import TraceError
from neaptide.compiler.graph import Atom, Graph, contiguous_strides
from neaptide.compiler.trace import trace
from neaptide.passes.liveness import liveness


class Net(nn.Module):
    """A linear layer, a scalar parameter, a buffer and a plain tensor attribute; the forward is given."""

    def __init__(self, forward):
        super().__init__()
        self.l = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("b", torch.arange(8.0))
        self.cache = torch.linspace(0, 1, 8)
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


def view_written(m, x):
    y = m.l(x)
    y[:, 0].add_(1.0)
    y[1:].mul_(2)
    return y * y


def outputs_aliased(m, x):
    y = m.l(x)
    return y, y.view(-1), y[0]


def input_written(m, x):
    x.add_(1)
    return m.l(x)


def buffer_written(m, x):
    m.b.add_(1)
    return m.l(x) + m.b


def mask_written(m, x):
    y = m.l(x).clone()
    y[y > 0] = 0.0
    return y


def written_through_data(m, x):
    y = m.l(x)
    y.data.zero_()
    return y


def numpy_constant(m, x):
    return m.l(x) + torch.from_numpy(np.ones(8, dtype="float32"))


def swapped_storage(m, x):
    y = m.l(x)
    y.data = x * 2
    return y + 1


def out_argument(m, x):
    y = torch.empty(0)
    torch.cat([x, m.l(x)], out=y)
    return y


def resized(m, x):
    y = torch.empty(2)
    y.resize_(4, 8)
    return y.copy_(m.l(x))


def transposed_in_place(m, x):
    y = m.l(x)
    y.t_()
    return y + 1


def list_written(m, x):
    parts = [m.l(x), x * 2]
    torch.ops.aten._foreach_add_(parts, 1.0)
    return parts


def norm_in_training(m, x):
    mean, var = torch.zeros(8), torch.ones(8)
    return F.batch_norm(m.l(x), mean, var, training=True), mean


def half(m, x):
    return m.l(x).bfloat16().softmax(-1).float()


def eight_bits(m, x):
    return m.l(x).to(torch.float8_e4m3fn).to(torch.float16)


def under_autocast(m, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m.l(x)


def kept_list(m, x):
    m.seen = [x * 2]
    m.b = m.b + 1
    return m.l(m.seen[0])


# Forward, the ops it dispatches, and its graph peak in bytes with the input (4 x 8 floats, 128 B) left to the caller.
CASES = {
    "identity": (lambda m, x: x, "", 0),
    "parameter_returned": (lambda m, x: (m.l.weight, m.l(x)), "t addmm", 128),
    "constant_tensor": (lambda m, x: m.l(x) + torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8]), "t addmm lift_fresh_copy add", 288),
    "attribute_tensor": (lambda m, x: m.l(x) + m.cache, "t addmm add", 256),
    "numpy_constant": (numpy_constant, "t addmm lift_fresh_copy add", 288),
    "factory": (lambda m, x: m.l(x) + torch.arange(8), "t addmm arange add", 320),
    "new_zeros": (lambda m, x: torch.cat([m.l(x), x.new_zeros(2, 8)]), "t addmm new_zeros cat", 384),
    "random": (lambda m, x: m.l(x) + torch.randn(8), "t addmm randn add", 288),
    "dropout_on": (lambda m, x: F.dropout(m.l(x), 0.5, True), "t addmm empty_like bernoulli_ div_ mul", 384),
    "dropout_off": (lambda m, x: F.dropout(m.l(x), 0.5, False), "t addmm", 128),
    "attention_without_dropout": (
        lambda m, x: F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]),
        "unsqueeze unsqueeze unsqueeze unsqueeze unsqueeze unsqueeze _scaled_dot_product_flash_attention_for_cpu",
        144,
    ),
    "view_written": (view_written, "t addmm select add_ slice mul_ mul", 256),
    "outputs_aliased": (outputs_aliased, "t addmm view select", 128),
    "input_written": (input_written, "add_ t addmm", 128),
    "buffer_written": (buffer_written, "add_ t addmm add", 256),
    "mask_written": (mask_written, "t addmm clone gt lift_fresh_copy index_put_", 256),
    "written_through_data": (written_through_data, "t addmm zero_", 128),
    "swapped_storage": (swapped_storage, "t addmm mul add", 256),
    "out_argument": (out_argument, "empty t addmm cat", 384),
    "resized": (resized, "empty resize_ t addmm copy_", 256),
    "transposed_in_place": (transposed_in_place, "t addmm t_ add", 256),
    "list_written": (list_written, "t addmm mul _foreach_add_", 256),
    "norm_in_training": (norm_in_training, "zeros ones t addmm empty native_batch_norm", 384),
    "as_strided": (lambda m, x: torch.as_strided(m.l(x), (2, 3), (1, 2), 1).contiguous(), "t addmm as_strided clone", 152),
    "parts": (
        lambda m, x: sum(m.l(x).unbind(0)) + m.l(x).chunk(2, 1)[1].sum(),
        "t addmm unbind add add add add t addmm split sum add",
        192,
    ),
    "expanded_scalar": (lambda m, x: m.l(x) + m.scale.expand(8), "t addmm expand add", 256),
    "complex": (lambda m, x: torch.fft.fft(m.l(x)).abs(), "t addmm _fft_r2c abs", 384),
    "half": (half, "t addmm _to_copy _softmax _to_copy", 192),
    "eight_bits": (eight_bits, "t addmm _to_copy _to_copy", 160),
    "under_autocast": (under_autocast, "_to_copy _to_copy _to_copy t addmm", 272),
    "several_results": (lambda m, x: m.l(x).sort(-1), "t addmm sort", 512),
    "unused_result": (lambda m, x: m.l(x).max(1).values, "t addmm max", 176),
    "kept_list": (kept_list, "mul add t addmm", 256),
    "item_of_weight": (lambda m, x: m.l(x) * m.scale.item(), "t addmm _local_scalar_dense mul", 256),
    "item_of_buffer": (lambda m, x: m.l(x) * m.b.tolist()[3], "t addmm mul", 256),
    "item_of_input": (lambda m, x: m.l(x) * x.sum().item(), "t addmm sum _local_scalar_dense mul", 256),
    "branch_on_input": (lambda m, x: m.l(x) if (x * x).sum() >= 0 else -m.l(x), "mul sum ge _local_scalar_dense t addmm", 132),
    "chosen_from_input": (lambda m, x: x[x * x >= 0].sum(), "mul ge index sum", 160),
    "unique": (lambda m, x: torch.unique(torch.arange(8) // 2), "arange floor_divide _unique2", 128),
    "nonzero_of_buffer": (lambda m, x: m.l(x)[:, m.b.nonzero()[:, 0]], "t addmm nonzero select index", 296),
}


def traced(forward, x=None):
    return trace(Net(forward), (torch.randn(4, 8) if x is None else x,))


def written(graph):
    return [
        (node.op.removeprefix("aten.").split(".")[0], [graph.storages[s].name or s for s in node.writes])
        for node in graph.nodes
        if node.writes
    ]


@pytest.mark.parametrize("name", CASES)
def test_ops_and_peak(name):
    forward, ops, peak = CASES[name]
    graph = traced(forward)
    assert " ".join(node.op.removeprefix("aten.").split(".")[0] for node in graph.nodes) == ops
    assert liveness(graph, inputs="caller").peak == peak


@pytest.mark.parametrize("name", CASES)
def test_outputs_have_the_layout_of_a_real_run(name):
    forward = CASES[name][0]
    x = torch.randn(4, 8)
    graph = traced(forward, x)
    with torch.no_grad():
        real = Net(forward)(x.clone())
    leaves = real if isinstance(real, (list, tuple)) else (real,)
    outputs = [graph.tensors[t] for t in graph.outputs]
    assert [(t.shape, t.dtype) for t in outputs] == [(tuple(r.shape), str(r.dtype).removeprefix("torch.")) for r in leaves]
    assert [t.strides or r.stride() for t, r in zip(outputs, leaves, strict=True)] == [r.stride() for r in leaves]
    same = [[a.untyped_storage()._cdata == b.untyped_storage()._cdata for a in leaves] for b in leaves]
    assert [[a.storage == b.storage for a in outputs] for b in outputs] == same


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_real_run_gives_the_same_nodes(name):
    from neaptide.compiler.trace import _record_real

    forward = CASES[name][0]
    x = torch.randn(4, 8)
    fake, real = traced(forward, x), _record_real(Net(forward), (x,), {})
    assert [n.op for n in fake.nodes] == [n.op for n in real.nodes]
    assert liveness(fake, inputs="caller").peak == liveness(real, inputs="caller").peak
    assert [fake.tensors[t].shape for t in fake.outputs] == [real.tensors[t].shape for t in real.outputs]


@pytest.mark.parametrize("name", CASES)
def test_graphs_survive_json(name):
    graph = traced(CASES[name][0])
    assert Graph.from_json(graph.to_json()) == graph


def test_writes_go_to_the_storage_behind_the_view():
    graph = traced(view_written)
    linear = graph.tensors[graph.nodes[1].outputs[0]].storage
    assert written(graph) == [("add_", [linear]), ("mul_", [linear])]
    assert {graph.tensors[t].storage for node in graph.nodes[2:6] for t in node.outputs} == {linear}


def test_writes_to_inputs_and_buffers_carry_their_names():
    assert written(traced(input_written)) == [("add_", ["x"])]
    assert written(traced(buffer_written)) == [("add_", ["b"])]


def test_random_ops_share_one_state_and_switched_off_dropout_does_not_touch_it():
    graph = traced(lambda m, x: torch.rand(8) + torch.randn(8))
    assert written(graph) == [("rand", ["rng state"]), ("randn", ["rng state"])]
    assert graph.meta["random_ops"] == {"aten.rand.default": 1, "aten.randn.default": 1}
    attention = traced(CASES["attention_without_dropout"][0])
    assert written(attention) == []


def test_normalization_writes_running_statistics_that_its_schema_does_not_mark():
    graph = traced(norm_in_training)
    zeros, ones = (graph.tensors[graph.nodes[i].outputs[0]].storage for i in (0, 1))
    assert written(graph) == [("native_batch_norm", [zeros, ones])]


def test_constants_keep_their_values():
    graph = traced(CASES["constant_tensor"][0])
    (constant,) = [t for t in graph.tensors if graph.storages[t.storage].role == "constant"]
    assert graph.values[constant.id].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    graph = traced(CASES["attribute_tensor"][0])
    (constant,) = [t for t in graph.tensors if graph.storages[t.storage].role == "constant"]
    assert torch.equal(graph.values[constant.id], torch.linspace(0, 1, 8))


def test_values_computed_from_known_data_are_written_down():
    graph = traced(CASES["item_of_weight"][0])
    (assumption,) = graph.meta["assumptions"]
    assert assumption["op"] == "aten._local_scalar_dense.default" and "1.5" in assumption["what"]
    assert assumption["at"].startswith(__file__)
    assert "bounds" not in graph.meta


def test_an_answer_sees_writes_that_came_before_it_and_not_those_after():
    def forward(m, x):
        before = m.b.sum().item()
        m.b.add_(1)
        m.b[0].mul_(5)
        return x * before, x * m.b.sum().item()

    graph = traced(forward)
    assert [a["what"].split(",")[0] for a in graph.meta["assumptions"]] == ["28.0", "40.0"]


def test_unknown_sizes_become_upper_bounds_that_the_graph_admits():
    graph = trace(Net(lambda m, x: x[x > 0]).to("meta"), (torch.empty(4, 8, device="meta"),))
    assert graph.meta["rung"] == "bounds" and graph.meta["bounds"] is True
    assert graph.tensors[graph.outputs[0]].shape == (32,)
    assert "upper bound" in graph.meta["assumptions"][0]["what"]


def test_distinct_values_are_bounded_by_what_they_were_chosen_from():
    def forward(m, x):
        labels = torch.arange(3).view(1, -1).expand(4, 3).reshape(-1)
        kept = labels[x.flatten()[:12] > 0]
        return [kept[kept == c] for c in torch.unique(kept)]

    graph = trace(Net(forward).to("meta"), (torch.empty(4, 8, device="meta"),))
    assert len(graph.outputs) == 3


def test_a_number_that_no_size_depends_on_may_stay_unknown():
    graph = trace(Net(lambda m, x: x * x.sum().item()).to("meta"), (torch.empty(4, 8, device="meta"),))
    assert liveness(graph, inputs="caller").peak == 128
    assert graph.nodes[-1].attrs["args"][1] == Atom("symbol", "zuf0")


def test_a_branch_on_unknown_data_is_refused_with_the_line():
    with pytest.raises(TraceError, match=r"test_trace_hard\.py:\d+ depends on the values.*allow_real_run=True"):
        trace(Net(CASES["branch_on_input"][0]).to("meta"), (torch.empty(4, 8, device="meta"),))


def test_random_data_is_not_guessed():
    forward = lambda m, x: x if torch.rand(1).item() > 0.5 else -x  # noqa: E731
    with pytest.raises(TraceError, match="depends on the values"):
        traced(forward)
    graph = trace(Net(forward), (torch.randn(4, 8),), allow_real_run=True)
    assert graph.meta["rung"] == "run"


def _windows(rng: random.Random) -> torch.Tensor:
    """A dense tensor in a random dimension order whose size-1 dimensions carry arbitrary strides, or one with a broadcast dimension."""
    shape = [rng.choice((1, 1, 2, 3)) for _ in range(rng.randint(1, 5))]
    strides, step = [0] * len(shape), 1
    for d in rng.sample(range(len(shape)), len(shape)):
        strides[d] = step
        step *= shape[d]
    strides = [rng.choice((1, 2, 4, step, 7)) if size == 1 and rng.random() < 0.5 else s for size, s in zip(shape, strides, strict=True)]
    if rng.random() < 0.2:
        strides[rng.randrange(len(shape))] = 0
    return torch.ones(512).as_strided(shape, strides)


def _strides_traced(f, x: torch.Tensor) -> tuple[int, ...]:
    graph = trace(f, (x,))
    tensor = graph.tensors[graph.outputs[0]]
    return tensor.strides or contiguous_strides(tensor.shape)


def test_results_with_numbers_are_strided_as_the_kernels_stride_them():
    rng = random.Random(0)
    for _ in range(60):
        x = _windows(rng)
        for f in (lambda t: t * 2.0, lambda t: t + 1, lambda t: t / 3):
            assert _strides_traced(f, x) == f(x).stride()


@pytest.mark.parametrize("strides", [(36, 1, 12, 4), (4, 1, 12, 4), (9, 9, 3, 1)])
def test_norms_are_strided_as_the_kernels_stride_them(strides):
    x = torch.ones(128).as_strided((1, 4, 3, 3), strides)
    scale = torch.ones(4)
    for f in (
        lambda t: torch.nn.functional.layer_norm(t, [3]),
        lambda t: torch.nn.functional.group_norm(t, 2),
        lambda t: torch.nn.functional.batch_norm(t, scale, scale),
    ):
        assert _strides_traced(f, x) == f(x).stride()
