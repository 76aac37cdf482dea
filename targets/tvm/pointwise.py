"""Pointwise convolutions and matrix products on CPUs: vectors of pixels, a tile of sums in registers.

A pointwise convolution is the product of its weights (rows: output channels) and its input (columns: pixels). Pixels lie side by side
in memory, so vectors run along them, over the end of an image row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import s_tir, tirx
from tvm_ffi import structural_equal

from .schedules import blocks, inline_producers, is_reduction
from .search_space import operator_module
from .tiles import LEAST_SUMS, PARALLEL, SERIAL, factors, integer, loop, over_tiles, over_vectors, register_tile, storing, substituted


@dataclass(frozen=True, slots=True)
class Product:
    """`func` as `epilogue(left @ right)` for each of `batch` pairs: `rows` x `depth` by `depth` x `columns`.

    `left(batch, row, k)` and `right(batch, k, column)` are loads; `store(batch, row, column, sum)` is the statement that finishes one
    element from its sum.
    """

    func: tirx.PrimFunc
    batch: int
    rows: int
    depth: int
    columns: int
    left: Callable[[Any, Any, Any], Any]
    right: Callable[[Any, Any, Any], Any]
    store: Callable[[Any, Any, Any, Any], tirx.Stmt]


def tile_sizes(rows: int, columns: int, lanes: int, registers: int) -> list[tuple[int, int]]:
    """(rows, vectors) whose sums fit the registers beside one step's vectors and a weight, most promising first.

    For each number of vectors the most rows, and those that compute the fewest rows twice. Promising is what multiplies little twice
    and loads little: two multiply-adds, or two loads, go in a cycle. None where a row is shorter than a vector.
    """
    vectors = -(-columns // lanes) if columns >= lanes else 0
    found: dict[tuple[int, int], None] = {}
    for v in range(1, min(vectors, registers // 3) + 1):
        most = min(rows, (registers - 1 - v) // v)
        fits = [r for r in range(1, most + 1) if r * v >= min(LEAST_SUMS, rows * vectors)]
        if fits:
            found[min(fits, key=lambda r: (-(-rows // r) * r, -r)), v] = None
            found[most, v] = None

    def cycles(tile: tuple[int, int]) -> float:
        r, v = tile
        return -(-rows // r) * -(-vectors // v) * max(r * v, r + v, LEAST_SUMS)

    return sorted(found, key=cycles)


def product(func: tirx.PrimFunc) -> Product | None:
    """`func` read as a matrix product of float32; None when it is something else."""
    sch = s_tir.Schedule(operator_module(func))
    inline_producers(sch)
    found = [sch.get(block) for block in blocks(sch)]
    if [is_reduction(sch, block) for block in blocks(sch)] not in ([True], [True, False]):
        return None
    reduction = found[0]
    loads = factors(reduction.body)
    axes = [iv.var for iv in reduction.iter_vars]
    extents = [int(iv.dom.extent) for iv in reduction.iter_vars]
    if loads is None or len(axes) < 3:
        return None
    if len(axes) == 7:
        n, f, y, x, k, ky, kx = axes
        batch, rows, height, width, depth, *window = extents
        wanted = [([n, k, y + ky, x + kx], [f, k, ky, kx])]
        lead, columns = [], height * width
    else:
        *outer, i, j, k = axes
        *lead, rows, columns, depth = extents
        wanted = [([*outer, k, j], [*outer, i, k]), ([k, j], [*outer, i, k])]
        batch, width, window = math.prod(lead), 0, []
    pairs = [pair for pair in (loads, loads[::-1]) if any(_read_at(pair, indices) for indices in wanted)]
    store = storing(reduction, found[1] if len(found) > 1 else None)
    if not pairs or store is None or any(extent != 1 for extent in window):
        return None
    right, left = pairs[0]

    def place(b: Any, row: Any, column: Any) -> list[Any]:
        if window:
            return [b, row, tirx.floordiv(column, width), tirx.floormod(column, width)]
        return [*_unravelled(b, lead), row, column]

    def at(b: Any, row: Any, column: Any, step: Any) -> dict[Any, Any]:
        return dict(zip(axes, [*place(b, row, column), step, *(integer(0) for _ in window)], strict=True))

    return Product(
        sch.mod["main"], batch, rows, depth, columns,
        lambda b, row, step: substituted(left, at(b, row, integer(0), step)),
        lambda b, step, column: substituted(right, at(b, integer(0), column, step)),
        lambda b, row, column, value: store(place(b, row, column), value),
    )  # fmt: skip


def scheduled(p: Product, *, rows: int, vectors: int, lanes: int, parallel: bool = False) -> tirx.PrimFunc:
    """`p` computed tile by tile: `rows` x `vectors` sums of `lanes` columns each stay in registers over the whole depth.

    Columns are the outer loop, so that the part of the right operand that a tile reads stays in the cache for all rows. `parallel`:
    threads share the rows.
    """

    def tile(b: Any, row: Any, first: Any, offsets: Sequence[int]) -> tirx.Stmt:
        return register_tile(
            rows, offsets, lanes, p.depth,
            lambda k: [(lambda r: p.left(b, row + r, k), lambda column: p.right(b, k, first + column))],
            lambda r, column, value: p.store(b, row + r, first + column, value),
        )  # fmt: skip

    def over_rows(b: Any, first: Any, offsets: Sequence[int]) -> tirx.Stmt:
        return over_tiles(p.rows, rows, lambda row: tile(b, row, first, offsets), PARALLEL if parallel else SERIAL)

    body = loop(p.batch, lambda b: over_vectors(p.columns, vectors, lanes, lambda first, offsets: over_rows(b, first, offsets)))
    return tirx.PrimFunc(p.func.params, body, p.func.ret_type, p.func.attrs)


def _read_at(loads: Sequence[Any], indices: Sequence[Sequence[Any]]) -> bool:
    return all(
        len(load.indices) == len(wanted) and all(structural_equal(i, w) for i, w in zip(load.indices, wanted, strict=True))
        for load, wanted in zip(loads, indices, strict=True)
    )


def _unravelled(index: Any, extents: Sequence[int]) -> list[Any]:
    found = []
    for extent in reversed(extents):
        found.append(tirx.floormod(index, extent))
        index = tirx.floordiv(index, extent)
    return found[::-1]
