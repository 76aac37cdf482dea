"""Opening a model by its path: one place, nothing run, and no file opened but the model's own."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from neaptide.cli import main
from neaptide.compiler.errors import FormatError, SourceError
from neaptide.compiler.models import load_model
from neaptide.targets.measure import measure
from neaptide.targets.onnx_session import onnx_session

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("compiler", "passes", "targets", "search", "report")
# What opens or runs something, and the files whose task that is.
OPENERS = {
    "torch.load": {"compiler/pt2_files.py"},
    "torch.export.load": set(),
    "torch.jit.load": set(),
    "torch.hub.load": set(),
    "torch_load": set(),
    "onnx.load": set(),
    "onnx.load_model": set(),
    "onnx.external_data_helper": set(),
    "pickle.load": set(),
    "pickle.loads": {"search/farm.py", "passes/kernels/compiled.py"},  # its own workers' pipe, and machine code of this user's own
    "pickle.Unpickler": {"search/image_files.py"},
    "InferenceSession": {"targets/onnx_session.py"},
    "load_pt2": {"compiler/models.py", "compiler/exported.py"},
    "spec_from_file_location": {"sources.py", "search/spaces/__init__.py"},
    "ExportedProgramDeserializer": {"compiler/pt2_files.py"},
    "eval": set(),
    "exec": {"search/spaces/__init__.py"},  # a space of the user's own
    "compile": {"search/spaces/__init__.py"},
    "marshal.loads": set(),
    "shelve.open": set(),
    "joblib.load": set(),
    "yaml.load": set(),
    "ctypes.CDLL": {"targets/mcu/toolchain.py"},  # compiled from Neaptide's own source
}


def product_files():
    for path in sorted([*ROOT.glob("*.py"), *(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))]):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def called(node):
    """The dotted name of what a call calls: `torch.export.load`; empty for a method of a value."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *parts[::-1]]) if isinstance(node, ast.Name) else ""


def test_nothing_else_opens_a_model_or_runs_a_text():
    found = {}
    for file, tree in product_files():
        renamed = {a.asname: a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom | ast.Import) for a in n.names if a.asname}
        for node in ast.walk(tree):
            named = [called(node.func)] if isinstance(node, ast.Call) else []
            named += [called(b) for b in node.bases] if isinstance(node, ast.ClassDef) else []
            for name in named:
                name = renamed.get(name, name)
                for opener in OPENERS:
                    if name == opener or (name.endswith(f".{opener}") and opener not in ("eval", "compile", "exec")):
                        found.setdefault(opener, set()).add(file)
    assert found == {opener: files for opener, files in OPENERS.items() if files and opener in found}
    assert {"torch.load", "load_pt2", "InferenceSession", "pickle.loads"} <= set(found)


def test_arrays_are_read_by_one_reader():
    """`compiler/npz_files.py` reads the bytes itself; numpy's own reader may unpickle, and believes headers."""
    for file, tree in product_files():
        names = {called(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not names & {"np.load", "numpy.load", "np.fromfile", "np.memmap"}, file


def test_weights_alone_are_unpickled():
    for file, tree in product_files():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and called(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), file


# ---- ONNX -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()


@pytest.fixture
def saved(net, tmp_path):
    """An ONNX model with all its weights in a file beside it."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(net, (torch.randn(1, 3, 8, 8),), dynamo=True, verbose=False)
    assert program is not None
    path = tmp_path / "model" / "net.onnx"
    path.parent.mkdir()
    onnx.save_model(program.model_proto, str(path), save_as_external_data=True, location="net.bin", size_threshold=0)
    return path


def test_external_data_is_read_by_our_reader_alone(saved, net, monkeypatch):
    monkeypatch.chdir(saved.parent.parent)
    model = load_model(saved)
    assert not [t for t in model.graph.initializer if t.data_location == t.EXTERNAL]
    (saved.parent / "net.bin").unlink()
    pytest.importorskip("onnxruntime")
    x = torch.randn(1, 3, 8, 8)
    (got,) = onnx_session(model.SerializeToString()).run(None, {model.graph.input[0].name: x.numpy()})
    np.testing.assert_allclose(np.asarray(got), net(x).detach().numpy(), atol=1e-5)


def moved(path, location):
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("way", ["above", "absolute", "link", "device", "missing"])
@pytest.mark.parametrize("command", [("measure", "--target", "cortex-m4f"), ("measure", "--target", "cpu", "--trials", "0")], ids=" ".join)
def test_measure_reads_no_file_outside_the_model_s_folder(way, command, saved, tmp_path, monkeypatch, capsys):
    secret = tmp_path / "secret.bin"
    os.replace(saved.parent / "net.bin", secret)
    location = {"above": "../secret.bin", "absolute": str(secret), "link": "link.bin", "device": "/dev/zero", "missing": "secret.bin"}[way]
    if way == "link":
        (saved.parent / "link.bin").symlink_to(secret)
    moved(saved, location)
    monkeypatch.chdir(tmp_path)  # where onnxruntime would look
    verb, *options = command
    assert main([verb, str(saved), *options, "--database", str(tmp_path / "costs.sqlite")]) == 2
    printed = capsys.readouterr().err
    assert "external data" in printed
    assert "bug in Neaptide" not in printed


def test_a_model_in_memory_brings_its_weights(saved):
    import onnx

    model = onnx.load(str(saved), load_external_data=False)
    with pytest.raises(FormatError, match="load the model by its path"):
        load_model(model)


def test_tensors_inside_attributes_are_found_too(tmp_path):
    onnx = pytest.importorskip("onnx")
    value = onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), "v")
    node = onnx.helper.make_node("Constant", [], ["y"], value=value)
    graph = onnx.helper.make_graph([node], "g", [], [onnx.helper.make_tensor_value_info("y", 1, [4])])
    model = onnx.helper.make_model(graph)
    tensor = model.graph.node[0].attribute[0].t
    (tmp_path / "v.bin").write_bytes(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, "v.bin")
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    read = load_model(tmp_path / "net.onnx").graph.node[0].attribute[0].t
    assert onnx.numpy_helper.to_array(read).tolist() == [0, 1, 2, 3]


# ---- what is opened once ----------------------------------------------------------------------------------------------


def test_measure_opens_a_file_once_and_leaves_a_program_as_it_was(net, tmp_path, monkeypatch):
    pytest.importorskip("tvm")
    from neaptide.compiler import pt2_files

    program = torch.export.export(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), (torch.randn(1, 3, 8, 8),))
    torch.export.save(program, tmp_path / "net.pt2")
    opened = []
    real = pt2_files.load_pt2
    monkeypatch.setattr(pt2_files, "load_pt2", lambda path: opened.append(path) or real(path))
    cost = measure(tmp_path / "net.pt2", target="cpu", trials=0)
    assert len(opened) == 1
    assert cost.name == "net"
    before = str(program.graph)
    measure(program, target="cpu", trials=0)
    assert str(program.graph) == before


def test_other_files_are_no_models(tmp_path):
    for name in ("net.pt", "net.bin", "net"):
        with pytest.raises(SourceError, match=r"neither \.onnx nor \.pt2"):
            load_model(tmp_path / name)
    with pytest.raises(FormatError, match="does not exist"):
        load_model(tmp_path / "net.pt2")
