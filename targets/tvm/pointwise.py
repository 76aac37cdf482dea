"""Schedules of our own for pointwise convolutions and matrix products on CPUs: vectors of pixels, a tile of sums in registers.

A pointwise convolution is the product of its weights (rows: output channels) and its input (columns: pixels). Pixels lie side by side
in memory, so vectors run along them. 49 or 196 pixels are no multiple of a vector: the last vector is moved back until it fits, which
computes a few pixels twice rather than any of them alone. The last tile of channels is moved back in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.tirx import stmt
from tvm_ffi import structural_equal, structural_map

from .schedules import blocks, inline_producers, is_reduction

VERSION = 1  # of the code these schedules give; costs measured with another are not theirs
LEAST_SUMS = 8  # independent sums that keep two multiply-add units of four cycles busy


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


def tiles(rows: int, columns: int, lanes: int, registers: int) -> list[tuple[int, int]]:
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
        steps = -(-rows // r) * -(-vectors // v)
        return steps * max(r * v, r + v, LEAST_SUMS)

    return sorted(found, key=cycles)


def product(func: tirx.PrimFunc) -> Product | None:
    """`func` read as a matrix product of float32; None when it is something else."""
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    inline_producers(sch)
    found = [sch.get(block) for block in blocks(sch)]
    if [is_reduction(sch, block) for block in blocks(sch)] not in ([True], [True, False]):
        return None
    reduction = found[0]
    loads = _factors(reduction.body)
    if loads is None or any(str(buffer.dtype) != "float32" for buffer in (reduction.body.buffer, *(load.source for load in loads))):
        return None
    axes = [iv.var for iv in reduction.iter_vars]
    extents = [int(iv.dom.extent) for iv in reduction.iter_vars]
    if len(axes) == 7:
        n, f, y, x, k, ky, kx = axes
        batch, rows, height, width, depth, *window = extents
        wanted = [([n, k, y + ky, x + kx], [f, k, ky, kx])]
        columns, rest = height * width, window
    elif len(axes) >= 3:
        *outer, i, j, k = axes
        *lead, rows, columns, depth = extents
        wanted = [([*outer, k, j], [*outer, i, k]), ([k, j], [*outer, i, k])]
        batch, width, rest = math.prod(lead), 0, []
    else:
        return None
    if any(extent != 1 for extent in rest):
        return None
    pairs = [pair for pair in (loads, loads[::-1]) if any(_read_at(pair, indices) for indices in wanted)]
    if not pairs:
        return None
    right, left = pairs[0]

    def place(b: Any, row: Any, column: Any) -> list[Any]:
        if width:
            return [b, row, tirx.floordiv(column, width), tirx.floormod(column, width)]
        return [*_unravelled(b, lead), row, column]

    def at(b: Any, row: Any, column: Any, step: Any) -> dict[Any, Any]:
        return dict(zip(axes, [*place(b, row, column), step, *map(_int, rest and [0, 0])], strict=True))

    def store(b: Any, row: Any, column: Any, value: Any) -> tirx.Stmt:
        indices = place(b, row, column)
        if len(found) == 1:
            return stmt.BufferStore(reduction.body.buffer, value, indices)
        values, body = dict(zip([iv.var for iv in found[1].iter_vars], indices, strict=True)), found[1].body
        finished = _substituted(body.value, values, reduction.body.buffer, value)
        return stmt.BufferStore(body.buffer, finished, [_substituted(index, values) for index in body.indices])

    return Product(
        sch.mod["main"], batch, rows, depth, columns,
        lambda b, row, step: _substituted(left, at(b, row, _int(0), step)),
        lambda b, step, column: _substituted(right, at(b, _int(0), column, step)),
        store,
    )  # fmt: skip


def scheduled(p: Product, rows: int, vectors: int, lanes: int, *, parallel: bool = False) -> tirx.PrimFunc:
    """`p` computed tile by tile: `rows` x `vectors` sums of `lanes` columns each stay in registers over the whole depth.

    Columns are the outer loop, so that the part of the right operand that a tile reads stays in the cache for all rows. `parallel`:
    threads share the rows.
    """
    rows = min(rows, p.rows)
    starts = [min(i * lanes, p.columns - lanes) for i in range(-(-p.columns // lanes))]
    count = -(-len(starts) // vectors)
    cuts = [len(starts) * i // count for i in range(count + 1)]
    groups = [starts[a:b] for a, b in pairwise(cuts)]

    def over_rows(b: Any, first: Any, offsets: Sequence[int]) -> tirx.Stmt:
        def tile(i: Any) -> tirx.Stmt:
            return _tile(p, b, tirx.min(i * rows, _int(p.rows - rows)) if p.rows % rows else i * rows, rows, first, offsets, lanes)

        return _loop(-(-p.rows // rows), tile, stmt.ForKind.PARALLEL if parallel else stmt.ForKind.SERIAL)

    def over_run(b: Any, offsets: Sequence[int], firsts: Sequence[int]) -> tirx.Stmt:
        steps = {after - before for before, after in pairwise(firsts)}
        if len(steps) > 1:
            return _sequence([over_rows(b, _int(first), offsets) for first in firsts])
        return _loop(len(firsts), lambda i: over_rows(b, firsts[0] + i * max(steps, default=0), offsets))

    def over_columns(b: Any) -> tirx.Stmt:
        alike = groupby(groups, key=lambda group: tuple(start - group[0] for start in group))
        return _sequence([over_run(b, offsets, [group[0] for group in run]) for offsets, run in alike])

    func = p.func
    return tirx.PrimFunc(func.params, _loop(p.batch, over_columns), func.ret_type, func.attrs)


def _tile(p: Product, b: Any, row: Any, rows: int, first: Any, offsets: Sequence[int], lanes: int) -> tirx.Stmt:
    sums = tirx.decl_buffer((rows * len(offsets) * lanes,), "float32", "sums", scope="local")

    def each(body: Callable[[Any, Any, list[Any]], tirx.Stmt]) -> tirx.Stmt:
        """`body(row, column, sum's place)` for every sum, unrolled over rows and vectors."""

        def vector(r: int, v: int) -> tirx.Stmt:
            place = (r * len(offsets) + v) * lanes
            return _loop(lanes, lambda lane: body(row + r, first + offsets[v] + lane, [place + lane]), stmt.ForKind.VECTORIZED)

        return _sequence([vector(r, v) for r in range(rows) for v in range(len(offsets))])

    def step(k: Any) -> tirx.Stmt:
        return each(lambda r, column, at: stmt.BufferStore(sums, tirx.BufferLoad(sums, at) + p.left(b, r, k) * p.right(b, k, column), at))

    return _sequence(
        [
            stmt.AllocBuffer(sums),
            each(lambda r, column, at: stmt.BufferStore(sums, tirx.const(0.0, "float32"), at)),
            _loop(p.depth, step),
            each(lambda r, column, at: p.store(b, r, column, tirx.BufferLoad(sums, at))),
        ]
    )


def _loop(extent: int, body: Callable[[Any], tirx.Stmt], kind: stmt.ForKind = stmt.ForKind.SERIAL) -> tirx.Stmt:
    if extent == 1:
        return body(_int(0))
    var = tirx.Var("i", "int64")
    return stmt.For(var, _int(0), _int(extent), kind, body(var))


def _sequence(parts: Sequence[tirx.Stmt]) -> tirx.Stmt:
    return parts[0] if len(parts) == 1 else stmt.SeqStmt(list(parts))


def _int(value: int) -> Any:
    return tirx.const(value, "int64")


def _factors(body: Any) -> tuple[Any, Any] | None:
    """The loads `a`, `b` of an update `sums[...] = sums[...] + a * b`."""
    total = body.value
    if not isinstance(total, tirx.Add) or not isinstance(total.b, tirx.Mul) or not isinstance(total.a, tvm.ir.TensorLoad):
        return None
    pair = (total.b.a, total.b.b)
    return pair if total.a.source.same_as(body.buffer) and all(isinstance(load, tvm.ir.TensorLoad) for load in pair) else None


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


def _substituted(expression: Any, values: Mapping[Any, Any], buffer: Any = None, load: Any = None) -> Any:
    """`expression` with `values` for its variables and `load` for what it reads of `buffer`."""

    def variable(var: Any) -> Any:
        return next((value for known, value in values.items() if known.same_as(var)), var)

    def read(found: Any) -> Any:
        return load if buffer is not None and found.source.same_as(buffer) else found

    return structural_map(expression, [(tvm.ir.TensorLoad, read), (tirx.Var, variable)])
