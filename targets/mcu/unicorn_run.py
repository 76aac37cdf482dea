"""Firmware in Unicorn: exact instruction counts per operator, by counting blocks as they run.

Semihosting is answered here: the firmware's files are bytes in memory.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...compiler.errors import MissingExtraError
from ..cycles import CycleTable
from ..spec import Emulator, Target
from .firmware import FAULT, FIRMWARE, EmulationError
from .toolchain import Image, host_library

OPEN, CLOSE, WRITE, READ, EXIT_EXTENDED = 1, 2, 5, 6, 0x20
SYSTEM = 0xE0000000, 0x100000  # the private peripheral bus: plain memory here
MISSING = 0xFFFFFFFF


@dataclass(frozen=True)
class Run:
    """What a run left: files written by the firmware, and the instructions executed up to each call of mark().

    `cycles_at_mark`: an estimate from the target's table; empty where instructions cannot be told apart.
    """

    files: Mapping[str, bytes]
    at_mark: tuple[int, ...]
    emulator: str
    cycles_at_mark: tuple[int, ...] = ()


class _Counter(ctypes.Structure):
    """`struct counter` of count_blocks.c, `struct costs` at its end."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("executed", "cycles", "mark_address", "n_marks", "capacity")),
        ("at_mark", ctypes.c_void_p),
        ("cycles_at_mark", ctypes.c_void_p),
        ("code", ctypes.c_char_p),
        *((name, ctypes.c_uint64) for name in ("base", "size", "expected")),
        ("blocks", ctypes.c_void_p),
        ("costs", ctypes.c_uint32 * len(CycleTable("").classes())),
    )


