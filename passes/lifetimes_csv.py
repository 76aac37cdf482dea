"""Lifetimes and layouts as CSV, in MiniMalloc's format: `id,lower,upper,size[,offset]`, one block a line, half-open times."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..compiler.errors import FormatError
from ..compiler.foreign_text import cell_text, csv_cell
from ..compiler.output_files import write_text

COLUMNS = ("id", "lower", "upper", "size")
LARGEST = 1 << 61


@dataclass(frozen=True, eq=False)
class LifetimeTable:
    """What a file says. `lower`, `upper`, `size`, `offset`: int64 (n,), in the order of `ids`; `offset` None without that column."""

    ids: tuple[str, ...] = field(repr=False)
    lower: np.ndarray = field(repr=False)
    upper: np.ndarray = field(repr=False)
    size: np.ndarray = field(repr=False)
    offset: np.ndarray | None = field(default=None, repr=False)


class LayoutLike(Protocol):
    """What `write_plan` reads of a layout."""

    @property
    def ids(self) -> Iterable[Hashable]: ...
    @property
    def lower(self) -> Iterable[int]: ...
    @property
    def upper(self) -> Iterable[int]: ...
    @property
    def size(self) -> Iterable[int]: ...
    @property
    def offsets(self) -> Iterable[int]: ...


def read_lifetimes(path: str | os.PathLike[str]) -> LifetimeTable:
    """Read blocks from a CSV file; columns stand in any order, blank lines count for nothing.

    Raises `FormatError` that names file and line for: a file that cannot be read or is no UTF-8 text, an empty one, missing,
    repeated or unknown columns, rows of another length, values that are no integers or beyond 2^61, negative sizes or offsets,
    lower >= upper, and ids that stand twice.
    """
    name = os.fspath(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            text = stream.read()
    except OSError as error:
        raise FormatError(f"cannot read {name!r}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{name}: byte {error.start} is not UTF-8; lifetimes are a CSV text file") from None
    return parse_lifetimes(text, name=name)


def parse_lifetimes(text: str, *, name: str = "lifetimes") -> LifetimeTable:
    """`read_lifetimes` of a text; `name` stands for the file in errors."""
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    header: list[str] | None = None
    ids: dict[str, int] = {}
    rows: list[list[int]] = []
    try:
        for fields in reader:
            line = reader.line_num
            fields = [field.strip() for field in fields]
            if not any(fields):
                continue
            if header is None:
                header = _header(fields, f"{name}:{line}")
                continue
            if len(fields) != len(header):
                raise FormatError(f"{name}:{line}: {len(fields)} fields where the header has {len(header)} ({','.join(header)})")
            row = dict(zip(header, fields, strict=True))
            block = cell_text(row.pop("id"))
            if not block:
                raise FormatError(f"{name}:{line}: the id is empty")
            if block in ids:
                raise FormatError(f"{name}:{line}: block {block!r} stands twice; it is on line {ids[block]} already")
            ids[block] = line
            rows.append(_numbers(row, block, f"{name}:{line}"))
    except csv.Error as error:
        raise FormatError(f"{name}:{reader.line_num}: not CSV: {error}") from None
    if header is None:
        raise FormatError(f"{name}: empty; the first line should be {','.join(COLUMNS)}")
    table = np.array(rows, np.int64).reshape(-1, 4)
    offset = table[:, 3].copy() if "offset" in header else None
    return LifetimeTable(tuple(ids), table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy(), offset)


def write_plan(path: str | os.PathLike[str], layout: LayoutLike) -> None:
    """Write `layout` as `id,lower,upper,size,offset`, so that the file appears whole or not at all. Raises `FormatError`."""
    write_text(path, format_plan(layout))


def format_plan(layout: LayoutLike) -> str:
    """The text that `write_plan` writes; ids with commas or quotes are quoted, and ids of others are no formulas: see `csv_cell`."""
    lines = [",".join((*COLUMNS, "offset"))]
    for block, *numbers in zip(layout.ids, layout.lower, layout.upper, layout.size, layout.offsets, strict=True):
        name = str(csv_cell(str(block)))
        if any(c in name for c in ',"\r\n'):
            name = '"' + name.replace('"', '""') + '"'
        lines.append(",".join((name, *(str(int(n)) for n in numbers))))
    return "\n".join(lines) + "\n"


def _header(fields: list[str], where: str) -> list[str]:
    missing = [column for column in COLUMNS if column not in fields]
    if missing:
        raise FormatError(
            f"{where}: no column {', '.join(missing)}; the header should be {','.join(COLUMNS)}[,offset], not {','.join(fields)}"
        )
    for i, column in enumerate(fields):
        if column not in (*COLUMNS, "offset"):
            raise FormatError(f"{where}: unknown column {column!r}; known are {', '.join(COLUMNS)} and offset")
        if column in fields[:i]:
            raise FormatError(f"{where}: column {column!r} stands twice")
    return fields


def _numbers(row: dict[str, str], block: str, where: str) -> list[int]:
    """lower, upper, size and offset (0 where there is none) of one row."""
    values = {"offset": 0}
    for column, text in row.items():
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit()):
            raise FormatError(f"{where}: {column} of block {block!r} is {text!r}, not an integer")
        if len(digits) > 19 or not -LARGEST <= int(text) <= LARGEST:
            raise FormatError(f"{where}: {column} of block {block!r} is {text}; at most 2^61 is allowed")
        values[column] = int(text)
    for column in ("size", "offset"):
        if values[column] < 0:
            raise FormatError(f"{where}: {column} of block {block!r} is {values[column]}; it is never negative")
    if values["lower"] >= values["upper"]:
        raise FormatError(
            f"{where}: block {block!r} lives from {values['lower']} to {values['upper']}; lifetimes are half-open, so lower < upper"
        )
    return [values["lower"], values["upper"], values["size"], values["offset"]]
