"""Studies from strangers: a folder taken up again runs no file that its user did not run, unpickles nothing and trusts no schema."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import neaptide
from neaptide.cli import main
from neaptide.compiler.errors import FormatError, NeaptideError, SourceError
from neaptide.search import own_files
from neaptide.search.data import load_data
from neaptide.search.setup import KINDS
from neaptide.search.spaces import load_space
from neaptide.targets.spec import load_target

pytest.importorskip("optuna")

SPACE = """
import pathlib
pathlib.Path({ran!r}).touch()
from torch import nn
from neaptide.search import OwnSpace

class Tiny(OwnSpace):
    choices = {{"width": (4, 8, 12), "kernel": (1, 3)}}

    def build(self, choices):
        return nn.Sequential(nn.Conv2d(3, choices["width"], choices["kernel"]), nn.ReLU())

    def shape(self, choices):
        return (1, 3, 8, 8)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NEAPTIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NEAPTIDE_COSTS", str(tmp_path / "costs.sqlite"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of a space in a file."""
    place = tmp_path_factory.mktemp("made")
    (place / "mine.py").write_text(SPACE.format(ran=str(place / "ran")))
    space, folder = f"{place / 'mine.py'}:Tiny", place / "study"
    neaptide.search(space, "random", objectives="peak", budget=2, folder=folder)
    assert (place / "ran").exists()
    return folder


@pytest.fixture
def begun(tmp_path: Path, home: Path, made: Path) -> tuple[Path, Path, Path]:
    """A study of a space in a file that the user ran: its folder, the file, and what the file leaves behind when it runs."""
    ran, file, folder = tmp_path / "ran", tmp_path / "mine.py", tmp_path / "study"
    file.write_text(SPACE.format(ran=str(ran)))
    shutil.copytree(made, folder)
    set_description(folder, space=f"{file}:Tiny")
    own_files.remember(file, file.read_bytes())
    return folder, file, ran


def resume(folder: Path, *more: str) -> int:
    return main(["search", "--resume", "--out", str(folder), "--budget", "3", "--json", "--workers", "1", *more])


def test_ones_own_study_goes_on_while_the_file_is_as_it_was(begun, capsys):
    folder, file, ran = begun
    assert resume(folder) == 0, capsys.readouterr().err
    assert ran.exists()
    ran.unlink()
    file.write_text(file.read_text() + "\n# changed\n")
    assert resume(folder) == 2
    said = capsys.readouterr().err
    assert str(file) in said and "not as it was" in said and f"--space '{file}:Tiny'" in said
    assert not ran.exists()
    assert resume(folder, "--space", f"{file}:Tiny") == 0
    assert ran.exists()
    assert resume(folder) == 0


def test_a_strangers_study_runs_nothing(begun, home, capsys):
    folder, file, ran = begun
    (home / "neaptide" / own_files.FILE).unlink()  # another user
    assert resume(folder) == 2
    said = capsys.readouterr().err
    assert str(file) in said and "you have not run a search with it" in said
    with pytest.raises(SourceError, match="you have not run"):
        neaptide.search(folder=folder, resume=True)
    assert not ran.exists()


def test_nothing_in_the_study_vouches_for_its_file(begun, home, capsys):
    """A digest beside the study, or compiled code beside the file, says nothing."""
    folder, _, ran = begun
    known = home / "neaptide" / own_files.FILE
    (folder / own_files.FILE).write_bytes(known.read_bytes())
    known.unlink()
    assert resume(folder) == 2
    assert not ran.exists()


def test_compiled_code_beside_a_file_is_not_run(begun, tmp_path, capsys):
    import importlib.util
    import py_compile

    folder, file, ran = begun
    other, evil = tmp_path / "evil.py", tmp_path / "evil"
    other.write_text(f"open({str(evil)!r}, 'w')".ljust(len(file.read_text())))
    os.utime(other, (file.stat().st_atime, file.stat().st_mtime))
    compiled = importlib.util.cache_from_source(str(file))
    py_compile.compile(str(other), cfile=compiled, doraise=True)
    assert resume(folder) == 0, capsys.readouterr().err
    assert ran.exists() and not evil.exists()


