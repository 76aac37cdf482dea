"""What Neaptide does when its surroundings fail: full disks, folders that go, streams that close, limits, clocks, locales, users.

`python -m benchmarks.environment_faults [--only TEXT] [--json PATH]`. Each fault strikes before, in the middle and at the end of
`analyze`, `measure`, `search` and `cost`, in a process of its own (those of the environment only before), on disks of its own where this
user may mount one. Held: the exit code; one sentence on standard error and no traceback; on 0 the whole result and every file; each old
file there, whole or replaced by a whole one; nothing left beside it or in the temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fault_driver import FAULTS

DRIVER = Path(__file__).with_name("fault_driver.py")
COMMANDS, MOMENTS = ("analyze", "measure", "search", "cost"), ("before", "middle", "end")
PLACES = ("out", "cache", "data", "tmp")
DISK = "48m"
FINE, REFUSED, EITHER = (0,), (1,), (0, 1)
OLD = b"what was here before\n"
MODEL = """
import torch

def net():
    layers = torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2)
    return torch.nn.Sequential(*layers), (torch.zeros(1, 3, 8, 8),)
"""
ROWS = [
    {"format": "neaptide.costs", "version": 1},
    {"table": "operators", "signature": "conv2d(1x3x8x8,1x4x6x6)#1", "target": "t", "toolchain": "c", "value": 5.0, "created": 1.0},
]
SAID = ("wrote ", "neaptide: note: ", "the chosen network was not trained", "[W", "Error in cpuinfo")  # the last two: libraries of torch

# Exit codes by what strikes; `fine` where a fault touches nothing that a command needs. Keys: a command, a moment, or both.
EXPECTED: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "full output disk": {"": REFUSED},
    "full data disk": {"cost before": REFUSED},
    "full temporary disk": {"measure before": EITHER, "measure middle": REFUSED},
    "working folder removed": {**{f"{command} before": REFUSED for command in COMMANDS}, "search": REFUSED},
    "output folder removed": {"": REFUSED, "search end": FINE},
    "temporary folder removed": {"measure middle": REFUSED},
    "stdout full": {"": REFUSED},
    "stdout closed": {"": REFUSED},
    "stdout unread": {"": REFUSED},
    "small files only": {"": REFUSED, "cost middle": FINE, "cost end": FINE},
    "few open files": {"": EITHER},
    "little memory": {"": EITHER, "measure": (*EITHER, 2)},  # 2: a package that does not load for want of memory
    "home that is nowhere": {"cost": REFUSED},
    "home that is a file": {"cost": REFUSED},
    "a user without a name": {"cost": REFUSED},
    "no /proc": {"measure": REFUSED},  # zig finds itself there
    "costs are a folder": {"cost": REFUSED},
    "read-only output": {"": REFUSED},
}


@dataclass(frozen=True)
class Surroundings:
    """A fault that is there from the beginning. `env`: None removes a variable; `{case}` is the case's folder."""

    env: Mapping[str, str | None] = field(default_factory=dict)
    user: int | None = None
    wrap: tuple[str, ...] = ()
    prepare: str = ""
    out: str = "here"


def _as_user(number: int) -> tuple[str, ...]:
    """Words before a command that run it as another user, who may read what root may: the interpreter may be in root's home."""
    read = "+dac_read_search"
    identity = ("--reuid", str(number), "--regid", str(number), "--clear-groups")
    return ("setpriv", *identity, "--inh-caps", read, "--ambient-caps", read)


