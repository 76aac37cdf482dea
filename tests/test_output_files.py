"""Output files: whole or as they were, whatever fails; devices, pipes and links are written through."""

from __future__ import annotations

import ast
import os
import resource
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import neaptide
from neaptide.compiler.errors import FormatError
from neaptide.compiler.output_files import check_writable, write_bytes, write_text, writing
from neaptide.search.weights import save_weights
from neaptide.targets.cost_rows import export_rows
from neaptide.targets.database import OperatorRow
from neaptide.targets.predictors import Columns, fit, save_predictor

ROOT = Path(neaptide.__file__).resolve().parent
# Modules that write what is no output: cache entries, and sources for a compiler or an emulator in a folder of their own.
WRITERS = {"compiler/output_files.py", "targets/file_cache.py", "targets/mcu/toolchain.py", "targets/mcu/qemu_run.py", "targets/nvcc.py"}
WRITING_CALLS = {
    "write_text",
    "write_bytes",
    "savez",
    "savez_compressed",
    "save_file",
    "tofile",
    "savetxt",
    "to_csv",
    "symlink_to",
    "touch",
}


@contextmanager
def no_room(beyond: int = 100) -> Iterator[None]:
    """Inside: no file of this process grows past `beyond` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (beyond, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Inside: this process's umask."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    """Permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_what_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        write_text(tmp_path / "new", "text")
    assert mode(tmp_path / "new") == 0o666 & ~mask and (tmp_path / "new").read_text() == "text"


def test_an_old_file_keeps_its_mode_and_owner(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_text("a longer text than what comes")
    path.chmod(0o741)
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    before = path.stat()
    write_bytes(path, b"new")
    after = path.stat()
    assert path.read_bytes() == b"new" and after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert os.listdir(tmp_path) == ["old"]


def test_what_fails_half_way_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    for failing, raised in ((ZeroDivisionError, ZeroDivisionError), (KeyboardInterrupt, KeyboardInterrupt), (OSError, FormatError)):
        for name in ("old", "new"):
            with pytest.raises(raised), writing(tmp_path / name) as stream:
                stream.write(b"half")
                raise failing
    assert os.listdir(tmp_path) == ["old"] and (tmp_path / "old").read_text() == "old"


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link, chain = tmp_path / "folder" / "target", tmp_path / "link", tmp_path / "chain"
    link.symlink_to("folder/target")
    chain.symlink_to(link)
    for text in ("made through a dangling link", "replaced"):
        write_text(chain, text)
        assert chain.is_symlink() and link.is_symlink() and not target.is_symlink() and target.read_text() == text
    assert os.listdir(tmp_path / "folder") == ["target"]
    check_writable(link)
    link.unlink()
    link.symlink_to("nowhere/target")
    with pytest.raises(FormatError, match=r"no folder .*nowhere"):
        check_writable(chain)


def test_a_pipe_is_written_through_and_looking_at_it_does_not_wait(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_writable(pipe)
    heard: list[bytes] = []
    reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()))
    reader.start()
    write_bytes(pipe, bytes(1 << 20))
    reader.join()
    assert heard == [bytes(1 << 20)] and stat.S_ISFIFO(pipe.stat().st_mode) and os.listdir(tmp_path) == ["pipe"]


def test_devices_are_written_through() -> None:
    check_writable("/dev/null")
    write_text("/dev/null", "text")
    with pytest.raises(FormatError, match=r"/dev/full.*No space left"):
        write_text("/dev/full", "text")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_standard_output_takes_a_file_after_what_was_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    write_text("/dev/stdout", "through\n")
    print("after")
    assert capfd.readouterr().out == "before\nthrough\nafter\n"


def test_names_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, f"{tmp_path}/new/", "", ".", f"{tmp_path}/file/below", f"{tmp_path}/no/folder", f"{tmp_path}/a\0b"):
        with pytest.raises(FormatError, match="cannot write"):
            write_text(path, "text")
        with pytest.raises(FormatError, match="cannot write"):
            check_writable(path)
    longest = tmp_path / ("n" * 255)
    write_text(longest, "text")
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/a b\n\xff"))
    write_text(odd, "text")
    assert longest.read_text() == odd.read_text() == "text"


