"""What the kernel oracle remembers on disk: one SQLite file shared by every process of a user.

Rows never change their meaning: the key is a digest of a kernel's signature and of everything its allocations depend on
(torch version, instruction set, processor, threads). A file that SQLite cannot read is moved aside and begun anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .sqlite_files import WAIT_S, check_schema, connect, retry, write_ahead

FILE = "kernels-v1.sqlite"
_TABLE = """CREATE TABLE IF NOT EXISTS kernels (
    key TEXT PRIMARY KEY, signature TEXT NOT NULL, inner INTEGER, outputs TEXT, reason TEXT NOT NULL, limit_s REAL NOT NULL
)"""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One kernel run alone. `inner`: peak bytes allocated inside it, results included. `outputs`: per result tensor the bytes of
    the storage it gave birth to, None where it lies on an argument. `reason`: why there is no measurement, "" when there is one.
    """

    inner: int = 0
    outputs: tuple[int | None, ...] = ()
    reason: str = ""


def default_cache_dir() -> Path:
    """`$NEAPTIDE_CACHE`, else the user's cache folder."""
    override = os.environ.get("NEAPTIDE_CACHE")
    if override:
        return Path(override)
    import platformdirs

    return Path(platformdirs.user_cache_dir("neaptide"))


class KernelCache:
    """Measurements by key; concurrent processes may share one folder. Without a writable folder it lives in memory only."""

    def __init__(self, folder: str | os.PathLike[str] | None = None):
        self.path: Path | None = (default_cache_dir() if folder is None else Path(folder)) / FILE
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = _open(self.path)
        except (OSError, sqlite3.OperationalError) as error:
            warnings.warn(
                f"kernel measurements are not remembered: {str(self.path)!r} cannot be used ({error}); "
                "set NEAPTIDE_CACHE to a folder that can be written",
                stacklevel=3,
            )
            self.path = None
            self._db = _open(":memory:")
        except sqlite3.DatabaseError as error:
            self._db = self._begin_anew(error)

    def get(self, keys: Iterable[str], *, limit_s: float) -> dict[str, Measurement]:
        """Those of `keys` that are known. A kernel once stopped at a shorter time limit than `limit_s` counts as unknown."""
        found: dict[str, Measurement] = {}
        keys = list(keys)
        try:
            for i in range(0, len(keys), 500):
                part = keys[i : i + 500]
                marks = ",".join("?" * len(part))
                rows = self._db.execute(f"SELECT key, inner, outputs, reason, limit_s FROM kernels WHERE key IN ({marks})", part)
                for key, inner, outputs, reason, limit in rows:
                    if not (reason and 0 < limit < limit_s):
                        found[key] = Measurement(int(inner), tuple(json.loads(outputs)), str(reason))
        except (sqlite3.DatabaseError, TypeError, ValueError) as error:
            self._db = self._begin_anew(error)
            return {}
        return found

    def put(self, signatures: Mapping[str, str], measured: Mapping[str, Measurement], *, limits: Mapping[str, float]) -> None:
        """Remember `measured`; `limits` gives the time limit in seconds of those that were stopped by it."""
        rows = [(key, signatures[key], m.inner, json.dumps(list(m.outputs)), m.reason, limits.get(key, 0.0)) for key, m in measured.items()]
        try:
            with self._db:
                self._db.executemany("INSERT OR REPLACE INTO kernels VALUES (?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.OperationalError as error:
            warnings.warn(f"kernel measurements are not remembered: writing {str(self.path)!r} failed ({error})", stacklevel=3)
        except sqlite3.DatabaseError as error:
            self._db = self._begin_anew(error)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _begin_anew(self, error: Exception) -> sqlite3.Connection:
        assert self.path is not None
        with contextlib.suppress(AttributeError, sqlite3.Error):
            self._db.close()
        aside = self.path.with_suffix(f".corrupt-{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.path, aside)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.path}{suffix}")
        warnings.warn(f"the kernel cache {str(self.path)!r} is damaged ({error}); moved to {aside.name!r} and begun anew", stacklevel=4)
        return _open(self.path)


def _open(path: Path | str) -> sqlite3.Connection:
    db = connect(path, timeout=WAIT_S)
    try:
        retry(lambda: check_schema(db, [_TABLE]))
        write_ahead(db)
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute(_TABLE)
        db.execute("SELECT key, signature, inner, outputs, reason, limit_s FROM kernels LIMIT 1").fetchall()
    except BaseException:
        db.close()
        raise
    return db
