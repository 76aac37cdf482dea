"""Work of aten ops equals hand counts: loops that compute the result and count their multiply-adds, or closed forms."""

import itertools
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from neaptide.compiler.count import count
from neaptide.compiler.graph import Atom, GraphBuilder, Ref
from neaptide.compiler.ops import Work
from neaptide.compiler.reference_models import reference_model
from neaptide.compiler.trace import trace


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args, **kwargs):
        return self.function(*args, **kwargs)


def traced(function, *args, causal=None, **kwargs):
    """Counts of `function(*args, **kwargs)`, a module or a plain function; fails on an op of unknown work."""
    module = function if isinstance(function, nn.Module) else Function(function)
    counts = count(trace(module, args, kwargs), causal=causal)
    assert not counts.unknown
    return counts


def one_node(op, args, outputs, kwargs=None):
    """Work of a single call of `op`; a tuple (shape) or a string-tagged tuple (dtype, shape) is a tensor, lists nest."""
    b = GraphBuilder(op)
    inputs = []

    def tensor(value):
        dtype, shape = value if value and isinstance(value[0], str) else ("float32", value)
        t = b.tensor(shape, dtype, role="input")
        b.inputs.append(t)
        inputs.append(t)
        return Ref(len(inputs) - 1)

    def encode(value):
        if isinstance(value, tuple):
            return tensor(value)
        return [encode(v) for v in value] if isinstance(value, list) else value

    attrs = {"args": [encode(a) for a in args], "kwargs": {k: encode(v) for k, v in (kwargs or {}).items()}}
    outs = [b.tensor(shape, "float32") for shape in outputs]
    b.node(op, inputs, outs, attrs=attrs)
    b.outputs += outs
    counts = count(b.build())
    assert not counts.unknown, counts.unknown
    return Work(counts.macs, counts.elementwise_flops)


# ---- convolutions against loops that compute them -------------------------------------------------------------------


