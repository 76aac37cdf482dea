"""ONNX operators of one result, element by element or by moving data, in torch.

A kernel takes its operands (None for an omitted one) and its attributes as keywords, under their ONNX names. Where the operator set
changed an attribute into an operand, the kernel takes both forms under one name. `opset` is passed to kernels that ask for it.
`KERNELS` maps operator names to kernels; those of neural networks are in `onnx_kernels_nn`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .onnx_files import DTYPES

Ints = Sequence[int] | Tensor | None


class Unsupported(Exception):
    """This form of an operator has no torch counterpart here."""


def require(fine: bool, what: str) -> None:
    """Raise `Unsupported` unless `fine`."""
    if not fine:
        raise Unsupported(what)


def ints(value: Ints) -> list[int]:
    """A list of ints from an attribute or an operand."""
    if isinstance(value, Tensor):
        return [int(v) for v in value.reshape(-1).tolist()]
    return [int(v) for v in value or ()]


def torch_dtype(elem_type: int) -> torch.dtype:
    """The torch dtype of an ONNX element type. Raises `Unsupported` for one that torch lacks."""
    name = DTYPES.get(elem_type, "none")
    if not hasattr(torch, name):
        raise Unsupported(f"element type {elem_type}")
    return getattr(torch, name)


# ---- element by element -----------------------------------------------------------------------------------------------


def div(a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero."""
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def pow(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def mod(a: Tensor, b: Tensor, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def total(*tensors: Tensor) -> Tensor:
    out = tensors[0]
    for t in tensors[1:]:
        out = out + t
    return out


def mean(*tensors: Tensor) -> Tensor:
    return total(*tensors) / len(tensors)


def largest(*tensors: Tensor) -> Tensor:
    out = tensors[0]
    for t in tensors[1:]:
        out = torch.maximum(out, t)
    return out


def smallest(*tensors: Tensor) -> Tensor:
    out = tensors[0]
    for t in tensors[1:]:
        out = torch.minimum(out, t)
    return out


def clip(x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    if min is not None:
        x = torch.maximum(x, torch.as_tensor(min, dtype=x.dtype))
    if max is not None:
        x = torch.minimum(x, torch.as_tensor(max, dtype=x.dtype))
    return x.clone() if min is None and max is None else x


def leaky_relu(x: Tensor, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


def celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


def selu(x: Tensor, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    return gamma * torch.where(x > 0, x, alpha * (torch.exp(x) - 1))


def hard_sigmoid(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def prelu(x: Tensor, slope: Tensor, *, opset: int = 17) -> Tensor:
    """Before opset 7 a slope of one dimension belongs to the channels."""
    if opset < 7 and slope.ndim == 1 and x.ndim > 2:
        slope = slope.reshape(-1, *[1] * (x.ndim - 2))
    return torch.where(x >= 0, x, slope * x)


def thresholded_relu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


def swish(x: Tensor, alpha: float = 1.0) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def shrink(x: Tensor, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


def is_inf(x: Tensor, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    return (torch.isposinf(x) & bool(detect_positive)) | (torch.isneginf(x) & bool(detect_negative))


def bit_shift(a: Tensor, b: Tensor, direction: str = "LEFT") -> Tensor:
    return a << b if direction == "LEFT" else a >> b


def cast(x: Tensor, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return _cast(x, torch_dtype(to))


def cast_like(x: Tensor, like: Tensor, saturate: int = 1) -> Tensor:
    return _cast(x, like.dtype)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype.is_floating_point and dtype.itemsize == 1:
        raise Unsupported("saturation of 8-bit floats")
    return x.to(dtype, copy=True)


# ---- shapes -----------------------------------------------------------------------------------------------------------


def reshape(x: Tensor, shape: Ints = None, allowzero: int = 0) -> Tensor:
    sizes = ints(shape)
    return torch.reshape(x, [x.shape[i] if d == 0 and not allowzero else d for i, d in enumerate(sizes)])


def flatten(x: Tensor, axis: int = 1) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(x: Tensor, axes: Ints = None) -> Tensor:
    return x.squeeze(tuple(ints(axes))) if axes is not None else x.squeeze()


def unsqueeze(x: Tensor, axes: Ints = None) -> Tensor:
    wanted = ints(axes)
    rank = x.ndim + len(wanted)
    for axis in sorted(a % rank for a in wanted):
        x = x.unsqueeze(axis)
    return x


def transpose(x: Tensor, perm: Ints = None) -> Tensor:
    return x.permute(ints(perm) if perm is not None else list(range(x.ndim))[::-1]).contiguous()


def concat(*tensors: Tensor, axis: int = 1) -> Tensor:
    return torch.cat(tensors, axis)


def slice_(x: Tensor, starts: Ints = None, ends: Ints = None, axes: Ints = None, steps: Ints = None) -> Tensor:
    begin, stop = ints(starts), ints(ends)
    along = ints(axes) if axes is not None else list(range(len(begin)))
    stride = ints(steps) if steps is not None else [1] * len(begin)
    for axis, a, b, s in zip(along, begin, stop, stride, strict=True):
        chosen = range(x.shape[axis])[slice(a, None if s < 0 and b < -x.shape[axis] else b, s)]
        if s > 0:
            window: list[slice] = [slice(None)] * x.ndim
            window[axis] = slice(chosen.start, chosen.stop, s)
            x = x[tuple(window)]
        else:
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64))
    return x.contiguous() if x.is_contiguous() is False else x.clone()


def gather(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    axis %= x.ndim
    chosen = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    return x.index_select(axis, chosen.reshape(-1)).reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def gather_elements(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices).long())


def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0) -> Tensor:
    if batch_dims:
        pairs = zip(x.flatten(0, batch_dims - 1), indices.flatten(0, batch_dims - 1), strict=True)
        return torch.stack([gather_nd(a, i) for a, i in pairs]).reshape(
            *x.shape[:batch_dims], *indices.shape[batch_dims:-1], *x.shape[batch_dims + indices.shape[-1] :]
        )
    return x[tuple(indices.long().unbind(-1))]


def _reduced(into: Tensor, values: Tensor, reduction: str) -> Tensor:
    if reduction == "add":
        return into + values
    if reduction == "mul":
        return into * values
    return torch.maximum(into, values) if reduction == "max" else torch.minimum(into, values)


def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, axis: int = 0, reduction: str = "none") -> Tensor:
    at = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    if reduction == "none":
        return x.scatter(axis, at, updates)
    return x.scatter_reduce(axis, at, updates, {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[reduction])


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str = "none") -> Tensor:
    out = x.clone()
    at = tuple(indices.long().unbind(-1))
    if reduction == "none":
        out[at] = updates
    elif reduction == "add":
        out.index_put_(at, updates, accumulate=True)
    else:
        for row, value in zip(indices.reshape(-1, indices.shape[-1]).tolist(), updates.flatten(0, indices.ndim - 2), strict=True):
            out[tuple(row)] = _reduced(out[tuple(row)], value, reduction)
    return out


def expand(x: Tensor, shape: Ints) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, ints(shape))).contiguous().clone()


def tile(x: Tensor, repeats: Ints) -> Tensor:
    return x.repeat(ints(repeats))


def pad(x: Tensor, pads: Ints = None, value: Any = None, axes: Ints = None, mode: str = "constant", constant_value: Any = None) -> Tensor:
    amounts = ints(pads)
    along = [a % x.ndim for a in ints(axes)] if axes is not None else list(range(x.ndim))
    fill = next((v for v in (value, constant_value) if v is not None), 0)
    number = fill.item() if isinstance(fill, Tensor) else fill
    half = len(amounts) // 2
    for axis, before, after in zip(along, amounts[:half], amounts[half:], strict=True):
        x = _pad_axis(x, axis, before, after, mode, number)
    return x.contiguous() if any(amounts) else x.clone()


def _pad_axis(x: Tensor, axis: int, before: int, after: int, mode: str, fill: Any) -> Tensor:
    size = x.shape[axis]
    if mode == "constant":
        sides = [0, 0] * x.ndim
        sides[2 * (x.ndim - 1 - axis)], sides[2 * (x.ndim - 1 - axis) + 1] = before, after
        return F.pad(x, sides, value=fill)
    at = torch.arange(-before, size + after)
    if mode == "edge":
        at = at.clamp(0, size - 1)
    elif mode == "wrap":
        at = at % size
    else:
        period = max(1, 2 * (size - 1))
        at = at.abs() % period
        at = torch.where(at >= size, period - at, at)
    return x.index_select(axis, at)


def shape_of(x: Tensor, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape)[slice(start, end)], dtype=torch.int64)


def size_of(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


def constant_of_shape(shape: Tensor, value: Tensor | None = None) -> Tensor:
    fill = torch.zeros(1) if value is None else value
    return fill.reshape(()).expand(ints(shape)).clone()


def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def one_hot(indices: Tensor, depth: Tensor, values: Tensor, axis: int = -1) -> Tensor:
    size = int(depth.reshape(-1)[0])
    at = torch.where(indices < 0, indices + size, indices).long()
    hot = (at.unsqueeze(-1) == torch.arange(size)).movedim(-1, axis)
    return torch.where(hot, values[1], values[0])


def trilu(x: Tensor, k: Tensor | None = None, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


def depth_to_space(x: Tensor, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        x = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // b**2, h * b, w * b)


def space_to_depth(x: Tensor, blocksize: int) -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


def eye_like(x: Tensor, dtype: int | None = None, k: int = 0) -> Tensor:
    ones = torch.ones(x.shape, dtype=x.dtype if dtype is None else torch_dtype(dtype))
    return torch.triu(torch.tril(ones, k), k)


def cumsum(x: Tensor, axis: Tensor, exclusive: int = 0, reverse: int = 0) -> Tensor:
    along = int(axis)
    y = x.flip(along) if reverse else x
    out = y.cumsum(along, dtype=x.dtype) - (y if exclusive else 0)
    return out.flip(along) if reverse else out


def non_zero(x: Tensor) -> Tensor:
    return x.nonzero().t().contiguous()


# ---- reductions -------------------------------------------------------------------------------------------------------


def _reduction(combine: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A Reduce operator of `combine(x, axes, keepdim)`; `axes` is an attribute in old operator sets and an operand in new ones."""

    def reduce(x: Tensor, axes: Ints = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        wanted = ints(axes)
        if not wanted and noop_with_empty_axes:
            return x.clone()
        if not x.numel():
            raise Unsupported("a reduction of nothing")
        return combine(x, tuple(wanted) or tuple(range(x.ndim)), bool(keepdims)).to(x.dtype)

    return reduce


def _product(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    for axis in sorted((a % max(1, x.ndim) for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


def _mean(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    return (x if x.is_floating_point() else x.double()).mean(tuple(axes), keepdim=keepdim)


REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMean": _reduction(_mean),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduction(_product),
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "ReduceLogSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "ReduceLogSumExp": _reduction(lambda x, axes, keep: x.logsumexp(axes, keepdim=keep)),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
}


def argmax(x: Tensor, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        return x.shape[axis] - 1 - x.flip(axis).argmax(axis, keepdim=bool(keepdims))
    return x.argmax(axis, keepdim=bool(keepdims))


def argmin(x: Tensor, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        return x.shape[axis] - 1 - x.flip(axis).argmin(axis, keepdim=bool(keepdims))
    return x.argmin(axis, keepdim=bool(keepdims))


KERNELS: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh, "Atan": torch.atan,
    "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp,
    "Floor": torch.floor, "IsNaN": torch.isnan, "Log": torch.log, "Neg": torch.neg, "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
    "Sinh": torch.sinh, "Softplus": F.softplus, "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh,
    "Relu": torch.relu, "HardSwish": F.hardswish, "Mish": F.mish, "BitwiseNot": torch.bitwise_not, "Add": torch.add, "Sub": torch.sub,
    "Mul": torch.mul, "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor, "Equal": torch.eq,
    "Greater": torch.gt, "Less": torch.lt, "GreaterOrEqual": torch.ge, "LessOrEqual": torch.le, "Where": torch.where,
    "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor, "Det": torch.det,
    "Identity": torch.clone, "MatMul": torch.matmul,
    "Div": div, "Pow": pow, "Mod": mod, "Sum": total, "Mean": mean, "Max": largest, "Min": smallest, "Clip": clip,
    "LeakyRelu": leaky_relu, "Elu": elu, "Celu": celu, "Selu": selu, "HardSigmoid": hard_sigmoid, "Gelu": gelu, "PRelu": prelu,
    "ThresholdedRelu": thresholded_relu, "Swish": swish, "Shrink": shrink, "IsInf": is_inf, "BitShift": bit_shift, "Cast": cast,
    "CastLike": cast_like, "Reshape": reshape, "Flatten": flatten, "Squeeze": squeeze, "Unsqueeze": unsqueeze, "Transpose": transpose,
    "Concat": concat, "Slice": slice_, "Gather": gather, "GatherElements": gather_elements, "GatherND": gather_nd,
    "ScatterElements": scatter_elements, "Scatter": scatter_elements, "ScatterND": scatter_nd, "Expand": expand, "Tile": tile, "Pad": pad,
    "Shape": shape_of, "Size": size_of, "ConstantOfShape": constant_of_shape, "Range": range_, "OneHot": one_hot, "Trilu": trilu,
    "DepthToSpace": depth_to_space, "SpaceToDepth": space_to_depth, "EyeLike": eye_like, "CumSum": cumsum, "NonZero": non_zero,
    "ArgMax": argmax, "ArgMin": argmin,
}  # fmt: skip
