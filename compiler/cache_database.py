"""A SQLite file of results that can be made again, shared by every process of a user. What is wrong with the file stops nobody.

A file that is damaged, or holds something else, is moved aside and begun anew. Where there is no writing (a full disk, no folder, no
permission) the rows live in memory, with a warning.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .cache_folder import NeaptideWarning, cache_folder, not_remembered
from .sqlite_files import WAIT_S, check_schema, connect, retry, write_ahead

_OTHER_TABLES = ("no such table", "no such column", "has no column", "columns but")


class CacheDatabase:
    """The file `name` in `folder` (None: the user's cache folder) with `tables`, each a CREATE TABLE IF NOT EXISTS. Threads may share it,
    and a forked process opens it for itself. `path`: None where it lives in memory.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, name: str, tables: Sequence[str]):
        self._given, self._name, self._tables = folder, name, tables
        self.path: Path | None = None
        self._process = 0
        self._connection: sqlite3.Connection | None = None
        self._db()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": 0, "_connection": None}

    def read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """What the query finds; nothing where the file turned out to be of no use."""
        try:
            return self._db().execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            self._recover(error)
            return []

    def write(self, statements: Iterable[tuple[str, Sequence[Sequence[Any]]]]) -> None:
        """Each statement for each of its rows, all in one transaction, or none where the file turned out to be of no use."""
        db = self._db()
        try:
            with db:
                for statement, rows in statements:
                    db.executemany(statement, rows)
        except sqlite3.DatabaseError as error:
            self._recover(error)

    def begin_anew(self, error: object) -> None:
        """Move the file aside, since it holds what nobody wrote (`error` says what), and begin another."""
        if self.path is None:
            return
        path, aside = self.path, self.path.with_suffix(f".corrupt-{os.getpid()}")
        self.close()
        try:
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, aside)
            for suffix in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{path}{suffix}")
            text = f"the cache {str(path)!r} is damaged ({error}); moved to {aside.name!r} and begun anew"
            warnings.warn(text, NeaptideWarning, stacklevel=2)
            self._connection = self._opened(path)
        except (OSError, sqlite3.DatabaseError) as failed:
            self._live_in_memory(failed)

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        if self._connection is not None and self._process == os.getpid():
            self._connection.close()
        self._connection = None

    def _db(self) -> sqlite3.Connection:
        """This process's own connection. One made before a fork belongs to the parent."""
        if self._connection is None or self._process != os.getpid():
            self._process = os.getpid()
            self._connection = None
            try:
                self.path = (cache_folder() if self._given is None else Path(self._given)) / self._name
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._connection = self._opened(self.path)
            except (OSError, sqlite3.DatabaseError) as error:
                self._recover(error)
        assert self._connection is not None
        return self._connection

    def _opened(self, path: Path | str) -> sqlite3.Connection:
        db = connect(path, timeout=WAIT_S, check_same_thread=False)
        try:
            retry(lambda: check_schema(db, self._tables))
            write_ahead(db)
            db.execute("PRAGMA synchronous=NORMAL")
            for table in self._tables:
                db.execute(table)
            db.commit()
        except BaseException:
            db.close()
            raise
        return db

    def _recover(self, error: Exception) -> None:
        if isinstance(error, sqlite3.ProgrammingError):
            raise error
        known = isinstance(error, sqlite3.OperationalError | OSError) and not any(words in str(error) for words in _OTHER_TABLES)
        if known:
            self._live_in_memory(error)
        else:
            self.begin_anew(error)

    def _live_in_memory(self, error: Exception) -> None:
        not_remembered("the user's cache folder" if self.path is None else self.path.parent, error)
        self.close()
        self.path = None
        self._connection = self._opened(":memory:")
