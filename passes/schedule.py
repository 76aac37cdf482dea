"""The order that needs least memory, with a proof or with the gap that is left.

Cheap things first. The traced order, a portfolio of heuristics and a beam search give an upper bound, minimum cuts a lower
bound; most networks are done when these meet, in plain Python. Only then come the numba kernels: cuts for the blocks that
are left, and complete searches under a budget, just below the best peak and at the lowest that is not refuted, in turns
with wider beams, until both bounds meet or time is up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from ..compiler.graph import Graph
from .beam import beam_search
from .bounds import lower_bound
from .clock import Clock, Limit, Stopwatch, processor_clock, wall_clock
from .decompose import segments
from .exact import Search, blocks_of, compile_kernels, sweep_cuts
from .heuristics import PORTFOLIO
from .liveness import Inputs, check_inputs_mode, counted_storages, liveness
from .problem import OrderingProblem, ordering_problem
from .verify import verify_schedule

# Work is counted, not timed, so that results do not depend on the machine unless time runs out.
PYTHON_CUT_WORK = 4_000  # blocks that cuts decide about before kernels take over
KERNEL_CUT_WORK = 200_000  # the same, between two looks at the clock
BEAM_WORK = 40_000  # moves of the first, narrowest beam
NARROWEST_BEAM = 4
SEARCH_CHUNK = 20_000  # down-sets between two looks at the clock
SEARCH_EFFORT = 50_000  # down-sets, or as much work in cuts, of a search's first turn


@dataclass(frozen=True)
class Schedule:
    """An order of a graph's nodes and what is known about its peak.

    `order`: node id per step. `peak`: bytes it needs. `lower_bound`: bytes that every order needs; `optimal` when they are
    equal. `method`: what gave the order (`traced`; `traced, merged`: with blocks of `passes.problem` put together; the name
    of a heuristic; `beam`; `search`) and after `; ` what gave the bound (`ends`: what is held before the first and after the
    last node; `cut`; `search`). `seconds`: time taken, the final check included, without compiling kernels. `inputs`: how
    graph inputs were counted.
    """

    order: tuple[int, ...] = field(repr=False)
    peak: int
    lower_bound: int
    optimal: bool
    method: str
    seconds: float
    inputs: Inputs = "planned"


def schedule(graph: Graph, *, time_limit: float = 10.0, inputs: Inputs = "planned", clock: Clock = processor_clock) -> Schedule:
    """An order of `graph` with the least peak found within `time_limit` seconds, and a lower bound on every order's peak.

    The seconds are of `clock`, this thread's processor time: how busy the machine is does not change what is found. They begin once
    the problem is set up, which takes some ten microseconds a node. The traced order is kept when none is better. Takes milliseconds
    when simple bounds meet; else the first call on a machine compiles kernels, some ten seconds that are cached on disk and not
    counted in `time_limit`. Equal graphs give equal results unless time runs out.
    `passes.problem`, `bounds` and `exact` tell why the result is right; `verify_schedule` checks it.
    """
    check_inputs_mode(inputs)
    wall = Stopwatch(wall_clock)
    problem = ordering_problem(graph, inputs)
    limit = Limit(time_limit, clock)
    hunt = _Hunt(graph, inputs, wall, limit)
    for _ in hunt.stages(problem):
        if hunt.lower >= hunt.upper or limit.spent():
            break
    order = late_weightless(graph, hunt.order, inputs)
    result = Schedule(order, hunt.upper, hunt.lower, hunt.lower == hunt.upper, hunt.method(), 0.0, inputs)
    verify_schedule(graph, result)
    return replace(result, seconds=wall.taken())


def late_weightless(graph: Graph, order: Sequence[int], inputs: Inputs = "planned") -> tuple[int, ...]:
    """`order` with each node that touches no counted byte put off until it is needed: same peak, nearer to the traced order.

    Needed by a dependent, or, where there is none, by the node that came next when traced. O(nodes + dependencies).
    """
    counted = counted_storages(graph, inputs)
    weighty = [counted[s.id] and s.nbytes > 0 for s in graph.storages]
    successors, predecessors = graph.successors(), graph.dependencies()
    waiting: set[int] = set()
    settled: dict[int, None] = {}

    def settle(node: int) -> None:
        stack = [node]
        while stack:
            needed = [u for u in predecessors[stack[-1]] if u in waiting]
            if needed:
                stack.extend(reversed(needed))
            else:
                ready = stack.pop()
                waiting.discard(ready)
                settled[ready] = None

    for node in order:
        if not graph.nodes[node].workspace and not any(weighty[s] for s in graph.touches[node]):
            waiting.add(node)
            continue
        before = node - 1
        while before in waiting and not successors[before]:
            before -= 1
        for unneeded in range(before + 1, node):
            if all(u in settled or u in waiting for u in predecessors[unneeded]):
                settle(unneeded)
        settle(node)
    for node in order:
        if node in waiting:
            settle(node)
    return tuple(settled)


class _Hunt:
    """The best order and bound so far. `stages` yields wherever the hunt may stop; `watches` stand still while kernels are compiled."""

    def __init__(self, graph: Graph, inputs: Inputs, *watches: Stopwatch):
        self.graph = graph
        self.inputs: Inputs = inputs
        self.order = tuple(range(len(graph.nodes)))
        self.upper = liveness(graph, inputs=inputs).peak
        self.found_by = "traced"
        self.lower = 0
        self.bounded_by = "ends"
        self.watches = watches

    def method(self) -> str:
        return f"{self.found_by}; {self.bounded_by}"

    def stages(self, problem: OrderingProblem) -> Iterator[None]:
        self.raise_lower(problem.floor, "ends")
        needs = problem.needs(range(len(problem)))
        self.raise_lower(lower_bound(problem, needs, self.upper, work=PYTHON_CUT_WORK)[0], "cut")
        yield
        parts = [_Part(p, needs) for p in segments(problem)]
        self.compose(problem, parts)
        yield
        for name, heuristic in PORTFOLIO.items():
            for part in parts:
                if part.upper > self.lower:
                    part.consider(heuristic(part.problem), name)
            self.compose(problem, parts)
            yield
        for part in parts:
            if part.upper > self.lower:
                bound, part.cuts_done = lower_bound(part.problem, part.least, part.upper, work=PYTHON_CUT_WORK)
                self.raise_lower(bound, "cut")
                yield
        yield from self.beam(problem, parts, BEAM_WORK)
        self.compile()
        for part in parts:
            if part.upper > self.lower and not part.cuts_done:
                for bound in part.sweep():
                    self.raise_lower(bound, "cut")
                    yield
        patience, beam_work = SEARCH_EFFORT, BEAM_WORK
        while open_parts := [part for part in parts if part.upper > self.lower]:
            for part in open_parts:
                for bound in part.search(self.lower, self.upper, patience):
                    self.raise_lower(bound, "search")
                    self.compose(problem, parts)
                    yield
            patience, beam_work = 2 * patience, 2 * beam_work
            yield from self.beam(problem, parts, beam_work)

    def beam(self, problem: OrderingProblem, parts: list[_Part], work: int) -> Iterator[None]:
        """Look for better orders of the parts that are still open, a beam of about `work` moves for each."""
        for part in parts:
            if part.upper > self.lower:
                for _ in part.beam(self.lower, self.upper, work):
                    yield
                self.compose(problem, parts)
                yield

    def compose(self, problem: OrderingProblem, parts: list[_Part]) -> None:
        """Take the best order of each part, one after another, when that beats the best so far."""
        peak = max([problem.floor, *(part.upper for part in parts)])
        if peak < self.upper:
            blocks = [v for part in parts for v in part.problem.expand(part.order)]
            self.upper, self.order = peak, problem.expand(blocks)
            self.found_by = " + ".join(dict.fromkeys(part.found_by for part in parts if part.found_by != "traced")) or "traced, merged"

    def raise_lower(self, bound: int, name: str) -> None:
        if bound > self.lower:
            self.lower, self.bounded_by = bound, name

    def compile(self) -> None:
        """Load the kernels, compiled or from numba's cache; the time it takes is not the caller's."""
        with ExitStack() as pauses:
            for watch in self.watches:
                pauses.enter_context(watch.paused())
            compile_kernels()


class _Part:
    """A segment: its best order so far, and per block an upper bound on its cut, the least need over all orders tried."""

    def __init__(self, problem: OrderingProblem, least: list[int]):
        """`least`: what is known by block of the whole problem, whose ids are the `members` of this one."""
        self.problem = problem
        self.order = list(range(len(problem)))
        self.least = [least[v] for (v,) in problem.members]
        self.upper = problem.peak(problem.needs(self.order))
        self.found_by = "traced"
        self.cuts_done = False
        self.refuted = problem.floor
        self.searches: dict[str, Search] = {}

    def consider(self, order: list[int], name: str) -> None:
        """Keep `order` when it is better than the best so far."""
        needs = self.problem.needs(order)
        self.least = [min(a, b) for a, b in zip(self.least, needs, strict=True)]
        peak = self.problem.peak(needs)
        if peak < self.upper:
            self.upper, self.order, self.found_by = peak, order, name

    def beam(self, lower: int, upper: int, work: int) -> Iterator[None]:
        """Beam search as wide as `work` moves allow, when that is wide enough to be of use."""
        place = {v: i for i, v in enumerate(self.order)}
        preds = self.problem.preds
        moves = sum(i - max((place[u] for u in preds[v]), default=-1) for v, i in place.items())
        width = work // moves
        if width >= NARROWEST_BEAM:
            order = yield from beam_search(self.problem, width, lower, min(upper, self.upper))
            if order is not None:
                self.consider(order, "beam")

    def sweep(self) -> Iterator[int]:
        """All cuts that could raise the bound of this part, by kernel; yields the bound as it grows."""
        least = np.array(self.least, np.int64)
        candidates = np.argsort(-least, kind="stable")
        blocks = blocks_of(self.problem)
        bound = at = 0
        while at < len(candidates):
            bound, at = sweep_cuts(blocks, candidates, at, least, bound, self.upper, KERNEL_CUT_WORK)
            yield bound

    def search(self, lower: int, upper: int, patience: int) -> Iterator[int]:
        """Search just below the best peak, at the lowest budget not refuted, and between, `patience` each; yields bounds.

        The first settles everything once its budget is refuted; the others raise the bound where it takes too long. Each is
        taken up again where it was left unless its budget has changed. Budgets below `lower`, a bound on the whole, and from
        `upper` on, a peak of the whole, are of no use.
        """
        blocks = blocks_of(self.problem)
        rivals = np.argsort(-np.array(self.least, np.int64), kind="stable")
        for aim in ("below best", "lowest", "between"):
            upper = min(upper, self.upper)
            self.refuted = max(self.refuted, lower)
            if self.refuted >= upper:
                return
            budget = {"below best": upper - 1, "lowest": self.refuted, "between": (self.refuted + upper) // 2}[aim]
            if aim != "below best" and budget >= upper - 1:
                continue
            search = self.searches.get(aim)
            if search is None or search.budget != budget:
                search = self.searches[aim] = Search(self.problem, blocks, budget, rivals)
            answer, until = None, search.effort + patience
            while answer is None and search.effort < until:
                answer = search.advance(SEARCH_CHUNK)
                yield self.refuted
            if answer:
                self.consider(search.order, "search")
            elif answer is False:
                self.refuted = min(max(budget + 1, search.next_budget), upper)
            yield self.refuted
