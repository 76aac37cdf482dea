"""A network measured on this machine's CPU through TVM, each distinct operator under its best known schedule, beside other runtimes.

Operators are called in Neaptide's order on tensors in Neaptide's arena. Every runtime gets the same inputs and the same number of
threads, and they take turns, so that a slow moment of the machine meets all of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from time import perf_counter
from types import MappingProxyType
from typing import Any

import numpy as np
import tvm

from ...compiler.errors import SourceError
from ...compiler.graph import Graph
from ...compiler.models import load_model, model_name
from ...passes.allocate import Plan, allocate
from ...passes.schedule import schedule
from ..cost import Cost, OpCost
from ..database import CostDatabase, NetworkRow, OperatorRow
from ..mcu.network import input_arrays, reference_outputs
from ..peers import peer_runners
from ..remember import features, toolchain_of
from ..spec import Target
from ..verdict import difference, judged, tolerance
from .cpu_schedules import VERSION
from .fused_graph import FusedProgram, fused_program
from .importer import to_relax
from .lower import signature
from .tune import Compiled, Tuned, build, cpu_target, remembered, tune, tuned_module, unscheduled

TRIALS = 32
ROUNDS, ROUND_S = 15, 0.01
ALIGNMENT = 64
OWN_TOOLS = ("apache-tvm", "schedules", "processor", "threads")


def measure_cpu(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: Target,
    name: str | None = None,
    threads: int = 1,
    trials: int = TRIALS,
    peers: bool = True,
    libraries: dict[str, Compiled] | None = None,
    database: CostDatabase | None = None,
    progress: Callable[[str], None] | None = None,
) -> Cost:
    """Median latency of one inference of `model` on this machine with `threads` threads, and of torch eager and onnxruntime beside it.

    Arguments as in `targets.measure.measure`. Each distinct operator is tuned until `trials` of its schedules have been timed, and
    remembered in `database` at once with its schedule, so a search that was broken off goes on where it was and one that is done
    is not repeated. `libraries`: what was compiled for this target in this process, to be used again and added to; for many networks
    of the same operators. With `trials=0` nothing is searched: an operator the database does not know is `tuned=False` without a time,
    and the network that contains it has no latency. Raises `SourceError` when `target` is no CPU.
    """
    if target.kind != "cpu":
        raise SourceError(f"target {target.name} is a {target.kind}; this machine's CPU is the target 'cpu'")
    say = progress or (lambda _: None)
    say("importing and planning")
    title, model = name or model_name(model), load_model(model)
    program = fused_program(to_relax(model, args, kwargs), name=title)
    graph = program.graph
    order = schedule(graph, inputs="planned")
    plan = allocate(graph, order, alignment=ALIGNMENT, inputs="planned")
    machine = cpu_target(threads, target.tvm.get("mcpu", "host"))
    versions = {
        "apache-tvm": version("apache-tvm"),
        "schedules": str(VERSION),
        "processor": str(machine.attrs["mcpu"]),
        "threads": str(threads),
    }
    keys = {symbol: signature(symbol, func) for symbol, func in program.kernels.items()}
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    compiled = _Libraries(machine, {} if libraries is None else libraries)
    if trials and not _right(program, keys, compiled, model, args, kwargs, order.order, plan):
        trials, database = 0, None  # what is wrong is neither tuned nor kept
    found = _tuned(program, keys, compiled, target.name, toolchain_of(versions), trials, database, say)
    say("compiling")
    built = {symbol: compiled.of(keys[symbol], func, found.get(keys[symbol])) for symbol, func in program.kernels.items()}
    inputs = input_arrays(graph, args, kwargs)
    network = Network(graph, order.order, plan, built, inputs)
    network.run()
    outputs, expected = network.outputs(), reference_outputs(model, args, kwargs, inputs)
    runners = {"tvm": network.run}
    absent: tuple[str, ...] = ()
    with ExitStack() as others:
        if peers:
            say("preparing torch and onnxruntime")
            beside, absent = others.enter_context(peer_runners(model, args, kwargs, inputs, threads=threads))
            runners |= {label: runner.run for label, runner in beside.items()}
            versions |= {label: runner.version for label, runner in beside.items()}
        say("running")
        timings = interleaved(runners)
    cost = judged(_cost(title, target.name, graph, plan, order.order, keys, built, found, timings, versions, absent), outputs, expected)
    if database is not None and cost.correct and cost.latency is not None and name:
        operators = dict(Counter(op.signature for op in cost.per_op))
        own = toolchain_of({tool: versions[tool] for tool in OWN_TOOLS})
        database.put(NetworkRow(title, target.name, own, cost.latency, operators, "seconds", cost.spread))
    return cost


def _right(
    program: FusedProgram, keys: Mapping[str, str], compiled: _Libraries, model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None,
    order: Sequence[int], plan: Plan,
) -> bool:  # fmt: skip
    """Whether the network gives the framework's outputs with its operators as they were written."""
    built = {symbol: compiled.of(keys[symbol], func, None) for symbol, func in program.kernels.items()}
    inputs = input_arrays(program.graph, args, kwargs)
    network = Network(program.graph, order, plan, built, inputs)
    network.run()
    expected = reference_outputs(model, args, kwargs, inputs)
    return all(difference(got, want) <= tolerance(str(want.dtype)) for got, want in zip(network.outputs(), expected, strict=True))


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call: the median over the rounds, and their relative half range."""

    seconds: float
    spread: float


def interleaved(runners: Mapping[str, Callable[[], Any]], *, rounds: int = ROUNDS) -> dict[str, Timing]:
    """Time each of `runners` once per round, taking turns; a round calls it for at least 10 ms after one call that is not counted."""
    calls = {}
    for label, run in runners.items():
        run()
        start = perf_counter()
        run()
        calls[label] = max(1, int(ROUND_S / max(perf_counter() - start, 1e-9)))
    taken: dict[str, list[float]] = {label: [] for label in runners}
    for _ in range(rounds):
        for label, run in runners.items():
            run()
            start = perf_counter()
            for _ in range(calls[label]):
                run()
            taken[label].append((perf_counter() - start) / calls[label])
    return {label: Timing(median(s), (max(s) - min(s)) / 2 / median(s)) for label, s in taken.items()}


@dataclass(frozen=True, slots=True)
class _Libraries:
    """Operators compiled for `machine` in this process, by signature and schedule."""

    machine: tvm.target.Target
    kept: dict[str, Compiled]

    def of(self, signature: str, func: tvm.tirx.PrimFunc, known: Tuned | None) -> Compiled:
        """`func` under its known schedule, or as it was written."""
        key = f"{signature} {self.machine} {json.dumps(known.trace) if known else None}"
        if key not in self.kept:
            made = build(tuned_module(func, known.trace, self.machine), self.machine) if known else unscheduled(func, self.machine)
            self.kept[key] = made
        return self.kept[key]


def _tuned(
    program: FusedProgram, keys: Mapping[str, str], compiled: _Libraries, target: str, toolchain: str, trials: int,
    database: CostDatabase | None, say: Callable[[str], None],
) -> dict[str, Tuned]:  # fmt: skip
    """The best schedules by signature: what the database knows and still compiles, searched further where it had fewer than `trials`."""
    funcs = {keys[symbol]: func for symbol, func in program.kernels.items()}
    found: dict[str, Tuned] = {}
    for i, (key, func) in enumerate(funcs.items()):
        row = database.get(key, target, toolchain) if database is not None else None
        known = remembered(row, lambda known: compiled.of(key, func, known))  # noqa: B023  (called at once)
        if trials > (known.trials if known else 0):
            say(f"tuning operator {i + 1} of {len(funcs)}: {key.partition('#')[0]}")
            known = tune(func, compiled.machine, trials=trials, known=known)
            if database is not None:
                extra = {"trials": known.trials, "trace": known.trace}
                row = OperatorRow(key, target, toolchain, known.seconds, "seconds", known.spread, known.workspace, features(key), extra)
                database.put(row)
        if known is not None:
            found[key] = known
    return found


class Network:
    """Compiled operators over one arena. Workspaces are taken from TVM's pool while an operator runs, and counted beside the arena."""

    def __init__(self, graph: Graph, order: Sequence[int], plan: Plan, operators: Mapping[str, Compiled], inputs: Sequence[np.ndarray]):
        room = np.zeros(plan.arena + ALIGNMENT, np.uint8)
        self._arena = room[-room.ctypes.data % ALIGNMENT :]
        self._graph, self._plan = graph, plan
        self._values = {t: tvm.runtime.tensor(array) for t, array in graph.values.items()}
        self._functions = {symbol: compiled.function for symbol, compiled in operators.items()}
        nodes = [graph.nodes[v] for v in order]
        tensors = {t: self._tensor(t) for node in nodes for t in (*node.inputs, *node.outputs)}
        self._calls = [
            (self._functions[node.op], [tensors[t] for t in (*node.inputs, *node.outputs)]) for node in nodes if node.op in operators
        ]
        self._inputs = [(self._view(t), array) for t, array in zip(graph.inputs, inputs, strict=True)]

    def run(self) -> None:
        """One inference; the inputs are copied in again, for the arena may have reused their place."""
        for place, array in self._inputs:
            place[...] = array
        for function, arguments in self._calls:
            function(*arguments)

    def outputs(self) -> list[np.ndarray]:
        """The outputs of the last run, copied."""
        return [self._view(t).copy() for t in self._graph.outputs]

    def _view(self, t: int) -> np.ndarray:
        tensor = self._graph.tensors[t]
        offset = self._plan.offsets.get(tensor.storage)
        if offset is None:
            source = next(s for s in self._graph.values if self._graph.tensors[s].storage == tensor.storage)
            return self._values[source].numpy().reshape(tensor.shape)
        dtype = np.dtype(tensor.dtype)
        nbytes = int(np.prod(tensor.shape)) * dtype.itemsize
        return self._arena[offset : offset + nbytes].view(dtype).reshape(tensor.shape)

    def _tensor(self, t: int) -> Any:
        if t in self._values:
            return self._values[t]
        if self._graph.tensors[t].storage not in self._plan.offsets:
            return tvm.runtime.tensor(self._view(t))
        return tvm.runtime.from_dlpack(self._view(t))


