"""Damaged files of every format through the commands that read them: each must be read or refused in a sentence, within its means.

`python -m benchmarks.fuzz_files [--cases 100000] [--seed 0] [--formats onnx,json] [--seconds N] [--workers 2] [--keep DIR] [--resume]
[--only N] [--quick] [--json PATH]`. A case is a number: it draws a format, an honest file (see `fuzz_seeds`), one to four damages (see
`fuzz_mutations`) and a command. Commands run in worker processes, one case after the other, under a limit on their address space and
processor time. A case is bad when the command calls itself buggy or raises, ends its process by a signal, grows by over 2 GB, or takes
over 20 s of processor time. Files of bad cases are kept in DIR; `--resume` takes up a run whose results so far lie there.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from .figures import Figure, finish
from .fuzz_mutations import mutated
from .fuzz_seeds import TARGET, make_seeds

MEMORY, CPU_S, WALL_S = 2_000_000_000, 20.0, 300.0
GROWTH = 3 << 30  # bytes of address space that a worker may add to what it has once warm
RENEWED = 3_000  # cases after which a worker is replaced by a fresh one
BAD = ("bug", "signal", "memory", "time")
SUFFIXES = {"images": ".npz", "table": ".npz", "predictor": ".npz", "costs": ".sqlite", "kernels": ".sqlite", "study": ".sqlite"}
FUNCTIONS = ("targets-file", "predictor", "images", "subnets", "kernels", "resume")  # commands of this file, that `neaptide` lacks
# Shares of formats: as many cases as each has readers and room for mistakes, fewer where a case takes long.
MIX = {
    "onnx": 34, "json": 18, "csv": 8, "toml": 8, "jsonl": 7, "predictor": 7, "costs": 6, "images": 4, "table": 2, "pt2": 4, "kernels": 1,
    "study": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What came of one case. `verdict`: ok, refused, or one of `BAD`; `seconds` of processor time; `nbytes` that the process grew by."""

    number: int
    kind: str
    damage: str
    command: str
    verdict: str
    seconds: float
    nbytes: int
    said: str


def main() -> int:
    parser = argparse.ArgumentParser(description="Damaged files of every format through the commands that read them.")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", default="", help=f"of {', '.join(MIX)}; all if empty")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop early after this long")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", metavar="DIR", default="fuzz-files", help="where files of bad cases and the results so far go")
    parser.add_argument("--resume", action="store_true", help="leave out the cases that DIR has results of")
    parser.add_argument("--only", type=int, metavar="N", help="make case N again, with a traceback, and keep its file")
    parser.add_argument("--quick", action="store_true", help="2,000 cases")
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    formats = tuple(filter(None, options.formats.split(","))) or tuple(MIX)
    keep = Path(options.keep)
    with tempfile.TemporaryDirectory() as folder:
        seeds = make_seeds(Path(folder), formats)
        if options.only is not None:
            return _once(options.only, options.seed, formats, seeds, keep)
        wanted = 2_000 if options.quick else options.cases
        started = time.perf_counter()
        known = _known(keep, options.seed, formats) if options.resume else []
        done = {case.number for case in known}
        numbers = [n for n in range(wanted) if n not in done]
        cases = [*known, *_shown(run_cases(numbers, options.seed, formats, seeds, workers=options.workers, keep=keep), len(numbers),
                                 started + options.seconds, keep, options.seed, formats)]  # fmt: skip
    return _report(cases, wanted, time.perf_counter() - started, options)


# ---- cases ------------------------------------------------------------------------------------------------------------


def make_case(number: int, seed: int, formats: Sequence[str], seeds: dict[str, list[Path]]) -> tuple[str, bytes, str, list[str]]:
    """Format, damaged file, what was done to it, and the command, with FILE where the file's path goes."""
    rng = random.Random(f"{seed}:{number}")
    there = [kind for kind in formats if seeds.get(kind)]
    kind = rng.choices(there, [MIX[k] for k in there])[0]
    path, other = rng.choice(seeds[kind]), rng.choice(seeds[kind])
    data, how = mutated(kind, path.read_bytes(), other.read_bytes(), rng)
    return kind, data, f"{path.stem}: {how}", _command(kind, seeds, rng)


