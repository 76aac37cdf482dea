"""Schedules for microcontrollers: accumulators in registers, chosen per shape, and no buffer where a register will do.

Padding and elementwise producers are inlined into what reads them. The reduction that carries an operator's work is tiled over
its spatial loops, so that each loaded value serves several sums; its epilogue works on the finished tile. Where padding makes
loads conditional, loops are cut into edges and an interior without conditions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm_ffi import structural_map

VERSION = 2  # of the code these schedules give; costs measured with another are not theirs
SPATIAL, REDUCTION = 0, 2  # tirx.IterVar.iter_type
REGISTERS = 28  # single-precision registers for a tile, of 32
UNROLLED = 64  # multiply-accumulates in a loop body at most


@dataclass(frozen=True)
class Tile:
    """`channels` x `points` sums at a time; `kernel`: the loops over the kernel's window are unrolled too."""

    channels: int
    points: int
    kernel: bool = False


def scheduled(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func` with its heaviest reduction tiled, its epilogues sunk and its producers inlined."""
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    inline_producers(sch)
    heaviest = max((b for b in blocks(sch) if is_reduction(sch, b)), key=lambda b: _steps(sch, b), default=None)
    for block in blocks(sch):
        if not is_reduction(sch, block):
            continue
        if sch.get(block).same_as(sch.get(heaviest)) and _tile_window(sch, block, func):
            continue
        sink_epilogue(sch, block)
    return _partitionable(sch.mod["main"])


def _partitionable(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func` whose padding conditions are marked, each on its own, for `LoopPartition` to cut loops where they change."""

    def marked(condition: Any) -> Any:
        if isinstance(condition, tirx.And):
            return tirx.And(marked(condition.a), marked(condition.b))
        return tirx.likely(condition)

    def rule(call: tvm.ir.Call) -> Any:
        if call.op.name != "prim.if_then_else":
            return call
        return tirx.if_then_else(marked(call.args[0]), *call.args[1:])

    return structural_map(func, (tvm.ir.Call, rule))


def choose_tile(channels: int, width: int, *, rows: int = 1, window: int = 1, depthwise: bool = False) -> Tile:
    """The tile with the fewest loads per sum that divides `channels`, which share an input, and points, which share a weight.

    `width`: points in a row; `rows`: rows that follow one another without a gap, so that a tile may hold several, whole ones.
    `window`: taps of the kernel. A depthwise kernel shares no input between channels: its window is unrolled, so that
    neighbouring points share loads.
    """
    if depthwise:
        sizes = [n for n in _divisors(width) if n * window <= UNROLLED]
        return Tile(1, max(sizes, default=1), kernel=window <= UNROLLED)
    points = [p for p in _divisors(width * rows) if width % p == 0 or p % width == 0]
    tiles = [(1 / c + 1 / p, -c * p, c, p) for c in _divisors(channels) for p in points if c * p + c + p <= REGISTERS]
    _, _, c, p = min(tiles)
    return Tile(c, p)


def _tile_window(sch: s_tir.Schedule, block: Any, func: tirx.PrimFunc) -> bool:
    """Tile `block` if it is a 2-D convolution or a matrix product; False for anything else, which is left as it was."""
    loops = sch.get_loops(block)
    found = kinds(sch, block)
    spatial = [loop for loop, kind in zip(loops, found, strict=False) if kind == SPATIAL]
    window = [loop for loop, kind in zip(loops, found, strict=False) if kind == REDUCTION]
    if len(loops) != len(found) or len(sch.get(block).reads) != 2 or found != sorted(found):
        return False
    extents = [_extent(sch, loop) for loop in spatial]
    taps = [_extent(sch, loop) for loop in window]
    if len(spatial) == 4 and len(window) == 3:
        depth, *kernel = taps
        channels_in = int(func.params[0].shape[1])
        depthwise = depth == 1 and channels_in > 1
        plain = math.prod(kernel) == 1 and tuple(map(int, func.params[0].shape[2:])) == tuple(extents[2:])
        before = [spatial[0]]
        if plain:
            points = sch.fuse(spatial[2], spatial[3])
            tile = choose_tile(extents[1], extents[3], rows=extents[2])
        else:
            before += [spatial[2]]
            points = spatial[3]
            tile = choose_tile(extents[1], extents[3], window=math.prod(kernel), depthwise=depthwise)
        channels = spatial[1]
    elif len(window) == 1 and len(spatial) >= 2:
        *before, channels, points = spatial
        tile = choose_tile(extents[-2], extents[-1])
    else:
        return False
    _apply(sch, block, tile, before, channels, points, window)
    return True


def _apply(sch: s_tir.Schedule, block: Any, tile: Tile, before: list, channels: Any, points: Any, window: list) -> None:
    """Loops in the order: batch, outer channels, rows (both in `before`), outer points, the window, then the tile unrolled."""
    if len(sch.get_consumers(block)) != 1:
        sch.cache_write(block, 0, "global")
    (epilogue,) = sch.get_consumers(block)
    channels, channel = sch.split(channels, [None, tile.channels])
    points, point = sch.split(points, [None, tile.points])
    sch.reorder(*before[:1], channels, *before[1:], points, *window, channel, point)
    sch.reverse_compute_at(epilogue, points)
    around = len(sch.get_loops(block)) - len(window) - 2
    for loop in sch.get_loops(epilogue)[around:]:
        sch.unroll(loop)
    init = sch.decompose_reduction(block, window[0])
    for loop in sch.get_loops(init)[around:]:
        sch.unroll(loop)
    for loop in (channel, point, *(window if tile.kernel else ())):
        sch.unroll(loop)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, min(n, 16) + 1) if n % d == 0]


def _extent(sch: s_tir.Schedule, loop: Any) -> int:
    return int(sch.get(loop).extent)


def _steps(sch: s_tir.Schedule, block: Any) -> int:
    return math.prod(_extent(sch, loop) for loop in sch.get_loops(block))


def blocks(sch: s_tir.Schedule) -> Sequence[Any]:
    """The computations of the function, in order; none for a function that is one computation outside any block."""
    try:
        root = sch.get_sblock("root")
    except s_tir.ScheduleError:
        return []
    return list(sch.get_child_blocks(root))


def kinds(sch: s_tir.Schedule, block: Any) -> list[int]:
    """SPATIAL or REDUCTION per iterator of `block`."""
    return [int(iv.iter_type) for iv in sch.get(block).iter_vars]


def is_reduction(sch: s_tir.Schedule, block: Any) -> bool:
    """True when `block` accumulates over an iterator."""
    return REDUCTION in kinds(sch, block)


def inline_producers(sch: s_tir.Schedule) -> None:
    """Inline every elementwise block into the blocks that read it, where that is possible."""
    done = False
    while not done:
        done = True
        for block in blocks(sch):
            if is_reduction(sch, block) or not sch.get_consumers(block):
                continue
            try:
                sch.compute_inline(block)
            except s_tir.ScheduleError:
                continue
            done = False
            break


def sink_epilogue(sch: s_tir.Schedule, block: Any) -> None:
    """Move the one consumer of reduction `block` under its innermost spatial loop, where it has one and that is possible."""
    consumers = sch.get_consumers(block)
    spatial = kinds(sch, block).count(SPATIAL)
    if len(consumers) != 1 or not spatial:
        return
    try:
        sch.reverse_compute_at(consumers[0], sch.get_loops(block)[spatial - 1])
    except s_tir.ScheduleError:
        return
