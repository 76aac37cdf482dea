"""Facts of pointwise ops, their backward forms, and their `_foreach_` forms over lists of tensors.

The number beside a name is FLOPs per output element by the op's defining formula, see `ops`.
"""

from __future__ import annotations

from collections.abc import Callable

from .graph import Tensor
from .ops import Call, OpFacts, Work, is_complex

ADDITIVE = frozenset(("add", "sub", "rsub", "neg", "conj_physical"))

# One elementary function, comparison or arithmetic operation an element.
_ONE = """
__and__ __iand__ __ilshift__ __ior__ __irshift__ __ixor__ __lshift__ __or__ __rshift__ __xor__ _conj_physical abs
absolute acos acosh add angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh atan atan2 atanh
bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil conj_physical copysign cos
cosh digamma div divide eq erf erfc erfinv exp exp2 expm1 fix float_power floor fmax fmin fmod frexp gcd ge greater
greater_equal gt heaviside hypot i0 igamma igammac isfinite isinf isnan isneginf isposinf lcm ldexp le less less_equal
lgamma log log10 log1p log2 logaddexp logaddexp2 logical_and logical_not logical_or logical_xor lt masked_fill maximum
minimum mul multiply mvlgamma ne neg negative nextafter not_equal polygamma pow reciprocal relu remainder round rsqrt
rsub sgn sigmoid sign signbit sin sinh special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1
special_entr special_erfcx special_erfinv special_i0e special_i1 special_i1e special_log_ndtr special_ndtri
special_xlog1py special_zeta sqrt square sub subtract tan tanh threshold true_divide trunc where xlogy
"""

# More than one, with the formula that is counted.
FORMULAS = {
    "floor_divide": 2,  # floor(a / b)
    "frac": 2,  # x - trunc(x)
    "sinc": 3,  # sin(c x) / (c x)
    "logit": 3,  # log(x / (1 - x))
    "nan_to_num": 3,  # three selections
    "deg2rad": 1,
    "rad2deg": 1,
    "isclose": 5,  # |a - b| <= atol + rtol |b|
    "relu6": 2,  # min(max(x, 0), 6)
    "hardtanh": 2,
    "leaky_relu": 2,  # x > 0 ? x : a x
    "rrelu_with_noise": 2,
    "prelu": 2,
    "_prelu_kernel": 2,
    "elu": 4,  # x > 0 ? x : a (exp(x) - 1)
    "celu": 5,
    "selu": 5,
    "silu": 2,  # x sigmoid(x)
    "rrelu": 2,
    "log_sigmoid": 4,  # -log(1 + exp(-x))
    "log_sigmoid_forward": 4,
    "softplus": 5,  # log(1 + exp(b x)) / b
    "softshrink": 3,
    "hardshrink": 2,
    "mish": 5,  # x tanh(log(1 + exp(x)))
    "hardsigmoid": 4,  # min(max(x + 3, 0), 6) / 6
    "hardswish": 5,  # x min(max(x + 3, 0), 6) / 6
    "linalg_cross": 3,  # two products and a difference
    "cross": 3,
    "batch_norm_elemt": 4,
    "glu": 2,  # a sigmoid(b)
    "complex": 0,
    "polar": 4,
    "quantize_per_tensor": 4,  # round(x / scale), two clamps
    "quantize_per_channel": 4,
    "quantize_per_tensor_dynamic": 4,
    "dequantize": 2,  # (q - zero) scale
    "_make_per_tensor_quantized_tensor": 0,
    "fake_quantize_per_tensor_affine_cachemask": 6,
    "fake_quantize_per_channel_affine_cachemask": 6,
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams": 6,
    "_fused_moving_avg_obs_fq_helper": 8,
    # Losses whose reduction is counted apart.
    "mse_loss": 2,  # (x - y)^2
    "smooth_l1_loss": 5,
    "huber_loss": 5,
    "soft_margin_loss": 4,
    "binary_cross_entropy": 6,  # -(y log x + (1 - y) log(1 - x))
    "binary_cross_entropy_with_logits": 7,
    # Backward.
    "threshold_backward": 1,
    "sigmoid_backward": 3,  # g (1 - y) y
    "tanh_backward": 3,  # g (1 - y^2)
    "silu_backward": 6,  # s = sigmoid(x); g s (1 + x (1 - s))
    "hardsigmoid_backward": 3,
    "hardswish_backward": 5,
    "hardtanh_backward": 3,
    "leaky_relu_backward": 2,
    "elu_backward": 4,
    "softplus_backward": 4,
    "softshrink_backward": 2,
    "hardshrink_backward": 2,
    "mish_backward": 9,
    "logit_backward": 3,
    "log_sigmoid_backward": 5,
    "glu_backward": 6,
    "_prelu_kernel_backward": 4,
    "mse_loss_backward": 3,
    "smooth_l1_loss_backward": 4,
    "huber_loss_backward": 4,
    "soft_margin_loss_backward": 5,
    "binary_cross_entropy_backward": 5,
    "fake_quantize_per_tensor_affine_cachemask_backward": 1,
    "fake_quantize_per_channel_affine_cachemask_backward": 1,
    "rrelu_with_noise_backward": 2,
    "native_dropout_backward": 2,
    "_masked_scale": 2,
}

