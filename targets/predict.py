"""What models would cost on a target, from what the cost database knows of their operators: nothing is built and nothing runs.

One model with its arena and its operators by `predicted_cost`, any number of networks by `predict_networks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compiler.errors import NeaptideError, SourceError
from ..compiler.graph import Graph
from ..compiler.models import model_name
from ..passes.allocate import Plan, allocate
from ..passes.schedule import schedule
from .cost import Cost, OpCost
from .database import CostDatabase
from .predictors import OperatorPredictor, fit_operators, load_predictor, table_of
from .remember import features, toolchain_of
from .spec import Target

if TYPE_CHECKING:
    from .mcu.toolchain import Compiler

CODE = 256 << 10  # bytes of flash that the code of a network stays below; with less left, whether it fits is not known before it is built


@dataclass(frozen=True, slots=True)
class Predictions:
    """Of n networks, each (n,): `values` in `unit` ("instructions" or "seconds"); `errors`, expected relative ones, NaN where no
    network was measured whole; `measured`, the share of the value that comes from measured operators.
    """

    values: np.ndarray
    errors: np.ndarray
    measured: np.ndarray
    unit: str


def predict_networks(networks: Iterable[Mapping[str, int] | Graph], predictor: OperatorPredictor) -> Predictions:
    """Costs of many networks at once. A network is how often each operator signature occurs in it, or an `operator_graph`.

    A signature may be written by hand, without the hash that ends it: `conv2d_add_relu(1x16x32x32,32x16x3x3,1x32x1x1,1x32x16x16)`.
    It is then predicted from its shapes. `predictor`: from `fit_operators`, `load_predictor`, or `table_of` for measured operators
    alone. Each distinct operator is predicted once; 10,000 networks of 50 operators take a fraction of a second. Raises
    `NeaptideError` naming an operator of which nothing is known.
    """
    index: dict[str, int] = {}
    rows: list[int] = []
    columns: list[int] = []
    times: list[int] = []
    n = 0
    for n, network in enumerate(networks, 1):
        counted = operator_counts(network) if isinstance(network, Graph) else network
        rows += [n - 1] * len(counted)
        columns += [index.setdefault(signature, len(index)) for signature in counted]
        times += counted.values()
    costs, errors, known = predictor.predict_all(list(index), [{} if s in predictor.table else features(s) for s in index])
    row, column = np.array(rows, int), np.array(columns, int)
    shares = costs[column] * np.array(times, float)

    def summed(part: np.ndarray) -> np.ndarray:
        return np.bincount(row, weights=part, minlength=n)

    values = summed(shares)
    whole = np.where(values > 0, values, 1.0)
    new = summed(~known[column]) > 0
    parts = summed(shares * errors[column]) / whole
    of_sums = predictor.sums.error if predictor.sums else np.nan
    doubt = np.where(new, np.maximum(parts, predictor.unseen.error if predictor.unseen else 0.0), of_sums)
    return Predictions(values, doubt, summed(shares * known[column]) / whole, predictor.unit)


def operator_counts(graph: Graph) -> dict[str, int]:
    """How often each operator occurs in an `operator_graph`, views aside."""
    return Counter(node.op for node in graph.nodes if not graph.is_view(node))


def operator_graph(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: Target,
    name: str | None = None,
    inplace: bool = True,
) -> Graph:
    """The fused operators that `model` becomes on `target`, each node's `op` its signature, with the workspace that its kernel needs.

    `model`, `args`, `kwargs`, `inplace` as in `targets.measure.measure`; about a second. `model` may also be an aten Graph without weights,
    such as `Space.graph` gives. Its peak and arena are those of a measurement. Raises `SourceError` for a GPU, whose costs are bounds
    where they cannot be measured.
    """
    return _placed(model, args, kwargs, target=target, name=name, inplace=inplace).graph


@dataclass(frozen=True, slots=True)
class _Placed:
    """An operator graph, and its plan."""

    graph: Graph
    plan: Plan


def _placed(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None, *, target: Target, name: str | None, inplace: bool = True,
    stack: int | None = None,
) -> _Placed:  # fmt: skip
    """As a measurement would import and place it. `stack`: bytes to check the fit with, None for no check."""
    from .tvm.fused_graph import fused_program
    from .tvm.importer import to_relax
    from .tvm.lower import lower, signature

    refuse_gpu(target)
    if isinstance(model, Graph):
        from .tvm.traced import graph_relax

        program = fused_program(graph_relax(model), name=name or model.name)
    else:
        program = fused_program(to_relax(model, args, kwargs), name=name or model_name(model))
    signatures = {symbol: signature(symbol, func) for symbol, func in program.kernels.items()}
    if target.kind == "cpu":
        from .tvm.cpu import ALIGNMENT

        graph = program.graph
        plan = allocate(graph, schedule(graph, inputs="planned"), alignment=ALIGNMENT, inputs="planned")
    else:
        from .mcu.planning import check_fit, planned
        from .tvm.schedules import scheduled

        found = planned(program.graph, lower(program.kernels, scheduled), inplace=inplace)
        graph, plan = found.graph, found.plan
        if stack is not None:
            check_fit(graph, plan, target, stack=stack, found=found)
    return _Placed(graph.with_nodes([replace(node, op=signatures.get(node.op, node.op)) for node in graph.nodes]), plan)


def refuse_gpu(target: Target) -> None:
    """Raise `SourceError` for a GPU: no fused operator of it was ever measured."""
    if target.kind == "gpu":
        raise SourceError(f"costs on {target.name} are not predicted; `neaptide measure --target {target.name}` gives a lower bound")


def predicted_cost(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: Target,
    name: str | None = None,
    compiler: Compiler = "zig",
    stack: int | None = None,
    inplace: bool = True,
    threads: int = 1,
    database: CostDatabase | None = None,
    predictor: OperatorPredictor | str | Path | None = None,
) -> Cost:
    """The cost of `model` on a microcontroller or this CPU, of kind "predicted": the sum of its operators, and how far it may be off.

    Arguments as in `targets.measure.measure`. The arena is planned as for a measurement. Operators come from the table of what this
    toolchain measured, in `database` (None: the user's own), the rest from models: those of `predictor`, what `neaptide cost fit`
    wrote, else additive ones fitted now. `error` is that of sums of operators against networks measured whole; where operators are
    predicted, that of networks left out with their own operators, by cross-validation.

    Raises `NeaptideError` when nothing is known yet, `BudgetError` when the part cannot hold the model.
    """
    if database is None and predictor is None:
        with CostDatabase() as own:
            return predicted_cost(
                model, args, kwargs, target=target, name=name, compiler=compiler, stack=stack, inplace=inplace, threads=threads,
                database=own,
            )  # fmt: skip
    refuse_gpu(target)
    versions = toolchain_versions(target, compiler=compiler, threads=threads)
    known = _table(predictor, target, toolchain_of(versions), database)
    kept = _stack(target, stack)
    placed = _placed(model, args, kwargs, target=target, name=name, inplace=inplace, stack=kept)
    graph, plan = placed.graph, placed.plan
    needed = operator_counts(graph)
    if database is not None and predictor is None and not set(needed) <= set(known.table):
        known = fit_operators(database, target=target.name, toolchain=known.toolchain, boosting=False)
    costs, errors, seen = known.predict_all(list(needed), [features(s) for s in needed])
    of = dict(zip(needed, zip(costs.tolist(), errors.tolist(), seen.tolist(), strict=True), strict=True))
    total, error = known.network((s, features(s), times) for s, times in needed.items())
    fits, verdict = (None, ()) if kept is None else _verdict(graph, plan, target, kept)
    counted = known.unit == "instructions"
    per_op = tuple(
        OpCost(
            _label(graph, v),
            graph.nodes[v].op,
            instructions=round(of[graph.nodes[v].op][0]) if counted else None,
            seconds=None if counted else of[graph.nodes[v].op][0],
            bytes=graph.nodes[v].workspace,
            tuned=None if counted else True,
            kind="measured" if of[graph.nodes[v].op][2] else "predicted",
        )
        for v in plan.order
        if not graph.is_view(graph.nodes[v])
    )
    cycles = round(total * target.cycles.average) if counted and target.cycles and target.cycles.average else None
    return Cost(
        target=target.name,
        kind="predicted",
        name=graph.name,
        instructions=round(total) if counted else None,
        latency=None if counted else total,
        plan=plan.arena,
        sections=MappingProxyType({"weights": _weights(graph)}),
        fits=fits,
        error=error,
        cycles=cycles,
        estimated_seconds=cycles / target.clock_hz if cycles and target.clock_hz else None,
        per_op=per_op,
        versions=MappingProxyType(versions),
        reasons=(*verdict, _known(of, needed, total), *_beyond(known, needed, of), _doubt(known, error, bool(seen.all()))),
    )


def toolchain_versions(target: Target, *, compiler: Compiler = "zig", threads: int = 1) -> dict[str, str]:
    """The tools that a measurement on `target` would be taken with here, as its `Cost.versions` names them, emulator and peers aside."""
    versions = {"apache-tvm": version("apache-tvm")}
    if target.kind == "cpu":
        from .tvm.cpu_schedules import VERSION as OWN
        from .tvm.tune import cpu_target

        machine: Any = cpu_target(threads, target.tvm.get("mcpu", "host"))
        return {**versions, "schedules": str(OWN), "processor": str(machine.attrs["mcpu"]), "threads": str(threads)}
    from .mcu.toolchain import compiler_version, compilers
    from .tvm.schedules import VERSION

    if compiler not in compilers():
        raise NeaptideError(
            f"compiler {compiler!r} is not installed, so what it built cannot be told apart; here: {', '.join(compilers())}"
        )
    return {**versions, "schedules": str(VERSION), "compiler": compiler_version(compiler)}


def _table(
    given: OperatorPredictor | str | Path | None, target: Target, toolchain: str, database: CostDatabase | None
) -> OperatorPredictor:
    """The predictor that is given, if it is for `target`, else what `database` measured with this toolchain."""
    if given is None:
        assert database is not None
        return table_of(database, target=target.name, toolchain=toolchain)
    known = given if isinstance(given, OperatorPredictor) else load_predictor(given)
    if not isinstance(known, OperatorPredictor):
        raise SourceError(f"{given}: predicts whole networks of a CSV; `neaptide cost fit --target {target.name}` predicts operators")
    if known.target != target.name:
        raise SourceError(f"the predictor is for {known.target}, not for {target.name}; `neaptide cost fit --target {target.name}`")
    return known


def _stack(target: Target, stack: int | None) -> int | None:
    """Bytes kept for the stack on a microcontroller."""
    if target.kind != "mcu":
        return None
    from .mcu.firmware import STACK

    return STACK if stack is None else stack


def _verdict(graph: Graph, plan: Plan, target: Target, stack: int) -> tuple[bool | None, tuple[str, ...]]:
    """Whether a part holds what is known before anything is built, and that in words."""
    from .mcu.planning import STATIC

    weights = _weights(graph)
    room = None if target.flash is None else target.flash - weights
    fits = True if room is None or room >= CODE else None
    verdict = "fits" if fits else "not known before it is built"
    used = f"SRAM {plan.arena + stack + STATIC:,} of {target.sram:,} B; weights {weights:,} of {target.flash:,} B of flash"
    return fits, (f"{verdict}: {used}, and its code beside them",)


def _weights(graph: Graph) -> int:
    return sum(s.nbytes for s in graph.storages if s.role == "constant")


def _known(of: Mapping[str, tuple[float, float, bool]], needed: Mapping[str, int], total: float) -> str:
    """How many operators were measured, in a sentence."""
    new = [signature for signature in needed if not of[signature][2]]
    if not new:
        return f"predicted: the sum of {len(needed)} distinct operators, all of them measured before"
    share = sum(of[signature][0] * needed[signature] for signature in new) / total if total else 0.0
    return (
        f"predicted: of {len(needed)} distinct operators {len(new)}, with {share:.1%} of the cost, were never measured and come from models"
    )


def _beyond(known: OperatorPredictor, needed: Mapping[str, int], of: Mapping[str, tuple[float, float, bool]]) -> tuple[str, ...]:
    """That some operators are larger or smaller than any a model has learned from, in a sentence; nothing where none is."""
    new = [signature for signature in needed if not of[signature][2]]
    beyond = [s for s, inside in zip(new, known.within(new, [features(s) for s in new]), strict=True) if not inside]
    if not beyond:
        return ()
    return (f"beyond what was measured: {len(beyond)} operators have sizes that none of their kind had, so the error may be larger",)


def _doubt(known: OperatorPredictor, error: float | None, all_seen: bool) -> str:
    """Where the error bar comes from, in a sentence."""
    if error is None:
        return "error: not known, for no network was measured whole; measure some with a name"
    if all_seen:
        assert known.sums is not None
        return f"error: {error:.2%}, that of such sums against {_networks(known.sums.networks)} measured whole"
    if known.unseen is None:
        return f"error: {error:.2%}, that of its operators' models; fewer than two networks were measured whole that would tell of sums"
    if error > known.unseen.error:
        return f"error: {error:.2%}, that of its operators' models; sums of {_networks(known.unseen.networks)} left out were off by less"
    return f"error: {error:.2%}, that of {known.unseen.networks} networks left out with their own operators, in folds"


def _networks(n: int) -> str:
    return "1 network" if n == 1 else f"{n:,} networks"


def _label(graph: Graph, v: int) -> str:
    node = graph.nodes[v]
    shapes = " ".join("x".join(map(str, graph.tensors[t].shape)) for t in node.outputs)
    return f"{node.op.partition('(')[0]} -> {shapes}"
