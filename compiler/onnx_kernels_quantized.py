"""ONNX's quantized operators in torch. Sums of products are exact: they are taken in float64. Conventions as in `onnx_kernels_nn`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .onnx_kernels import require, torch_dtype
from .onnx_kernels_nn import conv


def _along(t: Tensor, x: Tensor, axis: int) -> Tensor:
    """A per-axis scale or zero point, shaped to broadcast over `x`."""
    if t.ndim != 1 or t.numel() == 1:
        require(t.numel() == 1, "blocked quantization")
        return t.reshape(())
    sizes = [1] * x.ndim
    sizes[axis] = -1
    return t.reshape(sizes)


def quantize(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    saturate: int = 1,
    precision: int = 0,
) -> Tensor:
    dtype = zero.dtype if zero is not None else torch_dtype(output_dtype) if output_dtype else torch.uint8
    require(not dtype.is_floating_point and not block_size, "quantization to floats or in blocks")
    offset = 0 if zero is None else _along(zero, x, axis).to(x.dtype)
    limits = torch.iinfo(dtype)
    return torch.clamp(torch.round(x / _along(scale, x, axis)) + offset, limits.min, limits.max).to(dtype)


def dequantize(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0
) -> Tensor:
    require(not block_size, "quantization in blocks")
    shifted = x.to(torch.int32) if zero is None else x.to(torch.int32) - _along(zero, x, axis).to(torch.int32)
    require(not x.dtype.is_floating_point, "dequantization of floats")
    return (shifted.to(scale.dtype) * _along(scale, x, axis)).to(scale.dtype)


def conv_integer(x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None, **conv_attributes: Any) -> Tensor:
    a = x.double() - (0 if x_zero is None else x_zero.double())
    k = w.double() - (0 if w_zero is None else w_zero.double().reshape(-1, *[1] * (w.ndim - 1)))
    return conv(a, k, **conv_attributes).to(torch.int32)


def matmul_integer(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    left = a.double() - (
        0 if a_zero is None else a_zero.double().reshape(-1, 1) if a_zero.ndim == 1 and a_zero.numel() > 1 else a_zero.double()
    )
    return (left @ (b.double() - (0 if b_zero is None else b_zero.double()))).to(torch.int32)


def qlinear_conv(
    x: Tensor, x_scale: Tensor, x_zero: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor, y_scale: Tensor, y_zero: Tensor,
    b: Tensor | None = None, **conv_attributes: Any,
) -> Tensor:  # fmt: skip
    sums = conv_integer(x, w, x_zero, w_zero, **conv_attributes).double()
    if b is not None:
        sums = sums + b.double().reshape(-1, *[1] * (x.ndim - 2))
    scale = (x_scale.double() * w_scale.double()).reshape(-1, *[1] * (x.ndim - 2)) / y_scale.double()
    return quantize(sums * scale, torch.ones((), dtype=torch.float64), y_zero)


def qlinear_matmul(
    a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor, y_scale: Tensor, y_zero: Tensor
) -> Tensor:
    require(a_scale.numel() == 1, "scales per row")
    sums = matmul_integer(a, b, a_zero, b_zero).double()
    return quantize(sums * (a_scale.double() * b_scale.double() / y_scale.double()), torch.ones((), dtype=torch.float64), y_zero)


def dynamic_quantize(x: Tensor, *, results: int) -> tuple[Tensor, ...]:
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(torch.round(-low / scale), 0, 255).to(torch.uint8)
    return (quantize(x, scale, zero), scale, zero)[:results]


KERNELS: dict[str, Callable[..., Any]] = {
    "QuantizeLinear": quantize, "DequantizeLinear": dequantize, "ConvInteger": conv_integer, "MatMulInteger": matmul_integer,
    "QLinearConv": qlinear_conv, "QLinearMatMul": qlinear_matmul,
}  # fmt: skip
TUPLE_KERNELS: dict[str, Callable[..., tuple[Tensor, ...]]] = {"DynamicQuantizeLinear": dynamic_quantize}
