"""A network measured on a microcontroller: built, run in an emulator, and its outputs compared.

The arena that the cost reports is read back from the ELF; it equals the plan's to the byte, or measuring fails.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from ...compiler.errors import PlanError, SourceError
from ...compiler.graph import Graph
from ...compiler.output_files import write_bytes
from ...compiler.scratch import scratch
from ..cost import Cost, OpCost
from ..spec import Target, load_target
from ..verdict import judged
from .firmware import REPORT, STACK, EmulationError, firmware
from .network import Network, prepare, with_llvm
from .planning import check_fit
from .qemu_run import instructions_per_tick, run_qemu
from .toolchain import Compiler, Image, build
from .unicorn_run import Run, run_unicorn

Emulator = Literal["unicorn", "qemu", "both"]
Codegen = Literal["c", "llvm"]
APART = 1e-3  # of two emulators' counts, beside one tick of QEMU's clock for each operator


def measure_mcu(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str | Target,
    compiler: Compiler = "zig",
    codegen: Codegen = "c",
    emulator: Emulator | None = None,
    stack: int = STACK,
    inplace: bool = True,
    folder: Path | None = None,
    name: str | None = None,
) -> Cost:
    """Instructions, memory and error of one inference of `model` on a microcontroller's emulator.

    `model`, `args`, `kwargs` as in `targets.tvm.importer.to_relax`; `args` are also the inputs of the run. `inplace`: a result may lie
    over an operand that dies there, where that lowers the arena. Other arguments as in `measure_network`.

    Raises `BudgetError` before linking for what the part cannot hold, `EmulationError` when the firmware
    faults, `MissingExtraError` without `neaptide[mcu]`.
    """
    spec = _microcontroller(target)
    network = prepare(model, args, kwargs, name=name, inplace=inplace)
    return measure_network(network, target=spec, compiler=compiler, codegen=codegen, emulator=emulator, stack=stack, folder=folder)


def measure_network(
    network: Network,
    *,
    target: str | Target,
    compiler: Compiler = "zig",
    codegen: Codegen = "c",
    emulator: Emulator | None = None,
    stack: int = STACK,
    folder: Path | None = None,
) -> Cost:
    """The cost of a network that is prepared: one preparation serves every core.

    `codegen`: operators as C, which `compiler` compiles, or as objects from TVM's own LLVM. `stack`: bytes kept for
    it. `emulator`: None for Unicorn where it has the core, else QEMU; "both": the counts are Unicorn's, and
    QEMU's are compared with them. `folder`: keeps sources and ELF.
    """
    spec = _microcontroller(target)
    if codegen == "llvm":
        network = with_llvm(network, spec)
    graph, plan = network.graph, network.plan
    check_fit(graph, plan, spec, stack=stack, found=network.found)
    sources = firmware(graph, plan, network.kernels, spec, stack=stack)
    files = {f"in{i}.bin": array.tobytes() for i, array in enumerate(network.inputs)}
    with scratch() as room:
        try:
            image = build(sources, spec, room, compiler=compiler)
        finally:
            if folder is not None:
                _keep(room, folder)
        if plan.arena and image.arena != plan.arena:
            raise PlanError(f"the arena of {network.name!r} has {image.arena:,} B in the ELF and {plan.arena:,} B in the plan")
        run = emulate(image, spec, files, marks=len(sources.steps) + 2, emulator=emulator)
        other = run_qemu(image, spec, files) if emulator == "both" else None
    counts = operator_counts(run.at_mark, len(sources.steps))
    per_op = tuple(
        OpCost(_label(graph, v), network.signatures[graph.nodes[v].op], instructions=count, bytes=graph.nodes[v].workspace)
        for v, count in zip(sources.steps, counts, strict=True)
    )
    cost = _cost(network, spec, image, run, per_op, stack)
    if other is None:
        return cost
    versions = {**cost.versions, "emulator": f"{run.emulator} and {other.emulator}"}
    return replace(cost, reasons=(*cost.reasons, _compared(spec, run, other, len(per_op))), versions=MappingProxyType(versions))


def _keep(scratch: Path, folder: Path) -> None:
    """Copy what was built, or what there was when building failed, into the user's folder."""
    for path in sorted(scratch.iterdir()):
        write_bytes(folder / path.name, path.read_bytes())


