"""Operators on CUDA GPUs: TVM's default schedules (dlight), bounds and static facts without a GPU, times on one.

Without a GPU of the target's architecture the cost is a lower bound from the target's peaks, of kind "bound". With one, every operator
runs on torch tensors laid out in one arena at Neaptide's own offsets, and times are measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from types import MappingProxyType
from typing import Any

import numpy as np
import tvm
from tvm import s_tir, tirx

from ...compiler.errors import SourceError
from ...compiler.graph import ITEMSIZE, Graph
from ...passes.allocate import Plan, allocate
from ...passes.schedule import schedule
from ..cost import Cost, OpCost
from ..mcu.network import input_arrays, reference_outputs, relative_error
from ..nvcc import KernelFacts, kernel_facts, nvcc_version
from ..roofline import roofline
from ..spec import Target
from .fused_graph import fused_program
from .importer import to_relax
from .lower import signature

ALIGNMENT = 256  # of what cudaMalloc gives
GLOBAL = "global"


@dataclass(frozen=True)
class CudaNetwork:
    """A model as scheduled operators for one target. `graph`: a node per call, with the bytes its kernels need beside inputs and outputs.

    `plan`: the graph's order and offsets. `functions`: scheduled, by op. `source`: all kernels in CUDA. `flops`, `signatures`: by op.
    """

    name: str
    target: Target
    graph: Graph
    plan: Plan
    functions: Mapping[str, tirx.PrimFunc]
    source: str
    flops: Mapping[str, float]
    signatures: Mapping[str, str]


def measure_cuda(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: Target,
    name: str | None = None,
    folder: Path | None = None,
) -> Cost:
    """The cost of one inference: measured where there is a GPU of the target's architecture, else a bound.

    Arguments as in `targets.tvm.importer.to_relax`. `folder`: keeps `kernels.cu` and `kernels.json`, the facts of each kernel.
    Raises `SourceError` for a target that is no CUDA GPU or has no peaks, `CudaError` when nvcc refuses a kernel.
    """
    network = compile_network(model, args, kwargs, target=target, name=name)
    facts = kernel_facts(network.source, target.tvm["arch"])
    if folder is not None:
        (folder / "kernels.cu").write_text(network.source)
        (folder / "kernels.json").write_text(json.dumps([fact.to_dict() for fact in facts.values()], indent=1))
    cost = bound_cost(network, facts)
    device = gpu_name(target)
    if device is None:
        return cost
    inputs = input_arrays(network.graph, args, kwargs)
    return _measured(network, cost, device, inputs, reference_outputs(model, args, kwargs, inputs))


def compile_network(
    model: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *, target: Target, name: str | None = None
) -> CudaNetwork:
    """Import, fuse, schedule for `target` and place `model`; no GPU is needed. Seconds for a network of fifty operators."""
    if target.kind != "gpu" or target.tvm.get("kind") != "cuda" or "arch" not in target.tvm:
        raise SourceError(f'target {target.name} is no CUDA GPU: its [tvm] needs kind = "cuda" and an arch such as "sm_90"')
    title = name or type(model).__name__
    program = fused_program(to_relax(model, args, kwargs), name=title)
    functions = scheduled_for(program.kernels, target)
    needs = {op: workspace(func) for op, func in functions.items()}
    graph = program.graph.with_nodes([replace(node, workspace=needs.get(node.op, 0)) for node in program.graph.nodes])
    plan = allocate(graph, schedule(graph, inputs="planned"), alignment=ALIGNMENT, inputs="planned")
    flops = {op: float(s_tir.analysis.estimate_tir_flops(tvm.IRModule({"main": func}))) for op, func in program.kernels.items()}
    signatures = {op: signature(op, func) for op, func in program.kernels.items()}
    return CudaNetwork(title, target, graph, plan, functions, cuda_source(functions, target), flops, signatures)


def scheduled_for(kernels: Mapping[str, tirx.PrimFunc], target: Target) -> dict[str, tirx.PrimFunc]:
    """Every operator under the first of dlight's GPU rules that takes it; nothing is searched."""
    from tvm.s_tir import dlight

    gpu = dlight.gpu
    mod = tvm.IRModule({op: func.with_attr("global_symbol", op) for op, func in kernels.items()})
    with tvm.target.Target(dict(target.tvm)):
        mod = dlight.ApplyDefaultSchedule(gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())(mod)
    return {var.name_hint: func for var, func in mod.functions.items()}


