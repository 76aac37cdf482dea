"""Schedules of our own for one operator on a CPU: which there are, and the operator under one of them.

They are few, and each is built in a fraction of a second; a search space of random schedules has thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tvm
from tvm import tirx

from ...compiler.errors import NeaptideError
from . import pointwise, windows

VERSION = 1  # of the code these schedules give; costs measured with another are not theirs


def candidates(func: tirx.PrimFunc, target: tvm.target.Target) -> list[dict[str, Any]]:
    """Schedules for `func` as JSON values, most promising first; none for an operator that is neither a product nor a convolution."""
    return _candidates(pointwise.product(func), lambda: windows.convolution(func), target)


def scheduled(func: tirx.PrimFunc, schedule: Mapping[str, Any], target: tvm.target.Target) -> tirx.PrimFunc:
    """`func` under one of its `candidates`. Raises `NeaptideError` for another schedule."""
    lanes, _ = _vectors(target)
    parallel = int(target.attrs["num-cores"]) > 1
    product = pointwise.product(func)
    convolution = None if product is not None else windows.convolution(func)
    if schedule in _candidates(product, lambda: convolution, target):
        sizes = {name: value for name, value in schedule.items() if name != "kind"}
        if product is not None:
            return pointwise.scheduled(product, lanes=lanes, parallel=parallel, **sizes)
        if convolution is not None:
            return windows.scheduled(convolution, lanes=lanes, parallel=parallel, **sizes)
    raise NeaptideError(f"schedule {dict(schedule)} does not fit an operator of {shapes(func)}; `neaptide cost prune` forgets it")


def _candidates(
    product: pointwise.Product | None, convolution: Callable[[], windows.Convolution | None], target: tvm.target.Target
) -> list[dict[str, Any]]:
    lanes, registers = _vectors(target)
    if product is not None:
        sizes = pointwise.tile_sizes(product.rows, product.columns, lanes, registers)
        return [{"kind": "product", "rows": rows, "vectors": vectors} for rows, vectors in sizes]
    if (read := convolution()) is not None:
        found = windows.tile_sizes(read, lanes, registers)
        return [{"kind": "window", "rows": rows, "vectors": vectors, "together": together} for rows, vectors, together in found]
    return []


def shapes(func: tirx.PrimFunc) -> str:
    """Of inputs and outputs, in words."""
    return ", ".join("x".join(str(int(d)) for d in param.shape) or "1" for param in func.params)


def _vectors(target: tvm.target.Target) -> tuple[int, int]:
    """Single-precision lanes of a vector, and how many vector registers there are."""
    lanes = int(tvm.target.codegen.llvm_get_vector_width(target)) // 32
    wide = lanes == 16 or "aarch64" in tvm.target.codegen.llvm_get_system_triple()
    return lanes, 32 if wide else 16
