"""Facts of norms and softmax, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from .ops import Call, OpFacts, Work


def norm_flops(elements: int, groups: int, *, statistics: bool = True, scale: bool = False, shift: bool = False) -> int:
    """FLOPs of (x - mean) / sqrt(var + eps) * scale + shift over `groups` groups.

    Per element: normalising 2, scale 1, shift 1; with `statistics` 4 more (two sums, a difference, a square). Per group:
    sum with eps and inverse root 2; with `statistics` two divisions more.
    """
    return elements * (2 + scale + shift + 4 * statistics) + groups * (2 + 2 * statistics)


def rms_norm_flops(elements: int, groups: int, *, scale: bool) -> int:
    """FLOPs of x / sqrt(mean(x^2) + eps) * scale: per element square, sum, product; per group a division, eps, inverse root."""
    return elements * (3 + scale) + 3 * groups


def _affine(call: Call, weight_at: int, bias_at: int) -> dict[str, bool]:
    return {"scale": call.value(weight_at, "weight") is not None, "shift": call.value(bias_at, "bias") is not None}


def _batch_norm(training_at: int | None, *, training: bool = False, weight_at: int = 1) -> Callable[[Call], Work]:
    """While training, both running statistics move by m new + (1 - m) old: six FLOPs a channel."""

    def work(call: Call) -> Work:
        x = call.tensor(0, "input")
        channels = x.shape[1] if len(x.shape) > 1 else 1
        statistics = training if training_at is None else bool(call.value(training_at, "training", False))
        tracked = statistics and call.value(3, "running_mean") is not None
        flops = norm_flops(x.numel, channels, statistics=statistics, **_affine(call, weight_at, weight_at + 1))
        return Work(0, flops + (6 * channels if tracked else 0))

    return work


def _layer_norm(call: Call) -> Work:
    x = call.tensor(0, "input")
    width = prod(call.value(1, "normalized_shape"))
    return Work(0, norm_flops(x.numel, x.numel // max(1, width), **_affine(call, 2, 3)))


def _group_norm(call: Call) -> Work:
    """native_group_norm(input, weight, bias, N, C, HxW, group, eps)."""
    x = call.tensor(0, "input")
    return Work(0, norm_flops(x.numel, int(call.value(3, "N")) * int(call.value(6, "group")), **_affine(call, 1, 2)))


def _plain_group_norm(call: Call) -> Work:
    """group_norm(input, num_groups, weight, bias)."""
    x = call.tensor(0, "input")
    return Work(0, norm_flops(x.numel, x.shape[0] * int(call.value(1, "num_groups")), **_affine(call, 2, 3)))


def _instance_norm(call: Call) -> Work:
    x = call.tensor(0, "input")
    return Work(0, norm_flops(x.numel, x.shape[0] * x.shape[1], **_affine(call, 1, 2)))


def _rms_norm(call: Call) -> Work:
    x = call.tensor(0, "input")
    width = prod(call.value(1, "normalized_shape"))
    return Work(0, rms_norm_flops(x.numel, x.numel // max(1, width), scale=call.maybe(2, "weight") is not None))


def _weight_norm(call: Call) -> Work:
    """v g / |v|: per element square, sum and product; per norm a root and a division."""
    return Work(0, 3 * call.tensor(0, "v").numel + 2 * call.tensor(1, "g").numel)


def _weight_norm_backward(call: Call) -> Work:
    """With u = v / |v|: dg = sum(dw u) (3 an element); dv = (dw - u dg) g / |v| (3 an element, a division a norm)."""
    return Work(0, 6 * call.tensor(1, "saved_v").numel + call.tensor(2, "saved_g").numel)


def _norm_backward(weight_at: int, mask_at: int) -> Callable[[Call], Work]:
    """With h = (x - mean) rstd and g = dy scale: h 2; g 1; sums of g and g h 3; dx = rstd (g - a - b h) 4; dscale 2; dshift 1."""

    def work(call: Call) -> Work:
        grad, mask = call.tensor(0, "grad_out"), call.value(mask_at, "output_mask", (True, True, True))
        scaled = call.maybe(weight_at, "weight") is not None
        shift = len(mask) > 2 and bool(mask[2])
        return Work(0, grad.numel * (2 + (7 + scaled) * bool(mask[0]) + 2 * bool(mask[1]) + shift))

    return work


# ---- softmax --------------------------------------------------------------------------------------------------------


def _softmax(per_element: int) -> Callable[[Call], Work]:
    def work(call: Call) -> Work:
        return Work(0, per_element * call.output().numel)

    return work


def _facts(kind: str, **works: Callable[[Call], Work]) -> dict[str, OpFacts]:
    return {f"aten.{name}": OpFacts(kind, work) for name, work in works.items()}


FACTS = {
    **_facts(
        "norm",
        native_batch_norm=_batch_norm(5),
        batch_norm=_batch_norm(5),
        cudnn_batch_norm=_batch_norm(5),
        miopen_batch_norm=_batch_norm(5),
        _batch_norm_impl_index=_batch_norm(5),
        _native_batch_norm_legit=_batch_norm(5),
        _native_batch_norm_legit_functional=_batch_norm(5),
        _native_batch_norm_legit_no_training=_batch_norm(None),
        _batch_norm_no_update=_batch_norm(None),
        _batch_norm_with_update=_batch_norm(None, training=True),
        _batch_norm_with_update_functional=_batch_norm(None, training=True),
        native_layer_norm=_layer_norm,
        layer_norm=_layer_norm,
        native_group_norm=_group_norm,
        group_norm=_plain_group_norm,
        instance_norm=_instance_norm,
        rms_norm=_rms_norm,
        _fused_rms_norm=_rms_norm,
        _weight_norm_interface=_weight_norm,
        _weight_norm_interface_backward=_weight_norm_backward,
        native_batch_norm_backward=_norm_backward(2, 9),
        cudnn_batch_norm_backward=_norm_backward(3, 99),
        batch_norm_backward=_norm_backward(2, 9),
        native_layer_norm_backward=_norm_backward(5, 7),
        native_group_norm_backward=_norm_backward(4, 9),
        _fused_rms_norm_backward=_norm_backward(4, 5),
    ),
    **_facts(
        "softmax",
        softmax=_softmax(5),
        _softmax=_softmax(5),
        _safe_softmax=_softmax(6),
        _masked_softmax=_softmax(6),
        log_softmax=_softmax(5),
        _log_softmax=_softmax(5),
        _softmax_backward_data=_softmax(4),
        _log_softmax_backward_data=_softmax(4),
        _masked_softmax_backward=_softmax(4),
    ),
}