def workspace(func: tirx.PrimFunc) -> int:
    """Bytes of device memory that a scheduled operator needs beside its inputs and outputs, all its buffers alive together."""
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    buffers = sch.get(sch.get_sblock("root")).alloc_buffers
    return sum(ITEMSIZE[str(b.dtype)] * int(np.prod([int(d) for d in b.shape])) for b in buffers if b.scope() == GLOBAL)


def cuda_source(functions: Mapping[str, tirx.PrimFunc], target: Target) -> str:
    """CUDA of all operators; a kernel is called as its operator with `_kernel` behind it. "" when there is no operator."""
    if not functions:
        return ""
    return "\n".join(part.inspect_source() for part in _compiled(functions, dict(target.tvm)).mod.imports)


def _compiled(functions: Mapping[str, tirx.PrimFunc], target: Mapping[str, Any]) -> Any:
    return tvm.compile(tvm.IRModule(dict(functions)), target=tvm.target.Target(dict(target)))


def bound_cost(network: CudaNetwork, facts: Mapping[str, KernelFacts]) -> Cost:
    """A lower bound of the network's time: the sum of its operators' rooflines. `plan`: bytes of the arena; nothing has run."""
    graph, target, plan = network.graph, network.target, network.plan
    bounds = roofline(graph, target, network.flops)
    per_op = tuple(
        OpCost(_label(graph, b.node), network.signatures[graph.nodes[b.node].op], seconds=b.seconds,
               bytes=graph.nodes[b.node].workspace, tuned=False, kind="bound")
        for b in bounds
    )  # fmt: skip
    weights = sum(s.nbytes for s in graph.storages if s.role in ("parameter", "buffer", "constant"))
    moved, work = sum(b.bytes for b in bounds), sum(b.flops for b in bounds)
    limited = sum(b.limit == "memory" for b in bounds)
    needed = weights + plan.arena
    fits = None if target.sram is None else needed <= target.sram
    versions = {"apache-tvm": version("apache-tvm"), "schedules": "dlight"}
    if nvcc_version():
        versions["nvcc"] = str(nvcc_version())
    verdict = "fits" if fits else "does not fit" if fits is False else "needs"
    return Cost(
        target=target.name,
        kind="bound",
        name=network.name,
        latency=sum(b.seconds for b in bounds),
        plan=plan.arena,
        flash=weights,
        sections=MappingProxyType({"weights": weights}),
        fits=fits,
        per_op=per_op,
        versions=MappingProxyType(versions),
        reasons=(
            f"{verdict}: device memory {needed:,} B (weights {weights:,}, arena {plan.arena:,})"
            + (f" of {target.sram:,} B" if target.sram else ""),
            f"no run: a lower bound from {target.title}'s peaks, {moved:,} B moved and {work:,.0f} FLOPs; "
            f"{limited} of {len(bounds)} operators limited by memory",
            facts_summary(facts, target.tvm["arch"]),
        ),
    )


def facts_summary(facts: Mapping[str, KernelFacts], arch: str) -> str:
    """The most that a kernel takes, in a sentence."""
    if not facts:
        return "no kernels"
    kernels = "1 kernel" if len(facts) == 1 else f"{len(facts)} kernels"
    shared = f"at most {max(f.shared for f in facts.values()):,} B of shared memory per block"
    registers = [f.registers for f in facts.values() if f.registers is not None]
    if not registers:
        return f"{kernels} generated for {arch}, not compiled (nvcc is not installed): {shared}"
    spilling = sum(bool(f.spilled) for f in facts.values())
    return f"{kernels} compiled for {arch}: at most {max(registers)} registers per thread, {shared}, {spilling} with spills"


def gpu_name(target: Target) -> str | None:
    """The GPU that torch and TVM both see, if its architecture is the target's; else None."""
    import torch

    if not torch.cuda.is_available() or not tvm.cuda(0).exist:
        return None
    major, minor = torch.cuda.get_device_capability()
    return torch.cuda.get_device_name() if target.tvm.get("arch", "").rstrip("a") == f"sm_{major}{minor}" else None


@dataclass(frozen=True)
class Times:
    """`outputs`: of the run, as arrays. `latency`: median seconds of the whole, `spread`: half range over median. `per_op`: by node."""

    outputs: tuple[np.ndarray, ...]
    latency: float
    spread: float
    per_op: Mapping[int, float]
    arena: int


