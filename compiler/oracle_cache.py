"""What the kernel oracle remembers on disk: one SQLite file shared by every process of a user.

Rows never change their meaning: the key is a digest of a kernel's signature and of everything its allocations depend on
(torch version, instruction set, processor, threads). A file that SQLite cannot read is moved aside and begun anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .cache_database import CacheDatabase

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


class KernelCache:
    """Measurements by key; concurrent processes may share one folder. Without a writable folder it lives in memory only."""

    def __init__(self, folder: str | os.PathLike[str] | None = None):
        self._file = CacheDatabase(folder, FILE, [_TABLE])

    def get(self, keys: Iterable[str], *, limit_s: float) -> dict[str, Measurement]:
        """Those of `keys` that are known. A kernel once stopped at a shorter time limit than `limit_s` counts as unknown."""
        found: dict[str, Measurement] = {}
        keys = list(keys)
        try:
            for i in range(0, len(keys), 500):
                part = keys[i : i + 500]
                marks = ",".join("?" * len(part))
                rows = self._file.read(f"SELECT key, inner, outputs, reason, limit_s FROM kernels WHERE key IN ({marks})", part)
                for key, inner, outputs, reason, limit in rows:
                    if not (reason and 0 < limit < limit_s):
                        found[key] = Measurement(int(inner), tuple(json.loads(outputs)), str(reason))
        except (TypeError, ValueError) as error:
            self._file.begin_anew(error)
            return {}
        return found

    def put(self, signatures: Mapping[str, str], measured: Mapping[str, Measurement], *, limits: Mapping[str, float]) -> None:
        """Remember `measured`; `limits` gives the time limit in seconds of those that were stopped by it."""
        rows = [(key, signatures[key], m.inner, json.dumps(list(m.outputs)), m.reason, limits.get(key, 0.0)) for key, m in measured.items()]
        self._file.write([("INSERT OR REPLACE INTO kernels VALUES (?, ?, ?, ?, ?, ?)", rows)])

    def close(self) -> None:
        """Close the file."""
        self._file.close()
