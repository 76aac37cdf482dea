"""The best schedule of each operator for a GPU: dlight's default first, then MetaSchedule's candidates, each built and timed there.

Only `device_timer` needs a GPU. What is found goes to the cost database at once, so that a search that was broken off goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import tvm
from tvm import tirx

from ...compiler.errors import NeaptideError
from ..database import CostDatabase, OperatorRow
from ..nvcc import cuda_compiler
from ..remember import features
from .search_space import FAILURES, applied, candidates, operator_module
from .tune import Tuned, remembered

DEFAULT = "dlight"  # the trace of dlight's default schedule
NUMBER, REPEATS = 3, 5
HOPELESS = 2.0  # a candidate that first takes this many times the best is not timed again

Timer = Callable[[tvm.IRModule, float], list[float]]
"""Seconds of each repetition of a module's `main`, given the best so far; one that is hopeless may be timed once."""


def tuned_operators(
    funcs: Mapping[str, tirx.PrimFunc],
    machine: tvm.target.Target,
    timer_of: Callable[[tirx.PrimFunc], Timer],
    *,
    target: str,
    toolchain: str,
    trials: int,
    database: CostDatabase | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Tuned]:
    """The best schedules of `funcs` by signature: what `database` knows, searched further where it had fewer than `trials`.

    `trials` counts dlight's default. With `trials=0` nothing is timed, and operators that the database does not know are absent.
    """
    say = progress or (lambda _: None)
    found: dict[str, Tuned] = {}
    for i, (key, func) in enumerate(funcs.items()):
        row = database.get(key, target, toolchain) if database is not None else None
        known = remembered(row, lambda known: scheduled_as(func, known.trace, machine))  # noqa: B023  (called at once)
        if trials > (known.trials if known else 0):
            say(f"tuning operator {i + 1} of {len(funcs)}: {key.partition('#')[0]}")
            known = tune_operator(func, machine, timer_of(func), trials=trials, known=known)
            if database is not None:
                extra = {"trials": known.trials, "trace": known.trace}
                row = OperatorRow(key, target, toolchain, known.seconds, "seconds", known.spread, features=features(key), extra=extra)
                database.put(row)
        if known is not None:
            found[key] = known
    return found


def tune_operator(func: tirx.PrimFunc, machine: tvm.target.Target, timer: Timer, *, trials: int, known: Tuned | None = None) -> Tuned:
    """Time dlight's default and candidates of MetaSchedule until there were `trials`; goes on from `known`.

    Raises `NeaptideError` when none of them runs.
    """
    done = known.trials if known is not None else 0
    best = known

    def keep(trace: Any, seconds: list[float]) -> None:
        nonlocal best
        low = min(seconds)
        if best is None or low < best.seconds:
            best = Tuned(low, (max(seconds) - low) / 2 / low, trials, trace)

    if not done:
        with suppress(*FAILURES):  # a default that does not run is none, and a candidate may
            keep(DEFAULT, timer(operator_module(scheduled_as(func, DEFAULT, machine)), float("inf")))
        done = 1
    if done < trials:
        tried = candidates(
            func,
            machine,
            lambda module: timer(module, best.seconds if best else float("inf")),
            rules="cuda",
            count=trials - done,
            seed=done,
        )
        for trace, seconds in tried:
            keep(trace, seconds)
    if best is None:
        raise NeaptideError(f"none of {trials} schedules of {func.attrs['global_symbol']} could be built and run; try more with --trials")
    return Tuned(best.seconds, best.spread, trials, best.trace)


def scheduled_as(func: tirx.PrimFunc, trace: Any, machine: tvm.target.Target) -> tirx.PrimFunc:
    """`func` under the schedule that a `Tuned.trace` names, its own name kept."""
    if trace != DEFAULT:
        return applied(func, trace)["main"].with_attr("global_symbol", func.attrs["global_symbol"])
    from tvm.s_tir import dlight

    gpu = dlight.gpu
    with machine:
        rules = (gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())
        return dlight.ApplyDefaultSchedule(*rules)(tvm.IRModule({"main": func}))["main"]


def built(module: tvm.IRModule, machine: tvm.target.Target) -> Any:
    """The operator compiled in memory; its function is `main`."""
    module = tvm.s_tir.transform.RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(module)
    return tvm.tirx.build(module, target=machine)


def device_timer(func: tirx.PrimFunc, machine: tvm.target.Target) -> Timer:
    """Times schedules of `func` on the GPU, warm, with TVM's `time_evaluator`."""
    device = tvm.cuda(0)
    arguments = [tvm.runtime.tensor(_example(param), device=device) for param in func.params]

    def seconds(module: tvm.IRModule, best: float) -> list[float]:
        with cuda_compiler():
            library = built(module, machine)
        first = float(library.time_evaluator("main", device, number=1, repeat=2)(*arguments).min)
        if first > HOPELESS * best:
            return [first]
        timer = library.time_evaluator("main", device, number=NUMBER, repeat=REPEATS, min_repeat_ms=1)
        return [float(s) for s in timer(*arguments).results]

    return seconds


def _example(param: Any) -> np.ndarray:
    shape, dtype = tuple(int(d) for d in param.shape), str(param.dtype)
    if dtype.startswith("float"):
        return np.random.default_rng(0).random(shape).astype(dtype)
    return np.zeros(shape, dtype)
