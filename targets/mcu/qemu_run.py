"""Firmware in QEMU: the cores that Unicorn lacks, and a second opinion on the others.

Virtual time advances with instructions (`-icount shift=0`: one nanosecond each), and the firmware reads it through SysTick at
every mark; a count is exact to one tick's instructions, some tens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

import numpy as np

from ...compiler.children import ProgramError, program, run
from ...compiler.scratch import scratch
from ..spec import Target
from .firmware import FAULT, MARKS, EmulationError
from .toolchain import Image
from .unicorn_run import Run

TICKS = 1 << 24  # SysTick counts down through 24 bits
CLOCK_HZ = {"mps2-an385": 25e6, "mps2-an386": 25e6, "mps2-an500": 25e6, "mps2-an505": 20e6, "mps3-an547": 32e6}
QEMU = "qemu-system-arm"
SECONDS = 600  # of processor time


def has_qemu() -> bool:
    """True where `qemu-system-arm` is on the path."""
    return program(QEMU) is not None


@cache
def qemu_version() -> str:
    """Name and version of the QEMU that is present."""
    path = _path()
    found = re.search(r"version (\S+)", run([path, "--version"]).output)
    if found is None:
        raise EmulationError(f"{path} names no version when asked for --version; is it QEMU?")
    return f"qemu {found.group(1)}"


def _path() -> str:
    found = program(QEMU)
    if found is None:
        raise EmulationError(f"{QEMU} is not installed (Debian: {QEMU}); Unicorn runs every core but M55")
    return found


def instructions_per_tick(target: Target) -> float:
    """Instructions between two ticks of the board's SysTick: 1 ns each."""
    board = target.emulator
    if board is None or board.machine not in CLOCK_HZ:
        known = ", ".join(CLOCK_HZ)
        raise EmulationError(f"target {target.name} names no QEMU machine whose clock is known ({known})")
    return 1e9 / CLOCK_HZ[board.machine]


def run_qemu(image: Image, target: Target, files: Mapping[str, bytes]) -> Run:
    """Run `image` to its end in a folder of its own that holds `files`.

    Raises `EmulationError` when QEMU is absent, the program faults, or takes over ten minutes of processor time.
    """
    path = _path()
    per_tick = instructions_per_tick(target)
    board = target.emulator
    assert board is not None  # instructions_per_tick has refused such targets
    command = [path, "-M", board.machine, "-nographic", "-monitor", "none", "-serial", "none", "-icount", "shift=0"]
    command += ["-semihosting-config", "enable=on,target=native", "-kernel", str(image.path.resolve())]
    with scratch() as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        try:
            run(command, folder=folder, made=folder / MARKS, limit_s=SECONDS)
            failed = None
        except ProgramError as error:
            failed = error
        written = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in files}
    if failed is not None:
        if failed.out_of_time:
            raise EmulationError(f"{image.path.name} took over {SECONDS} s in QEMU's {board.machine}") from failed
        cause = f" (fault status {int.from_bytes(written[FAULT], 'little'):#x})" if FAULT in written else ""
        raise EmulationError(f"{image.path.name} failed in QEMU's {board.machine}{cause}: {failed}") from failed
    ticks = np.frombuffer(written[MARKS], np.uint32).astype(np.int64)
    elapsed = np.concatenate([[0], np.cumsum((ticks[:-1] - ticks[1:]) % TICKS)])
    return Run(written, tuple(round(float(t) * per_tick) for t in elapsed), qemu_version())
