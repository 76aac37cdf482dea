"""The least value that any architecture of a space can reach, exactly: genes are eliminated one after another.

A metric of a composed space is a sum, or a maximum, of one factor for each slot, a factor being an array over the values of the slot's
genes. To eliminate a gene, put the factors that read it together and keep, for every value of the other genes in them, the best value of
this one. Genes that one slot alone reads go first and cost nothing; shared ones, such as resolution and depth, go last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .space import Architecture, Space
from .tables import SlotTables

LARGEST = 1 << 24
"""Most entries of one array of factors put together; beyond, the least value is only bounded."""


class Least(tuple[float, Architecture]):
    """(value, architecture). `kind` "exact": the architecture has this value and none has less; "bound": none has less than the value."""

    kind: str

    def __new__(cls, value: float, arch: Architecture, kind: str) -> Least:
        made = super().__new__(cls, (value, arch))  # pyright: ignore[reportArgumentType]
        made.kind = kind
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.kind)

    @property
    def value(self) -> float:
        return self[0]

    @property
    def arch(self) -> Architecture:
        return self[1]


@dataclass(frozen=True, eq=False)
class Factor:
    """Values over all values of `genes`: an array with one axis for each, in that order."""

    genes: tuple[int, ...]
    values: np.ndarray


def minimise(factors: Sequence[Factor], n_genes: int, join: Callable[..., np.ndarray]) -> tuple[float, np.ndarray] | None:
    """The least of `factors` joined (`np.add` or `np.maximum`) and genes (n_genes,) that reach it; None where arrays would grow too large.

    Genes that no factor reads are 0. Bucket elimination (Dechter, 1999).
    """
    left = list(factors)
    choices: list[tuple[int, Factor]] = []
    while left_genes := {g for f in left for g in f.genes}:
        size, gene = min((_joined_size(left, g), g) for g in left_genes)
        if size > LARGEST:
            return None
        bucket = [f for f in left if gene in f.genes]
        both = _join(bucket, join)
        axis = both.genes.index(gene)
        rest = (*both.genes[:axis], *both.genes[axis + 1 :])
        choices.append((gene, Factor(rest, both.values.argmin(axis))))
        left = [f for f in left if gene not in f.genes] + [Factor(rest, both.values.min(axis))]
    chosen = np.zeros(n_genes, np.int64)
    for gene, best in reversed(choices):
        chosen[gene] = best.values[tuple(chosen[g] for g in best.genes)]
    value = _join(left, join).values if left else np.zeros(())
    return value.item(), chosen


def _joined_size(factors: Sequence[Factor], gene: int) -> int:
    sizes = {g: s for f in factors if gene in f.genes for g, s in zip(f.genes, f.values.shape, strict=True)}
    return int(np.prod(list(sizes.values()), dtype=np.float64))


def least_of_sum(maxima: Sequence[Factor], sums: Sequence[Factor], n_genes: int) -> tuple[float, np.ndarray] | None:
    """The least of a maximum plus a sum over the same slots: the sum is minimised under every value that the maximum can take."""
    best: tuple[float, np.ndarray] | None = None
    for limit in np.unique(np.concatenate([f.values.ravel() for f in maxima])).tolist():
        if best is not None and limit >= best[0]:
            break
        within = [Factor(s.genes, np.where(m.values <= limit, s.values.astype(float), np.inf)) for m, s in zip(maxima, sums, strict=True)]
        found = minimise(within, n_genes, np.add)
        if found is None:
            return None
        if np.isfinite(found[0]) and (best is None or limit + found[0] < best[0]):
            best = limit + found[0], found[1]
    return best


def _join(factors: Sequence[Factor], join: Callable[..., np.ndarray]) -> Factor:
    genes = tuple(sorted({g for f in factors for g in f.genes}))
    total: np.ndarray | None = None
    for f in factors:
        order = np.argsort(f.genes)
        turned = f.values.transpose(order)
        shape = [turned.shape[sorted(f.genes).index(g)] if g in f.genes else 1 for g in genes]
        spread = turned.reshape(shape)
        total = spread if total is None else join(total, spread)
    assert total is not None
    return Factor(genes, total)


def covering_rows(genes: Sequence[tuple[int, ...]], cardinalities: Sequence[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Few rows (n, genes) in which every value of each tuple of `genes` occurs; per tuple, the row that has each value, in index order."""
    free = -1
    rows = np.full((0, len(cardinalities)), free, np.int64)
    where: list[np.ndarray] = []
    for slot in sorted(range(len(genes)), key=lambda k: -len(genes[k])):
        columns = list(genes[slot])
        shape = [cardinalities[g] for g in columns]
        places = np.empty(int(np.prod(shape)), np.int64)
        used = np.zeros(len(rows), bool)
        for code, values in enumerate(np.ndindex(*shape)):
            here = rows[:, columns]
            fits = np.flatnonzero(((here == free) | (here == values)).all(axis=1) & ~used)
            if not len(fits):
                rows = np.concatenate([rows, np.full((max(16, len(rows) // 2), len(cardinalities)), free, np.int64)])
                used = np.concatenate([used, np.zeros(len(rows) - len(used), bool)])
                fits = np.array([int(np.flatnonzero((rows == free).all(axis=1) & ~used)[0])])
            rows[fits[0], columns] = values
            used[fits[0]] = bool(columns)
            places[code] = fits[0]
        where.append(places)
    order = sorted(range(len(genes)), key=lambda k: -len(genes[k]))
    return np.maximum(rows, 0), [where[order.index(k)] for k in range(len(genes))]


class SlotFactors:
    """Factors of every slot of `tables` that takes few values. `rows`: canonical architectures in which all of these values occur."""

    def __init__(self, tables: SlotTables, space: Space):
        self._dense = tables.dense
        self._genes = [tables.slots[k].genes for k in tables.dense]
        raw, self._places = covering_rows(self._genes, space.cardinalities)
        self._cardinalities = space.cardinalities
        self.rows = space.canonical_rows(raw.astype(np.int16))

    def of(self, values: np.ndarray) -> list[Factor]:
        """Factors from `values` of each row's slots, (rows, slots)."""
        found = []
        for k, genes, place in zip(self._dense, self._genes, self._places, strict=True):
            found.append(Factor(genes, values[place, k].reshape([self._cardinalities[g] for g in genes])))
        return found
