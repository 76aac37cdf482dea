"""Firmware in QEMU: the cores that Unicorn lacks, and a second opinion on the others.

Virtual time advances with instructions (`-icount shift=0`: one nanosecond each), and the firmware reads it through SysTick at
every mark; a count is exact to one tick's instructions, some tens.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from ..spec import Target
from .firmware import FAULT, MARKS, EmulationError
from .toolchain import Image
from .unicorn_run import Run

TICKS = 1 << 24  # SysTick counts down through 24 bits
CLOCK_HZ = {"mps2-an385": 25e6, "mps2-an386": 25e6, "mps2-an500": 25e6, "mps2-an505": 20e6, "mps3-an547": 32e6}
SECONDS = 600


def has_qemu() -> bool:
    """True where `qemu-system-arm` is on the path."""
    return shutil.which("qemu-system-arm") is not None


@cache
def qemu_version() -> str:
    """Name and version of the QEMU that is present."""
    said = subprocess.run(["qemu-system-arm", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\S+)", said)
    return f"qemu {found.group(1) if found else 'of unknown version'}"


def instructions_per_tick(target: Target) -> float:
    """Instructions between two ticks of the board's SysTick: 1 ns each."""
    board = target.emulator
    if board is None or board.machine not in CLOCK_HZ:
        known = ", ".join(CLOCK_HZ)
        raise EmulationError(f"target {target.name} names no QEMU machine whose clock is known ({known})")
    return 1e9 / CLOCK_HZ[board.machine]


def run_qemu(image: Image, target: Target, files: Mapping[str, bytes]) -> Run:
    """Run `image` to its end in a folder of its own that holds `files`.

    Raises `EmulationError` when QEMU is absent, the program faults, or takes over ten minutes.
    """
    if not has_qemu():
        raise EmulationError("qemu-system-arm is not installed (Debian: qemu-system-arm); Unicorn runs every core but M55")
    per_tick = instructions_per_tick(target)
    board = target.emulator
    assert board is not None  # instructions_per_tick has refused such targets
    command = ["qemu-system-arm", "-M", board.machine, "-nographic", "-monitor", "none", "-serial", "none", "-icount", "shift=0"]
    command += ["-semihosting-config", "enable=on,target=native", "-kernel", str(image.path.resolve())]
    with tempfile.TemporaryDirectory(prefix="neaptide-qemu-") as scratch:
        folder = Path(scratch)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired as error:
            raise EmulationError(f"{image.path.name} ran over {SECONDS} s in QEMU's {board.machine}") from error
        written = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in files}
    if done.returncode or MARKS not in written:
        cause = f", fault status {int.from_bytes(written[FAULT], 'little'):#x}" if FAULT in written else ""
        said = done.stderr.strip()[-500:]
        raise EmulationError(f"{image.path.name} ended with code {done.returncode}{cause} in QEMU's {board.machine}: {said}")
    ticks = np.frombuffer(written[MARKS], np.uint32).astype(np.int64)
    elapsed = np.concatenate([[0], np.cumsum((ticks[:-1] - ticks[1:]) % TICKS)])
    return Run(written, tuple(round(float(t) * per_tick) for t in elapsed), qemu_version())
