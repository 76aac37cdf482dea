"""This machine's CPU: one small operator tuned, remembered and taken up again, and an untuned one that has no time."""

from __future__ import annotations

import importlib.util
import signal
import tempfile
from typing import Any

import pytest
import torch
from torch import nn

from neaptide.compiler.errors import SourceError
from neaptide.targets.cost import Cost
from neaptide.targets.database import CostDatabase, NetworkRow

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="tvm not installed: pip install 'neaptide[tvm]'")


def model() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()).eval(), torch.randn(1, 3, 12, 12)


def test_tuned_operator_is_remembered_and_never_tuned_ones_have_no_time(tmp_path, monkeypatch):
    from neaptide.report.console import output
    from neaptide.report.measurement import measurement_view
    from neaptide.targets.measure import measure
    from neaptide.targets.spec import load_target
    from neaptide.targets.tvm.cpu import measure_cpu

    cpu = load_target("cpu")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))  # nothing of the search is written to files
    network, x = model()
    with CostDatabase(tmp_path / "costs.sqlite") as database:

        def run(trials: int) -> tuple[Cost, list[str]]:
            said: list[str] = []
            cost = measure_cpu(network, (x,), target=cpu, name="small", trials=trials, peers=False, database=database, progress=said.append)
            return cost, [line for line in said if line.startswith("tuning")]

        untuned, searched = run(0)
        assert not searched and untuned.latency is None and untuned.reasons[0].startswith("untuned: 1 of 1")
        assert [(op.seconds, op.tuned) for op in untuned.per_op] == [(None, False)]
        assert untuned.max_error is not None and untuned.max_error < 1e-5
        assert not list(database.rows())

        network.train()
        norm = network.get_submodule("1")
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
        before = norm.running_mean.clone()
        tuned = measure(network, (x,), target="cpu", name="small", trials=3, database=database)
        assert network.training and torch.equal(norm.running_mean, before)
        assert tuned.latency is not None and tuned.latency > 0
        assert tuned.max_error is not None and tuned.max_error < 1e-5
        assert tuned.peers["torch"] > 0
        (row,) = database.rows()
        assert row.value == tuned.per_op[0].seconds and row.extra["trials"] == 3
        assert len(list(database.rows(NetworkRow))) == 1

        again, searched = run(3)
        assert not searched and again.per_op == tuned.per_op

        more, searched = run(5)
        (row,) = database.rows()
        assert len(searched) == 1 and row.extra["trials"] == 5
        assert more.per_op[0].seconds is not None and tuned.per_op[0].seconds is not None
        assert more.per_op[0].seconds <= tuned.per_op[0].seconds

    assert Cost.from_dict(tuned.to_dict()) == tuned
    console = output()
    with console.capture() as captured:
        console.print(measurement_view(untuned))
        console.print(measurement_view(tuned))
    text = captured.get()
    assert "untuned" in text and "in torch" in text and "instructions" not in text


def test_only_a_cpu_is_measured_here():
    from neaptide.targets.spec import load_target
    from neaptide.targets.tvm.cpu import measure_cpu

    network, x = model()
    with pytest.raises(SourceError, match="sm_80 is a gpu"):
        measure_cpu(network, (x,), target=load_target("sm_80"))


def test_interrupted_tuning_goes_on_after_the_operators_it_had_finished(tmp_path, monkeypatch):
    from neaptide.targets.spec import load_target
    from neaptide.targets.tvm import cpu as module

    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 5, 1)).eval()
    tune, tuned = module.tune, []

    def counted(func, *args, **kwargs):
        if len(tuned) == 2:
            raise KeyboardInterrupt
        tuned.append(str(func.params[0].shape))
        return tune(func, *args, **kwargs)

    def run(path) -> Cost:
        with CostDatabase(path) as database:
            return module.measure_cpu(
                network, (torch.randn(1, 3, 8, 8),), target=load_target("cpu"), name="three", trials=1, peers=False, database=database
            )

    monkeypatch.setattr(module, "tune", counted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "costs.sqlite")
    finished = list(tuned)
    with CostDatabase(tmp_path / "costs.sqlite") as database:
        before = {row.signature: row.value for row in database.rows()}
        assert len(before) == 2 and not list(database.rows(NetworkRow))
    tuned.clear()
    cost = run(tmp_path / "costs.sqlite")
    assert len(tuned) == 1 and tuned[0] not in finished
    assert cost.latency is not None and {op.signature: op.seconds for op in cost.per_op}.items() >= before.items()


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_models_from_files_run_beside_what_can_read_them(tmp_path, kind):
    from neaptide.targets.measure import measure

    network, x = model()
    path = tmp_path / f"small.{kind}"
    if kind == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
        torch.onnx.export(network, (x,), str(path), dynamo=True, verbose=False)
    else:
        torch.export.save(torch.export.export(network, (x,)), str(path))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        cost = measure(path, target="cpu", trials=0)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert cost.max_error is not None and cost.max_error < 1e-5
    assert ("torch" in cost.peers) == (kind == "pt2")
    assert kind == "pt2" or cost.peers["onnxruntime"] > 0


def test_ctrl_c_while_tvm_calls_back_is_no_failed_schedule():
    """TVM raises a nameless RuntimeError then, which looks like a schedule that does not build."""
    import tvm
    from tvm import te

    from neaptide.targets.tvm.search_space import interruptible, operator_module
    from neaptide.targets.tvm.tune import cpu_target

    @tvm.instrument.pass_instrument
    class Pressed:
        def run_before_pass(self, module, info):
            signal.raise_signal(signal.SIGINT)

    a: Any = te.placeholder((8,), name="a")
    b: Any = te.compute((8,), lambda i: a[i] + 1)
    func = te.create_prim_func([a, b])

    def build() -> None:
        with tvm.transform.PassContext(instruments=[Pressed()]):
            tvm.tirx.build(operator_module(func), target=cpu_target(1))

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError):
        build()
    with pytest.raises(KeyboardInterrupt), interruptible():
        build()
    assert signal.getsignal(signal.SIGINT) is before
    with interruptible() as check:
        with pytest.raises(RuntimeError):
            build()
        with pytest.raises(KeyboardInterrupt):
            check()
