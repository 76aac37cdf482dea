"""Results that are slow to make and safe to lose: one file for each, under a hash of what made it, shared by processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

DIGEST = hashlib.sha256().digest_size


def default_folder() -> Path:
    """`$NEAPTIDE_CACHE`, else the user's cache folder."""
    override = os.environ.get("NEAPTIDE_CACHE")
    if override:
        return Path(override)
    import platformdirs

    return Path(platformdirs.user_cache_dir("neaptide", appauthor=False))


class FileCache:
    """Bytes by key, in `folder` (None: `operators` in the default one). A damaged file counts as absent, and a folder that cannot be
    written to keeps nothing: neither changes a result.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = default_folder() / "operators" if folder is None else folder

    def get(self, key: str) -> bytes | None:
        """What `put` kept under `key`, or None."""
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        digest, value = content[:DIGEST], content[DIGEST:]
        return value if hashlib.sha256(value).digest() == digest else None

    def put(self, key: str, value: bytes) -> None:
        """Keep `value`; readers see all of it or nothing."""
        path = self._path(key)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(hashlib.sha256(value).digest() + value)
            partial.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / name[2:]
