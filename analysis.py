"""`analyze`: a model in, everything Neaptide knows about its memory and work out."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .compiler.errors import NeaptideError
from .compiler.graph import WEIGHT_ROLES, Graph
from .passes.attribution import live_storages, module_rows, parameter_elements
from .report.result import Analysis

if TYPE_CHECKING:
    from .passes.allocate import Plan
    from .passes.liveness import Inputs, Lifetimes
    from .passes.schedule import Schedule

__all__ = ["Analysis", "analyze"]

Progress = Callable[[str, int, int], None]


def analyze(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    mode: str = "inference",
    loss: Any = None,
    optimizer: Any = None,
    device: str = "cpu",
    inputs: Inputs | None = None,
    order: str = "best",
    time_limit: float = 10.0,
    kernels: bool | None = None,
    threads: int | None = None,
    alignment: int = 64,
    allow_real_run: bool = False,
    name: str | None = None,
    progress: Progress | bool = False,
) -> Analysis:
    """Peak memory, a better order with its proof, an arena, and FLOPs of a model called as `model(*args, **kwargs)`, or of a Graph.

    `mode`, `loss`, `optimizer`, `device`, `allow_real_run`: as in `neaptide.trace`. `inputs`: `"caller"` (graph inputs stand beside the
    peaks; the default for models) or `"planned"` (they live in the plan from the start to their last use; the default for plain
    graphs). `order`: `"best"` searches for the order of least peak for at most `time_limit` seconds, `"traced"` keeps the given one.
    `kernels`: ask the kernel oracle for the workspace of each distinct op (default: for models, not for a Graph, which is taken as it
    is). `threads`: intra-op threads the workspaces are for (default: torch's). `alignment`: of offsets in the arena, in bytes.
    `name`: what the result is called (default: the class of the model, or the graph's name).
    `progress`: True for a bar on standard error once it takes more than a second; or called as `progress(stage, done, total)` when a
    stage starts and as it advances, `total` 0 when it is not known.

    Raises `TraceError` when the model cannot be traced, `NeaptideError` for an unknown option.
    """
    _one_of("inputs", inputs, (None, "caller", "planned"))
    _one_of("order", order, ("best", "traced"))
    with _reporter(progress) as say:
        graph = model if isinstance(model, Graph) else _traced(model, args, kwargs, mode, loss, optimizer, device, allow_real_run, say)
        graph = _named(graph, name, model)
        if kernels or (kernels is None and not isinstance(model, Graph)):
            graph = _with_kernels(graph, threads, say)
        policy = inputs or ("planned" if graph.meta.get("frontend") == "plain" else "caller")
        return _analyzed(graph, policy, order, time_limit, alignment, say)


def _analyzed(graph: Graph, policy: Inputs, order: str, time_limit: float, alignment: int, say: Progress) -> Analysis:
    from .passes.allocate import allocate
    from .passes.liveness import eager_liveness, liveness

    traced = liveness(graph, inputs=policy)
    eager = eager_liveness(graph, inputs=policy) if graph.released else None
    say("searching for the best order", 0, 0)
    chosen = _schedule(graph, traced, order, time_limit)
    planned = liveness(graph, chosen.order, inputs=policy)
    say("laying out the arena", 0, 0)
    plan = allocate(graph, chosen, alignment=alignment, inputs=policy, time_limit=time_limit)
    return _assembled(graph, policy, order, eager, traced, planned, chosen, plan)


@contextlib.contextmanager
def _reporter(progress: Progress | bool) -> Iterator[Progress]:
    if progress is True:
        from .report.console import Stages

        with Stages() as stages:
            yield stages
    else:
        yield progress or (lambda stage, done, total: None)


def _one_of(option: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        raise NeaptideError(f"{option}={value!r} is not one of {', '.join(repr(a) for a in allowed if a is not None)}")


def _traced(model: Any, args: Any, kwargs: Any, mode: str, loss: Any, optimizer: Any, device: str, real: bool, say: Progress) -> Graph:
    from .compiler.trace import trace

    say("tracing", 0, 0)
    return trace(model, args, kwargs, device=device, mode=mode, loss=loss, optimizer=optimizer, allow_real_run=real)


def _named(graph: Graph, name: str | None, model: Any) -> Graph:
    """The graph under `name`, with the class names of the model's modules by path in meta "modules"."""
    modules = () if isinstance(model, type) else getattr(model, "named_modules", tuple)()  # a class or a factory has no modules yet
    classes = {path: type(module).__name__ for path, module in modules}
    return replace(graph, name=name or graph.name, meta={"modules": classes, **graph.meta} if classes else graph.meta)


def _with_kernels(graph: Graph, threads: int | None, say: Progress) -> Graph:
    from .compiler.oracle import with_workspace

    stage = "measuring kernels"
    say(stage, 0, 0)
    return with_workspace(graph, threads=threads, progress=lambda done, total: say(stage, done, total))


def _schedule(graph: Graph, traced: Lifetimes, order: str, time_limit: float) -> Schedule:
    """The order in use, with a bound on every order: the best one found, or the traced one."""
    from .passes.schedule import schedule

    best = schedule(graph, time_limit=time_limit, inputs=traced.inputs)
    if order == "best":
        return best
    method = f"traced; {best.method.rpartition('; ')[2]}"
    return replace(best, order=traced.order, peak=traced.peak, optimal=best.lower_bound == traced.peak, method=method)


def _assembled(
    graph: Graph,
    policy: str,
    order: str,
    eager: Lifetimes | None,
    traced: Lifetimes,
    planned: Lifetimes,
    chosen: Schedule,
    plan: Plan,
) -> Analysis:
    from .compiler.count import count

    counts = count(graph)
    step = planned.peak_step
    peak_node = planned.order[step] if step >= 0 else -1
    at_peak = live_storages(graph, planned.alive_at(step), peak_node) if step >= 0 else ()
    workspace = graph.nodes[peak_node].workspace if step >= 0 else 0
    weights = sum(s.nbytes for s in graph.storages if s.role in WEIGHT_ROLES)
    state = sum(s.nbytes for s in graph.storages if s.role in ("gradient", "optimizer_state") and graph.birth[s.id] < 0)
    inputs = sum(graph.storages[s].nbytes for s in graph.input_storages)
    total = weights + state + planned.peak + (inputs if policy == "caller" else 0)
    result = Analysis(
        name=graph.name,
        mode=str(graph.meta.get("mode", "inference")),
        device=str(graph.meta.get("device", "cpu")),
        order=order,
        inputs_policy=policy,
        eager_peak=None if eager is None else eager.peak,
        graph_peak=traced.peak,
        planned_peak=planned.peak,
        lower_bound=int(chosen.lower_bound),
        optimal=bool(chosen.optimal),
        arena=int(plan.arena),
        weights=weights,
        state=state,
        inputs=inputs,
        activations=planned.peak - workspace,
        workspace=workspace,
        total_peak=total,
        params=sum(parameter_elements(graph).values()),
        macs=counts.macs,
        flops=counts.flops,
        elementwise_flops=counts.elementwise_flops,
        unknown_ops=dict(counts.unknown),
        peak_node=peak_node,
        at_peak=at_peak,
        by_module=module_rows(graph, counts.node_macs.tolist(), at_peak, graph.meta.get("modules")),
        kinds=_kinds(graph, chosen),
        provenance=_provenance(graph),
        graph=graph,
        schedule=chosen,
        plan=plan,
        eager=eager,
        traced=traced,
        planned=planned,
    )
    _assert_ordered(result)
    return result


def _assert_ordered(a: Analysis) -> None:
    for smaller, larger in (("lower_bound", "planned_peak"), ("planned_peak", "graph_peak"), ("planned_peak", "arena")):
        low, high = getattr(a, smaller), getattr(a, larger)
        if low > high:
            raise AssertionError(f"{a.name}: {smaller} {low} B is above {larger} {high} B")


def _kinds(graph: Graph, chosen: Schedule) -> dict[str, str]:
    """How each number was obtained."""
    kernels = graph.meta.get("kernels")
    missing = len(kernels.get("unmeasured", {})) if kernels else 0
    workspace = "as the graph says" if kernels is None else f"measured, {missing} ops not" if missing else "measured"
    bounded = ", with upper bounds for sizes that depend on data" if graph.meta.get("bounds") else ""
    return {
        "eager_peak": f"predicted{bounded}" if graph.released else "unknown",
        "graph_peak": f"exact for this graph{bounded}",
        "planned_peak": "proven optimal" if chosen.optimal else "best found",
        "lower_bound": "bound",
        "arena": "exact for this plan",
        "workspace": workspace,
        "macs": "counted",
    }


def _provenance(graph: Graph) -> dict[str, Any]:
    """What the numbers depend on: versions, and the machine whose kernels were asked."""
    from . import __version__

    facts: dict[str, Any] = {"neaptide": __version__, "python": platform.python_version(), **graph.meta.get("versions", {})}
    kernels = graph.meta.get("kernels", {})
    for key in ("torch", "isa", "threads", "processor"):
        value = kernels.get(key, graph.meta.get(key))
        if value is not None:
            facts[key] = value
    return facts
