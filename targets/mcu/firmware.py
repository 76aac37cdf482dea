"""A planned network as the sources of a firmware: operators, a `main` that runs them in order over one arena, weights, linker script.

The arena is one array of exactly `Plan.arena` bytes; operators get pointers into it and into the weights. Inputs are read
from and outputs written to files of the host, so that neither takes flash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...compiler.errors import BudgetError
from ...compiler.graph import Graph, Node
from ...passes.allocate import Plan
from ...passes.liveness import liveness
from ..spec import Target, list_targets

if TYPE_CHECKING:
    from ..tvm.lower import CKernel

FIRMWARE = Path(__file__).parent.parent / "firmware"
ALIGNMENT = 16  # bytes, of everything in the arena and of every constant
STACK = 4096  # bytes kept for the stack
VECTOR_TABLE = 0x400
MEASURE = 64 << 10  # bytes at the end of the board's RAM for what the measurement keeps
STATIC = 64  # bytes of .data and .bss that the runtime may take
REPORT, MARKS, FAULT = "report.bin", "marks.bin", "fault.bin"


@dataclass(frozen=True)
class Firmware:
    """Sources by file name, text or bytes; `plan.arena` is the size of the array `arena`.

    `steps`: nodes that run an operator, in order. The firmware reads in0.bin, in1.bin, ... and writes out0.bin, ..., REPORT and MARKS.
    """

    files: Mapping[str, str | bytes]
    plan: Plan
    steps: tuple[int, ...]


def workspace_bytes(kernel: CKernel) -> int:
    """Bytes that a kernel's workspaces take together, each aligned."""
    return sum(map(_aligned, kernel.workspace))


def firmware(graph: Graph, plan: Plan, kernels: Mapping[str, CKernel], target: Target, *, stack: int = STACK) -> Firmware:
    """The sources for `graph` run as `plan` says on `target`, with `stack` bytes of stack.

    `graph`: nodes whose `op` is in `kernels`, and views; `graph.values` holds its constants. Call `check_fit` first: the
    linker only says by how much a section is too large.
    """
    weights, places = _weights(graph)
    steps = tuple(v for v in plan.order if not graph.is_view(graph.nodes[v]))
    address = _Addresses(graph, plan, places)
    called = {graph.nodes[v].op: kernels[graph.nodes[v].op] for v in steps}
    files: dict[str, str | bytes] = {
        "main.c": _main(graph, plan, called, steps, address),
        "operators.c": '#include "operators.h"\n\n' + "\n".join(kernel.source for kernel in called.values()),
        "weights.bin": weights,
        "link.ld": _linker_script(target, stack),
    }
    return Firmware(files, plan, steps)


def check_fit(graph: Graph, plan: Plan, target: Target, *, stack: int = STACK) -> None:
    """Raise `BudgetError` where arena and stack exceed the target's SRAM, or weights its flash; says what is largest and a way out."""
    sram = sram_bytes(target)
    need = plan.arena + stack + STATIC
    weights = len(_weights(graph)[0])
    if need > sram:
        ranges = liveness(graph, plan.order, inputs=plan.inputs)
        node = graph.nodes[ranges.order[ranges.peak_step]]
        held = ", ".join(f"{_what(graph, s)} {graph.storages[s].nbytes:,} B" for s in ranges.alive_at(ranges.peak_step)) or "nothing"
        more = f", workspace {node.workspace:,} B" if node.workspace else ""
        raise BudgetError(
            f"{graph.name!r} does not fit {target.name}: arena {plan.arena:,} B + stack {stack:,} B + {STATIC} B of variables "
            f"= {need:,} B, SRAM {sram:,} B. Peak at {node.op} {node.scope} ({held}{more}); {need - sram:,} B have to go: "
            f"a smaller input or fewer channels there{_roomier(need, weights)}"
        )
    if target.flash is not None and weights > target.flash:
        largest = max((s for s in graph.storages if s.role == "constant"), key=lambda s: s.nbytes)
        raise BudgetError(
            f"{graph.name!r} does not fit {target.name}: weights {weights:,} B, flash {target.flash:,} B. "
            f"Largest: {largest.name}, {largest.nbytes:,} B; {weights - target.flash:,} B have to go: "
            f"fewer channels{_roomier(need, weights)}"
        )


def _roomier(sram: int, flash: int) -> str:
    """The built-in parts that have so much of both, as the end of a sentence."""
    parts = [t for t in list_targets() if t.kind == "mcu" and t.name != t.core]
    names = [t.name for t in parts if t.sram is not None and t.flash is not None and t.sram >= sram and t.flash > flash]
    return f", or a part that it fits: {', '.join(names)}" if names else "; it fits no built-in part"


