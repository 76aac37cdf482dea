"""The kernel oracle: workspace against the profiler, the cache on disk, and kernels that end their process."""

from __future__ import annotations

import json
import sqlite3
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.ground_truth import profiled_peak
from neaptide.compiler import oracle
from neaptide.compiler.errors import NeaptideError
from neaptide.compiler.graph import Atom, Graph, GraphBuilder, Ref
from neaptide.compiler.oracle import kernel_signature, measure_kernels, with_workspace
from neaptide.compiler.oracle_cache import FILE, KernelCache, Measurement
from neaptide.compiler.trace import trace
from neaptide.passes.liveness import eager_liveness

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def signature(op: str, *args: object, tensors: tuple = (), grad: bool = False) -> str:
    rows = [[list(shape), None, dtype] for shape, dtype in tensors]
    return json.dumps({"op": op, "args": list(args), "kwargs": {}, "tensors": rows, "grad": grad})


def ref(i: int) -> dict[str, int]:
    return {"$ref": i}


def relu_graph(n: int = 4) -> Graph:
    build = GraphBuilder("relu")
    x = build.tensor((n,), "float32", role="input")
    build.inputs.append(x)
    y = build.tensor((n,), "float32")
    build.node("aten.relu.default", [x], [y], attrs={"args": [Ref(0)], "kwargs": {}})
    build.outputs.append(y)
    return build.build()


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Conv2d(16, 24, 3, stride=2))
        self.up = nn.ConvTranspose2d(24, 8, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.body(x)).mean((2, 3)) * 0.5


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.lstm = nn.LSTM(24, 16, batch_first=True)
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.lstm(self.embed(tokens))
        mixed, _ = self.attend(hidden, hidden, hidden, need_weights=False)
        return torch.where(tokens[..., None] > 3, mixed, 0.0).softmax(-1).bfloat16()


@pytest.mark.parametrize(
    ("model", "x"), [(ConvNet(), torch.randn(2, 3, 33, 33)), (Recurrent(), torch.randint(50, (3, 17)))], ids=["conv", "recurrent"]
)
def test_eager_peak_is_the_profilers_to_the_byte(model: nn.Module, x: torch.Tensor, cache: Path) -> None:
    graph = with_workspace(trace(model, (x,)), cache_dir=cache)
    model.eval()
    with torch.no_grad():
        model(x)
        truth = profiled_peak(lambda: model(x))
    assert graph.meta["kernels"]["unmeasured"] == {}
    assert eager_liveness(graph).peak == truth.nbytes
    assert eager_liveness(trace(model, (x,))).peak < truth.nbytes, "the model shows nothing: its kernels have no workspace"


def test_facts_beside_the_numbers(cache: Path) -> None:
    kernels = with_workspace(relu_graph(), threads=2, cache_dir=cache).meta["kernels"]
    assert kernels["threads"] == 2
    assert kernels["torch"] == torch.__version__
    assert kernels["isa"] == torch.backends.cpu.get_cpu_capability()
    assert kernels["measured"] == 1