def _command(kind: str, seeds: dict[str, list[Path]], rng: random.Random) -> list[str]:
    quick = ["--no-kernels", "--time-limit", "0.05"]
    analyze = ["analyze", "FILE", *quick]
    costs = ["--database", "FILE"]
    search = ["search", "--preset", "smoke", "--workers", "1", "--measure", "0", "--out", "out", "--data", "FILE"]
    net = str(next(iter(seeds.get("net", ())), "net.onnx"))
    predict = ["measure", net, "--predict", "--json"]
    graphs = [[*analyze, "--json"]] * 4 + [["schedule", "FILE", *quick]] * 2 + [analyze, [*analyze, "--html", "a.html", "--dot", "a.dot"]]
    choices: dict[str, list[list[str]]] = {
        "onnx": [*graphs, [*predict[:1], "FILE", *predict[2:], "--target", TARGET]],
        "json": [*graphs, [*analyze, "--order", "traced", "--budget", "1KB"], [*analyze, "--alignment", str(2**63), "--json"]],
        "pt2": graphs,
        "csv": [
            ["allocate", "FILE", "--time-limit", "0.05"], ["allocate", "FILE", "--time-limit", "0.05", "--json"],
            ["allocate", "FILE", "--time-limit", "0.05", "--alignment", str(rng.choice((3, 64, 2**40, 2**63))), "--output", "-"],
            ["allocate", "FILE", "--time-limit", "0.05", "--capacity", str(rng.choice((100, 4096, 2**64)))],
            ["cost", "fit", "FILE", "--additive"], ["cost", "fit", "FILE", "--additive", "--output", "p.npz", "--json"],
        ],
        "toml": [["targets-file", "FILE"]] * 5 + [[*predict, "--target", "FILE"]],
        "jsonl": [["cost", "import", "FILE", "--database", "costs.sqlite"]],
        "predictor": [["predictor", "FILE"]] * 6 + [[*predict, "--target", TARGET, "--predictor", "FILE"]],
        "costs": [
            ["cost", "show", *costs], ["cost", "show", *costs, "--json"], ["cost", "show", *costs, "--target", TARGET],
            ["cost", "show", *costs, "--like", "o", "--json"], ["cost", "export", "rows.jsonl", *costs],
            ["cost", "prune", *costs, "--older-than", "1"], ["cost", "fit", *costs, "--target", TARGET, "--additive"],
            [*predict, "--target", TARGET, *costs],
        ],
        "images": [[*search, "--space", "nasbench201", "--constraint", "params<=1"]] * 4 + [["images", "FILE"]] * 4,
        "table": [
            [*search, "--space", "nasbench_macro", "--engine", "random", "--budget", "2"], ["images", "FILE"], ["subnets", "FILE"],
            ["subnets", "FILE"],
        ],
        "kernels": [["kernels", "FILE"]],
        "study": [["resume", "FILE"]],
    }  # fmt: skip
    return rng.choice(choices[kind])


def run_command(command: Sequence[str], path: str, seeds: dict[str, list[Path]]) -> int:
    """Run one command on the file at `path`; returns its exit code. Those that `neaptide` lacks are functions that take a path."""
    from neaptide.cli import main

    words = [path if word == "FILE" else word for word in command]
    if words[0] not in FUNCTIONS:
        return main(words)
    if words[0] == "resume":
        Path("out").mkdir()
        shutil.copy(path, "out/study.sqlite")
        return main(["search", "--resume", "--out", "out", "--workers", "1", "--measure", "0", "--budget", "5"])
    if words[0] == "kernels":
        from neaptide.compiler.oracle_cache import FILE

        Path("cache").mkdir()
        shutil.copy(path, Path("cache") / FILE)
        os.environ["NEAPTIDE_CACHE"] = str(Path("cache").resolve())
        graph = seeds["kernels"][0].parent / "conv.json"
        return main(["analyze", str(graph), "--threads", "1", "--time-limit", "0.05", "--json"])
    return _called(words[0], path)