def _cost(
    title: str, target: str, graph: Graph, plan: Plan, order: Sequence[int], keys: Mapping[str, str], built: Mapping[str, Compiled],
    found: Mapping[str, Tuned], timings: Mapping[str, Timing], versions: Mapping[str, str], absent: Sequence[str],
) -> Cost:  # fmt: skip
    per_op = []
    for v in order:
        node = graph.nodes[v]
        if node.op in keys:
            known = found.get(keys[node.op])
            shapes = " ".join("x".join(map(str, graph.tensors[t].shape)) for t in node.outputs)
            label = f"{node.op.removeprefix('fused_')} -> {shapes}"
            seconds, workspace = known.seconds if known else None, built[node.op].workspace
            per_op.append(OpCost(label, keys[node.op], seconds=seconds, bytes=workspace, tuned=known is not None))
    untuned = len({op.signature for op in per_op if not op.tuned})
    whole = timings["tvm"]
    reasons = []
    if untuned:
        reasons.append(f"untuned: {untuned} of {len(set(keys.values()))} distinct operators were never tuned, so there is no latency")
    else:
        alone = sum(op.seconds or 0.0 for op in per_op)
        fewest = min((known.trials for known in found.values()), default=0)
        reasons.append(
            f"tuned: {len(set(keys.values()))} distinct operators, {fewest} or more schedules tried for each; alone they take "
            f"{alone * 1e3:.3g} ms together"
        )
    most = max((op.bytes for op in per_op), default=0)
    reasons.append(f"beside the arena's {plan.arena:,} B, operators take up to {most:,} B of workspace from TVM's pool, one at a time")
    reasons += absent
    return Cost(
        target=target,
        kind="measured",
        name=title,
        latency=None if untuned else whole.seconds,
        spread=None if untuned else whole.spread,
        arena=plan.arena,
        plan=plan.arena,
        peers=MappingProxyType({label: t.seconds for label, t in timings.items() if label != "tvm"}),
        peer_spreads=MappingProxyType({label: t.spread for label, t in timings.items() if label != "tvm"}),
        per_op=tuple(per_op),
        versions=MappingProxyType(dict(versions)),
        reasons=tuple(reasons),
    )
