"""Convolutions with a window on CPUs: the input laid out so that every tap of the window is one shift of a flat vector.

The padded input of a channel is copied into planes, one for each phase of the stride (one plane for stride 1, four for stride 2), in
which neighbouring outputs read neighbouring values. Output rows then follow one another at the width of a plane, and vectors run along
them over the row ends; the few sums between two rows belong to no output and are not written. Depthwise convolutions lay out one
channel at a time, others all channels once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.tirx import stmt

from .schedules import blocks, is_reduction
from .search_space import operator_module
from .tiles import (
    LEAST_SUMS,
    PARALLEL,
    SERIAL,
    VECTORIZED,
    Term,
    factors,
    integer,
    loop,
    over_tiles,
    over_vectors,
    register_tile,
    sequence,
    storing,
    substituted,
)


@dataclass(frozen=True, slots=True)
class Convolution:
    """`func` as a 2-D convolution of `source` (batch, channels, height, width) with a window of `taps`, then an epilogue.

    `depthwise`: output channel f reads input channel f alone, `depth` 1; otherwise all `depth` channels. `before`: zeros above and left
    of the input. `size`: of an output channel. `weight(channel, k, ky, kx)` is a load, `store(batch, channel, row, column, sum)` the
    statement that finishes an element.
    """

    func: tirx.PrimFunc
    source: tirx.Buffer
    batch: int
    channels: int
    depth: int
    depthwise: bool
    taps: tuple[int, int]
    stride: int
    dilation: int
    before: tuple[int, int]
    size: tuple[int, int]
    weight: Callable[[Any, Any, int, int], Any]
    store: Callable[[Any, Any, Any, Any, Any], tirx.Stmt]

    @property
    def plane(self) -> tuple[int, int]:
        """Rows and columns of one phase of the padded input."""
        rows, columns = ((n - 1) * self.stride + (taps - 1) * self.dilation + 1 for n, taps in zip(self.size, self.taps, strict=True))
        return -(-rows // self.stride), -(-columns // self.stride)

    def flat(self, rows: int) -> int:
        """Sums from the first output of one row to the last of `rows`."""
        return (rows - 1) * self.plane[1] + self.size[1]


def convolution(func: tirx.PrimFunc) -> Convolution | None:
    """`func` read as a convolution of float32, of any window but one of a single tap at stride 1; None when it is something else."""
    sch = s_tir.Schedule(operator_module(func))
    for block in blocks(sch):
        consumers = sch.get_consumers(block)
        if consumers and not is_reduction(sch, block) and not any(is_reduction(sch, c) for c in consumers):
            sch.compute_inline(block)
    found = [sch.get(block) for block in blocks(sch)]
    if [is_reduction(sch, block) for block in blocks(sch)] not in ([False, True], [False, True, False]):
        return None
    padding, reduction = found[:2]
    loads = factors(reduction.body)
    axes = [iv.var for iv in reduction.iter_vars]
    extents = [int(iv.dom.extent) for iv in reduction.iter_vars]
    if loads is None or len(axes) != 7 or not any(load.source.same_as(padding.body.buffer) for load in loads):
        return None
    if any(len(load.indices) != 4 for load in loads):
        return None
    data, weights = loads if loads[0].source.same_as(padding.body.buffer) else loads[::-1]
    n, f, y, x, k, ky, kx = axes
    batch, channels, height, width, depth, *taps = extents
    steps = [_steps(data.indices[2], axes, y, ky), _steps(data.indices[3], axes, x, kx)]
    depthwise = depth == 1 and _same(data.indices[1], f + k)
    inner = _inner(padding)
    store = storing(reduction, found[2] if len(found) > 2 else None)
    if (
        inner is None
        or store is None
        or steps[0] is None
        or steps[0] != steps[1]
        or not all(_same(i, w) for i, w in zip(weights.indices, (f, k, ky, kx), strict=True))
        or not _same(data.indices[0], n)
        or not (depthwise or _same(data.indices[1], k))
        or not any(inner[0].same_as(param) for param in sch.mod["main"].params)
        or (taps == [1, 1] and steps[0][0] == 1)
    ):
        return None
    source, before = inner
    return Convolution(
        sch.mod["main"], source, batch, channels, depth, depthwise, (taps[0], taps[1]), *steps[0], before, (height, width),
        lambda channel, step, i, j: substituted(weights, {f: channel, k: step, ky: integer(i), kx: integer(j)}),
        lambda b, channel, row, column, value: store([b, channel, row, column], value),
    )  # fmt: skip


def tile_sizes(c: Convolution, lanes: int, registers: int) -> list[tuple[int, int, int]]:
    """(channels, vectors, output rows at a time) for `scheduled`, most promising first; none where no run of rows fills a vector.

    The taps of a window are unrolled, and the loads of several are in flight at once: only half of the registers are for sums.
    """
    found: dict[tuple[int, int, int], float] = {}
    for together in sorted({1, 2, c.size[0]}):
        columns = c.flat(together)
        if together > c.size[0] or columns < lanes:
            continue
        count = -(-columns // lanes)
        for v in {min(count, most) for most in (2, 4, 8)}:
            rows = 1 if c.depthwise else min(c.channels, max(1, (registers - v) // (2 * v)))
            work = -(-c.channels // rows) * -(-count // v) * -(-c.size[0] // together)
            found[rows, v, together] = work * max(rows * v, rows + v, LEAST_SUMS / 2)
    return sorted(found, key=lambda tile: found[tile])


def scheduled(c: Convolution, *, rows: int, vectors: int, together: int, lanes: int, parallel: bool = False) -> tirx.PrimFunc:
    """`c` with `rows` channels x `vectors` of sums in registers, over runs of `together` output rows.

    `parallel`: threads share the output channels.
    """
    kind = PARALLEL if parallel else SERIAL
    planes_of = 1 if c.depthwise else c.depth
    plane = c.plane[0] * c.plane[1]

    def sums(planes: Any, b: Any, channel: Any) -> tirx.Stmt:
        columns = c.flat(together)
        line = tirx.decl_buffer((rows * columns,), "float32", "line", scope="global")

        def tile(top: Any, first: Any, offsets: Sequence[int]) -> tirx.Stmt:
            def tap(step: Any, i: int, j: int) -> Term:
                (a, up), (e, left) = (divmod(t * c.dilation, c.stride)[::-1] for t in (i, j))
                phase = (step * c.stride + a) * c.stride + e
                start = phase * plane + (top + up) * c.plane[1] + left + first
                return lambda r: c.weight(channel + r, step, i, j), lambda column: tirx.BufferLoad(planes, [start + column])

            return register_tile(
                rows, offsets, lanes, c.depth,
                lambda step: [tap(step, i, j) for i in range(c.taps[0]) for j in range(c.taps[1])],
                lambda r, column, value: stmt.BufferStore(line, value, [r * columns + first + column]),
            )  # fmt: skip

        def finish(top: Any) -> tirx.Stmt:
            def piece(r: Any, row: Any, column: Any) -> tirx.Stmt:
                value = tirx.BufferLoad(line, [r * columns + row * c.plane[1] + column])
                return c.store(b, channel + r, top + row, column, value)

            return loop(rows, lambda r: loop(together, lambda row: _along(c.size[1], lanes, lambda column: piece(r, row, column))))

        def run(top: Any) -> tirx.Stmt:
            return sequence([over_vectors(columns, vectors, lanes, lambda first, offsets: tile(top, first, offsets)), finish(top)])

        return sequence([stmt.AllocBuffer(line), over_tiles(c.size[0], together, run)])

    def image(b: Any) -> tirx.Stmt:
        planes = tirx.decl_buffer((planes_of * c.stride**2 * plane,), "float32", "planes", scope="global")
        filled = [stmt.AllocBuffer(planes), _zeros(planes, lanes)]
        if not c.depthwise:
            filled.append(loop(c.depth, lambda k: _fill(c, planes, b, k, k, lanes)))
            return sequence([*filled, over_tiles(c.channels, rows, lambda channel: sums(planes, b, channel), kind)])

        def one(channel: Any) -> tirx.Stmt:
            return sequence([_fill(c, planes, b, channel, integer(0), lanes), sums(planes, b, channel)])

        if parallel:
            return loop(c.channels, lambda channel: sequence([*filled, one(channel)]), kind)
        return sequence([*filled, loop(c.channels, one)])

    return tirx.PrimFunc(c.func.params, loop(c.batch, image), c.func.ret_type, c.func.attrs)


def _zeros(buffer: tirx.Buffer, lanes: int) -> tirx.Stmt:
    zero = tirx.const(0.0, "float32")
    return _along(int(buffer.shape[0]), lanes, lambda at: stmt.BufferStore(buffer, zero, [at]))


def _fill(c: Convolution, planes: tirx.Buffer, b: Any, channel: Any, place: Any, lanes: int) -> tirx.Stmt:
    """One channel of the input into its planes, from number `place` x phases on; what is outside the input is left zero."""
    s, (plane_rows, plane_columns) = c.stride, c.plane
    height, width = (int(d) for d in c.source.shape[2:])
    parts = []
    for a in range(s):
        low, high = _covered(a, s, c.before[0], height, plane_rows)
        for e in range(s):
            left, right = _covered(e, s, c.before[1], width, plane_columns)
            if low >= high or left >= right:
                continue
            start = ((place * s + a) * s + e) * plane_rows * plane_columns

            def row(
                i: Any, a: int = a, e: int = e, low: int = low, left: int = left, n: int = right - left, start: Any = start
            ) -> tirx.Stmt:
                at = start + (low + i) * plane_columns + left
                first = s * left + e - c.before[1]
                return _copy(planes, at, c.source, [b, channel, s * (low + i) + a - c.before[0]], first, s, n, lanes)

            parts.append(loop(high - low, row))
    return sequence(parts)


def _covered(phase: int, stride: int, before: int, extent: int, limit: int) -> tuple[int, int]:
    """From where to where a phase holds values of the input: i with 0 <= stride * i + phase - before < extent, below `limit`."""
    return max(0, -(-(before - phase) // stride)), min(limit, -(-(extent + before - phase) // stride))


def _copy(
    target: tirx.Buffer, at: Any, source: tirx.Buffer, lead: Sequence[Any], first: int, stride: int, count: int, lanes: int
) -> tirx.Stmt:
    """`count` values from every `stride`-th column of a row, by vectors; two vectors are shuffled into one for stride 2."""
    if stride != 2:
        return _along(count, lanes, lambda i: stmt.BufferStore(target, tirx.BufferLoad(source, [*lead, first + stride * i]), [at + i]))
    size = _width(count, lanes)
    if size == 1:
        return loop(count, lambda i: stmt.BufferStore(target, tirx.BufferLoad(source, [*lead, first + 2 * i]), [at + i]))
    picked = [i if i < size else i + 1 for i in range(0, 2 * size, 2)]

    def piece(i: Any) -> tirx.Stmt:
        starts = (first + 2 * i, first + 2 * i + size - 1)
        pair = [tirx.BufferLoad(source, [*lead, tirx.Ramp(integer(0) + start, integer(1), size)]) for start in starts]
        return stmt.BufferStore(target, tirx.Shuffle(pair, [tirx.const(p, "int32") for p in picked]), [tirx.Ramp(at + i, integer(1), size)])

    return over_tiles(count, size, piece)


def _along(count: int, lanes: int, body: Callable[[Any], tirx.Stmt]) -> tirx.Stmt:
    """`body(i)` for i from 0 to `count`, by the widest vectors that fit, the last one moved back."""
    size = _width(count, lanes)
    return over_tiles(count, size, lambda first: loop(size, lambda lane: body(first + lane), VECTORIZED))


def _width(count: int, lanes: int) -> int:
    return min(lanes, 1 << (count.bit_length() - 1))


def _steps(index: Any, axes: Sequence[Any], output: Any, tap: Any) -> tuple[int, int] | None:
    """Stride and dilation of an index `output * stride + tap * dilation`; None for any other."""
    analyzer = tvm.sym.Analyzer()

    def at(chosen: Any) -> int:
        values = {axis: integer(int(axis.same_as(chosen))) for axis in axes}
        return int(analyzer.simplify(substituted(index, values)))

    stride, dilation = at(output), at(tap)
    return (stride, dilation) if _same(index, output * stride + tap * dilation) else None


def _inner(padding: Any) -> tuple[tirx.Buffer, tuple[int, int]] | None:
    """The buffer that a padding block surrounds with zeros, and how many are above it and left of it."""
    value = padding.body.value
    if isinstance(value, tvm.ir.Call) and value.op.name == "prim.if_then_else":
        if float(getattr(value.args[2], "value", 1.0)) != 0.0:
            return None
        value = value.args[1]
    if not isinstance(value, tvm.ir.TensorLoad) or len(value.indices) != 4:
        return None
    axes = [iv.var for iv in padding.iter_vars]
    zero = {axis: integer(0) for axis in axes}
    before = [-int(tvm.sym.Analyzer().simplify(substituted(index, zero))) for index in value.indices]
    if before[:2] != [0, 0] or not all(_same(i, axis - n) for i, axis, n in zip(value.indices, axes, before, strict=True)):
        return None
    return value.source, (before[2], before[3])


def _same(a: Any, b: Any) -> bool:
    return bool(tvm.sym.Analyzer().can_prove_equal(a, b))