def _called(function: str, path: str) -> int:
    """A public function that takes a path, with the command line's own verdict on what it raises."""
    from neaptide.compiler.errors import NeaptideError

    try:
        if function == "targets-file":
            from neaptide.report.targets import targets_table
            from neaptide.targets.spec import load_target

            target = load_target(path)
            json.dumps(target.to_dict())
            _printed(targets_table([target]))
        elif function == "predictor":
            _use_predictor(path)
        elif function == "subnets":
            from neaptide.search.engines.moofa import read_table
            from neaptide.search.spaces import load_space

            read_table(load_space("moofa"), path, "moofa")  # type: ignore[arg-type]
        else:
            from neaptide.search.data import ImageData, load_data

            data = load_data(path, val=4)
            if isinstance(data, ImageData):
                for _ in data.batches("train", 16):
                    pass
    except NeaptideError as error:
        print(f"neaptide: {error}", file=sys.stderr)
        return error.exit_code
    except MemoryError:
        print("neaptide: out of memory", file=sys.stderr)
        return 1
    return 0


def _use_predictor(path: str) -> None:
    import numpy as np

    from neaptide.cli_cost import predictor_document
    from neaptide.report.costs import predictor_view
    from neaptide.targets.predictors import Columns, OperatorPredictor, load_predictor

    predictor = load_predictor(path)
    _printed(predictor_view(predictor))
    json.dumps(predictor_document(predictor))
    if isinstance(predictor, OperatorPredictor):
        features = {"op": "conv", "macs": 1000, "input": 64, "output": 64}
        operators = [("op 1", features, 1), ("unseen", features, 2), ("other", {"op": "pool"}, 1)]
        predictor.network(operators)
        predictor.within([name for name, _, _ in operators], [f for _, f, _ in operators])
    else:
        columns = Columns({"first": np.array(["k0", "k9"]), "second": np.array(["e1", "e1"])}, {"side": np.array([96.0, 1e9])})
        predictor.predict(columns)
        predictor.encoding.within(columns)


def _printed(view: Any) -> None:
    from neaptide.report.console import output

    output().print(view)


# ---- one process ------------------------------------------------------------------------------------------------------


def judge(number: int, seed: int, formats: Sequence[str], seeds: dict[str, list[Path]], keep: Path | None, limit: int) -> Case:
    """Run case `number` in this process, in an empty folder of its own. `limit`: bytes of address space, 0 for no limits."""
    kind, data, damage, command = make_case(number, seed, formats, seeds)
    suffix = SUFFIXES.get(kind, f".{kind}")
    with tempfile.TemporaryDirectory() as folder, _inside(folder):
        path = Path(folder) / f"case{suffix}"
        path.write_bytes(data)
        out, err = io.StringIO(), io.StringIO()
        before, spent = _reset_peak(), time.process_time()
        _limit(limit, spent)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code: Any = run_command(command, str(path), seeds)
        except Exception as error:  # what a public function lets out is a bug whatever it is
            code = f"{type(error).__name__}: {error} at {_raised_at(error)}"
        seconds, grown = time.process_time() - spent, _peak() - before
    said = err.getvalue().strip()
    said = said[max(0, said.rfind("neaptide: ")) :]
    verdict = _verdict(code, said, seconds, grown)
    case = Case(number, kind, damage, " ".join(command), verdict, seconds, grown, (code if isinstance(code, str) else said)[:400])
    if verdict in BAD and keep is not None:
        _kept(keep, case, data, suffix)
    return case


def _verdict(code: Any, said: str, seconds: float, grown: int) -> str:
    if "out of memory" in said or grown > MEMORY:
        return "memory"
    if seconds > CPU_S:
        return "time"
    if code not in (0, 1, 2, 3) or "bug in Neaptide" in said or (code != 0 and not said.startswith("neaptide: ")):
        return "bug"
    return "refused" if code else "ok"


def _raised_at(error: BaseException) -> str:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return "" if frame is None else f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}"


def _kept(keep: Path, case: Case, data: bytes, suffix: str) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    (keep / f"{case.verdict}-{case.number}{suffix}").write_bytes(data)
    (keep / f"{case.verdict}-{case.number}.txt").write_text(json.dumps(asdict(case), indent=1), encoding="utf-8")


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    """Inside: `folder` is the working directory, and what Neaptide remembers lies there. After: all is as before."""
    before, environment = os.getcwd(), dict(os.environ)
    os.chdir(folder)
    os.environ.update(NEAPTIDE_CACHE=str(Path(folder) / "cache"), NEAPTIDE_COSTS=str(Path(folder) / "own.sqlite"))
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(environment)


