"""How Neaptide starts other processes: nothing of the working directory runs in them, and none outlives its parent.

Python searches the working directory first for `python -m` and `python -c`, so a `json.py` there would run; a relative entry of PATH
does the same to programs. Children of ours get a search path of absolute folders without the working directory, and programs are
looked up in absolute folders only.

A program is started through `supervisor.py`, which kills it and all that it started once this process is gone, `kill -9` included.
Processes of multiprocessing watch their parent themselves. On Windows a child is killed when this process ends in order, and reads the
end of its input when it is killed; no more is promised there.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from multiprocessing import parent_process, util
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from .errors import NeaptideError
from .scratch import scratch

SUPERVISOR = Path(__file__).with_name("supervisor.py")
_BOOT = """import sys
folders = sys.argv.pop(1).splitlines()
sys.path[:] = folders + [p for p in sys.path if p not in folders]
from importlib import import_module
import_module(sys.argv.pop(1)).main()"""
_PACKAGE = Path(os.path.abspath(__file__)).parents[1]
# The folder to find this package in, unless it is a checkout of another name: such a one is found by its installation.
_HOME = (str(_PACKAGE.parent),) if _PACKAGE.name == str(__package__).partition(".")[0] else ()
_FLAG = "-P" if sys.version_info >= (3, 11) else "-I"
PATIENCE_S = 5.0
_lock = threading.RLock()


class ProgramError(NeaptideError):
    """A program could not be started, failed, or ended well without having done its work. `said`: what it wrote to standard error;
    `out_of_time`: whether it took more processor time than it may.
    """

    def __init__(self, message: str, said: str = "", *, out_of_time: bool = False):
        super().__init__(message)
        self.said, self.out_of_time = said, out_of_time


class Said(NamedTuple):
    """What a program wrote to standard output and to standard error."""

    output: str
    complaint: str


def hold_descriptors() -> None:
    """Put something where a standard descriptor is closed: the next file or pipe would take its number, and what is printed."""
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):  # to read from, so that writing to it fails
        try:
            os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                opened = os.open(os.devnull, mode)
                if opened != descriptor:
                    os.dup2(opened, descriptor)
                    os.close(opened)


class Child:
    """A running program with pipes to its standard streams; leaving the `with` block ends it and all that it started."""

    def __init__(self, words: Sequence[str], *, limit_s: int = 0, folder: Path | None = None, **options: Any):
        """`words`: the program's absolute path and its arguments. `limit_s`: seconds of processor time it may take, 0 for any number
        (unheeded on Windows). `folder`: where it runs. `options`: of `subprocess.Popen`. Raises `ProgramError` when it cannot start.
        """
        self.words, self._lifeline = words, -1
        hold_descriptors()
        options = {"cwd": folder or os.path.abspath(os.sep), "env": environment(), **options}
        try:
            if os.name == "posix":
                theirs, self._lifeline = os.pipe()
                try:
                    supervised = [sys.executable, "-I", "-S", str(SUPERVISOR), str(theirs), str(limit_s), *words]
                    self.process = subprocess.Popen(supervised, pass_fds=(theirs,), start_new_session=True, **options)
                finally:
                    os.close(theirs)
            else:
                self.process = subprocess.Popen(words, **options)
        except OSError as error:
            if self._lifeline >= 0:
                os.close(self._lifeline)
            raise ProgramError(f"cannot start {words[0]!r}: {error.strerror or error}") from error

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue

    def status(self) -> int:
        """The exit status of a program that has closed its output, negative for a signal; one that does not end is killed."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            return self.end()

    def end(self) -> int:
        """Kill what still runs; the exit status, negative for a signal."""
        if self._lifeline >= 0:
            lifeline, self._lifeline = self._lifeline, -1
            os.close(lifeline)
        elif os.name != "posix":
            self.process.kill()
        return self.process.wait()