@pytest.fixture
def plain_user(tmp_path: Path) -> Iterator[None]:
    """Whom permissions bind: another user where this one is root."""
    if os.geteuid() != 0:
        yield
        return
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    os.chown(tmp_path, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_may_be_written_in_a_folder_that_may_not(tmp_path: Path, plain_user: None) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("old text")
    folder.chmod(0o555)
    number = (folder / "file").stat().st_ino
    check_writable(folder / "file")
    for text in ("new", "longer than what was there before"):
        write_text(folder / "file", text)
        assert (folder / "file").read_text() == text and (folder / "file").stat().st_ino == number
    with no_room(40), pytest.raises(FormatError, match="cannot write"):
        write_text(folder / "file", "x" * 100)
    assert (folder / "file").read_text() == text, "what was there is there again"
    with pytest.raises(FormatError, match="permission"):
        check_writable(folder / "new")
    with pytest.raises(FormatError, match="denied"):
        write_text(folder / "new", "text")
    folder.chmod(0o755)
    (folder / "file").chmod(0o444)
    for refused in (check_writable, lambda path: write_text(path, "x")):
        with pytest.raises(FormatError, match="no permission to write it"):
            refused(folder / "file")


class Net(torch.nn.Module):
    """Large enough that no file of it fits into `no_room`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(8)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def _savers() -> dict[str, Callable[[Any], object]]:
    analysis = neaptide.analyze(Net(), (torch.zeros(1, 8),), kernels=False)
    rows = [OperatorRow(f"op{i}(1x2,1x2)", "t", "c", float(i)) for i in range(8)]
    columns = Columns({}, {"a": np.arange(20.0), "b": np.arange(20.0) ** 2})
    return {
        "html": analysis.save_html,
        "json": analysis.save_json,
        "trace": analysis.save_chrome_trace,
        "snapshot": analysis.save_memory_snapshot,
        "dot": analysis.save_dot,
        "graph": analysis.graph.save_json,
        "weights": lambda path: save_weights(path, Net().state_dict()),
        "rows": lambda path: export_rows(rows, path),
        "predictor": lambda path: save_predictor(fit(columns, np.arange(1.0, 21.0), boosting=False), path),
    }


def test_no_room_costs_no_old_file(tmp_path: Path) -> None:
    for name, save in _savers().items():
        path = tmp_path / name
        path.write_text("old")
        with no_room(), pytest.raises(FormatError, match=f"cannot write .*{name}"):
            save(path)
        assert path.read_text() == "old" and set(os.listdir(tmp_path)) == {name}, name
        save(path)
        assert path.stat().st_size > 100
        path.unlink()


def test_nothing_else_in_the_package_writes_files() -> None:
    found: dict[str, list[str]] = {}
    for source in sorted(ROOT.rglob("*.py")):
        name = source.relative_to(ROOT).as_posix()
        if name.split("/")[0] in {"tests", "benchmarks", "docs", "examples", "build"} or name.startswith(".") or name in WRITERS:
            continue
        tree = ast.parse(source.read_text())
        found |= {name: calls} if (calls := [ast.unparse(c) for c in ast.walk(tree) if isinstance(c, ast.Call) and _writes(c)]) else {}
    assert found == {}, "output files go through compiler/output_files.py"


def _writes(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Attribute):
        if call.func.attr in {"savez", "savez_compressed"}:
            return ast.unparse(call.args[0]) != "packed" if call.args else True
        return call.func.attr in WRITING_CALLS or (call.func.attr == "open" and _mode(call, 0))
    return isinstance(call.func, ast.Name) and call.func.id == "open" and _mode(call, 1)


def _mode(call: ast.Call, at: int) -> bool:
    given = [*call.args[at : at + 1], *(k.value for k in call.keywords if k.arg == "mode")]
    return any(isinstance(m, ast.Constant) and isinstance(m.value, str) and set(m.value) & set("wax+") for m in given)
