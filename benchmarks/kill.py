"""Commands killed with SIGKILL at random moments, and many first starts at once on a machine that is busy.

`python -m benchmarks.kill [--kills 50] [--starts 4,10] [--json PATH]`. Kills are spread over three commands: `measure` on a
microcontroller, which compiles, `measure` on this CPU, which writes a row for each operator, and `search` that trains in two
processes. `benchmarks.search_kill` looks closer at what a search keeps. After each kill no process of the run may be left 5 s later and no
row that was written may be gone; a run left alone at the end must give what the first one gave, and leave no temporary folder of any run.

First starts share a folder of caches that is empty, numba's and zig's included, while two loops keep the processors busy.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure, finish

MARK = "NEAPTIDE_KILL_RUN"
GRACE_S = 5.0
COMMAND = "import sys; from neaptide.cli import main; sys.exit(main(sys.argv[1:]))"
Rows = set[tuple[Any, ...]]


@dataclass(frozen=True)
class Command:
    """One command to kill. `words`: of the command line. `rows`: what is kept under a folder now. `result`: of its JSON, what is the same
    each time. `fresh`: whether its caches are emptied before each kill, so that it has to compile again.
    """

    name: str
    words: tuple[str, ...]
    rows: Callable[[Path], Rows]
    result: Callable[[dict[str, Any]], Any]
    fresh: bool = False


@dataclass
class Found:
    """What kills of one command did: how many met it running, processes left after 5 s, rows lost, seconds to the last process's end;
    temporary folders left by kills and after the run at the end; whether that run gave what the first one gave.
    """

    name: str
    kills: int = 0
    left: int = 0
    lost: int = 0
    slowest: float = 0.0
    folders: int = 0
    unswept: int = 0
    same: bool = False

    @property
    def good(self) -> bool:
        """Nothing left, nothing lost, and the end as if nothing had happened."""
        return self.kills > 0 and self.same and not (self.left or self.lost or self.unswept)


def commands(folder: Path) -> list[Command]:
    """The three, with images for the search made in `folder`."""
    rng = np.random.default_rng(0)
    images = folder / "images.npz"
    np.savez(images, x_train=rng.integers(0, 255, (256, 16, 16, 3), np.uint8), y_train=np.arange(256) % 4)
    search = (
        "search --space nasbench201 --space-option C=4 --space-option N=1 --engine random --preset smoke --budget 40 --seed 1 --workers 2 "
        f"--objective accuracy,macs --train epochs=1 --measure 0 --data {images} --out {{folder}}/study --resume --json"
    )
    return [
        Command(
            "measure, a microcontroller",
            ("measure", "ds_cnn", "--target", "stm32f746", "--json"),
            costs,
            lambda cost: [cost[k] for k in ("instructions", "arena", "flash")],
            fresh=True,
        ),
        Command(
            "measure, this CPU",
            ("measure", "autoencoder", "--target", "cpu", "--trials", "2", "--json"),
            costs,
            lambda cost: [cost["arena"], [op["signature"] for op in cost["per_op"]]],
        ),
        Command("search, two workers", tuple(search.split()), trials, lambda found: [found[k] for k in ("best", "front", "trials")]),
    ]


def costs(folder: Path) -> Rows:
    """Signatures in the cost database."""
    return _query(folder / "costs.sqlite", "SELECT 'operator', signature FROM operators UNION SELECT 'network', signature FROM networks")


def trials(folder: Path) -> Rows:
    """Finished trials with their values."""
    query = "SELECT t.trial_id, v.objective, v.value FROM trials t JOIN trial_values v USING (trial_id) WHERE t.state = 'COMPLETE'"
    return _query(folder / "study" / "study.sqlite", query)


def _query(file: Path, query: str) -> Rows:
    """Rows of a file that another process may be writing; none before it is there."""
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)) as db:
            return set(db.execute(query))
    except sqlite3.OperationalError:
        return set()


def started(command: Command, folder: Path, mark: str, *, compiled: bool = True) -> subprocess.Popen[bytes]:
    """The command with all it keeps under `folder`, but for what numba has compiled, unless not `compiled`; its descendants carry `mark`
    in their environment.
    """
    places = {"NEAPTIDE_CACHE": "cache", "NEAPTIDE_COSTS": "costs.sqlite", "ZIG_GLOBAL_CACHE_DIR": "zig"}
    places |= {} if compiled else {"NUMBA_CACHE_DIR": "numba"}
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    env = {**os.environ, **{name: str(folder / place) for name, place in places.items()}, "TMPDIR": str(folder / "tmp"), MARK: mark}
    words = [word.format(folder=folder) for word in command.words]
    env["OMP_NUM_THREADS"] = "1"
    return subprocess.Popen([sys.executable, "-c", COMMAND, *words], env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def completed(process: subprocess.Popen[bytes], command: Command) -> Any:
    """The result of a command that is left alone. Raises `RuntimeError` with its words when it fails."""
    out, err = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command.name} ended with code {process.returncode}: {err.decode()[-2000:]}")
    text = out.decode()
    return command.result(json.loads(text if text.startswith("{") else text.splitlines()[-1]))


def marked(mark: str) -> list[int]:
    """Living processes whose environment carries `mark`."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def left_after_kill(process: subprocess.Popen[bytes], mark: str) -> tuple[int, float]:
    """Kill the command alone; how many of its processes are there after 5 s, and after how many seconds the last was gone."""
    process.send_signal(signal.SIGKILL)
    process.wait()
    began = time.monotonic()
    while (there := marked(mark)) and time.monotonic() - began < GRACE_S:
        time.sleep(0.05)
    took = time.monotonic() - began
    for pid in there:
        os.kill(pid, signal.SIGKILL)
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    return len(there), took


