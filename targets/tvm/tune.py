"""The best schedule of one operator for this CPU, found by building and timing candidates here: ours first, then MetaSchedule's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import tirx

from ...compiler.errors import NeaptideError
from ..database import OperatorRow
from ..schedule_traces import check_schedule
from . import cpu_schedules, search_space
from .nan_extremes import with_nan
from .workspace import WorkspaceCount

REPEATS, REPEAT_MS = 5, 4
HOPELESS = 2.0  # a candidate that first takes this many times the best is not timed again


@dataclass(frozen=True, slots=True)
class Tuned:
    """The fastest schedule of an operator. `seconds`: the quickest of its repetitions, for what disturbs one only adds to it; `spread`:
    their relative half range; `trials`: schedules built and timed so far; `trace`: the schedule as JSON, which `tuned_module` applies;
    `workspace`: bytes it takes while it runs, beside inputs and outputs.
    """

    seconds: float
    spread: float
    trials: int
    trace: Any
    workspace: int = 0


@dataclass(frozen=True, slots=True)
class Compiled:
    """An operator in memory: `function` takes its inputs and outputs; `workspace`: bytes that it takes from TVM's pool meanwhile."""

    library: tvm.runtime.Module
    workspace: int

    @property
    def function(self) -> Any:
        """What runs it."""
        return self.library["main"]


def remembered(row: OperatorRow | None, compiles: Callable[[Tuned], object]) -> Tuned | None:
    """What `row` says of an operator's schedule; None without one.

    A row may come from anyone, and its schedule decides what runs. One that `check_schedule` refuses, or that `compiles` fails to
    apply to the operator, is not used either: a warning names it, and the operator counts as never tuned.
    """
    if row is None or "trace" not in row.extra:
        return None
    try:
        check_schedule(row.extra["trace"])
        if row.unit != "seconds" or not row.value or "trials" not in row.extra:
            raise ValueError(f"it took {row.value} {row.unit} in {row.extra.get('trials')} trials")
        known = Tuned(row.value, row.spread or 0.0, row.extra["trials"], row.extra["trace"], row.bytes)
        compiles(known)
    except (NeaptideError, TypeError, IndexError, *search_space.FAILURES) as error:
        reason = " ".join(str(error).split())[:300]
        warnings.warn(f"what is remembered of {row.signature!r} is not used, as if it had never been tuned: {reason}", stacklevel=3)
        return None
    return known


def cpu_target(threads: int, mcpu: str = "host") -> tvm.target.Target:
    """TVM's target for this machine with so many threads; `mcpu`: LLVM's name of the processor, "host" for the one here."""
    name = tvm.target.codegen.llvm_get_system_cpu() if mcpu == "host" else mcpu
    return tvm.target.Target({"kind": "llvm", "mcpu": name, "num-cores": threads})


def tune(func: tirx.PrimFunc, target: tvm.target.Target, *, trials: int, known: Tuned | None = None) -> Tuned:
    """Search until `trials` schedules of `func` have been timed; goes on from `known`, which is returned when it had as many.

    Schedules of our own come first, the most promising before the others; what is left of `trials` is MetaSchedule's. A space with
    fewer schedules ends the search early; it counts as searched. Raises `NeaptideError` when none of them runs.
    """
    if known is not None and known.trials >= trials:
        return known
    done = 0 if known is None else known.trials
    arguments = [tvm.runtime.tensor(_example(param)) for param in func.params]
    best = known
    workspace = 0

    def timed(module: tvm.IRModule) -> list[float]:
        nonlocal workspace
        compiled = build(module, target)
        workspace = compiled.workspace
        return _seconds(compiled.library, arguments, best)

    def better(trace: Any, seconds: list[float]) -> Tuned:
        low = min(seconds)
        if best is not None and low >= best.seconds:
            return best
        return Tuned(low, (max(seconds) - low) / 2 / low, trials, trace, workspace)

    own = cpu_schedules.candidates(func, target)
    for schedule in own[done:trials]:
        with search_space.interruptible():
            best = better(schedule, timed(tuned_module(func, schedule, target)))
    done = max(done, min(len(own), trials))
    if done < trials:
        for trace, seconds in search_space.candidates(func, target, timed, rules="llvm", count=trials - done, seed=1 + done):
            best = better(trace, seconds)
    if best is None:
        raise NeaptideError(
            f"none of {trials} schedules of an operator of {cpu_schedules.shapes(func)} could be built and run; try more with --trials"
        )
    return replace(best, trials=trials)


def tuned_module(func: tirx.PrimFunc, trace: Any, target: tvm.target.Target) -> tvm.IRModule:
    """`func`, called `main`, under the schedule that a `Tuned.trace` describes: a mapping for one of ours."""
    if isinstance(trace, Mapping):
        return search_space.operator_module(cpu_schedules.scheduled(func, trace, target))
    return search_space.applied(func, trace)


def build(module: tvm.IRModule, target: tvm.target.Target) -> Compiled:
    """The operator compiled in memory; its function is `main`."""
    module = with_nan(module)
    module = tvm.s_tir.transform.RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(module)
    count = WorkspaceCount(int(target.attrs["num-cores"]))
    with tvm.transform.PassContext(instruments=[count.instrument]):
        library = tvm.tirx.build(module, target=target)
    return Compiled(library, count.bytes)


def unscheduled(func: tirx.PrimFunc, target: tvm.target.Target) -> Compiled:
    """The operator compiled as it was written: right outputs at a time that says nothing."""
    return build(search_space.operator_module(func), target)


def _example(param: Any) -> np.ndarray:
    shape, dtype = tuple(int(d) for d in param.shape), str(param.dtype)
    if dtype.startswith("float"):
        return np.random.default_rng(0).random(shape).astype(dtype)
    return np.zeros(shape, dtype)


def _seconds(library: Any, arguments: list[Any], best: Tuned | None) -> list[float]:
    first = float(library.time_evaluator("main", tvm.cpu(), number=1, repeat=2)(*arguments).min)
    if best is not None and first > HOPELESS * best.seconds:
        return [first]
    timer = library.time_evaluator("main", tvm.cpu(), number=1, repeat=REPEATS, min_repeat_ms=REPEAT_MS)
    return [float(s) for s in timer(*arguments).results]
