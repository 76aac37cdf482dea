"""How many real models can be traced: every model of the zoo, without running it, and with `allow_real_run`.

`python -m benchmarks.trace_zoo [--quick] [--json PATH] [--jobs 2] [--resume FILE.jsonl] [NAME ...]`. Each worker is a process of
its own that takes models one after another; one that takes too long, or too much memory, is ended and its model counts as failed.
Models that fail without running are tried again with `allow_real_run`. With `--resume`, results are kept line by line and what is
there is not done again. Needs `make zoo`. Exits 1 when a figure is missed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, finish
from benchmarks.zoo import ZOO

SECONDS = 180
GIBIBYTES = 16
WITHOUT_RUNNING, WITH_RUN = 0.94, 0.99


def main() -> int:
    parser = argparse.ArgumentParser(description="How many real models can be traced.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models or prefixes of names (default: all)")
    parser.add_argument("--quick", action="store_true", help="every tenth model")
    parser.add_argument("--json")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--resume", type=Path, help="JSON-lines file of finished models")
    options = parser.parse_args()
    names = [n for n in ZOO if not options.names or n.startswith(tuple(options.names))]
    names = names[::10] if options.quick else names
    done = _read(options.resume)
    for row in _trace_all([n for n in names if n not in done], options.jobs):
        done[row["name"]] = row
        print(_line(row), flush=True)
        if options.resume:
            with options.resume.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return _report([done[n] for n in names], options)


def _read(path: Path | None) -> dict[str, Any]:
    if path is None or not path.exists():
        return {}
    return {row["name"]: row for row in map(json.loads, path.read_text().splitlines())}


def _report(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> int:
    n = len(rows)
    dry = sum(r["rung"] in ("meta", "fake", "bounds") for r in rows)
    wet = sum(r["rung"] != "failed" for r in rows)
    by_rung = {rung: sum(r["rung"] == rung for r in rows) for rung in ("meta", "fake", "bounds", "run", "failed")}
    size = 1 if options.quick or options.names else 300
    figures = [
        Figure("models in the zoo", f">= {size}", str(n), n >= size),
        Figure("traced without running", f">= {WITHOUT_RUNNING:.0%}", f"{dry} of {n}, {dry / n:.1%}", dry >= WITHOUT_RUNNING * n),
        Figure("traced with allow_real_run", f">= {WITH_RUN:.0%}", f"{wet} of {n}, {wet / n:.1%}", wet >= WITH_RUN * n),
    ]
    seconds = sorted(r["seconds"] for r in rows)
    notes = [
        "rungs: " + ", ".join(f"{rung} {count}" for rung, count in by_rung.items()),
        f"seconds a model, building included: median {seconds[n // 2]:.2f}, 90th percentile {seconds[n * 9 // 10]:.2f}",
    ]
    missed = [(r["name"], r["rung"], r["error"]) for r in rows if r["rung"] in ("run", "failed")]
    return finish(
        "trace_zoo", figures, ("model", "rung", "why not without running"), missed, threads=1, notes=notes, json_path=options.json
    )


def _line(row: dict[str, Any]) -> str:
    return f"{row['name']:<52} {row['rung']:<7} {row['nodes']:>6} ops {row['seconds']:>7.2f} s  {row['error'][:160]}"


# ---- workers --------------------------------------------------------------------------------------------------------------


def _trace_all(names: Sequence[str], jobs: int) -> Iterator[dict[str, Any]]:
    """Results in the order they come. A worker that dies or hangs is replaced."""
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(names))
    workers = [_Worker(context) for _ in range(min(jobs, len(names)))]
    try:
        while waiting or any(w.name for w in workers):
            for worker in workers:
                if worker.name is None and waiting:
                    worker.give(waiting.pop())
                row = worker.result()
                if row is not None:
                    yield row
            time.sleep(0.02)
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process that traces one model at a time."""

    def __init__(self, context: Any):
        self.context = context
        self.name: str | None = None
        self.given = 0.0
        self._start()

    def _start(self) -> None:
        self.tasks, self.results = self.context.Queue(), self.context.Queue()
        self.process = self.context.Process(target=_work, args=(self.tasks, self.results), daemon=True)
        self.process.start()

    def give(self, name: str) -> None:
        self.name, self.given = name, time.monotonic()
        self.tasks.put(name)

    def result(self) -> dict[str, Any] | None:
        """The row of the model at work once it is there, or once it can no longer come."""
        if self.name is None:
            return None
        try:
            row = self.results.get_nowait()
        except queue.Empty:
            if self.process.is_alive() and time.monotonic() - self.given < 2 * SECONDS:
                return None
            why = "took too long" if self.process.is_alive() else f"worker ended with code {self.process.exitcode}"
            row = {"name": self.name, "rung": "failed", "nodes": 0, "seconds": time.monotonic() - self.given, "error": why}
            self.end()
            self._start()
        self.name = None
        return row

    def end(self) -> None:
        self.process.terminate()
        self.process.join()


def _work(tasks: Any, results: Any) -> None:
    import warnings

    import torch

    resource.setrlimit(resource.RLIMIT_AS, (GIBIBYTES << 30, GIBIBYTES << 30))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    while True:
        results.put(_trace_one(tasks.get()))


def _trace_one(name: str) -> dict[str, Any]:
    """Rung, nodes, seconds and, where it could not be traced without running, why."""
    from neaptide.compiler.errors import NeaptideError
    from neaptide.compiler.trace import trace

    started = time.perf_counter()
    row: dict[str, Any] = {"name": name, "rung": "failed", "nodes": 0, "error": ""}
    for allowed in (False, True):
        try:
            model = ZOO[name]
            args, kwargs = model.inputs()
            graph = trace(model.build, args, kwargs, allow_real_run=allowed)
            row |= {"rung": graph.meta["rung"], "nodes": len(graph.nodes)}
            break
        except NeaptideError as error:
            row["error"] = row["error"] or str(error)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"
            break
    return row | {"seconds": time.perf_counter() - started}


if __name__ == "__main__":
    sys.exit(main())
