"""Scheduled operators as functions over bare pointers, in C or as LLVM objects: no TVM runtime, no allocation, every byte passed in.

TVM's own ending of a lowering (`MakePackedAPI`) gives functions that unpack dynamic arguments and call its runtime for
memory. Here the parameters become typed pointers, and buffers inside an operator become further pointers, so that the
planner places them like everything else; only small ones, which compilers keep in registers, stay on the stack.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.tirx import stmt
from tvm_ffi import structural_hash, structural_map

from ...compiler.graph import ITEMSIZE
from ...compiler.scratch import scratch
from ..file_cache import FileCache
from .machine import machine
from .nan_extremes import with_nan
from .overwriting import overwritable

C = {"kind": "c"}
NAME = 80  # characters that a C function's name says of what it does: file systems allow few
STACK_BUFFER = 256  # bytes; a larger buffer inside an operator is workspace


@dataclass(frozen=True)
class Kernel:
    """One operator, `void symbol(...)` over pointers to the inputs, the outputs, then the workspaces. `code`: C, or an ELF object.

    No two of them overlap where one is written, save that the result may lie over one operand of `overwritable`; all others are
    `restrict`. `parameters`: how many pointers come before the workspaces. `workspace`: bytes of each.
    """

    symbol: str
    code: str | bytes
    parameters: int
    workspace: tuple[int, ...]
    overwritable: tuple[int, ...] = ()


def lower(
    kernels: Mapping[str, tirx.PrimFunc],
    scheduled: Callable[[tirx.PrimFunc], tirx.PrimFunc],
    *,
    target: Mapping[str, Any] | None = None,
    cache: FileCache | None = None,
) -> dict[str, Kernel]:
    """Every kernel after `scheduled`, as C or, with `target` (an LLVM target of TVM), as object files. About 20 ms each.

    What was lowered before by the same code comes from `cache` (None: the user's), in under a millisecond.
    """
    known = FileCache() if cache is None else cache
    tools = _tools(scheduled)
    lowered = {}
    for symbol, func in kernels.items():
        made_of = signature(symbol, func)
        key = f"{tools} {dict(target or C)} {made_of}"
        found = known.get(key)
        if found is None:
            lowered[symbol] = _lower_one(_c_name(made_of), scheduled(func), dict(target or C))
            known.put(key, _encoded(lowered[symbol]))
        else:
            lowered[symbol] = _decoded(found)
    return lowered


def _c_name(made_of: str) -> str:
    """A C function's name for a signature, the same in every network; `op_` since an operator may be called `exp`."""
    kind, _, number = made_of.partition("(")[0], *made_of.rpartition("#")[1:]
    return f"op_{kind[:NAME]}_{number}"


def _tools(scheduled: Callable[[tirx.PrimFunc], tirx.PrimFunc]) -> str:
    """What decides the code of an operator besides what it computes: TVM, this module, and the module of the schedules."""
    sources = [
        Path(__file__),
        Path(__file__).with_name("overwriting.py"),
        Path(__file__).with_name("nan_extremes.py"),
        Path(sys.modules[scheduled.__module__].__file__ or ""),
    ]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return f"{version('apache-tvm')} {digest}"


def _encoded(kernel: Kernel) -> bytes:
    code = kernel.code.hex() if isinstance(kernel.code, bytes) else kernel.code
    return json.dumps(
        [isinstance(kernel.code, bytes), kernel.symbol, code, kernel.parameters, kernel.workspace, kernel.overwritable]
    ).encode()


def _decoded(text: bytes) -> Kernel:
    binary, symbol, code, parameters, workspace, over = json.loads(text)
    return Kernel(symbol, bytes.fromhex(code) if binary else code, parameters, tuple(workspace), tuple(over))


def llvm_version() -> str:
    """Name and version of the LLVM inside TVM."""
    return f"llvm {tvm.get_global_func('target.llvm_version_major')()}"


def signature(symbol: str, func: tirx.PrimFunc) -> str:
    """What an operator computes, whatever its number in a network and its schedule: kind, shapes and a hash of its structure.

    Equal in every process; the key of the cost database.
    """
    kind = "_".join(part for part in (part.rstrip("0123456789") for part in symbol.removeprefix("fused_").split("_")) if part)
    shapes = ",".join("x".join(str(int(d)) for d in param.shape) or "1" for param in func.params)
    return f"{kind}({shapes})#{structural_hash(func) & (2**64 - 1):016x}"


def _lower_one(symbol: str, func: tirx.PrimFunc, target_spec: dict[str, Any]) -> Kernel:
    target = machine(target_spec)
    over = overwritable(func)
    attributes: dict[str, Any] = {"global_symbol": symbol, "target": target}
    if over:
        attributes["tirx.noalias"] = False
    mod = tvm.IRModule({symbol: func.with_attrs(attributes)})
    with (
        target,
        tvm.transform.PassContext(config={"s_tir.LoopPartition": {"partition_const_loop": True, "no_unroll_loop_with_extent_one": True}}),
    ):
        mod = tvm.transform.Sequential(_passes())(mod)
        (var, func), *_ = mod.functions.items()
        bare, workspace = _bare_pointers(with_nan(func))
        mod = tirx.transform.LowerIntrin()(tvm.IRModule({var: bare}))
    built = tvm.get_global_func(f"target.build.{target.kind.name}")(mod, target)
    parameters = len(func.params)
    if target.kind.name == "c":
        source = _exact(built.inspect_source(), mod[var])
        code: str | bytes = _plain_c(source, symbol, {*over, parameters - 1} if over else set())
    else:
        code = _object(built)
    return Kernel(symbol, code, parameters, tuple(workspace), over)


def _exact(generated: str, func: tirx.PrimFunc) -> str:
    """C whose constants have all their digits: TVM prints seven, which is not enough to tell one from the next."""
    exact: dict[str, float] = {}

    def note(node: tirx.FloatImm) -> tirx.FloatImm:
        if str(node.ty) == "float32" and math.isfinite(node.value):
            exact.setdefault(f"{node.value:.6e}f", node.value)
        return node

    structural_map(func.body, (tirx.FloatImm, note))
    return re.sub(r"-?\d\.\d{6}e[+-]\d\df", lambda m: f"{exact[m[0]]:.9e}f" if m[0] in exact else m[0], generated)


def _object(built: Any) -> bytes:
    with scratch() as folder:
        path = folder / "operator.o"
        built.write_to_file(str(path))
        return path.read_bytes()


def _plain_c(generated: str, symbol: str, overlapping: Collection[int]) -> str:
    """The function alone: without TVM's includes, export macros and prototype, its pointers `restrict` but the `overlapping` ones."""
    head = f"void {symbol}("
    start = generated.rindex(head)
    parameters, body = generated[start + len(head) :].split(") {", 1)
    restricted = [p if i in overlapping else p.replace("* ", "* restrict ") for i, p in enumerate(parameters.split(", "))]
    return f"{head}{', '.join(restricted)}) {{{body.rstrip()}\n"


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
