"""Compilers for firmware: ziglang from PyPI (the default), and arm gcc where it is installed.

Both take the core's flags from the target, the same C, and the same linker script; the linker's map of memory is the part's.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import sysconfig
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from ...compiler.cache_folder import user_folder, warn_once
from ...compiler.children import ProgramError, program, run, zig
from ...compiler.errors import BudgetError, MissingExtraError, NeaptideError
from ...compiler.scratch import once, scratch
from ..file_cache import FileCache
from ..spec import Target
from .firmware import FIRMWARE, EmulationError, Firmware, too_large_for_board

Compiler = Literal["zig", "gcc"]
GCC = "arm-none-eabi-gcc"
COMPILER_S = 600  # of processor time: far more than any group of operators takes
ZIG_CACHES = ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")
_OVERFLOW = re.compile(r"region [`']?(\w+)'?:? overflowed by (\d+) bytes")
_NO_ROOM = re.compile(r"[^\n]*(?:No space left|NoSpaceLeft|quota exceeded|DiskQuota|File too large|FileTooBig)[^\n]*")
PROCESSORS = os.cpu_count() or 1
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
    found: list[Compiler] = ["zig"] if zig() else []
    if program(GCC):
        found.append("gcc")
    return tuple(found)


@cache
def compiler_version(compiler: Compiler) -> str:
    """Name and version of a compiler that is present."""
    if compiler == "zig":
        return f"ziglang {version('ziglang')}"
    return f"{GCC} {run([_path(compiler), '-dumpfullversion']).output.strip()}"


def build(firmware: Firmware, target: Target, folder: Path, *, compiler: Compiler = "zig", cache: FileCache | None = None) -> Image:
    """Compile and link `firmware` for `target` in `folder`, which exists. Operators compiled before come from `cache` (None: the user's).

    Raises `MissingExtraError` when the compiler is absent, `BudgetError` when the linker finds that a section exceeds the part's
    memory, `BuildError` with the compiler's words for anything else.
    """
    if compiler not in compilers():
        if compiler == "zig":
            raise MissingExtraError("ziglang", "mcu", "building firmware")
        raise BuildError(
            "arm-none-eabi-gcc is not installed (Debian: gcc-arm-none-eabi libnewlib-arm-none-eabi); compiler='zig' needs only pip"
        )
    folder = folder.resolve()
    for name, content in firmware.files.items():
        path = folder / name
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
    (folder / "weights.S").write_text(
        '.section .weights, "a", %progbits\n.balign 16\n.global weights\n.type weights, %object\n'
        'weights:\n.incbin "weights.bin"\n.size weights, . - weights\n'
    )
    runtime = ("runtime", "mathematics") if compiler == "zig" else ("runtime",)
    parts = {**firmware.operators, **{name: (FIRMWARE / f"{name}.c").read_text() for name in runtime}}
    objects = _objects(parts, firmware, target, folder, compiler, FileCache() if cache is None else cache)
    elf = folder / "firmware.elf"
    command = [*_compile(target, compiler), "-I", str(folder), str(folder / "main.c"), str(folder / "weights.S"), *map(str, objects)]
    command += ["-Wl,--gc-sections", "-T", str(folder / "link.ld"), "-o", str(elf)]
    if compiler == "zig":
        command += ["-nostdlib", "-lcompiler_rt", "-Wl,--entry=Reset_Handler"]
    else:
        command += ["-nostartfiles", "--specs=nosys.specs", "-Wl,--no-warn-rwx-segments", "-lm"]
    _run(command, elf, firmware, target)
    return read_image(elf, compiler_version(compiler))


def _compile(target: Target, compiler: Compiler) -> list[str]:
    """The compiler with all that decides its code."""
    if compiler == "zig":
        command = [_path(compiler), "cc", *target.compilers.zig, "-fno-stack-protector", "-fno-sanitize=all"]
    else:
        command = [_path(compiler), *target.compilers.gcc]
    return [*command, *FLAGS, "-I", str(FIRMWARE)]


def _path(compiler: Compiler) -> str:
    """Where a compiler lies; `build` has made sure that it is there."""
    found = zig() if compiler == "zig" else program(GCC)
    if found is None:
        raise BuildError(f"the compiler {compiler} is gone; install it again")
    return found


def _objects(
    parts: Mapping[str, str | bytes], firmware: Firmware, target: Target, folder: Path, compiler: Compiler, cache: FileCache
) -> list[Path]:
    """Object files in `folder` that hold all parts: given, kept from an earlier build, or compiled now.

    A compiler takes longer to start than to compile an operator, so they are compiled together, as many groups as processors. An
    operator that two groups hold is weak in both, and the linker takes one.
    """
    flags = target.compilers.zig if compiler == "zig" else target.compilers.gcc
    headers = "".join(path.read_text() for path in sorted(FIRMWARE.glob("*.h")))
    common = "\0".join((compiler_version(compiler), *flags, *FLAGS, headers))
    objects: dict[str, bytes] = {}
    missing: list[str] = []
    for name, content in parts.items():
        if isinstance(content, bytes):
            objects[name] = content
            continue
        (folder / f"{name}.c").write_text(content)
        group = cache.get(f"{common}\0{content}")
        known = None if group is None else cache.get(group.decode())
        if group is None or known is None:
            missing.append(name)
        else:
            objects[group.decode()] = known

    def compiled(names: Sequence[str]) -> bytes:
        texts = [parts[name] for name in names]
        group = hashlib.sha256("\0".join((common, *map(str, texts))).encode()).hexdigest()
        source = folder / f"group_{group[:16]}.c"
        source.write_text("".join(f'#include "{name}.c"\n' for name in names))
        made = source.with_suffix(".o")
        _run([*_compile(target, compiler), "-c", str(source), "-o", str(made)], made, firmware, target)
        cache.put(group, made.read_bytes())
        for text in texts:
            cache.put(f"{common}\0{text}", group.encode())
        return made.read_bytes()

    alone = [name for name in missing if name in firmware.operators]
    groups = [group for i in range(PROCESSORS) if (group := alone[i::PROCESSORS])]
    groups += [[name] for name in missing if name not in firmware.operators]
    with ThreadPoolExecutor(PROCESSORS) as pool:
        objects.update((group[0], made) for group, made in zip(groups, pool.map(compiled, groups), strict=True))
    paths = [folder / f"{name[:120]}.o" for name in objects]
    for path, content in zip(paths, objects.values(), strict=True):
        path.write_bytes(content)
    return paths


def _run(command: Sequence[str], made: Path, firmware: Firmware, target: Target) -> None:
    """Run a compiler that writes `made`."""
    try:
        _compiled(command, made)
        return
    except ProgramError as error:
        failed = error
    said = failed.said.strip()
    full = next((found for line in said.splitlines() if (found := _OVERFLOW.search(line))), None)
    if full:
        region, over = full[1], int(full[2])
        board = target.emulator
        if region == "FLASH" and board and target.flash and board.code_size < target.flash and board.code_size + over <= target.flash:
            raise EmulationError(too_large_for_board(target.name, target, f"code and weights take at least {over:,} B too many"))
        raise BudgetError(
            f"the firmware does not fit {target.name} (arena {firmware.plan.arena:,} B, SRAM {target.sram:,} B, "
            f"flash {target.flash:,} B): {region} overflowed by at least {over:,} B in linking"
        )
    if room := _NO_ROOM.search(said):
        raise BuildError(f"{Path(command[0]).name} found no room to build for {target.name} ({room[0]}); free space there, or set TMPDIR")
    raise BuildError(f"building generated firmware for {target.name} failed: {failed}") from failed


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


def host_library(source: Path, cache: FileCache | None = None) -> ctypes.CDLL:
    """`source` (C) compiled for this machine and loaded; compiled before, it comes from `cache` (None: the user's)."""
    known = FileCache() if cache is None else cache
    key = f"{sysconfig.get_platform()} {version('ziglang')} {source.name}\0{source.read_text()}"
    content = known.get(key)
    with scratch() as folder:  # once loaded, a library needs no file
        library = folder / f"{source.stem}.so"
        if content is None:
            with once(f"{source.stem}.lock"):
                content = known.get(key)
                if content is None:
                    _build_for_host(source, library)
                    content = library.read_bytes()
                    known.put(key, content)
        library.write_bytes(content)
        return ctypes.CDLL(str(library))


def _build_for_host(source: Path, library: Path) -> None:
    compiler = zig()
    if compiler is None:
        raise MissingExtraError("ziglang", "mcu", "running firmware")
    try:
        _compiled([compiler, "cc", "-O2", "-shared", "-fPIC", str(source.resolve()), "-o", str(library)], library)
    except ProgramError as error:
        raise BuildError(f"building {source.name} for this machine failed: {error}") from error


def _compiled(command: Sequence[str], made: Path) -> None:
    """Run a compiler that writes `made`. Where zig fails it is asked again with an empty cache: the one that it shares may be full,
    damaged or nowhere.
    """
    if command[0] != zig():
        run(command, folder=made.parent, made=made, limit_s=COMPILER_S)
        return
    failed: ProgramError | OSError
    try:
        _zig(command, made, _zig_cache())
        return
    except (ProgramError, OSError) as error:
        if isinstance(error, ProgramError) and _OVERFLOW.search(error.said):
            raise
        failed = error
    with scratch() as fresh:
        try:
            _zig(command, made, fresh)
        except ProgramError as error:
            raise failed if isinstance(failed, ProgramError) else error from None
    reason = " ".join(failed.said.split())[:200] if isinstance(failed, ProgramError) else failed.strerror
    warn_once(
        "zig's cache", f"zig works without its cache only ({reason}): remove that, or set ZIG_GLOBAL_CACHE_DIR to a folder to write in"
    )


def _zig(command: Sequence[str], made: Path, cache: Path) -> None:
    run(command, folder=made.parent, made=made, limit_s=COMPILER_S, variables={name: str(cache) for name in ZIG_CACHES})


def _zig_cache() -> Path:
    """The folder that zig shares among all that it compiles for this user. Raises `OSError` where it cannot be written to: zig itself
    would try to make it for ever.
    """
    named = os.environ.get(ZIG_CACHES[0])
    folder = Path(named).absolute() if named else user_folder("cache", "zig")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, "no permission to write in it", str(folder))
    return folder
