"""Facts of ONNX operators, of the default domain and of onnxruntime's fusions (`com.microsoft`).

Formulas and conventions are those of the aten ops that compute the same; operands are `Call.operand`s, attributes
`Call.attrs`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2, prod

from .graph import Tensor
from .ops import NO_WORK, Call, MissingFact, OpFacts, Work
from .ops_attention import SOFTMAX_FLOPS, attention_pairs
from .ops_contraction import convolution_macs, deformable_work, einsum_macs
from .ops_norm import norm_flops, rms_norm_flops
from .ops_recurrent import cell_flops
from .ops_spatial import interpolation_flops, pool_flops

Formula = Callable[[Call], Work]


# ---- contractions ---------------------------------------------------------------------------------------------------


def _convolution(weight_at: int = 1, bias_at: int = 2, *, transposed: bool = False, requantised: int = 0) -> Formula:
    def work(call: Call) -> Work:
        y = call.output()
        macs = convolution_macs(call.needed(0), call.needed(weight_at), y, transposed)
        return Work(macs, y.numel * ((call.operand(bias_at) is not None) + requantised))

    return work


def _deform_conv(call: Call) -> Work:
    """A convolution over bilinear samples: (X, W, offset, B, mask)."""
    masked, biased = call.operand(4) is not None, call.operand(3) is not None
    return deformable_work(call.needed(0), call.needed(1), call.output(), masked=masked, biased=biased)


def _matmul(left: int = 0, *, requantised: int = 0, bias_at: int = 99) -> Formula:
    """The summed axis is the last of the left operand, or its second last with `transA`."""

    def work(call: Call) -> Work:
        a, y = call.needed(left), call.output()
        inner = a.shape[-2] if call.attrs.get("transA") else a.shape[-1]
        return Work(y.numel * inner, y.numel * (requantised + (call.operand(bias_at) is not None)))

    return work


def _gemm(call: Call) -> Work:
    """alpha A B + beta C."""
    a, y = call.needed(0), call.output()
    inner = a.shape[0] if call.attrs.get("transA") else a.shape[1]
    added = call.operand(2) is not None
    extra = (call.attrs.get("alpha", 1.0) != 1) + added * (1 + (call.attrs.get("beta", 1.0) != 1))
    return Work(y.numel * inner, extra * y.numel)


def _einsum(call: Call) -> Work:
    operands = [call.graph.tensors[t].shape for t in call.node.inputs]
    return Work(einsum_macs(call.attrs["equation"], operands))


# ---- attention and recurrence ---------------------------------------------------------------------------------------


def _attention(call: Call) -> Work:
    """(Q, K, V, mask, past key, past value), 4-D with heads on axis 1, or 3-D with heads folded into the last axis."""
    q, k, v = call.needed(0), call.needed(1), call.needed(2)
    if len(q.shape) == 4:
        batch, heads, queries, depth = q.shape
        keys, value_depth = k.shape[2], v.shape[3]
    else:
        heads, shared = int(call.attrs["q_num_heads"]), int(call.attrs["kv_num_heads"])
        batch, queries, depth = q.shape[0], q.shape[1], q.shape[2] // heads
        keys, value_depth = k.shape[1], v.shape[2] // shared
    past = call.operand(4)
    before = past.shape[2] if past is not None else 0
    causal = bool(call.attrs.get("is_causal", 0)) and call.causal_half
    per_head = queries * before + attention_pairs(queries, keys, causal=causal)
    pairs = batch * heads * per_head
    capped = 3 * (call.attrs.get("softcap", 0.0) != 0)
    return Work(pairs * (depth + value_depth), pairs * (1 + (call.operand(3) is not None) + SOFTMAX_FLOPS + capped))


def _microsoft_attention(call: Call) -> Work:
    """(input, weights (E, 3 H D), bias, mask): the projections in, then attention."""
    x, weights = call.needed(0), call.needed(1)
    batch, rows, width = x.shape
    inner, heads = weights.shape[1] // 3, int(call.attrs["num_heads"])
    causal = bool(call.attrs.get("unidirectional", 0)) and call.causal_half
    pairs = batch * heads * attention_pairs(rows, rows, causal=causal)
    biased = call.operand(2) is not None
    macs = batch * rows * width * 3 * inner + 2 * pairs * (inner // heads)
    return Work(macs, batch * rows * 3 * inner * biased + pairs * (1 + (call.operand(3) is not None) + SOFTMAX_FLOPS))


def _microsoft_multi_head_attention(call: Call) -> Work:
    """(query (N, S, H D), key (N, L, H D) or (N, H, L, D), value, bias, ...)."""
    q, k, v = call.needed(0), call.needed(1), call.needed(2)
    if len(q.shape) != 3:
        raise MissingFact("attention on packed projections")
    heads = int(call.attrs["num_heads"])
    keys = k.shape[2] if len(k.shape) == 4 else k.shape[1]
    value_depth = v.shape[3] if len(v.shape) == 4 else v.shape[2] // heads
    causal = bool(call.attrs.get("unidirectional", 0)) and call.causal_half
    pairs = q.shape[0] * heads * attention_pairs(q.shape[1], keys, causal=causal)
    bias = sum(t.numel for t in (q, k, v)) if call.operand(3) is not None else 0
    return Work(pairs * (q.shape[2] // heads + value_depth), bias + pairs * (1 + (call.operand(5) is not None) + SOFTMAX_FLOPS))


def _recurrent(cell: str) -> Formula:
    """X (T, N, I), W (directions, gates H, I), R (directions, gates H, H), B; an LSTM's peepholes add three products a unit."""

    def work(call: Call) -> Work:
        x, w, r = call.needed(0), call.needed(1), call.needed(2)
        rows, hidden = x.shape[0] * x.shape[1], w.shape[0] * r.shape[2]
        peepholes = 6 if cell == "lstm" and call.operand(7) is not None else 0
        per_unit = cell_flops(cell, biased=call.operand(3) is not None) + peepholes
        return Work(rows * (w.numel + r.numel), rows * hidden * per_unit)

    return work