def run(
    words: Sequence[str],
    *,
    folder: Path | None = None,
    made: Path | None = None,
    limit_s: int = 0,
    variables: Mapping[str, str] | None = None,
) -> Said:
    """Run a program to its end. Arguments as of `Child`; its temporary files are ours to sweep. `variables`: of its environment, besides.

    Raises `ProgramError` when it cannot start or its exit status is not 0, and when it is 0 but the file `made` was not written or,
    without `made`, nothing was said: a program that did nothing is not one that succeeded.
    """
    name = os.path.basename(words[0])
    before = None if made is None else _stamp(made)
    with scratch() as room:
        env = environment(TMPDIR=str(room), TMP=str(room), TEMP=str(room), **(variables or {}))
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with Child(words, limit_s=limit_s, folder=folder, env=env, **pipes, text=True, encoding="utf-8", errors="replace") as child:
            said, complaint = child.process.communicate()
            status = child.process.wait()
    if status:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        late = -status == getattr(signal, "SIGXCPU", None)
        raise ProgramError(f"{name} {how}: {complaint.strip()[-2000:] or 'it said nothing'}", complaint, out_of_time=late)
    if made is not None and _stamp(made) in (None, before):
        raise ProgramError(f"{name} ended without an error but did not write {made.name}; is {words[0]!r} what it should be?", complaint)
    if made is None and not said.strip():
        raise ProgramError(f"{name} ended without an error but said nothing; is {words[0]!r} what it should be?", complaint)
    return Said(said, complaint)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written; None for an empty file or none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return (facts.st_ino, facts.st_mtime_ns, facts.st_size) if facts.st_size else None


def program(name: str) -> str | None:
    """The absolute path of a program in PATH's absolute folders, or None."""
    folders = _absolute(os.environ.get("PATH", os.defpath))
    found = shutil.which(name, path=folders)
    return found if found and os.path.isabs(found) else None  # Windows looks in the working directory as well, as "."


def zig() -> str | None:
    """The absolute path of the compiler in the package ziglang, or None where it is not installed."""
    spec = find_spec("ziglang")
    found = Path(spec.origin).with_name("zig.exe" if os.name == "nt" else "zig") if spec and spec.origin else None
    return str(found.resolve()) if found and found.is_file() else None


def python(module: str, *words: str) -> list[str]:
    """The command that runs `main()` of a module of ours in a fresh Python, with this one's folders but the working directory."""
    return [sys.executable, "-I", "-B", "-c", _BOOT, "\n".join(import_folders()), module, *words]


def import_folders() -> list[str]:
    """Where a child looks for modules: this process's absolute folders in order, without the working directory, then Neaptide's own."""
    here = os.path.realpath(os.getcwd()) if _has_working_directory() else None
    folders = [p for p in sys.path if os.path.isabs(p) and os.path.realpath(p) != here and "\n" not in p]
    return list(dict.fromkeys((*folders, *_HOME)))


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except OSError:  # it was removed
        return False
    return True


def environment(**more: str) -> dict[str, str]:
    """This process's environment with `more`, without PATH's relative folders; Python adds no folder of its own accord (3.11 on)."""
    kept = {**os.environ, "PYTHONSAFEPATH": "1", **more}
    if "PATH" in kept:
        kept["PATH"] = _absolute(kept["PATH"])
    return kept


@contextmanager
def safe_environment() -> Iterator[None]:
    """Inside, `environment()` is that of this process: for what libraries start by themselves."""
    before = {name: os.environ.get(name) for name in ("PATH", "PYTHONSAFEPATH")}
    os.environ.update({name: value for name, value in environment().items() if name in before})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _absolute(path: str) -> str:
    return os.pathsep.join(folder for folder in path.split(os.pathsep) if os.path.isabs(folder))


# ---- multiprocessing ---------------------------------------------------------------------------------------------------------


@contextmanager
def _safe_flags() -> Iterator[None]:
    """Inside, multiprocessing starts Python without the working directory on its path; it passes the parent's path on by itself."""
    with _lock:
        known: Any = util
        flags = known._args_from_interpreter_flags
        known._args_from_interpreter_flags = lambda: [_FLAG, *(f for f in flags() if f != _FLAG)]
        try:
            yield
        finally:
            known._args_from_interpreter_flags = flags


class ChildProcess(SpawnProcess):
    """A process of multiprocessing that is started safely and ends when its parent does, however that ends."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _safe_flags():
            return SpawnProcess._Popen(process_obj)  # pyright: ignore[reportAttributeAccessIssue]

    def run(self) -> None:
        threading.Thread(target=_end_with_parent, daemon=True).start()
        super().run()


class ChildContext(SpawnContext):
    """multiprocessing's "spawn" with `ChildProcess`; what it needs beside its processes is started as safely."""

    Process = ChildProcess

    def __init__(self) -> None:
        super().__init__()
        if os.name == "posix":
            from multiprocessing import resource_tracker

            with _safe_flags():
                resource_tracker.ensure_running()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
