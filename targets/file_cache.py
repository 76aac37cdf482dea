"""Results that are slow to make and safe to lose: one file for each, under a hash of what made it, shared by processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from pathlib import Path

from ..compiler.cache_folder import cache_folder, not_remembered

DIGEST = hashlib.sha256().digest_size


class FileCache:
    """Bytes by key, in `folder` (None: `operators` in the user's cache folder). A damaged file counts as absent, and a folder that cannot
    be written to keeps nothing, with a warning: neither changes a result.
    """

    def __init__(self, folder: Path | None = None):
        self._given = folder

    def get(self, key: str) -> bytes | None:
        """What `put` kept under `key`, or None."""
        try:
            content = self._path(self.folder, key).read_bytes()
        except OSError:
            return None
        digest, value = content[:DIGEST], content[DIGEST:]
        return value if hashlib.sha256(value).digest() == digest else None

    def put(self, key: str, value: bytes) -> None:
        """Keep `value`; readers see all of it or nothing."""
        try:
            folder = self.folder
        except OSError as error:
            not_remembered("the user's cache folder", error)
            return
        try:
            path = self._path(folder, key)
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, hashlib.sha256(value).digest() + value)
        except OSError as error:
            not_remembered(folder if self._given else folder.parent, error)

    @property
    def folder(self) -> Path:
        """Where the files are. Raises `OSError` for a user who has no home folder."""
        return cache_folder() / "operators" if self._given is None else self._given

    def _path(self, folder: Path, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return folder / name[:2] / name[2:]


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that readers see all of it or what was there. Unlike an output file it need not outlive a power cut.

    Raises `OSError`, leaving nothing behind.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
