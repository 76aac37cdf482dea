"""Compilers for firmware: ziglang from PyPI (the default), and arm gcc where it is installed.

Both take the core's flags from the target, the same C, and the same linker script; the linker's map of memory is the part's.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from ...compiler.errors import BudgetError, MissingExtraError, NeaptideError
from ..spec import Target
from .firmware import FIRMWARE, Firmware

Compiler = Literal["zig", "gcc"]
FLAGS = ("-O3", "-std=gnu11", "-ffunction-sections", "-fdata-sections", "-fno-math-errno", "-ffp-contract=fast", "-w")


class BuildError(NeaptideError):
    """A compiler refused generated sources: the message holds what it said."""


@dataclass(frozen=True)
class Image:
    """A linked firmware: `path` of the ELF, its `sections` (bytes by name), `symbols` (address, bytes), and what built it."""

    path: Path
    sections: dict[str, int]
    symbols: dict[str, tuple[int, int]]
    compiler: str

    @property
    def flash(self) -> dict[str, int]:
        """Bytes of flash by section: vectors, text, rodata, weights, data."""
        names = (".vectors", ".text", ".rodata", ".weights", ".data", ".ARM.exidx", ".ARM.extab")
        return {name.lstrip("."): self.sections[name] for name in names if self.sections.get(name)}

    @property
    def arena(self) -> int:
        """Bytes of the array `arena`."""
        return self.symbols["arena"][1]


def compilers() -> tuple[Compiler, ...]:
    """The compilers that this machine has, the default first."""
    found: list[Compiler] = ["zig"] if importlib.util.find_spec("ziglang") else []
    if shutil.which("arm-none-eabi-gcc"):
        found.append("gcc")
    return tuple(found)


@cache
def compiler_version(compiler: Compiler) -> str:
    """Name and version of a compiler that is present."""
    if compiler == "zig":
        return f"ziglang {version('ziglang')}"
    said = subprocess.run(["arm-none-eabi-gcc", "-dumpfullversion"], capture_output=True, text=True, check=True)
    return f"arm-none-eabi-gcc {said.stdout.strip()}"


def build(firmware: Firmware, target: Target, folder: Path, *, compiler: Compiler = "zig") -> Image:
    """Compile and link `firmware` for `target` in `folder`, which exists.

    Raises `MissingExtraError` when the compiler is absent, `BudgetError` when the linker finds that a section exceeds the part's
    memory, `BuildError` with the compiler's words for anything else.
    """
    if compiler not in compilers():
        if compiler == "zig":
            raise MissingExtraError("ziglang", "mcu", "building firmware")
        raise BuildError(
            "arm-none-eabi-gcc is not installed (Debian: gcc-arm-none-eabi libnewlib-arm-none-eabi); compiler='zig' needs only pip"
        )
    for name, content in firmware.files.items():
        path = folder / name
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
    weights = (folder / "weights.bin").resolve()
    (folder / "weights.S").write_text(
        '.section .weights, "a", %progbits\n.balign 16\n.global weights\n.type weights, %object\n'
        f'weights:\n.incbin "{weights}"\n.size weights, . - weights\n'
    )
    elf = folder / "firmware.elf"
    sources = [folder / "main.c", folder / "operators.c", folder / "weights.S", FIRMWARE / "runtime.c"]
    if compiler == "zig":
        flags = [
            *target.compilers.zig,
            "-fno-stack-protector",
            "-fno-sanitize=all",
            "-nostdlib",
            "-lcompiler_rt",
            "-Wl,--entry=Reset_Handler",
        ]
        command = [sys.executable, "-m", "ziglang", "cc", *flags]
        sources.append(FIRMWARE / "mathematics.c")
    else:
        command = ["arm-none-eabi-gcc", *target.compilers.gcc, "-nostartfiles", "--specs=nosys.specs", "-Wl,--no-warn-rwx-segments"]
    arguments = [*FLAGS, "-I", str(FIRMWARE), *map(str, sources), "-Wl,--gc-sections", "-T", str(folder / "link.ld"), "-o", str(elf)]
    _run([*command, *arguments, *(["-lm"] if compiler == "gcc" else [])], firmware, target)
    return read_image(elf, compiler_version(compiler))


def _run(command: Sequence[str], firmware: Firmware, target: Target) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.returncode:
        return
    said = done.stderr.strip()
    full = [line for line in said.splitlines() if "overflowed by" in line or "will not fit in region" in line]
    if full:
        raise BudgetError(
            f"the firmware does not fit {target.name} (arena {firmware.plan.arena:,} B, SRAM {target.sram:,} B, "
            f"flash {target.flash:,} B): {full[0].strip()}"
        )
    raise BuildError(f"{command[0]} failed on generated firmware for {target.name}:\n{said[-3000:]}")


def read_image(path: Path, compiler: str) -> Image:
    """Sections and symbols of an ELF file."""
    try:
        from elftools.elf.elffile import ELFFile
    except ImportError as error:
        raise MissingExtraError("pyelftools", "mcu", "reading firmware") from error
    with path.open("rb") as file:
        elf = ELFFile(file)
        sections = {s.name: int(s["sh_size"]) for s in elf.iter_sections() if s["sh_flags"] & 2}
        table = elf.get_section_by_name(".symtab")
        symbols = {s.name: (int(s["st_value"]), int(s["st_size"])) for s in table.iter_symbols() if s.name}
    return Image(path, sections, symbols, compiler)


def host_library(source: Path, folder: Path) -> Path:
    """`source` (C) compiled for this machine as a shared library in `folder`, once; safe when several processes do it at a time."""
    name = f"{source.stem}-{sysconfig.get_platform()}-{version('ziglang')}-{int(source.stat().st_mtime)}.so"
    library = folder / name
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{name}.{os.getpid()}"
        command = [sys.executable, "-m", "ziglang", "cc", "-O2", "-shared", "-fPIC", str(source), "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BuildError(f"ziglang failed on {source.name} for this machine:\n{done.stderr[-2000:]}")
        partial.replace(library)
    return library