NOWHERE = {"NEAPTIDE_CACHE": None, "NEAPTIDE_COSTS": None, "XDG_CACHE_HOME": None, "XDG_DATA_HOME": None, "ZIG_GLOBAL_CACHE_DIR": None}
SURROUNDINGS: Mapping[str, Surroundings] = {
    "no home variable": Surroundings({"NEAPTIDE_CACHE": None, "XDG_CACHE_HOME": None, "ZIG_GLOBAL_CACHE_DIR": None, "HOME": None}),
    "home that is nowhere": Surroundings({**NOWHERE, "HOME": "/proc/nowhere"}),
    "home that is a file": Surroundings({**NOWHERE, "HOME": "{case}/net.py"}),
    "cache that is a file": Surroundings({"NEAPTIDE_CACHE": "{case}/net.py"}),
    "cache that cannot be made": Surroundings({"NEAPTIDE_CACHE": "/proc/neaptide"}),
    "costs are a folder": Surroundings({"NEAPTIDE_COSTS": "{case}/out"}),
    "no temporary folder": Surroundings({"TMPDIR": "{case}/nowhere"}),
    "read-only cache": Surroundings(prepare="read-only cache"),
    "read-only output": Surroundings(prepare="read-only out"),
    "caches emptied": Surroundings(prepare="empty caches"),
    "caches garbled": Surroundings(prepare="garble caches"),
    "files of 2038": Surroundings(prepare="2038"),
    "files of 1970": Surroundings(prepare="1970"),
    "locale C": Surroundings({"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    "unknown locale": Surroundings({"LC_ALL": "xx_YY.UTF-8", "LANG": "xx_YY"}),
    "ascii streams": Surroundings({"PYTHONIOENCODING": "ascii"}),
    "odd time zone": Surroundings({"TZ": "Nowhere/At+All-99"}),
    "dumb terminal": Surroundings({"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "1", "LINES": "1"}),
    "umask 077": Surroundings(prepare="umask"),
    "another user": Surroundings({"HOME": "/proc/nowhere"}, user=65534, wrap=_as_user(65534)),
    "a user without a name": Surroundings({**NOWHERE, "HOME": None}, user=12345, wrap=_as_user(12345)),
    "no /proc": Surroundings(wrap=("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh")),
    "odd file names": Surroundings(out="a b\n\udcff'\"$(x)"),
}


@dataclass
class Outcome:
    """What a command did: its exit code, what it said, and what is wrong with that."""

    fault: str
    moment: str
    command: str
    code: int
    said: str
    wrong: list[str]

    @property
    def name(self) -> str:
        """The case in words."""
        return f"{self.fault}, {self.moment}, {self.command}"


def cases() -> Iterator[tuple[str, str, str]]:
    """Fault, moment and command of every case."""
    for fault in FAULTS:
        yield from ((fault, moment, command) for command in COMMANDS for moment in MOMENTS)
    for fault in SURROUNDINGS:
        yield from ((fault, "before", command) for command in COMMANDS)


def run_case(fault: str, moment: str, command: str) -> Outcome | None:
    """Run one case; None where this user cannot bring its fault about."""
    around = SURROUNDINGS.get(fault, Surroundings())
    disks = fault.startswith(("full ", "read-only"))
    if os.geteuid() != 0 and (disks or around.user is not None or around.wrap):
        return None
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch, _folders(Path(scratch), disks) as case:
        files, words = _words(case, command, around.out, fault)
        env = _environment(case, around)
        _seed(case, files)
        if around.user is not None:
            for path in case.rglob("*"):
                os.chown(path, around.user, around.user, follow_symlinks=False)
        _prepare(around.prepare, case)
        args = [*around.wrap, sys.executable, str(DRIVER), fault, moment, command, *words]
        identity: dict[str, Any] = {"umask": 0o077} if around.prepare == "umask" else {}
        done = subprocess.run(
            args, cwd=case / "cwd", env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=600, start_new_session=True, **identity
        )
        outcome = Outcome(fault, moment, command, done.returncode, done.stderr.decode("utf-8", "replace"), [])
        outcome.wrong += _judged(outcome, done.stdout, files, case)
        return outcome


def _words(case: Path, command: str, name: str, fault: str) -> tuple[list[Path], list[str]]:
    """The files that the command is to write, and its words."""
    out = case / "out" / name
    model = f"{case / 'net.py'}:net"
    if command == "analyze":
        files = [out / "report.html", out / "graph.dot"]
        return files, ["analyze", model, "--json", "--html", str(files[0]), "--dot", str(files[1])]
    if command == "measure":
        return [out / "cost.html"], ["measure", model, "--target", "cortex-m4f", "--json", "--html", str(out / "cost.html")]
    if command == "search":
        words = ["search", "--space", "nasbench201", "--engine", "random", "--budget", "6", "--objective", "params", "--workers", "1"]
        files = [out / "front.csv"]
        return files, [*words, "--json", "--out", str(out / "search"), "--csv", str(files[0])]
    if fault.startswith("stdout"):
        return [], ["cost", "show", "--target", "t", "--json"]
    return [out / "rows.jsonl"], ["cost", "export", str(out / "rows.jsonl")]


@contextmanager
def _folders(case: Path, disks: bool) -> Iterator[Path]:
    """The folders of a case, each on a small disk of its own where `disks`."""
    case.chmod(0o755)
    (case / "cwd").mkdir()
    (case / "net.py").write_text(MODEL)
    mounted = []
    try:
        for name in PLACES:
            (case / name).mkdir()
            if disks:
                subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(case / name)], check=True)
                mounted.append(case / name)
            (case / name).chmod(0o777)
        yield case
    finally:
        for folder in mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def _environment(case: Path, around: Surroundings) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("NEAPTIDE_", "PYTEST"))}
    env |= {f"FAULT_{name.upper()}": str(case / name) for name in PLACES}
    env |= {"NEAPTIDE_CACHE": str(case / "cache" / "here"), "NEAPTIDE_COSTS": str(case / "data" / "costs.sqlite")}
    env |= {"TMPDIR": str(case / "tmp" / "here"), "PYTHONDONTWRITEBYTECODE": "1"}
    env.setdefault("ZIG_GLOBAL_CACHE_DIR", str(Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zig"))
    for key, value in around.env.items():
        if value is None:
            env.pop(key, None)
        else:
            env[key] = value.format(case=case)
    return env


def _seed(case: Path, files: list[Path]) -> None:
    """Old files where new ones are to be, a known cost in the database, and the folders."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(OLD)
    (case / "out" / "here").mkdir(exist_ok=True)
    (case / "tmp" / "here").mkdir()
    (case / "cache" / "here").mkdir()
    from neaptide.targets.cost_rows import import_rows
    from neaptide.targets.database import CostDatabase

    rows = case / "rows"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with CostDatabase(case / "data" / "costs.sqlite") as database:
        import_rows(rows, database)


def _prepare(what: str, case: Path) -> None:
    if what.startswith("read-only"):
        subprocess.run(["mount", "-o", "remount,ro", str(case / what.split()[1])], check=True)
    elif what in ("1970", "2038"):
        when = 0 if what == "1970" else (1 << 31) + 5
        for path in case.rglob("*"):
            os.utime(path, (when, when))
    elif what.endswith("caches"):
        for name in ("kernels-v1.sqlite", "oracle-v1.sqlite"):
            (case / "cache" / "here" / name).write_bytes(b"" if what == "empty caches" else b"SQLite format 3\x00" + os.urandom(8192))


def _judged(outcome: Outcome, stdout: bytes, files: list[Path], case: Path) -> Iterator[str]:
    """What is wrong with an outcome, in words."""
    expected = _expected(outcome)
    if outcome.code not in expected:
        yield f"exit {outcome.code}, expected {' or '.join(map(str, expected))}"
    heard = not outcome.fault.startswith("stderr")
    sentences = [line for line in outcome.said.splitlines() if not line.startswith(SAID) and not _tells_rows(line)]
    wanted = 1 if outcome.code and outcome.fault != "stdout unread" else 0
    if heard and (len(sentences) != wanted or not all(s.startswith("neaptide: ") for s in sentences)):
        yield f"{len(sentences)} sentences, expected {wanted}"
    if any(word in outcome.said for word in ("Traceback", "bug in Neaptide", "Exception ignored")):
        yield "a raw error"
    if outcome.code == 0 and outcome.command != "cost" and not _is_json(stdout):
        yield "standard output is not the result"
    removed = outcome.fault == "output folder removed"
    for file in files:
        content = file.read_bytes() if file.exists() else None
        if content is None and not removed:
            yield f"{file.name} is lost"
        elif content is not None and content != OLD and not _whole(file, content):
            yield f"{file.name} is cut off"
        elif outcome.code == 0 and content in (None, OLD):
            yield f"{file.name} was not written"
    left = [p.name for p in (case / "out").rglob(".*")] + [p.name for p in (case / "tmp").rglob("neaptide-*") if not _to_sweep(p)]
    if left:
        yield f"left behind: {', '.join(left)}"


def _to_sweep(path: Path) -> bool:
    """Whether the next run finds and removes this: a lock with its folder, of a process that could not."""
    return path.with_suffix("").is_dir() and path.with_suffix(".lock").is_file()


def _expected(outcome: Outcome) -> tuple[int, ...]:
    known = EXPECTED.get(outcome.fault, {})
    keys = (f"{outcome.command} {outcome.moment}", outcome.command, "")
    return next((known[key] for key in keys if key in known), FINE)


def _tells_rows(line: str) -> bool:
    """Whether a line is no sentence: news of what was done, or the rest of a file's odd name."""
    return not line or line.endswith("--limit 0 shows all") or "$(x)" in line


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _whole(file: Path, content: bytes) -> bool:
    ends = {".html": b"</html>", ".dot": b"}", ".csv": b"", ".jsonl": b"}"}
    return content.rstrip().endswith(ends[file.suffix]) and (file.suffix != ".csv" or content.startswith(b"index,"))


def main() -> int:
    """Run the cases, say what is wrong, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains it")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="every N-th case, from the I-th on")
    parser.add_argument("--json", metavar="PATH", help="write every outcome")
    parser.add_argument("--verbose", action="store_true", help="say what each case said")
    options = parser.parse_args()
    done: list[Outcome] = []
    skipped = 0
    part, parts = map(int, options.part.split("/"))
    chosen = [case for case in cases() if options.only in ", ".join(case)]
    for fault, moment, command in chosen[part::parts]:
        outcome = run_case(fault, moment, command)
        if outcome is None:
            skipped += 1
            continue
        done.append(outcome)
        print(f"{'WRONG' if outcome.wrong else 'ok   '} {outcome.name}: exit {outcome.code} {'; '.join(outcome.wrong)}", flush=True)
        if outcome.wrong or options.verbose:
            print("      " + outcome.said.strip()[-1500:].replace("\n", "\n      "), flush=True)
    wrong = sum(bool(o.wrong) for o in done)
    print(f"{len(done)} cases of {len({o.fault for o in done})} faults: {wrong} wrong, {skipped} not run (they need root)")
    if options.json:
        Path(options.json).write_text(json.dumps([vars(o) for o in done], indent=1))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
