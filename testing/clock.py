"""A clock that counts looks: time limits in tests that mean the same amount of work on every machine."""

from __future__ import annotations


class StepClock:
    """Goes on by `step` seconds each time it is looked at; `looks` says how often that was.

    `schedule(graph, time_limit=1.0, clock=StepClock(0.01))` ends after a hundred looks, wherever it runs.
    """

    def __init__(self, step: float):
        self.step, self.looks = step, 0

    def __call__(self) -> float:
        self.looks += 1
        return self.looks * self.step
