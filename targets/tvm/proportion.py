"""Whether a scheduled operator is in proportion to what it was: its vectors, its steps and the memory it takes.

Schedules are read back from files. Each instruction of one may be harmless and all of them together ask for a vector of a million lanes or
a buffer of terabytes.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import s_tir, tirx
from tvm.tirx import stmt

from ...compiler.graph import ITEMSIZE

LANES = 64  # of one vector loop at most: what MetaSchedule's rules make
STEPS, FEW_STEPS = 256, 1 << 20  # times the steps of the operator as it was written, and what is always allowed
BYTES, FEW_BYTES = 64, 1 << 26  # times the bytes of its arguments and buffers, and what is always allowed


def check_proportion(before: tirx.PrimFunc, after: tirx.PrimFunc) -> None:
    """Raise `ValueError` when `after`, `before` under a schedule, is out of proportion. O(statements)."""
    was, now = _Extent(), _Extent()
    was.visit(before.body, 1)
    now.visit(after.body, 1)
    given = sum(_bytes(param) for param in before.params) + was.bytes
    if now.lanes > LANES:
        raise ValueError(f"its schedule makes vectors of {now.lanes:,} lanes; at most {LANES} are made")
    if now.steps > max(FEW_STEPS, STEPS * was.steps):
        raise ValueError(f"its schedule takes {now.steps:,} steps where the operator has {was.steps:,}")
    if now.bytes > max(FEW_BYTES, BYTES * given):
        raise ValueError(f"its schedule takes {now.bytes:,} B beside the {given:,} B of the operator")


class _Extent:
    """Statements run (`steps`), bytes of buffers, all alive together, and the widest vector loop."""

    def __init__(self) -> None:
        self.steps, self.bytes, self.lanes = 0, 0, 1

    def visit(self, node: Any, times: int) -> None:
        if isinstance(node, stmt.SeqStmt):
            for part in node.seq:
                self.visit(part, times)
        elif isinstance(node, stmt.For):
            if node.kind == stmt.ForKind.VECTORIZED:
                self.lanes = max(self.lanes, int(node.extent))
            self.visit(node.body, times * int(node.extent))
        elif isinstance(node, s_tir.SBlockRealize):
            self.visit(node.block, times)
        elif isinstance(node, s_tir.SBlock):
            self.bytes += sum(_bytes(buffer) for buffer in node.alloc_buffers)
            self.visit(node.body, times)
        elif isinstance(node, stmt.IfThenElse):
            self.visit(node.then_case, times)
            if node.else_case is not None:
                self.visit(node.else_case, times)
        else:
            self.steps += times


def _bytes(buffer: Any) -> int:
    return ITEMSIZE.get(str(buffer.dtype), 8) * math.prod(int(d) for d in buffer.shape)
