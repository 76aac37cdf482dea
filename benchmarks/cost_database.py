"""The cost database under load: how long a known operator takes to find, and what a killed writer leaves.

python -m benchmarks.cost_database
python -m benchmarks.cost_database --quick
"""

from __future__ import annotations

import argparse
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, finish
from neaptide.targets.database import CostDatabase, OperatorRow

LIMIT_S = 1e-3
WRITER = """
import sys
from neaptide.targets.database import CostDatabase, OperatorRow
db = CostDatabase(sys.argv[1])
print("open", flush=True)
for i in range(10**6):
    db.put(OperatorRow(f"{sys.argv[2]} {i}", "cpu", "t", float(i), features={"op": "conv", "pad": "x" * (i % 800)}))
    print(i, flush=True)
"""


def operator(i: int) -> OperatorRow:
    """A row of the usual size."""
    signature = f"conv2d_add_relu6(1x{i}x56x56,32x{i}x3x3,1x32x1x1,1x32x56x56)#{i:016x}"
    return OperatorRow(signature, "stm32f746", "apache-tvm 0.27.0.post1; ziglang 0.17.0", 1e5 + i, features={"op": "conv2d", "macs": i})


def queried(path: Path, rows: int, queries: int) -> np.ndarray:
    """Seconds of each second query of an operator, among `rows`."""
    rng = random.Random(0)
    seconds = np.zeros(queries)
    with CostDatabase(path) as db:
        db.put_all(map(operator, range(rows)))
        for k in range(queries):
            wanted = operator(rng.randrange(rows))
            db.get(wanted.signature, wanted.target, wanted.toolchain)
            started = time.perf_counter()
            found = db.get(wanted.signature, wanted.target, wanted.toolchain)
            seconds[k] = time.perf_counter() - started
            assert found is not None
            assert found.value == wanted.value
    return seconds


def killed(path: Path, rounds: int, writers: int) -> tuple[int, int, int]:
    """Rows that writers had reported, rows lost of those, rounds after which SQLite found damage."""
    rng = random.Random(0)
    reported = lost = damaged = 0
    for r in range(rounds):
        names = [f"{r}.{w}" for w in range(writers)]
        processes = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), n], stdout=subprocess.PIPE, text=True) for n in names]
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        time.sleep(rng.uniform(0.01, 0.25))
        for process in processes:
            process.send_signal(signal.SIGKILL)
        said = [{f"{n} {line}" for line in p.communicate()[0].split() if line.isdigit()} for n, p in zip(names, processes, strict=True)]
        with CostDatabase(path) as db:
            kept = {row.signature for row in db.rows()}
        reported += sum(map(len, said))
        lost += sum(len(rows - kept) for rows in said)
        check = sqlite3.connect(path)
        damaged += check.execute("PRAGMA integrity_check").fetchone()[0] != "ok"
        check.close()
    return reported, lost, damaged


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", metavar="PATH")
    arguments = parser.parse_args()
    rows, queries, rounds = (20_000, 500, 5) if arguments.quick else (200_000, 5_000, 40)
    with tempfile.TemporaryDirectory() as scratch:
        seconds = queried(Path(scratch) / "queries.sqlite", rows, queries)
        reported, lost, damaged = killed(Path(scratch) / "kills.sqlite", rounds, writers=2)
    median, late = float(np.median(seconds)), float(np.quantile(seconds, 0.99))
    figures = [
        Figure("second query of a cached operator", "<= 1 ms", f"{1e3 * median:.3f} ms", median <= LIMIT_S),
        Figure(
            f"2 writers killed {rounds} times",
            "no reported row lost, no damage",
            f"{lost} lost, {damaged} damaged",
            not lost and not damaged,
        ),
    ]
    table = [
        ("second query, median", f"{1e3 * median:.3f} ms"),
        ("second query, 99 % below", f"{1e3 * late:.3f} ms"),
        ("rows in the database", f"{rows:,}"),
        ("rows reported by writers before SIGKILL", f"{reported:,}"),
        ("of those lost", f"{lost:,}"),
    ]
    return finish("cost_database", figures, ("what", "value"), table, json_path=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