# Counted per element, but their results depend on more than the element in the same place, or there are several results.
_READ_ELSEWHERE = """
_fused_moving_avg_obs_fq_helper _prelu_kernel_backward batch_norm_elemt complex cross frexp glu glu_backward linalg_cross prelu rrelu
rrelu_with_noise
"""

GELU = {"none": 5, "tanh": 9}  # 0.5 x (1 + erf(x / sqrt 2)); 0.5 x (1 + tanh(a (x + b x x x)))
GELU_BACKWARD = {"none": 11, "tanh": 20}


def element_flops(tensor: Tensor, name: str, flops: int) -> int:
    """FLOPs of applying a pointwise op of `flops` real FLOPs to every element of `tensor`."""
    if is_complex(tensor):
        flops *= 2 if name in ADDITIVE else 6
    return flops * tensor.numel


def _constant(name: str, flops: int) -> Callable[[Call], Work]:
    def work(call: Call) -> Work:
        return Work(0, element_flops(call.output(), name, flops))

    return work


def _scaled_sum(call: Call) -> Work:
    """add, sub, rsub: a + alpha b."""
    y = call.output()
    alpha = call.value(2, "alpha", 1)
    return Work(0, element_flops(y, "add", 1) + (0 if alpha == 1 else element_flops(y, "mul", 1)))


def _division(call: Call) -> Work:
    rounded = call.value(2, "rounding_mode") is not None
    return Work(0, element_flops(call.output(), "div", 1) + rounded * call.output().numel)


def _clamp(call: Call) -> Work:
    bounds = sum(call.value(i, name) is not None for i, name in ((1, "min"), (2, "max")))
    return Work(0, bounds * call.output().numel)


def _gelu(call: Call) -> Work:
    return Work(0, GELU[call.value(1, "approximate", "none")] * call.output().numel)


def _gelu_backward(call: Call) -> Work:
    return Work(0, GELU_BACKWARD[call.value(2, "approximate", "none")] * call.output().numel)


def _fused_product(call: Call) -> Work:
    """addcmul, addcdiv: a + value b c."""
    return Work(0, element_flops(call.output(), "mul", 2 + (call.value(3, "value", 1) != 1)))


def _lerp(call: Call) -> Work:
    """a + w (b - a)."""
    return Work(0, element_flops(call.output(), "mul", 3))


def _dropout(call: Call) -> Work:
    """x mask / (1 - p) while training; drawing the mask is not counted."""
    training = call.value(2, "train", True)
    return Work(0, 0 if training is False else 2 * call.output().numel)