def run_unicorn(image: Image, target: Target, files: Mapping[str, bytes], *, marks: int) -> Run:
    """Run `image` to its end. `files`: what the firmware may read; `marks`: how many calls of mark() it makes.

    Raises `EmulationError` when the program faults, and for cores Unicorn lacks.
    """
    try:
        import unicorn
        from unicorn import arm_const
        from unicorn.unicorn_py3.unicorn import uclib
    except ImportError as error:
        raise MissingExtraError("unicorn", "mcu", "emulating firmware") from error
    board = target.emulator
    if board is None or not board.unicorn:
        raise EmulationError(f"Unicorn has no model of {target.core}; QEMU runs it (Debian: qemu-system-arm)")
    engine = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
    engine.ctl_set_cpu_model(getattr(arm_const, f"UC_CPU_ARM_{board.unicorn.upper().replace('-', '_')}"))
    for base, size in _regions(board):
        engine.mem_map(base, size)
    for address, data in _segments(image.path):
        engine.mem_write(address, data)

    code, base = _text(image.path)
    at_mark = np.zeros((2, marks), np.uint64)
    blocks = np.zeros((len(code) // 2 + 1, 2), np.uint32)
    counter = _Counter(mark_address=image.symbols["mark"][0] & ~1, capacity=marks, code=code, base=base, size=len(code))
    counter.at_mark, counter.cycles_at_mark, counter.blocks = at_mark[0].ctypes.data, at_mark[1].ctypes.data, blocks.ctypes.data
    table = target.cycles
    counter.costs[:] = (table or CycleTable("")).classes()
    library = host_library(FIRMWARE / "count_blocks.c")
    hook = ctypes.c_size_t()
    callback = ctypes.cast(library.count_block, ctypes.c_void_p)
    everywhere = ctypes.c_uint64(1), ctypes.c_uint64(0)
    status = uclib.uc_hook_add(engine._uch, ctypes.byref(hook), unicorn.UC_HOOK_BLOCK, callback, ctypes.byref(counter), *everywhere)
    if status:
        raise EmulationError(f"Unicorn refused the block hook with status {status}")

    host = _Host(engine, files)
    engine.hook_add(unicorn.UC_HOOK_INTR, host.interrupt)
    stack, entry = struct.unpack("<II", engine.mem_read(board.vectors, 8))
    engine.reg_write(arm_const.UC_ARM_REG_SP, stack)
    try:
        engine.emu_start(entry | 1, MISSING)
    except unicorn.UcError as error:
        pc = engine.reg_read(arm_const.UC_ARM_REG_PC)
        raise EmulationError(f"{image.path.name} stopped at {pc:#x} in {_function(image, pc)}: {error}") from error
    if host.exit_code != 0 or FAULT in host.written:
        raise EmulationError(f"{image.path.name} ended with code {host.exit_code}")
    counts, cycles = (tuple(row[: counter.n_marks].tolist()) for row in at_mark)
    scaled = tuple(round(n * table.scale) for n in cycles) if table and not table.average else ()
    return Run(host.written, counts, f"unicorn {unicorn.__version__}", scaled)


class _Host:
    """The host side of semihosting, over bytes in memory."""

    def __init__(self, engine, files: Mapping[str, bytes]):
        from unicorn import arm_const as registers

        self.engine, self.registers = engine, registers
        self.files = dict(files)
        self.written: dict[str, bytes] = {}
        self.opened: list[tuple[str, int]] = []
        self.exit_code: int | None = None

    def interrupt(self, engine, number, user) -> None:
        r = self.registers
        operation, block, pc = (engine.reg_read(x) for x in (r.UC_ARM_REG_R0, r.UC_ARM_REG_R1, r.UC_ARM_REG_PC))
        if operation == EXIT_EXTENDED:
            self.exit_code = self.words(block, 2)[1]
            engine.emu_stop()
            return
        if bytes(engine.mem_read(pc, 2)) != b"\xab\xbe":
            engine.emu_stop()
            return
        engine.reg_write(r.UC_ARM_REG_R0, self.answer(operation, block) & 0xFFFFFFFF)
        engine.reg_write(r.UC_ARM_REG_PC, (pc + 2) | 1)

    def words(self, address: int, n: int) -> tuple[int, ...]:
        return struct.unpack(f"<{n}I", self.engine.mem_read(address, 4 * n))

    def answer(self, operation: int, block: int) -> int:
        if operation == OPEN:
            path, mode, length = self.words(block, 3)
            name = bytes(self.engine.mem_read(path, length)).decode()
            writing = mode >= 4
            if not writing and name not in self.files:
                return -1
            if writing:
                self.written[name] = b""
            self.opened.append((name, 0))
            return len(self.opened)
        if operation == READ:
            file, into, nbytes = self.words(block, 3)
            data = self.files[self.opened[file - 1][0]][:nbytes]
            self.engine.mem_write(into, data)
            return nbytes - len(data)
        if operation == WRITE:
            file, start, nbytes = self.words(block, 3)
            self.written[self.opened[file - 1][0]] += bytes(self.engine.mem_read(start, nbytes))
            return 0
        return 0 if operation == CLOSE else -1


def _regions(board: Emulator) -> list[tuple[int, int]]:
    """Memory to map, in whole pages: the vector table and code (one region where they touch), RAM, the system's registers."""
    page = 0x1000
    code = board.code & ~(page - 1), -(-(board.code + board.code_size) // page) * page
    regions = [(code[0], code[1] - code[0]), (board.ram, board.ram_size), SYSTEM]
    if not code[0] <= board.vectors < code[1]:
        regions.append((board.vectors & ~(page - 1), page))
    return regions


def _segments(path: Path) -> list[tuple[int, bytes]]:
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        return [(s["p_paddr"], s.data()) for s in ELFFile(file).iter_segments() if s["p_type"] == "PT_LOAD" and s["p_filesz"]]


def _text(path: Path) -> tuple[bytes, int]:
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".text")
        return section.data(), int(section["sh_addr"])


def _function(image: Image, address: int) -> str:
    """The function that `address` lies in."""
    for name, (start, nbytes) in image.symbols.items():
        if start & ~1 <= address < (start & ~1) + nbytes:
            return name
    return "no function"
