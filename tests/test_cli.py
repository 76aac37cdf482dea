"""The command line: what it prints, what it refuses and how, its exit codes and its files."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neaptide.cli import main
from neaptide.compiler.errors import SourceError
from neaptide.compiler.graph import Graph
from neaptide.sources import InputSpec

MODELS = """
import torch

class Net(torch.nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first = torch.nn.Linear(4, width)
        self.second = torch.nn.Linear(width, 2)
    def forward(self, x, scale=None):
        x = self.first(x)
        if x.shape[0] == 13:
            raise RuntimeError("thirteen is unlucky")
        y = self.second(x)
        return y if scale is None else y * scale

def bare():
    return Net()

def with_args():
    return Net(), (torch.zeros(3, 4),)

def with_kwargs():
    return Net(), (), {"x": torch.zeros(3, 4), "scale": torch.ones(2)}

def huge():
    return torch.nn.Sequential(*[torch.nn.Linear(100_000, 100_000) for _ in range(10)]), (torch.zeros(1, 100_000),)

def empty():
    return torch.nn.Sequential(), (torch.zeros(2, 2),)

def raises():
    raise ValueError("no weights today")

def not_a_model():
    return 42

def four():
    return 1, 2, 3, 4

number = 7
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder with a file of factories; the current folder of the test."""
    (tmp_path / "nets.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    return tmp_path


@pytest.fixture
def run(capsys):
    """Run the command line here: (exit code, standard output, standard error)."""

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(words))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def line_of(text: str) -> int:
    return 1 + next(i for i, line in enumerate(MODELS.splitlines()) if line == text)


# ---- what it says ------------------------------------------------------------------------------------------------------------


def test_analyze_says_where_the_peak_is(run, models):
    code, out, err = run("analyze", "nets.py:with_args", "--no-kernels")
    assert (code, err) == (0, "")
    assert "proven optimal" in out and "Peak 120 B at aten.addmm.default in second (Linear)" in out
    assert f"nets.py:{line_of('        y = self.second(x)')}" in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("source", ["nets.py:with_args", "nets:with_args", "nets.py:with_kwargs"])
def test_factories_bring_their_arguments(run, models, source):
    code, out, _ = run("analyze", source, "--json", "--no-kernels")
    assert code == 0 and json.loads(out)["macs"] == 3 * (4 * 8 + 8 * 2)


@pytest.mark.parametrize(
    "words, nbytes",
    [
        (["--input", "5x4"], 80),
        (["-i", "x=5x4", "-i", "scale=2"], 88),
        (["--input", "5x4", "--dtype", "float64"], 160),
        (["--input", "0x4"], 0),
    ],
)
def test_inputs_on_the_command_line(run, models, words, nbytes):
    code, out, err = run("analyze", "nets.py:bare", *words, "--json", "--no-kernels")
    assert code == 0, err
    assert json.loads(out)["inputs"] == nbytes


def test_json_is_the_only_thing_on_standard_output(run, models):
    code, out, err = run(
        "analyze", "nets.py:with_args", "--json", "--html", "r.html", "--budget", "1MB", "--budget", "total:10", "--no-kernels"
    )
    assert code == 3
    document = json.loads(out)
    assert document["format"] == "neaptide.analysis"
    assert [(b["of"], b["nbytes"], b["fits"]) for b in document["budgets"]] == [("peak", 1_000_000, True), ("total", 10, False)]
    assert "wrote r.html" in err and "does not fit" in err


def test_every_file(run, models):
    code, _, err = run(
        "analyze", "nets.py:with_args", "--no-kernels", "--html", "a.html", "--trace", "a.json", "--snapshot", "a.pickle", "--dot", "a.dot"
    )
    assert code == 0 and err.count("wrote") == 4
    assert Path("a.html").read_text().startswith("<!doctype html>")
    assert json.loads(Path("a.json").read_text())["traceEvents"]
    assert pickle.loads(Path("a.pickle").read_bytes())["segments"]
    assert Path("a.dot").read_text().startswith("digraph")


def test_training_mode(run, models):
    code, out, err = run("analyze", "nets.py:with_args", "--mode", "training", "--optimizer", "adam", "--json", "--no-kernels")
    assert code == 0, err
    assert json.loads(out)["mode"] == "training"


def test_order_inputs_threads_and_depth(run, models):
    code, out, _ = run("analyze", "nets.py:with_args", "--order", "traced", "--inputs", "planned", "--json", "--no-kernels")
    assert code == 0 and (json.loads(out)["order"], json.loads(out)["inputs_policy"]) == ("traced", "planned")
    code, out, _ = run("analyze", "nets.py:with_args", "--depth", "1", "--threads", "1", "--no-kernels")
    assert code == 0 and "second Linear" in out


def test_a_model_far_larger_than_the_machine(run, models):
    code, out, err = run("analyze", "nets.py:huge", "--json", "--no-kernels")
    assert code == 0, err
    assert json.loads(out)["weights"] == 10 * 4 * (100_000 * 100_000 + 100_000)


def test_an_empty_model(run, models):
    code, out, err = run("analyze", "nets.py:empty", "--no-kernels", "--html", "e.html")
    assert code == 0, err
    assert "0 ops" in out and Path("e.html").exists()


def test_schedule(run, shared_dir):
    path = shared_dir / "bench" / "graphs" / "darts_cifar_fused.json"
    code, out, _ = run("schedule", str(path), "--json")
    document = json.loads(out)
    optimum = json.loads((shared_dir / "bench" / "graphs" / "optimum.json").read_text())
    assert code == 0 and document["format"] == "neaptide.schedule" and document["optimal"]
    assert str(document["peak"]) in json.dumps(optimum)
    assert sorted(document["order"]) == list(range(len(document["order"])))
    code, out, _ = run("schedule", str(path))
    assert code == 0 and "proven optimal" in out


def test_schedule_writes_the_graph_its_ids_are_of(run, models):
    code, out, _ = run("schedule", "nets.py:with_args", "--graph", "g.json", "--json", "--no-kernels")
    assert code == 0
    assert len(Graph.load_json("g.json").nodes) == len(json.loads(out)["order"])
    code, again, _ = run("analyze", "g.json", "--json")
    assert code == 0 and json.loads(again)["inputs_policy"] == "caller"


def test_allocate(run, tmp_path):
    blocks = tmp_path / "blocks.csv"
    blocks.write_text("id,lower,upper,size\nb1,0,3,4\nb2,3,9,4\nb3,0,9,4\nb4,9,21,4\nb5,0,21,4\n")
    code, out, _ = run("allocate", str(blocks))
    assert code == 0 and "12 B" in out and "proven optimal" in out
    code, out, _ = run("allocate", str(blocks), "--json")
    assert (code, json.loads(out)["arena"], sorted(json.loads(out)["offsets"])) == (0, 12, ["b1", "b2", "b3", "b4", "b5"])
    code, out, _ = run("allocate", str(blocks), "--output", "-")
    assert code == 0 and out.startswith("id,lower,upper,size,offset\n")
    code, _, err = run("allocate", str(blocks), "--output", str(tmp_path / "plan.csv"), "--capacity", "1KiB")
    assert code == 0 and (tmp_path / "plan.csv").read_text() == out and "wrote" in err
    code, out, err = run("allocate", str(blocks), "--capacity", "8")
    assert (code, out) == (3, "") and "8 B" in err and "b5" in err


def test_models(run):
    code, out, _ = run("models", "--json")
    names = [m["name"] for m in json.loads(out)]
    assert code == 0 and "resnet50" in names
    code, out, _ = run("models")
    assert code == 0 and all(name in out for name in names)


def test_help_and_version(run):
    code, out, err = run()
    assert (code, err) == (2, "") and "analyze" in out
    code, out, _ = run("--version")
    assert code == 0 and out.startswith("neaptide ")
    code, out, _ = run("analyze", "--help")
    assert code == 0 and "--budget" in out


# ---- what it refuses ---------------------------------------------------------------------------------------------------------


def refused(result: tuple[int, str, str], code: int, *words: str) -> None:
    """A clean refusal: the code, nothing on standard output, one paragraph with `words`, no traceback."""
    got, out, err = result
    assert (got, out) == (code, ""), (got, out, err)
    assert err.startswith("neaptide: ") and err.endswith("\n") and "\n\n" not in err
    assert "Traceback" not in err and "bug in Neaptide" not in err
    for word in words:
        assert word in err, (word, err)


@pytest.mark.parametrize(
    "words, code, expected",
    [
        (["analyze", "resnt50"], 2, ["Did you mean 'resnet50'"]),
        (["analyze", "zzzzqqq"], 2, ["neaptide models"]),
        (["anlyze", "resnet50"], 2, ["analyze"]),
        (["analyze", "resnet50", "--budgt", "1MB"], 2, ["--budgt"]),
        (["analyze", "resnet50", "--mode", "trainig"], 2, ["training"]),
        (["analyze", "resnet50", "--budget", "much"], 2, ["'much'", "320KiB"]),
        (["analyze", "resnet50", "--budget", "sram:1MB"], 2, ["sram", "total:8GB"]),
        (["analyze", "resnet50", "--threads", "-1"], 2, ["--threads"]),
        (["analyze", "resnet50", "--input", "1x3xy"], 2, ["1x3xy", "1x128:int64"]),
        (["analyze", "resnet50", "--input", "1x3x8x8:flot32"], 2, ["flot32", "Did you mean"]),
        (["analyze", "resnet50", "--dtype", "float31"], 2, ["float31", "Did you mean"]),
        (["analyze", "resnet50", "--optimizer", "adam"], 1, ["--mode training"]),
        (["analyze"], 2, ["SOURCE"]),
        (["analyze", "nothing.onnx"], 2, ["no file 'nothing.onnx'"]),
        (["analyze", "nothing.json"], 2, ["no file"]),
        (["analyze", "net.py:bare"], 2, ["no file 'net.py'", "Did you mean 'nets.py'"]),
        (["analyze", "."], 2, ["folder"]),
        (["analyze", "nets.py"], 2, ["nets.py:Net"]),
        (["analyze", "nets.py:bear"], 2, ["no 'bear'", "Did you mean 'bare'"]),
        (["analyze", "nets.py:number"], 2, ["int"]),
        (["analyze", "nets.py:not_a_model"], 2, ["returned a int"]),
        (["analyze", "nets.py:four"], 2, ["tuple of 4"]),
        (["analyze", "nets.py:bare"], 2, ["--input"]),
        (["analyze", "no_such_package.models:f"], 2, ["no module 'no_such_package'"]),
        (["analyze", "timm:nothing_of_that_name"], 2, ["timm"]),
        (["analyze", "nets.py:with_args", "--html", "nowhere/a.html"], 1, ["nowhere"]),
        (["analyze", "nets.py:with_args", "--html", "."], 1, ["folder"]),
        (["allocate", "nothing.csv"], 2, ["nothing.csv"]),
        (["allocate", "nets.py"], 2, ["nets.py"]),
        (["allocate", "x.csv", "--json", "--output", "-"], 2, ["one of them"]),
        (["schedule", "resnt50"], 2, ["Did you mean"]),
    ],
)
def test_wrong_words(run, models, words, code, expected):
    refused(run(*words), code, *expected)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".bin", ".ckpt"])
def test_a_pickle_is_never_opened(run, tmp_path, suffix):
    class Boom:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "opened"),))

    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps(Boom()))
    refused(run("analyze", str(path)), 2, "pickle", "safetensors", "file.py:factory", "ONNX", ".pt2")
    assert not (tmp_path / "opened").exists()


def test_other_files_are_told_what_they_are(run, tmp_path):
    for name, word in (("w.safetensors", "architecture"), ("l.csv", "neaptide allocate"), ("notes.txt", ".onnx")):
        (tmp_path / name).write_text("")
        refused(run("analyze", str(tmp_path / name)), 2, word)


@pytest.mark.parametrize(
    "name, content, word",
    [
        ("cut.onnx", b"\x08\x0a\x12\x03abc\x3a\xff\xff", "cut.onnx"),
        ("text.onnx", b"hello", "text.onnx"),
        ("cut.json", b'{"nodes": [', "cut.json"),
        ("wrong.json", b'{"nodes": [{"op": "f", "ins": [9], "outs": [0]}], "bufs": [4], "out": [0]}', "wrong.json"),
        ("cut.pt2", b"PK\x03\x04", "cut.pt2"),
        ("empty.onnx", b"", "empty.onnx"),
    ],
)
def test_broken_files_are_named(run, tmp_path, name, content, word):
    (tmp_path / name).write_bytes(content)
    refused(run("analyze", str(tmp_path / name)), 2, word)


def test_a_cyclic_graph_is_refused(run, tmp_path):
    nodes = [{"op": "f", "ins": [1], "outs": [0]}, {"op": "g", "ins": [0], "outs": [1]}]
    (tmp_path / "cycle.json").write_text(json.dumps({"nodes": nodes, "bufs": [4, 4], "out": [1]}))
    refused(run("schedule", str(tmp_path / "cycle.json")), 2, "cycle.json")


def test_a_pt2_with_more_than_a_program_is_refused(run, tmp_path):
    with zipfile.ZipFile(tmp_path / "odd.pt2", "w") as archive:
        archive.writestr("hello.txt", "hi")
    refused(run("analyze", str(tmp_path / "odd.pt2")), 2, "odd.pt2")


def test_graph_files_carry_their_own_shapes(run, models):
    Path("g.json").write_text('{"nodes": [{"op": "f", "ins": [], "outs": [0]}], "bufs": [4], "out": [0]}')
    refused(run("analyze", "g.json", "--input", "1x3"), 2, "--input")
    refused(run("analyze", "g.json", "--mode", "training"), 1, "--mode training")


def test_the_users_own_line_is_named(run, models):
    line = line_of('            raise RuntimeError("thirteen is unlucky")')
    refused(run("analyze", "nets.py:bare", "--input", "13x4"), 1, "thirteen is unlucky", f"nets.py:{line}")
    line = line_of("        x = self.first(x)")
    refused(run("analyze", "nets.py:bare", "--input", "2x5"), 1, f"nets.py:{line}")
    refused(run("analyze", "nets.py:bare", "--input", "y=2x4"), 1, "'y'")
    line = line_of('    raise ValueError("no weights today")')
    refused(run("analyze", "nets.py:raises"), 1, "no weights today", f"nets.py:{line}")
    Path("bad.py").write_text("def f(:\n")
    refused(run("analyze", "bad.py:f"), 1, "SyntaxError", "bad.py:1")
    Path("needs.py").write_text("import not_installed_anywhere\n")
    refused(run("analyze", "needs.py:f"), 1, "not_installed_anywhere", "needs.py:1")


def test_over_budget_is_code_3_with_the_offenders(run, models):
    code, out, err = run("analyze", "nets.py:with_args", "--budget", "100B", "--no-kernels")
    assert code == 3 and "Peak 120 B" in out
    assert "peak 120 B, budget 100 B" in err and "addmm" in err and "nets.py:" in err
    assert run("analyze", "nets.py:with_args", "--budget", "120", "--no-kernels")[0] == 0
    assert run("analyze", "nets.py:with_args", "--budget", "arena:120", "--alignment", "64", "--no-kernels")[0] == 3


def test_nothing_is_written_when_it_fails(run, models):
    run("analyze", "nets.py:bare", "--input", "13x4", "--html", "a.html", "--trace", "a.json")
    assert sorted(p.name for p in models.iterdir() if p.name != "__pycache__") == ["nets.py"]


def test_a_bug_of_ours_is_one_paragraph_too(run, models, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr("neaptide.sources.resolve", broken)
    code, out, err = run("analyze", "resnet50")
    assert (code, out) == (1, "") and "bug in Neaptide" in err and "ZeroDivisionError: oh no" in err and err.count("\n") == 1
    code, _, err = run("analyze", "resnet50", "--debug")
    assert code == 1 and "Traceback" in err and "broken" in err


def test_a_terminal_without_unicode_still_shows_the_numbers(models):
    program = "import sys; from neaptide.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", program, "analyze", "nets.py:with_args", "--no-kernels"]
    done = subprocess.run(words, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True)
    assert done.returncode == 0 and b"Peak 120 B" in done.stdout


@given(st.text(max_size=30) | st.from_regex(r"[a-z]{0,3}=?\d{1,4}(x\d{1,3})*(:[a-z0-9]+)?", fullmatch=True))
def test_input_shapes_are_read_or_refused(text):
    try:
        spec = InputSpec.parse(text)
    except SourceError as error:
        assert "1x3x224x224" in str(error)
    else:
        written = f"{spec.name}=" * bool(spec.name) + ("x".join(map(str, spec.shape)) or "scalar") + f":{spec.dtype}" * bool(spec.dtype)
        assert InputSpec.parse(written) == spec


def test_interrupts_are_code_130(run, models, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("neaptide.sources.resolve", interrupted)
    assert run("analyze", "resnet50") == (130, "", "neaptide: interrupted\n")


def test_a_real_ctrl_c_leaves_no_file_and_no_traceback(tmp_path, start):
    slow = "import pathlib, time\ndef f():\n    pathlib.Path('started').touch()\n    time.sleep(3600)\n"
    (tmp_path / "slow.py").write_text(slow)
    program = "import sys; from neaptide.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", program, "analyze", "slow.py:f", "--html", "a.html"]
    process = start(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (130, "", "neaptide: interrupted\n")
    assert not (tmp_path / "a.html").exists()
