"""The terminal: results on standard output, progress on standard error."""

from __future__ import annotations

import os
import sys
import threading
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PATIENCE = 1.0
WIDTH = 100


def output() -> Console:
    """The console for results: as wide as the terminal, `WIDTH` columns when there is none and `COLUMNS` is not set."""
    fits = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if fits else WIDTH, highlight=False)


class Stages:
    """A progress bar over named stages that goes away when the work is done: call it as `stages(name, done, total)`.

    `total` is 0 when it is not known. Shown on a terminal only, once `PATIENCE` seconds have passed.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("starting", total=None)
        self._timer = threading.Timer(PATIENCE, self._bar.start) if console.is_terminal else None

    def __enter__(self) -> Stages:
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
            self._bar.stop()

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        self._bar.update(self._task, description=stage, completed=done, total=total or None)
