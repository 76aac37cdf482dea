"""The cost database: every operator and network ever measured, by what it computes, on what, and with which tools.

One SQLite file in WAL mode: any number of readers, one writer at a time (the others wait their turn), each `put` a transaction of its
own. A process killed while it writes loses at most the row in flight; the next one to open the file replays the log. Rows are never
trusted across tools: the key is operator signature + target + toolchain.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from ..compiler.cache_folder import user_folder
from ..compiler.errors import FormatError, NeaptideError
from ..compiler.sqlite_files import WAIT_S, ForeignSchemaError, check_schema, connect, retry, write_ahead
from .rows import TABLES, UNITS, NetworkRow, OperatorRow, Row, Unit, checked_row

FILE = "costs.sqlite"
Own = TypeVar("Own", bound="CostDatabase")

# Step k takes a file from version k to k + 1; a released step never changes.
MIGRATIONS = (
    """
    CREATE TABLE operators (
        signature TEXT NOT NULL, target TEXT NOT NULL, toolchain TEXT NOT NULL, value REAL NOT NULL, unit TEXT NOT NULL,
        spread REAL, bytes INTEGER NOT NULL, features TEXT NOT NULL, extra TEXT NOT NULL, created REAL NOT NULL,
        PRIMARY KEY (signature, target, toolchain)
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE networks (
        signature TEXT NOT NULL, target TEXT NOT NULL, toolchain TEXT NOT NULL, value REAL NOT NULL, unit TEXT NOT NULL,
        spread REAL, operators TEXT NOT NULL, extra TEXT NOT NULL, created REAL NOT NULL,
        PRIMARY KEY (signature, target, toolchain)
    ) WITHOUT ROWID;
    """,
)
VERSION = len(MIGRATIONS)
__all__ = ["TABLES", "UNITS", "CostDatabase", "NetworkRow", "OperatorRow", "Row", "Unit", "default_path"]


def default_path() -> Path:
    """`$NEAPTIDE_COSTS`, else `costs.sqlite` in the user's data folder: measurements are kept, not cached.

    Raises `NeaptideError` for a user who has no home folder.
    """
    override = os.environ.get("NEAPTIDE_COSTS")
    if override:
        return Path(override)
    try:
        return user_folder("data", "neaptide") / FILE
    except OSError as error:
        raise NeaptideError(f"no cost database: {error.strerror}; name a file with NEAPTIDE_COSTS or --database") from None


class CostDatabase:
    """Costs on disk, for threads and processes to share. `path`: the file (None: `default_path()`), made when absent.

    The file may come from anyone: one whose schema is not ours is refused, and a row whose values no measurement gives is not used,
    with a warning that names it. Raises `FormatError` when the file is no cost database, is damaged, or is of a later version than
    this program knows.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None):
        self.path = default_path() if path is None else Path(path)
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._inherited: list[sqlite3.Connection | None] = []
        self._connection: sqlite3.Connection | None = self._open()

    def get(self, signature: str, target: str, toolchain: str) -> OperatorRow | None:
        """The operator with this key, or None. One lookup by primary key."""
        return self._one(OperatorRow, signature, target, toolchain)

    def get_network(self, signature: str, target: str, toolchain: str) -> NetworkRow | None:
        """The network with this key, or None."""
        return self._one(NetworkRow, signature, target, toolchain)

    def put(self, row: Row) -> None:
        """Remember `row` in a transaction of its own, in place of an older one with its key. On disk when this returns."""
        self.put_all([row])

    def put_all(self, rows: Iterable[Row]) -> int:
        """Remember `rows` in one transaction: all of them or none. Returns how many were new, or newer than what was known."""
        with self._errors(), self._lock, self._writing() as db:
            return sum(_write(db, row) for row in rows)

    def rows(
        self, kind: type[Row] = OperatorRow, *, target: str | None = None, toolchain: str | None = None, like: str | None = None
    ) -> Iterator[Row]:
        """Rows of one kind in key order; `like`: part of the signature. A snapshot: what is written meanwhile is not seen."""
        where, values = _where(target=target, toolchain=toolchain, like=like)
        with self._errors(), self._lock:
            found = self._db().execute(f"SELECT {_columns(kind)} FROM {TABLES[kind]} {where} ORDER BY 1, 2, 3", values).fetchall()
        unread: list[str] = []
        for values in found:
            try:
                yield _row(kind, values)
            except ValueError as error:
                unread.append(self._unread(values, error))
        if unread:
            more = f" (and {len(unread) - 1:,} more)" if len(unread) > 1 else ""
            warnings.warn(f"{unread[0]}{more}; `neaptide cost prune` forgets rows", stacklevel=2)

    def counts(self) -> list[tuple[str, str, int, int]]:
        """Per target and toolchain: how many operators and networks are known."""
        named = "typeof(target) = 'text' AND typeof(toolchain) = 'text'"
        union = " UNION ALL ".join(
            f"SELECT target, toolchain, {int(t == 'operators')} AS o, {int(t == 'networks')} AS n FROM {t} WHERE {named}"
            for t in TABLES.values()
        )
        with self._errors(), self._lock:
            return self._db().execute(f"SELECT target, toolchain, SUM(o), SUM(n) FROM ({union}) GROUP BY 1, 2 ORDER BY 1, 2").fetchall()

    def prune(
        self, *, target: str | None = None, toolchain: str | None = None, like: str | None = None, before: float | None = None,
        dry_run: bool = False,
    ) -> int:  # fmt: skip
        """Forget rows that match all that is given (`before`: created earlier, seconds since 1970); returns how many."""
        where, values = _where(target=target, toolchain=toolchain, like=like, before=before)
        with self._errors(), self._lock:
            if dry_run:
                db = self._db()
                return sum(db.execute(f"SELECT COUNT(*) FROM {t} {where}", values).fetchone()[0] for t in TABLES.values())
            with self._writing() as db:
                return sum(db.execute(f"DELETE FROM {t} {where}", values).rowcount for t in TABLES.values())

    def close(self) -> None:
        """Close the file; any later call opens it again."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
                self._connection = None

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["path"])

    def _one(self, kind: type[Any], *key: str) -> Any:
        query = f"SELECT {_columns(kind)} FROM {TABLES[kind]} WHERE signature = ? AND target = ? AND toolchain = ?"
        with self._errors(), self._lock:
            found = self._db().execute(query, key).fetchone()
        if found is None:
            return None
        try:
            return _row(kind, found)
        except ValueError as error:
            warnings.warn(f"{self._unread(found, error)}; measuring anew replaces it", stacklevel=3)
            return None

    def _unread(self, values: tuple[Any, ...], error: ValueError) -> str:
        return f"{self.path}: the row {str(values[0])[:200]!r} of target {str(values[1])[:80]!r} is not used: {error}"

    def _db(self) -> sqlite3.Connection:
        """This process's own connection. One made before a fork belongs to the parent: a child must neither use nor close it."""
        if self._process != os.getpid():
            self._inherited.append(self._connection)
            self._connection = None
        if self._connection is None:
            self._process = os.getpid()
            self._connection = self._open()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        with self._errors():
            if not self.path.parent.is_dir():
                self.path.parent.mkdir(parents=True, exist_ok=True)
            db = connect(self.path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
            try:
                retry(lambda: self._version(db))
                write_ahead(db)
                db.execute("PRAGMA synchronous=FULL")
                self._migrate(db)
            except BaseException:
                db.close()
                raise
            return db

    def _migrate(self, db: sqlite3.Connection) -> None:
        if self._version(db) == VERSION:
            return
        with _transaction(db):
            version = self._version(db)  # another process may have migrated it while this one waited
            for step in MIGRATIONS[version:]:
                for statement in step.split(";"):
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {VERSION}")

    def _version(self, db: sqlite3.Connection) -> int:
        """How far the file is migrated; its schema is that of this version and nothing else."""
        with _snapshot(db):
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise FormatError(
                    f"{self.path}: a cost database of version {version}; this Neaptide knows versions up to {VERSION}: upgrade it"
                )
            try:
                check_schema(db, [statement for step in MIGRATIONS[:version] for statement in step.split(";")])
            except ForeignSchemaError as error:
                raise FormatError(
                    f"{self.path}: a SQLite file of something else, or tampered with: {error}; name another with --database or "
                    "NEAPTIDE_COSTS"
                ) from None
        return version

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        db = self._db()
        with _transaction(db):
            yield db

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise NeaptideError(f"{self.path}: the cost database cannot be used ({error}); name another with NEAPTIDE_COSTS") from None
        except sqlite3.DatabaseError as error:
            raise FormatError(f"{self.path}: not a cost database, or damaged ({error}); move it away to begin anew") from None
        except OSError as error:
            raise NeaptideError(f"{self.path}: {error.strerror or error}; name another file with NEAPTIDE_COSTS") from None


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing. IMMEDIATE takes the one writer's place at once, so that a reader never has to become a writer half way."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk has ended it already
            db.execute("ROLLBACK")
        raise


@contextmanager
def _snapshot(db: sqlite3.Connection) -> Iterator[None]:
    """Inside, all that is read is of one moment; inside a transaction it is already."""
    if db.in_transaction:
        yield
        return
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("ROLLBACK")


def _write(db: sqlite3.Connection, row: Row) -> int:
    """Insert, or replace what is not newer; the number of rows changed. A row from the future is as old as now: it cannot stay for ever."""
    if row.unit not in UNITS:
        raise ValueError(f"a cost is counted in {' or '.join(UNITS)}, not {row.unit!r}")
    if not 0 <= row.value < float("inf"):
        raise ValueError(f"{row.signature!r} cannot cost {row.value} {row.unit}")
    now = time.time()
    values = [getattr(row, f.name) for f in fields(row)]
    values = [json.dumps(dict(v), sort_keys=True) if isinstance(v, Mapping) else v for v in values]
    values[-1] = row.created or now
    names, marks = [f.name for f in fields(row)], ", ".join("?" * len(values))
    updated = ", ".join(f"{n} = excluded.{n}" for n in names[3:])
    table = TABLES[type(row)]
    done = db.execute(
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks}) ON CONFLICT (signature, target, toolchain) "
        f"DO UPDATE SET {updated} WHERE excluded.created >= MIN({table}.created, ?)",
        [*values, now],
    )
    return done.rowcount


def _columns(kind: type[Row]) -> str:
    return ", ".join(f.name for f in fields(kind))


def _row(kind: type[Row], values: tuple[Any, ...]) -> Row:
    parsed = {f.name: v for f, v in zip(fields(kind), values, strict=True)}
    for name in ("features", "operators", "extra"):
        if name in parsed:
            parsed[name] = _parsed(name, parsed[name])
    return checked_row(kind, parsed)


def _parsed(name: str, text: Any) -> Any:
    """JSON of a column; anything may stand in a column of SQLite."""
    if not isinstance(text, str):
        raise ValueError(f"{name} is a {type(text).__name__}")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"{name} nests too deeply") from None
    return MappingProxyType(value) if isinstance(value, dict) else value


def _where(
    *, target: str | None = None, toolchain: str | None = None, like: str | None = None, before: float | None = None
) -> tuple[str, list[Any]]:
    tests, values = [], []
    for test, value in (
        ("target = ?", target),
        ("toolchain = ?", toolchain),
        ("instr(signature, ?) > 0", like),
        ("created < ?", before),
    ):
        if value is not None:
            tests.append(test)
            values.append(value)
    return ("WHERE " + " AND ".join(tests) if tests else ""), values