# ---- pointwise and reductions ---------------------------------------------------------------------------------------

# FLOPs per output element; see `ops_pointwise` for the formulas.
POINTWISE = {
    **dict.fromkeys(
        (
            "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr",
            "BitwiseXor", "Ceil", "Cos", "Cosh", "Div", "Equal", "Erf", "Exp", "Floor", "Greater", "GreaterOrEqual", "IsInf", "IsNaN",
            "Less", "LessOrEqual", "Log", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin",
            "Sinh", "Sqrt", "Sub", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
        ),
        1,
    ),
    "LeakyRelu": 2, "PRelu": 2, "Elu": 4, "Celu": 5, "Selu": 5, "Softplus": 3, "Softsign": 3, "HardSigmoid": 4, "HardSwish": 5, "Mish": 5,
    "Swish": 2, "Shrink": 3, "QuantizeLinear": 4, "DequantizeLinear": 2, "DynamicQuantizeLinear": 6,
}  # fmt: skip

# (FLOPs per input element, FLOPs per output element)
REDUCTIONS = {
    "ReduceSum": (1, 0), "ReduceMean": (1, 1), "ReduceMax": (1, 0), "ReduceMin": (1, 0), "ReduceProd": (1, 0), "ReduceL1": (2, 0),
    "ReduceL2": (2, 1), "ReduceLogSum": (1, 1), "ReduceLogSumExp": (4, 2), "ReduceSumSquare": (2, 0), "ArgMax": (1, 0), "ArgMin": (1, 0),
    "CumSum": (1, 0), "CumProd": (1, 0), "GlobalAveragePool": (1, 1), "GlobalMaxPool": (1, 0), "GlobalLpPool": (2, 1),
    "LpNormalization": (3, 0), "NegativeLogLikelihoodLoss": (1, 0),
}  # fmt: skip


def _pointwise(flops: int) -> Formula:
    def work(call: Call) -> Work:
        return Work(0, flops * call.output().numel)

    return work


