"""Fake kernels for ops where torch's own refuse what the CPU kernel accepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def _grouped_mm(a: torch.Tensor, b: torch.Tensor, offs: Any = None, bias: Any = None, out_dtype: Any = None) -> torch.Tensor:
    """One matmul per group; torch's fake kernel takes bfloat16 only. `offs` cuts the dimension that a 2-d operand has packed."""
    if a.dim() == 2 and b.dim() == 2:
        shape = (offs.shape[0], a.shape[0], b.shape[1])
    elif a.dim() == 2:
        shape = (a.shape[0], b.shape[2])
    elif b.dim() == 2:
        shape = (a.shape[1], b.shape[1])
    else:
        shape = (a.shape[0], a.shape[1], b.shape[2])
    return torch.empty(shape, dtype=out_dtype or a.dtype, device=a.device)


def _ctc_loss(
    log_probs: torch.Tensor, targets: torch.Tensor, input_lengths: Sequence[int], target_lengths: Sequence[int], *_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses, and the table of log probabilities that the backward pass reads. torch gives no fake kernel for given lengths."""
    batch = log_probs.shape[1]
    alpha = log_probs.new_empty((batch, log_probs.shape[0], 2 * max(target_lengths, default=0) + 1))
    return log_probs.new_empty((batch,)), alpha


FAKE_KERNELS: dict[str, Callable[..., Any]] = {"aten._grouped_mm.default": _grouped_mm, "aten._ctc_loss.default": _ctc_loss}
