"""What the machine refused, in a sentence: disk, memory, descriptors, threads, folders. None of it is a bug in Neaptide."""

from __future__ import annotations

import errno
import os
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .compiler.cache_folder import NeaptideWarning
from .report.console import note

MEMORY = "out of memory; give a smaller --input, or a factory that builds on the meta device"
GONE = "the working folder was removed; go to one that exists"
_WAYS_OUT = {
    (errno.ENOSPC, errno.EDQUOT): "free space on that disk, or set TMPDIR and NEAPTIDE_CACHE to folders on another",
    (errno.EFBIG,): "raise the limit on the size of a file (ulimit -f)",
    (errno.EMFILE, errno.ENFILE): "raise the limit on open files (ulimit -n)",
    (errno.EAGAIN,): "raise the limit on processes (ulimit -u)",
    (errno.ENOMEM,): "free memory, or raise the limit on it (ulimit -v)",
    (errno.EACCES, errno.EPERM, errno.EROFS): "give a place that this user may use",
}


def refusal(error: Exception) -> str | None:
    """The sentence for an error that the operating system or a full machine raised; None for any other."""
    said = " ".join(str(error).split())
    unset = isinstance(error, SystemError) and "without exception set" in said  # an extension that found no memory for its exception
    if unset or isinstance(error, MemoryError) or "can't allocate memory" in said or "failed to map segment" in said:
        return MEMORY
    if isinstance(error, RuntimeError) and "can't start new thread" in said:
        return "the system starts no more threads; raise the limit on processes (ulimit -u)"
    if isinstance(error, sqlite3.OperationalError):
        return f"a database cannot be used: {said}; free space on its disk, or name another"
    if not isinstance(error, OSError):
        return None
    if isinstance(error, FileNotFoundError) and not working_folder_exists():
        return GONE
    named = f" ({error.filename!r})" if error.filename is not None else ""
    way_out = next((f"; {words}" for numbers, words in _WAYS_OUT.items() if error.errno in numbers), "")
    return f"the system refused: {error.strerror or said}{named}{way_out}"


def working_folder_exists() -> bool:
    """Whether this process still has a folder to work in. Where it has none, MKL ends a process as soon as torch multiplies matrices."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True


@contextmanager
def notes() -> Iterator[None]:
    """Inside: a warning is one line on standard error: what it says, which names files and rows of others; its place helps nobody."""
    with warnings.catch_warnings():

        def show(message: Any, category: Any, *place: Any, **where: Any) -> None:
            kind = "note: " if issubclass(category, NeaptideWarning) else ""
            note(f"neaptide: {kind}{' '.join(str(message).split())}")

        warnings.showwarning = show
        yield