def description(folder: Path) -> dict[str, Any]:
    db = sqlite3.connect(folder / "study.sqlite")
    ((text,),) = db.execute("SELECT value_json FROM study_user_attributes WHERE key = 'neaptide'").fetchall()
    db.close()
    return json.loads(text)


def set_description(folder: Path, **values: Any) -> None:
    changed = json.dumps({**description(folder), **values})
    db = sqlite3.connect(folder / "study.sqlite")
    db.execute("UPDATE study_user_attributes SET value_json = ? WHERE key = 'neaptide'", (changed,))
    db.commit()
    db.close()


@pytest.mark.parametrize("name", ["{0}:x.py:Tiny", "{0}:Tiny.py:", "{0}:x:Tiny", "{0}:x.pyc:Tiny", "./strange.py:Tiny", "strange.py:Tiny"])
def test_other_ways_to_name_a_file_run_nothing(name, begun, tmp_path, monkeypatch, capsys):
    folder, _, ran = begun
    strange = tmp_path / "strange.py"
    text = SPACE.format(ran=str(ran))
    for file in (strange, tmp_path / "strange.py:x.py", tmp_path / "strange.py:x.pyc", tmp_path / "strange.py:x"):
        file.write_text(text)
    monkeypatch.chdir(tmp_path)
    set_description(folder, space=name.format(strange))
    assert resume(folder) == 2
    assert not ran.exists()
    assert "bug" not in capsys.readouterr().err


@pytest.mark.parametrize("space", [3, None, ["x.py:Tiny"], {"x": 1}])
def test_a_study_whose_space_is_no_name(space, begun, capsys):
    folder, _, _ = begun
    set_description(folder, space=space)
    assert resume(folder) == 2
    assert "bug" not in capsys.readouterr().err


@pytest.mark.parametrize("key", [*KINDS, "versions", "stranger"])
def test_a_description_of_other_kinds_is_refused(key, begun, capsys):
    folder, _, ran = begun
    for wrong in (1.5, [3], {"a": []} if key not in ("versions", *(k for k, kinds in KINDS.items() if dict in kinds)) else "text"):
        set_description(folder, **{key: wrong})
        assert resume(folder) == 2
        said = capsys.readouterr().err
        assert (key in said and "damaged" in said) or "names no space" in said, said
    assert not ran.exists()


def test_an_engine_is_never_a_file(begun, tmp_path, capsys):
    folder, _, _ = begun
    set_description(folder, engine=f"{tmp_path / 'mine.py'}:Tiny")
    assert resume(folder) == 2
    assert "no engine" in capsys.readouterr().err


def test_texts_of_a_study_are_shown_safely(begun, tmp_path, capsys):
    folder, _, _ = begun
    name = "\x1b[2J [/red] \u202e \x9b"
    db = sqlite3.connect(folder / "study.sqlite")
    db.execute("UPDATE trial_user_attributes SET value_json = ? WHERE key = 'origin'", (json.dumps(f"=1+2{name}"),))
    db.commit()
    db.close()
    front, page = tmp_path / "front.csv", tmp_path / "front.html"
    words = ["search", "--resume", "--out", str(folder), "--workers", "1", "--csv", str(front), "--html", str(page)]
    assert main(words) == 0
    said = capsys.readouterr()
    for text in (said.out, said.err, front.read_text(), page.read_text()):
        assert not set(text) & {"\x1b", "\x9b", "\u202e"}
    assert "'=1+2" in front.read_text()
    for what in ("objectives", "constraints", "engine", "space", "preset", "target", "budget", "accounting"):
        before = description(folder)[what]
        set_description(folder, **{what: [name] if what in ("objectives", "constraints") else name})
        assert main(["search", "--resume", "--out", str(folder)]) in (1, 2)
        set_description(folder, **{what: before})
        said = capsys.readouterr().err
        assert not set(said) & {"\x1b", "\x9b", "\u202e"} and "bug" not in said


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TRIGGER t AFTER INSERT ON trials BEGIN DELETE FROM studies; END",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE more (x)",
        "ALTER TABLE trials RENAME TO hidden; CREATE VIEW trials AS SELECT * FROM hidden",
        "ALTER TABLE studies ADD COLUMN g GENERATED ALWAYS AS (abs(study_id)) VIRTUAL",
        "CREATE VIRTUAL TABLE f USING fts5(x)",
    ],
)
def test_studies_with_a_schema_that_computes_are_refused(change, begun, capsys):
    folder, _, ran = begun
    db = sqlite3.connect(folder / "study.sqlite")
    db.executescript(change)
    db.close()
    assert resume(folder) == 1
    said = capsys.readouterr().err
    assert "cannot be read" in said and "bug" not in said
    assert not ran.exists()