def _compared(spec: Target, run: Run, other: Run, operators: int) -> str:
    """How far two emulators' counts of one program are apart, in a sentence. Raises `EmulationError` beyond what QEMU's clock explains."""
    total, theirs = (sum(operator_counts(r.at_mark, operators)) for r in (run, other))
    if abs(total - theirs) > APART * total + operators * instructions_per_tick(spec):
        raise EmulationError(f"{run.emulator} counts {total:,} instructions and {other.emulator} {theirs:,}, more than {APART:.1%} apart")
    same = all(run.files[name] == data for name, data in other.files.items() if name.startswith("out"))
    if not same:
        raise EmulationError(f"{run.emulator} and {other.emulator} give other outputs of one program")
    return f"{other.emulator} counts {theirs:,} instructions, {abs(theirs / total - 1):.3%} apart, and gives the same outputs"


def emulate(image: Image, target: Target, files: Mapping[str, bytes], *, marks: int, emulator: Emulator | None = None) -> Run:
    """Run a firmware with `files` to read, in the emulator asked for; None: Unicorn where it has the core, else QEMU; "both": Unicorn.

    Unicorn's counts are exact; QEMU's are to one tick of SysTick, and its total over many operators to a few ticks.
    """
    if emulator is None:
        emulator = "unicorn" if target.emulator and target.emulator.unicorn else "qemu"
    if emulator == "qemu":
        return run_qemu(image, target, files)
    return run_unicorn(image, target, files, marks=marks)


def operator_counts(at_mark: Sequence[int], operators: int) -> tuple[int, ...]:
    """Instructions per operator, the call included, from the counts at each mark.

    Two marks come before the first operator: their distance is what a mark costs itself.
    """
    if len(at_mark) != operators + 2:
        raise EmulationError(f"firmware passed {len(at_mark)} marks where {operators + 2} were set: it ended early")
    own = at_mark[1] - at_mark[0]
    return tuple(after - before - own for before, after in pairwise(at_mark[1:]))


def _microcontroller(target: str | Target) -> Target:
    spec = load_target(target) if isinstance(target, str) else target
    if spec.kind != "mcu":
        raise SourceError(f"target {spec.name} is a {spec.kind}; firmware runs on microcontrollers, `neaptide targets` lists them")
    return spec


def _label(graph: Graph, v: int) -> str:
    node = graph.nodes[v]
    shapes = " ".join("x".join(map(str, graph.tensors[t].shape)) for t in node.outputs)
    return f"{node.op.removeprefix('fused_')} -> {shapes}"


def _cost(network: Network, spec: Target, image: Image, run: Run, per_op: tuple[OpCost, ...], stack: int) -> Cost:
    graph, plan = network.graph, network.plan
    tensors = [graph.tensors[t] for t in graph.outputs]
    outputs = [np.frombuffer(run.files[f"out{i}.bin"], t.dtype).reshape(t.shape) for i, t in enumerate(tensors)]
    (high_water,) = struct.unpack("<I", run.files[REPORT])
    sections = image.flash
    used = plan.arena + stack + image.sections.get(".data", 0) + image.sections.get(".bss", 0)
    flash = sum(sections.values())
    instructions = sum(op.instructions or 0 for op in per_op)
    cycles = _cycles(spec, run, instructions, len(per_op))
    fits = f"fits: SRAM {used:,} of {spec.sram:,} B (stack {high_water:,} of {stack:,} B used), flash {flash:,} of {spec.flash:,} B"
    saved = network.found.saved
    cost = Cost(
        target=spec.name,
        kind="measured",
        name=network.name,
        instructions=instructions,
        arena=image.arena if plan.arena else 0,
        plan=plan.arena,
        stack=high_water,
        flash=flash,
        sections=MappingProxyType(sections),
        fits=True,
        cycles=cycles,
        estimated_seconds=cycles / spec.clock_hz if cycles and spec.clock_hz else None,
        per_op=per_op,
        versions=MappingProxyType({**network.versions, "compiler": image.compiler, "emulator": run.emulator}),
        reasons=(fits, *([f"results in place save {saved:,} B of arena"] if saved else [])),
    )
    return judged(cost, outputs, network.expected)


def _cycles(spec: Target, run: Run, instructions: int, operators: int) -> int | None:
    """The table's estimate for all operators: by class of instruction, or on average where it has only that."""
    if run.cycles_at_mark:
        return sum(operator_counts(run.cycles_at_mark, operators))
    return round(instructions * spec.cycles.average) if spec.cycles and spec.cycles.average else None
