"""GPUs without a GPU: bounds that can be counted by hand, facts read from CUDA, and the measuring run on the CPU in their place."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from neaptide.compiler.errors import SourceError
from neaptide.compiler.graph import GraphBuilder
from neaptide.targets.database import CostDatabase
from neaptide.targets.nvcc import assembler_facts, kernel_facts, source_facts
from neaptide.targets.roofline import roofline
from neaptide.targets.spec import load_target

needs_tvm = pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="tvm not installed: pip install 'neaptide[tvm]'")
KERNELS = """
extern "C" __global__ void __launch_bounds__(160) first_kernel(float* __restrict__ a);
extern "C" __global__ void __launch_bounds__(160) first_kernel(float* __restrict__ a) {
  alignas(64) float mine_ptr[1];
  __shared__ alignas(64) float red_ptr[160];
  __shared__ alignas(64) half tile_ptr[2][8];
  a[threadIdx.x] = red_ptr[threadIdx.x] = mine_ptr[0];
}
extern "C" __global__ void second_kernel(float* __restrict__ a) {
  a[0] = 1.0f;
}
"""
SAID = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'second_kernel' for 'sm_90'
ptxas info    : Function properties for second_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
ptxas info    : Compiling entry function 'first_kernel' for 'sm_90'
ptxas info    : Function properties for first_kernel
    8 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 72 registers, used 1 barriers, 640 bytes smem
"""


def network() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), *head).eval(), torch.randn(1, 3, 16, 16)


def test_roofline_by_hand():
    b = GraphBuilder("two")
    x = b.tensor((256, 1024), "float32", role="input")
    w = b.tensor((1024, 512), "float32", role="constant")
    table = b.tensor((10_000, 8), "float32", role="constant")
    y, rows = b.tensor((256, 512), "float32"), b.tensor((4, 8), "float32")
    b.inputs.append(x)
    view = b.tensor((512, 256), "float32", b.tensors[y].storage)
    half = b.tensor((256, 512), "float16")
    for op, inputs, outputs in (("dense", [x, w], [y]), ("reshape", [y], [view]), ("square", [x, x], [half]), ("take", [table], [rows])):
        b.node(op, inputs, outputs)
    b.outputs.extend([view, half, rows])
    target = load_target("sm_90")
    peaks = target.roofline
    assert peaks is not None
    flops = 2.0 * 256 * 1024 * 512 * 100
    bounds = roofline(b.build(), target, {"dense": flops, "square": 1e15, "take": 0.0})
    assert [bound.node for bound in bounds] == [0, 2, 3]
    dense, square, take = bounds
    assert dense.bytes == 4 * (256 * 1024 + 1024 * 512 + 256 * 512)
    assert dense.limit == "arithmetic" and dense.seconds == flops / peaks.flops
    assert square.bytes == 4 * 256 * 1024 + 2 * 256 * 512 and square.limit == "memory" and square.flops == 0
    assert square.seconds == square.bytes / peaks.bandwidth
    assert take.bytes == 4 * 4 * 8
    with pytest.raises(SourceError, match="'dense'"):
        roofline(b.build(), target, {})
    with pytest.raises(SourceError, match="cpu-without"):
        roofline(b.build(), replace(target, name="cpu-without", roofline=None), {})


def test_facts_of_kernels():
    facts = source_facts(KERNELS)
    assert list(facts) == ["first_kernel", "second_kernel"]
    assert (facts["first_kernel"].threads, facts["first_kernel"].shared) == (160, 640 + 32)
    assert facts["second_kernel"].threads is None and facts["second_kernel"].registers is None
    known = assembler_facts(SAID, facts)
    assert (known["first_kernel"].registers, known["first_kernel"].spilled, known["first_kernel"].shared) == (72, 40, 640)
    assert (known["second_kernel"].registers, known["second_kernel"].spilled, known["second_kernel"].shared) == (12, 0, 0)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc not installed")
def test_nvcc_knows_registers():
    from neaptide.targets.nvcc import CudaError

    facts = kernel_facts(KERNELS.replace("half", "short"), "sm_90")
    assert all(fact.registers and fact.spilled == 0 for fact in facts.values())
    with pytest.raises(CudaError, match="undeclared"):
        kernel_facts(KERNELS.replace("half", "short").replace("1.0f", "undeclared"), "sm_90")


