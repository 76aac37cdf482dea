"""The best schedule of one operator for this CPU, found by building and timing candidates here: ours first, then MetaSchedule's.

MetaSchedule's search is driven directly: no builder or runner processes and no measure callbacks, so nothing of it ever touches a file.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.s_tir import meta_schedule

from ...compiler.errors import NeaptideError
from . import cpu_schedules

BATCH = 16
REPEATS, REPEAT_MS = 5, 4
HOPELESS = 2.0  # a candidate that first takes this many times the best is not timed again
_INTRINSICS = "tvm.s_tir.tensor_intrin"


@dataclass(frozen=True, slots=True)
class Tuned:
    """The fastest schedule of an operator. `seconds`: the quickest of its repetitions, for what disturbs one only adds to it; `spread`:
    their relative half range; `trials`: schedules built and timed so far; `trace`: the schedule as JSON, which `tuned_module` applies.
    """

    seconds: float
    spread: float
    trials: int
    trace: Any


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
    own = cpu_schedules.candidates(func, target)
    for schedule in own[done:trials]:
        seconds = _seconds(build(tuned_module(func, schedule, target), target), arguments, best)
        best = _better(best, seconds, trials, schedule)
    searched = max(done, min(len(own), trials))
    if searched < trials:
        best = _meta_schedule(func, target, arguments, trials - searched, 1 + searched, best, trials)
    if best is None:
        raise NeaptideError(f"none of {trials} schedules of {func.attrs['global_symbol']} could be built and run; try more with --trials")
    return Tuned(best.seconds, best.spread, trials, best.trace)


def tuned_module(func: tirx.PrimFunc, trace: Any, target: tvm.target.Target) -> tvm.IRModule:
    """`func`, called `main`, under the schedule that a `Tuned.trace` describes."""
    if isinstance(trace, Mapping):
        return _module(cpu_schedules.scheduled(func, trace, target))
    schedule = tvm.s_tir.Schedule(_module(func))
    with _without_intrinsics():
        tvm.s_tir.schedule.Trace.apply_json_to_schedule(trace, schedule)
    return schedule.mod


def _meta_schedule(
    func: tirx.PrimFunc, target: tvm.target.Target, arguments: list[Any], count: int, seed: int, best: Tuned | None, trials: int
) -> Tuned | None:
    """The best of `best` and `count` random schedules of MetaSchedule's space."""
    with _without_intrinsics():
        context = meta_schedule.TuneContext(
            _module(func),
            target=target,
            space_generator=meta_schedule.space_generator.PostOrderApply(sch_rules="llvm", postprocs="llvm", mutator_probs="llvm"),
            search_strategy="replay-trace",
            num_threads=1,
            rand_state=seed,
            task_name="main",
        )
        database, model = meta_schedule.database.MemoryDatabase(), meta_schedule.cost_model.RandomModel()
        context.pre_tuning(count, min(BATCH, count), context.generate_design_space(), database, model)
        while (candidates := context.generate_measure_candidates()) is not None:
            results = []
            for candidate in candidates:
                try:
                    seconds = _seconds(build(candidate.sch.mod, target), arguments, best)
                except tvm.error.TVMError as error:
                    results.append(meta_schedule.runner.RunnerResult(None, str(error)[-300:]))
                    continue
                results.append(meta_schedule.runner.RunnerResult(seconds, None))
                best = _better(best, seconds, trials, _plain(candidate.sch.trace.as_json()))
            context.notify_runner_results(candidates, results)
        context.post_tuning()
    return best


def _better(best: Tuned | None, seconds: list[float], trials: int, trace: Any) -> Tuned:
    if best is not None and min(seconds) >= best.seconds:
        return best
    return Tuned(min(seconds), (max(seconds) - min(seconds)) / 2 / min(seconds), trials, trace)


def build(module: tvm.IRModule, target: tvm.target.Target) -> tvm.runtime.Module:
    """The operator compiled in memory; its function is `main`."""
    module = tvm.s_tir.transform.RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(module)
    return tvm.tirx.build(module, target=target)


def unscheduled(func: tirx.PrimFunc, target: tvm.target.Target) -> tvm.runtime.Module:
    """The operator compiled as it was written: right outputs at a time that says nothing."""
    return build(_module(func), target)


def _module(func: tirx.PrimFunc) -> tvm.IRModule:
    return tvm.IRModule({"main": func.with_attr("global_symbol", "main").with_attr("tirx.noalias", True)})


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


def _plain(value: Any) -> Any:
    """TVM's containers as JSON values."""
    if isinstance(value, (str, bool)) or value is None:
        return value if not isinstance(value, str) else str(value)
    if isinstance(value, (int, tirx.IntImm)):
        return int(value)
    if isinstance(value, (float, tirx.FloatImm)):
        return float(value)
    return [_plain(item) for item in value]


@contextmanager
def _without_intrinsics() -> Iterator[None]:
    """MetaSchedule imports every tensor intrinsic of every architecture, half a minute, and the rules used here ask for none."""
    absent = _INTRINSICS not in sys.modules
    if absent:
        sys.modules[_INTRINSICS] = types.ModuleType(_INTRINSICS)
        tvm.s_tir.tensor_intrin = sys.modules[_INTRINSICS]
    try:
        yield
    finally:
        if absent:
            del sys.modules[_INTRINSICS], tvm.s_tir.tensor_intrin