def run_in_arena(
    network: CudaNetwork,
    inputs: Sequence[np.ndarray],
    *,
    device: str = "cuda",
    functions: Mapping[str, tirx.PrimFunc] | None = None,
    target: Mapping[str, Any] | None = None,
    repeats: int = 20,
) -> Times:
    """Run `network` in its plan's order with all its storages in one buffer at the plan's offsets, and time it.

    `device`: torch's name for it; with "cpu", `functions` and `target` are operators that TVM can run there. Operators are timed alone
    with TVM's `time_evaluator`, warm; the whole as wall time from an idle device to an idle device. Storage that the plan does not
    place (weights) has a place of its own.
    """
    import torch

    graph, plan = network.graph, network.plan
    library = _compiled(functions or network.functions, target or network.target.tvm)
    arena = torch.zeros(plan.arena, dtype=torch.uint8, device=device)
    places = _places(graph, plan, arena, device)

    def finish() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    def load() -> None:
        for t, array in zip(graph.inputs, inputs, strict=True):
            places[t].copy_(torch.from_numpy(array))

    def arguments(v: int) -> list[Any]:
        return [places[t] for t in (*graph.nodes[v].inputs, *graph.nodes[v].outputs)]

    steps: list[tuple[int, Callable[..., Any], list[Any]]] = [
        (v, library[graph.nodes[v].op], arguments(v)) for v in plan.order if graph.nodes[v].op != "reshape"
    ]

    def once() -> float:
        load()
        finish()
        start = perf_counter()
        for _, call, arguments_of in steps:
            call(*arguments_of)
        finish()
        return perf_counter() - start

    once()
    outputs = tuple(places[t].cpu().numpy().copy() for t in graph.outputs)
    seconds = sorted(once() for _ in range(repeats))
    middle = median(seconds)
    ffi_device = tvm.cpu() if device == "cpu" else tvm.cuda(0)
    per_op = {
        v: float(library.mod.time_evaluator(graph.nodes[v].op, ffi_device, number=3, repeat=5)(*arguments_of).median)
        for v, _, arguments_of in steps
    }
    return Times(outputs, middle, (seconds[-1] - seconds[0]) / 2 / middle, MappingProxyType(per_op), arena.numel())


def _places(graph: Graph, plan: Plan, arena: Any, device: str) -> list[Any]:
    """A torch tensor per tensor of the graph: a view of the arena where the plan places its storage, else of a copy of its value."""
    import torch

    own: dict[int, Any] = {}
    for t, value in graph.values.items():
        own[graph.tensors[t].storage] = torch.from_numpy(np.ascontiguousarray(value)).to(device).reshape(-1).view(torch.uint8)
    places = []
    for tensor in graph.tensors:
        nbytes = tensor.numel * ITEMSIZE[tensor.dtype]
        offset = plan.offsets.get(tensor.storage)
        if offset is not None:
            flat = arena[offset + tensor.offset : offset + tensor.offset + nbytes]
        elif tensor.storage in own:
            flat = own[tensor.storage][tensor.offset : tensor.offset + nbytes]
        else:
            flat = torch.zeros(nbytes, dtype=torch.uint8, device=device)
        places.append(flat.view(getattr(torch, tensor.dtype)).view(tensor.shape))
    return places


def _measured(network: CudaNetwork, bound: Cost, device: str, inputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> Cost:
    """`bound` with what a run on `device` found in its place; its verdict on memory and its facts stay."""
    times = run_in_arena(network, inputs)
    computing = [node.id for node in network.graph.nodes if node.op != "reshape"]
    per_op = tuple(replace(op, seconds=times.per_op[v], kind="measured") for v, op in zip(computing, bound.per_op, strict=True))
    said = f"run on {device} with dlight's default schedules, none searched; the peaks allow {(bound.latency or 0) * 1e6:,.1f} us at best"
    return replace(
        bound,
        kind="measured",
        latency=times.latency,
        spread=times.spread,
        arena=times.arena,
        max_error=relative_error(times.outputs, expected),
        per_op=per_op,
        versions=MappingProxyType({**bound.versions, "device": device}),
        reasons=(bound.reasons[0], said, *bound.reasons[2:]),
    )


def _label(graph: Graph, v: int) -> str:
    node = graph.nodes[v]
    shapes = " ".join("x".join(map(str, graph.tensors[t].shape)) for t in node.outputs)
    return f"{node.op.removeprefix('fused_')} -> {shapes}"
