"""A model measured on a microcontroller: imported, planned, built, run in an emulator, and its outputs compared.

The arena that the cost reports is read back from the ELF; it equals the plan's to the byte, or measuring fails.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from ...compiler.errors import PlanError, SourceError
from ...compiler.graph import Graph
from ...passes.allocate import Plan, allocate
from ...passes.schedule import schedule
from ..cost import Cost, OpCost
from ..spec import Target, load_target
from .firmware import ALIGNMENT, REPORT, STACK, check_fit, firmware, workspace_bytes
from .qemu_run import run_qemu
from .toolchain import Compiler, Image, build
from .unicorn_run import EmulationError, Run, run_unicorn

Emulator = Literal["unicorn", "qemu"]


def measure_mcu(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str | Target,
    compiler: Compiler = "zig",
    emulator: Emulator | None = None,
    stack: int = STACK,
    folder: Path | None = None,
    name: str | None = None,
) -> Cost:
    """Instructions, memory and error of one inference of `model` on a microcontroller's emulator.

    `model`, `args`, `kwargs` as in `targets.tvm.importer.to_relax`; `args` are also the inputs of the run. `stack`: bytes kept
    for it. `emulator`: None for Unicorn where it has the core, else QEMU. `folder`: keeps the sources and the ELF. Raises
    `BudgetError` before linking for what the part cannot hold, `EmulationError` when the firmware faults, `MissingExtraError`
    without `neaptide[mcu]`.
    """
    from ..tvm.fused_graph import fused_program
    from ..tvm.importer import to_relax
    from ..tvm.lower import lower, signature
    from ..tvm.schedules import scheduled

    spec = load_target(target) if isinstance(target, str) else target
    if spec.kind != "mcu":
        raise SourceError(f"target {spec.name} is a {spec.kind}; firmware runs on microcontrollers, `neaptide targets` lists them")
    title = name or type(model).__name__
    program = fused_program(to_relax(model, args, kwargs), name=title)
    kernels = lower(program.kernels, scheduled)
    graph = with_workspaces(program.graph, {symbol: workspace_bytes(kernel) for symbol, kernel in kernels.items()})
    plan = planned(graph)
    check_fit(graph, plan, spec, stack=stack)
    sources = firmware(graph, plan, kernels, spec, stack=stack)
    inputs = _input_arrays(graph, args, kwargs)
    with tempfile.TemporaryDirectory(prefix="neaptide-") as scratch:
        image = build(sources, spec, folder or Path(scratch), compiler=compiler)
        if plan.arena and image.arena != plan.arena:
            raise PlanError(f"the arena of {title!r} has {image.arena:,} B in the ELF and {plan.arena:,} B in the plan")
        files = {f"in{i}.bin": array.tobytes() for i, array in enumerate(inputs)}
        run = emulate(image, spec, files, marks=len(sources.steps) + 2, emulator=emulator)
    counts = operator_counts(run.at_mark, len(sources.steps))
    signatures = {symbol: signature(symbol, func) for symbol, func in program.kernels.items()}
    per_op = tuple(
        OpCost(_label(graph, v), signatures[graph.nodes[v].op], instructions=count, bytes=graph.nodes[v].workspace)
        for v, count in zip(sources.steps, counts, strict=True)
    )
    outputs = _outputs(graph, run)
    expected = reference(model, args, kwargs)
    return _cost(title, spec, plan, image, run, per_op, relative_error(outputs, expected), stack)


def emulate(image: Image, target: Target, files: Mapping[str, bytes], *, marks: int, emulator: Emulator | None = None) -> Run:
    """Run a firmware with `files` to read, in the emulator asked for; None: Unicorn where it has the core, else QEMU.

    Unicorn's counts are exact; QEMU's are to one tick of SysTick, and its total over many operators to a few ticks.
    """
    if emulator is None:
        emulator = "unicorn" if target.emulator and target.emulator.unicorn else "qemu"
    if emulator == "qemu":
        return run_qemu(image, target, files)
    return run_unicorn(image, target, files, marks=marks, cache=_cache())


def with_workspaces(graph: Graph, workspace: Mapping[str, int]) -> Graph:
    """`graph` whose nodes carry the workspace bytes of their operators."""
    return graph.with_nodes([replace(node, workspace=workspace.get(node.op, 0)) for node in graph.nodes])


def planned(graph: Graph) -> Plan:
    """Order and offsets for firmware: Neaptide's schedule and allocation, inputs in the arena."""
    return allocate(graph, schedule(graph, inputs="planned"), alignment=ALIGNMENT, inputs="planned")