@needs_tvm
@pytest.mark.parametrize("name", ["sm_80", "sm_90"])
def test_a_bound_without_a_gpu(name, tmp_path, monkeypatch):
    from neaptide.report.console import output
    from neaptide.report.measurement import measurement_view
    from neaptide.targets.measure import measure

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model, x = network()
    cost = measure(model, (x,), target=name, folder=tmp_path)
    peaks = load_target(name).roofline
    assert peaks is not None and cost.latency is not None and cost.plan is not None
    assert cost.kind == "bound" and cost.arena is None and cost.max_error is None and cost.fits
    assert cost.latency == pytest.approx(sum(op.seconds or 0 for op in cost.per_op))
    weights = 4 * sum(p.numel() for p in model.parameters())
    least = weights + 4 * (x.numel() + 8 * 8 * 8 + 4)
    assert least / peaks.bandwidth <= cost.latency < 3 * least / peaks.bandwidth
    assert all(op.kind == "bound" and op.tuned is False for op in cost.per_op)
    console = output()
    with console.capture() as captured:
        console.print(measurement_view(cost))
    text = captured.get()
    assert "bound" in text and "at least" in text and "instructions" not in text and "stack" not in text
    facts = json.loads((tmp_path / "kernels.json").read_text())
    assert len(facts) >= len({op.signature for op in cost.per_op}) > 0
    assert all(fact["kernel"] in (tmp_path / "kernels.cu").read_text() and fact["threads"] <= 1024 for fact in facts)


@needs_tvm
def test_arithmetic_is_that_of_the_convolution():
    from neaptide.targets.tvm.cuda import compile_network

    model, x = network()
    compiled = compile_network(model, (x,), target=load_target("sm_90"))
    conv = next(flops for op, flops in compiled.flops.items() if "conv2d" in op)
    elements = 8 * 8 * 8
    assert conv == 2 * 27 * elements + 2 * elements  # multiply-adds, bias, ReLU
    with pytest.raises(SourceError, match="no CUDA GPU"):
        compile_network(model, (x,), target=load_target("cpu"))


def small() -> tuple[Any, Any, dict[str, Any]]:
    """A network compiled for sm_90, its example input, and its operators unscheduled, which TVM compiles for the CPU."""
    from neaptide.targets.tvm.cuda import compile_network

    model, x = network()
    compiled = compile_network(model, (x,), target=load_target("sm_90"), name="small")
    return compiled, (model, x), dict(compiled.kernels)


@needs_tvm
def test_the_measuring_run_computes_what_torch_does():
    """The same run and the same cost as on a GPU, with unscheduled operators on the CPU."""
    import tvm

    from neaptide.report.console import output
    from neaptide.report.measurement import measurement_view
    from neaptide.targets.cost import Cost
    from neaptide.targets.tvm.cuda import bound_cost, measured_cost
    from neaptide.targets.tvm.cuda_run import run_beside_torch, torch_eager
    from neaptide.targets.tvm.tune import Tuned
    from neaptide.targets.verdict import difference

    compiled, (model, x), plain = small()
    machine = tvm.target.Target({"kind": "llvm"})
    eager = torch_eager(model.train(), (x,), None, [x.numpy()], device="cpu")
    assert eager is not None and model.training
    before = torch.backends.cudnn.allow_tf32
    run = run_beside_torch(compiled.graph, compiled.plan, plain, machine, [x.numpy()], eager, device="cpu", rounds=3)
    assert torch.backends.cudnn.allow_tf32 == before
    with torch.no_grad():
        expected = model.eval()(x).numpy()
    torch.testing.assert_close(eager().numpy(), expected)
    assert difference(run.outputs[0], expected) < 1e-5
    assert np.abs(expected).max() > 0
    assert run.arena == compiled.plan.arena and not run.peaks and set(run.timings) == {"tvm", "torch"}
    assert set(run.per_op) == {node.id for node in compiled.graph.nodes if node.op != "reshape"}
    assert all(seconds > 0 for seconds in run.per_op.values())

    key = next(iter(compiled.signatures.values()))
    found = {key: Tuned(1e-6, 0.0, 8, [["a trace"]])}
    cost = measured_cost(bound_cost(compiled, {}), compiled, replace(run, peaks={"tvm": 512, "torch": 999}), found, [expected], "a GPU")
    assert cost.kind == "measured" and cost.latency == run.timings["tvm"].seconds and cost.peers["torch"] > 0
    assert cost.arena == cost.plan and cost.peak == 512 and cost.peer_peaks["torch"] == 999
    assert cost.max_error is not None and cost.max_error < 1e-5
    assert {op.signature for op in cost.per_op if op.tuned} == {key} and {op.kind for op in cost.per_op} == {"measured"}
    assert "8 or more schedules" in cost.reasons[1]
    assert Cost.from_dict(cost.to_dict()) == cost
    console = output()
    with console.capture() as captured:
        console.print(measurement_view(cost))
    assert "peak" in captured.get() and "in torch" in captured.get()


