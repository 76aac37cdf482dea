"""Files that a user asked for: a reader sees the old file or the whole new one, and whatever fails, the old one is still there.

A file is written beside its place and renamed over it. Its mode and, where this user may, its owner stay; a new one gets what the umask
leaves of 0o666. A symbolic link stays and its target is replaced; a device, a pipe, a socket and what this process has open as its
standard output or error are written through. Where the file may be written but its folder may not, and where it is mounted by itself,
the whole content is made first and then put in its place.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .errors import WriteError

PathLike = str | os.PathLike[str]
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")


def write_text(path: PathLike, text: str) -> None:
    """Write `text` to `path` as UTF-8, as `writing` does; half of a pair of surrogates becomes "?"."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_bytes(path: PathLike, data: bytes) -> None:
    """Write `data` to `path`, as `writing` does."""
    with writing(path) as stream:
        stream.write(data)


@contextlib.contextmanager
def writing(path: PathLike) -> Iterator[IO[bytes]]:
    """A stream whose bytes are the file at `path` once the block ends; when it raises, a file is as it was, and none is left behind.

    Raises `WriteError` that names `path` and what the system said. What is written through (a pipe, a device) has what came so far.
    """
    named = _named(path)
    try:
        with _through(named) or _beside(os.path.realpath(named)) as stream:
            yield stream
    except OSError as error:
        raise WriteError(f"cannot write {named!r}: {error.strerror or error}") from None


def check_writable(path: PathLike) -> None:
    """Raise `WriteError` now when `path` could not be written later; nothing is made and no pipe is opened."""
    named = _named(path)
    real = Path(os.path.realpath(named))
    if real.is_dir():
        raise WriteError(f"cannot write {named!r}: it is a folder")
    if real.exists() or os.path.exists(named):  # the second for /dev/stdout, whose real path names no file when it is a pipe
        if not _may_write(named):
            raise WriteError(f"cannot write {named!r}: no permission to write it")
        return
    if not real.parent.is_dir():
        missing = real.parent if os.path.islink(named) else Path(named).parent
        raise WriteError(f"cannot write {named!r}: there is no folder {str(missing)!r}")
    if not _may_write(str(real.parent)):
        raise WriteError(f"cannot write {named!r}: no permission to write in {str(Path(named).parent)!r}")


def _named(path: PathLike) -> str:
    named = os.fspath(path)
    if not os.path.basename(named) or "\0" in named:
        raise WriteError(f"cannot write {named!r}: that is no name of a file")
    return named


def _may_write(path: str) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _through(path: str) -> IO[bytes] | None:
    """A stream into what `path` names when that is not to be replaced; None for a file and for what does not exist."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    descriptor = _opened(path, found)
    if descriptor is not None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()  # what was printed before comes before
        return os.fdopen(os.dup(descriptor), "wb")
    if stat.S_ISREG(found.st_mode):
        return None
    return open(path, "wb")


def _opened(path: str, found: os.stat_result) -> int | None:
    """The descriptor by which this process has `path` open as its output, so that both write at one place of it."""
    named = _DESCRIPTOR.fullmatch(path)
    for descriptor in (1, 2, *([int(named[1])] if named else [])):
        with contextlib.suppress(OSError):
            known = os.fstat(descriptor)
            if not stat.S_ISCHR(known.st_mode) and os.path.samestat(known, found):
                return descriptor
    return None


@contextlib.contextmanager
def _beside(path: str) -> Iterator[IO[bytes]]:
    """A stream into a new file in the folder of `path`, which takes its place at the end. `path` names a file or nothing."""
    before = os.stat(path) if os.path.exists(path) else None
    if before is not None and not _may_write(path):
        raise PermissionError(0, "no permission to write it")
    folder, name = os.path.split(path)
    partial = os.path.join(folder, f".{name[:40]}.{secrets.token_hex(4)}")
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if before is None else 0o600)
    except PermissionError:
        if before is None:
            raise
        with _in_place(path) as stream:
            yield stream
        return
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            if before is not None:
                _as_before(stream.fileno(), before)
            os.fsync(stream.fileno())
        _replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def _as_before(handle: int, before: os.stat_result) -> None:
    """Give a new file the owner, where this user may, and the mode of the one it replaces."""
    if (before.st_uid, before.st_gid) != (os.fstat(handle).st_uid, os.fstat(handle).st_gid):
        with contextlib.suppress(PermissionError):
            os.fchown(handle, before.st_uid, before.st_gid)
    os.fchmod(handle, stat.S_IMODE(before.st_mode))


def _replace(partial: str, path: str) -> None:
    """Rename, or copy what may be written and not renamed over: a file that is a mount of its own, or another user's in a sticky folder."""
    try:
        os.replace(partial, path)
    except OSError:
        if not os.path.isfile(path):
            raise
        with open(partial, "rb") as made:
            _overwrite(path, made.read())
        os.unlink(partial)


@contextlib.contextmanager
def _in_place(path: str) -> Iterator[IO[bytes]]:
    """A stream kept in memory until it is whole, then written over the file."""
    import io

    content = io.BytesIO()
    yield content
    _overwrite(path, content.getvalue())


def _overwrite(path: str, content: bytes) -> None:
    """Write over a file, and write back what it held when that fails: its blocks are its own still."""
    with open(path, "r+b", buffering=0) as file:
        before = file.read()
        try:
            _at_start(file, content)
        except OSError:
            _at_start(file, before)
            raise


def _at_start(file: IO[bytes], content: bytes) -> None:
    file.seek(0)
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
    file.truncate(len(content))
    os.fsync(file.fileno())
