"""SQLite files opened as what they are: files that anyone may have written.

A schema is a program: triggers and views run when a table is read or written, generated columns and defaults compute. A file is used
only when its schema is the one Neaptide made, word for word, and SQLite is told to trust nothing in it.
"""

from __future__ import annotations

import re
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

LARGEST = 1 << 26  # bytes of one value or row
WAIT_S = 60.0


class ForeignSchemaError(sqlite3.DatabaseError):
    """A SQLite file holds other things than it should: the message names the first of them."""


def connect(path: Path | str, *, timeout: float, **options: Any) -> sqlite3.Connection:
    """The file at `path`, made when absent, or ":memory:"; `options` as for `sqlite3.connect`. Nothing in it is trusted yet.

    Raises `sqlite3.OperationalError` for what is no plain file: a FIFO, a device, a folder.
    """
    if str(path) != ":memory:" and Path(path).exists() and not Path(path).is_file():
        raise sqlite3.OperationalError("it is no plain file")
    db = sqlite3.connect(path, timeout=timeout, **options)
    try:
        db.execute("PRAGMA trusted_schema=OFF")
        db.execute("PRAGMA cell_size_check=ON")
        db.text_factory = _text
        if sys.version_info >= (3, 11):
            db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST)
    except BaseException:
        db.close()
        raise
    return db


def write_ahead(db: sqlite3.Connection) -> None:
    """Turn on the write-ahead log of a file that several processes may open at once, the first of them before it is there."""
    retry(lambda: db.execute("PRAGMA journal_mode=WAL").fetchone())


def retry(action: Callable[[], object]) -> None:
    """Run what needs a file alone for a moment and does not wait for that by itself. `sqlite3.OperationalError` after a minute."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            action()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def check_schema(db: sqlite3.Connection, statements: Iterable[str]) -> None:
    """Raise `ForeignSchemaError` unless `db` is empty or holds just what the CREATE TABLE `statements` make."""
    wanted = {_plain(statement) for statement in statements}
    for kind, name, _, sql in _schema(db):
        automatic = kind == "index" and sql is None and str(name).startswith("sqlite_autoindex_")
        if not automatic and not (kind == "table" and isinstance(sql, str) and _plain(sql) in wanted):
            raise ForeignSchemaError(f"it holds a {kind} {name!r} that is not Neaptide's")


def check_tables(db: sqlite3.Connection, known: Iterable[str]) -> None:
    """As `check_schema`, for files whose tables another library makes: plain tables of the names `known`, and their indices, alone."""
    names = set(known)
    for kind, name, table, sql in _schema(db):
        plain = kind == "table" and name in names and re.match(r"\s*CREATE\s+TABLE\b", str(sql), re.IGNORECASE)
        if not plain and not (kind == "index" and table in names):
            raise ForeignSchemaError(f"it holds a {kind} {name!r} that does not belong there")
        if plain and any(hidden for *_, hidden in db.execute("SELECT * FROM pragma_table_xinfo(?)", (name,))):
            raise ForeignSchemaError(f"its table {name!r} computes a column")


def _schema(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
    try:
        return db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
    except UnicodeDecodeError:  # SQLite quotes what it cannot read of a schema, and Python cannot read the quotation
        raise ForeignSchemaError("its schema is no text") from None


def _text(value: bytes) -> str:
    """Text of a file; bytes that are no UTF-8 become lone surrogates, which no reader takes."""
    return value.decode("utf-8", "surrogateescape")


def _plain(statement: str) -> str:
    """A statement without what SQLite may change of it: spaces, and IF NOT EXISTS."""
    return " ".join(re.sub(r"(?i)\bIF NOT EXISTS\b", "", statement).replace("(", " ( ").replace(")", " ) ").split()).rstrip("; ")
