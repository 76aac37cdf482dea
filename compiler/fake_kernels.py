"""Fake kernels for ops where torch's own refuse what the CPU kernel accepts."""

from __future__ import annotations

from collections.abc import Callable
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


FAKE_KERNELS: dict[str, Callable[..., Any]] = {"aten._grouped_mm.default": _grouped_mm}
