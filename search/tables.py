"""Costs of segments by slot and genes: a row of a table for each value of a slot's genes, and batches composed from such rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from .space import Slot

PEAK, BOUND, ARENA, ARENA_BOUND, PARAMS, MACS, WEIGHTS, SOLVED = range(8)
COLUMNS = 8
UNSOLVED = -1
UNMET = -(1 << 40)
DENSE_CODES = 1 << 16
"""Slots with more values than this keep only those that were met."""


class SlotTables:
    """`table`: int64 (rows, 8) in the columns above; `SOLVED` is -1 in a row not yet filled, else whatever its filler wants back.

    A slot whose genes take few values has a row for each, at the mixed-radix code of its genes; of any other, rows are handed out as
    values are met. `cardinalities`: those of the space; `dense_codes`: the most values a slot of the first kind has.
    """

    def __init__(self, slots: Sequence[Slot], cardinalities: Sequence[int], *, dense_codes: int = DENSE_CODES):
        self.slots = tuple(slots)
        sizes = [prod(cardinalities[g] for g in slot.genes) for slot in self.slots]
        self.dense = [k for k, size in enumerate(sizes) if size <= dense_codes]
        self.sparse = [k for k, size in enumerate(sizes) if size > dense_codes]
        genes, strides, self._genes_at, base = [], [], np.zeros(len(self.dense) + 1, np.int64), []
        at = 0
        for i, k in enumerate(self.dense):
            stride = sizes[k]
            for g in self.slots[k].genes:
                stride //= cardinalities[g]
                genes.append(g)
                strides.append(stride)
            self._genes_at[i + 1] = len(genes)
            base.append(at)
            at += sizes[k]
        self._genes, self._strides, self._base = (np.array(x, np.int64) for x in (genes, strides, base))
        alike: dict[tuple[int, ...], list[int]] = {}
        for k in self.sparse:
            alike.setdefault(self.slots[k].genes, []).append(k)
        self._groups = [_Group(genes, members, {}) for genes, members in alike.items()]
        self._place = {k: (group, i) for group in self._groups for i, k in enumerate(group.slots)}
        self._used = at
        self.table = np.zeros((max(at, 1), COLUMNS), np.int64)
        self._clear(0)

    @property
    def used(self) -> int:
        """Rows of `table` that stand for something."""
        return self._used

    def index(self, rows: np.ndarray) -> np.ndarray:
        """Row of `table` for each architecture (n, genes) and slot: int64 (n, slots). New rows are handed out for values never met."""
        found = np.empty((len(rows), len(self.slots)), np.int64)
        for i, k in enumerate(self.dense):
            span = slice(self._genes_at[i], self._genes_at[i + 1])
            found[:, k] = self._base[i] + rows[:, self._genes[span]].astype(np.int64) @ self._strides[span]
        for group in self._groups:
            found[:, group.slots] = self._first_rows(group, _keys(group.genes, rows))[:, None] + np.arange(len(group.slots))
        return found

    def key(self, slot: int, row: np.ndarray) -> bytes:
        """The genes of `slot` in one architecture (genes,), as bytes."""
        return row[list(self.slots[slot].genes)].astype("<i2").tobytes()

    def at(self, slot: int, keys: Sequence[bytes]) -> np.ndarray:
        """Rows of `table`, int64 (n,), for genes of `slot` written by `keys`."""
        if slot in self._place:
            group, i = self._place[slot]
            return self._first_rows(group, keys) + i
        i = self.dense.index(slot)
        span = slice(self._genes_at[i], self._genes_at[i + 1])
        genes = np.frombuffer(b"".join(keys), "<i2").reshape(len(keys), -1).astype(np.int64)
        return self._base[i] + genes @ self._strides[span]

    def compose(self, rows: np.ndarray) -> np.ndarray:
        """Maxima and sums over the slots of each architecture: int64 (8, n) in the columns above.

        `SOLVED` is -1 where a segment is not solved, and `ARENA` where one has no arena yet.
        """
        from .compose import compose

        out = np.empty((COLUMNS, len(rows)), np.int64)
        columns = [np.empty((len(rows), 0), np.int64)]
        for group in self._groups:
            first = np.array([group.known.get(key, UNMET) for key in _keys(group.genes, rows)], np.int64)
            columns.append(first[:, None] + np.arange(len(group.slots)))
        sparse = np.concatenate(columns, axis=1)
        unmet = (sparse < 0).any(axis=1) if self.sparse else None
        np.maximum(sparse, 0, out=sparse)
        unsigned = np.ascontiguousarray(rows, np.int16).view(np.uint16)
        compose(unsigned, self._genes_at, self._genes, self._strides, self._base, sparse, self.table, out)
        if unmet is not None:
            out[SOLVED, unmet] = UNSOLVED
        return out

    def _first_rows(self, group: _Group, keys: Sequence[bytes]) -> np.ndarray:
        """The first of the rows of `table` for each value of a group's genes, new ones for those never met."""
        known = group.known
        for key in keys:
            if key not in known:
                known[key] = self._new_rows(len(group.slots))
        return np.array([known[key] for key in keys], np.int64)

    def _new_rows(self, n: int) -> int:
        """The first of `n` rows that stand for nothing yet."""
        if self._used + n > len(self.table):
            start = len(self.table)
            self.table = np.concatenate([self.table, np.zeros((max(256, start, n), COLUMNS), np.int64)])
            self._clear(start)
        self._used += n
        return self._used - n

    def _clear(self, start: int) -> None:
        self.table[start:, SOLVED] = UNSOLVED
        self.table[start:, ARENA] = UNSOLVED


@dataclass(frozen=True, slots=True)
class _Group:
    """Slots of many values that follow the same genes. `known`: by value, the first of as many rows of the table as there are slots."""

    genes: tuple[int, ...]
    slots: list[int]
    known: dict[bytes, int]


def _keys(genes: Sequence[int], rows: np.ndarray) -> list[bytes]:
    """The genes of each architecture, as bytes."""
    width = 2 * len(genes)
    flat = np.ascontiguousarray(rows[:, list(genes)], "<i2").tobytes()
    return [flat[i : i + width] for i in range(0, len(flat), width)]
