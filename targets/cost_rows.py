"""The cost database as text: one JSON object a line, to look at, to send, and to read into another database."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..compiler.errors import FormatError
from ..compiler.output_files import writing
from .database import CostDatabase
from .rows import TABLES, Row, checked_row
from .schedule_traces import check_schedule

FORMAT, VERSION = "neaptide.costs", 1
BATCH = 1000


def export_rows(rows: Iterable[Row], path: str | Path) -> int:
    """Write `rows` to `path`, a header line first; returns how many."""
    written = 0
    with writing(path) as out:
        out.write(json.dumps({"format": FORMAT, "version": VERSION}).encode() + b"\n")
        for row in rows:
            out.write(json.dumps(row_document(row)).encode() + b"\n")
            written += 1
    return written


def import_rows(path: str | Path, database: CostDatabase) -> tuple[int, int]:
    """Read an exported file into `database`; the newer of two rows with one key stays.

    Returns how many rows were read and how many of them were new or newer. Raises `FormatError` naming file and line before
    anything of a wrong file is written.
    """
    rows = list(read_rows(path))
    return len(rows), sum(database.put_all(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH))


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of an exported file, each checked as what a stranger wrote: its numbers, and the schedule it carries."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            document = json.loads(line)
            if not isinstance(document, dict):
                raise ValueError("not an object")
            if number == 1:
                if (document.get("format"), document.get("version")) != (FORMAT, VERSION):
                    raise ValueError(f"the first line does not say {FORMAT} version {VERSION}")
            else:
                yield _row(document)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path}:{number}: {error}; `neaptide cost export` writes such files") from None
    if not lines:
        raise FormatError(f"{path}:1: empty; `neaptide cost export` writes such files")


def row_document(row: Row) -> dict[str, Any]:
    """A row as JSON values, `table` naming its kind."""
    values = {f.name: getattr(row, f.name) for f in fields(row)}
    return {"table": TABLES[type(row)], **{name: dict(v) if isinstance(v, Mapping) else v for name, v in values.items()}}


def _row(document: dict[str, Any]) -> Row:
    table = document.pop("table", None)
    kind = next((k for k, name in TABLES.items() if name == table), None)
    if kind is None:
        raise ValueError(f"table {table!r} is not one of {', '.join(TABLES.values())}")
    row = checked_row(kind, document)
    if "trace" in row.extra:
        check_schedule(row.extra["trace"])
    return row