def test_nothing_is_started_when_all_is_remembered(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = with_workspace(relu_graph(5), cache_dir=cache)

    def refuse(*args: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(oracle, "Worker", refuse)
    assert with_workspace(relu_graph(5), cache_dir=cache) == first
    with pytest.raises(AssertionError, match="a worker was started"):
        with_workspace(relu_graph(6), cache_dir=cache)


def test_a_measurement_is_remembered_under_all_that_it_depends_on() -> None:
    here = oracle.KernelEnvironment("2.13.0", "AVX2", "cpu", 1)
    others = [replace(here, torch="2.14.0"), replace(here, isa="AVX512"), replace(here, processor="x"), replace(here, threads=2)]
    assert len({e.key("s") for e in [here, *others]} | {here.key("t")}) == 6


def test_workspace_is_what_exceeds_the_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measured(signatures, *rest):
        for text in signatures:
            yield text, Measurement(inner=100, outputs=(24,)), True

    monkeypatch.setattr(oracle, "measure_kernels", measured)
    graph = with_workspace(relu_graph(4), cache_dir=tmp_path)
    assert graph.nodes[0].workspace == 100 - 24
    assert graph.storages[1].nbytes == 24, "16 B of data on a storage that is truly larger"


def test_kernels_that_refuse_are_named_and_the_rest_is_measured() -> None:
    good = signature("aten.relu.default", ref(0), tensors=(((3,), "float32"),))
    raising = signature("aten.mm.default", ref(0), ref(0), tensors=(((2, 3), "float32"),))
    unknown = signature("nosuch.op.default")
    huge = signature("aten.zeros.default", [1 << 40])
    found = {text: (m, lasting) for text, m, lasting in measure_kernels([raising, unknown, huge, good], threads=1)}
    assert found[good] == (Measurement(12, (12,)), True)
    assert found[raising][0].reason.startswith("RuntimeError")
    assert "nosuch.op.default" in found[unknown][0].reason
    assert "allocate" in found[huge][0].reason
    assert [found[text][1] for text in (raising, unknown, huge)] == [True, False, False], "only what will not change is remembered"


class KilledWorker(oracle.Worker):
    """A worker whose process ends at one kernel, as a segmentation fault would end it."""

    started = 0
    poison = ""

    def __init__(self, threads: int, memory_limit: int) -> None:
        type(self).started += 1
        super().__init__(threads, memory_limit)

    def ask(self, signature: str, timeout: float) -> dict | str:
        if signature == self.poison:
            self._wait_until_ready()
            self._child.end()
        return super().ask(signature, timeout)


def test_a_crash_is_blamed_only_on_the_first_kernel_of_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    first, poison, last = (signature("aten.relu.default", ref(0), tensors=(((n,), "float32"),)) for n in (3, 4, 5))
    monkeypatch.setattr(KilledWorker, "started", 0)
    monkeypatch.setattr(KilledWorker, "poison", poison)
    monkeypatch.setattr(oracle, "Worker", KilledWorker)
    answers = {text: m for text, m, _ in measure_kernels([first, poison, last], threads=1)}
    assert (answers[first], answers[last]) == (Measurement(12, (12,)), Measurement(20, (20,)))
    assert answers[poison].reason == "its process was ended by SIGKILL"
    assert KilledWorker.started == 3, "one that served, one fresh one for the suspect, one for the rest"


def test_a_kernel_that_takes_too_long_is_tried_again_only_with_more_time(tmp_path: Path) -> None:
    """A sum of 2^50 numbers that are all the same one: days of work without memory."""
    numbers = [[1 << 50], [0], "float32"]
    endless = json.dumps({"op": "aten.sum.default", "args": [ref(0)], "kwargs": {}, "tensors": [numbers], "grad": False})
    good = signature("aten.relu.default", ref(0), tensors=(((3,), "float32"),))
    found = {text: (m, lasting) for text, m, lasting in measure_kernels([endless, good], threads=1, timeout=1.0)}
    assert found[endless][0] == Measurement(reason="took longer than 1 s")
    assert found[good] == (Measurement(12, (12,)), True), "the next one has a process of its own"


def test_a_kernel_stopped_on_a_busy_machine_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, late = relu_graph(7), Measurement(reason="took longer than 1 s")
    key = oracle.KernelEnvironment.current().key(str(kernel_signature(graph, graph.nodes[0])))
    for lasting, remembered in ((False, {}), (True, {key: late})):
        monkeypatch.setattr(oracle, "measure_kernels", lambda texts, *_, lasting=lasting: ((text, late, lasting) for text in texts))
        hasty = with_workspace(graph, cache_dir=tmp_path, timeout=1.0).meta["kernels"]
        assert hasty["unmeasured"] == {"aten.relu.default": late.reason}
        assert KernelCache(tmp_path).get([key], limit_s=1.0) == remembered
    monkeypatch.undo()
    assert with_workspace(graph, cache_dir=tmp_path, timeout=120.0).meta["kernels"]["measured"] == 1, "more time is another try"


def test_an_interrupt_ends_the_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[oracle.Worker] = []

    class Noted(oracle.Worker):
        def __enter__(self) -> oracle.Worker:
            started.append(self)
            return super().__enter__()

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(oracle, "Worker", Noted)
    with pytest.raises(KeyboardInterrupt):
        with_workspace(relu_graph(8), cache_dir=tmp_path, progress=interrupt)
    assert [worker._child.process.wait(60) for worker in started] == [-9]


def test_kernels_beyond_the_memory_limit_are_not_run(tmp_path: Path) -> None:
    graph = with_workspace(relu_graph(1 << 20), cache_dir=tmp_path, memory_limit=1 << 20)
    assert graph.nodes[0].workspace == 0
    assert "more than the limit" in graph.meta["kernels"]["unmeasured"]["aten.relu.default"]
    assert not list(tmp_path.iterdir()) or KernelCache(tmp_path).get(["x"], limit_s=1) == {}


def test_other_devices_and_plain_graphs_are_left_alone(tmp_path: Path) -> None:
    graph = relu_graph()
    on_cuda = replace(graph, meta={"device": "cuda"})
    assert "cuda" in with_workspace(on_cuda, cache_dir=tmp_path).meta["kernels"]["unmeasured"]["aten.relu.default"]
    plain = Graph.from_json(
        {"nodes": [{"op": "input", "ins": [], "outs": [0]}, {"op": "a", "ins": [0], "outs": [1]}], "bufs": [4, 4], "out": [1]}
    )
    assert with_workspace(plain, cache_dir=tmp_path).nodes == plain.nodes
    with pytest.raises(NeaptideError, match="threads is 0"):
        with_workspace(graph, threads=0)


def test_signatures_tell_apart_what_kernels_tell_apart() -> None:
    def text(op="aten.sum.dim_IntList", shape=(2, 3), strides=None, dtype="float32", axis=1, grad=False) -> str | None:
        build = GraphBuilder("one")
        x = build.tensor(shape, dtype, build.storage(1 << 10, "input"), strides=strides)
        y = build.tensor((2,), dtype)
        build.inputs.append(x)
        build.node(
            op, [x], [y], attrs={"args": [Ref(0), [axis]], "kwargs": {"dtype": Atom("dtype", dtype)}, **({"grad": True} if grad else {})}
        )
        build.outputs.append(y)
        graph = build.build()
        return kernel_signature(graph, graph.nodes[0])

    variants = [
        text(),
        text(shape=(3, 3)),
        text(strides=(1, 2)),
        text(dtype="float64"),
        text(axis=0),
        text(grad=True),
        text(op="aten.mean.dim"),
    ]
    assert len(set(variants)) == len(variants)
    assert text() == text()
    assert text(op="onnx.Sum") is None
    assert text(op="aten._local_scalar_dense.default") is None


# ---- the cache -----------------------------------------------------------------------------------------------------------------


def test_cache_gives_back_what_was_put(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    good, bad, slow = Measurement(10, (4, None)), Measurement(reason="RuntimeError: no"), Measurement(reason="took longer than 5 s")
    texts = {"a": "A", "b": "B", "c": "C"}
    cache.put(texts, {"a": good, "b": bad, "c": slow}, limits={"c": 5.0})
    cache.close()
    again = KernelCache(tmp_path)
    assert again.get(["a", "b", "c", "d"], limit_s=5.0) == {"a": good, "b": bad, "c": slow}
    assert again.get(["a", "b", "c"], limit_s=60.0) == {"a": good, "b": bad}, "with more time the slow one is worth another try"


@pytest.mark.parametrize("damage", [b"not a database at all, just text" * 200, b"SQLite format 3\x00" + b"\xff" * 4096])
def test_damaged_cache_is_set_aside_with_a_warning(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / FILE).write_bytes(damage)
    with pytest.warns(UserWarning, match="is damaged"):
        cache = KernelCache(tmp_path)
        cache.get(["k"], limit_s=1.0)
    cache.put({"k": "K"}, {"k": Measurement(1, (1,))}, limits={})
    assert KernelCache(tmp_path).get(["k"], limit_s=1.0) == {"k": Measurement(1, (1,))}
    assert [p.read_bytes() for p in tmp_path.glob("*.corrupt-*")] == [damage]


def test_rows_that_are_not_measurements_are_damage(tmp_path: Path) -> None:
    KernelCache(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("INSERT INTO kernels VALUES ('k', 'K', NULL, 'nonsense', '', 0)")
    db.close()
    cache = KernelCache(tmp_path)
    with pytest.warns(UserWarning, match="is damaged"):
        assert cache.get(["k"], limit_s=1.0) == {}


def test_unwritable_folder_means_memory_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="NEAPTIDE_CACHE"):
        cache = KernelCache(tmp_path / "file")
    cache.put({"k": "K"}, {"k": Measurement(1, (1,))}, limits={})
    assert cache.get(["k"], limit_s=1.0) == {"k": Measurement(1, (1,))}


def test_environment_variable_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEAPTIDE_CACHE", str(tmp_path / "here"))
    KernelCache().close()
    assert (tmp_path / "here" / FILE).exists()


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    def write(worker: int) -> None:
        cache = KernelCache(tmp_path)
        for i in range(20):
            key = f"{worker}-{i}"
            cache.put({key: key}, {key: Measurement(i, (worker,))}, limits={})
        cache.close()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=write, args=(w,)) for w in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = KernelCache(tmp_path).get([f"{w}-{i}" for w in range(4) for i in range(20)], limit_s=1.0)
    assert found == {f"{w}-{i}": Measurement(i, (w,)) for w in range(4) for i in range(20)}