def _reduction(per_input: int, per_output: int) -> Formula:
    def work(call: Call) -> Work:
        return Work(0, per_input * call.needed(0).numel + per_output * (call.output().numel if per_output else 0))

    return work


def _variadic(mean: bool = False) -> Formula:
    """Max, Min, Sum, Mean over any number of operands."""

    def work(call: Call) -> Work:
        return Work(0, (len(call.node.inputs) - 1 + mean) * call.output().numel)

    return work


def _clip(call: Call) -> Work:
    bounds = sum(call.operand(i) is not None for i in (1, 2)) + sum(name in call.attrs for name in ("min", "max"))
    return Work(0, bounds * call.output().numel)


def _gelu(call: Call) -> Work:
    return Work(0, (9 if call.attrs.get("approximate") == "tanh" else 5) * call.output().numel)


def _dropout(call: Call) -> Work:
    """Nothing in inference; x mask / (1 - p) where the `training_mode` operand exists."""
    return Work(0, 2 * call.output().numel) if call.operand(2) is not None else NO_WORK


def _scatter(call: Call) -> Work:
    return Work(0, call.needed(2).numel) if call.attrs.get("reduction", "none") != "none" else NO_WORK


def _topk(call: Call) -> Work:
    """Comparisons of a heap of size k: ceil(log2 k) + 1 an element."""
    x, k = call.needed(0), call.output().shape[int(call.attrs.get("axis", -1))]
    return Work(0, x.numel * (1 + (ceil(log2(k)) if k > 1 else 0)))


def _unique(call: Call) -> Work:
    n = call.needed(0).numel
    return Work(0, n * ceil(log2(n)) if n > 1 else 0)