@needs_tvm
def test_torch_runs_programs_and_leaves_onnx(tmp_path):
    from neaptide.targets.tvm.cuda_run import torch_eager

    model, x = network()
    program = torch.export.export(model, (x,))
    torch.export.save(program, str(tmp_path / "net.pt2"))
    for source in (program, tmp_path / "net.pt2"):
        eager = torch_eager(source, (), None, [x.numpy()], device="cpu")
        assert eager is not None
        torch.testing.assert_close(eager(), model(x))
    onnx = pytest.importorskip("onnx")
    ends = [onnx.helper.make_tensor_value_info(name, 1, [4]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", ends[:1], ends[1:])
    (tmp_path / "net.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    assert torch_eager(tmp_path / "net.onnx", (), None, [x.numpy()], device="cpu") is None


@needs_tvm
def test_operators_are_searched_remembered_and_taken_up_again(tmp_path):
    """The search as on a GPU, with a clock that knows no GPU: the more CUDA a schedule is, the slower it is said to be."""
    import tvm

    from neaptide.targets.tvm.cuda import tuned_network
    from neaptide.targets.tvm.cuda_tune import DEFAULT, built, scheduled_as, tuned_operators

    compiled, _, _ = small()
    before = [func.script() for func in compiled.kernels.values()]
    machine = tvm.target.Target(dict(load_target("sm_90").tvm))
    timed: list[float] = []

    def timer_of(func):
        def seconds(module, best):
            length = sum(len(part.inspect_source()) for part in built(module, machine).imports)
            timed.append(best)
            if len(timed) % 4 == 3:
                raise tvm.error.InternalError("too many resources requested for launch")
            return [1e-9 * length, 1.2e-9 * length]

        return seconds

    funcs = {compiled.signatures[op]: func for op, func in compiled.kernels.items()}
    tune = partial(tuned_operators, funcs, machine, timer_of, target="sm_90", toolchain="t")
    with CostDatabase(tmp_path / "c.sqlite") as database:
        said: list[str] = []
        assert tune(trials=0, database=database) == {}
        first = tune(trials=4, database=database, progress=said.append)
        assert len(said) == len(funcs) == len(first) == len(list(database.rows()))
        assert all(tuned.trials == 4 and tuned.seconds > 0 and tuned.spread == pytest.approx(0.1) for tuned in first.values())
        count = len(timed)
        assert tune(trials=4, database=database) == first
        assert len(timed) == count
        more = tune(trials=7, database=database)
        assert all(more[key].seconds <= first[key].seconds and more[key].trials == 7 for key in funcs)
        assert len(timed) > count
    assert any(tuned.trace != DEFAULT for tuned in more.values())
    tuned = tuned_network(compiled, more)
    assert tuned.source != compiled.source and tuned.plan.arena >= tuned.plan.lower_bound
    for op, func in compiled.kernels.items():
        assert scheduled_as(func, more[compiled.signatures[op]].trace, machine).attrs["global_symbol"] == op
    assert [func.script() for func in compiled.kernels.values()] == before
    facts = kernel_facts(tuned.source, "sm_90")
    assert facts and all((fact.threads or 0) <= 1024 and fact.shared <= 49152 for fact in facts.values())


def test_the_compiler_that_this_machine_has(monkeypatch):
    from neaptide.targets import nvcc

    monkeypatch.delenv(nvcc.MODE, raising=False)
    for nvrtc, version, mode in ((True, "13.0", "nvrtc"), (True, None, "nvrtc"), (False, "13.0", "nvcc")):
        monkeypatch.setattr(nvcc, "_has_nvrtc", lambda nvrtc=nvrtc: nvrtc)
        monkeypatch.setattr(nvcc, "nvcc_version", lambda version=version: version)
        with nvcc.cuda_compiler() as chosen:
            assert chosen == mode == os.environ[nvcc.MODE]
        assert nvcc.MODE not in os.environ
    monkeypatch.setattr(nvcc, "_has_nvrtc", lambda: False)
    monkeypatch.setattr(nvcc, "nvcc_version", lambda: None)
    with pytest.raises(nvcc.CudaError, match="cuda-bindings"), nvcc.cuda_compiler():
        pass
    monkeypatch.setenv(nvcc.MODE, "nvrtc")
    with nvcc.cuda_compiler() as chosen:
        assert chosen == "nvrtc"
    assert os.environ[nvcc.MODE] == "nvrtc"


@needs_tvm
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc not installed")
def test_tvm_compiles_our_kernels_with_nvcc(monkeypatch):
    """What TVM calls on a machine with a GPU to turn source into a binary."""
    import tvm

    from neaptide.targets.nvcc import cuda_compiler

    compiled, _, _ = small()
    monkeypatch.delenv("TVM_CUDA_COMPILE_MODE", raising=False)
    monkeypatch.setattr("neaptide.targets.nvcc._has_nvrtc", lambda: False)
    with cuda_compiler(), tvm.target.Target(dict(load_target("sm_90").tvm)):
        binary = tvm.get_global_func("tvm_callback_cuda_compile")(compiled.source)
    assert len(bytes(binary)) > 1000
