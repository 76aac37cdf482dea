"""Scheduled operators as C functions over bare pointers: no TVM runtime, no allocation, every byte passed in.

TVM's own ending of a lowering (`MakePackedAPI`) gives functions that unpack dynamic arguments and call its runtime for
memory. Here the parameters become typed pointers, and buffers inside an operator become further pointers, so that the
planner places them like everything else; only small ones, which compilers keep in registers, stay on the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import tvm
from tvm import s_tir, tirx
from tvm.tirx import stmt
from tvm_ffi import structural_hash

from ...compiler.graph import ITEMSIZE

STACK_BUFFER = 256  # bytes; a larger buffer inside an operator is workspace


@dataclass(frozen=True)
class CKernel:
    """One operator in C. `source` defines `void symbol(...)`: pointers to the inputs, the outputs, then the workspaces.

    No two of them overlap where one is written, so all are `restrict`.

    `parameters`: how many pointers come before the workspaces. `workspace`: bytes of each.
    """

    symbol: str
    source: str
    parameters: int
    workspace: tuple[int, ...]


def lower(kernels: Mapping[str, tirx.PrimFunc], scheduled: Callable[[tirx.PrimFunc], tirx.PrimFunc]) -> dict[str, CKernel]:
    """Every kernel as C after `scheduled`. O(operators); about 20 ms each."""
    return {symbol: _lower_one(symbol, scheduled(func)) for symbol, func in kernels.items()}


def signature(symbol: str, func: tirx.PrimFunc) -> str:
    """What an operator computes, whatever its number in a network and its schedule: kind, shapes and a hash of its structure.

    Equal in every process; the key of the cost database.
    """
    kind = "_".join(part for part in (part.rstrip("0123456789") for part in symbol.removeprefix("fused_").split("_")) if part)
    shapes = ",".join("x".join(str(int(d)) for d in param.shape) or "1" for param in func.params)
    return f"{kind}({shapes})#{structural_hash(func) & (2**64 - 1):016x}"


def _lower_one(symbol: str, func: tirx.PrimFunc) -> CKernel:
    target = tvm.target.Target({"kind": "c"})
    symbol = f"op_{symbol}"  # an operator may be called `exp`, as the function of the C library is
    mod = tvm.IRModule({symbol: func.with_attr("global_symbol", symbol).with_attr("target", target)})
    with (
        target,
        tvm.transform.PassContext(config={"s_tir.LoopPartition": {"partition_const_loop": True, "no_unroll_loop_with_extent_one": True}}),
    ):
        mod = tvm.transform.Sequential(_passes())(mod)
        (var, func), *_ = mod.functions.items()
        bare, workspace = _bare_pointers(func)
        mod = tirx.transform.LowerIntrin()(tvm.IRModule({var: bare}))
    source = _plain_c(tvm.get_global_func("target.build.c")(mod, target).inspect_source(), symbol)
    return CKernel(symbol, source, len(func.params), tuple(workspace))


def _plain_c(generated: str, symbol: str) -> str:
    """The function alone: without TVM's includes, export macros and prototype, its pointers `restrict`."""
    head = f"void {symbol}("
    start = generated.rindex(head)
    parameters, body = generated[start + len(head) :].split(") {", 1)
    restricted = parameters.replace("* ", "* restrict ")
    return f"{head}{restricted}) {{{body.rstrip()}\n"


def _passes() -> list[tvm.transform.Pass]:
    """TVM's lowering of a scheduled function, up to where its calling convention would begin."""
    s, x = s_tir.transform, tirx.transform
    blocks = [
        s.CanonicalizeLoop(),
        s.LowerCrossThreadReduction(),
        s.LowerInitBlock(),
        s.PlanAndUpdateBufferAllocationLocation(),
        s.ConvertBlocksToOpaque(),
        s.CompactBufferAllocation(),
        s.LowerMatchBuffer(),
        s.StmtSimplify(),
        s.AnnotateIrregularLoop(),
        s.LowerOpaqueBlock(),
    ]
    loops = [
        x.FlattenBuffer(),
        x.BF16ComputeLegalize(),
        x.NarrowDataType(32),
        x.UnrollLoop(),
        x.StmtSimplify(),
        s.LoopPartition(),
        x.VectorizeLoop(False),
        x.StorageRewrite(),
        s.HoistIfThenElse(),
        s.RenormalizeSplitPattern(),
        x.StmtSimplify(),
        x.RemoveNoOp(),
        s.RewriteUnsafeSelect(),
        x.CommonSubexprElim(),
        x.VerifyMemory(),
    ]
    return [*blocks, *loops]


def _bare_pointers(func: tirx.PrimFunc) -> tuple[tirx.PrimFunc, list[int]]:
    """`func` over typed pointers, and the bytes of each workspace pointer appended to its parameters."""
    pointers: list[tirx.Var] = []
    declared: list[tirx.Stmt] = []
    workspaces: list[tirx.Var] = []
    nbytes: list[int] = []
    for param in func.params:
        if isinstance(param.ty, stmt.Buffer | tirx.buffer.BufferType):
            pointer = _pointer(param, f"{param.name}_p")
            declared.append(tirx.DeclBuffer(param, data=pointer))
            pointers.append(pointer)
        else:
            pointers.append(param)

    def lift(node: tirx.Stmt) -> tirx.Stmt | None:
        if not isinstance(node, stmt.AllocBuffer) or _nbytes(node.buffer) <= STACK_BUFFER:
            return None
        workspaces.append(_pointer(node.buffer, f"workspace{len(nbytes)}"))
        nbytes.append(_nbytes(node.buffer))
        return tirx.DeclBuffer(node.buffer, data=workspaces[-1])

    body = _rewritten(func.body, lift)
    sequence = tirx.SeqStmt([*declared, body, tirx.Evaluate(0)])
    return tirx.PrimFunc([*pointers, *workspaces], sequence, func.ret_type, func.attrs), nbytes


def _pointer(buffer: tirx.Buffer, name: str) -> tirx.Var:
    return tirx.Var(name, tvm.ir.PointerType(tvm.ir.PrimType(str(buffer.dtype))))


def _nbytes(buffer: tirx.Buffer) -> int:
    total = ITEMSIZE[str(buffer.dtype)]
    for extent in buffer.shape:
        total *= int(extent)
    return total


def _rewritten(node: tirx.Stmt, rule: Callable[[tirx.Stmt], tirx.Stmt | None]) -> tirx.Stmt:
    """`node` with `rule` applied from the outside in; a statement for which it gives something is not entered."""
    replaced = rule(node)
    if replaced is not None:
        return replaced
    if isinstance(node, stmt.SeqStmt):
        return stmt.SeqStmt([_rewritten(part, rule) for part in node.seq])
    if isinstance(node, stmt.For):
        body = _rewritten(node.body, rule)
        return stmt.For(node.loop_var, node.min, node.extent, node.kind, body, node.thread_binding, node.annotations, node.step)
    if isinstance(node, stmt.IfThenElse):
        otherwise = None if node.else_case is None else _rewritten(node.else_case, rule)
        return stmt.IfThenElse(node.condition, _rewritten(node.then_case, rule), otherwise)
    if isinstance(node, stmt.AttrStmt):
        return stmt.AttrStmt(node.node, node.attr_key, node.value, _rewritten(node.body, rule))
    if isinstance(node, stmt.While):
        return stmt.While(node.condition, _rewritten(node.body, rule))
    return node
