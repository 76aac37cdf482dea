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

from ...compiler.errors import BudgetError, NeaptideError
from ...compiler.graph import Graph, Node
from ...passes.allocate import Plan
from ..spec import Target

if TYPE_CHECKING:
    from ..tvm.lower import Kernel

FIRMWARE = Path(__file__).parent.parent / "firmware"
WEAK = "__attribute__((weak)) "  # objects of several builds may hold the same operator
ALIGNMENT = 16  # bytes, of everything in the arena and of every constant
STACK = 4096  # bytes kept for the stack
VECTOR_TABLE = 0x400
MEASURE = 64 << 10  # bytes at the end of the board's RAM for what the measurement keeps
STATIC = 64  # bytes of .data and .bss that the runtime may take
REPORT, MARKS, FAULT = "report.bin", "marks.bin", "fault.bin"


class EmulationError(NeaptideError):
    """Firmware cannot be emulated, faulted or ended early: the message says what or where."""


@dataclass(frozen=True)
class Firmware:
    """Sources by file name, text or bytes; `plan.arena` is the size of the array `arena`.

    `operators`: C text or an ELF object by the name of its function. `steps`: nodes that run an operator, in order. The firmware
    reads in0.bin, in1.bin, ... and writes out0.bin, ..., REPORT and MARKS.
    """

    files: Mapping[str, str | bytes]
    operators: Mapping[str, str | bytes]
    plan: Plan
    steps: tuple[int, ...]


def workspace_bytes(kernel: Kernel) -> int:
    """Bytes that a kernel's workspaces take together, each aligned."""
    return sum(map(_aligned, kernel.workspace))


def firmware(graph: Graph, plan: Plan, kernels: Mapping[str, Kernel], target: Target, *, stack: int = STACK) -> Firmware:
    """The sources for `graph` run as `plan` says on `target`, with `stack` bytes of stack.

    `graph`: nodes whose `op` is in `kernels`, and views; `graph.values` holds its constants. Call
    `planning.check_fit` first: the linker only says by how much a section is too large.
    """
    weights, places = _weights(graph)
    steps = tuple(v for v in plan.order if not graph.is_view(graph.nodes[v]))
    address = _Addresses(graph, plan, places)
    called = {graph.nodes[v].op: kernels[graph.nodes[v].op] for v in steps}
    operators = {k.symbol: k.code if isinstance(k.code, bytes) else f'#include "operators.h"\n\n{WEAK}{k.code}' for k in called.values()}
    files: dict[str, str | bytes] = {
        "main.c": _main(graph, plan, called, steps, address),
        "weights.bin": weights,
        "link.ld": _linker_script(target, stack),
    }
    return Firmware(files, operators, plan, steps)


def sram_bytes(target: Target) -> int:
    """SRAM that firmware may use: the part's, or for a bare core the board's less what measurement keeps."""
    if target.emulator is None:
        raise BudgetError(f"target {target.name} has no emulator to run firmware on; give it an [emulator] table")
    most = target.emulator.ram_size - MEASURE
    return most if target.sram is None else min(target.sram, most)


def weight_bytes(graph: Graph) -> int:
    """Bytes of flash that the constants of `graph` take, each aligned."""
    return len(_weights(graph)[0])


def too_large_for_board(name: str, target: Target, what: str) -> str:
    """That the part could hold `what`, and the board that emulates it cannot."""
    board = target.emulator
    assert board is not None and target.flash is not None
    return (
        f"{name!r} fits the flash of {target.name} ({target.flash:,} B) but cannot be emulated: {what}, and {board.machine} has "
        f"{board.code_size:,} B of code memory; fewer weights run there, and nothing else can be measured of it"
    )


class _Addresses:
    """C expressions for the places of tensors and workspaces."""

    def __init__(self, graph: Graph, plan: Plan, constants: Mapping[int, int]):
        self.graph, self.plan, self.constants = graph, plan, constants

    def tensor(self, t: int) -> str:
        tensor = self.graph.tensors[t]
        if tensor.storage in self.constants:
            return f"(void *)(weights + {self.constants[tensor.storage] + tensor.offset})"
        return f"arena + {self.plan.offsets[tensor.storage] + tensor.offset}"

    def workspaces(self, node: Node, kernel: Kernel) -> list[str]:
        at = self.plan.workspace_offsets.get(node.id, 0)
        out = []
        for nbytes in kernel.workspace:
            out.append(f"arena + {at}")
            at += _aligned(nbytes)
        return out


def _main(graph: Graph, plan: Plan, called: Mapping[str, Kernel], steps: tuple[int, ...], address: _Addresses) -> str:
    lines = ['#include "runtime.h"', "", "extern const uint8_t weights[];"]
    for kernel in {kernel.symbol: kernel for kernel in called.values()}.values():
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


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
