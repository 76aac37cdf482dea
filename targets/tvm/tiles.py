"""Loops over tiles of sums kept in vector registers: what schedules of our own for CPUs are built from.

A tile is some rows by some vectors of columns. Columns that are no multiple of a vector, and rows that are no multiple of a tile, end in a
vector or a tile that is moved back until it fits: a few sums are computed twice rather than any of them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import tvm
from tvm import tirx
from tvm.tirx import stmt
from tvm_ffi import structural_map

LEAST_SUMS = 8  # independent sums that keep two multiply-add units of four cycles busy
SERIAL, PARALLEL, VECTORIZED = stmt.ForKind.SERIAL, stmt.ForKind.PARALLEL, stmt.ForKind.VECTORIZED

Term = tuple[Callable[[int], Any], Callable[[Any], Any]]  # what a row gives, what a column gives: their product is added


def loop(extent: int, body: Callable[[Any], tirx.Stmt], kind: stmt.ForKind = SERIAL) -> tirx.Stmt:
    """`body(i)` for i from 0 to `extent`; no loop for one."""
    if extent == 1:
        return body(integer(0))
    var = tirx.Var("i", "int64")
    return stmt.For(var, integer(0), integer(extent), kind, body(var))


def sequence(parts: Sequence[tirx.Stmt]) -> tirx.Stmt:
    """`parts` one after another; at least one."""
    return parts[0] if len(parts) == 1 else stmt.SeqStmt(list(parts))


def integer(value: int) -> Any:
    """An index."""
    return tirx.const(value, "int64")


def over_tiles(extent: int, size: int, body: Callable[[Any], tirx.Stmt], kind: stmt.ForKind = SERIAL) -> tirx.Stmt:
    """`body(first)` for tiles of `size` that cover `extent`, which is no smaller; the last is moved back until it fits."""
    last = integer(extent - size)
    return loop(-(-extent // size), lambda i: body(tirx.min(i * size, last) if extent % size else i * size), kind)


def over_vectors(columns: int, vectors: int, lanes: int, body: Callable[[Any, Sequence[int]], tirx.Stmt]) -> tirx.Stmt:
    """`body(first, offsets)` for groups of at most `vectors` vectors that cover `columns`, which are no fewer than `lanes`.

    Groups are of nearly equal size; vector v of one begins at column `first` + `offsets[v]`.
    """
    starts = [min(i * lanes, columns - lanes) for i in range(-(-columns // lanes))]
    count = -(-len(starts) // vectors)
    size, larger = divmod(len(starts), count)
    cuts = [i * size + min(i, larger) for i in range(count + 1)]
    groups = [starts[a:b] for a, b in pairwise(cuts)]

    def over_run(offsets: Sequence[int], firsts: Sequence[int]) -> tirx.Stmt:
        steps = {after - before for before, after in pairwise(firsts)}
        if len(steps) > 1:
            return sequence([body(integer(first), offsets) for first in firsts])
        return loop(len(firsts), lambda i: body(firsts[0] + i * max(steps, default=0), offsets))

    alike = groupby(groups, key=lambda group: tuple(start - group[0] for start in group))
    return sequence([over_run(offsets, [group[0] for group in run]) for offsets, run in alike])


def register_tile(
    rows: int, offsets: Sequence[int], lanes: int, depth: int, terms: Callable[[Any], Sequence[Term]],
    finish: Callable[[int, Any, Any], tirx.Stmt],
) -> tirx.Stmt:  # fmt: skip
    """`rows` x `offsets` vectors of sums over `depth` steps of `terms(step)`, then `finish(row, column, sum)` for each; unrolled.

    A row has a buffer of its own: TVM takes one of 1,024 bytes or more from a pool, which a compiler does not turn into registers.
    """
    sums = [tirx.decl_buffer((len(offsets) * lanes,), "float32", f"sums{r}") for r in range(rows)]

    def each(body: Callable[[int, Any, tirx.Buffer, list[Any]], tirx.Stmt]) -> list[tirx.Stmt]:
        def vector(r: int, v: int) -> tirx.Stmt:
            return loop(lanes, lambda lane: body(r, offsets[v] + lane, sums[r], [v * lanes + lane]), VECTORIZED)

        return [vector(r, v) for r in range(rows) for v in range(len(offsets))]

    def add(term: Term) -> list[tirx.Stmt]:
        left, right = term
        return each(lambda r, column, row, at: stmt.BufferStore(row, tirx.BufferLoad(row, at) + left(r) * right(column), at))

    return sequence(
        [
            *(stmt.AllocBuffer(row) for row in sums),
            *each(lambda r, column, row, at: stmt.BufferStore(row, tirx.const(0.0, "float32"), at)),
            loop(depth, lambda step: sequence([update for term in terms(step) for update in add(term)])),
            *each(lambda r, column, row, at: finish(r, column, tirx.BufferLoad(row, at))),
        ]
    )


def factors(body: Any) -> tuple[Any, Any] | None:
    """The loads `a`, `b` of an update `sums[...] = sums[...] + a * b` of float32; None for another statement."""
    total = body.value
    if not isinstance(total, tirx.Add) or not isinstance(total.b, tirx.Mul) or not isinstance(total.a, tvm.ir.TensorLoad):
        return None
    pair = (total.b.a, total.b.b)
    if not total.a.source.same_as(body.buffer) or not all(isinstance(load, tvm.ir.TensorLoad) for load in pair):
        return None
    return pair if all(str(buffer.dtype) == "float32" for buffer in (body.buffer, *(load.source for load in pair))) else None


def substituted(expression: Any, values: Mapping[Any, Any], buffer: Any = None, load: Any = None) -> Any:
    """`expression` with `values` for its variables and `load` for what it reads of `buffer`."""

    def variable(var: Any) -> Any:
        return next((value for known, value in values.items() if known.same_as(var)), var)

    def read(found: Any) -> Any:
        return load if buffer is not None and found.source.same_as(buffer) else found

    return structural_map(expression, [(tvm.ir.TensorLoad, read), (tirx.Var, variable)])


def storing(reduction: Any, epilogue: Any | None) -> Callable[[Sequence[Any], Any], tirx.Stmt] | None:
    """The statement that finishes the element at given indices from its sum: that of `epilogue`, a block, where there is one.

    None where the epilogue does not go over the sums element by element: a transpose, a reshape, a broadcast.
    """
    sums, indices = reduction.body.buffer, reduction.body.indices
    if not all(index.same_as(iv.var) for index, iv in zip(indices, reduction.iter_vars, strict=False)):
        return None
    if epilogue is None:
        return lambda at, value: stmt.BufferStore(sums, value, list(at))
    axes = [iv.var for iv in epilogue.iter_vars]
    extents = [[int(iv.dom.extent) for iv in block.iter_vars[: len(indices)]] for block in (epilogue, reduction)]
    if len(axes) != len(indices) or extents[0] != extents[1] or not _read_only_at(epilogue.body.value, sums, axes):
        return None

    def store(at: Sequence[Any], value: Any) -> tirx.Stmt:
        values, body = dict(zip(axes, at, strict=True)), epilogue.body
        finished = substituted(body.value, values, sums, value)
        return stmt.BufferStore(body.buffer, finished, [substituted(index, values) for index in body.indices])

    return store


def _read_only_at(expression: Any, buffer: tirx.Buffer, axes: Sequence[Any]) -> bool:
    read: list[bool] = []

    def look(load: Any) -> Any:
        if load.source.same_as(buffer):
            read.append(all(index.same_as(axis) for index, axis in zip(load.indices, axes, strict=True)))
        return load

    structural_map(expression, (tvm.ir.TensorLoad, look))
    return all(read)
