"""Child processes: what they may load, how they end, what they must have done, and the folders and locks of processes that died."""

from __future__ import annotations

import ast
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kill import COMMAND, MARK, Command, killed, marked
from neaptide.compiler import children, oracle, scratch
from neaptide.compiler.children import (
    Child,
    ProgramError,
    environment,
    import_folders,
    program,
    run,
    safe_environment,
)
from neaptide.compiler.errors import NeaptideError
from neaptide.compiler.oracle import stopped
from neaptide.compiler.patience import Patience, processor_seconds

posix = pytest.mark.skipif(os.name != "posix", reason="supervisors are for POSIX systems")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
Start = Callable[..., subprocess.Popen[Any]]
SHADOWS = (
    "json", "torch", "multiprocessing", "ziglang", "numpy", "neaptide", "numba", "tvm", "subprocess", "runpy", "encodings", "typing",
    "importlib", "sitecustomize", "usercustomize", "pickle", "optuna", "platform", "resource", "sqlite3", "yaml", "onnx", "unicorn",
)  # fmt: skip
TOOLS = ("zig", "nvcc", "gcc", "cc", "c++", "clang", "ld", "uname", "ldconfig", "arm-none-eabi-gcc", "qemu-system-arm", "git", "lscpu")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose modules and programs, should one of them run, leave a file `canary` behind."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    act = f"open({str(tmp_path / 'canary')!r}, 'a').write(__name__ + ' ')\n"
    for i, name in enumerate(SHADOWS):
        if i % 2:
            (folder / name).mkdir()
        (folder / name / "__init__.py" if i % 2 else folder / f"{name}.py").write_text(act)
    for name in TOOLS:
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> {tmp_path / 'canary'}\n")
        (folder / name).chmod(0o755)
    (folder / ".numba_config.yaml").write_text(f"CACHE_DIR: {folder / 'caches'}\n")
    return folder


