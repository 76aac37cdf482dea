"""The wheel and the sdist hold the whole package and nothing else, and work in an empty environment far from the repository."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
NOT_PACKAGED = ("tests", "benchmarks", "docs", "examples")
IGNORED = (".*", "__pycache__", "build", "dist", "*.egg-info", "out", "node_modules")
NOT_DATA = ("*.pyc", "*.pyo", "*.orig", "*.swp", "*~")

pytest.importorskip("build")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of `command`, which must succeed."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (
        f"{' '.join(map(str, command))} exited with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout


def packaged_files() -> set[str]:
    """Paths, below the package, of every module and data file of the repository that a user needs."""
    found = {p.name for p in REPOSITORY.glob("*.py")}
    for room in REPOSITORY.iterdir():
        if room.name in NOT_PACKAGED or not (room / "__init__.py").is_file():
            continue
        for path in room.rglob("*"):
            inside = path.relative_to(REPOSITORY)
            if path.is_file() and not any(fnmatch.fnmatch(part, p) for part in inside.parts for p in (*IGNORED, *NOT_DATA)):
                found.add(inside.as_posix())
    return found | {"py.typed"}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[Path, Path]:
    """A wheel built from an sdist built from a copy of the repository, so that nothing is written into the repository."""
    place = tmp_path_factory.mktemp("build")
    shutil.copytree(REPOSITORY, place / "checkout", ignore=shutil.ignore_patterns(*IGNORED), symlinks=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", place / "dist", place / "checkout", cwd=place)
    (sdist,), (wheel,) = (place / "dist").glob("*.tar.gz"), (place / "dist").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory) -> Path:
    """The Python of a new environment that holds the wheel, and sees our dependencies but not the repository.

    A path in a .pth file is searched for packages, but its own .pth files are not read: the one that leads an editable
    installation to the repository stays unread.
    """
    place = tmp_path_factory.mktemp("far")
    run(sys.executable, "-m", "venv", "--without-pip", place / "venv", cwd=place)
    python = place / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", distributions[1], cwd=place)
    purelib = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    beside = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (purelib / "dependencies.pth").write_text("\n".join(sorted(beside)) + "\n")
    return python


def test_wheel_holds_every_module_and_data_file(distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        held = {n.removeprefix("neaptide/") for n in wheel.namelist() if n.startswith("neaptide/")}
        rest = {n.split("/")[0] for n in wheel.namelist() if not n.startswith("neaptide/")}
        licenses = [n for n in wheel.namelist() if n.endswith("licenses/LICENSE")]
    wanted = packaged_files()
    assert wanted - held == set(), "not in the wheel: package-data or packages in pyproject.toml misses them"
    assert held - wanted == set(), "in the wheel without need"
    assert len(rest) == 1 and rest.pop().endswith(".dist-info")
    assert licenses


def test_sdist_holds_what_building_and_testing_need(distributions):
    with tarfile.open(distributions[0]) as sdist:
        held = {n.split("/", 1)[1] for n in sdist.getnames() if "/" in n}
    for path in ("pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt", "CHANGELOG.md", "tests/test_wheel.py"):
        assert path in held, path
    assert packaged_files() <= held
    assert not [n for n in held if n.startswith((".venv", "build/", "out/"))]


def test_installed_package_is_the_wheel(installed):
    where = run(installed, "-c", "import neaptide; print(neaptide.__file__)", cwd=installed.parent)
    assert Path(where.strip()).is_relative_to(installed.parent.parent)


def test_every_module_imports(installed):
    code = """
import importlib, json, pkgutil, neaptide
names = [m.name for m in pkgutil.walk_packages(neaptide.__path__, "neaptide.") if not m.name.startswith("neaptide.targets.tvm")]
for name in names:
    importlib.import_module(name)
print(json.dumps(names))
"""
    names = json.loads(run(installed, "-c", code, cwd=installed.parent))
    assert "neaptide.compiler.graph" in names
    modules = {n for n in packaged_files() if n.endswith(".py") and not n.endswith("__init__.py") and not n.startswith("targets/tvm")}
    assert {n.removesuffix(".py").replace("/", ".") for n in modules} <= {n.removeprefix("neaptide.") for n in names}


def test_commands_run(installed):
    neaptide = installed.parent / "neaptide"
    version = run(installed, "-c", "import neaptide; print(neaptide.__version__)", cwd=installed.parent).strip()
    assert version in run(neaptide, "--version", cwd=installed.parent)
    assert "resnet18" in run(neaptide, "models", cwd=installed.parent)


def test_analysis_runs_and_writes_its_page(installed, tmp_path):
    """The templates travel in the wheel: a page comes out."""
    code = """
import sys, torch, neaptide
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 4))
analysis = neaptide.analyze(model, (torch.zeros(2, 3, 8, 8),))
analysis.save_html("page.html")
print(analysis.graph_peak)
"""
    peak = int(run(installed, "-c", code, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache")))
    assert peak >= 2 * (2 * 8 * 6 * 6 * 4)
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!") and "</html>" in page