def _observed_loss(flops: int, reduction_at: int) -> Callable[[Call], Work]:
    """Pointwise losses over the first input, then a sum (and a division for the mean)."""

    def work(call: Call) -> Work:
        n = call.tensor(0, "self").numel
        reduction = int(call.value(reduction_at, "reduction", 1))
        return Work(0, flops * n + (n if reduction else 0) + (reduction == 1))

    return work


# FLOPs per element of the ops that exist in a `_foreach_` form.
_LISTS_OF_ONE = """
abs acos add asin atan ceil clamp_max clamp_min cos cosh div erf erfc exp expm1 floor lgamma log log10 log1p log2 max
maximum minimum mul neg pow reciprocal round rsqrt sigmoid sign sin sinh sqrt sub tan tanh trunc
"""
LIST_FLOPS = {**dict.fromkeys(_LISTS_OF_ONE.split(), 1), "frac": 2, "addcmul": 2, "addcdiv": 2, "lerp": 3, "copy": 0, "zero": 0, "clone": 0}
SCALE_AT = {"add": (2, "alpha"), "sub": (2, "alpha"), "addcmul": (3, "value"), "addcdiv": (3, "value")}


def _over_list(name: str, flops: int) -> Callable[[Call], Work]:
    def work(call: Call) -> Work:
        scaled = name in SCALE_AT and call.value(*SCALE_AT[name], 1) != 1
        tensors = call.tensors(0, "self")
        return Work(0, sum(element_flops(t, name, flops) + (element_flops(t, "mul", 1) if scaled else 0) for t in tensors))

    return work


def _list_norm(call: Call) -> Work:
    """Per tensor: |x|^p, their sum, and one root."""
    tensors = call.tensors(0, "self")
    return Work(0, sum(2 * t.numel + 1 for t in tensors))


def _unscale(call: Call) -> Work:
    """Per element: a finiteness test and a multiplication."""
    return Work(0, sum(2 * t.numel for t in call.tensors(0, "self")))


def _build() -> dict[str, OpFacts]:
    flops = {**dict.fromkeys(_ONE.split(), 1), **FORMULAS}
    facts = {f"aten.{name}": OpFacts("elementwise", _constant(name, n), may_inplace=True) for name, n in flops.items()}
    for name in ("max.other", "min.other", "clamp_max", "clamp_min"):
        facts[f"aten.{name}"] = OpFacts("elementwise", _constant(name, 1), may_inplace=True)
    special = {
        "add": _scaled_sum,
        "sub": _scaled_sum,
        "rsub": _scaled_sum,
        "div": _division,
        "clamp": _clamp,
        "clip": _clamp,
        "gelu": _gelu,
        "gelu_backward": _gelu_backward,
        "addcmul": _fused_product,
        "addcdiv": _fused_product,
        "lerp": _lerp,
        "native_dropout": _dropout,
        "_fused_dropout": _dropout,
    }
    facts |= {f"aten.{name}": OpFacts("elementwise", work, may_inplace="dropout" not in name) for name, work in special.items()}
    losses = {"mse_loss": 2, "smooth_l1_loss": 2, "huber_loss": 2, "soft_margin_loss": 2, "binary_cross_entropy": 3}
    losses["binary_cross_entropy_with_logits"] = 4
    for name, reduction_at in losses.items():
        facts[f"aten.{name}"] = OpFacts("reduction", _observed_loss(FORMULAS[name], reduction_at))
    for name in _READ_ELSEWHERE.split():
        facts[f"aten.{name}"] = OpFacts("elementwise", facts[f"aten.{name}"].work)
    for name, n in LIST_FLOPS.items():
        facts[f"aten._foreach_{name}"] = OpFacts("elementwise" if n else "data movement", _over_list(name, n))
    facts["aten._foreach_norm"] = facts["aten._foreach_powsum"] = OpFacts("reduction", _list_norm)
    facts["aten._amp_foreach_non_finite_check_and_unscale"] = OpFacts("elementwise", _unscale)
    facts["aten._amp_update_scale"] = OpFacts("elementwise", lambda call: Work(0, 4))
    return facts


FACTS = _build()
