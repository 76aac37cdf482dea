"""ONNX operators of neural networks in torch: contractions, convolutions, pools, norms, resizing.

Conventions as in `onnx_kernels`. A kernel that takes `results` returns a tuple of that many tensors. One that meets a form torch has
no direct counterpart for raises `Unsupported`, and the operator is left to onnx's reference implementation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .onnx_kernels import Ints, ints, require

# ---- contractions -----------------------------------------------------------------------------------------------------


def gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0
) -> Tensor:
    a, b = a.t() if transA else a, b.t() if transB else b
    if c is None:
        return alpha * (a @ b) if alpha != 1 else a @ b
    return torch.addmm(c, a, b, beta=beta, alpha=alpha) if c.ndim <= 2 and a.is_floating_point() else alpha * (a @ b) + beta * c


def einsum(*operands: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *operands).contiguous()


def fused_matmul(
    a: Tensor, b: Tensor, *, alpha: float = 1.0, transA: int = 0, transB: int = 0, transBatchA: int = 0, transBatchB: int = 0
) -> Tensor:
    require(not (transBatchA or transBatchB), "batch axes transposed")
    a, b = a.transpose(-1, -2) if transA and a.ndim > 1 else a, b.transpose(-1, -2) if transB and b.ndim > 1 else b
    return alpha * (a @ b)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, past_key: Tensor | None = None, past_value: Tensor | None = None,
    lengths: Tensor | None = None, *, is_causal: int = 0, scale: float | None = None, softcap: float = 0.0, q_num_heads: int = 0,
    kv_num_heads: int = 0, qk_matmul_output_mode: int = 0, softmax_precision: int = 0,
) -> Tensor:  # fmt: skip
    require(past_key is None and past_value is None and lengths is None and softcap == 0, "caches, lengths, softcap")
    heads = q.ndim == 3
    if heads:
        q, k, v = (t.unflatten(-1, (n, -1)).transpose(1, 2) for t, n in ((q, q_num_heads), (k, kv_num_heads), (v, kv_num_heads)))
    require(not (is_causal and mask is not None), "causal with a mask")
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=bool(is_causal), scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2).flatten(2).contiguous() if heads else out


# ---- windows ----------------------------------------------------------------------------------------------------------


def _sides(
    spatial: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Ints, auto_pad: str
) -> list[tuple[int, int]]:
    """(before, after) padding per spatial axis."""
    n = len(spatial)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        out = []
        for size, k, s, d in zip(spatial, kernel, strides, dilations, strict=True):
            total = max(0, (math.ceil(size / s) - 1) * s + d * (k - 1) + 1 - size)
            small, large = total // 2, total - total // 2
            out.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
        return out
    amounts = ints(pads) if pads is not None and auto_pad != "VALID" else [0] * (2 * n)
    return list(zip(amounts[:n], amounts[n:], strict=True))


def _flat(sides: Sequence[tuple[int, int]]) -> list[int]:
    """`F.pad`'s order: last axis first."""
    return [amount for pair in reversed(sides) for amount in pair]


def conv(
    x: Tensor, w: Tensor, b: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: Ints = None, group: int = 1,
    kernel_shape: Ints = None, pads: Ints = None, strides: Ints = None,
) -> Tensor:  # fmt: skip
    n = x.ndim - 2
    steps, spread = ints(strides) or [1] * n, ints(dilations) or [1] * n
    sides = _sides(x.shape[2:], w.shape[2:], steps, spread, pads, auto_pad)
    if all(before == after for before, after in sides):
        padding = [before for before, _ in sides]
    else:
        x, padding = F.pad(x, _flat(sides)), [0] * n
    return torch.convolution(x, w, b, steps, padding, spread, False, [0] * n, group)


def fused_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    z: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: Any = None,
    **conv_attributes: Any,
) -> Tensor:
    y = conv(x, w, b, **conv_attributes)
    y = y if z is None else y + z
    simple = {"": lambda t: t, "Relu": torch.relu, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid}
    if activation in simple:
        return simple[activation](y)
    values = list(activation_params or ())
    require(activation in ("LeakyRelu", "Clip") and bool(values), f"activation {activation}")
    return F.leaky_relu(y, values[0]) if activation == "LeakyRelu" else torch.clamp(y, values[0], values[1])