def sram_bytes(target: Target) -> int:
    """SRAM that firmware may use: the part's, or for a bare core the board's less what measurement keeps."""
    if target.emulator is None:
        raise BudgetError(f"target {target.name} has no emulator to run firmware on; give it an [emulator] table")
    most = target.emulator.ram_size - MEASURE
    return most if target.sram is None else min(target.sram, most)


class _Addresses:
    """C expressions for the places of tensors and workspaces."""

    def __init__(self, graph: Graph, plan: Plan, constants: Mapping[int, int]):
        self.graph, self.plan, self.constants = graph, plan, constants

    def tensor(self, t: int) -> str:
        tensor = self.graph.tensors[t]
        if tensor.storage in self.constants:
            return f"(void *)(weights + {self.constants[tensor.storage] + tensor.offset})"
        return f"arena + {self.plan.offsets[tensor.storage] + tensor.offset}"

    def workspaces(self, node: Node, kernel: CKernel) -> list[str]:
        at = self.plan.workspace_offsets.get(node.id, 0)
        out = []
        for nbytes in kernel.workspace:
            out.append(f"arena + {at}")
            at += _aligned(nbytes)
        return out


def _main(graph: Graph, plan: Plan, called: Mapping[str, CKernel], steps: tuple[int, ...], address: _Addresses) -> str:
    lines = ['#include "runtime.h"', "", "extern const uint8_t weights[];"]
    for kernel in called.values():
        pointers = ", ".join(["void *"] * (kernel.parameters + len(kernel.workspace)))
        lines.append(f"void {kernel.symbol}({pointers});")
    arena = max(plan.arena, 1)
    lines += [
        "",
        f'uint8_t arena[{arena}] __attribute__((section(".arena"), aligned({ALIGNMENT})));',
        f'uint32_t marks[{len(steps) + 2}] __attribute__((section(".measure")));',
        'uint32_t report[1] __attribute__((section(".measure")));',
        "",
        "int main(void) {",
        "  paint_stack();",
    ]
    lines += _transfers(graph, graph.inputs, "host_read", "in", address)
    lines += ["  mark();", "  mark();"]
    for v in steps:
        node = graph.nodes[v]
        kernel = called[node.op]
        arguments = [*map(address.tensor, (*node.inputs, *node.outputs)), *address.workspaces(node, kernel)]
        lines += [f"  {kernel.symbol}({', '.join(arguments)});", "  mark();"]
    lines += _transfers(graph, graph.outputs, "host_write", "out", address)
    lines += [
        "  report[0] = stack_high_water();",
        f'  host_write("{REPORT}", report, sizeof report);',
        f'  host_write("{MARKS}", marks, sizeof marks);',
        "  return 0;",
        "}",
        "",
    ]
    return "\n".join(lines)


def _transfers(graph: Graph, tensors: tuple[int, ...], call: str, stem: str, address: _Addresses) -> list[str]:
    return [f'  {call}("{stem}{i}.bin", {address.tensor(t)}, {_tensor_bytes(graph, t)});' for i, t in enumerate(tensors)]


def _linker_script(target: Target, stack: int) -> str:
    board = target.emulator
    assert board is not None  # sram_bytes has refused such targets
    flash = board.code_size if target.flash is None else min(target.flash - VECTOR_TABLE, board.code_size)
    values = {
        "VECTORS": board.vectors,
        "FLASH": board.code,
        "FLASH_SIZE": flash,
        "SRAM": board.ram,
        "SRAM_SIZE": sram_bytes(target),
        "MEASURE": board.ram + board.ram_size - MEASURE,
        "MEASURE_SIZE": MEASURE,
        "STACK": stack,
    }
    script = (FIRMWARE / "link.ld.in").read_text()
    for name, value in values.items():
        script = script.replace(f"@{name}@", f"{value:#x}")
    return script


def _weights(graph: Graph) -> tuple[bytes, dict[int, int]]:
    """Every constant's bytes, and the place of each storage among them."""
    blob = bytearray()
    places: dict[int, int] = {}
    for tensor in graph.tensors:
        if graph.storages[tensor.storage].role != "constant" or tensor.storage in places:
            continue
        places[tensor.storage] = len(blob)
        data = np.ascontiguousarray(graph.values[tensor.id]).tobytes()
        blob += data + bytes(-len(data) % ALIGNMENT)
    return bytes(blob), places


def _tensor_bytes(graph: Graph, t: int) -> int:
    return int(np.prod(graph.tensors[t].shape, dtype=np.int64)) * np.dtype(graph.tensors[t].dtype).itemsize


def _what(graph: Graph, storage: int) -> str:
    """A storage by its name, or by what makes it."""
    s = graph.storages[storage]
    maker = graph.birth[storage]
    return s.name or (graph.nodes[maker].op if maker >= 0 else f"{s.role} {storage}")


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
