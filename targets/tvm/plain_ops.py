"""Ops in other words: aten ops that TVM's converters get wrong, take apart badly or do not know, as functions of ops that they get right.

Each function has the signature of its aten op and gives the same values, NaN and infinities included. `SAME` is asked first, then TVM's
own converter, then torch's decompositions (`plain_graph`). Polynomials of sin, cos and atan are those of Cephes for single precision
(Moshier, netlib.org/cephes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ...compiler.errors import SourceError

LOG2 = math.log(2.0)
# pi / 2 in three parts, of which the first two have so few digits that small multiples of them are exact.
HALF_PI = 1.5703125, 4.837512969970703125e-4, 7.549789948768648e-8
UNROLLED = 64  # steps of a scan that are written out


def absolute(x: torch.Tensor) -> torch.Tensor:
    return torch.maximum(x, -x)


def expm1(x: torch.Tensor) -> torch.Tensor:
    """A series near 0, where exp(x) - 1 loses its digits."""
    series = x * (1.0 / 7) + 1.0
    for k in (6, 5, 4, 3, 2):
        series = series * x * (1.0 / k) + 1.0
    return torch.where(absolute(x) < 0.4, x * series, torch.exp(x) - 1.0)


def elu(x: torch.Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> torch.Tensor:
    return torch.where(x > 0, x * scale, expm1(x * input_scale) * (alpha * scale))


def selu(x: torch.Tensor) -> torch.Tensor:
    return elu(x, 1.6732632423543772, 1.0507009873554805)


def celu(x: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    return elu(x, alpha, 1.0, 1.0 / alpha)


def power(x: torch.Tensor, exponent: float) -> Any:
    """Products and square roots for whole and quarter exponents up to 8."""
    quarters = float(exponent) * 4
    if quarters != int(quarters) or abs(exponent) > 8 or not x.is_floating_point():
        return NotImplemented
    if exponent == 0:
        return torch.ones_like(x)
    root, rest = torch.sqrt(x) if int(quarters) % 4 else x, abs(int(quarters))
    made: torch.Tensor | None = None
    factors = [torch.sqrt(root)] * (rest % 2) + [root] * (rest % 4 // 2)
    square, whole = x, rest // 4
    while whole:
        if whole % 2:
            factors.append(square)
        whole //= 2
        square = square * square if whole else square
    for factor in factors:
        made = factor if made is None else made * factor
    assert made is not None
    return made if exponent > 0 else torch.reciprocal(made)


def exponential_of(base: float, x: torch.Tensor) -> Any:
    return torch.exp(x * math.log(base)) if base > 0 and x.is_floating_point() else NotImplemented


def sinh(x: torch.Tensor) -> torch.Tensor:
    grown = expm1(x)
    return torch.where(absolute(x) < 1, (grown + grown / (grown + 1.0)) * 0.5, (torch.exp(x) - torch.exp(-x)) * 0.5)


def cosh(x: torch.Tensor) -> torch.Tensor:
    return (torch.exp(x) + torch.exp(-x)) * 0.5


def _quarter_turns(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The nearest multiple of pi / 2, as a count modulo 4, and sine and cosine of what is left."""
    turns = torch.floor(x * (2 / math.pi) + 0.5)
    r = x - turns * HALF_PI[0] - turns * HALF_PI[1] - turns * HALF_PI[2]
    z = r * r
    sine = r + r * z * (-1.6666654611e-1 + z * (8.3321608736e-3 - 1.9515295891e-4 * z))
    cosine = z * -0.5 + 1.0 + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + 2.443315711809948e-5 * z))
    return turns - torch.floor(turns * 0.25) * 4.0, sine, cosine


def sin(x: torch.Tensor) -> torch.Tensor:
    turn, sine, cosine = _quarter_turns(x)
    either = torch.where((turn == 1) | (turn == 3), cosine, sine)
    return torch.where(turn >= 2, -either, either)


