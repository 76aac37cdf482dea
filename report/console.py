"""The terminal: results on standard output, progress on standard error, and no text of a stranger raw on either.

Names may hold what a terminal obeys or what rich takes for markup. Here is the boundary: texts are never markup, and every character that
leaves is one that is drawn; colours come from styles alone.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.text import Text

from ..compiler.foreign_text import shown

PATIENCE = 1.0
WIDTH = 100


class SafeConsole(Console):
    """A console on which all text is foreign text."""

    def __init__(self, **options: Any):
        super().__init__(**{"highlight": False, **options}, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """See rich: what a plain string becomes, in a table too."""
        return super().render_str(shown(text), **{**options, "markup": False, "emoji": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See rich: whatever is drawn passes here. Texts are made safe before they are laid out, and the rest as it leaves."""
        if isinstance(renderable, Text) and (plain := shown(renderable.plain)) != renderable.plain:
            told = renderable
            renderable = Text(plain, told.style, justify=told.justify, overflow=told.overflow, no_wrap=told.no_wrap, end=told.end)
        yield from drawn(super().render(renderable, options))


def drawn(segments: Iterable[Segment]) -> Iterator[Segment]:
    """`segments` without characters that are not drawn, but rich's own controls: for views that consoles of others print, too."""
    for text, style, control in segments:
        yield Segment(text if control else shown(text), style, control)


def output() -> SafeConsole:
    """The console for results: as wide as the terminal, `WIDTH` columns when there is none and `COLUMNS` is not set."""
    fits = sys.stdout.isatty() or "COLUMNS" in os.environ
    return SafeConsole(width=None if fits else WIDTH)


def note(text: str) -> None:
    """One line for the user on standard error."""
    print(shown(text), file=sys.stderr)


class Stages:
    """A progress bar over named stages that goes away when the work is done: call it as `stages(name, done, total)`.

    `total` is 0 when it is not known. Shown on a terminal only, once `PATIENCE` seconds have passed.
    """

    def __init__(self) -> None:
        console = SafeConsole(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
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
        self._bar.update(self._task, description=shown(stage, keep=""), completed=done, total=total or None)