def _dft(call: Call) -> Work:
    """5 n log2 n FLOPs per complex transform, half for real input; the last axis holds real and imaginary parts."""
    x, y = call.needed(0), call.output()
    n = max(x.shape[int(call.attrs.get("axis", 1))], y.shape[int(call.attrs.get("axis", 1))])
    transforms = max(x.numel // x.shape[-1], y.numel // y.shape[-1]) // max(1, n)
    full = 5 * n * log2(n) * transforms if n > 1 else 0
    return Work(0, round(full / 2 if x.shape[-1] == 1 or call.attrs.get("onesided") else full))


def _rotary(call: Call) -> Work:
    """Two multiplications and an addition per rotated element."""
    y = call.output()
    share = int(call.attrs.get("rotary_embedding_dim", 0))
    return Work(0, 3 * (y.numel // y.shape[-1] * share if share and len(y.shape) == 4 else y.numel))


# ---- norms, pooling, interpolation ----------------------------------------------------------------------------------


def _batch_norm(call: Call) -> Work:
    """While training, both running statistics move: six FLOPs a channel."""
    x = call.needed(0)
    training = bool(call.attrs.get("training_mode", 0))
    return Work(0, norm_flops(x.numel, x.shape[1], statistics=training, scale=True, shift=True) + 6 * training * x.shape[1])


def _last_axes(call: Call, x: Tensor) -> int:
    """Number of groups when a norm covers the axes from attribute `axis` on."""
    axis = int(call.attrs.get("axis", -1)) % len(x.shape)
    return prod(x.shape[:axis])


def _layer_norm(call: Call) -> Work:
    x = call.needed(0)
    return Work(0, norm_flops(x.numel, _last_axes(call, x), scale=True, shift=call.operand(2) is not None))


def _rms_norm(call: Call) -> Work:
    x = call.needed(0)
    return Work(0, rms_norm_flops(x.numel, _last_axes(call, x), scale=True))


def _skip_layer_norm(call: Call) -> Work:
    """(input, skip, gamma, beta, bias): the sums, then a layer norm."""
    x = call.needed(0)
    sums = x.numel * (1 + (call.operand(4) is not None))
    return Work(0, sums + norm_flops(x.numel, _last_axes(call, x), scale=True, shift=call.operand(3) is not None))


def _skip_rms_norm(call: Call) -> Work:
    x = call.needed(0)
    return Work(0, x.numel * (1 + (call.operand(3) is not None)) + rms_norm_flops(x.numel, _last_axes(call, x), scale=True))


def _instance_norm(call: Call) -> Work:
    x = call.needed(0)
    return Work(0, norm_flops(x.numel, x.shape[0] * x.shape[1], scale=True, shift=True))


def _group_norm(call: Call) -> Work:
    x = call.needed(0)
    return Work(0, norm_flops(x.numel, x.shape[0] * int(call.attrs["num_groups"]), scale=True, shift=True))


def _local_response_norm(call: Call) -> Work:
    """x / (bias + alpha / size * sum of `size` squares)^beta."""
    return Work(0, call.output().numel * (int(call.attrs["size"]) + 5))


def _mean_variance_norm(call: Call) -> Work:
    x = call.needed(0)
    kept = [d for i, d in enumerate(x.shape) if i not in {a % len(x.shape) for a in call.attrs.get("axes", (0, 2, 3))}]
    return Work(0, norm_flops(x.numel, prod(kept)))


def _pool(*, average: bool) -> Formula:
    def work(call: Call) -> Work:
        return Work(0, pool_flops(call.output(), tuple(call.attrs["kernel_shape"]), average=average))

    return work


def _lp_pool(call: Call) -> Work:
    """Power and sum over the window, and one root."""
    return Work(0, call.output().numel * (2 * prod(call.attrs["kernel_shape"]) + 1))


def _resize(call: Call) -> Work:
    """Nearest moves data; linear and cubic weigh 2 or 4 values per axis that changes."""
    x, y = call.needed(0), call.output()
    per_axis = {"nearest": 1, "linear": 2, "bilinear": 2, "cubic": 4}[call.attrs.get("mode", "nearest")]
    taps = per_axis ** sum(a != b for a, b in zip(x.shape, y.shape, strict=True))
    return Work(0, interpolation_flops(y.numel, taps) if taps > 1 else 0)


def _grid_sample(call: Call) -> Work:
    y = call.output()
    per_axis = {"nearest": 1, "bilinear": 2, "linear": 2, "bicubic": 4, "cubic": 4}[call.attrs.get("mode", "linear")]
    taps = per_axis ** (len(y.shape) - 2)
    return Work(0, interpolation_flops(y.numel, taps) if taps > 1 else 0)


def _roi_align(call: Call) -> Work:
    """Bilinear samples (seven FLOPs), averaged; an adaptive number of samples has no static count."""
    ratio = int(call.attrs.get("sampling_ratio", 0))
    if ratio <= 0:
        raise MissingFact("RoiAlign with an adaptive number of samples")
    return Work(0, call.output().numel * (8 * ratio * ratio + 1))


# ---- the table ------------------------------------------------------------------------------------------------------

_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
_MOVEMENT = (
    "BitCast", "Cast", "CastLike", "CenterCropPad", "Col2Im", "Compress", "Concat", "ConcatFromSequence", "DepthToSpace", "Expand",
    "Gather", "GatherElements", "GatherND", "MaxUnpool", "NonZero", "OneHot", "Optional", "OptionalGetElement", "OptionalHasElement", "Pad",
    "ReverseSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "Shape",
    "Size", "Slice", "SpaceToDepth", "Split", "SplitToSequence", "TensorScatter", "Tile", "Transpose", "Trilu",
)  # fmt: skip
_CREATION = ("BlackmanWindow", "Constant", "ConstantOfShape", "EyeLike", "HammingWindow", "HannWindow", "MelWeightMatrix", "Range")
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")

_BY_KIND: dict[str, dict[str, Formula | None]] = {
    "contraction": {
        "Conv": _convolution(),
        "ConvTranspose": _convolution(transposed=True),
        "ConvInteger": _convolution(bias_at=99),
        "QLinearConv": _convolution(3, 8, requantised=4),
        "com.microsoft.FusedConv": _convolution(),
        "DeformConv": _deform_conv,
        "Gemm": _gemm,
        "com.microsoft.FusedGemm": _gemm,
        "MatMul": _matmul(),
        "MatMulInteger": _matmul(),
        "QLinearMatMul": _matmul(requantised=4),
        "com.microsoft.FusedMatMul": _matmul(),
        "com.microsoft.MatMulIntegerToFloat": _matmul(requantised=1, bias_at=6),
        "com.microsoft.DynamicQuantizeMatMul": _matmul(requantised=1, bias_at=4),
        "com.microsoft.MatMulNBits": _matmul(),
        "Einsum": _einsum,
    },
    "attention": {
        "Attention": _attention,
        "com.microsoft.Attention": _microsoft_attention,
        "com.microsoft.MultiHeadAttention": _microsoft_multi_head_attention,
    },
    "rnn": {"LSTM": _recurrent("lstm"), "GRU": _recurrent("gru"), "RNN": _recurrent("rnn_tanh")},
    "elementwise": {
        "Clip": _clip,
        "Gelu": _gelu,
        "Max": _variadic(),
        "Min": _variadic(),
        "Sum": _variadic(),
        "Mean": _variadic(mean=True),
        "RotaryEmbedding": _rotary,
        "com.microsoft.RotaryEmbedding": _rotary,
        "com.microsoft.Gelu": _pointwise(5),
        "com.microsoft.FastGelu": _pointwise(9),
        "com.microsoft.QuickGelu": _pointwise(3),
        "com.microsoft.BiasGelu": _pointwise(6),
        "com.microsoft.BiasAdd": _pointwise(2),
        "com.microsoft.QLinearAdd": _pointwise(9),
        "com.microsoft.QLinearMul": _pointwise(9),
        "com.microsoft.QLinearSigmoid": _pointwise(7),
        "com.microsoft.QLinearLeakyRelu": _pointwise(8),
    },
    "reduction": {"Scatter": _scatter, "ScatterElements": _scatter, "ScatterND": _scatter, "Hardmax": _pointwise(1)},
    "sort": {"TopK": _topk, "Unique": _unique},
    "fft": {"DFT": _dft},
    "norm": {
        "BatchNormalization": _batch_norm,
        "LayerNormalization": _layer_norm,
        "com.microsoft.LayerNormalization": _layer_norm,
        "RMSNormalization": _rms_norm,
        "SimplifiedLayerNormalization": _rms_norm,
        "com.microsoft.SimplifiedLayerNormalization": _rms_norm,
        "com.microsoft.SkipLayerNormalization": _skip_layer_norm,
        "com.microsoft.SkipSimplifiedLayerNormalization": _skip_rms_norm,
        "InstanceNormalization": _instance_norm,
        "GroupNormalization": _group_norm,
        "LRN": _local_response_norm,
        "MeanVarianceNormalization": _mean_variance_norm,
    },
    "softmax": {"Softmax": _pointwise(5), "LogSoftmax": _pointwise(5)},
    "pool": {"MaxPool": _pool(average=False), "AveragePool": _pool(average=True), "LpPool": _lp_pool},
    "interpolate": {"Resize": _resize, "Upsample": _resize, "GridSample": _grid_sample, "RoiAlign": _roi_align},
    "random": {"Dropout": _dropout, **dict.fromkeys(_RANDOM)},
    "view": dict.fromkeys(_VIEWS),
    "data movement": dict.fromkeys(_MOVEMENT),
    "creation": dict.fromkeys(_CREATION),
}

_IN_PLACE = frozenset((*POINTWISE, "Clip", "Gelu", "Max", "Min", "Sum", "Mean")) - {"DynamicQuantizeLinear"}

FACTS: dict[str, OpFacts] = {
    f"onnx.{name}": OpFacts(kind, work, may_inplace=name in _IN_PLACE)
    for kind, works in {
        **_BY_KIND,
        "elementwise": {**_BY_KIND["elementwise"], **{name: _pointwise(flops) for name, flops in POINTWISE.items()}},
        "reduction": {**_BY_KIND["reduction"], **{name: _reduction(*flops) for name, flops in REDUCTIONS.items()}},
    }.items()
    for name, work in works.items()
}