def conv_transpose(
    x: Tensor, w: Tensor, b: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: Ints = None, group: int = 1,
    kernel_shape: Ints = None, output_padding: Ints = None, output_shape: Ints = None, pads: Ints = None, strides: Ints = None,
) -> Tensor:  # fmt: skip
    n = x.ndim - 2
    steps, spread, extra = ints(strides) or [1] * n, ints(dilations) or [1] * n, ints(output_padding) or [0] * n
    full = [s * (d - 1) + e + r * (k - 1) + 1 for s, d, e, r, k in zip(steps, x.shape[2:], extra, spread, w.shape[2:], strict=True)]
    if output_shape is not None or auto_pad.startswith("SAME"):
        target = ints(output_shape)[-n:] if output_shape is not None else [d * s for d, s in zip(x.shape[2:], steps, strict=True)]
        totals = [max(0, f - t) for f, t in zip(full, target, strict=True)]
        before_first = auto_pad == "SAME_LOWER" or (output_shape is not None and auto_pad != "SAME_UPPER")
        extra = [e + max(0, t - f) for e, t, f in zip(extra, target, full, strict=True)]
        sides = [(t - t // 2, t // 2) if before_first else (t // 2, t - t // 2) for t in totals]
    else:
        sides = _sides(x.shape[2:], w.shape[2:], steps, spread, pads, auto_pad)
    if all(before == after for before, after in sides):
        return torch.convolution(x, w, b, steps, [before for before, _ in sides], spread, True, extra, group)
    y = torch.convolution(x, w, b, steps, [0] * n, spread, True, extra, group)
    window = tuple(slice(before, size - after) for (before, after), size in zip(sides, y.shape[2:], strict=True))
    return y[(slice(None), slice(None), *window)].contiguous()


def _pool_sides(
    x: Tensor, kernel: list[int], steps: list[int], spread: list[int], pads: Ints, auto_pad: str, ceil_mode: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Padding as stated, and with what the last windows of `ceil_mode` reach beyond it."""
    sides = _sides(x.shape[2:], kernel, steps, spread, pads, auto_pad)
    grown = []
    for (before, after), size, k, s, d in zip(sides, x.shape[2:], kernel, steps, spread, strict=True):
        reach = d * (k - 1) + 1
        count = (size + before + after - reach) / s
        outputs = math.ceil(count) + 1 if ceil_mode else math.floor(count) + 1
        if ceil_mode and (outputs - 1) * s >= size + before:
            outputs -= 1
        grown.append((before, after + max(0, (outputs - 1) * s + reach - size - before - after)))
    return sides, grown


def max_pool(
    x: Tensor, *, kernel_shape: Ints, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Ints = None, pads: Ints = None,
    storage_order: int = 0, strides: Ints = None,
) -> Tensor:  # fmt: skip
    kernel = ints(kernel_shape)
    n = len(kernel)
    steps, spread = ints(strides) or [1] * n, ints(dilations) or [1] * n
    sides, grown = _pool_sides(x, kernel, steps, spread, pads, auto_pad, ceil_mode)
    pool: Callable[..., Tensor] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n - 1]
    symmetric = all(b == a and 2 * b <= k for (b, a), k in zip(sides, kernel, strict=True))
    if symmetric and not ceil_mode:
        return pool(x, kernel, steps, [before for before, _ in sides], spread)
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    return pool(F.pad(x, _flat(grown), value=lowest), kernel, steps, 0, spread)


def average_pool(
    x: Tensor, *, kernel_shape: Ints, auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0, dilations: Ints = None,
    pads: Ints = None, strides: Ints = None,
) -> Tensor:  # fmt: skip
    kernel = ints(kernel_shape)
    n = len(kernel)
    steps, spread = ints(strides) or [1] * n, ints(dilations) or [1] * n
    require(all(d == 1 for d in spread), "dilated average pool")
    sides, grown = _pool_sides(x, kernel, steps, spread, pads, auto_pad, ceil_mode)
    pool: Callable[..., Tensor] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n - 1]
    if not ceil_mode and all(b == a and 2 * b <= k for (b, a), k in zip(sides, kernel, strict=True)):
        return pool(x, kernel, steps, [before for before, _ in sides], count_include_pad=bool(count_include_pad))
    ones = torch.ones_like(x[:1, :1])
    if count_include_pad:
        beyond = [(0, g - a) for (_, a), (_, g) in zip(sides, grown, strict=True)]
        counted = F.pad(F.pad(ones, _flat(sides), value=1.0), _flat(beyond))
    else:
        counted = F.pad(ones, _flat(grown))
    return pool(F.pad(x, _flat(grown)), kernel, steps) / pool(counted, kernel, steps)


def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


# ---- norms ------------------------------------------------------------------------------------------------------------


def softmax(x: Tensor, *, axis: int | None = None, opset: int = 13) -> Tensor:
    if opset >= 13:
        return F.softmax(x, -1 if axis is None else axis)
    return F.softmax(x.flatten(1 if axis is None else axis), -1).reshape(x.shape) if x.ndim > 1 else F.softmax(x, 0)


def log_softmax(x: Tensor, *, axis: int | None = None, opset: int = 13) -> Tensor:
    if opset >= 13:
        return F.log_softmax(x, -1 if axis is None else axis)
    require(axis in (-1, x.ndim - 1) or x.ndim == 2, "log-softmax over several axes")
    return F.log_softmax(x, -1)


def batch_norm(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, epsilon: float = 1e-5, momentum: float = 0.9, spatial: int = 1,
    training_mode: int = 0,
) -> Tensor:  # fmt: skip
    require(not training_mode and bool(spatial), "batch norm in training")
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def layer_norm(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    sizes = x.shape[axis % x.ndim :]
    return F.layer_norm(x, sizes, scale.expand(sizes), None if bias is None else bias.expand(sizes), epsilon)


def group_norm(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1, opset: int = 21
) -> Tensor:
    if opset < 21:
        scale, bias = (t.repeat_interleave(x.shape[1] // num_groups) for t in (scale, bias))
    return F.group_norm(x, num_groups, scale, bias, epsilon)


def rms_norm(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    return F.rms_norm(x, x.shape[axis % x.ndim :], scale, epsilon)


def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    norm = x.norm(p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def lrn(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    before = (size - 1) // 2
    squares = F.pad(x.square().unsqueeze(1), [*([0, 0] * (x.ndim - 2)), before, size - 1 - before])
    window = squares.unfold(2, size, 1).sum(-1).squeeze(1)
    return x / (bias + alpha / size * window) ** beta


def mean_variance_norm(x: Tensor, *, axes: Ints = (0, 2, 3)) -> Tensor:
    along = tuple(ints(axes))
    return (x - x.mean(along, keepdim=True)) / (x.std(along, correction=0, keepdim=True) + 1e-9)


# ---- resizing ---------------------------------------------------------------------------------------------------------


def resize(
    x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None, *, mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel", nearest_mode: str = "round_prefer_floor", cubic_coeff_a: float = -0.75,
    antialias: int = 0, exclude_outside: int = 0, extrapolation_value: float = 0.0, axes: Ints = None,
    keep_aspect_ratio_policy: str = "stretch", opset: int = 17,
) -> Tensor:  # fmt: skip
    """Before opset 11 the second operand is the scales, coordinates are asymmetric, and nearest is the one below."""
    if opset < 11:
        scales, coordinate_transformation_mode, nearest_mode = roi, "asymmetric", "floor"
    require(axes is None and keep_aspect_ratio_policy == "stretch" and not exclude_outside and x.ndim in (3, 4, 5), "resize of some axes")
    if sizes is not None and sizes.numel():
        target = ints(sizes)
        factors = [t / d for t, d in zip(target, x.shape, strict=True)]
    else:
        assert scales is not None, "Resize has scales or sizes"
        factors = [float(s) for s in scales.tolist()]
        target = [math.floor(d * s) for d, s in zip(x.shape, factors, strict=True)]
    require(target[:2] == list(x.shape[:2]), "resize of batch or channels")
    kinds = {"linear": ("linear", "bilinear", "trilinear"), "cubic": ("", "bicubic", "")}
    if mode == "nearest":
        return _nearest(x, target[2:], factors[2:], coordinate_transformation_mode, nearest_mode)
    kind = kinds[mode][x.ndim - 3]
    aligned = coordinate_transformation_mode == "align_corners"
    half = coordinate_transformation_mode in ("half_pixel", "pytorch_half_pixel") and min(target[2:]) > 1
    exact = all(round(d * f) == t and d * f == t for d, f, t in zip(x.shape[2:], factors[2:], target[2:], strict=True))
    by_size = sizes is not None and sizes.numel() > 0
    require(bool(kind) and ((aligned and (exact or by_size)) or (half and exact)) and cubic_coeff_a == -0.75, "this interpolation")
    require(not antialias, "antialiasing")
    return F.interpolate(x, size=target[2:], mode=kind, align_corners=aligned)


def _nearest(x: Tensor, target: Sequence[int], factors: Sequence[float], transformation: str, rounding: str) -> Tensor:
    for axis, (size, factor) in enumerate(zip(target, factors, strict=True), start=2):
        old, at = x.shape[axis], torch.arange(size, dtype=torch.float64)
        if transformation in ("half_pixel", "pytorch_half_pixel"):
            at = (at + 0.5) / factor - 0.5 if size > 1 or transformation == "half_pixel" else torch.zeros(1, dtype=torch.float64)
        elif transformation == "asymmetric":
            at = at / factor
        else:
            require(transformation == "align_corners", transformation)
            at = at * (old - 1) / max(1, size - 1)
        rounded = {
            "round_prefer_floor": lambda t: torch.ceil(t - 0.5), "round_prefer_ceil": lambda t: torch.floor(t + 0.5),
            "floor": torch.floor, "ceil": torch.ceil,
        }[rounding](at)  # fmt: skip
        x = x.index_select(axis, rounded.long().clamp(0, old - 1))
    return x


def upsample(x: Tensor, scales: Any = None, *, mode: str = "nearest") -> Tensor:
    factors = scales if isinstance(scales, Tensor) else torch.tensor(scales)
    return resize(x, None, factors, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor")


def grid_sample(x: Tensor, grid: Tensor, *, mode: str = "linear", padding_mode: str = "zeros", align_corners: int = 0) -> Tensor:
    kind = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return F.grid_sample(x, grid, kind, padding_mode, bool(align_corners))


# ---- several results --------------------------------------------------------------------------------------------------


def split(x: Tensor, split: Ints = None, *, axis: int = 0, num_outputs: int = 0, results: int) -> tuple[Tensor, ...]:
    sizes = ints(split)
    if not sizes:
        each = -(-x.shape[axis] // results)
        sizes = [min(each, x.shape[axis] - each * i) for i in range(results)]
    return tuple(part.clone(memory_format=torch.contiguous_format) for part in x.split(sizes, axis))


def top_k(x: Tensor, k: Any = None, *, axis: int = -1, largest: int = 1, sorted: int = 1, results: int) -> tuple[Tensor, ...]:
    values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    count = int(k)
    return (values.narrow(axis, 0, count).contiguous(), indices.narrow(axis, 0, count).contiguous())[:results]


def dropout(x: Tensor, ratio: Any = 0.5, training: Tensor | None = None, *, seed: int | None = None, results: int) -> tuple[Tensor, ...]:
    require(training is None or not bool(training), "dropout in training")
    return (x.clone(), torch.ones_like(x, dtype=torch.bool))[:results]


def skip_layer_norm(
    x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None, extra: Tensor | None = None, *, epsilon: float = 1e-5, results: int
) -> tuple[Tensor, ...]:
    total = x + skip if extra is None else x + skip + extra
    normed = F.layer_norm(total, total.shape[-1:], scale, bias, epsilon)
    return (normed, *(torch.zeros(0) for _ in range(2)), total)[:results]


# ---- onnxruntime's ----------------------------------------------------------------------------------------------------


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    return x * torch.sigmoid(alpha * x)


KERNELS: dict[str, Callable[..., Any]] = {
    "Gemm": gemm, "Einsum": einsum, "Attention": attention, "Conv": conv, "ConvTranspose": conv_transpose, "MaxPool": max_pool,
    "AveragePool": average_pool, "GlobalAveragePool": global_average_pool, "GlobalMaxPool": global_max_pool, "Softmax": softmax,
    "LogSoftmax": log_softmax, "BatchNormalization": batch_norm, "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm, "GroupNormalization": group_norm, "RMSNormalization": rms_norm,
    "LpNormalization": lp_normalization, "LRN": lrn, "MeanVarianceNormalization": mean_variance_norm, "Resize": resize,
    "Upsample": upsample, "GridSample": grid_sample,
}  # fmt: skip
TUPLE_KERNELS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "Split": split, "TopK": top_k, "Dropout": dropout,
}  # fmt: skip
MICROSOFT: dict[str, Callable[..., Any]] = {
    "FusedConv": fused_conv, "FusedMatMul": fused_matmul, "BiasGelu": bias_gelu, "FastGelu": fast_gelu, "Gelu": F.gelu,
    "QuickGelu": quick_gelu,
}  # fmt: skip
MICROSOFT_TUPLES: dict[str, Callable[..., tuple[Tensor, ...]]] = {"SkipLayerNormalization": skip_layer_norm}