def ran_in(hostile: Path, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The command line as its console script starts it, with the hostile folder as working directory and in PATH."""
    script = hostile.parent / "script.py"
    script.write_text(COMMAND)
    env = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    env |= {"NEAPTIDE_CACHE": str(hostile.parent / "cache"), "NEAPTIDE_COSTS": str(hostile.parent / "costs.sqlite"), "PYTHONPATH": ""}
    env["PATH"] = f".:{env['PATH']}:"
    return subprocess.run([sys.executable, str(script), *words], cwd=hostile, env=env, capture_output=True, text=True)


def told(hostile: Path) -> str:
    """What of the hostile folder has run."""
    canary = hostile.parent / "canary"
    return canary.read_text() if canary.exists() else ""


SEARCH = "search --space nasbench201 --space-option C=4 --space-option N=1 --engine random --preset smoke --objective macs,peak --budget 4"
COMMANDS = {
    "analyze": "analyze autoencoder",
    "measure": "measure ds_cnn --target stm32f746",
    "cuda": "measure autoencoder --target sm_90",
    "search": f"{SEARCH} --workers 2 --measure 0 --out study",
    "cost": "cost show",
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_nothing_of_the_working_directory_runs(hostile: Path, words: str) -> None:
    for module in {"measure": ("tvm", "ziglang", "unicorn"), "search": ("optuna",)}.get(words.split()[0], ()):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} not installed")
    done = ran_in(hostile, words.split())
    assert (done.returncode, told(hostile)) == (0, ""), done.stderr
    assert not (hostile / "caches").exists(), "numba kept pickles where the folder's configuration says"


def test_the_hostile_folder_is_one(hostile: Path) -> None:
    """What Python does without our care: the test above would see it."""
    subprocess.run([sys.executable, "-c", "import json"], cwd=hostile, env={**os.environ, "PYTHONSAFEPATH": ""})
    assert "json" in told(hostile)
    (hostile.parent / "canary").unlink()
    subprocess.run("uname", shell=True, cwd=hostile, env={**os.environ, "PATH": f".:{os.environ['PATH']}"})
    assert told(hostile) == "uname\n"


def test_processes_of_multiprocessing_start_safely(hostile: Path) -> None:
    (hostile.parent / "own.py").write_text(
        "from neaptide.compiler.children import ChildContext\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "if __name__ == '__main__':\n"
        "    with ProcessPoolExecutor(2, ChildContext()) as pool:\n"
        "        print(list(pool.map(abs, [-1, -2])))\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    done = subprocess.run([sys.executable, str(hostile.parent / "own.py")], cwd=hostile, env=env, capture_output=True, text=True)
    assert (done.stdout, told(hostile)) == ("[1, 2]\n", ""), done.stderr


def test_folders_to_import_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), str(tmp_path / "link"), "relative", "/first", "/second", "/first"])
    assert import_folders()[:2] == ["/first", "/second"]
    package = Path(children.__file__).absolute().parents[1]
    assert import_folders()[2:] == [str(package.parent)] * (package.name == "neaptide")


def test_programs_are_found_in_absolute_folders(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hostile)
    monkeypatch.setenv("PATH", ".:hostile::")
    assert program("zig") is None
    monkeypatch.setenv("PATH", f".:{hostile}/")
    assert program("zig") == str(hostile / "zig")
    assert environment()["PATH"] == f"{hostile}/"
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    with safe_environment():
        assert (os.environ["PATH"], os.environ["PYTHONSAFEPATH"]) == (f"{hostile}/", "1")
    assert (os.environ["PATH"], os.environ["PYTHONSAFEPATH"]) == (f".:{hostile}/", "")


# ---- a program that did not do its work ----------------------------------------------------------------------------------------


@posix
def test_success_without_the_work_is_an_error(tmp_path: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(ProgramError, match="true ended without an error but said nothing"):
        run([program("true") or ""])
    for old in (False, True):  # an old file is no work either
        if old:
            made.write_text("old")
        with pytest.raises(ProgramError, match="true ended without an error but did not write made"):
            run([program("true") or ""], made=made)
    assert run([program("sh") or "", "-c", f"echo new > {made}; echo said; echo warned >&2"], made=made) == ("said\n", "warned\n")


@posix
def test_failures_name_the_program_and_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="cannot start '/nowhere/cc': No such file") as caught:
        run(["/nowhere/cc"])
    assert not caught.value.out_of_time
    with pytest.raises(ProgramError, match="sh ended with status 3: no room"):
        run([program("sh") or "", "-c", "echo no room >&2; exit 3"])
    with pytest.raises(ProgramError, match="sh was ended by signal 11: it said nothing"):
        run([program("sh") or "", "-c", "kill -SEGV $$"])
    with pytest.raises(ProgramError) as caught:
        run([sys.executable, "-I", "-S", "-c", "while True: pass"], limit_s=1)
    assert caught.value.out_of_time


def test_a_compiler_that_does_nothing_is_a_build_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neaptide.targets.file_cache import FileCache
    from neaptide.targets.mcu import toolchain

    monkeypatch.setattr(toolchain, "zig", lambda: program("true"))
    (tmp_path / "x.c").write_text("int f(void) { return 1; }")
    if importlib.util.find_spec("ziglang"):
        with pytest.raises(toolchain.BuildError, match=r"x\.c .*did not write"):
            toolchain.host_library(tmp_path / "x.c", FileCache(tmp_path / "cache"))


@pytest.mark.parametrize("text", ["", "print('hello')", "print('[1]')", "print('{\"ready\": 1}')"])
def test_a_worker_that_does_not_do_its_work_is_an_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "python", lambda *words: [sys.executable, "-I", "-S", "-c", text])
    with pytest.raises(NeaptideError, match="did not start"), oracle.Worker(1, 1 << 30) as worker:
        worker.ask("{}", 1.0)


# ---- death with the parent -----------------------------------------------------------------------------------------------------

PARENT = """
import sys
sys.path[:0] = {path}
from neaptide.compiler.children import Child, ChildContext, run
{act}
"""
CHILD = ["/bin/sh", "-c", "sleep 1000 & sleep 1000"]
BEGIN = "if __name__ == '__main__':\n    process = ChildContext().Process(target=wait)\n    process.start()\n    process.join()"
ACTS = {
    "program": f"run({CHILD})",
    "child": f"child = Child({CHILD})\nchild.process.wait()",
    "process": f"def wait():\n    import time\n    time.sleep(1000)\n{BEGIN}",
    "busy process": f"def wait():\n    while True: pass\n{BEGIN}",
}


def gone(mark: str) -> bool:
    """Waits, for as long as a test may take, until no process carries `mark`."""
    for _ in range(1200):
        if not marked(mark):
            return True
        time.sleep(0.05)
    return False


@linux
@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_nothing_outlives_a_killed_parent(act: str, start: Start, tmp_path: Path) -> None:
    script, mark = tmp_path / "parent.py", f"{tmp_path}"
    script.write_text(PARENT.format(path=sys.path, act=act))
    process = start([sys.executable, str(script)], env={**os.environ, MARK: mark})
    least = 4 if str(CHILD) in act else 3  # with the shell's child, or with multiprocessing's resource tracker
    while len(marked(mark)) < least:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert gone(mark), "some process ran on"


@linux
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, start: Start) -> None:
    script, mark = tmp_path / "parent.py", f"{tmp_path}"
    script.write_text(PARENT.format(path=sys.path, act=ACTS["program"]))
    process = start([sys.executable, str(script)], env={**os.environ, MARK: mark, "TMPDIR": str(tmp_path)}, stderr=subprocess.DEVNULL)
    while len(marked(mark)) < 4:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.wait()
    assert marked(mark) == [] and list(tmp_path.iterdir()) == [script], "all is gone before the parent is"


@posix
def test_ending_a_child_tells_its_status() -> None:
    with Child(["/bin/sh", "-c", "exit 7"]) as child:
        assert child.status() == 7
    with Child(["/bin/sleep", "1000"]) as child:
        assert child.end() == -signal.SIGKILL


# ---- temporary folders and locks -----------------------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_the_next_run_sweeps_folders_of_the_dead_only(temporary: Path, start: Start) -> None:
    program = f"import sys, tempfile, time; sys.path[:0] = {sys.path}; tempfile.tempdir = {str(temporary)!r}\n"
    program += "from neaptide.compiler.scratch import scratch\nwith scratch() as folder:\n    (folder / 'x').mkdir()\n"
    program += "    (folder / 'x' / 'y').write_text('')\n    print(folder, flush=True)\n    time.sleep(1000)"
    dying, living = (start([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2))
    assert dying.stdout is not None and living.stdout is not None
    dead, alive = (Path(stream.readline().strip()) for stream in (dying.stdout, living.stdout))
    dying.kill()
    dying.wait()
    outside = temporary.parent / "outside"
    outside.mkdir()
    (temporary / "neaptide-link").symlink_to(outside)
    (temporary / "neaptide-link.lock").write_text("")
    (temporary / "neaptide-away.lock").symlink_to(outside / "none")
    (temporary / "neaptide-other").mkdir()  # of somebody else: it has no lock
    (temporary / "other.lock").write_text("")
    with scratch.scratch() as mine:
        assert scratch.sweep() == 2
        assert mine.is_dir() and alive.is_dir() and not dead.exists() and outside.is_dir()
    left = {path.name for path in temporary.iterdir()}
    assert left == {alive.name, f"{alive.name}.lock", "neaptide-link", "neaptide-away.lock", "neaptide-other", "other.lock"}
    assert scratch.sweep() == 0
    for process in (dying, living):
        assert process.stdout is not None
        process.stdout.close()


def test_no_room_for_temporary_folders(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(temporary / "none"))
    assert scratch.sweep() == 0
    with pytest.raises(NeaptideError, match="TMPDIR"), scratch.scratch():
        pass


def test_what_is_made_alone_is_made_once(tmp_path: Path, start: Start) -> None:
    """Eight at once: each adds a line if there is none, after a look that the others could fall into."""
    program = f"import sys, time; sys.path[:0] = {sys.path}\nfrom pathlib import Path\nfrom neaptide.compiler.scratch import alone\n"
    program += f"made = Path({str(tmp_path / 'made')!r})\nwith alone(Path({str(tmp_path / 'lock')!r})):\n"
    program += "    if not made.exists():\n        time.sleep(0.1)\n        made.open('a').write('once ')"
    for process in [start([sys.executable, "-c", program]) for _ in range(8)]:
        assert process.wait() == 0
    assert (tmp_path / "made").read_text() == "once "


def test_a_lock_is_waited_for_only_while_its_holder_gets_on(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"import sys, time; sys.path[:0] = {sys.path}\nfrom pathlib import Path\nfrom neaptide.compiler.scratch import alone\n"
    program += f"with alone(Path({str(tmp_path / 'lock')!r})):\n    print('in', flush=True)\n    time.sleep(1000)"
    holder = start([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"in\n"
    passed = iter(range(0, 10**6, 50))
    monkeypatch.setattr(scratch, "Patience", lambda: Patience(120.0, lambda: float(next(passed))))
    monkeypatch.setattr(scratch, "POLL_S", 0.0)
    with scratch.alone(tmp_path / "lock"):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with scratch.alone(tmp_path / "lock"):  # free now
        pass
    with scratch.alone(tmp_path / "lock" / "below a file"):  # cannot be made
        pass


# ---- waits ---------------------------------------------------------------------------------------------------------------------


def test_patience_ends_where_nothing_is_done() -> None:
    now = [0.0]
    patience = Patience(100.0, lambda: now[0])
    for now[0], spent, over in (
        (90, 0.01, False),
        (99, 1.0, False),
        (198, 1.04, False),
        (200, 1.04, True),
        (201, 3.0, False),
        (1e6, 9.0, False),
    ):
        assert patience.ended(spent) is over


@linux
def test_processor_time_of_processes() -> None:
    before = processor_seconds(os.getpid())
    while time.process_time() < before + 0.1:
        pass
    assert processor_seconds(os.getpid()) > before
    assert processor_seconds(1 << 30) == 0.0


def test_a_kernel_is_stopped_by_its_processor_time_not_by_the_clock() -> None:
    limits = {"timeout": 60.0, "threads": 2}
    assert stopped(10.0, 10.0, 3600.0, **limits) is None, "a busy machine gave it ten seconds in an hour"
    assert stopped(60.0, 120.0, 60.0, **limits) is None
    quiet = stopped(60.5, 61.0, 61.0, **limits)
    assert quiet == {"reason": "took longer than 60 s", "transient": False, "stopped": True}
    assert stopped(60.5, 61.0, 600.0, **limits) == {"reason": "took longer than 60 s", "transient": True, "stopped": True}, (
        "on a quiet machine it may not take as much"
    )
    assert stopped(1.0, 121.0, 61.0, **limits) == quiet, "threads of its own"


# ---- all of it -----------------------------------------------------------------------------------------------------------------


@linux
@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="optuna not installed: pip install 'neaptide[search]'")
def test_a_search_killed_at_random_moments(tmp_path: Path) -> None:
    """A small run of `make fuzz-kill`."""
    from benchmarks.kill import trials

    words = f"{SEARCH} --workers 2 --measure 0 --out {{folder}}/study --resume --json"
    command = Command("search", tuple(words.split()), trials, lambda found: [found[k] for k in ("front", "trials")])
    found = killed(command, 2, tmp_path)
    assert found.good, found


# ---- and nowhere else ----------------------------------------------------------------------------------------------------------

STARTERS = {
    "subprocess": {"run", "Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput"},
    "os": {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", *(n for n in dir(os) if n.startswith(("exec", "spawn")))},
    "shutil": {"which"},
    "multiprocessing": {"get_context", "Process", "Pool", "Manager", "set_start_method"},
    "tempfile": {"TemporaryDirectory", "mkdtemp", "NamedTemporaryFile", "TemporaryFile", "gettempdir", "mktemp"},
    "numba": {"njit", "jit"},
}
OWNERS = {"compiler/children.py", "compiler/supervisor.py", "compiler/scratch.py", "passes/kernels/compiled.py"}


def test_processes_and_temporary_folders_have_one_owner() -> None:
    root = Path(children.__file__).resolve().parents[1]
    rooms = ("compiler", "passes", "targets", "search", "testing", "report")
    files = [*root.glob("*.py"), *(path for room in rooms for path in (root / room).rglob("*.py"))]
    found = {str(path.relative_to(root)): starters(path.read_text()) for path in files}
    assert {name for name, uses in found.items() if uses} == OWNERS, (
        "use compiler/children.py, compiler/scratch.py, passes/kernels/compiled.py"
    )
    assert len(files) > 200


def starters(source: str) -> set[str]:
    """Functions of `STARTERS` that a module imports or reads, and pools that are not given how they start their processes."""
    uses = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in STARTERS:
            uses |= {alias.name for alias in node.names} & STARTERS[node.module]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in STARTERS.get(node.value.id, ()):
            uses.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ProcessPoolExecutor":
            uses |= set() if "ChildContext()" in ast.unparse(node) else {"ProcessPoolExecutor"}
    return uses


def test_starters_are_seen() -> None:
    assert starters("import subprocess\nsubprocess.run([])") == {"run"}
    assert starters("from tempfile import mkdtemp") == {"mkdtemp"}
    assert starters("ProcessPoolExecutor(2)") == {"ProcessPoolExecutor"}
    assert starters("import os\nos.environ\nrun([])\nProcessPoolExecutor(2, ChildContext())") == set()
