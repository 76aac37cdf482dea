"""Time as the searches of this package count it: limits in seconds of a clock that is handed in.

The clock is this thread's processor time unless a caller says otherwise, so that a busy machine finds what an idle one does,
in however long. What a search does between two looks at its clock is a fixed amount of work: a clock decides only after how
many looks the search ends, and one that counts looks (`testing.StepClock`) makes it end at the same place on every machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Clock = Callable[[], float]
"""Gives seconds from some moment on; never goes back."""

processor_clock: Clock = time.thread_time
wall_clock: Clock = time.perf_counter


class Stopwatch:
    """Seconds of `clock` since this was made, without those in `paused`."""

    def __init__(self, clock: Clock):
        self._clock, self._begun = clock, clock()

    def taken(self) -> float:
        return self._clock() - self._begun

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What runs inside takes no time: kernels are compiled once per machine, at nobody's cost."""
        begun = self._clock()
        try:
            yield
        finally:
            self._begun += self._clock() - begun


class Limit(Stopwatch):
    """`seconds` of `clock` from now on, those in `paused` not counted."""

    def __init__(self, seconds: float, clock: Clock = processor_clock):
        super().__init__(clock)
        self.seconds = seconds

    def left(self) -> float:
        """Seconds until the limit is spent, negative beyond it."""
        return self.seconds - self.taken()

    def spent(self) -> bool:
        return self.left() <= 0

    def share(self, of: int) -> Limit:
        """A limit of its own: an `of`-th part of what is left, by the same clock."""
        return Limit(self.left() / of, self._clock)
