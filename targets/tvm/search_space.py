"""Random schedules of MetaSchedule's space for one operator, built and timed by whoever asks.

The search is driven directly: no builder or runner processes and no measure callbacks, so nothing of it ever touches a file.
"""

from __future__ import annotations

import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import tvm
from tvm import tirx
from tvm.s_tir import meta_schedule

from ..schedule_traces import check_schedule
from .proportion import check_proportion

BATCH = 16
FAILURES = (RuntimeError, ValueError, tvm.error.InternalError)  # what TVM raises for a schedule that does not build or run
_INTRINSICS = "tvm.s_tir.tensor_intrin"


def candidates(
    func: tirx.PrimFunc,
    target: tvm.target.Target,
    seconds: Callable[[tvm.IRModule], list[float]],
    *,
    rules: Literal["llvm", "cuda"],
    count: int,
    seed: int,
) -> Iterator[tuple[Any, list[float]]]:
    """Up to `count` schedules of `func`: each one's trace as JSON values, and what `seconds` said of its module, whose function is `main`.

    A candidate of which `seconds` raises one of `FAILURES` is passed over. A space with fewer schedules ends early.
    """
    with without_intrinsics(), interruptible() as check:
        context = meta_schedule.TuneContext(
            operator_module(func),
            target=target,
            space_generator=meta_schedule.space_generator.PostOrderApply(sch_rules=rules, postprocs=rules, mutator_probs=rules),
            search_strategy="replay-trace",
            num_threads=1,
            rand_state=seed,
            task_name="main",
        )
        database, model = meta_schedule.database.MemoryDatabase(), meta_schedule.cost_model.RandomModel()
        context.pre_tuning(count, min(BATCH, count), context.generate_design_space(), database, model)
        while (batch := context.generate_measure_candidates()) is not None:
            results = []
            for candidate in batch:
                check()
                try:
                    taken = seconds(candidate.sch.mod)
                except FAILURES as error:
                    check()
                    results.append(meta_schedule.runner.RunnerResult(None, str(error)[-300:]))
                    continue
                results.append(meta_schedule.runner.RunnerResult(taken, None))
                yield plain(candidate.sch.trace.as_json()), taken
            context.notify_runner_results(batch, results)
        context.post_tuning()


def applied(func: tirx.PrimFunc, trace: Any) -> tvm.IRModule:
    """`func`, called `main`, under the schedule that a candidate's trace describes.

    Raises `ValueError` for a trace that holds what no candidate does, or whose program is out of proportion.
    """
    check_schedule(trace)
    schedule = tvm.s_tir.Schedule(operator_module(func))
    with without_intrinsics():
        tvm.s_tir.schedule.Trace.apply_json_to_schedule(trace, schedule)
    check_proportion(func, schedule.mod["main"])
    return schedule.mod


def operator_module(func: tirx.PrimFunc) -> tvm.IRModule:
    """A copy of `func` alone in a module, called `main`: applying a trace changes the statements of the function it is given."""
    copied: Any = tvm.ir.load_json(tvm.ir.save_json(func))
    return tvm.IRModule({"main": copied.with_attr("global_symbol", "main").with_attr("tirx.noalias", True)})


def plain(value: Any) -> Any:
    """TVM's containers as JSON values."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (int, tirx.IntImm)):
        return int(value)
    if isinstance(value, (float, tirx.FloatImm)):
        return float(value)
    return [plain(item) for item in value]


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Ctrl-C stays what it is: TVM makes a nameless RuntimeError of one that comes while it calls back into Python.

    Gives a check that raises `KeyboardInterrupt` if one came; errors of TVM that leave the block after one are turned into it.
    """
    before = signal.getsignal(signal.SIGINT)
    came = False

    def hear(number: int, frame: types.FrameType | None) -> None:
        nonlocal came
        came = True
        if callable(before):
            before(number, frame)

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    hears = callable(before) and threading.current_thread() is threading.main_thread()
    if hears:
        signal.signal(signal.SIGINT, hear)
    try:
        yield check
    except FAILURES:
        check()
        raise
    finally:
        if hears:
            signal.signal(signal.SIGINT, before)


@contextmanager
def without_intrinsics() -> Iterator[None]:
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
