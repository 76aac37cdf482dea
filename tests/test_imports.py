"""Importing the package is quick and brings in nothing heavy; what is missing is named with the command that brings it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from neaptide.compiler.errors import MissingExtraError, NeaptideError

MOST_MODULES = 120  # read by `import neaptide`: some 70 of the standard library in Python 3.11; torch alone brings over 1,000


def run_python(code: str) -> str:
    """Standard output of `code` in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_quick():
    """Nothing of Neaptide is read but its root, and beside it only a little of the standard library."""
    code = "import sys, json; before = set(sys.modules); import neaptide; print(json.dumps(sorted(set(sys.modules) - before)))"
    loaded = set(json.loads(run_python(code)))
    foreign = {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names}
    assert foreign == {"neaptide"}
    assert len(loaded) <= MOST_MODULES, sorted(loaded)


def test_analysis_keeps_the_compiler_stack_of_torch_out():
    """Names of the public API resolve without torch's compiler or TVM."""
    code = """
import sys, json, neaptide
for name in neaptide.__all__:
    getattr(neaptide, name)
print(json.dumps([m for m in ("torch._dynamo", "torch._inductor", "tvm") if m in sys.modules]))
"""
    assert json.loads(run_python(code)) == []


# What a caller does, and the extra that has to be installed for it.
NEEDS_EXTRA = {
    "onnx": ("onnx", "from neaptide.compiler.graph import Graph; Graph.from_onnx(b'')"),
    "onnxscript": ("onnx", "import torch, neaptide; neaptide.trace(torch.nn.ReLU(), torch.zeros(2)).to_onnx()"),
    "timm": ("zoo", "from neaptide.sources import resolve; resolve('timm:resnet18')"),
    "hypothesis": ("testing", "import neaptide.testing; neaptide.testing.graphs"),
}


@pytest.mark.parametrize("package", NEEDS_EXTRA)
def test_a_missing_extra_is_named_with_its_command(package):
    extra, use = NEEDS_EXTRA[package]
    code = f"""
import sys

sys.modules[{package!r}] = None  # as if it were not installed
try:
    exec({use!r})
except ImportError as error:
    print(type(error).__name__, error)
"""
    said = run_python(code)
    assert said.startswith("MissingExtraError"), said
    assert f"pip install 'neaptide[{extra}]'" in said
    assert package in said


def test_a_missing_extra_is_an_import_error_and_ours():
    error = MissingExtraError("timm", "zoo", "SOURCE 'timm:resnet18'")
    assert isinstance(error, ImportError)
    assert isinstance(error, NeaptideError)
    assert error.exit_code == 2
    assert str(error) == "SOURCE 'timm:resnet18' needs timm, which is not installed: pip install 'neaptide[zoo]'"
