"""Honest files of every format that Neaptide reads, made here by Neaptide, torch and onnx themselves, for `fuzz_files` to damage."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .onnx_cases import onnx_cases

SIZE_LIMIT = 24_000  # bytes of an ONNX file: larger ones make other faults no likelier, and each case slower
TARGET, TOOLCHAIN = "stm32f746", "t1"


def make_seeds(folder: Path, formats: Collection[str]) -> dict[str, list[Path]]:
    """Files by format, written into `folder`, and under "net" one honest model. Formats whose packages are absent have none."""
    makers = {
        "net": _net, "onnx": _onnx, "pt2": _pt2, "json": _json, "csv": _csv, "toml": _toml, "images": _images, "table": _table,
        "predictor": _predictor, "costs": _costs, "kernels": _kernels, "study": _study, "jsonl": _jsonl,
    }  # fmt: skip
    found: dict[str, list[Path]] = {}
    for kind, maker in ((kind, maker) for kind, maker in makers.items() if kind == "net" or kind in formats):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(ModuleNotFoundError), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            found[kind] = [path for path in maker(folder / kind) if kind != "onnx" or path.stat().st_size <= SIZE_LIMIT]
    return found


def _small_nets() -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            return nn.functional.scaled_dot_product_attention(q, k, v) + x

    image = torch.zeros(1, 3, 8, 8)
    yield "conv", nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)), (image,)
    yield "attention", Attention(), (torch.zeros(1, 4, 8),)
    yield "pool", nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Softmax(1)), (image,)


def _onnx(folder: Path) -> Iterator[Path]:
    """Every operator by itself, from onnx's own suite (sequences, control flow, quantised and recurrent ones too), and whole models."""
    for case in onnx_cases():
        yield _written(folder / f"{case.name}.onnx", case.model.SerializeToString())
    for name, model in _composed():
        yield _written(folder / f"{name}.onnx", model.SerializeToString())


def _net(folder: Path) -> Iterator[Path]:
    name, model = next(_composed())
    yield _written(folder / f"{name}.onnx", model.SerializeToString())