def operator_counts(at_mark: Sequence[int], operators: int) -> tuple[int, ...]:
    """Instructions per operator, the call included, from the counts at each mark.

    Two marks come before the first operator: their distance is what a mark costs itself.
    """
    if len(at_mark) != operators + 2:
        raise EmulationError(f"firmware passed {len(at_mark)} marks where {operators + 2} were set: it ended early")
    own = at_mark[1] - at_mark[0]
    return tuple(after - before - own for before, after in pairwise(at_mark[1:]))


def relative_error(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Largest difference over all outputs, relative to the largest magnitude of each output; infinite where one is not finite."""
    worst = 0.0
    for got, want in zip(outputs, expected, strict=True):
        difference = np.abs(got.astype(np.float64) - want.astype(np.float64).reshape(got.shape)).max(initial=0.0)
        scale = np.abs(want.astype(np.float64)).max(initial=0.0) or 1.0
        worst = max(worst, float(difference / scale)) if np.isfinite(difference) else float("inf")
    return worst


def reference(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> list[np.ndarray]:
    """Outputs of torch's own inference of a module or exported program; of onnxruntime for ONNX."""
    import torch
    from torch.utils._pytree import tree_leaves

    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    if isinstance(model, torch.nn.Module):
        modes = [(m, m.training) for m in model.modules()]
        for part, _ in modes:
            part.training = False
        try:
            with torch.no_grad():
                result = model(*args, **dict(kwargs or {}))
        finally:
            for part, training in modes:
                part.training = training
        return [t.detach().numpy() for t in tree_leaves(result)]
    raise SourceError(f"cannot run a {type(model).__name__} for comparison; pass a torch module or an exported program")


def _input_arrays(graph: Graph, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> list[np.ndarray]:
    """The run's inputs in the order and types of the graph's."""
    import torch
    from torch.utils._pytree import tree_leaves

    leaves = [np.asarray(t) for t in tree_leaves((tuple(args), dict(kwargs or {}))) if isinstance(t, torch.Tensor)]
    if len(leaves) != len(graph.inputs):
        raise SourceError(f"{graph.name!r} takes {len(graph.inputs)} tensors, {len(leaves)} were given")
    return [np.ascontiguousarray(a, graph.tensors[t].dtype) for a, t in zip(leaves, graph.inputs, strict=True)]


def _outputs(graph: Graph, run: Run) -> list[np.ndarray]:
    tensors = [graph.tensors[t] for t in graph.outputs]
    return [np.frombuffer(run.files[f"out{i}.bin"], t.dtype).reshape(t.shape) for i, t in enumerate(tensors)]


def _label(graph: Graph, v: int) -> str:
    node = graph.nodes[v]
    shapes = " ".join("x".join(map(str, graph.tensors[t].shape)) for t in node.outputs)
    return f"{node.op} -> {shapes}"


def _cost(title: str, spec: Target, plan: Plan, image: Image, run: Run, per_op: tuple[OpCost, ...], error: float, stack: int) -> Cost:
    (high_water,) = struct.unpack("<I", run.files[REPORT])
    sections = image.flash
    used = plan.arena + stack + image.sections.get(".data", 0) + image.sections.get(".bss", 0)
    tools = {"apache-tvm": version("apache-tvm"), "compiler": image.compiler, "emulator": run.emulator}
    flash = sum(sections.values())
    return Cost(
        target=spec.name,
        kind="measured",
        name=title,
        instructions=sum(op.instructions or 0 for op in per_op),
        arena=image.arena if plan.arena else 0,
        plan=plan.arena,
        stack=high_water,
        flash=flash,
        sections=MappingProxyType(sections),
        max_error=error,
        fits=True,
        per_op=per_op,
        versions=MappingProxyType(tools),
        reasons=(f"SRAM {used:,} of {spec.sram:,} B (stack {high_water:,} of {stack:,} B used), flash {flash:,} of {spec.flash:,} B",),
    )


def _cache() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("neaptide", appauthor=False))
