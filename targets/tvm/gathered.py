"""Ops that take elements by place, as selections along one dimension: negative and several indices, and interpolation to any size.

Each function sees the shapes of a call, its constants where they are known, and gives a function of the call's arguments, or None where
TVM's converter does well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

Words = Callable[..., Any] | None


def selected(like: Sequence[Any], named: Mapping[str, Any], fixed: Any) -> Words:
    """`select` at a place that counts from the end."""
    if like[2] >= 0:
        return None
    return lambda x, dim, at: torch.ops.aten.select.int(x, dim, at + x.shape[dim])


def indexed(like: Sequence[Any], named: Mapping[str, Any], fixed: Any) -> Words:
    """`x[i, j, ...]` with integers at neighbouring dimensions: one selection from those dimensions made one."""
    x, indices = like
    dims = [d for d, i in enumerate(indices) if i is not None]
    if any(i.dtype in (torch.bool, torch.uint8) for i in indices if i is not None) or dims != list(range(dims[0], dims[-1] + 1)):
        return None
    first, sizes = dims[0], [x.shape[d] for d in dims]
    known = [fixed[0][1][d] for d in dims]
    shape = torch.broadcast_shapes(*(indices[d].shape for d in dims))
    kept = _flat(known, sizes) if all(k is not None for k in known) else None

    def of(x: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> torch.Tensor:
        flat = kept if kept is not None else _flat([indices[d] for d in dims], sizes)
        merged = x.reshape(*x.shape[:first], math.prod(sizes), *x.shape[dims[-1] + 1 :])
        return merged.index_select(first, flat.reshape(-1)).reshape(*x.shape[:first], *shape, *x.shape[dims[-1] + 1 :])

    return of


def _flat(indices: Sequence[Any], sizes: Sequence[int]) -> torch.Tensor:
    """Row-major places in one dimension; indices below 0 count from the end."""
    flat: Any = None
    for index, size in zip(indices, sizes, strict=True):
        whole = index.to(torch.int64)
        whole = torch.where(whole < 0, whole + size, whole)
        flat = whole if flat is None else flat * size + whole
    return flat


def interpolated(mode: str, antialias: bool = False) -> Callable[[Sequence[Any], Mapping[str, Any], Any], Words]:
    """An upsampling op: along each dimension a sum of few selections, with the weights that torch itself gives unit vectors."""

    def words(like: Sequence[Any], named: Mapping[str, Any], fixed: Any) -> Words:
        x, size, *rest = like
        spatial = x.dim() - 2
        corners = None if mode.startswith("nearest") else rest.pop(0)
        scales = rest[0] if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
        scales = [*(scales or ()), *[None] * (spatial - len(scales or ()))]
        if size is None:
            size = [math.floor(x.shape[2 + i] * scales[i]) for i in range(spatial)]
        taps = [_taps(mode, x.shape[2 + i], size[i], scales[i], corners, antialias) for i in range(spatial)]

        def of(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            for i in range(spatial):
                x = _along(x, 2 + i, taps[i])
            return x

        return of

    return words


def _taps(mode: str, have: int, want: int, scale: float | None, corners: bool | None, antialias: bool) -> list[tuple[Any, Any]]:
    """Pairs (places, weights) along one dimension, (want,) each; weights None for a plain selection."""
    unit = torch.eye(have, dtype=torch.float64).reshape(1, have, have, 1).repeat(1, 1, 1, 2)  # of two columns: torch is wrong about one
    given: dict[str, Any] = {"scale_factor": (scale, 1.0)} if scale is not None else {"size": (want, 2)}
    if mode.startswith("nearest"):
        matrix = F.interpolate(unit, mode=mode, **given)
    else:
        matrix = F.interpolate(
            unit, mode="bicubic" if mode == "bicubic" else "bilinear", align_corners=corners, antialias=antialias, **given
        )
    matrix = matrix[0, :, :want, 0]
    count = int((matrix != 0).sum(0).max())
    places = matrix.abs().topk(count, dim=0).indices.sort(0).values
    weights = matrix.gather(0, places)
    if mode.startswith("nearest"):
        return [(places[0].contiguous(), None)]
    return [(places[t].contiguous(), weights[t].to(torch.float32).contiguous()) for t in range(count)]


def _along(x: torch.Tensor, dim: int, taps: Sequence[tuple[Any, Any]]) -> torch.Tensor:
    found: Any = None
    for places, weights in taps:
        part = x.index_select(dim, places)
        if weights is not None:
            part = part * weights.to(x.dtype).reshape(-1, *[1] * (x.dim() - dim - 1))
        found = part if found is None else found + part
    return found


def scattered(like: Sequence[Any], named: Mapping[str, Any], fixed: Any) -> Words:
    """`scatter` to places that are known: a choice between what was there and one selection."""
    x, dim, _, source = like
    places = fixed[0][2]
    if places is None or named.get("reduce"):
        return None
    whole, inside = torch.zeros(x.shape, dtype=torch.bool), torch.zeros(x.shape, dtype=torch.int64)
    shape = source.shape if isinstance(source, torch.Tensor) else places.shape
    numbers = torch.arange(math.prod(shape)).reshape(shape)[tuple(slice(0, n) for n in places.shape)]
    whole.scatter_(dim, places, torch.ones(places.shape, dtype=torch.bool))
    inside.scatter_(dim, places, numbers.contiguous())

    def of(x: torch.Tensor, dim: int, index: torch.Tensor, source: Any, **_: Any) -> torch.Tensor:
        if isinstance(source, torch.Tensor):
            return torch.where(whole, source.reshape(-1).index_select(0, inside.reshape(-1)).reshape(x.shape), x)
        return torch.where(whole, torch.tensor(source, dtype=x.dtype), x)

    return of


GATHERED: dict[str, Callable[[Sequence[Any], Mapping[str, Any], Any], Words]] = {
    "select.int": selected, "index.Tensor": indexed, "scatter.src": scattered, "scatter.value": scattered,
    **{f"upsample_nearest{n}d.{o}": interpolated("nearest") for n in (1, 2, 3) for o in ("default", "vec")},
    **{f"_upsample_nearest_exact{n}d.{o}": interpolated("nearest-exact") for n in (1, 2, 3) for o in ("default", "vec")},
    **{f"upsample_{kind}.{o}": interpolated("linear") for kind in ("linear1d", "bilinear2d", "trilinear3d") for o in ("default", "vec")},
    **{f"upsample_bicubic2d.{o}": interpolated("bicubic") for o in ("default", "vec")},
    **{f"_upsample_bilinear2d_aa.{o}": interpolated("linear", True) for o in ("default", "vec")},
    **{f"_upsample_bicubic2d_aa.{o}": interpolated("bicubic", True) for o in ("default", "vec")},
}  # fmt: skip
