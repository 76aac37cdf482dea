"""Networks on CUDA GPUs: TVM's default schedules (dlight), bounds and static facts without a GPU; tuned and measured on one.

Without a GPU of the target's architecture the cost is a lower bound from the target's peaks, of kind "bound". With one, every distinct
operator is tuned there, and the network runs in one arena at Neaptide's own offsets, in turns with torch eager.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import tvm
from tvm import s_tir, tirx

from ...compiler.errors import SourceError
from ...compiler.graph import ITEMSIZE, Graph
from ...compiler.models import load_model, model_name
from ...compiler.output_files import write_text
from ...passes.allocate import Plan, allocate
from ...passes.schedule import schedule
from ..cost import Cost, OpCost
from ..database import CostDatabase, NetworkRow
from ..mcu.network import input_arrays, reference_outputs
from ..nvcc import KernelFacts, cuda_compiler, kernel_facts, nvcc_version
from ..remember import toolchain_of
from ..roofline import roofline
from ..spec import Target
from ..verdict import judged
from .cuda_run import GpuRun, gpu_name, run_beside_torch, torch_eager
from .cuda_tune import DEFAULT, device_timer, scheduled_as, tuned_operators
from .fused_graph import fused_program
from .importer import to_relax
from .lower import signature
from .machine import machine as described
from .tune import Tuned

TRIALS = 32
ALIGNMENT = 256  # of what cudaMalloc gives
GLOBAL = "global"


@dataclass(frozen=True)
class CudaNetwork:
    """A model as scheduled operators for one target. `graph`: a node per call, with the bytes its kernels need beside inputs and outputs.

    `plan`: the graph's order and offsets. `kernels`: operators as they were written, by op; `functions`: the same scheduled; `source`:
    all of these in CUDA. `flops`, `signatures`: by op.
    """

    name: str
    target: Target
    graph: Graph
    plan: Plan
    kernels: Mapping[str, tirx.PrimFunc]
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
    trials: int = TRIALS,
    database: CostDatabase | None = None,
    progress: Callable[[str], None] | None = None,
) -> Cost:
    """The cost of one inference: measured where there is a GPU of the target's architecture, else a bound.

    Arguments as in `targets.measure.measure`. On a GPU each distinct operator is tuned until `trials` of its schedules have been timed,
    dlight's default among them, and remembered in `database` at once; an operator that is not known with `trials=0` runs as dlight
    schedules it. `folder`: keeps `kernels.cu` and `kernels.json`, the facts of each kernel. Raises `SourceError` for a target that is no
    CUDA GPU or has no peaks, `CudaError` when nvcc refuses a kernel or a GPU is here and no compiler.
    """
    say = progress or (lambda _: None)
    say(f"compiling for {target.name}")
    name, model = name or model_name(model), load_model(model)
    network = compile_network(model, args, kwargs, target=target, name=name)
    device = gpu_name(target)
    if device is None:
        return bound_cost(network, _facts(network, folder))
    machine = described(target.tvm)
    own = {"apache-tvm": version("apache-tvm"), "device": device}
    found = tuned_operators(
        {network.signatures[op]: func for op, func in network.kernels.items()}, machine, lambda func: device_timer(func, machine),
        target=target.name, toolchain=toolchain_of(own), trials=trials, database=database, progress=say,
    )  # fmt: skip
    network = tuned_network(network, found)
    inputs = input_arrays(network.graph, args, kwargs)
    eager = torch_eager(model, args, kwargs, inputs)
    say("running")
    run = run_beside_torch(network.graph, network.plan, network.functions, machine, inputs, eager)
    expected = reference_outputs(model, args, kwargs, inputs)
    cost = measured_cost(bound_cost(network, _facts(network, folder)), network, run, found, expected, device)
    if database is not None and name and cost.latency is not None:
        operators = dict(Counter(op.signature for op in cost.per_op))
        database.put(NetworkRow(name, target.name, toolchain_of(own), cost.latency, operators, "seconds", cost.spread))
    return cost


def compile_network(
    model: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *, target: Target, name: str | None = None
) -> CudaNetwork:
    """Import, fuse, schedule for `target` and place `model`; no GPU is needed. Seconds for a network of fifty operators."""
    if target.kind != "gpu" or target.tvm.get("kind") != "cuda" or "arch" not in target.tvm:
        raise SourceError(f'target {target.name} is no CUDA GPU: its [tvm] needs kind = "cuda" and an arch such as "sm_90"')
    program = fused_program(to_relax(model, args, kwargs), name=name or model_name(model))
    kernels = {op: func.with_attr("global_symbol", op) for op, func in program.kernels.items()}
    flops = {op: float(s_tir.analysis.estimate_tir_flops(tvm.IRModule({"main": func}))) for op, func in kernels.items()}
    signatures = {op: signature(op, func) for op, func in program.kernels.items()}
    return _scheduled(program.graph, kernels, {}, target, flops, signatures)


def tuned_network(network: CudaNetwork, found: Mapping[str, Tuned]) -> CudaNetwork:
    """`network` under the schedules that were `found`, by signature, and dlight's for the rest; planned again, for workspaces change."""
    traces = {op: found[key].trace for op, key in network.signatures.items() if key in found}
    return _scheduled(network.graph, network.kernels, traces, network.target, network.flops, network.signatures)


