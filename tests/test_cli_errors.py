"""What the machine refused is said in a sentence."""

import re
import subprocess
import sys

import pytest

from neaptide.cli_errors import MEMORY, refusal


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), MEMORY),
        (SystemError("<method 'write'> returned error return without exception set"), MEMORY),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (OSError(28, "No space left on device", "a.json"), "No space left on device.*'a.json'.*free space"),
    ],
)
def test_what_the_machine_refuses_is_a_sentence(error, said):
    assert re.search(said, refusal(error) or "")


def test_other_errors_are_none_of_the_machines():
    assert refusal(SystemError("bad argument to internal function")) is None and refusal(ValueError("x")) is None


def test_tvm_is_imported_by_a_user_without_a_home():
    pytest.importorskip("tvm")
    code = (
        "import pathlib, sys\n"
        "def homeless(): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = staticmethod(homeless)\n"
        "import os; os.environ.pop('XDG_CACHE_HOME', None)\n"
        "import neaptide.targets.tvm\n"
        "assert 'XDG_CACHE_HOME' not in os.environ\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