def naive_convolution(x, w, stride, padding, dilation, groups):
    """(result, multiply-adds) of an N-D convolution; terms on zero padding are computed, so they count."""
    rank = x.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0), *[(p, p) for p in padding]])
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, w.shape[2:], strict=True)]
    sizes = [(n - e) // s + 1 for n, e, s in zip(x.shape[2:], extent, stride, strict=True)]
    y = np.zeros((x.shape[0], w.shape[0], *sizes))
    macs = 0
    for n, co, *o in itertools.product(*map(range, y.shape)):
        group = co // (w.shape[0] // groups)
        for ci, *k in itertools.product(*map(range, w.shape[1:])):
            at = tuple(o[i] * stride[i] + k[i] * dilation[i] for i in range(rank))
            y[(n, co, *o)] += x[(n, group * w.shape[1] + ci, *at)] * w[(co, ci, *k)]
            macs += 1
    return y, macs


def naive_transposed(x, w, stride, padding, output_padding, dilation, groups):
    """(result, multiply-adds) of an N-D transposed convolution: every product is formed, then the border is cropped."""
    rank = x.ndim - 2
    per_group = x.shape[1] // groups
    full = [
        (n - 1) * s + d * (k - 1) + 1 + op
        for n, s, d, k, op in zip(x.shape[2:], stride, dilation, w.shape[2:], output_padding, strict=True)
    ]
    y = np.zeros((x.shape[0], w.shape[1] * groups, *full))
    macs = 0
    for n, ci, *i in itertools.product(*map(range, x.shape)):
        for co, *k in itertools.product(*map(range, w.shape[1:])):
            at = tuple(i[a] * stride[a] + k[a] * dilation[a] for a in range(rank))
            y[(n, ci // per_group * w.shape[1] + co, *at)] += x[(n, ci, *i)] * w[(ci, co, *k)]
            macs += 1
    crop = tuple(slice(p, n - p) for p, n in zip(padding, full, strict=True))
    return y[(slice(None), slice(None), *crop)], macs


@st.composite
def convolutions(draw, transposed):
    rank = draw(st.integers(1, 2))
    axes = st.tuples(*[st.integers(1, 3)] * rank)
    kernel, stride, dilation = draw(axes), draw(axes), draw(st.tuples(*[st.integers(1, 2)] * rank))
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple(draw(st.integers(0, 2 if not transposed else (e - 1) // 2)) for e in extent)
    size = tuple(draw(st.integers(max(1, e - 2 * p), e + 3)) for e, p in zip(extent, padding, strict=True))
    groups = draw(st.integers(1, 3))
    cin, cout = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    x = torch.randn(draw(st.integers(1, 2)), cin, *size, dtype=torch.float64)
    shape = (cin, cout // groups) if transposed else (cout, cin // groups)
    return x, torch.randn(*shape, *kernel, dtype=torch.float64), stride, padding, dilation, groups


@settings(max_examples=60, deadline=None)
@given(convolutions(transposed=False))
def test_convolution_counts_the_multiply_adds_of_a_naive_loop(case):
    x, w, stride, padding, dilation, groups = case
    conv = F.conv1d if x.ndim == 3 else F.conv2d
    expected, macs = naive_convolution(x.numpy(), w.numpy(), stride, padding, dilation, groups)
    np.testing.assert_allclose(conv(x, w, None, stride, padding, dilation, groups), expected, atol=1e-9)
    assert traced(conv, x, w, None, stride, padding, dilation, groups).macs == macs


@settings(max_examples=60, deadline=None)
@given(convolutions(transposed=True))
def test_transposed_convolution_counts_the_multiply_adds_of_a_naive_loop(case):
    x, w, stride, padding, dilation, groups = case
    conv = F.conv_transpose1d if x.ndim == 3 else F.conv_transpose2d
    none = (0,) * len(stride)
    expected, macs = naive_transposed(x.numpy(), w.numpy(), stride, padding, none, dilation, groups)
    np.testing.assert_allclose(conv(x, w, None, stride, padding, 0, groups, dilation), expected, atol=1e-9)
    assert traced(conv, x, w, None, stride, padding, 0, groups, dilation).macs == macs


CONVOLUTIONS = [
    # module, input shape, multiply-adds: outputs x terms, or inputs x products for transposed ones; biases
    (nn.Conv1d(6, 8, 5), (2, 6, 20), 2 * 8 * 16 * 6 * 5, 2 * 8 * 16),
    (nn.Conv1d(6, 8, 5, stride=2, padding=2, dilation=2, groups=2), (2, 6, 20), 2 * 8 * 8 * 3 * 5, 2 * 8 * 8),
    (nn.Conv2d(3, 64, 7, 2, 3, bias=False), (1, 3, 224, 224), 112 * 112 * 64 * 3 * 49, 0),
    (nn.Conv2d(32, 32, 3, padding=1, groups=32), (4, 32, 14, 14), 4 * 32 * 14 * 14 * 9, 4 * 32 * 14 * 14),
    (nn.Conv2d(8, 4, (1, 3), (1, 2), (0, 1), (1, 2)), (1, 8, 5, 9), 4 * 5 * 4 * 8 * 3, 4 * 5 * 4),
    (nn.Conv2d(4, 4, 3, padding="same", bias=False), (1, 4, 6, 6), 4 * 36 * 4 * 9, 0),
    (nn.Conv3d(2, 6, (3, 2, 1), stride=(1, 2, 1), groups=2), (1, 2, 5, 6, 7), 6 * 3 * 3 * 7 * 1 * 6, 6 * 3 * 3 * 7),
    (nn.ConvTranspose1d(4, 6, 3, 2), (2, 4, 10), 2 * 4 * 10 * 6 * 3, 2 * 6 * 21),
    (nn.ConvTranspose2d(8, 4, 2, 2, bias=False), (1, 8, 14, 14), 8 * 14 * 14 * 4 * 4, 0),
    (nn.ConvTranspose2d(8, 4, 3, 2, 1, 1, groups=4), (1, 8, 5, 5), 8 * 25 * 1 * 9, 4 * 10 * 10),
    (nn.ConvTranspose3d(3, 2, 2, dilation=2), (1, 3, 4, 4, 4), 3 * 64 * 2 * 8, 2 * 6 * 6 * 6),
]  # fmt: skip


@pytest.mark.parametrize(("module", "shape", "macs", "biases"), CONVOLUTIONS)
def test_convolution_hand_counts(module, shape, macs, biases):
    counts = traced(module, torch.randn(shape))
    assert (counts.macs, counts.flops, counts.elementwise_flops) == (macs, 2 * macs, biases)


@pytest.mark.parametrize("mask", itertools.product((True, False), repeat=3))
@pytest.mark.parametrize("transposed", [False, True])
def test_convolution_backward_is_one_product_per_wanted_gradient(mask, transposed):
    grad, x, w = ((2, 8, 5, 5), (2, 4, 10, 10), (8, 2, 2, 2)) if not transposed else ((2, 4, 10, 10), (2, 8, 5, 5), (8, 2, 2, 2))
    forward = 2 * 8 * 25 * 2 * 4
    args = [grad, x, w, [8], [2, 2], [0, 0], [1, 1], transposed, [0, 0], 2, list(mask)]
    work = one_node("aten.convolution_backward.default", args, [x, w, (w[0],)])
    assert work == (forward * (mask[0] + mask[1]), mask[2] * prod(grad))


def test_training_costs_a_forward_and_two_gradients_except_at_the_first_layer():
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.Conv2d(8, 2, 1, bias=False))
    counts = count(trace(net, r_input := torch.randn(2, 4, 6, 6), mode="training", loss=lambda y: y.sum()))
    assert r_input.grad is None and not counts.unknown
    assert counts.macs == 2 * (2 * 8 * 36 * 4 * 9) + 3 * (2 * 2 * 36 * 8)


# ---- matrix products ------------------------------------------------------------------------------------------------


def naive_matmul(a, b):
    """(result, multiply-adds) of a batched product by loops; batch axes broadcast."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = np.broadcast_to(a, batch + a.shape[-2:]), np.broadcast_to(b, batch + b.shape[-2:])
    y = np.zeros((*batch, a.shape[-2], b.shape[-1]))
    macs = 0
    for index in np.ndindex(*y.shape):
        *head, i, j = index
        for k in range(a.shape[-1]):
            y[index] += a[(*head, i, k)] * b[(*head, k, j)]
            macs += 1
    return y, macs


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 5)] * 3), st.lists(st.sampled_from(["both", "left", "right"]), max_size=2), st.integers(2, 3))
def test_matmul_counts_the_multiply_adds_of_a_naive_loop(sizes, batch, size):
    m, k, n = sizes
    left = [1 if side == "right" else size for side in batch]
    right = [1 if side == "left" else size for side in batch]
    a, b = torch.randn(*left, m, k, dtype=torch.float64), torch.randn(*right, k, n, dtype=torch.float64)
    expected, macs = naive_matmul(a.numpy(), b.numpy())
    np.testing.assert_allclose(a @ b, expected, atol=1e-9)
    assert traced(torch.matmul, a, b).macs == macs


def r(*shape, **kwargs):
    return torch.randn(*shape, **kwargs)


PRODUCTS = {
    "mm": (torch.mm, (r(3, 4), r(4, 5)), 3 * 4 * 5, 0),
    "addmm": (torch.addmm, (r(5), r(3, 4), r(4, 5)), 3 * 4 * 5, 3 * 5),
    "addmm scaled": (lambda c, a, b: torch.addmm(c, a, b, beta=2, alpha=3), (r(3, 5), r(3, 4), r(4, 5)), 60, 3 * 15),
    "bmm": (torch.bmm, (r(2, 3, 4), r(2, 4, 5)), 2 * 3 * 4 * 5, 0),
    "baddbmm": (torch.baddbmm, (r(2, 3, 5), r(2, 3, 4), r(2, 4, 5)), 2 * 3 * 4 * 5, 30),
    "mv": (torch.mv, (r(3, 4), r(4)), 12, 0),
    "dot": (torch.dot, (r(7), r(7)), 7, 0),
    "vdot complex": (torch.vdot, (r(7, dtype=torch.complex64), r(7, dtype=torch.complex64)), 4 * 7, 0),
    "mm complex": (torch.mm, (r(2, 3, dtype=torch.complex64), r(3, 4, dtype=torch.complex64)), 4 * 24, 0),
    "matmul of vectors": (torch.matmul, (r(4), r(2, 4, 5)), 2 * 4 * 5, 0),
    "linear": (F.linear, (r(2, 3, 4), r(5, 4), r(5)), 2 * 3 * 4 * 5, 2 * 3 * 5),
    "linear without bias": (F.linear, (r(6, 4), r(5, 4)), 6 * 4 * 5, 0),
    "einsum of a product": (lambda a, b: torch.einsum("bij,bjk->bik", a, b), (r(2, 3, 4), r(2, 4, 5)), 2 * 3 * 4 * 5, 0),
    "einsum over two axes": (lambda a, b: torch.einsum("bhqd,bkhd->bhqk", a, b), (r(2, 3, 4, 5), r(2, 6, 3, 5)), 2 * 3 * 4 * 6 * 5, 0),
    "einsum of three": (lambda a, b, c: torch.einsum("ij,jk,kl->il", a, b, c), (r(2, 3), r(3, 4), r(4, 5)), 2 * 3 * 4 + 2 * 4 * 5, 0),
    "bilinear": (F.bilinear, (r(6, 3), r(6, 4), r(5, 3, 4)), 6 * 5 * 3 * 4, 6 * 5 * 3 * 4),
    "outer is pointwise": (torch.outer, (r(3), r(4)), 0, 12),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_matrix_product_hand_counts(name):
    function, args, macs, elementwise = PRODUCTS[name]
    counts = traced(function, *args)
    assert (counts.macs, counts.elementwise_flops) == (macs, elementwise)


PACKED = {
    "aten._int_mm.default": ([("int8", (4, 8)), ("int8", (8, 6))], [(4, 6)], 4 * 8 * 6, 0),
    "aten._scaled_mm.default": ([(4, 8), (8, 6), (1,), (1,), (6,)], [(4, 6)], 4 * 8 * 6, 24),
    "aten._weight_int8pack_mm.default": ([(4, 8), ("int8", (6, 8)), (6,)], [(4, 6)], 4 * 8 * 6, 0),
    "aten._weight_int4pack_mm.default": ([(4, 128), ("int32", (2, 1, 32, 4)), 32, (4, 16, 2)], [(4, 16)], 4 * 128 * 16, 0),
    "aten._dyn_quant_matmul_4bit.default": ([(3, 64), ("uint8", (999,)), 32, 64, 16], [(3, 16)], 3 * 64 * 16, 0),
    "aten._addmm_activation.default": ([(6,), (4, 8), (8, 6)], [(4, 6)], 192, 2 * 24),
    "aten.addmv.default": ([(4,), (4, 8), (8,)], [(4,)], 32, 4),
    "aten.addbmm.default": ([(4, 6), (3, 4, 8), (3, 8, 6)], [(4, 6)], 3 * 4 * 8 * 6, 24),
    "aten.addr.default": ([(4, 6), (4,), (6,)], [(4, 6)], 24, 24),
    "aten.linear_backward.default": ([(5, 4), (5, 3), (3, 4), [True, True, True]], [(5, 4), (3, 4), (3,)], 2 * 60, 15),
    "aten.tensordot.default": ([(2, 3, 4), (4, 3, 5), [1, 2], [1, 0]], [(2, 5)], 2 * 5 * 12, 0),
    "aten.einsum.default": (["ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]], [(2, 5)], 24 + 40, 0),
    "aten.conv_tbc.default": ([(10, 2, 3), (4, 3, 6), (6,), 0], [(7, 2, 6)], 7 * 2 * 6 * 3 * 4, 84),
    "quantized.linear.default": ([("quint8", (3, 8)), None, 0.1, 0], [(3, 5)], 3 * 8 * 5, 5 * 15),
    "aten.cudnn_convolution.default": (
        [(1, 3, 8, 8), (6, 3, 3, 3), [1, 1], [1, 1], [1, 1], 1, False, False, True],
        [(1, 6, 8, 8)],
        6 * 64 * 27,
        0,
    ),
    "aten.conv_transpose2d.input": ([(1, 4, 5, 5), (4, 3, 2, 2), (3,), [2, 2]], [(1, 3, 10, 10)], 100 * 12, 300),
    "torchvision.deform_conv2d.default": (
        [(1, 4, 6, 6), (8, 4, 3, 3), (1, 18, 6, 6), (1, 9, 6, 6), (8,), 1, 1, 1, 1, 1, 1, 1, 1, True],
        [(1, 8, 6, 6)],
        8 * 36 * 4 * 9,
        8 * (4 * 36 * 9) + 8 * 36,
    ),
}  # fmt: skip


@pytest.mark.parametrize("op", PACKED)
def test_packed_and_fused_products(op):
    args, outputs, macs, elementwise = PACKED[op]
    assert one_node(op, args, outputs) == (macs, elementwise)


@pytest.mark.parametrize(
    ("a", "b", "y"),
    [((12, 4), (3, 4, 5), (12, 5)), ((3, 6, 4), (4, 12), (6, 12)), ((6, 12), (12, 5), (3, 6, 5)), ((3, 6, 4), (3, 4, 5), (3, 6, 5))],
)
@pytest.mark.parametrize("op", ["aten._grouped_mm.default", "aten._scaled_grouped_mm.default"])
def test_grouped_products_are_the_sum_of_their_groups(a, b, y, op):
    groups = 3
    if len(a) == 2 and len(b) == 3:  # rows split 2 + 4 + 6
        macs = sum(rows * 4 * 5 for rows in (2, 4, 6))
    elif len(a) == 3 and len(b) == 2:  # columns split
        macs = sum(6 * 4 * columns for columns in (2, 4, 6))
    elif len(a) == 2:  # the summed axis is split
        macs = sum(6 * inner * 5 for inner in (2, 4, 6))
    else:
        macs = groups * 6 * 4 * 5
    scales = [(1,), (1,)] if "scaled" in op else []
    assert one_node(op, [a, b, *scales, ("int32", (groups,))], [y]) == (macs, 0)


# ---- attention ------------------------------------------------------------------------------------------------------


def naive_attention(q, k, v, causal):
    """(result, multiply-adds) of one head by loops; a query reads only the keys its mask keeps."""
    out, macs = np.zeros((len(q), v.shape[1])), 0
    for i, query in enumerate(q):
        seen = range(min(i + 1, len(k))) if causal else range(len(k))
        scores = []
        for j in seen:
            scores.append(sum(x * y for x, y in zip(query, k[j], strict=True)) / len(query) ** 0.5)
            macs += len(query)
        weights = np.exp(scores) / np.exp(scores).sum()
        for j, p in zip(seen, weights, strict=True):
            out[i] += p * v[j]
            macs += v.shape[1]
    return out, macs


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)), st.booleans())
def test_attention_counts_the_multiply_adds_of_a_naive_loop(sizes, causal):
    queries, keys, depth, value_depth = sizes
    q, k, v = r(queries, depth), r(keys, depth), r(keys, value_depth)
    expected, macs = naive_attention(q.double().numpy(), k.double().numpy(), v.double().numpy(), causal)
    fused = F.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None], is_causal=causal)
    np.testing.assert_allclose(fused[0, 0], expected, atol=1e-5)
    args = [(2, 3, queries, depth), (2, 3, keys, depth), (2, 3, keys, value_depth), 0.0, causal]
    outs = [(2, 3, queries, value_depth), (2, 3, queries)]
    b = GraphBuilder("attention")
    ids = [b.tensor(shape, "float32", role="input") for shape in args[:3]]
    b.inputs += ids
    made = [b.tensor(shape, "float32") for shape in outs]
    attrs = {"args": [Ref(0), Ref(1), Ref(2), *args[3:]], "kwargs": {}}
    b.node("aten._scaled_dot_product_flash_attention_for_cpu.default", ids, made, attrs=attrs)
    b.outputs += made
    graph = b.build()
    assert count(graph, causal="half").macs == 6 * macs
    assert count(graph).macs == count(graph, causal="full").macs == 6 * queries * keys * (depth + value_depth)


Q, K, V = (2, 8, 10, 16), (2, 8, 12, 16), (2, 8, 12, 16)
DENSE = 2 * 8 * 10 * 12 * 32
KEPT = 2 * 8 * 55 * 32  # 1 + 2 + ... + 10 pairs a head
PAIRS = 2 * 8 * 10 * 12
SDPA = {
    "aten.scaled_dot_product_attention.default": [None, 0.0, True],
    "aten._scaled_dot_product_attention_math.default": [None, 0.0, True],
    "aten._scaled_dot_product_flash_attention.default": [0.0, True, False],
    "aten._scaled_dot_product_flash_attention_for_cpu.default": [0.0, True],
    "aten._scaled_dot_product_efficient_attention.default": [None, False, 0.0, True],
    "aten._scaled_dot_product_cudnn_attention.default": [None, False, 0.0, True],
    "aten._scaled_dot_product_fused_attention_overrideable.default": [None, 0.0, True],
}


def sdpa_graph(op, q, k, v, rest, kwargs=None, extra=()):
    b = GraphBuilder(op)
    ids = [b.tensor(shape, "float32", role="input") for shape in (q, k, v, *extra)]
    b.inputs += ids
    out = b.tensor((*q[:-1], v[-1]), "float32")
    b.node(op, ids, [out], attrs={"args": [Ref(0), Ref(1), Ref(2), *rest], "kwargs": kwargs or {}})
    b.outputs.append(out)
    return b.build()


@pytest.mark.parametrize("op", SDPA)
def test_every_attention_variant_counts_alike(op):
    graph = sdpa_graph(op, Q, K, V, SDPA[op])
    full, half = count(graph), count(graph, causal="half")
    assert (full.macs, half.macs) == (DENSE, KEPT)
    assert full.elementwise_flops == 6 * PAIRS
    assert half.elementwise_flops == 6 * 2 * 8 * 55
    not_causal = sdpa_graph(op, Q, K, V, [False if x is True else x for x in SDPA[op]])
    assert count(not_causal, causal="half").macs == DENSE


def test_grouped_query_attention_counts_query_heads():
    shared = (2, 2, 12, 16)
    graph = sdpa_graph("aten.scaled_dot_product_attention.default", Q, shared, shared, [], {"enable_gqa": True})
    assert count(graph).macs == DENSE
    q, k = r(*Q), r(*shared)
    assert traced(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), q, k, k).macs == DENSE


def test_attention_mask_and_dropout_cost_one_flop_a_pair_each():
    op = "aten.scaled_dot_product_attention.default"
    masked = sdpa_graph(op, Q, K, V, [Ref(3), 0.1], extra=[(10, 12)])
    assert count(masked).elementwise_flops == 8 * PAIRS


BACKWARD = 2 * 8 * 10 * 12 * (3 * 16 + 2 * 16)
SDPA_BACKWARD = {
    "aten._scaled_dot_product_flash_attention_for_cpu_backward.default": [Q, (2, 8, 10), 0.0, False],
    "aten._scaled_dot_product_flash_attention_backward.default": [Q, (2, 8, 10), None, None, 10, 12, 0.0, False, (2,), (2,)],
    "aten._scaled_dot_product_efficient_attention_backward.default": [None, Q, (2, 8, 10), (2,), (2,), 0.0, [True] * 4, False],
    "aten._scaled_dot_product_cudnn_attention_backward.default": [Q, (2, 8, 10), (2,), (2,), None, None, None, 10, 12, 0.0, False],
    "aten._scaled_dot_product_fused_attention_overrideable_backward.default": [
        None, [True] * 4, Q, (2, 8, 10), None, None, 10, 12, 0.0, False, (2,), (2,),
    ],
}  # fmt: skip


@pytest.mark.parametrize("op", SDPA_BACKWARD)
def test_attention_backward_is_five_products(op):
    work = one_node(op, [Q, Q, K, V, *SDPA_BACKWARD[op]], [Q, K, V])
    assert work == (BACKWARD, 6 * PAIRS + 2 * prod(Q))


def test_flash_forward_reads_sequence_before_heads():
    work = one_node(
        "aten._flash_attention_forward.default",
        [(2, 10, 8, 16), (2, 12, 8, 16), (2, 12, 8, 16), None, None, 10, 12, 0.0, False, False],
        [(2, 10, 8, 16)],
    )
    assert work.macs == DENSE
    work = one_node(
        "aten._efficient_attention_forward.default",
        [(2, 10, 8, 16), (2, 12, 8, 16), (2, 12, 8, 16), None, None, None, None, None, 0.0, 0],
        [(2, 10, 8, 16)],
    )
    assert work.macs == DENSE


def mha_macs(batch, queries, keys, width):
    projections = 2 * queries * width * width + 2 * keys * width * width
    return batch * (projections + 2 * queries * keys * width)


@pytest.mark.parametrize("need_weights", [True, False])
def test_multi_head_attention_fast_and_slow_path(need_weights):
    mha = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    x = r(2, 7, 32)

    def attend(x):
        return mha(x, x, x, need_weights=need_weights)

    fast, slow = traced(mha, x, x, x, need_weights=need_weights), traced(Function(attend).train(), x)
    assert fast.macs == slow.macs == mha_macs(2, 7, 7, 32)
    memory = r(2, 9, 32)
    assert traced(mha, x, memory, memory, need_weights=need_weights).macs == mha_macs(2, 7, 9, 32)


def test_native_multi_head_attention_node():
    shapes = [(2, 7, 32)] * 3 + [32, 4, (96, 32), (96,), (32, 32), (32,)]
    work = one_node("aten._native_multi_head_attention.default", [*shapes, None, False], [(2, 7, 32), (0,)])
    pairs, rows = 2 * 4 * 49, 14
    assert work == (mha_macs(2, 7, 7, 32), rows * 96 + rows * 32 + rows * 32 + 5 * pairs)


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_encoder_layer_fast_path(norm_first):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first).eval()
    expected = mha_macs(2, 7, 7, 32) + 2 * (14 * 32 * 64)
    assert traced(layer, r(2, 7, 32)).macs == expected
    args = [(2, 7, 32), 32, 4, (96, 32), (96,), (32, 32), (32,), False, norm_first, 1e-5, (32,), (32,), (32,), (32,)]
    work = one_node("aten._transformer_encoder_layer_fwd.default", [*args, (64, 32), (64,), (32, 64), (32,)], [(2, 7, 32)])
    assert work.macs == expected
    norms = 2 * (14 * 32 * 8 + 14 * 4)
    attention = 14 * 96 + 14 * 32 + 14 * 32 + 5 * 2 * 4 * 49
    assert work.elementwise == attention + norms + 14 * 64 * 2 + 14 * 32 + 2 * 14 * 32


# ---- recurrent layers -----------------------------------------------------------------------------------------------


def rnn_macs(rows, gates, features, hidden, layers=1, directions=1, projected=0):
    """Every step of every layer and direction: gates x hidden rows against the input and the previous output."""
    out = projected or hidden
    total = 0
    for layer in range(layers):
        width = features if layer == 0 else out * directions
        total += directions * (gates * hidden * (width + out) + projected * hidden)
    return rows * total


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers(kind, gates, bidirectional, layers, bias):
    net = kind(5, 6, layers, bias=bias, bidirectional=bidirectional)
    counts = traced(net, r(7, 2, 5))
    assert counts.macs == rnn_macs(14, gates, 5, 6, layers, 1 + bidirectional)


def test_lstm_with_projection():
    counts = traced(nn.LSTM(5, 6, 2, proj_size=3), r(7, 2, 5))
    assert counts.macs == rnn_macs(14, 4, 5, 6, 2, projected=3)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1)])
def test_recurrent_cells(kind, gates):
    assert traced(kind(5, 6), r(3, 5)).macs == rnn_macs(3, gates, 5, 6)


LSTM_PARAMS = [(24, 5), (24, 6), (24,), (24,), (24, 5), (24, 6), (24,), (24,)]


def test_whole_recurrent_ops():
    state = [(2, 2, 6), (2, 2, 6)]
    rest = [True, 1, 0.0, False, True, False]
    outs = [(7, 2, 12), *state]
    pointwise = 14 * 2 * 6 * (12 + 4 + 5)  # both sums and biases, activations, the state's update
    work = one_node("aten.lstm.input", [(7, 2, 5), state, LSTM_PARAMS, *rest], outs)
    assert work == (rnn_macs(14, 4, 5, 6, 1, 2), pointwise)
    packed = one_node("aten.lstm.data", [(11, 5), ("int64", (7,)), state, LSTM_PARAMS, True, 1, 0.0, False, True], [(11, 12), *state])
    assert packed.macs == rnn_macs(11, 4, 5, 6, 1, 2)
    weights = [(18, 5), (18, 6), (18,), (18,)]
    work = one_node("aten.gru.input", [(7, 2, 5), (1, 2, 6), weights, True, 1, 0.0, False, False, False], [(7, 2, 6), (1, 2, 6)])
    assert work == (rnn_macs(14, 3, 5, 6), 14 * 6 * (9 + 3 + 5))
    work = one_node("aten.rnn_tanh.input", [(7, 2, 5), (1, 2, 6), [(6, 5), (6, 6)], False, 1, 0.0, False, False, False], [(7, 2, 6)])
    assert work == (rnn_macs(14, 1, 5, 6), 14 * 6 * 2)
    cudnn = [(7, 2, 5), LSTM_PARAMS, 4, None, *state, 2, 6, 0, 1, False, 0.0, False, True, [], None]
    assert one_node("aten._cudnn_rnn.default", cudnn, outs) == (rnn_macs(14, 4, 5, 6, 1, 2), pointwise)
    layer = [(7, 2, 5), (24, 5), (24, 6), (24,), (24,), (2, 6), (2, 6), False, [], 2, 6, 1, True, False, False, False]
    assert one_node("aten.mkldnn_rnn_layer.default", layer, [(7, 2, 6)]) == (rnn_macs(14, 4, 5, 6), pointwise // 2)


# ---- pointwise, norms, softmax, pooling, interpolation: no MACs, exact FLOPs -----------------------------------------

X = r(2, 6, 8, 8)
N = 2 * 6 * 64
ELEMENTWISE = {
    "relu": (F.relu, N),
    "relu in place": (lambda x: F.relu_(x + 1), 2 * N),
    "add with alpha": (lambda x: torch.add(x, x, alpha=2), 2 * N),
    "add broadcast": (lambda x: x + x[:1], N),
    "sub and mul": (lambda x: (x - 1) * x, 2 * N),
    "clamp": (lambda x: x.clamp(0, 6), 2 * N),
    "clamp one side": (lambda x: x.clamp(min=0), N),
    "relu6": (F.relu6, 2 * N),
    "hardswish": (F.hardswish, 5 * N),
    "silu": (F.silu, 2 * N),
    "gelu": (F.gelu, 5 * N),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), 9 * N),
    "sigmoid": (torch.sigmoid, N),
    "glu": (lambda x: F.glu(x, 1), 2 * N // 2),
    "elu": (F.elu, 4 * N),
    "softplus": (F.softplus, 5 * N),
    "addcmul": (lambda x: torch.addcmul(x, x, x, value=0.5), 3 * N),
    "lerp": (lambda x: torch.lerp(x, x, 0.5), 3 * N),
    "complex product": (lambda x: torch.view_as_complex(x.reshape(-1, 2)) * torch.view_as_complex(x.reshape(-1, 2)), 6 * N // 2),
    "where": (lambda x: torch.where(x > 0, x, 0.0), 2 * N),
    "views and copies": (lambda x: torch.cat([x.transpose(1, 2).contiguous().view(-1), x.flatten()]).reshape(2, -1), 0),
    "creation and random": (lambda x: (torch.zeros_like(x), torch.rand_like(x), torch.arange(5)), 0),
    "sum": (lambda x: x.sum(1), N),
    "mean": (lambda x: x.mean((2, 3)), N + 12),
    "amax": (lambda x: x.amax(1), N),
    "max with a tensor": (lambda x: torch.maximum(x, x), N),
    "var": (lambda x: x.var(1), 4 * N + 2 * N // 6),
    "cumsum": (lambda x: x.cumsum(0), N),
    "softmax": (lambda x: x.softmax(-1), 5 * N),
    "log softmax": (lambda x: x.log_softmax(-1), 5 * N),
    "batch norm": (lambda x: F.batch_norm(x, torch.zeros(6), torch.ones(6), torch.ones(6), torch.ones(6)), 4 * N + 2 * 6),
    "batch norm plain": (lambda x: F.batch_norm(x, torch.zeros(6), torch.ones(6)), 2 * N + 2 * 6),
    "batch norm training": (lambda x: F.batch_norm(x, None, None, training=True), 6 * N + 4 * 6),
    "layer norm": (lambda x: F.layer_norm(x, (8,), torch.ones(8), torch.ones(8)), 8 * N + 4 * N // 8),
    "layer norm plain": (lambda x: F.layer_norm(x, (8, 8)), 6 * N + 4 * N // 64),
    "group norm": (lambda x: F.group_norm(x, 3, torch.ones(6), torch.ones(6)), 8 * N + 4 * 6),
    "max pool": (lambda x: F.max_pool2d(x, 3, 2, 1), 2 * 6 * 16 * 9),
    "max pool dilated": (lambda x: F.max_pool2d(x, 2, 1, 0, 2), 2 * 6 * 36 * 4),
    "average pool": (lambda x: F.avg_pool2d(x, (2, 4)), 2 * 6 * 8 * 9),
    "adaptive average pool": (lambda x: F.adaptive_avg_pool2d(x, 3), 2 * 6 * (10 * 10 + 9)),
    "adaptive to one is a mean": (lambda x: F.adaptive_avg_pool2d(x, 1), N + 12),
    "adaptive max pool": (lambda x: F.adaptive_max_pool2d(x, 3), 2 * 6 * 10 * 10),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), 0),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 4 * N * 7),
    "bicubic": (lambda x: F.interpolate(x, size=(4, 4), mode="bicubic"), 12 * 16 * 31),
    "linear": (lambda x: F.interpolate(x[..., 0], size=16, mode="linear"), 12 * 16 * 3),
    "trilinear": (lambda x: F.interpolate(x[None], scale_factor=2, mode="trilinear"), 8 * N * 15),
    "dropout in inference": (lambda x: F.dropout(x, 0.5, False), 0),
    "embedding": (lambda x: F.embedding(torch.arange(4), x[0, 0]), 0),
    "cross entropy": (lambda x: F.cross_entropy(x[..., 0, 0], torch.tensor([1, 2])), 5 * 12 + 2 + 2 + 1),
    "mse": (lambda x: F.mse_loss(x, x), 3 * N + 1),
    "topk": (lambda x: x.topk(4, -1), N * 3),
    "sort": (lambda x: x.sort(-1), N * 3),
    "fft": (lambda x: torch.fft.fft(torch.view_as_complex(x.reshape(-1, 16, 2))), 5 * (N // 2) * 4),
    "rfft": (lambda x: torch.fft.rfft(x.reshape(-1, 16)), 5 * N * 4 // 2),
    "norm": (lambda x: torch.linalg.vector_norm(x), 2 * N + 1),
    "masked fill": (lambda x: x.masked_fill(x > 0, 0.0), 2 * N),
    "scatter add": (lambda x: torch.zeros(9).scatter_add(0, torch.tensor([1, 1, 2]), x.flatten()[:3]), 3),
}  # fmt: skip


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_hand_counts(name):
    function, flops = ELEMENTWISE[name]
    counts = traced(function, X.clone())
    assert (counts.macs, counts.elementwise_flops) == (0, flops)


BACKWARD_NODES = {
    "aten.threshold_backward.default": ([(4, 8), (4, 8), 0], [(4, 8)], 32),
    "aten.gelu_backward.default": ([(4, 8), (4, 8)], [(4, 8)], 11 * 32),
    "aten._softmax_backward_data.default": ([(4, 8), (4, 8), -1, Atom("dtype", "float32")], [(4, 8)], 4 * 32),
    "aten.native_layer_norm_backward.default": (
        [(4, 8), (4, 8), [8], (4, 1), (4, 1), (8,), (8,), [True] * 3],
        [(4, 8), (8,), (8,)],
        13 * 32,
    ),
    "aten.native_batch_norm_backward.default": (
        [(4, 8), (4, 8), None, None, None, (8,), (8,), True, 1e-5, [True, False, False]],
        [(4, 8)],
        9 * 32,
    ),
    "aten.max_pool2d_with_indices_backward.default": (
        [(1, 2, 4, 4), (1, 2, 8, 8), [2, 2], [2, 2], [0, 0], [1, 1], False, ("int64", (1, 2, 4, 4))],
        [(1, 2, 8, 8)],
        32,
    ),
    "aten.avg_pool2d_backward.default": ([(1, 2, 4, 4), (1, 2, 8, 8), [2], [2, 2], [0, 0], False, True, None], [(1, 2, 8, 8)], 5 * 32),
    "aten._adaptive_avg_pool2d_backward.default": ([(1, 2, 3, 3), (1, 2, 8, 8)], [(1, 2, 8, 8)], 2 * 10 * 10 + 18),
    "aten.upsample_bilinear2d_backward.default": ([(1, 2, 8, 8), [8, 8], [1, 2, 4, 4], False], [(1, 2, 4, 4)], 8 * 128),
    "aten.embedding_dense_backward.default": ([(3, 4, 8), ("int64", (3, 4)), 10, -1, False], [(10, 8)], 96),
    "aten.nll_loss_backward.default": ([(), (4, 8), ("int64", (4,)), None, 1, -100, ()], [(4, 8)], 4),
    "aten.native_dropout.default": ([(4, 8), 0.5, True], [(4, 8), (4, 8)], 64),
    "aten.index_put_.default": ([(4, 8), [("int64", (3,))], (3, 8), True], [(4, 8)], 24),
    "aten._upsample_bilinear2d_aa.default": ([(1, 2, 8, 8), [4, 4], False], [(1, 2, 4, 4)], 2 * (32 * 9 + 16 * 9)),
    "aten.grid_sampler_2d.default": ([(1, 2, 8, 8), (1, 4, 4, 2), 0, 0, False], [(1, 2, 4, 4)], 32 * 7),
    "torchvision.roi_align.default": ([(1, 2, 8, 8), (3, 5), 1.0, 4, 4, 2, True], [(3, 2, 4, 4)], 96 * (8 * 4 + 1)),
}


@pytest.mark.parametrize("op", BACKWARD_NODES)
def test_backward_and_rare_nodes(op):
    args, outputs, flops = BACKWARD_NODES[op]
    assert one_node(op, args, outputs) == (0, flops)


COMPOSITE_NODES = {
    "aten.dropout.default": ([(4, 8), 0.5, False], [(4, 8)], 0),
    "aten.cross_entropy_loss.default": ([(4, 8), ("int64", (4,))], [()], 5 * 32 + 4 + 4 + 1),
    "aten.l1_loss.default": ([(4, 8), (4, 8), 2], [()], 2 * 32 + 32),
    "aten.cosine_similarity.default": ([(4, 8), (4, 8)], [(4,)], 6 * 32 + 5 * 4),
    "aten.cdist.default": ([(4, 8), (6, 8)], [(4, 6)], 24 * (3 * 8 + 1)),
    "aten.fft_rfft.default": ([(4, 16)], [(4, 9)], 4 * 5 * 16 * 4 // 2),
    "aten.fft_irfft2.default": ([("complex64", (8, 5))], [(8, 8)], 5 * 64 * 6 // 2),
    "aten.fft_fftn.default": ([("complex64", (4, 4, 4))], [(4, 4, 4)], 5 * 64 * 6),
    "aten.stft.default": ([(2, 64), 16, 4, 16, None, False, True, False], [(2, 9, 17, 2)], 2 * 17 * (16 + 5 * 16 * 4 // 2)),
    "aten._weight_norm_interface.default": ([(6, 4, 3), (6, 1, 1), 0], [(6, 4, 3), (6, 1, 1)], 3 * 72 + 2 * 6),
    "aten._ctc_loss.default": ([(20, 2, 5), ("int64", (2, 3)), [20, 20], [3, 3]], [(2,), (2, 20, 7)], 9 * 20 * 2 * 7),
    "aten.grid_sampler_2d_backward.default": (
        [(1, 2, 4, 4), (1, 2, 8, 8), (1, 4, 4, 2), 0, 0, False, [True, False]],
        [(1, 2, 8, 8), (1, 4, 4, 2)],
        32 * 4 * 2,
    ),
    "aten.reflection_pad2d_backward.default": ([(1, 2, 6, 6), (1, 2, 4, 4), [1, 1, 1, 1]], [(1, 2, 4, 4)], 72),
    "aten.embedding_bag.default": ([(10, 8), ("int64", (6,)), ("int64", (2,)), False, 1], [(2, 8)], 48 + 16),
}


@pytest.mark.parametrize("op", COMPOSITE_NODES)
def test_composite_and_rare_nodes(op):
    args, outputs, flops = COMPOSITE_NODES[op]
    assert one_node(op, args, outputs) == (0, flops)


def test_euclidean_distance_is_a_product_of_widened_operands():
    assert one_node("aten._euclidean_dist.default", [(4, 8), (6, 8)], [(4, 6)]) == (24 * 10, 48 + 3 * 32 + 2 * 48)


OPTIMIZERS = {
    # FLOPs per parameter element of the rule written out.
    "aten._fused_sgd_.default": ([[(3, 4), (5,)], [(3, 4), (5,)], []], {"weight_decay": 0.0, "momentum": 0.0, "lr": 0.1}, 2),
    "aten._fused_sgd_.tensor_lr": ([[(3, 4), (5,)], [(3, 4), (5,)], []], {"weight_decay": 0.1, "momentum": 0.9, "nesterov": True}, 8),
    "aten._fused_adam_.default": ([[(3, 4), (5,)]] * 4, {"weight_decay": 0.0, "amsgrad": False, "maximize": False}, 13),
    "aten._fused_adamw_.default": ([[(3, 4), (5,)]] * 4, {"weight_decay": 0.1, "amsgrad": True, "maximize": False}, 15),
    "aten._fused_adagrad_.default": ([[(3, 4), (5,)]] * 3, {"weight_decay": 0.0, "maximize": False}, 7),
    "aten._foreach_add_.List": ([[(3, 4), (5,)], [(3, 4), (5,)]], {"alpha": 1}, 1),
    "aten._foreach_add_.Scalar": ([[(3, 4), (5,)], 1], {}, 1),
    "aten._foreach_addcdiv_.ScalarList": ([[(3, 4), (5,)]] * 3 + [[0.1, 0.1]], {}, 3),
    "aten._foreach_lerp_.Scalar": ([[(3, 4), (5,)], [(3, 4), (5,)], 0.1], {}, 3),
    "aten._foreach_sqrt.default": ([[(3, 4), (5,)]], {}, 1),
    "aten._foreach_copy_.default": ([[(3, 4), (5,)], [(3, 4), (5,)]], {}, 0),
}  # fmt: skip


@pytest.mark.parametrize("op", OPTIMIZERS)
def test_optimizer_steps(op):
    args, kwargs, flops = OPTIMIZERS[op]
    assert one_node(op, args, [], kwargs) == (0, 17 * flops)


# ---- whole networks and the shape of the result ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "macs"),
    [("resnet50", 4_089_184_256), ("vit_b_16", 17_563_828_224), ("gpt2_small", 11_173_625_856), ("lstm", 29_362_688)],
)
def test_reference_totals(name, macs):
    module, args = reference_model(name)
    with torch.device("meta"):
        model = module()
    assert traced(model, *args()).macs == macs


def test_gpt2_causal_half_is_the_triangle():
    module, args = reference_model("gpt2_small")
    with torch.device("meta"):
        model = module()
    full, half = traced(model, *args()).macs, traced(model, *args(), causal="half").macs
    pairs, triangle = 128 * 128, 128 * 129 // 2
    assert full - half == 12 * 12 * (pairs - triangle) * 2 * 64


def test_unknown_ops_are_reported_and_not_zero():
    b = GraphBuilder("unknown")
    x = b.tensor((2, 3), "float32", role="input")
    y, z = b.tensor((2, 3), "float32"), b.tensor((2, 3), "float32")
    b.inputs.append(x)
    b.node("mylib.mystery.default", [x], [y], scope="a.b")
    b.node("aten.relu.default", [y], [z], attrs={"args": [Ref(0)], "kwargs": {}}, scope="a")
    b.outputs.append(z)
    counts = count(b.build())
    assert counts.unknown == {"mylib.mystery.default": 1}
    assert counts.node_known.tolist() == [False, True]
    assert counts.elementwise_flops == 6
    assert counts.by_module() == {"": (0, 6), "a": (0, 6), "a.b": (0, 0)}


def test_nodes_without_recorded_arguments_are_unknown():
    b = GraphBuilder("plain")
    x = b.tensor((64,), "uint8", role="input")
    y = b.tensor((64,), "uint8")
    b.inputs.append(x)
    b.node("aten.conv2d.default", [x], [y])
    b.outputs.append(y)
    assert count(b.build()).unknown == {"aten.conv2d.default": 1}


def test_by_module_adds_up_to_the_total():
    module, args = reference_model("resnet8")
    counts = traced(module(), *args())
    modules = counts.by_module()
    assert modules[""] == (counts.macs, counts.elementwise_flops)
    children = [w for scope, w in modules.items() if scope and "." not in scope]
    assert sum(w.macs for w in children) == counts.macs


def test_causal_takes_three_values():
    b = GraphBuilder("empty")
    with pytest.raises(ValueError, match="'full', 'half' or None, not 'some'"):
        count(b.build(), causal="some")  # pyright: ignore[reportArgumentType]