def _scheduled(
    graph: Graph, kernels: Mapping[str, tirx.PrimFunc], traces: Mapping[str, Any], target: Target, flops: Mapping[str, float],
    signatures: Mapping[str, str],
) -> CudaNetwork:  # fmt: skip
    machine = described(target.tvm)
    functions = {op: scheduled_as(func, traces.get(op, DEFAULT), machine) for op, func in kernels.items()}
    needs = {op: workspace(func) for op, func in functions.items()}
    graph = graph.with_nodes([replace(node, workspace=needs.get(node.op, 0)) for node in graph.nodes])
    plan = allocate(graph, schedule(graph, inputs="planned"), alignment=ALIGNMENT, inputs="planned")
    return CudaNetwork(graph.name, target, graph, plan, kernels, functions, cuda_source(functions, target), flops, signatures)


def _facts(network: CudaNetwork, folder: Path | None) -> Mapping[str, KernelFacts]:
    facts = kernel_facts(network.source, network.target.tvm["arch"])
    if folder is not None:
        write_text(folder / "kernels.cu", network.source)
        write_text(folder / "kernels.json", json.dumps([fact.to_dict() for fact in facts.values()], indent=1))
    return facts


def workspace(func: tirx.PrimFunc) -> int:
    """Bytes of device memory that a scheduled operator needs beside its inputs and outputs, all its buffers alive together."""
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    buffers = sch.get(sch.get_sblock("root")).alloc_buffers
    return sum(ITEMSIZE[str(b.dtype)] * int(np.prod([int(d) for d in b.shape])) for b in buffers if b.scope() == GLOBAL)


def cuda_source(functions: Mapping[str, tirx.PrimFunc], target: Target) -> str:
    """CUDA of all operators; a kernel is called as its operator with `_kernel` behind it. "" when there is no operator."""
    if not functions:
        return ""
    with nullcontext() if gpu_name(target) is None else cuda_compiler():
        compiled = tvm.compile(tvm.IRModule(dict(functions)), target=described(target.tvm))
    return "\n".join(part.inspect_source() for part in compiled.mod.imports)


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


def measured_cost(
    bound: Cost, network: CudaNetwork, run: GpuRun, found: Mapping[str, Tuned], expected: Sequence[np.ndarray], device: str
) -> Cost:
    """`bound` with what a run on `device` found in its place; its verdict on memory and its facts stay."""
    computing = [node for node in network.graph.nodes if not network.graph.is_view(node)]
    per_op = tuple(
        replace(op, seconds=run.per_op[node.id], kind="measured", tuned=network.signatures[node.op] in found)
        for node, op in zip(computing, bound.per_op, strict=True)
    )
    fewest = min((known.trials for known in found.values()), default=0)
    searched = sum(known.trace != DEFAULT for known in found.values())
    tuned = f"{fewest} or more schedules tried for each, dlight's default beaten for {searched}" if found else "none of them tuned"
    whole, peers = run.timings["tvm"], {label: timing for label, timing in run.timings.items() if label != "tvm"}
    reasons = [
        bound.reasons[0],
        f"run on {device}: {len(set(network.signatures.values()))} distinct operators, {tuned}",
        f"the peaks of {network.target.title} allow {(bound.latency or 0) * 1e6:,.1f} us at best",
        *bound.reasons[2:],
    ]
    if not peers:
        reasons.append("torch eager is not beside it: it does not run ONNX models")
    import torch

    cost = replace(
        bound,
        kind="measured",
        latency=whole.seconds,
        spread=whole.spread,
        arena=run.arena,
        peak=run.peaks.get("tvm"),
        per_op=per_op,
        peers=MappingProxyType({label: timing.seconds for label, timing in peers.items()}),
        peer_spreads=MappingProxyType({label: timing.spread for label, timing in peers.items()}),
        peer_peaks=MappingProxyType({label: peak for label, peak in run.peaks.items() if label != "tvm"}),
        versions=MappingProxyType({**bound.versions, "schedules": "dlight and MetaSchedule", "device": device, "torch": torch.__version__}),
        reasons=tuple(reasons),
    )
    return judged(cost, run.outputs, expected)


def _label(graph: Graph, v: int) -> str:
    node = graph.nodes[v]
    shapes = " ".join("x".join(map(str, graph.tensors[t].shape)) for t in node.outputs)
    return f"{node.op.removeprefix('fused_')} -> {shapes}"
