"""Schedules for microcontrollers: no buffer between the parts of a fused operator that a register can stand for.

Padding and elementwise producers are inlined into what reads them; the epilogue of a reduction moves into its innermost
spatial loop, so that the reduction accumulates one value at a time.
"""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

SPATIAL, REDUCTION = 0, 2  # tirx.IterVar.iter_type


def scheduled(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func` with the least workspace that inlining gives."""
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    inline_producers(sch)
    for block in blocks(sch):
        if is_reduction(sch, block):
            sink_epilogue(sch, block)
    return sch.mod["main"]


def blocks(sch: s_tir.Schedule) -> list:
    """The computations of the function, in order; none for a function that is one computation outside any block."""
    try:
        root = sch.get_sblock("root")
    except s_tir.ScheduleError:
        return []
    return list(sch.get_child_blocks(root))


def kinds(sch: s_tir.Schedule, block) -> list[int]:
    """SPATIAL or REDUCTION per iterator of `block`."""
    return [int(iv.iter_type) for iv in sch.get(block).iter_vars]


def is_reduction(sch: s_tir.Schedule, block) -> bool:
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


def sink_epilogue(sch: s_tir.Schedule, block) -> None:
    """Move the one consumer of reduction `block` under its innermost spatial loop, where it has one and that is possible."""
    consumers = sch.get_consumers(block)
    spatial = kinds(sch, block).count(SPATIAL)
    if len(consumers) != 1 or not spatial:
        return
    try:
        sch.reverse_compute_at(consumers[0], sch.get_loops(block)[spatial - 1])
    except s_tir.ScheduleError:
        return
