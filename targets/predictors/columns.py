"""Networks as columns of text and numbers, and the matrices that models are fitted to.

A text column says which operator stands at a place, best with its shape ("mbconv k3 e6 @ 24x56"). Two views of the text columns exist:
`places` has one unknown for each text at each place, `tied` one for each text wherever it stands: equal operators on equal shapes cost
the same, so a layer seen once is known everywhere. Number columns, scaled to [0, 1], are part of both.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ...compiler.errors import FormatError

View = Literal["places", "tied", "both"]
VIEWS: tuple[View, ...] = ("places", "tied", "both")


@dataclass(frozen=True)
class Columns:
    """`n` networks: text columns (places) and number columns by name, each of length `n`."""

    texts: Mapping[str, np.ndarray]
    numbers: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        lengths = {len(column) for column in (*self.texts.values(), *self.numbers.values())}
        if len(lengths) != 1:
            raise ValueError(f"columns of one table have one length, not {sorted(lengths) or 'none at all'}")

    def __len__(self) -> int:
        return len(next(iter((*self.texts.values(), *self.numbers.values()))))

    def take(self, rows: np.ndarray) -> Columns:
        """The networks at `rows` (indices or a mask)."""
        return Columns({k: v[rows] for k, v in self.texts.items()}, {k: v[rows] for k, v in self.numbers.items()})


@dataclass(frozen=True)
class Encoding:
    """What the columns of a training set hold. `levels`: per text column its distinct texts; `ranges`: per number column its bounds."""

    levels: Mapping[str, tuple[str, ...]]
    ranges: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, columns: Columns) -> Encoding:
        """The encoding that fits `columns`; a number column that never changes is left out."""
        bounds = {name: (float(v.min()), float(v.max())) for name, v in columns.numbers.items()}
        return cls(
            {name: tuple(map(str, np.unique(v))) for name, v in columns.texts.items()}, {k: (a, b) for k, (a, b) in bounds.items() if b > a}
        )

    def matrix(self, columns: Columns, view: View) -> np.ndarray:
        """`columns` as float64 (n, features). Texts never seen count for nothing; a missing column is a `FormatError`."""
        n = len(columns)
        parts: list[np.ndarray] = []
        if view != "tied":
            parts += [(self._text(columns, name)[:, None] == np.array(levels)).astype(float) for name, levels in self.levels.items()]
        if view != "places" and self.levels:
            every = np.array(sorted({level for levels in self.levels.values() for level in levels}))
            counts = np.zeros((n, len(every)))
            for name in self.levels:
                found = self._text(columns, name)
                at = np.minimum(np.searchsorted(every, found), len(every) - 1)
                known = every[at] == found
                counts[np.flatnonzero(known), at[known]] += 1
            parts.append(counts)
        for name, (low, high) in self.ranges.items():
            if name not in columns.numbers:
                raise FormatError(f"number column {name!r}, which the predictor was fitted with, is missing")
            parts.append(((columns.numbers[name] - low) / (high - low))[:, None])
        return np.hstack(parts) if parts else np.zeros((n, 0))

    def width(self, view: View) -> int:
        """Features of `matrix` in `view`."""
        places = sum(map(len, self.levels.values())) if view != "tied" else 0
        tied = len({level for levels in self.levels.values() for level in levels}) if view != "places" else 0
        return places + tied + len(self.ranges)

    def within(self, columns: Columns) -> np.ndarray:
        """Whether every number lies within the bounds of the training set, (n,)."""
        inside = np.ones(len(columns), bool)
        for name, (low, high) in self.ranges.items():
            inside &= (columns.numbers[name] >= low) & (columns.numbers[name] <= high)
        return inside

    def _text(self, columns: Columns, name: str) -> np.ndarray:
        if name not in columns.texts:
            raise FormatError(f"text column {name!r}, which the predictor was fitted with, is missing")
        return columns.texts[name].astype(str)


def read_csv(path: str | Path, value: str | None = None) -> tuple[Columns, np.ndarray]:
    """Measured networks from a CSV with a header: one network a line, its cost in the column `value`.

    `value` None: the one column named latency, instructions, seconds, ms or cost. A column whose every cell is a number is a number
    column, any other a text column; empty cells are the text "". Raises `FormatError` with file and line.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as lines:
            rows = [row for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path}: {error}") from None
    if len(rows) < 2:
        raise FormatError(f"{path}: needs a header and at least one network")
    header = [name.strip() for name in rows[0]]
    if len(set(header)) < len(header):
        raise FormatError(f"{path}:1: two columns have one name")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise FormatError(f"{path}:{number}: {len(row)} cells, the header has {len(header)}")
    costs = _costs(path, _value_column(path, header, value), header, rows[1:])
    texts, numbers = {}, {}
    for i, name in enumerate(header):
        if name == _value_column(path, header, value):
            continue
        cells = [row[i].strip() for row in rows[1:]]
        parsed = _numbers(cells)
        if parsed is None:
            texts[name] = np.array(cells)
        else:
            numbers[name] = parsed
    if not texts and not numbers:
        raise FormatError(f"{path}:1: there is no column but the cost")
    return Columns(texts, numbers), costs


def _value_column(path: str | Path, header: Sequence[str], value: str | None) -> str:
    wanted = [value] if value is not None else ["latency", "instructions", "seconds", "ms", "cost"]
    found = [name for name in header if name in wanted]
    if len(found) != 1:
        raise FormatError(f"{path}:1: {len(found)} columns are called {' or '.join(wanted)}; name the cost's with --value COLUMN")
    return found[0]


def _costs(path: str | Path, name: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> np.ndarray:
    i = header.index(name)
    costs = np.zeros(len(rows))
    for number, row in enumerate(rows):
        try:
            costs[number] = float(row[i])
        except ValueError:
            costs[number] = np.nan
        if not 0 < costs[number] < np.inf:
            raise FormatError(f"{path}:{number + 2}: {name} is {row[i]!r}; a cost is a number above zero (leave out what was not measured)")
    return costs


def _numbers(cells: Sequence[str]) -> np.ndarray | None:
    try:
        parsed = np.array([float(cell) for cell in cells])
    except ValueError:
        return None
    return parsed if np.isfinite(parsed).all() else None