def _status(name: str) -> int:
    """A size in this process's status, in bytes; 0 where there is no such file."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="utf-8") as lines:
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
    return 0


def _reset_peak() -> int:
    """Begin a new peak of resident memory; returns what is resident now."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="utf-8") as control:
        control.write("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _limit(address_space: int, spent: float) -> None:
    """Let this process be stopped when it takes far more time or memory than a case may."""
    if not address_space:
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (address_space, hard))
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent + CPU_S) + 5, hard))


def _work(link: Connection, seed: int, formats: Sequence[str], seeds: dict[str, list[Path]], keep: Path | None) -> None:
    """A worker: judges the numbers that come over `link` until None does."""
    import torch

    torch.set_num_threads(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    warm(seeds, formats)
    limit = _status("VmSize") + GROWTH
    while (number := link.recv()) is not None:
        link.send(judge(number, seed, formats, seeds, keep, limit))


def warm(seeds: dict[str, list[Path]], formats: Sequence[str]) -> None:
    """Import and compile what honest files need, so that cases are charged for their own work alone."""
    for kind in formats:
        for path in seeds.get(kind, ())[-1:]:
            for turn in range(2 if kind in ("study", "table", "kernels", "costs") else 6):
                quiet = io.StringIO()
                with (
                    tempfile.TemporaryDirectory() as folder, _inside(folder), contextlib.redirect_stdout(quiet),
                    contextlib.redirect_stderr(quiet),
                ):  # fmt: skip
                    run_command(_command(kind, seeds, random.Random(turn)), str(shutil.copy(path, folder)), seeds)


# ---- many processes ---------------------------------------------------------------------------------------------------


def run_cases(
    numbers: Iterable[int], seed: int, formats: Sequence[str], seeds: dict[str, list[Path]], *, workers: int = 2, keep: Path | None = None
) -> Iterator[Case]:
    """Verdicts as they come, of `workers` processes; one that a case ends is replaced, and the case is bad."""
    context = multiprocessing.get_context("spawn")
    waiting, pool = iter(numbers), [_Worker(context, (seed, tuple(formats), seeds, keep)) for _ in range(max(1, workers))]
    try:
        for worker in pool:
            worker.give(next(waiting, None))
        while busy := [worker for worker in pool if worker.number is not None]:
            wait([worker.link for worker in busy], timeout=1.0)
            for worker in busy:
                if (case := worker.taken()) is not None:
                    yield case
                    worker.give(next(waiting, None))
    finally:
        for worker in pool:
            worker.end()


class _Worker:
    """A process that judges one case at a time. `number`: the case it has, None when it has none."""

    def __init__(self, context: Any, arguments: tuple[Any, ...]):
        self._context, self._arguments = context, arguments
        self.number: int | None = None
        self._begin()

    def _begin(self) -> None:
        self.link, far = self._context.Pipe()
        self._process = self._context.Process(target=_work, args=(far, *self._arguments), daemon=True)
        self._process.start()
        far.close()
        self._judged = 0

    def give(self, number: int | None) -> None:
        if number is not None and self._judged >= RENEWED:
            self.end()
            self._begin()
        self.number, self._since = number, time.monotonic()
        if number is not None:
            self.link.send(number)

    def taken(self) -> Case | None:
        """What came of the case, None while it runs."""
        assert self.number is not None
        try:
            if self.link.poll():
                self._judged += 1
                return self.link.recv()
        except (EOFError, OSError):
            return self._lost("")
        if time.monotonic() - self._since > WALL_S:
            return self._lost("hang")
        return None

    def _lost(self, why: str) -> Case:
        """The verdict on a case that ended its process, or that has to be ended with it."""
        if why:
            self._process.kill()
        self._process.join()
        code = self._process.exitcode or 0
        seed, formats, seeds, keep = self._arguments
        assert self.number is not None
        kind, data, damage, command = make_case(self.number, seed, formats, seeds)
        verdict = "time" if why or code == -signal.SIGXCPU else "signal"
        case = Case(self.number, kind, damage, " ".join(command), verdict, CPU_S, 0, why or f"the process ended with {code}")
        if keep is not None:
            _kept(keep, case, data, SUFFIXES.get(kind, f".{kind}"))
        self._begin()
        return case

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.link.send(None)
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.link.close()


# ---- results ----------------------------------------------------------------------------------------------------------


def _shown(cases: Iterator[Case], total: int, deadline: float, keep: Path, seed: int, formats: Sequence[str]) -> Iterator[Case]:
    """`cases` under a progress bar, each written to `keep` as it comes, until the time is up."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    keep.mkdir(parents=True, exist_ok=True)
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bad = 0
    with bar, open(_results(keep, seed, formats), "a", encoding="utf-8") as results:
        task = bar.add_task("files", total=total)
        for case in cases:
            results.write(json.dumps(asdict(case)) + "\n")
            bad += case.verdict in BAD
            bar.update(task, advance=1, description=f"files, {bad} bad" if bad else "files")
            yield case
            if time.perf_counter() >= deadline:
                return


def _results(keep: Path, seed: int, formats: Sequence[str]) -> Path:
    return keep / f"results-{seed}-{'all' if tuple(formats) == tuple(MIX) else '-'.join(formats)}.jsonl"


def _known(keep: Path, seed: int, formats: Sequence[str]) -> list[Case]:
    path = _results(keep, seed, formats)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [Case(**json.loads(line)) for line in lines if line.endswith("}")]


def _once(number: int, seed: int, formats: Sequence[str], seeds: dict[str, list[Path]], keep: Path) -> int:
    """Make one case again and show everything of it."""
    kind, data, damage, command = make_case(number, seed, formats, seeds)
    keep.mkdir(parents=True, exist_ok=True)
    path = (keep / f"case-{number}{SUFFIXES.get(kind, f'.{kind}')}").resolve()
    path.write_bytes(data)
    print(f"{kind}: {damage}\n{' '.join(command)}\n{path}")
    with tempfile.TemporaryDirectory() as folder, _inside(folder):
        code = run_command(command if command[0] in FUNCTIONS else [*command, "--debug"], str(path), seeds)
    print(f"exit code {code}")
    return 0 if code in (0, 1, 2, 3) else 1


def summary(cases: Sequence[Case]) -> list[tuple[str, ...]]:
    """One line a format: cases, read, refused, bad of each kind, the most seconds and megabytes of a case."""
    lines = []
    for kind in dict.fromkeys(case.kind for case in sorted(cases, key=lambda c: list(MIX).index(c.kind))):
        mine = [case for case in cases if case.kind == kind]
        count = Counter(case.verdict for case in mine)
        most = max(case.seconds for case in mine), max(case.nbytes for case in mine)
        lines.append((kind, f"{len(mine):,}", f"{count['ok']:,}", f"{count['refused']:,}", *(f"{count[bad]:,}" for bad in BAD),
                      f"{most[0]:.1f}", f"{most[1] / 1e6:,.0f}"))  # fmt: skip
    return lines


def places(cases: Iterable[Case]) -> list[tuple[str, int, int]]:
    """Bad cases by what they said, digits left out: (what, how many, the first number), the most frequent first."""
    groups: dict[str, list[int]] = {}
    for case in cases:
        if case.verdict in BAD:
            groups.setdefault(f"{case.verdict} {case.kind}: {re.sub(r'[0-9]+', '#', case.said)[:160]}", []).append(case.number)
    return sorted(((what, len(numbers), min(numbers)) for what, numbers in groups.items()), key=lambda row: -row[1])


def _report(cases: Sequence[Case], wanted: int, elapsed: float, options: Any) -> int:
    count = Counter(case.verdict for case in cases)
    bad = sum(count[verdict] for verdict in BAD)
    told = f"{len(cases):,} in {elapsed:.0f} s: " + ", ".join(f"{count[verdict]} {name}" for verdict, name in zip(BAD, (
        "bugs", "signals", "over 2 GB", "over 20 s"), strict=True))  # fmt: skip
    for what, times, first in places(cases)[:40]:
        print(f"{times:6} x {what} (--only {first})")
    figures = [Figure("damaged files, read or refused in a sentence", f"{wanted:,}, none bad", told, bad == 0 and len(cases) >= wanted)]
    head = ("format", "files", "read", "refused", *BAD, "most s", "most MB")
    notes = [f"Seed {options.seed}; bad cases are kept in {options.keep}."] if bad else [f"Seed {options.seed}."]
    return finish("fuzz_files", figures, head, summary(cases), threads=options.workers, notes=notes, json_path=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
