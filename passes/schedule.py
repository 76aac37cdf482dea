"""The order that needs least memory, with a proof or with the gap that is left.

Cheap things first. The traced order and a portfolio of heuristics give an upper bound, minimum cuts a lower bound; most
networks are done when these meet, in plain Python. Only then come the numba kernels: cuts for the blocks that are left,
and a complete search under a budget, which is raised from below and lowered from above until both bounds meet or time is up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from ..compiler.graph import Graph
from .bounds import lower_bound
from .exact import BlockArrays, Search, compile_kernels, sweep_cuts
from .heuristics import PORTFOLIO
from .liveness import Inputs, check_inputs_mode, liveness
from .problem import OrderingProblem, ordering_problem
from .verify import verify_schedule

PYTHON_CUT_WORK = 4_000
KERNEL_CUT_WORK = 200_000
CHUNK = 20_000
FIRST_TRY = 50_000


@dataclass(frozen=True)
class Schedule:
    """An order of a graph's nodes and what is known about its peak.

    `order`: node id per step. `peak`: bytes it needs. `lower_bound`: bytes that every order needs; `optimal` when they are
    equal. `method`: what gave the order, and `; ` what gave the bound. `seconds`: time taken, without compiling kernels.
    `inputs`: how graph inputs were counted.
    """

    order: tuple[int, ...] = field(repr=False)
    peak: int
    lower_bound: int
    optimal: bool
    method: str
    seconds: float
    inputs: Inputs = "planned"


def schedule(graph: Graph, *, time_limit: float = 10.0, inputs: Inputs = "planned") -> Schedule:
    """An order of `graph` with the least peak found within `time_limit` seconds, and a lower bound on every order's peak.

    The traced order is kept when none is better. Reference cost: milliseconds when bounds meet, else the first call on a
    machine compiles kernels (cached on disk; not counted in `time_limit`). Equal graphs give equal results unless time runs
    out. Follows Liu (1987) and SERENITY (MLSys 2020) in searching over down-sets; the bounds are in `passes.bounds`.
    """
    check_inputs_mode(inputs)
    started = time.perf_counter()
    hunt = _Hunt(graph, inputs)
    for _ in hunt.stages():
        if hunt.lower >= hunt.upper or time.perf_counter() - started - hunt.compiling >= time_limit:
            break
    result = Schedule(hunt.order, hunt.upper, hunt.lower, hunt.lower == hunt.upper, hunt.method(), 0.0, inputs)
    verify_schedule(graph, result)
    return replace(result, seconds=time.perf_counter() - started - hunt.compiling)


class _Hunt:
    """The best order and bound so far. `stages` yields wherever the hunt may stop."""

    def __init__(self, graph: Graph, inputs: Inputs):
        self.graph = graph
        self.inputs: Inputs = inputs
        self.order = tuple(range(len(graph.nodes)))
        self.upper = liveness(graph, inputs=inputs).peak
        self.found_by = "traced"
        self.lower = 0
        self.bounded_by = "none"
        self.compiling = 0.0

    def method(self) -> str:
        return f"{self.found_by}; {self.bounded_by}"

    def stages(self) -> Iterator[None]:
        problem = ordering_problem(self.graph, self.inputs)
        self.lower, self.bounded_by = problem.floor, "ends"
        needs = self.consider(problem, range(len(problem)), "traced, merged")
        yield
        for name, heuristic in (("", None), *PORTFOLIO.items()):
            if heuristic is not None:
                found = self.consider(problem, heuristic(problem), name)
                needs = [min(a, b) for a, b in zip(needs, found, strict=True)]
                yield
            else:
                self.raise_lower(lower_bound(problem, needs, self.upper, work=PYTHON_CUT_WORK)[0], "cut")
                yield
        bound, complete = lower_bound(problem, needs, self.upper, work=PYTHON_CUT_WORK)
        self.raise_lower(bound, "cut")
        yield
        arrays = BlockArrays(problem)
        self.compile()
        if not complete:
            yield from self.sweep(problem, arrays, needs)
        yield from self.search(problem, arrays)

    def consider(self, problem: OrderingProblem, order: range | list[int] | np.ndarray, name: str) -> list[int]:
        """Keep `order` when it is better than the best so far; returns its needs."""
        needs = problem.needs(order if isinstance(order, range) else list(map(int, order)))
        peak = problem.peak(needs)
        if peak < self.upper:
            self.upper, self.order, self.found_by = peak, problem.expand(order), name
        return needs

    def raise_lower(self, bound: int, name: str) -> None:
        if bound > self.lower:
            self.lower, self.bounded_by = min(bound, self.upper), name

    def compile(self) -> None:
        """Load the kernels, compiled or from numba's cache; the time it takes is not the caller's."""
        started = time.perf_counter()
        compile_kernels()
        self.compiling += time.perf_counter() - started

    def sweep(self, problem: OrderingProblem, arrays: BlockArrays, needs: list[int]) -> Iterator[None]:
        least = np.array(needs, np.int64)
        candidates = np.argsort(-least, kind="stable")
        at = 0
        while at < len(candidates):
            bound, at = sweep_cuts(problem, arrays, candidates, at, least, self.lower, self.upper, KERNEL_CUT_WORK)
            self.raise_lower(bound, "cut")
            yield

    def search(self, problem: OrderingProblem, arrays: BlockArrays) -> Iterator[None]:
        """Alternate between the lowest budget not yet refuted and the middle of the gap, with growing patience."""
        patience = FIRST_TRY
        while self.lower < self.upper:
            known = (self.lower, self.upper)
            for budget in (self.lower, (self.lower + self.upper) // 2):
                if not self.lower <= budget < self.upper:
                    continue
                hunt = Search(problem, arrays, budget)
                answer = None
                while answer is None and hunt.states < patience:
                    answer = hunt.advance(CHUNK)
                    yield
                if answer:
                    self.consider(problem, hunt.order, "search")
                elif answer is False:
                    self.raise_lower(max(budget + 1, hunt.next_budget), "search")
            if known == (self.lower, self.upper):
                patience *= 4
