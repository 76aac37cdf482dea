"""The order and the arena of a network's operators, in place where that lowers the arena; and what is said when they do not fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...compiler.errors import BudgetError
from ...compiler.graph import Graph, Node
from ...passes.allocate import Plan, allocate
from ...passes.inplace import inplace as in_place
from ...passes.liveness import liveness
from ...passes.schedule import Schedule, schedule
from ..spec import Target, list_targets
from .firmware import ALIGNMENT, STACK, STATIC, EmulationError, sram_bytes, too_large_for_board, weight_bytes, workspace_bytes

if TYPE_CHECKING:
    from ..tvm.lower import Kernel


@dataclass(frozen=True)
class Planned:
    """`graph` as it runs under `plan`, in the order of `schedule`. `separate`: the graph with no result in place, `merged`: with every
    one that can be; `graph` is one of the two. `plain`: the plan of `separate`.
    """

    graph: Graph
    schedule: Schedule
    plan: Plan
    separate: Graph
    merged: Graph
    plain: Plan

    @property
    def saved(self) -> int:
        """Bytes of arena that results in place save."""
        return self.plain.arena - self.plan.arena


def planned(graph: Graph, kernels: Mapping[str, Kernel], *, inplace: bool = True) -> Planned:
    """`graph`, a node per call of one of `kernels`, with their workspaces, ordered and placed.

    `inplace`: let a result lie over an operand that dies there and that its kernel reads for the last time as it writes (the summand
    of a fused residual sum), if the arena is smaller for it.
    """
    needs = {symbol: workspace_bytes(kernel) for symbol, kernel in kernels.items()}
    graph = graph.with_nodes([replace(node, workspace=needs.get(node.op, 0)) for node in graph.nodes])

    def operands(node: Node) -> Collection[int]:
        return kernels[node.op].overwritable if node.op in kernels else ()

    merged = in_place(graph, operands=operands)
    order, plain = _placed(graph)
    if inplace and merged is not graph:
        merged_order, merged_plan = _placed(merged)
        if merged_plan.arena < plain.arena:
            return Planned(merged, merged_order, merged_plan, graph, merged, plain)
    return Planned(graph, order, plain, graph, merged, plain)


def _placed(graph: Graph) -> tuple[Schedule, Plan]:
    order = schedule(graph, inputs="planned")
    return order, allocate(graph, order, alignment=ALIGNMENT, inputs="planned")


def check_fit(graph: Graph, plan: Plan, target: Target, *, stack: int = STACK, found: Planned | None = None) -> None:
    """Raise `BudgetError` where arena and stack exceed the target's SRAM, or weights its flash; says what is largest and a way out.

    `found`: the planning that gave them, for the rewrites to be tried. Raises `EmulationError` where the part has the flash for the
    weights and the board that emulates it has not.
    """
    sram = sram_bytes(target)
    need = plan.arena + stack + STATIC
    weights = weight_bytes(graph)
    if need > sram:
        ranges = liveness(graph, plan.order, inputs=plan.inputs)
        node = graph.nodes[ranges.order[ranges.peak_step]]
        held = ", ".join(f"{_what(graph, s)} {graph.storages[s].nbytes:,} B" for s in ranges.alive_at(ranges.peak_step)) or "nothing"
        more = f", workspace {node.workspace:,} B" if node.workspace else ""
        tried = f" {_rewrites(found, sram - stack - STATIC)}" if found else ""
        raise BudgetError(
            f"{graph.name!r} does not fit {target.name}: arena {plan.arena:,} B + stack {stack:,} B + {STATIC} B of variables "
            f"= {need:,} B, SRAM {sram:,} B. Peak at {node.op} {node.scope} ({held}{more}); {need - sram:,} B have to go: "
            f"a smaller input or fewer channels there{_roomier(need, weights)}.{tried}"
        )
    if target.flash is not None and weights > target.flash:
        largest = max((s for s in graph.storages if s.role == "constant"), key=lambda s: s.nbytes)
        reader = next((node.op for node in graph.nodes for t in node.inputs if graph.tensors[t].storage == largest.id), "nothing")
        raise BudgetError(
            f"{graph.name!r} does not fit {target.name}: weights {weights:,} B, flash {target.flash:,} B. "
            f"Largest: {largest.nbytes:,} B of {reader}; {weights - target.flash:,} B have to go, and no rewrite makes weights "
            f"smaller: fewer channels{_roomier(need, weights)}"
        )
    board = target.emulator
    if board is not None and weights > board.code_size:
        raise EmulationError(too_large_for_board(graph.name, target, f"weights {weights:,} B"))


def _rewrites(found: Planned, room: int) -> str:
    """What Neaptide's rewrites, really applied, make of the arena, as sentences."""
    said = []
    if found.saved:
        said.append(f"Results in place are in use and save {found.saved:,} B.")
    elif found.merged is not found.separate and (arena := _placed(found.merged)[1].arena) < found.plan.arena:
        verdict = "which fits" if arena <= room else f"still {arena - room:,} B too many"
        said.append(f"Results in place (inplace=True) give an arena of {arena:,} B, {verdict}.")
    else:
        said.append("Results in place save nothing here.")
    own = liveness(found.graph, inputs="planned").peak
    if own > found.schedule.peak:
        said.append(f"The order in use saves {own - found.schedule.peak:,} B against the model's own.")
    if found.schedule.optimal:
        said.append(f"No order of these operators needs less than {found.schedule.peak:,} B.")
    else:
        said.append(f"No order found needs less than {found.schedule.peak:,} B, and none less than {found.schedule.lower_bound:,} B.")
    return " ".join(said)


def _roomier(sram: int, flash: int) -> str:
    """The built-in parts that have so much of both, as the end of a sentence."""
    parts = [t for t in list_targets() if t.kind == "mcu" and t.name != t.core]
    names = [t.name for t in parts if t.sram is not None and t.flash is not None and t.sram >= sram and t.flash > flash]
    return f", or a part that it fits: {', '.join(names)}" if names else "; it fits no built-in part"


def _what(graph: Graph, storage: int) -> str:
    """A storage by its name, or by what makes it."""
    s = graph.storages[storage]
    maker = graph.birth[storage]
    return s.name or (graph.nodes[maker].op if maker >= 0 else f"{s.role} {storage}")
