"""Arenas of segments, and why the arena of a network is the largest of them.

Call a layout of a segment *flush* in an arena of h bytes when the tensor that enters and the tensor that leaves each lie at the bottom or
at the top of it. A segment that is flush in h is flush in every H >= h: turn the layout so that whatever it can keep at the bottom is
there, and push the tensors that are at the top up by H - h; what lies beside them was below them. And a layout turned upside down is a
layout. So a network whose segments are all flush in H has a layout in H: go through the segments in order, turning each so that what
enters lies where the segment before left it. `Schedule` orders of segments one after another are an order of the network, and tensors
of different segments meet only in what passes between them.

A layout is found by the ordinary solver from two blocks more: one beside what enters, in a moment before the first step, one beside what
leaves, in a moment after the last, each filling the arena. A tensor beside such a filler is flush.
"""

from __future__ import annotations

import numpy as np

from ..compiler.errors import PlanError
from ..passes.allocate import allocate_lifetimes
from ..passes.load import max_load
from .segment_costs import Solved

ALIGNMENT = 64
SECONDS = 2.0


def plain_arena(solved: Solved) -> tuple[int, int]:
    """Bytes of the smallest arena found for a whole network, and bytes that none undercuts under its order."""
    if not len(solved.blocks):
        return 0, 0
    lower, upper, size = solved.blocks.T
    layout = allocate_lifetimes(range(len(size)), lower, upper, size, alignment=ALIGNMENT)
    return layout.arena, layout.lower_bound


def composable_arena(solved: Solved) -> tuple[int, int]:
    """Bytes of the smallest arena in which a layout was found that is flush at both ends, and bytes that no layout undercuts."""
    if not len(solved.blocks):
        return 0, 0
    lower, upper, size = (column.copy() for column in solved.blocks.T)
    size = -(-size // ALIGNMENT) * ALIGNMENT
    solid = size > 0
    load = int(max_load(lower[solid], upper[solid], size[solid])) if solid.any() else 0
    enters, leaves = solved.ends
    steps = int(upper.max())
    rows = [(-1, enters), (steps, leaves)]
    for moment, end in rows:
        if end >= 0:
            lower[end], upper[end] = min(lower[end], moment), max(upper[end], moment + 1)
    ends = sorted({int(size[end]) for end in solved.ends if end >= 0})
    for height in sorted({load, *(load + e for e in ends), load + sum(int(size[end]) for end in solved.ends if end >= 0)}):
        fillers = [(moment, moment + 1, height - size[end]) for moment, end in rows if end >= 0]
        blocks = np.concatenate([np.stack([lower, upper, size], 1), np.array(fillers, np.int64).reshape(-1, 3)])
        if _fits(blocks, height):
            return height, load
    free = plain_arena(solved)[0]
    return free + sum(int(size[end]) for end in solved.ends if end >= 0), load


def _fits(blocks: np.ndarray, height: int) -> bool:
    try:
        allocate_lifetimes(range(len(blocks)), *blocks.T, alignment=ALIGNMENT, capacity=height, time_limit=SECONDS)
    except PlanError:
        return False
    return True
