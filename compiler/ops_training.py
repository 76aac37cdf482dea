"""Facts of fused optimizer steps, in FLOPs per parameter element of the update rule written out."""

from __future__ import annotations

from collections.abc import Callable

from .ops import Call, OpFacts, Work


def _elements(call: Call) -> int:
    return sum(t.numel for t in call.tensors(0, "self"))


def _flag(call: Call, name: str) -> bool:
    return bool(call.value(-1, name, False))


def _adam(decoupled: bool) -> Callable[[Call], Work]:
    """m = b1 m + (1 - b1) g (3); v = b2 v + (1 - b2) g g (4); p -= step m / (sqrt(v) / c + eps) (6).

    Weight decay adds g += wd p (2), or p *= 1 - lr wd (1) when decoupled; AMSGrad a maximum, `maximize` a negation,
    a gradient scale a division.
    """

    def work(call: Call) -> Work:
        decay = (1 if decoupled else 2) * (_flag(call, "weight_decay"))
        extra = _flag(call, "amsgrad") + _flag(call, "maximize") + (call.value(-1, "grad_scale") is not None)
        return Work(0, (13 + decay + extra) * _elements(call))

    return work


def _sgd(call: Call) -> Work:
    """p -= lr g (2); momentum b = mu b + (1 - d) g (3, or 2 without dampening); Nesterov g += mu b (2); decay g += wd p (2)."""
    flops = 2 + 2 * _flag(call, "weight_decay") + _flag(call, "maximize") + (call.value(-1, "grad_scale") is not None)
    if _flag(call, "momentum") and not _flag(call, "is_first_step"):
        flops += 2 + _flag(call, "dampening")
    if _flag(call, "nesterov"):
        flops += 2
    return Work(0, flops * _elements(call))


def _adagrad(call: Call) -> Work:
    """s += g g (2); p -= lr g / (sqrt(s) + eps) (5)."""
    return Work(0, (7 + 2 * _flag(call, "weight_decay") + _flag(call, "maximize")) * _elements(call))


FACTS = {
    "aten._fused_adam": OpFacts("optimizer", _adam(decoupled=False)),
    "aten._fused_adamw": OpFacts("optimizer", _adam(decoupled=True)),
    "aten._fused_sgd": OpFacts("optimizer", _sgd),
    "aten._fused_adagrad": OpFacts("optimizer", _adagrad),
}
