"""What a device is: frozen specs read from TOML, the built-in ones in `devices/` or a user's own by path.

A part names the core it is built on with `extends` and adds its own memories and clock; everything it does not say comes from there.
Sizes are bytes or text such as "320 KiB", clocks are hertz or text such as "216 MHz". A file that says something unknown or
impossible is refused with its name and line.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from ..compiler.errors import SourceError
from .cycles import CycleTable, read_cycles
from .spec_file import SpecFile, amount, integer, machine_flags, text, tvm_target, word

DEVICES = Path(__file__).parent / "devices"
KINDS = ("cpu", "gpu", "mcu")
ADDRESSES = 1 << 32
Kind = Literal["cpu", "gpu", "mcu"]


@dataclass(frozen=True, slots=True)
class Emulator:
    """The board that stands for a microcontroller: QEMU's machine, Unicorn's model of the core ("" where it has none), and the
    board's memory map. `vectors`: address of the vector table; `code`, `ram`: origins; sizes in bytes.
    """

    machine: str
    unicorn: str
    vectors: int
    code: int
    code_size: int
    ram: int
    ram_size: int


@dataclass(frozen=True, slots=True)
class Compilers:
    """What each compiler has to be told about the core: arguments for arm gcc and for `python -m ziglang cc`."""

    gcc: tuple[str, ...] = ()
    zig: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Roofline:
    """Peaks of a device for bounds: single-precision FLOP/s, bytes/s of its memory, and what one GPU block may use.

    `processors`: streaming multiprocessors; `shared_memory`, `shared_memory_block`: bytes per multiprocessor and per block;
    `registers`: 32-bit registers per multiprocessor.
    """

    flops: float
    bandwidth: float
    processors: int = 0
    shared_memory: int = 0
    shared_memory_block: int = 0
    registers: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """One device. `sram`, `flash`: bytes that a program may use (a GPU: `sram` is its device memory), None where nothing limits it;
    `clock_hz`: highest clock; `cycles`: what its instructions are estimated to take; `tvm`: TVM's target as a mapping; `source`: where
    the numbers come from; `path`: the file read.
    """

    name: str
    kind: Kind
    title: str
    core: str
    source: str
    sram: int | None = None
    flash: int | None = None
    clock_hz: int | None = None
    tvm: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    compilers: Compilers = field(default_factory=Compilers)
    emulator: Emulator | None = None
    roofline: Roofline | None = None
    cycles: CycleTable | None = None
    path: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, ({f.name: getattr(self, f.name) for f in fields(self)} | {"tvm": dict(self.tvm)},)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON values."""
        emulator, roofline = self.emulator, self.roofline
        return {
            "name": self.name,
            "kind": self.kind,
            "title": self.title,
            "core": self.core,
            "sram": self.sram,
            "flash": self.flash,
            "clock_hz": self.clock_hz,
            "source": self.source,
            "tvm": dict(self.tvm),
            "gcc": list(self.compilers.gcc),
            "zig": list(self.compilers.zig),
            "emulator": {name: getattr(emulator, name) for name in Emulator.__slots__} if emulator else None,
            "cycles": {name: getattr(self.cycles, name) for name in CycleTable.__slots__} if self.cycles else None,
            "roofline": {name: getattr(roofline, name) for name in Roofline.__slots__} if roofline else None,
        }


def _restored(values: dict[str, Any]) -> Target:
    return Target(**{**values, "tvm": MappingProxyType(values["tvm"])})


