"""The largest result of each operator whose output size depends on data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch


class Distinct(Protocol):
    """Who knows how many different values a tensor may hold."""

    def distinct(self, tensor: torch.Tensor, /) -> int: ...


def is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


def _counts(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int64, device=like.device)


def _most_nonzero(answers: Distinct, func: Any, x: torch.Tensor) -> torch.Tensor:
    return _counts(x, x.numel(), x.dim())


def _most_masked_select(answers: Distinct, func: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return x.new_empty(torch.broadcast_shapes(x.shape, mask.shape).numel())


def _most_indexed(answers: Distinct, func: Any, x: torch.Tensor, indices: Sequence[Any]) -> torch.Tensor:
    """Each boolean mask selects at most all of its elements, as one index per dimension."""
    given: list[Any] = []
    for index in indices:
        given.extend([_counts(index, index.numel())] * index.dim() if is_mask(index) else [index])
    return func(x, given)


def _most_unique(
    answers: Distinct, func: Any, x: torch.Tensor, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False
) -> Any:
    n = answers.distinct(x)
    return x.new_empty(n), _counts(x, *(x.shape if return_inverse else (0,))), _counts(x, n if return_counts else 0)


def _most_unique_runs(
    answers: Distinct, func: Any, x: torch.Tensor, return_inverse: bool = False, return_counts: bool = False, dim: Any = None
) -> Any:
    n = x.numel() if dim is None else x.shape[dim]
    values = x.new_empty(n) if dim is None else torch.empty_like(x)
    inverse = (*x.shape,) if dim is None else (n,)
    return values, _counts(x, *(inverse if return_inverse else (0,))), _counts(x, n if return_counts else 0)


def _most_unique_dim(
    answers: Distinct, func: Any, x: torch.Tensor, dim: int, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False
) -> Any:
    n = x.shape[dim]
    return torch.empty_like(x), _counts(x, n if return_inverse else 0), _counts(x, n if return_counts else 0)


def _most_kept(answers: Distinct, func: Any, boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    return _counts(boxes, boxes.shape[0])


BOUNDS: dict[str, Callable[..., Any]] = {
    "aten.nonzero.default": _most_nonzero,
    "aten.masked_select.default": _most_masked_select,
    "aten.index.Tensor": _most_indexed,
    "aten._unique2.default": _most_unique,
    "aten.unique_consecutive.default": _most_unique_runs,
    "aten.unique_dim.default": _most_unique_dim,
    "torchvision.nms.default": _most_kept,
}