def cos(x: torch.Tensor) -> torch.Tensor:
    turn, sine, cosine = _quarter_turns(x)
    either = torch.where((turn == 1) | (turn == 3), sine, cosine)
    return torch.where((turn == 1) | (turn == 2), -either, either)


def tan(x: torch.Tensor) -> torch.Tensor:
    turn, sine, cosine = _quarter_turns(x)
    odd = (turn == 1) | (turn == 3)
    return torch.where(odd, -cosine, sine) / torch.where(odd, sine, cosine)


def atan(x: torch.Tensor) -> torch.Tensor:
    a = absolute(x)
    large, middle = a > 2.414213562373095, a > 0.4142135623730950
    r = torch.where(large, torch.reciprocal(-a), torch.where(middle, (a - 1.0) / (a + 1.0), a))
    begin = torch.where(large, math.pi / 2, torch.where(middle, math.pi / 4, 0.0))
    z = r * r
    found = begin + r + r * z * (-3.33329491539e-1 + z * (1.99777106478e-1 + z * (-1.38776856032e-1 + 8.05374449538e-2 * z)))
    return torch.where(x < 0, -found, found)


def atan2(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    straight = torch.where(x == 0, torch.where(y == 0, 0.0, math.pi / 2), atan(absolute(y) / absolute(x)))
    around = torch.where(x < 0, -straight + math.pi, straight)
    return torch.where(y < 0, -around, around)


def asin(x: torch.Tensor) -> torch.Tensor:
    return atan(x / torch.sqrt((-x + 1.0) * (x + 1.0)))


def acos(x: torch.Tensor) -> torch.Tensor:
    return atan(torch.sqrt((-x + 1.0) / (x + 1.0))) * 2.0


def asinh(x: torch.Tensor) -> torch.Tensor:
    a = absolute(x)
    found = torch.log(a + torch.sqrt(a * a + 1.0))
    return torch.where(a < 0.05, x - x * x * x * (1.0 / 6), torch.where(x < 0, -found, found))


def acosh(x: torch.Tensor) -> torch.Tensor:
    return torch.log(x + torch.sqrt((x - 1.0) * (x + 1.0)))


def atanh(x: torch.Tensor) -> torch.Tensor:
    return torch.where(absolute(x) < 0.05, x + x * x * x * (1.0 / 3), torch.log((x + 1.0) / (-x + 1.0)) * 0.5)


def log1p(x: torch.Tensor) -> torch.Tensor:
    series = torch.zeros_like(x)
    for k in range(10, 1, -1):
        series = (-series + 1.0 / k) * x
    return torch.where(absolute(x) < 0.1, x * (-series + 1.0), torch.log(x + 1.0))


def variance(x: torch.Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False) -> torch.Tensor:
    dims = [d % x.dim() for d in dim] if dim else list(range(x.dim()))
    n = math.prod(x.shape[d] for d in dims)
    centred = x - x.mean(dims, keepdim=True)
    left = n - (1 if correction is None else correction)
    return (centred * centred).sum(dims, keepdim=keepdim) / left if left > 0 else NotImplemented


def deviation(x: torch.Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False) -> Any:
    found = variance(x, dim, correction=correction, keepdim=keepdim)
    return found if found is NotImplemented else torch.sqrt(found)


def variance_and_mean(x: torch.Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> Any:
    dims = [d % x.dim() for d in dim] if dim else list(range(x.dim()))
    found = variance(x, dims, correction=correction, keepdim=keepdim)
    return found if found is NotImplemented else (found, x.mean(dims, keepdim=keepdim))


def logsumexp(x: torch.Tensor, dim: Sequence[int], keepdim: bool = False) -> torch.Tensor:
    most = x.amax(dim, keepdim=True)
    most = torch.where(absolute(most) == math.inf, 0.0, most)
    found = torch.log(torch.exp(x - most).sum(dim, keepdim=True)) + most
    return found if keepdim else found.squeeze(tuple(dim))


def average_pool(x: torch.Tensor, kernel: Sequence[int], stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
                 count_include_pad: bool = True, divisor_override: int | None = None) -> Any:  # fmt: skip
    if divisor_override is None:
        return NotImplemented
    kernel = list(kernel) * 2 if len(kernel) == 1 else list(kernel)
    if ceil_mode:
        raise SourceError("avg_pool2d with ceil_mode and divisor_override has no conversion to Relax")
    whole = F.avg_pool2d(x, kernel, list(stride) or kernel, padding, False, True)
    return whole * (math.prod(kernel) / divisor_override)


def _scalar(value: Any, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(value, dtype=like.dtype)


def masked_fill(x: torch.Tensor, mask: torch.Tensor, value: Any) -> torch.Tensor:
    return torch.where(mask, _scalar(value, x) if not isinstance(value, torch.Tensor) else value, x)


def bucketize(x: torch.Tensor, boundaries: torch.Tensor, *, out_int32: bool = False, right: bool = False) -> torch.Tensor:
    column = x.unsqueeze(-1)
    below = column >= boundaries if right else column > boundaries
    return below.to(torch.int32).sum(-1, dtype=torch.int32).to(torch.int32 if out_int32 else torch.int64)


def cumulative_product(x: torch.Tensor, dim: int, *, dtype: Any = None) -> Any:
    if x.shape[dim] > UNROLLED or dtype not in (None, x.dtype):
        return NotImplemented
    parts = list(x.split(1, dim))
    for i in range(1, len(parts)):
        parts[i] = parts[i - 1] * parts[i]
    return torch.cat(parts, dim)


def product(x: torch.Tensor, dim: int, keepdim: bool = False, *, dtype: Any = None) -> Any:
    if x.shape[dim] > UNROLLED or dtype not in (None, x.dtype):
        return NotImplemented
    found, *rest = x.split(1, dim)
    for part in rest:
        found = found * part
    return found if keepdim else found.squeeze(dim)


def shifted_right(x: torch.Tensor, count: Any) -> Any:
    return torch.div(x, _scalar(1 << count, x), rounding_mode="floor") if isinstance(count, int) else NotImplemented


def norm(x: torch.Tensor, ord: float = 2.0, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    dims = [d % x.dim() for d in dim] if dim else list(range(x.dim()))
    if dtype not in (None, x.dtype) or ord not in (1, 2, math.inf, -math.inf):
        return NotImplemented
    if ord == 2:
        return torch.sqrt((x * x).sum(dims, keepdim=keepdim))
    a = absolute(x)
    return a.sum(dims, keepdim=keepdim) if ord == 1 else a.amax(dims, keepdim) if ord > 0 else a.amin(dims, keepdim)


def group_norm(x: torch.Tensor, weight: Any, bias: Any, n: int, c: int, space: int, groups: int, eps: float) -> Any:
    """The mean and the reciprocal deviation beside it, one each group."""
    rows = x.reshape(n * groups, c // groups * space)
    mean = rows.mean(1, keepdim=True)
    centred = rows - mean
    scale = torch.rsqrt((centred * centred).mean(1, keepdim=True) + eps)
    out = (centred * scale).reshape(x.shape)
    wide = (1, c, *[1] * (x.dim() - 2))
    out = out if weight is None else out * weight.reshape(wide)
    out = out if bias is None else out + bias.reshape(wide)
    return out, mean.reshape(n, groups), scale.reshape(n, groups)


def shuffled(x: torch.Tensor, r: int) -> torch.Tensor:
    *batch, c, h, w = x.shape
    n = len(batch)
    parts = x.reshape(*batch, c // (r * r), r, r, h, w).permute(*range(n), n, n + 3, n + 1, n + 4, n + 2)
    return parts.reshape(*batch, c // (r * r), h * r, w * r)


def unshuffled(x: torch.Tensor, r: int) -> torch.Tensor:
    *batch, c, h, w = x.shape
    n = len(batch)
    parts = x.reshape(*batch, c, h // r, r, w // r, r).permute(*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return parts.reshape(*batch, c * r * r, h // r, w // r)


def unfolded(
    x: torch.Tensor, kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> torch.Tensor:
    batch = x if x.dim() == 4 else x.unsqueeze(0)
    padded = F.pad(batch, (padding[1], padding[1], padding[0], padding[0]))
    out = [(padded.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    places = [[slice(k * dilation[i], k * dilation[i] + stride[i] * (out[i] - 1) + 1, stride[i]) for k in range(kernel[i])] for i in (0, 1)]
    rows = [padded[:, :, a, b].reshape(batch.shape[0], batch.shape[1], 1, -1) for a in places[0] for b in places[1]]
    found = torch.cat(rows, 2).reshape(batch.shape[0], -1, out[0] * out[1])
    return found if x.dim() == 4 else found.squeeze(0)


def largest_of_windows(x: torch.Tensor, size: Sequence[int]) -> Any:
    """Adaptive max pooling; its indices, which nothing here gives, are undefined."""
    for i, n in enumerate(size):
        dim = x.dim() - len(size) + i
        have = x.shape[dim]
        if n > UNROLLED:
            return NotImplemented
        windows = [x.narrow(dim, j * have // n, -(-(j + 1) * have // n) - j * have // n).amax(dim, keepdim=True) for j in range(n)]
        x = torch.cat(windows, dim)
    return x, torch.zeros(x.shape, dtype=torch.int64)


def half_pool1d(x: torch.Tensor, kernel: Sequence[int], stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False) -> Any:
    def two(value: Any, other: int) -> list[int]:
        return [other, *(value if isinstance(value, list | tuple) else [value])]

    wide = F.max_pool2d(x.unsqueeze(-2), two(kernel, 1), two(stride or kernel, 1), two(padding, 0), two(dilation, 1), ceil)
    return wide.squeeze(-2)


SAME: dict[str, Callable[..., Any]] = {
    "abs.default": absolute, "expm1.default": expm1, "elu.default": elu, "selu.default": selu, "celu.default": celu,
    "pow.Tensor_Scalar": power, "pow.Scalar": exponential_of, "exp2.default": lambda x: torch.exp(x * LOG2),
    "sinh.default": sinh, "cosh.default": cosh, "sin.default": sin, "cos.default": cos, "tan.default": tan, "atan.default": atan,
    "atan2.default": atan2, "asin.default": asin, "acos.default": acos, "asinh.default": asinh, "acosh.default": acosh,
    "atanh.default": atanh, "log1p.default": log1p, "log2.default": lambda x: torch.log(x) * (1 / LOG2),
    "log10.default": lambda x: torch.log(x) * (1 / math.log(10.0)), "square.default": lambda x: x * x,
    "std.correction": deviation, "var.correction": variance, "var_mean.correction": variance_and_mean,
    "logsumexp.default": logsumexp, "avg_pool2d.default": average_pool, "masked_fill.Scalar": masked_fill,
    "masked_fill.Tensor": masked_fill, "bucketize.Tensor": bucketize, "cumprod.default": cumulative_product,
    "prod.dim_int": product, "prod.default": lambda x, *, dtype=None: product(x.reshape(-1), 0, dtype=dtype),
    "__rshift__.Scalar": shifted_right, "bitwise_right_shift.Tensor_Scalar": shifted_right,
    "__lshift__.Scalar": lambda x, n: x * _scalar(1 << n, x), "linalg_vector_norm.default": norm, "native_group_norm.default": group_norm,
    "pixel_shuffle.default": shuffled, "pixel_unshuffle.default": unshuffled,
    "im2col.default": unfolded, "adaptive_max_pool2d.default": largest_of_windows, "adaptive_max_pool1d.default": largest_of_windows,
    "adaptive_max_pool3d.default": largest_of_windows, "max_pool1d.default": half_pool1d,
}  # fmt: skip
