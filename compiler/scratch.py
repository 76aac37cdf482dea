"""Temporary folders that do not outlive their process for long, and locks that do not outlive it at all.

A folder `neaptide-XXXX` lies beside a file `neaptide-XXXX.lock`, which its process holds locked. A system frees the locks of a process
however that ends, so a lock file that can be locked belongs to a process that is gone, and `sweep` removes it with its folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .cache_folder import cache_folder
from .errors import NeaptideError
from .patience import Patience, processor_seconds

PREFIX, LOCK = "neaptide-", ".lock"
POLL_S = 0.05


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder of this process's own, removed at the end. Raises `NeaptideError` where none can be made."""
    try:
        handle, folder = _begun()
    except OSError as error:
        raise NeaptideError(
            f"no temporary folder can be made in {tempfile.gettempdir()!r}: {error.strerror or error}; name another one with TMPDIR"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _let_go(handle, None if folder.exists() else f"{folder}{LOCK}")  # the next run sweeps what could not be removed now


def sweep() -> int:
    """Remove the temporary folders of this user's Neaptides that are gone; how many. What cannot be removed stays, silently."""
    swept = 0
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        locks = [entry.path for entry in entries if entry.name.startswith(PREFIX) and entry.name.endswith(LOCK)]
        swept = sum(_swept(path) for path in locks)
    return swept


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time with `path` locked; others wait while that one gets on, so that what it makes is made once.

    It is no guard of correctness: where `path` cannot be written or locked, or its holder stands still, everybody goes in.
    """
    handle = None
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        if handle is not None:
            _wait_for(handle)
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def once(name: str) -> Iterator[None]:
    """`alone`, with a lock called `name` in the user's cache folder; who has no home folder waits for nobody."""
    try:
        lock = cache_folder() / name
    except OSError:
        yield
        return
    with alone(lock):
        yield


def _wait_for(handle: int) -> None:
    patience = Patience()
    while True:
        try:
            if _locked(handle):
                break
        except OSError:  # a file system without locks
            return
        if patience.ended(processor_seconds(_holder(handle))):
            return
        time.sleep(POLL_S)
    with contextlib.suppress(OSError):
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, b"%-20d" % os.getpid())


def _holder(handle: int) -> int:
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        return int(os.read(handle, 20))
    except (OSError, ValueError):  # not written yet
        return 0


def _begun() -> tuple[int, Path]:
    """A locked file and the folder beside it; a sweep may take the file before it is locked, then another is made."""
    while True:
        handle, path = tempfile.mkstemp(prefix=PREFIX, suffix=LOCK)
        try:
            mine = _locked(handle) and _is_at(handle, path)
        except OSError:
            mine = True  # a file system without locks: nobody can sweep there
        folder = path[: -len(LOCK)]
        if mine:
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o700)
                return handle, Path(os.path.realpath(folder))
        _let_go(handle, path)


def _swept(path: str) -> bool:
    """Whether the process of the lock file `path` was gone, and its folder is too now."""
    try:
        handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return False
    gone = False
    try:
        gone = _own(os.fstat(handle)) and _locked(handle) and _is_at(handle, path)
        if gone:
            folder = path[: -len(LOCK)]
            with contextlib.suppress(FileNotFoundError):
                there = os.lstat(folder)
                if stat.S_ISDIR(there.st_mode) and _own(there):
                    shutil.rmtree(folder)
    except OSError:
        gone = False
    _let_go(handle, path if gone else None)
    return gone


def _own(facts: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or facts.st_uid == os.getuid()


def _is_at(handle: int, path: str) -> bool:
    """Whether the open file is still the one that `path` names."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _let_go(handle: int, path: str | None) -> None:
    """Remove the file and free its lock: in this order, so that nobody finds it free, but where the system forbids it."""
    if os.name == "nt":
        os.close(handle)
    if path is not None:
        with contextlib.suppress(OSError):
            os.unlink(path)
    if os.name != "nt":
        os.close(handle)


if os.name == "nt":
    import msvcrt

    def _locked(handle: int) -> bool:
        os.lseek(handle, 1 << 20, os.SEEK_SET)  # a lock forbids reading there
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        except PermissionError:
            return False
        return True

else:
    import fcntl

    def _locked(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
