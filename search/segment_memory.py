"""Solved segments on disk, so that the next process starts where this one ends.

One SQLite file in the cache folder. Rows are found by a digest of the space with its options, of the accounting, and of every source
file that decides what a segment costs: a new version of Neaptide reads nothing of an old one. Only spaces that come with Neaptide are
kept, since the sources of others are not known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from importlib.metadata import version
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compiler.cache_database import CacheDatabase
from .segment_costs import Solved
from .space import Space

if TYPE_CHECKING:
    from .pricing import Priced

FILE = "oracle-v1.sqlite"
TABLES = (
    """CREATE TABLE IF NOT EXISTS segments (
        space TEXT NOT NULL, kind INTEGER NOT NULL, slot INTEGER NOT NULL, genes BLOB NOT NULL, key BLOB NOT NULL, peak INTEGER NOT NULL,
        bound INTEGER NOT NULL, params INTEGER NOT NULL, macs INTEGER NOT NULL, weights INTEGER NOT NULL,
        PRIMARY KEY (space, kind, slot, genes)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS solved (
        version TEXT NOT NULL, key BLOB NOT NULL, peak INTEGER NOT NULL, bound INTEGER NOT NULL, enters INTEGER NOT NULL,
        leaves INTEGER NOT NULL, blocks BLOB NOT NULL, PRIMARY KEY (version, key)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS arenas (
        version TEXT NOT NULL, key BLOB NOT NULL, ends INTEGER NOT NULL, arena INTEGER NOT NULL, bound INTEGER NOT NULL,
        PRIMARY KEY (version, key, ends)
    ) WITHOUT ROWID""",
    "CREATE TABLE IF NOT EXISTS fused (version TEXT NOT NULL, key BLOB NOT NULL, operators TEXT NOT NULL, PRIMARY KEY (version, key))",
)


class SegmentMemory:
    """What is known on disk of the space with digest `space`, in `folder` (None: the user's cache folder)."""

    def __init__(self, folder: Any, space: str):
        self.space = space
        self._file = CacheDatabase(folder, FILE, TABLES)

    @classmethod
    def of(cls, space: Space, settings: Sequence[Any], folder: Any = None) -> SegmentMemory | None:
        """The memory for `space` priced with `settings`, in `folder` (None: the user's cache folder); None for a space that is not
        Neaptide's own.
        """
        if not type(space).__module__.startswith(f"{__package__}.spaces."):
            return None
        text = json.dumps([planner_version(), space.describe(), *settings], sort_keys=True)
        digest = blake2b(text.encode(), digest_size=12).hexdigest()
        return cls(folder, digest)

    def rows(self) -> Iterator[tuple[int, int, list[bytes], list[bytes], np.ndarray]]:
        """Of each slot of each table all that is known: table, slot, genes, planning keys, and peak, bound, parameters, multiply-adds and
        weight bytes, int64 (n, 5).
        """
        query = "SELECT kind, slot, genes, key, peak, bound, params, macs, weights FROM segments WHERE space = ? ORDER BY kind, slot"
        found = self._file.read(query, (self.space,))
        try:
            for (kind, slot), rows in groupby(found, key=itemgetter(0, 1)):
                columns = list(zip(*rows, strict=True))
                yield kind, slot, list(columns[2]), list(columns[3]), np.array(columns[4:], np.int64).T
        except (TypeError, ValueError, OverflowError) as error:
            self._file.begin_anew(error)

    def solved(self, key: bytes) -> Solved | None:
        """The memory of the segment with planning key `key`, which `put` has kept; None where it is lost."""
        query = "SELECT peak, bound, enters, leaves, blocks FROM solved WHERE version = ? AND key = ?"
        found = self._file.read(query, (planner_version(), key))
        if not found:
            return None
        peak, bound, enters, leaves, blocks = found[0]
        try:
            return Solved(int(peak), int(bound), np.frombuffer(blocks, "<i8").reshape(-1, 3).astype(np.int64), (int(enters), int(leaves)))
        except (TypeError, ValueError) as error:
            self._file.begin_anew(error)
            return None

    def arenas(self) -> dict[tuple[bytes, bool], tuple[int, int]]:
        """Arenas and what bounds them, by planning key and whether they are flush with what enters and leaves."""
        found = self._file.read("SELECT key, ends, arena, bound FROM arenas WHERE version = ?", (planner_version(),))
        return {(key, bool(ends)): (arena, bound) for key, ends, arena, bound in found}

    def put_arenas(self, arenas: Sequence[tuple[bytes, bool, tuple[int, int]]]) -> None:
        """Keep what `arenas` will give."""
        rows = [(planner_version(), key, ends, *found) for key, ends, found in arenas]
        self._file.write([("INSERT OR REPLACE INTO arenas VALUES (?, ?, ?, ?, ?)", rows)])

    def operators(self, key: bytes) -> dict[str, int] | None:
        """How often each fused operator occurs in the program with key `key`, where that is known."""
        found = self._file.read("SELECT operators FROM fused WHERE version = ? AND key = ?", (_fuser(), key))
        try:
            return json.loads(found[0][0]) if found else None
        except (TypeError, ValueError) as error:
            self._file.begin_anew(error)
            return None

    def put_operators(self, key: bytes, operators: Mapping[str, int]) -> None:
        """Keep what `operators` will give."""
        self._file.write([("INSERT OR REPLACE INTO fused VALUES (?, ?, ?)", [(_fuser(), key, json.dumps(dict(operators)))])])

    def put(self, kind: int, segments: Sequence[tuple[int, bytes, Priced]]) -> None:
        """Keep `segments` of table `kind`, each with its slot and genes, in one transaction."""
        rows, solved = [], {}
        for slot, genes, one in segments:
            peak, bound = (one.solved.peak, one.solved.bound) if one.price is None else (one.price, one.price)
            rows.append((self.space, kind, slot, genes, one.key, peak, bound, one.work.params, one.work.macs, one.work.weight_bytes))
            ends = one.solved.ends
            blocks = one.solved.blocks.astype("<i8").tobytes()
            solved[one.key] = (planner_version(), one.key, one.solved.peak, one.solved.bound, *ends, blocks)
        self._file.write(
            [
                ("INSERT OR IGNORE INTO solved VALUES (?, ?, ?, ?, ?, ?, ?)", list(solved.values())),
                ("INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows),
            ]
        )


@lru_cache(maxsize=1)
def _fuser() -> str:
    """What decides how operators are fused: TVM and everything that imports into it."""
    return f"{version('apache-tvm')} {source_digest('compiler', 'targets/tvm')}"


@lru_cache(maxsize=1)
def planner_version() -> str:
    """A digest of the sources that decide what a segment's memory and work are; what was solved by others is not read back."""
    names = ("accountings.py", "layouts.py", "pricing.py", "segment_costs.py", "segments.py", "space.py", "spaces", "stretches.py")
    return source_digest("compiler", "passes", *(f"search/{name}" for name in names))


def source_digest(*names: str) -> str:
    """16 hexadecimal digits of the sources in the folders and files `names` of this package."""
    root = Path(__file__).resolve().parent.parent
    found = blake2b(digest_size=8)
    for path in (root / name for name in names):
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()
