"""Scores of a network that was never trained: cheap filters, to be used beside accuracies and never for them.

`naswot` (Mellor et al. 2021): log-determinant of the kernel of ReLU activation patterns over a batch. `synflow` (Tanaka et al. 2020,
as a score by Abdelfattah et al. 2021): log of the sum of |weight x gradient| of the absolute network on an image of ones. `grad_norm`:
Euclidean norm of the gradient of the loss. Higher is better in all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..compiler.errors import SourceError

if TYPE_CHECKING:
    import torch

    from .data import ImageData

SCORES = ("naswot", "synflow", "grad_norm")
BATCH = 64


def score(
    name: str, module: torch.nn.Module, data: ImageData, *, seed: int = 0, batch: int = BATCH, resolution: int | None = None
) -> float:
    """The score called `name` of `module` as it is, on one batch of training images drawn by `seed`; -inf where it is not finite.

    Weights, statistics and mode of `module` are left as they were. Raises `SourceError` for an unknown name.
    """
    import torch

    if name not in SCORES:
        raise SourceError(f"no training-free score {name!r}; there are {', '.join(SCORES)}")
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = next(iter(data.batches("train", batch, resolution=resolution, generator=generator)))
    with _as_it_was(module):
        if name == "naswot":
            value = _naswot(module, inputs)
        elif name == "synflow":
            value = _synflow(module, inputs[:1])
        else:
            value = _grad_norm(module, inputs, labels)
    return value if math.isfinite(value) else -math.inf


def _naswot(module: torch.nn.Module, inputs: torch.Tensor) -> float:
    import torch

    n = len(inputs)
    kernel = torch.zeros((n, n), dtype=torch.float64)

    def hook(_: Any, __: Any, out: torch.Tensor) -> None:
        on = (out.reshape(n, -1) > 0).to(torch.float32)
        off = 1 - on
        kernel.add_((on @ on.T + off @ off.T).double())

    activations = (torch.nn.ReLU, torch.nn.ReLU6, torch.nn.Hardswish, torch.nn.SiLU, torch.nn.GELU)
    hooks = [m.register_forward_hook(hook) for m in module.modules() if isinstance(m, activations)]
    try:
        module.train()
        with torch.no_grad():
            module(inputs)
    finally:
        for handle in hooks:
            handle.remove()
    if not hooks:
        raise SourceError(f"{type(module).__name__} has no ReLU or like module, whose patterns NASWOT compares")
    return float(torch.linalg.slogdet(kernel).logabsdet)


def _synflow(module: torch.nn.Module, example: torch.Tensor) -> float:
    import torch

    module.eval()
    module.double()
    with torch.no_grad():
        for t in module.state_dict().values():
            t.abs_()
    module.zero_grad(set_to_none=True)
    module(torch.ones_like(example, dtype=torch.float64)).sum().backward()
    total = sum(float((p.detach() * p.grad).abs().sum()) for p in module.parameters() if p.grad is not None and p.dim() > 1)
    return math.log(total) if 0 < total < math.inf else -math.inf


def _grad_norm(module: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    import torch

    module.train()
    module.zero_grad(set_to_none=True)
    torch.nn.functional.cross_entropy(module(inputs), labels).backward()
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in module.parameters() if p.grad is not None))


@contextmanager
def _as_it_was(module: torch.nn.Module) -> Iterator[None]:
    """Puts back weights, buffers, dtypes, gradients and modes."""
    modes = [(m, m.training, dict(m._buffers)) for m in module.modules()]
    gradients = [(p, p.grad) for p in module.parameters()]
    data = [(t, t.data) for t in (*module.parameters(), *module.buffers())]
    for t, own in data:
        t.data = own.clone()
    try:
        yield
    finally:
        for m, training, buffers in modes:
            m.training = training
            m._buffers.update(buffers)  # a change of dtype puts others in their place
        for p, _ in gradients:
            p.grad = None
        for t, own in data:
            t.data = own
        for p, grad in gradients:
            p.grad = grad
