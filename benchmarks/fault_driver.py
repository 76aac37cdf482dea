"""One command of Neaptide in a process whose surroundings fail at a chosen moment: `fault_driver.py FAULT MOMENT COMMAND WORDS...`.

A script, run by its path, so that nothing of the checkout is on the path but the package. `benchmarks.environment_faults` starts it, with
the folders that it may break in the environment.
"""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Where each command is in the middle of its work, and where it begins to write what it found: module, what is called, and which call.
POINTS = {
    ("analyze", "middle"): ("neaptide.compiler.oracle_cache", "KernelCache.get", 1),
    ("analyze", "end"): ("neaptide.cli_outputs", "Outputs.write", 1),
    ("measure", "middle"): ("neaptide.targets.mcu.measure", "build", 1),
    ("measure", "end"): ("neaptide.cli_outputs", "Outputs.write", 1),
    ("search", "middle"): ("neaptide.search.study", "Study.finish", 3),
    ("search", "end"): ("neaptide.cli_search", "_write_network", 1),
    ("cost", "middle"): ("neaptide.targets.database", "CostDatabase.rows", 1),
    ("cost", "end"): ("neaptide.targets.cost_rows", "row_document", 1),
}


def place(name: str) -> Path:
    """The folder that the case gave this name."""
    return Path(os.environ[f"FAULT_{name.upper()}"])


def fill(folder: Path) -> None:
    """Leave no byte free on the disk of `folder`."""
    with (folder / "filling").open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(bytes(size)):
                    continue
            except OSError:
                continue


def onto(descriptor: int, path: str) -> None:
    """Let a standard stream end in `path`."""
    opened = os.open(path, os.O_WRONLY)
    os.dup2(opened, descriptor)
    os.close(opened)


def nobody_reads() -> None:
    """Standard output is a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def small_files() -> None:
    """No file grows past 4 KiB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def few_files() -> None:
    """As many files as are open now may be open, and three."""
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 3, used + 3))


def little_memory() -> None:
    """32 MiB more than now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + (32 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def clock_back() -> None:
    """The clock says 1970 from now on."""
    real, then = time.time, time.time()
    time.time = lambda: real() - then + 60.0


FAULTS: dict[str, Callable[[], Any]] = {
    "full output disk": lambda: fill(place("out")),
    "full cache disk": lambda: fill(place("cache")),
    "full data disk": lambda: fill(place("data")),
    "full temporary disk": lambda: fill(place("tmp")),
    "output folder removed": lambda: shutil.rmtree(place("out") / "here"),
    "cache folder removed": lambda: shutil.rmtree(place("cache") / "here", ignore_errors=True),
    "temporary folder removed": lambda: shutil.rmtree(place("tmp") / "here"),
    "working folder removed": lambda: os.rmdir(os.getcwd()),
    "stdout full": lambda: onto(1, "/dev/full"),
    "stdout closed": lambda: os.close(1),
    "stdout unread": nobody_reads,
    "stderr full": lambda: onto(2, "/dev/full"),
    "stderr closed": lambda: os.close(2),
    "stdin closed": lambda: os.close(0),
    "small files only": small_files,
    "few open files": few_files,
    "little memory": little_memory,
    "clock in 1970": clock_back,
}


def at(module: str, name: str, call: int, action: Callable[[], Any]) -> None:
    """Run `action` before the `call`-th call of what `name` is in `module`."""
    holder: Any = importlib.import_module(module)
    *outer, last = name.split(".")
    for part in outer:
        holder = getattr(holder, part)
    real, calls = getattr(holder, last), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            action()
        return real(*args, **kwargs)

    setattr(holder, last, counted)


def run(fault: str, moment: str, command: str, words: list[str]) -> int:
    """The command, with the fault."""
    action = FAULTS.get(fault, lambda: None)
    if moment == "before":
        action()
    else:
        at(*POINTS[command, moment], action)
    from neaptide.cli import main

    return main(words)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