def killed(command: Command, kills: int, folder: Path, seed: int = 0) -> Found:
    """Kill `command` at `kills` random moments of the time it takes alone, going on with what the last one left; then leave it alone."""
    rng, found = random.Random(seed), Found(command.name)
    alone = folder / "alone"
    began = time.monotonic()
    expected = completed(started(command, alone, f"{command.name} alone"), command)
    whole = time.monotonic() - began
    place = folder / "killed"
    (place / "tmp").mkdir(parents=True)
    for k in range(kills):
        if command.fresh:
            for cache in ("cache", "zig"):
                shutil.rmtree(place / cache, ignore_errors=True)
        mark = f"{command.name} {k} {os.getpid()}"
        process = started(command, place, mark)
        time.sleep(rng.uniform(0, whole))
        before = command.rows(place)
        found.kills += process.poll() is None
        left, took = left_after_kill(process, mark)
        found.left, found.slowest = found.left + left, max(found.slowest, took)
        found.lost += len(before - command.rows(place))
        found.folders = max(found.folders, len(_temporary(place) - _temporary(alone)))
    found.same = completed(started(command, place, f"{command.name} end"), command) == expected
    found.unswept = len(_temporary(place) - _temporary(alone))
    return found


def _temporary(place: Path) -> set[str]:
    """Temporary files of all commands under `place`; some libraries keep one folder there for all processes."""
    return {path.name for path in (place / "tmp").iterdir()}


def first_starts(command: Command, count: int, folder: Path) -> tuple[int, float]:
    """How many of `count` commands started at once with empty caches succeed with one result, and the seconds until all have ended."""
    began = time.monotonic()
    with busy(os.cpu_count() or 1):
        running = [started(command, folder, f"start {i}", compiled=False) for i in range(count)]
        results = []
        for process in running:
            try:
                results.append(completed(process, command))
            except RuntimeError as error:
                print(error, file=sys.stderr)
    return sum(result == results[0] for result in results), time.monotonic() - began


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Inside, so many processes do nothing but use a processor."""
    running = [subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description="Commands that are killed, and first starts at once.")
    parser.add_argument("--kills", type=int, default=50, help="of all commands together")
    parser.add_argument("--starts", default="4,10", help="how many first starts at once, a list")
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    rows, figures = [], []
    with tempfile.TemporaryDirectory() as scratch:
        wanted = commands(Path(scratch))
        for i, command in enumerate(wanted if options.kills else ()):
            place = Path(scratch) / f"kill{i}"
            found = killed(command, (options.kills + i) // len(wanted), place, seed=i)
            slowest = f"{found.slowest:.1f} s"
            print(found, file=sys.stderr, flush=True)
            rows.append((command.name, found.kills, found.left, slowest, found.lost, found.folders, found.unswept, found.same))
            what, got = f"{command.name}: SIGKILL at random moments", "so" if found.good else "not so"
            figures.append(Figure(what, "nothing left, nothing lost, same result", got, found.good))
        for count in map(int, filter(None, options.starts.split(","))):
            fine, seconds = first_starts(wanted[0], count, Path(scratch) / f"start{count}")
            got = f"{fine} of {count}, in {seconds:.0f} s"
            figures.append(Figure(f"{count} first starts at once, processors busy", "all succeed", got, fine == count))
    columns = (
        "command",
        "killed while running",
        "processes after 5 s",
        "last one gone after",
        "rows lost",
        "temporary files left, most",
        "after the next run",
        "same result",
    )
    return finish("kill", figures, columns, rows, threads="1 each", json_path=options.json)


if __name__ == "__main__":
    sys.exit(main())
