"""A search that is killed with SIGKILL at random moments and taken up each time, against the same search left alone.

`python -m benchmarks.search_kill [--quick] [--json PATH]`. Two searches: regularised evolution on NAS-Bench-201's table, where a
network takes milliseconds, so that kills fall into the writing of trials; and random search that trains small networks in two
processes, whose kills fall into trainings. Moments are spread over the search by the number of trials finished, each with a random
delay after it. Reads `data/nasbench201.npz` and `data/fashion_mnist.npz` under $NEAPTIDE_SHARED (or `../shared`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, finish, shared_folder

KILLS = 20
SEARCH = "import sys; from neaptide.cli import main; sys.exit(main(sys.argv[1:]))"
FINISHED = "SELECT COUNT(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')"
# Index, genes and every number of each finished trial: (trial, key, value) rows.
TRIALS = """
    SELECT t.trial_id, 'state', t.state FROM trials t
    UNION ALL SELECT p.trial_id, p.param_name, CAST(p.param_value AS TEXT) FROM trial_params p
    UNION ALL SELECT a.trial_id, a.key, a.value_json FROM trial_user_attributes a
    UNION ALL SELECT v.trial_id, 'objective ' || v.objective, CAST(v.value AS TEXT) FROM trial_values v
"""


@dataclass
class Kept:
    """What a study holds: trials by index, indices finished more than once, trials marked stale, and whether SQLite finds it sound."""

    trials: dict[int, dict[str, str]]
    repeated: int
    stale: int
    sound: bool


def kept(folder: Path) -> Kept:
    """Everything in the study of `folder` but times."""
    db = sqlite3.connect(folder / "study.sqlite", timeout=60)
    facts: dict[int, dict[str, str]] = {}
    for trial, key, value in db.execute(TRIALS):
        facts.setdefault(trial, {})[key] = value
    sound = db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    db.close()
    finished = [f for f in facts.values() if f["state"] in ("COMPLETE", "PRUNED")]
    trials = {int(f["index"]): {k: v for k, v in f.items() if k != "seconds"} for f in finished}
    return Kept(trials, len(finished) - len(trials), sum("stale" in f for f in facts.values()), sound)


def words(folder: Path, arguments: list[str], *, resume: bool) -> list[str]:
    """The command line of the search in `folder`."""
    return [sys.executable, "-c", SEARCH, "search", *arguments, "--out", str(folder), "--json", *(["--resume"] if resume else [])]


def run(folder: Path, arguments: list[str], *, resume: bool) -> dict[str, Any]:
    """The search to its end; its last line as JSON."""
    done = subprocess.run(words(folder, arguments, resume=resume), capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def killed_at(folder: Path, arguments: list[str], trials: int, delay: float) -> bool:
    """Start or resume the search and kill it `delay` seconds after so many trials are finished; False if it ended before that."""
    process = subprocess.Popen(
        words(folder, arguments, resume=True), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while process.poll() is None and finished(folder) < trials:
        time.sleep(0.005)
    time.sleep(delay)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)  # the search alone: its workers have to notice by themselves
    process.wait()
    return running


def finished(folder: Path) -> int:
    """Trials that the study holds now; 0 before it is there."""
    try:
        db = sqlite3.connect(f"file:{folder / 'study.sqlite'}?mode=ro", uri=True, timeout=1)
        try:
            return db.execute(FINISHED).fetchone()[0]
        finally:
            db.close()
    except sqlite3.OperationalError:
        return 0


def tried(name: str, arguments: list[str], trials: int, kills: int, jitter: float, scratch: Path) -> tuple[list[str], bool]:
    """A row of the table, and whether nothing was lost or repeated and the result is that of the search left alone."""
    alone = run(scratch / f"{name} alone", arguments, resume=False)
    whole = kept(scratch / f"{name} alone")
    rng = random.Random(0)
    folder = scratch / f"{name} killed"
    before: dict[int, dict[str, str]] = {}
    lost = changed = repeated = stale = damaged = real = 0
    for moment in sorted(rng.sample(range(trials * 4 // 5), kills)):  # what is left then outlasts the delay
        real += killed_at(folder, arguments, moment, rng.uniform(0, jitter))
        now = kept(folder) if (folder / "study.sqlite").exists() and finished(folder) else Kept({}, 0, 0, True)
        lost += len(before.keys() - now.trials.keys())
        changed += sum(now.trials[i] != before[i] for i in before.keys() & now.trials.keys())
        repeated, stale, damaged = now.repeated, now.stale, damaged + (not now.sound)
        before = now.trials
    resumed = run(folder, arguments, resume=True)
    end = kept(folder)
    same = end.trials == whole.trials and all(resumed[k] == alone[k] for k in ("best", "front", "test_accuracy", "trials"))
    row = [
        name,
        str(trials),
        f"{real} of {kills}",
        str(lost),
        str(changed),
        str(repeated + end.repeated),
        str(stale),
        str(damaged),
        str(same),
    ]
    return row, same and real == kills and not (lost or changed or repeated or end.repeated or damaged)


def main() -> int:
    parser = argparse.ArgumentParser(description="Searches that are killed and taken up.")
    parser.add_argument("--quick", action="store_true", help="5 kills of each search")
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    kills, data = (5 if options.quick else KILLS), shared_folder() / "data"
    cells = "--space nasbench201 --engine evolution --preset smoke --constraint params<=500k --objective accuracy,macs"
    table = f"{cells} --data {data}/nasbench201.npz"
    small = (
        "--space nasbench201 --space-option C=4 --space-option N=1 --constraint params<=20k --workers 2 --train images=256 --train epochs=2"
    )
    images = f"{small} --engine random --preset smoke --data {data}/fashion_mnist.npz --data-option limit=2000 --data-option val=500"
    searches = {
        "evolution, a table": ([*table.split(), "--budget", "200", "--seed", "1"], 200, 0.1),
        "random, training in 2 processes": ([*images.split(), "--budget", "32", "--seed", "1", "--option", "batch=8"], 32, 2.0),
    }
    rows, good = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for name, (arguments, trials, jitter) in searches.items():
            row, fine = tried(name, arguments, trials, kills, jitter, Path(scratch))
            rows.append(row)
            good.append(fine)
    figures = [
        Figure(
            f"{name}: SIGKILL at {kills} random moments, {kills} resumes",
            "nothing lost or repeated, same result",
            "so" if fine else "not so",
            fine,
        )
        for name, fine in zip(searches, good, strict=True)
    ]
    columns = (
        "search",
        "trials",
        "killed while running",
        "lost",
        "changed",
        "repeated",
        "marked stale",
        "damaged files",
        "same trials and result",
    )
    return finish("search_kill", figures, columns, rows, threads="1 each", json_path=options.json)


if __name__ == "__main__":
    sys.exit(main())