def _composed() -> Iterator[tuple[str, Any]]:
    """Models of several nodes: a network with weights, and one with a local function, a branch, a loop and shape arithmetic."""
    from onnx import TensorProto, helper, numpy_helper

    def value(name: str, shape: list[int], kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    rng = np.random.default_rng(0)
    weights = {"w": (4, 3, 3, 3), "b": (4,), "scale": (4,), "shift": (4,), "mean": (4,), "var": (4,), "m": (36, 2)}
    initializers = [numpy_helper.from_array(rng.random(shape, np.float32) + 0.1, name) for name, shape in weights.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "/features/conv", kernel_shape=[3, 3], auto_pad="VALID"),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"], epsilon=1e-5),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "m"], ["y"], alpha=1.0),
    ]
    opset = [helper.make_opsetid("", 17)]
    graph = helper.make_graph(nodes, "net", [value("x", [1, 3, 8, 8])], [value("y", [1, 2])], initializers)
    yield "net", helper.make_model(graph, opset_imports=opset, ir_version=9)

    then = helper.make_graph([helper.make_node("Neg", ["x"], ["t"])], "then", [], [value("t", [2, 4])])
    other = helper.make_graph([helper.make_node("Abs", ["x"], ["e"])], "else", [], [value("e", [2, 4])])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["h", "h"], ["h2"])],
        "body", [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("h", [2, 4])],
        [value("on", [], TensorProto.BOOL), value("h2", [2, 4])],
    )  # fmt: skip
    twice = helper.make_function("local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], opset)
    nodes = [
        helper.make_node("If", ["c"], ["i"], then_branch=then, else_branch=other),
        helper.make_node("Twice", ["i"], ["d"], domain="local"),
        helper.make_node("Loop", ["trips", "", "d"], ["l"], body=body),
        helper.make_node("SplitToSequence", ["l"], ["s"], axis=0, keepdims=1),
        helper.make_node("SequenceAt", ["s", "zero"], ["at"]),
        helper.make_node("ConcatFromSequence", ["s"], ["all"], axis=1),
        helper.make_node("Shape", ["all"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["z"]),
        helper.make_node("Resize", ["x4", "", "scales"], ["up"], mode="nearest", nearest_mode="floor"),
    ]
    initializers = [
        numpy_helper.from_array(np.array(3), "trips"),
        numpy_helper.from_array(np.array(0), "zero"),
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
    ]
    inputs = [value("x", [2, 4]), value("c", [], TensorProto.BOOL), value("x4", [1, 1, 4, 4])]
    graph = helper.make_graph(nodes, "flow", inputs, [value("z", [1, 8]), value("at", [1, 4]), value("up", [1, 1, 8, 8])], initializers)
    yield (
        "flow",
        helper.make_model(graph, opset_imports=[*opset, helper.make_opsetid("local", 1)], functions=[twice], ir_version=9),
    )


def _pt2(folder: Path) -> Iterator[Path]:
    import torch

    for name, net, args in _small_nets():
        torch.export.save(torch.export.export(net.eval(), args), folder / f"{name}.pt2")
        yield folder / f"{name}.pt2"


def _json(folder: Path) -> Iterator[Path]:
    """Traced, imported, trained and drawn graphs, and the plain form."""
    import random

    from neaptide.compiler.trace import trace
    from neaptide.compiler.training import trace_training
    from neaptide.testing import generate

    for name, net, args in _small_nets():
        yield _written(folder / f"{name}.json", trace(net.eval(), args).to_json().encode())
        yield _written(folder / f"{name}-training.json", trace_training(net.train(), args, optimizer="adam").to_json().encode())
    for seed in range(6):
        graph = generate.random_graph(random.Random(seed).randrange, min_nodes=3)
        yield _written(folder / f"random-{seed}.json", graph.to_json().encode())
    plain = {
        "nodes": [{"op": "input", "ins": [], "outs": [0]}, {"op": "f", "ins": [0], "outs": [1]}, {"op": "g", "ins": [0, 1], "outs": [2]}],
        "bufs": [64, 128, 32], "out": [2],
    }  # fmt: skip
    yield _written(folder / "plain.json", json.dumps(plain).encode())


def _csv(folder: Path) -> Iterator[Path]:
    rng = np.random.default_rng(0)
    for name, offset in (("blocks", False), ("placed", True)):
        lines = ["id,lower,upper,size" + ",offset" * offset]
        for i in range(12):
            low = int(rng.integers(0, 20))
            lines.append(f"b{i},{low},{low + int(rng.integers(1, 9))},{int(rng.integers(1, 4096))}" + f",{4096 * i}" * offset)
        yield _written(folder / f"{name}.csv", ("\n".join(lines) + "\n").encode())
    lines = ["first,second,resolution,latency"]
    lines += [f"k{i % 3},e{i % 2},{96 + 16 * (i % 5)},{1 + 0.25 * (i % 3) + 0.5 * (i % 2) + 0.01 * (i % 5)}" for i in range(40)]
    yield _written(folder / "networks.csv", ("\n".join(lines) + "\n").encode())


def _toml(folder: Path) -> Iterator[Path]:
    from neaptide.targets.spec import DEVICES

    for name in ("stm32f746", "cortex-m7", "cortex-m4f", "cpu", "sm_90"):
        yield _written(folder / f"{name}.toml", (DEVICES / f"{name}.toml").read_bytes())


def _images(folder: Path) -> Iterator[Path]:
    from PIL import Image

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), np.arange(40) % 4
    arrays = {"x_train": images[:32], "y_train": labels[:32], "x_test": images[32:], "y_test": labels[32:]}
    np.savez(folder / "images.npz", **arrays)
    yield folder / "images.npz"
    np.savez_compressed(folder / "named.npz", **arrays, class_names=np.array(["ant", "bee", "cat", "dog"]))
    yield folder / "named.npz"
    packed: dict[str, np.ndarray] = {"prefix": np.zeros(0, np.uint8)}
    for part, chosen in (("train", images[:32]), ("test", images[32:])):
        files = []
        for image in chosen:
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "jpeg")
            files.append(stream.getvalue())
        packed[f"{part}_bytes"] = np.frombuffer(b"".join(files), np.uint8)
        packed[f"{part}_len"] = np.array(list(map(len, files)), np.int32)
        packed[f"y_{part}"] = arrays[f"y_{part}"]
    np.savez(folder / "jpegs.npz", **packed)  # type: ignore[arg-type]
    yield folder / "jpegs.npz"


