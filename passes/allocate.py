"""Static memory plans: an address for every storage and every workspace, in one arena.

The blocks of a graph under one order are its counted storages over their live ranges, and each node's workspace over its
own step; `allocate_lifetimes` takes blocks of any origin. Times are half-open: a block (lower, upper) is alive at
lower <= t < upper, so one may start where another ends. Sizes are rounded up to the alignment, and so are arena and bound.

Every result has passed `passes.verify_plan`, which knows nothing of how it was made.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..compiler.errors import PlanError
from ..compiler.graph import Graph
from .clock import Clock, processor_clock
from .liveness import Inputs, liveness
from .load import load_at_worst, max_load
from .offsets import Offsets, solve
from .verify_plan import verify_layout, verify_plan

LARGEST = 1 << 61


@dataclass(frozen=True, eq=False)
class Layout:
    """Where blocks lie. `lower`, `upper`, `size`, `offsets`: int64 (n,), in the order of `ids`; sizes as given, in bytes.

    `arena`: bytes to the end of the highest block, `lower_bound`: bytes that no layout of these blocks undercuts, `optimal`
    when they are equal; all in sizes rounded up to `alignment`. `method`: what found the layout. `seconds`: time taken,
    without compiling kernels.
    """

    ids: tuple[Hashable, ...] = field(repr=False)
    lower: np.ndarray = field(repr=False)
    upper: np.ndarray = field(repr=False)
    size: np.ndarray = field(repr=False)
    offsets: np.ndarray = field(repr=False)
    arena: int
    lower_bound: int
    alignment: int
    method: str
    seconds: float

    @property
    def optimal(self) -> bool:
        """No layout of these blocks is lower."""
        return self.arena == self.lower_bound

    @property
    def waste(self) -> float:
        """Share of the arena beyond the lower bound: `arena / lower_bound - 1`, 0 for an empty layout."""
        return self.arena / self.lower_bound - 1 if self.lower_bound else 0.0


@dataclass(frozen=True)
class Plan:
    """Where everything of a graph lies when it runs in `order`.

    `offsets`: bytes from the start of the arena, per storage that is counted under `inputs` and ever alive.
    `workspace_offsets`: per node that has a workspace. Other fields as in `Layout`.
    """

    order: tuple[int, ...] = field(repr=False)
    offsets: Mapping[int, int] = field(repr=False)
    workspace_offsets: Mapping[int, int] = field(repr=False)
    arena: int
    lower_bound: int
    alignment: int
    inputs: Inputs
    method: str
    seconds: float

    @property
    def optimal(self) -> bool:
        """No plan for this order and alignment has a smaller arena."""
        return self.arena == self.lower_bound

    @property
    def waste(self) -> float:
        """Share of the arena beyond the lower bound: `arena / lower_bound - 1`, 0 for an empty plan."""
        return self.arena / self.lower_bound - 1 if self.lower_bound else 0.0


class Ordered(Protocol):
    """What `allocate` reads of a `Schedule`."""

    @property
    def order(self) -> tuple[int, ...]: ...


def allocate(
    graph: Graph,
    schedule: Ordered | Sequence[int] | None = None,
    *,
    alignment: int = 64,
    capacity: int | None = None,
    inputs: Inputs = "planned",
    time_limit: float = 10.0,
    clock: Clock = processor_clock,
) -> Plan:
    """The smallest arena found for `graph` run in the order of `schedule` (a Schedule, a plain order, or None: as traced).

    `alignment`, `capacity`: bytes. `inputs` as in `liveness`. Search stops at the lower bound, or at the first layout within
    `capacity`, or after about `time_limit` seconds of `clock`, this thread's processor time. Raises `OrderError` for an order that
    breaks a dependency and `PlanError` when `capacity` is not reached, naming bound, best arena found, and the largest storages at
    the peak.
    """
    order: Any = getattr(schedule, "order", schedule)
    ranges = liveness(graph, order, inputs=inputs)
    storages = np.flatnonzero(ranges.death > ranges.birth)
    steps = np.array([t for t, v in enumerate(ranges.order) if graph.nodes[v].workspace], np.int64)
    owners = [ranges.order[t] for t in steps]
    lower = np.concatenate([ranges.birth[storages], steps])
    upper = np.concatenate([ranges.death[storages], steps + 1])
    size = np.array(
        [*(graph.storages[s].nbytes for s in storages), *(graph.nodes[v].workspace for v in owners)],
        np.int64,
    )

    def describe(row: int) -> str:
        if row >= len(storages):
            return f"workspace of {_node_name(graph, owners[row - len(storages)])}"
        storage = graph.storages[storages[row]]
        maker = f" of {_node_name(graph, graph.birth[storage.id])}" if graph.birth[storage.id] >= 0 else ""
        return f"{storage.name or f'{storage.role} {storage.id}'}{maker}"

    found = _lay_out(lower, upper, size, alignment, capacity, time_limit, clock, f"graph {graph.name!r} does", describe)
    offsets = (found.offset * alignment).tolist()
    plan = Plan(
        ranges.order,
        dict(zip(storages.tolist(), offsets[: len(storages)], strict=True)),
        dict(zip(owners, offsets[len(storages) :], strict=True)),
        found.height * alignment,
        found.lower_bound * alignment,
        alignment,
        inputs,
        found.method,
        found.seconds,
    )
    verify_plan(graph, plan)
    return plan


def allocate_lifetimes(
    ids: Sequence[Hashable],
    lower: Sequence[int] | np.ndarray,
    upper: Sequence[int] | np.ndarray,
    size: Sequence[int] | np.ndarray,
    *,
    alignment: int = 1,
    capacity: int | None = None,
    time_limit: float = 10.0,
    clock: Clock = processor_clock,
) -> Layout:
    """The lowest layout found for blocks `ids`, block i of `size[i]` bytes alive over the half-open [lower[i], upper[i]).

    Stops at the lower bound (the largest load, or more where a search has refuted that), or at the first layout within
    `capacity` bytes when one is given, or after about `time_limit` seconds of `clock`, as in `allocate`; deterministic
    unless time runs out. Raises `PlanError` naming the block for lengths that differ, ids that repeat, values that are no integers,
    negative sizes or lifetimes that end before they start; and when `capacity` is not reached, saying whether that is proved.
    """
    ids = tuple(ids)
    lower, upper, size = _checked(ids, lower, upper, size)
    found = _lay_out(lower, upper, size, alignment, capacity, time_limit, clock, f"{len(ids)} blocks do", lambda row: f"{ids[row]!r}")
    layout = Layout(
        ids,
        lower,
        upper,
        size,
        found.offset * alignment,
        found.height * alignment,
        found.lower_bound * alignment,
        alignment,
        found.method,
        found.seconds,
    )
    verify_layout(layout)
    return layout


def _lay_out(
    lower: np.ndarray,
    upper: np.ndarray,
    size: np.ndarray,
    alignment: int,
    capacity: int | None,
    time_limit: float,
    clock: Clock,
    subject: str,
    describe: Callable[[int], str],
) -> Offsets:
    """Solve in units of `alignment`; empty blocks lie at 0. Raises `PlanError` when `capacity` (bytes) is not reached."""
    if isinstance(alignment, bool) or not isinstance(alignment, (int, np.integer)) or alignment < 1:
        raise PlanError(f"alignment={alignment!r}: it is a whole number of bytes, at least 1")
    if alignment > LARGEST:
        raise PlanError(f"alignment={alignment}: at most 2^61 is allowed")
    if capacity is not None and (isinstance(capacity, bool) or not isinstance(capacity, (int, np.integer)) or capacity < 0):
        raise PlanError(f"capacity={capacity!r}: it is a whole number of bytes, or None for no limit")
    if not time_limit >= 0:
        raise PlanError(f"time_limit={time_limit!r}: it is a number of seconds, at least 0")
    units = -(-size // alignment)
    if float(units.sum(dtype=np.float64)) * alignment > LARGEST:
        raise PlanError(f"blocks have {float(size.sum(dtype=np.float64)):.3g} bytes together; more than 2^61 are not planned")
    solid = np.flatnonzero(units)
    room = None if capacity is None else min(int(capacity), LARGEST) // int(alignment)
    hopeless = room is not None and max_load(lower[solid], upper[solid], units[solid]) > room
    seconds = 0.0 if hopeless else time_limit
    found = solve(lower[solid], upper[solid], units[solid], enough=room or 0, time_limit=seconds, clock=clock)
    offset = np.zeros(len(size), np.int64)
    offset[solid] = found.offset
    found = Offsets(offset, found.height, found.lower_bound, found.method, found.seconds)
    if room is not None and found.height > room:
        raise PlanError(_does_not_fit(found, lower, upper, units * alignment, int(alignment), int(capacity or 0), subject, describe))
    return found


def _does_not_fit(
    found: Offsets,
    lower: np.ndarray,
    upper: np.ndarray,
    size: np.ndarray,
    alignment: int,
    capacity: int,
    subject: str,
    describe: Callable[[int], str],
) -> str:
    """One paragraph: capacity, what is known, and the largest blocks at the time of the largest load."""
    bound, best = found.lower_bound * alignment, found.height * alignment
    moment, load = load_at_worst(lower, upper, size)
    alive = np.flatnonzero((lower <= moment) & (moment < upper))
    largest = alive[np.argsort(-size[alive], kind="stable")][:3]
    offenders = ", ".join(f"{describe(int(i))} ({size[i]:,} B)" for i in largest)
    if load > capacity:
        verdict = f"{load:,} B are alive at time {moment}"
    elif bound > capacity:
        verdict = f"a complete search has proved that no layout is below {bound:,} B (largest load {load:,} B, at time {moment})"
    else:
        verdict = (
            f"no layout was found in {found.seconds:.1f} s, though the largest load is {load:,} B, at time {moment}; give it more time"
        )
    known = f"Lower bound {bound:,} B, best found {best:,} B; largest at that time: {offenders}"
    return f"{subject} not fit {capacity:,} B: {verdict}. {known}"


def _integers(name: str, ids: tuple[Hashable, ...], values: list[Any]) -> np.ndarray:
    """`values` as int64; `PlanError` for anything that is no integer or is beyond +-2^61."""
    for i, value in enumerate(values):
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            raise PlanError(f"{name} of block {ids[i] if i < len(ids) else i!r} is {value!r}; lifetimes and sizes are integers")
        if not -LARGEST <= value <= LARGEST:
            raise PlanError(f"{name} of block {ids[i] if i < len(ids) else i!r} is {value}; at most 2^61 is allowed")
    return np.array(values, np.int64)


def _node_name(graph: Graph, node: int) -> str:
    scope = graph.nodes[node].scope
    return f"node {node} ({graph.nodes[node].op}{f' in {scope}' if scope else ''})"


def _checked(ids: tuple[Hashable, ...], *columns: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The columns as int64 arrays of the length of `ids`; `PlanError` for anything that is not a list of blocks."""
    arrays = []
    for name, column in zip(("lower", "upper", "size"), columns, strict=True):
        array = column if isinstance(column, np.ndarray) else _integers(name, ids, list(column))
        if array.ndim != 1 or len(array) != len(ids):
            raise PlanError(f"{name} has shape {list(array.shape)}; there are {len(ids)} ids, so it should be [{len(ids)}]")
        if len(array) and array.dtype.kind not in "iu":
            raise PlanError(f"{name} holds {array.dtype.name} values; lifetimes and sizes are integers")
        if array.dtype.kind == "u" and len(array) and int(array.max()) > LARGEST:
            raise PlanError(f"{name} of block {ids[int(array.argmax())]!r} is {int(array.max())}; at most 2^61 is allowed")
        arrays.append(array.astype(np.int64))
    lower, upper, size = arrays
    if len(set(ids)) < len(ids):
        seen: set[Hashable] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))
        raise PlanError(f"block id {twice!r} stands twice; ids are distinct")
    for i in np.flatnonzero(size < 0)[:1]:
        raise PlanError(f"block {ids[i]!r} has size {size[i]}; sizes are never negative")
    for i in np.flatnonzero(lower >= upper)[:1]:
        raise PlanError(f"block {ids[i]!r} lives from {lower[i]} to {upper[i]}; lifetimes are half-open, so lower < upper")
    for name, array in (("lower", lower), ("upper", upper), ("size", size)):
        for i in np.flatnonzero((array > LARGEST) | (array < -LARGEST))[:1]:
            raise PlanError(f"{name} of block {ids[i]!r} is {array[i]}; at most 2^61 is allowed")
    return lower, upper, size
