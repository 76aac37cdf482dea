"""What the CPU allocator really did, from torch's profiler: the truth that predicted eager peaks are held against.

Counted is what the call itself allocates: bytes alive since it began, results and kernel workspace included; weights,
arguments and whatever was allocated before stand apart. Use one process per thread count, and run once before measuring.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

MARK = "neaptide:"


@dataclass(frozen=True)
class Peak:
    """Most bytes alive at once within a stretch of a run, bytes alive at its start and end, and the operators at the peak."""

    nbytes: int
    start: int
    end: int
    at: tuple[str, ...] = ()
    alive: tuple[tuple[int, tuple[str, ...]], ...] = ()


@contextlib.contextmanager
def mark(name: str) -> Iterator[None]:
    """Name a stretch of the profiled call, for `peaks_by_mark`."""
    import torch

    with torch.profiler.record_function(MARK + name):
        yield


def profiled_peak(call: Callable[[], Any]) -> Peak:
    """Peak of one run of `call`, its result alive to the end."""
    allocations, _ = profiled_events(call)
    return _sweep(allocations)[0]


def peaks_by_mark(call: Callable[[], Any]) -> list[tuple[str, Peak]]:
    """Peaks of the stretches that `call` marks, in order, a name as often as it is used; bytes count from the start of `call`."""
    allocations, marks = profiled_events(call)
    peaks = _sweep(allocations, [(begin, end) for begin, end, _ in marks])
    return [(name, peak) for (_, _, name), peak in zip(marks, peaks, strict=True)]


Allocation = tuple[int, int, int, tuple[str, ...]]


def profiled_events(call: Callable[[], Any]) -> tuple[list[Allocation], list[tuple[int, int, str]]]:
    """Allocator events (nanoseconds, bytes, address, enclosing operators; frees negative) and marks, in time order."""
    from torch._C._profiler import _EventType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    allocations: list[Allocation] = []
    marks: list[tuple[int, int, str]] = []
    stack: list[tuple[Any, tuple[str, ...]]] = [(event, ()) for event in profiler.profiler.kineto_results.experimental_event_tree()]
    while stack:
        event, parents = stack.pop()
        if event.tag == _EventType.Allocation:
            fields: Any = event.extra_fields
            allocations.append((event.start_time_ns, fields.alloc_size, fields.ptr, parents))
            continue
        if event.name.startswith(MARK):
            marks.append((event.start_time_ns, event.end_time_ns, event.name[len(MARK) :]))
        inner = (*parents, event.name)
        stack.extend((child, inner) for child in event.children)
    allocations.sort(key=lambda event: event[0])
    marks.sort()
    return allocations, marks


def _sweep(allocations: list[Allocation], stretches: list[tuple[int, int]] | None = None) -> list[Peak]:
    """Peaks per stretch of time, the whole run if None; frees of memory older than the run do not count."""
    stretches = stretches or [(0, 1 << 63)]
    alive: dict[int, tuple[int, tuple[str, ...]]] = {}
    live = i = 0
    peaks = []
    for begin, end in stretches:
        while i < len(allocations) and allocations[i][0] < begin:
            live += _apply(alive, allocations[i])
            i += 1
        start = highest = live
        at: tuple[str, ...] = ()
        then = tuple(alive.values())
        while i < len(allocations) and allocations[i][0] <= end:
            live += _apply(alive, allocations[i])
            if live > highest:
                highest, at, then = live, allocations[i][3], tuple(alive.values())
            i += 1
        peaks.append(Peak(highest, start, live, at, then))
    return peaks


def _apply(alive: dict[int, tuple[int, tuple[str, ...]]], event: Allocation) -> int:
    _, size, address, parents = event
    if size > 0:
        alive[address] = (size, parents)
        return size
    return -alive.pop(address, (0, ()))[0]