def _table(folder: Path) -> Iterator[Path]:
    """A table of every network of NAS-Bench-Macro, and one of subnets as MOOFA's program writes them."""
    from neaptide.search.spaces import load_space

    space, rng = load_space("nasbench_macro"), np.random.default_rng(0)
    genes = np.stack(np.meshgrid(*map(np.arange, space.cardinalities), indexing="ij"), -1).reshape(-1, len(space.cardinalities))
    accuracy = (50 + 40 * rng.random((len(genes), 3))).astype(np.float32)
    np.savez_compressed(folder / "macro.npz", arch=genes.astype(np.uint8), test_acc=accuracy)
    yield folder / "macro.npz"
    ofa: Any = load_space("moofa")
    chosen = ofa.settings(ofa.encode([ofa.sample(rng) for _ in range(60)]))
    np.savez(
        folder / "subnets.npz", moofa_r=chosen.resolution, moofa_d=chosen.depth, moofa_ks=chosen.kernel, moofa_e=chosen.expand,
        moofa_acc=rng.random(60).astype(np.float32),
    )  # fmt: skip
    yield folder / "subnets.npz"


def _rows() -> list[Any]:
    from neaptide.targets.database import NetworkRow, OperatorRow

    rng = np.random.default_rng(0)
    rows: list[Any] = []
    for i in range(30):
        macs, out = int(rng.integers(10**4, 10**6)), int(rng.integers(10**2, 10**4))
        features = {"op": "conv" if i % 3 else "pool", "macs": macs, "input": out, "output": out, "kernel": 3, "stride": 1}
        value = 500.0 + 6 * macs + 4 * out
        rows.append(OperatorRow(f"op {i}", TARGET, TOOLCHAIN, value, bytes=64 * i, features=features, extra={"n": i}, created=1e9 + i))
    for i in range(3):
        uses = {f"op {i}": 2, f"op {i + 1}": 1}
        value = 1.1 * (2 * rows[i].value + rows[i + 1].value)
        rows.append(NetworkRow(f"net {i}", TARGET, TOOLCHAIN, value, uses, spread=0.01, created=1e9))
    return rows


def _costs(folder: Path) -> Iterator[Path]:
    from neaptide.targets.database import CostDatabase

    with CostDatabase(folder / "costs.sqlite") as database:
        database.put_all(_rows())
    yield _alone(folder / "costs.sqlite")


def _jsonl(folder: Path) -> Iterator[Path]:
    from neaptide.targets.cost_rows import export_rows

    export_rows(_rows(), folder / "costs.jsonl")
    yield folder / "costs.jsonl"


def _predictor(folder: Path) -> Iterator[Path]:
    from importlib.util import find_spec

    from neaptide.targets.database import CostDatabase
    from neaptide.targets.predictors import Columns, fit, fit_operators, save_predictor

    i = np.arange(60)
    columns = Columns({"first": np.array([f"k{k}" for k in i % 3]), "second": np.array([f"e{k}" for k in i % 2])}, {"side": 96.0 + i % 5})
    costs = 1 + 0.25 * (i % 3) + 0.5 * (i % 2) + 0.01 * (i % 5)
    save_predictor(fit(columns, costs, boosting=False, unit="seconds"), folder / "additive.npz")
    yield folder / "additive.npz"
    if find_spec("sklearn") is not None:
        save_predictor(fit(columns, costs, unit="seconds"), folder / "boosted.npz")
        yield folder / "boosted.npz"
    with CostDatabase(folder / "costs.sqlite") as database:
        database.put_all(_rows())
        save_predictor(fit_operators(database, target=TARGET, boosting=False), folder / "operators.npz")
    yield folder / "operators.npz"


def _kernels(folder: Path) -> Iterator[Path]:
    """What the kernel oracle remembers of one small network."""
    from neaptide.compiler.oracle import with_workspace
    from neaptide.compiler.trace import trace

    (_, net, args), *_ = _small_nets()
    graph = trace(net.eval(), args)
    with_workspace(graph, threads=1, cache_dir=folder)
    _written(folder / "conv.json", graph.to_json().encode())
    for path in sorted(folder.glob("kernels*.sqlite")):
        yield _alone(path)


def _study(folder: Path) -> Iterator[Path]:
    """A search that ended, in a table's space, to be resumed."""
    import sqlite3

    from neaptide.search.run import search

    table = next(_table(folder))
    search("nasbench_macro", "random", data=table, budget=4, preset="smoke", folder=folder / "out", workers=1, measure=0)
    files = folder / "out" / "study.sqlite", folder / "study.sqlite"
    with contextlib.closing(sqlite3.connect(files[0])) as made, contextlib.closing(sqlite3.connect(files[1])) as copy:
        made.backup(copy)
    yield _alone(folder / "study.sqlite")


def _alone(path: Path) -> Path:
    """A database whose log is part of its file, so that the file is all there is of it."""
    import sqlite3

    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=DELETE")
    return path


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
