"""Independent checkers of layouts and plans: a sweep through time over the addresses in use, sharing no code with the solver.

While the blocks alive are pairwise apart, a block that comes to life overlaps one of them only if it overlaps its nearest
neighbour below or above. So one sweep with the live blocks kept by address proves every pair, in O(n log n) comparisons.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from ..compiler.errors import PlanError
from ..compiler.graph import Graph

Block = tuple[int, int, int, int]
"""(lower, upper, offset, size): alive over the half-open [lower, upper), on bytes offset to offset + size."""


class LayoutLike(Protocol):
    """What `verify_layout` reads of a layout."""

    @property
    def ids(self) -> Sequence[Hashable]: ...
    @property
    def lower(self) -> Iterable[int]: ...
    @property
    def upper(self) -> Iterable[int]: ...
    @property
    def size(self) -> Iterable[int]: ...
    @property
    def offsets(self) -> Iterable[int]: ...
    @property
    def arena(self) -> int: ...
    @property
    def lower_bound(self) -> int: ...
    @property
    def alignment(self) -> int: ...


class PlanLike(Protocol):
    """What `verify_plan` reads of a plan."""

    @property
    def order(self) -> Sequence[int]: ...
    @property
    def offsets(self) -> Mapping[int, int]: ...
    @property
    def workspace_offsets(self) -> Mapping[int, int]: ...
    @property
    def arena(self) -> int: ...
    @property
    def lower_bound(self) -> int: ...
    @property
    def alignment(self) -> int: ...
    @property
    def inputs(self) -> str: ...


def verify_layout(layout: LayoutLike) -> None:
    """Raise `PlanError` naming the first block of `layout` that overlaps another, leaves the arena or breaks the alignment.

    Also when the arena is smaller than the largest load or than the layout's own lower bound. O(n log n).
    """
    columns = (layout.lower, layout.upper, layout.offsets, layout.size)
    blocks: list[Block] = [tuple(map(int, row)) for row in zip(*columns, strict=True)]  # pyright: ignore[reportAssignmentType]
    _verify(blocks, lambda i: f"block {layout.ids[i]!r}", layout)


def verify_plan(graph: Graph, plan: PlanLike) -> None:
    """Raise `PlanError` unless `plan` gives every byte that `graph` needs, run in `plan.order`, a place of its own.

    Lifetimes are found anew by running the order. Checks that exactly the counted storages and the workspaces have offsets,
    then as `verify_layout`; so the arena is never smaller than the peak of the order.
    """
    lifetimes = _run(graph, plan.order, plan.inputs)
    for s in lifetimes.keys() ^ plan.offsets.keys():
        found = "has an offset, though it is not counted or never alive" if s in plan.offsets else "is alive and has no offset"
        raise PlanError(f"storage {s} of graph {graph.name!r} {found}")
    needing = {node.id for node in graph.nodes if node.workspace}
    for v in needing ^ plan.workspace_offsets.keys():
        found = "needs a workspace and has no offset for it" if v in needing else "has a workspace offset and needs none"
        raise PlanError(f"node {v} of graph {graph.name!r} {found}")
    names, blocks = [], []
    for s, (birth, death) in lifetimes.items():
        names.append(f"storage {s} of graph {graph.name!r}")
        blocks.append((birth, death, plan.offsets[s], graph.storages[s].nbytes))
    for step, v in enumerate(plan.order):
        if v in needing:
            names.append(f"workspace of node {v} of graph {graph.name!r}")
            blocks.append((step, step + 1, plan.workspace_offsets[v], graph.nodes[v].workspace))
    _verify(blocks, names.__getitem__, plan)


def _verify(blocks: list[Block], name: Callable[[int], str], result: Any) -> None:
    arena, alignment = result.arena, result.alignment
    for i, (_, _, offset, size) in enumerate(blocks):
        if offset < 0 or offset + size > arena:
            raise PlanError(f"{name(i)} lies on bytes {offset} to {offset + size}, outside its arena of {arena} bytes")
        if offset % alignment:
            raise PlanError(f"{name(i)} lies at offset {offset}, which is no multiple of the alignment {alignment}")
    load = _sweep(blocks, name)
    if not load <= arena:
        raise PlanError(f"arena of {arena} bytes is smaller than the {load} bytes alive at once")
    if not result.lower_bound <= arena:
        raise PlanError(f"arena of {arena} bytes is smaller than its lower bound of {result.lower_bound} bytes")


def _sweep(blocks: list[Block], name: Callable[[int], str]) -> int:
    """Most bytes alive at once; `PlanError` for the first two blocks that share a byte at some time."""
    dying, coming = 0, 1
    events = []
    for i, (lower, upper, _, size) in enumerate(blocks):
        if lower >= upper:
            raise PlanError(f"{name(i)} lives from {lower} to {upper}: it dies before it is born")
        if size:
            events += [(lower, coming, i), (upper, dying, i)]
    alive: list[tuple[int, int, int]] = []
    load = most = 0
    for _, kind, i in sorted(events):
        _, _, offset, size = blocks[i]
        span = (offset, offset + size, i)
        at = bisect_left(alive, span)
        if kind == dying:
            del alive[at]
            load -= size
            continue
        for start, end, other in alive[max(0, at - 1) : at + 1]:
            if start < offset + size and offset < end:
                raise PlanError(
                    f"{name(i)} on bytes {offset} to {offset + size} and {name(other)} on bytes {start} to {end} overlap "
                    f"while both are alive"
                )
        insort(alive, span)
        load += size
        most = max(most, load)
    return most


def _run(graph: Graph, order: Sequence[int], inputs: str) -> dict[int, tuple[int, int]]:
    """Per counted storage that is ever alive: its first step and the step after its last, as running `order` shows them."""
    outside = {s.id for s in graph.storages if s.role in ("input", "parameter", "buffer", "constant")}
    carried: set[int] = set()
    born: set[int] = set()
    for node in graph.nodes:
        read = {graph.tensors[t].storage for t in node.inputs} | set(node.writes)
        carried |= read - born - outside
        born |= {graph.tensors[t].storage for t in node.outputs} - carried - outside
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for step, v in enumerate(order):
        node = graph.nodes[v]
        for s in {graph.tensors[t].storage for t in (*node.inputs, *node.outputs)} | set(node.writes):
            first.setdefault(s, step)
            last[s] = step
    if order:
        for t in graph.outputs:
            last[graph.tensors[t].storage] = len(order) - 1
    if inputs == "planned":
        for storage in graph.storages:
            if storage.role == "input":
                born.add(storage.id)
                first[storage.id] = 0
    return {s: (first[s], last[s] + 1) for s in sorted(born) if s in last}
