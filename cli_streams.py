"""The standard streams of a command: closed, full or gone, they end it in one sentence, and no result is lost unsaid.

Results go to standard output: what it does not take is an error. Messages go to standard error: what it does not take is dropped.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

from .compiler.children import hold_descriptors
from .compiler.errors import NeaptideError


class OutputError(NeaptideError):
    """Standard output did not take a result."""


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Inside: the streams of this process, if they are its own, behave as this module says, and show what they can of any text."""
    hold_descriptors()
    own = sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__
    if not own:
        yield
        return
    sys.stdout, sys.stderr = _Results(1, sys.__stdout__), _Messages(2, sys.__stderr__)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OutputError, BrokenPipeError):  # a command that fails has its own sentence
                stream.flush()
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


class _Stream(io.TextIOWrapper):
    """Text to a descriptor that stays open, in the encoding of the stream that Python made for it (UTF-8 where it made none)."""

    def __init__(self, descriptor: int, made: io.TextIOBase | None):
        raw = io.FileIO(descriptor, "w", closefd=False)
        encoding = getattr(made, "encoding", None) or "utf-8"
        buffered = bool(getattr(made, "line_buffering", False)) or descriptor == 2
        super().__init__(io.BufferedWriter(raw), encoding=encoding, errors="replace", line_buffering=buffered)
        if made is not None:
            made.flush()

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._fail(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        """From now on, what is written goes nowhere: also what Python flushes when it ends."""
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
        self._told(error)

    def _told(self, error: OSError) -> None:
        raise NotImplementedError


class _Results(_Stream):
    def _told(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            raise error
        raise OutputError(f"standard output took no more: {error.strerror or error}; free space there, or send it elsewhere") from None


class _Messages(_Stream):
    def _told(self, error: OSError) -> None:
        return