def test_storages_that_are_unpickled_are_refused(tmp_path, home):
    with pytest.raises(SourceError, match="unpickles"):
        neaptide.search("nasbench201", "random", objectives="peak", folder=tmp_path, storage="redis://localhost:1/0")
    with pytest.raises(SourceError, match="sqlite:///FILE"):
        neaptide.search("nasbench201", "random", objectives="peak", folder=tmp_path, storage="sqlite+pysqlite:///x.sqlite")


def test_a_lock_that_is_no_database(tmp_path, home):
    (tmp_path / "lock.sqlite").write_bytes(b"no database " * 100)
    with pytest.raises(NeaptideError, match=r"lock\.sqlite is damaged"):
        neaptide.search("nasbench201", "random", objectives="peak", budget=1, folder=tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_what_is_no_file_is_not_waited_for(tmp_path, home, begun, capsys):
    folder, _, _ = begun
    for name in ("data.npz", "data", "target.toml", "lock.sqlite"):
        os.mkfifo(tmp_path / name)
    for name in ("data.npz", "data"):
        with pytest.raises(SourceError, match="neither a file nor a folder"):
            load_data(tmp_path / name)
    with pytest.raises(SourceError, match="does not exist"):
        load_target(tmp_path / "target.toml")
    with pytest.raises(NeaptideError, match="no plain file"):
        neaptide.search("nasbench201", "random", objectives="peak", folder=tmp_path)
    set_description(folder, data=str(tmp_path / "data.npz"))
    assert resume(folder) == 2
    pictures = tmp_path / "pictures"
    for name in ("cat", "dog"):
        (pictures / name).mkdir(parents=True)
        os.mkfifo(pictures / name / "x.png")
    with pytest.raises(NeaptideError):
        load_data(pictures)


def test_pictures_are_decoded_by_pillow_itself_alone(tmp_path):
    """PostScript under another name would go to Ghostscript."""
    pytest.importorskip("PIL")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) (w) file closefile\nshowpage\n%%EOF\n"
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(script)
    with pytest.raises(FormatError, match="no picture"):
        load_data(tmp_path)


TOML = """
extends = "stm32f746"
title = "a part"
source = "a stranger"
"""


@pytest.mark.parametrize(
    "more",
    [
        '[compilers]\ngcc = ["-fplugin=./evil.so"]',
        '[compilers]\nzig = ["-target", "-Xclang"]',
        '[compilers]\nzig = ["-mllvm", "-load=./evil.so"]',
        '[compilers]\ngcc = ["-mcpu=cortex-m7", "-o/tmp/x"]',
        '[compilers]\ngcc = ["@flags.txt"]',
        '[tvm]\nkind = "llvm"\ncl-opt = ["-load=./evil.so"]',
        '[tvm]\nkind = "llvm"\nmcpu = "x -load=./evil.so"',
        '[tvm]\nkind = "llvm"\nhost = {kind = "llvm"}',
        '[emulator]\nmachine = "mps2-an500,dumpdtb=/tmp/x"',
        '[emulator]\nunicorn = "../x"',
    ],
)
def test_a_target_tells_tools_the_processor_and_nothing_else(more, tmp_path):
    file = tmp_path / "part.toml"
    file.write_text(TOML + more + "\n")
    with pytest.raises(FormatError, match=r"part\.toml:\d+: "):
        load_target(file)
    file.write_text(TOML)
    assert load_target(file).compilers.gcc


def test_own_spaces_load_by_name_as_before(tmp_path, home):
    file = tmp_path / "mine.py"
    file.write_text(SPACE.format(ran=str(tmp_path / "ran")))
    assert load_space(f"{file}:Tiny").name
    assert json.loads((home / "neaptide" / own_files.FILE).read_text())[str(file)]
    with pytest.raises(SourceError, match="no Python file"):
        load_space(f"{file}:Tiny.x:y")
