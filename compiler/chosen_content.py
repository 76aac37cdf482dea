"""Content that makes an operator give results of wanted sizes, where sizes depend on content."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

SIZED_BY_DATA = frozenset(
    f"aten.{name}"
    for name in (
        "index.Tensor", "nonzero.default", "argwhere.default", "masked_select.default", "repeat_interleave.Tensor", "bincount.default",
        "_unique2.default", "_unique.default", "unique_consecutive.default", "unique_dim.default", "unique_dim_consecutive.default",
    )
)  # fmt: skip


def choose_content(op: str, args: Sequence[Any], kwargs: Mapping[str, Any], results: Sequence[Sequence[int]]) -> None:
    """Write such content into the tensors of a call of `op` that its first result gets the shape `results[0]`.

    What cannot be had that way is left as it is; the caller looks at what the call returned.
    """
    name = op.split(".")[1]
    wanted = list(results[0])
    if name == "index":
        masks = [i for i in args[1] if i is not None and str(i.dtype) in ("torch.bool", "torch.uint8")]
        if len(masks) == 1:
            rest = math.prod(args[0].shape[: _place(args[1])]) * math.prod(args[0].shape[_place(args[1]) + masks[0].dim() :])
            _select(masks[0], math.prod(wanted) // max(1, rest))
    elif name in ("nonzero", "argwhere"):
        _select(args[0], wanted[0])
    elif name == "masked_select":
        times = math.prod(_broadcast(args[0].shape, args[1].shape)) // max(1, args[1].numel())
        _select(args[1], wanted[0] // max(1, times))
    elif name == "repeat_interleave" and args[0].numel():
        args[0].zero_()
        args[0].view(-1)[0] = wanted[0]
    elif name == "bincount" and args[0].numel():
        args[0].zero_()
        args[0].view(-1)[0] = max(0, wanted[0] - 1)
    elif name.startswith(("_unique", "unique")):
        place = {"unique_dim": 1, "unique_dim_consecutive": 1, "unique_consecutive": 3}.get(name, len(args))
        dim = args[place] if place < len(args) else kwargs.get("dim")
        _distinct(args[0], dim, wanted[0] if dim is None else wanted[dim])


def choose_masks(tensors: Sequence[Any], counts: Sequence[int | None]) -> None:
    """Write masks into those of `tensors` that are masks, in order: the first so many elements are chosen; None leaves one as it is."""
    masks = [t for t in tensors if str(t.dtype) in ("torch.bool", "torch.uint8")]
    for mask, count in zip(masks, counts, strict=False):
        if count is not None:
            _select(mask, count)


def _place(indices: Sequence[Any]) -> int:
    """The dimension at which the first index of a call lies."""
    return next(i for i, index in enumerate(indices) if index is not None)


def _broadcast(a: Sequence[int], b: Sequence[int]) -> Sequence[int]:
    import torch

    return torch.broadcast_shapes(tuple(a), tuple(b))


def _select(tensor: Any, count: int) -> None:
    """The first `count` elements are nonzero, and no other."""
    import torch

    chosen = torch.arange(tensor.numel()).reshape(tensor.shape) < count
    tensor.copy_(chosen)


def _distinct(tensor: Any, dim: int | None, count: int) -> None:
    """The elements, or the slices along `dim`, have `count` different values, in ascending order."""
    import torch

    n = tensor.numel() if dim is None else tensor.shape[dim]
    if not n or not count:
        return
    values = torch.arange(n).clamp(max=count - 1)
    shape = tensor.shape if dim is None else [n if i == dim % tensor.dim() else 1 for i in range(tensor.dim())]
    tensor.copy_(values.reshape(shape).expand(tensor.shape))
