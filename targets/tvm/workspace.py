"""Bytes that an operator takes from TVM's pool while it runs, read from its lowered program as it is compiled."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.tirx import stmt

_TAKE = "TVMBackendAllocWorkspace"


class WorkspaceCount:
    """Counts while `instrument` is in the pass context of a build: `bytes` is the most that is taken at one time, by `threads` threads.

    Buffers that TVM puts on the stack, which are smaller than 1,024 bytes, are not in it.
    """

    def __init__(self, threads: int = 1):
        self.bytes = 0
        count = self

        @tvm.instrument.pass_instrument
        class Instrument:
            def run_after_pass(self, module: tvm.IRModule, info: Any) -> None:
                if info.name == "tirx.LowerTVMBuiltin":
                    functions = [func for func in module.functions.values() if isinstance(func, tirx.PrimFunc)]
                    count.bytes = max([count.bytes, *(_most(func.body, threads) for func in functions)])

        self.instrument = Instrument()


def _most(node: tirx.Stmt, threads: int) -> int:
    """Largest number of bytes taken at one time in `node`; what is taken in a sequence is given back at its end."""
    if isinstance(node, stmt.SeqStmt):
        taken = most = 0
        for part in node.seq:
            taken += _taken(part)
            most = max(most, taken + _most(part, threads))
        return most
    if isinstance(node, stmt.For):
        inside = _most(node.body, threads)
        return inside * min(threads, int(node.extent)) if node.kind == stmt.ForKind.PARALLEL else inside
    if isinstance(node, stmt.IfThenElse):
        branches = [node.then_case] + ([node.else_case] if node.else_case is not None else [])
        return max(_most(branch, threads) for branch in branches)
    if isinstance(node, (stmt.AttrStmt, stmt.While)):
        return _most(node.body, threads)
    return 0


def _taken(node: tirx.Stmt) -> int:
    value = getattr(node, "data", None) if isinstance(node, stmt.DeclBuffer) else getattr(node, "value", None)
    if isinstance(value, tvm.ir.Call) and getattr(value.op, "name", "").endswith(_TAKE):
        return int(value.args[2])
    return 0
