"""Shared fixtures: where public benchmark data lies, and a skip with a reason where it is missing."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Programs that tests start must hear Ctrl-C; where pytest itself was started in the background of a shell, they would ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's data folder, which tests neither read nor fill."""
    before, folder = os.environ.get("XDG_DATA_HOME"), tmp_path_factory.mktemp("data")
    os.environ["XDG_DATA_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["XDG_DATA_HOME"]
    else:
        os.environ["XDG_DATA_HOME"] = before


@pytest.fixture(scope="module")
def own_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels and costs that the tests of a module remember are their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEAPTIDE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("NEAPTIDE_COSTS", str(tmp_path_factory.mktemp("costs") / "costs.sqlite"))
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch runs on one thread while the tests of a module do, and on as many as before from then on."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of public benchmark inputs: $NEAPTIDE_SHARED, or `shared` beside the repository."""
    path = Path(os.environ.get("NEAPTIDE_SHARED") or ROOT.parent / "shared")
    if not (path / "bench").is_dir():
        pytest.skip(f"benchmark inputs are not at {path}; set NEAPTIDE_SHARED to the folder that holds bench/ and data/")
    return path


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[Any]]]:
    """`subprocess.Popen` whose processes are killed at the end of the test, whatever became of it."""
    started: list[subprocess.Popen[Any]] = []

    def begin(*args: Any, **options: Any) -> subprocess.Popen[Any]:
        started.append(subprocess.Popen(*args, **options))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()
