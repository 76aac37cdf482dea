"""Cycles: the class of every instruction that networks execute, the table of a target, and that an estimate is called one."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from neaptide.compiler.errors import FormatError
from neaptide.targets.cycles import CycleTable
from neaptide.targets.spec import list_targets, load_target

absent = [name for name in ("tvm", "ziglang", "unicorn", "elftools") if importlib.util.find_spec(name) is None]
firmware = pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} not installed: pip install 'neaptide[mcu]'")

# Distinct numbers, so that no class can stand for another.
TABLE = CycleTable("a test", 20, 30, 100, 7, 40, 50, 60, 70, 80, 90, 11)
INSTRUCTIONS = {
    "nop": 1, "adds r0, r1, r2": 1, "add.w r0, r1, r2, lsl #2": 1, "muls r0, r1, r0": 1, "mul r8, r9, r10": 1, "movw r0, #1234": 1,
    "ldr r0, [r1, #4]": 20, "ldr r0, [r1, r2]": 20, "ldr r0, [sp, #8]": 20, "strb r0, [r1]": 20, "ldrh r0, [r1, #2]": 20,
    "ldr.w r8, [r1, #256]": 20, "str r0, [r1, #-4]": 20, "ldrsb.w r8, [r1, r2]": 20, "ldr r0, [r1]\n ldr r2, [r3]": 50,
    "ldrd r0, r1, [r2, #8]": 102, "push {r4, r5, lr}": 103, "pop {r4, r5}": 102, "stmdb sp!, {r4, r8, r9, lr}": 104,
    "ldm r0!, {r1, r2, r3}": 103, "mla r0, r1, r2, r3": 40, "mls r0, r1, r2, r3": 40, "smull r0, r1, r2, r3": 50,
    "umlal r0, r1, r2, r3": 50, "sdiv r0, r1, r2": 60, "udiv r8, r9, r10": 60, "vldr s0, [r0, #4]": 70, "vstr s1, [sp]": 70,
    "vldr d0, [r0]": 71, "vldmia r0!, {s0, s1, s2}": 103, "vpush {d8, d9}": 104, "vmla.f32 s0, s1, s2": 80, "vfma.f32 s0, s1, s2": 80,
    "vfms.f32 s30, s31, s29": 80, "vfnma.f32 s0, s1, s2": 80, "vdiv.f32 s0, s1, s2": 90, "vsqrt.f32 s0, s1": 90, "vadd.f32 s0, s1, s2": 1,
    "vmul.f32 s0, s1, s2": 1, "vcmp.f32 s0, s1": 1, "vmov.f32 s0, #1.0": 1, "vmov s0, r0": 1, "vmov r0, r1, d0": 11,
    "vmrs APSR_nzcv, fpscr": 1, "vcvt.f32.s32 s0, s1": 1, "ldr r0, [r1]\n nop\n ldr r2, [r3]": 41,
}  # fmt: skip


@firmware
def test_every_class_of_instruction(tmp_path):
    from elftools.elf.elffile import ELFFile

    from neaptide.targets.mcu.firmware import FIRMWARE
    from neaptide.targets.mcu.toolchain import host_library, read_image
    from neaptide.targets.mcu.unicorn_run import _Counter

    lines = [f".balign 4\n.global i{n}\ni{n}:\n {text}\n.global e{n}\ne{n}:" for n, text in enumerate(INSTRUCTIONS)]
    (tmp_path / "all.s").write_text(".syntax unified\n.thumb\n.text\n" + "\n".join(lines) + "\n")
    flags = load_target("cortex-m4f").compilers.zig
    command = [sys.executable, "-m", "ziglang", "cc", *flags, "-c", str(tmp_path / "all.s"), "-o", str(tmp_path / "all.o")]
    subprocess.run(command, check=True)
    with (tmp_path / "all.o").open("rb") as file:
        (code,) = [section.data() for section in ELFFile(file).iter_sections() if section.name == ".text"]
        at = {name: address & ~1 for name, (address, _) in read_image(tmp_path / "all.o", "").symbols.items()}
    library = host_library(FIRMWARE / "count_blocks.c")
    library.count_block.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)
    blocks = (ctypes.c_uint32 * (2 * len(code)))()
    counter = _Counter(code=code, size=len(code), mark_address=1 << 40, blocks=ctypes.addressof(blocks))
    counter.costs[:] = TABLE.classes()
    found = {}
    for n, text in enumerate(INSTRUCTIONS):
        counter.expected, before = at[f"i{n}"], counter.cycles
        library.count_block(None, at[f"i{n}"], at[f"e{n}"] - at[f"i{n}"], ctypes.byref(counter))
        found[text] = counter.cycles - before
    assert found == INSTRUCTIONS
    assert counter.executed == sum(text.count("\n") + 1 for text in INSTRUCTIONS)
    before = counter.cycles
    library.count_block(None, at["i0"], 2, ctypes.byref(counter))
    assert counter.cycles - before == TABLE.refill + 1


@firmware
def test_a_measurement_says_that_cycles_are_estimated():
    from rich.console import Console

    from neaptide.report.measurement import measurement_view
    from neaptide.targets.mcu.measure import measure_mcu

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8)
    core, part = (measure_mcu(model, (x,), target=target) for target in ("cortex-m4f", "stm32f446"))
    assert core.instructions is not None and core.cycles is not None and core.instructions < core.cycles < 3 * core.instructions
    assert core.estimated_seconds is None and part.cycles == core.cycles
    assert part.estimated_seconds == core.cycles / 180e6
    table = load_target("stm32f446")
    assert table.cycles is not None
    slow = replace(table, name="slow", cycles=replace(table.cycles, scale=2.0))
    assert measure_mcu(model, (x,), target=slow).cycles == pytest.approx(2 * core.cycles, abs=4)
    unknown = replace(table, name="unknown", cycles=None)
    assert measure_mcu(model, (x,), target=unknown).cycles is None
    console = Console(width=120)
    with console.capture() as shown:
        console.print(measurement_view(part))
    text = " ".join(shown.get().split())
    assert f"about {part.cycles:,}: an estimate from the target's table, not measured" in text and "an estimate from those cycles" in text


def test_every_core_has_a_table_with_its_source(tmp_path):
    for target in list_targets():
        if target.kind == "mcu":
            assert target.cycles is not None and len(target.cycles.source) > 20
            assert target.to_dict()["cycles"]["source"] == target.cycles.source
    path = tmp_path / "board.toml"
    path.write_text('extends = "cortex-m4f"\ntitle = "t"\nsource = "s"\n[cycles]\nsource = "measured on the board"\naverage = 1.7\n')
    assert load_target(path).cycles == CycleTable("measured on the board", average=1.7)
    for wrong, line in (("average = 1.7", 4), ('source = "s"\naverage = 0', 6), ('source = "s"\ncolour = 1', 6)):
        path.write_text(f'extends = "cortex-m4f"\ntitle = "t"\nsource = "s"\n[cycles]\n{wrong}\n')
        with pytest.raises(FormatError, match=rf"board\.toml:{line}"):
            load_target(path)