def load_target(name: str | os.PathLike[str]) -> Target:
    """The target called `name`, or the one in a TOML file when `name` ends in `.toml`.

    Raises `SourceError` when there is no such target or file, `FormatError` naming file and line when the file is wrong.
    """
    given = os.fspath(name)
    if given.endswith(".toml"):
        path = Path(given)
        if not path.is_file():
            raise SourceError(f"target file {given!r} does not exist; `neaptide targets` lists the built-in targets")
        return _read(path)
    names = target_names()
    if given.lower() not in names:
        near = difflib.get_close_matches(given.lower(), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "`neaptide targets` lists them; a file ends in .toml"
        raise SourceError(f"there is no target {given!r}: {hint}")
    return _built_in(given.lower())


def list_targets() -> tuple[Target, ...]:
    """The built-in targets: CPUs, GPUs, cores, then parts, by name within each."""
    order = {"cpu": 0, "gpu": 1, "mcu": 2}
    return tuple(sorted(map(_built_in, target_names()), key=lambda t: (order[t.kind], t.name != t.core, t.name)))


def target_names() -> tuple[str, ...]:
    """Names of the built-in targets, ascending."""
    return tuple(sorted(path.stem for path in DEVICES.glob("*.toml")))


@cache
def _built_in(name: str) -> Target:
    return _read(DEVICES / f"{name}.toml")


def _read(path: Path, *, below: tuple[Path, ...] = ()) -> Target:
    """The target in `path`. `below`: the files that extend it, to refuse a circle."""
    file = SpecFile(path)
    tables = {"memory", "tvm", "compilers", "emulator", "roofline", "cycles"}
    allowed = {"extends", "name", "kind", "title", "core", "source", "clock", *tables}
    root = file.table((), allowed)
    base = _base(file, root.take("extends", text, None), (*below, path.resolve()))
    kind = root.take("kind", text, base.kind if base else None, required=True)
    if kind not in KINDS:
        raise root.error("kind", f"{kind!r} is no kind of target; one of {', '.join(KINDS)}")
    memory = file.table(("memory",), {"sram", "flash"})
    target = Target(
        name=root.take("name", text, path.stem),
        kind=kind,
        title=root.take("title", text, None, required=True),
        core=root.take("core", text, base.core if base else path.stem),
        source=root.take("source", text, None, required=True),
        sram=memory.take("sram", amount, base.sram if base else None),
        flash=memory.take("flash", amount, base.flash if base else None),
        clock_hz=root.take("clock", amount, base.clock_hz if base else None),
        tvm=MappingProxyType({**(base.tvm if base else {}), **root.take("tvm", tvm_target, {})}),
        compilers=_compilers(file, base.compilers if base else Compilers()),
        emulator=_emulator(file, base.emulator if base else None),
        roofline=_roofline(file, base.roofline if base else None),
        cycles=read_cycles(file, base.cycles if base else None),
        path=str(path),
    )
    if kind == "mcu" and (target.sram is None or target.flash is None):
        missing = "sram" if target.sram is None else "flash"
        raise memory.error(missing, f'a microcontroller needs memory.{missing}, such as {missing} = "256 KiB"')
    if target.emulator and target.sram and target.sram > target.emulator.ram_size:
        raise memory.error("sram", f"{target.sram:,} B is more than the {target.emulator.ram_size:,} B of the board that emulates it")
    if target.tvm and "kind" not in target.tvm:
        raise file.table(("tvm",), None).error("kind", 'a TVM target needs its kind, such as kind = "llvm"')
    return target


def _base(file: SpecFile, name: str | None, below: tuple[Path, ...]) -> Target | None:
    """What a spec extends: a built-in target, or a file beside it."""
    if name is None:
        return None
    root = file.table((), None)
    path = file.path.parent / name if name.endswith(".toml") else DEVICES / f"{name}.toml"
    if not path.is_file():
        near = difflib.get_close_matches(name, target_names(), n=1)
        raise root.error("extends", f"there is no target {name!r} to extend" + (f"; did you mean {near[0]!r}?" if near else ""))
    if path.resolve() in below:
        raise root.error("extends", f"{name!r} extends itself")
    return _read(path, below=below)


def _compilers(file: SpecFile, base: Compilers) -> Compilers:
    table = file.table(("compilers",), {"gcc", "zig"})
    return replace(base, gcc=table.take("gcc", machine_flags, base.gcc), zig=table.take("zig", machine_flags, base.zig))


def _emulator(file: SpecFile, base: Emulator | None) -> Emulator | None:
    table = file.table(("emulator",), set(Emulator.__slots__))
    if not table.values:
        return base
    readers = dict.fromkeys(Emulator.__slots__, amount) | {
        "machine": word,
        "unicorn": word,
        "vectors": integer,
        "code": integer,
        "ram": integer,
    }
    fields = {name: table.take(name, read, getattr(base, name) if base else None, required=True) for name, read in readers.items()}
    board = Emulator(**fields)
    for origin, size in (("code", board.code_size), ("ram", board.ram_size)):
        start = getattr(board, origin)
        if start % 4 or start + size > ADDRESSES:
            raise table.error(origin, f"{size:,} B from {start:#x} is not a word-aligned range of a 32-bit address space")
    return board


def _roofline(file: SpecFile, base: Roofline | None) -> Roofline | None:
    table = file.table(("roofline",), set(Roofline.__slots__))
    if not table.values:
        return base
    required = {"flops", "bandwidth"}
    fields = {
        name: table.take(name, amount, getattr(base, name) if base else (None if name in required else 0), required=name in required)
        for name in Roofline.__slots__
    }
    return Roofline(**fields)
