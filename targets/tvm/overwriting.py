"""Which operand of an operator its result may lie over: one that is read nowhere but where the same element is written."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm_ffi import structural_equal, structural_walk


def overwritable(func: tirx.PrimFunc, results: int = 1) -> tuple[int, ...]:
    """Indices of the parameters of `func`, scheduled or not, whose bytes its one result may replace while it runs.

    Such a parameter has the result's shape and dtype, and every load of it stands in the one statement that stores the result, at
    the same indices: each element is read for the last time by the store that replaces it, in whatever order the loops run. A
    result that is stored twice (a sum that is built up in it) or read back allows none; nor do several `results`.
    """
    if results != 1:
        return ()
    result = func.params[-1]
    stores: list[Any] = []
    loads: list[Any] = []
    structural_walk(func.body, [(tirx.BufferStore, stores.append), (tvm.ir.TensorLoad, loads.append)])
    into = [store for store in stores if store.buffer.same_as(result)]
    if len(into) != 1 or any(load.source.same_as(result) for load in loads):
        return ()
    (store,) = into
    beside: list[Any] = []
    structural_walk(store.value, (tvm.ir.TensorLoad, beside.append))
    return tuple(
        i
        for i, param in enumerate(func.params[:-1])
        if _alike(param, result)
        and (own := [load for load in beside if load.source.same_as(param)])
        and len(own) == sum(load.source.same_as(param) for load in loads)
        and all(structural_equal(load.indices, store.indices) for load in own)
    )


def _alike(param: Any, result: Any) -> bool:
    return str(param.dtype) == str(result.dtype) and [int(d) for d in param.shape] == [int(d) for d in result.shape]
