"""Branches of a peak formula: what recordings with symbolic sizes, or concrete traces at many, say about the bytes alive.

One symbolic recording gives a branch. Sizes at which it does not hold are recorded again, until a few recordings cover the probed
part of the declared ranges. Every branch is compared with concrete traces before it is believed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from ..compiler.errors import NeaptideError, TraceError
from ..compiler.graph import Graph
from .liveness import Inputs, Lifetimes, eager_liveness, liveness
from .polynomial import Ring, Size, Terms, constant, plus
from .regions import Region, joined, region_of

if TYPE_CHECKING:
    import sympy

PROBES = (1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
BRANCHES = 12
DEGREE = 2

# A size as given: its name, (name, min, max), (name, min, max, step), or a `Size`.
SizeLike = str | tuple[Any, ...] | Size


@dataclass(frozen=True)
class Branch:
    """Pieces of a peak, in bytes, and where they hold.

    `pieces`: sympy polynomials; the peak is their maximum. `regions`: where it is. `recorded_at`: the sizes of the recording it
    comes from.
    """

    pieces: tuple[sympy.Expr, ...]
    regions: tuple[Region, ...]
    recorded_at: Mapping[str, int]
    terms: tuple[Terms, ...] = field(repr=False)

    def holds(self, sizes: Sequence[Size], at: Mapping[str, int]) -> bool:
        """Whether the branch says something about the sizes `at`."""
        return any(region.contains(sizes, at) for region in self.regions)


class Recordings:
    """One request for a formula: what varies, how to record it, and how to check."""

    def __init__(self, model: Any, args: Any, kwargs: Any, dynamic: Any, which: str, inputs: Inputs, mode: str, loss: Any, optimizer: Any):
        import torch

        from ..compiler.trace import as_module

        self.model = as_module(model)
        self.name = type(self.model).__name__
        self.args = (args,) if isinstance(args, torch.Tensor) else tuple(args)
        self.kwargs = dict(kwargs or {})
        self.which, self.mode = which, mode
        self.inputs: Inputs = inputs
        self.training = {"loss": loss, "optimizer": optimizer} if mode == "training" else {}
        self.sizes, self.dims, self.at = _read_dynamic(self.model, self.args, self.kwargs, dynamic)
        self.ring = Ring(self.sizes)

    # ---- concrete traces ----------------------------------------------------------------------------------------

    def traced(self, at: Mapping[str, int]) -> Graph:
        """A concrete trace with the varying dimensions at the sizes `at`."""
        from ..compiler.structure import map_tensors
        from ..compiler.symbolic import quiet
        from ..compiler.trace import trace

        def resized(tensor: Any) -> Any:
            dims = self.dims.get(id(tensor))
            return tensor if dims is None else _tiled(tensor, {d: at[n] for d, n in dims.items()})

        args, kwargs = map_tensors(resized, list(self.args)), map_tensors(resized, self.kwargs)
        with quiet():
            return trace(self.model, args, kwargs, mode=self.mode, **self.training)

    def lifetimes(self, graph: Graph) -> Lifetimes:
        return liveness(graph, inputs=self.inputs) if self.which == "graph" else eager_liveness(graph, inputs=self.inputs)

    def agrees(self, branch: Branch, at: Mapping[str, int]) -> bool:
        """Whether a concrete trace at `at` has the peak that `branch` says."""
        return max(self.ring.value(t, at) for t in branch.terms) == self.lifetimes(self.traced(at)).peak

    # ---- from symbolic recordings -------------------------------------------------------------------------------

    def symbolic(self) -> tuple[tuple[Branch, ...], tuple[Mapping[str, int], ...]]:
        """Branches over as much of the ranges as a few recordings cover, and the sizes at which they were checked."""
        base = {s.name: 2 if self.at[s.name] < 2 and s.allows(2) else self.at[s.name] for s in self.sizes}
        first = self.recorded(base)
        for size, (low, high) in zip(self.sizes, first.regions[0].bounds, strict=True):
            if low == high and low > 1 and size.least != size.most():
                raise TraceError(f"a recording with symbolic sizes holds for {size.name} = {low} only")
        checked: list[Mapping[str, int]] = []
        for at in (base, *itertools.islice((p for p in self.elsewhere() if first.holds(self.sizes, p)), 2)):
            if not self.agrees(first, at):
                raise TraceError(f"the symbolic recording and a concrete trace differ at {listed(at)}")
            checked.append(at)
        branches = [first]
        edges, probes = [*self.edges(first)], [*self.probes()]
        while (edges or probes) and len(branches) < BRANCHES:
            at = (edges or probes).pop(0)
            if any(b.holds(self.sizes, at) for b in branches):
                continue
            with suppress(TraceError):
                branch = self.recorded(at)
                if branch.holds(self.sizes, at) and self.agrees(branch, at):
                    branches.append(branch)
                    checked.append(at)
                    edges += self.edges(branch)
        return tuple(self.merged(branches)), tuple(checked)

    def recorded(self, at: Mapping[str, int]) -> Branch:
        """The branch that one symbolic recording at the sizes `at` gives; where all of them are 0 or 1, one concrete trace."""
        from ..compiler.symbolic import record_symbolic

        if all(value < 2 for value in at.values()):
            import sympy

            graph = self.traced(at)
            fixed = [sympy.Eq(s.symbol, at[s.name]) for s in self.sizes]
            return self.branch(graph, [constant(s.nbytes) for s in graph.storages], fixed, at)
        symbols = {s.name: s.symbol for s in self.sizes}
        recording = record_symbolic(self.model, self.args, self.kwargs, self.dims, at, symbols, mode=self.mode, **self.training)
        nbytes = [self.ring.read(e) for e in recording.nbytes]
        return self.branch(recording.graph, nbytes, recording.guards, at)

    def branch(self, graph: Graph, nbytes: Sequence[Terms], guards: Iterable[Any], at: Mapping[str, int]) -> Branch:
        """Bytes alive at every step, less those steps that are proven to be no peak where `guards` hold."""
        region = region_of(self.ring, guards)
        profile = _profile(self.lifetimes(graph), nbytes)
        terms = tuple(self.ring.undominated(profile, region.box(self.ring))) or (constant(0),)
        return Branch(tuple(self.ring.write(t) for t in terms), (region,), dict(at), terms)

    def edges(self, branch: Branch) -> Iterator[dict[str, int]]:
        """Sizes just outside of what one recording holds for, one size at a time."""
        for region in branch.regions:
            for size, (low, high) in zip(self.sizes, region.bounds, strict=True):
                for value in (low - size.step, None if high is None else high + size.step):
                    if value is not None and size.allows(value):
                        yield {**branch.recorded_at, size.name: value}

    def probes(self) -> Iterator[dict[str, int]]:
        """Sizes that may lie in other branches still: each size alone over its range, then all at their least and all at their most."""
        for size in self.sizes:
            values = {size.least * size.step, *PROBES, *(p * size.step for p in PROBES), size.most(0) * size.step}
            yield from ({**self.at, size.name: value} for value in sorted(values) if size.allows(value))
        for pick in itertools.product(*((s.least * s.step, self.at[s.name], s.most(64) * s.step) for s in self.sizes)):
            at = {s.name: value for s, value in zip(self.sizes, pick, strict=True)}
            if all(s.allows(at[s.name]) for s in self.sizes):
                yield at

    def elsewhere(self) -> Iterator[dict[str, int]]:
        """Sizes other than the example's, near and far, for checks: all sizes at once, each in its range."""
        for k in (1, 3, 2, 5, 8, -1):
            at = {s.name: self.at[s.name] + s.step * (k + 2 * i) for i, s in enumerate(self.sizes)}
            if all(s.allows(at[s.name]) for s in self.sizes):
                yield at

    def merged(self, branches: Sequence[Branch]) -> list[Branch]:
        """Branches with the same pieces become one; so does a branch at a fixed size that another one's pieces describe as well."""
        out: list[Branch] = []
        for branch in sorted(branches, key=lambda b: sum(low == high for r in b.regions for low, high in r.bounds)):
            for i, other in enumerate(out):
                if self._describes(other, branch):
                    out[i] = replace(other, regions=joined((*other.regions, *branch.regions), self.sizes))
                    break
            else:
                out.append(branch)
        return sorted(out, key=lambda b: not b.holds(self.sizes, self.at))

    def _describes(self, one: Branch, other: Branch) -> bool:
        """Whether the pieces of `one` give the same peak as those of `other` wherever `other` holds; True only when proven."""
        for region in other.regions:
            fixed = {s.name: low for s, (low, high) in zip(self.sizes, region.bounds, strict=True) if low == high}
            box = region.box(self.ring)
            here = self.ring.undominated((self.ring.fix(t, fixed) for t in one.terms), box)
            there = self.ring.undominated((self.ring.fix(t, fixed) for t in other.terms), box)
            if {frozenset(t.items()) for t in here} != {frozenset(t.items()) for t in there}:
                return False
        return True

    # ---- from concrete traces -----------------------------------------------------------------------------------

    def sampled(self) -> tuple[tuple[Branch, ...], tuple[Mapping[str, int], ...]]:
        """Branches whose storages are interpolated over grids of concrete traces: sizes from 2 on, then those at 1 apart."""
        ones = [s.name for s in self.sizes if s.allows(1)]
        branches: list[Branch] = []
        checked: list[Mapping[str, int]] = []
        for n in range(len(ones) + 1):
            for fixed in itertools.combinations(ones, n):
                try:
                    branch, seen = self._interpolated(fixed)
                except (NeaptideError, TraceError):
                    if not branches:
                        raise
                    continue
                branches.append(branch)
                checked += seen
        return tuple(self.merged(branches)), tuple(checked)

    def _interpolated(self, fixed: Sequence[str]) -> tuple[Branch, list[Mapping[str, int]]]:
        """One branch with the sizes `fixed` at 1, checked at sizes off its grid."""
        import sympy

        grid = [[1] if s.name in fixed else self._samples(s) for s in self.sizes]
        graphs = {index: self.traced(self._at(grid, index)) for index in itertools.product(*(range(len(g)) for g in grid))}
        corner = (0,) * len(grid)
        first, start = graphs[corner], self._at(grid, corner)
        for index, graph in graphs.items():
            if _structure(graph) != _structure(first):
                raise NeaptideError(
                    f"{self.name} has no formula: at {listed(self._at(grid, index))} it runs other ops, or on other storages, than at "
                    f"{listed(start)}, and it cannot be recorded with symbolic sizes"
                )
        nbytes = [_interpolate(grid, {i: graph.storages[s].nbytes for i, graph in graphs.items()}) for s in range(len(first.storages))]
        guards = [(sympy.Eq if s.name in fixed else sympy.Ge)(s.symbol, start[s.name]) for s in self.sizes]
        branch = self.branch(first, nbytes, guards, start)
        checked: list[Mapping[str, int]] = []
        for offset in (1, 4) if len(fixed) < len(grid) else ():
            at = {s.name: s.step * (grid[i][-1] + (0 if s.name in fixed else offset)) for i, s in enumerate(self.sizes)}
            if not all(s.allows(at[s.name]) for s in self.sizes):
                continue
            if not self.agrees(branch, at):
                raise NeaptideError(f"{self.name} has no formula: a storage is no polynomial of degree {DEGREE} (seen at {listed(at)})")
            checked.append(at)
        return branch, checked or [start]

    def _samples(self, size: Size) -> list[int]:
        """Values over the step, from 2 on: one more than the degree."""
        start = max(size.least, 2)
        samples = [t for t in range(start, start + 2 * DEGREE + 1, 2) if t <= size.most(t)]
        if len(samples) <= DEGREE:
            samples = [t for t in range(size.least, size.least + DEGREE + 1) if t <= size.most(t)]
        return samples

    def _at(self, grid: Sequence[Sequence[int]], index: Sequence[int]) -> dict[str, int]:
        return {s.name: grid[i][k] * s.step for i, (s, k) in enumerate(zip(self.sizes, index, strict=True))}


# ---- the request ----------------------------------------------------------------------------------------------------------


def _read_dynamic(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic: Mapping[Any, Mapping[int, SizeLike]]
) -> tuple[tuple[Size, ...], dict[int, dict[int, str]], dict[str, int]]:
    """Sizes in the order they are named, dimensions that vary per tensor (by identity), and the example's sizes."""
    from ..compiler.structure import tensors_in
    from ..compiler.trace import parameter_names

    names = parameter_names(model, len(args))
    found = {path: t for n, value in (*zip(names, args, strict=True), *kwargs.items()) for path, t in tensors_in(value, n)}
    sizes: dict[str, Size] = {}
    dims: dict[int, dict[int, str]] = {}
    at: dict[str, int] = {}
    for key, wanted in dynamic.items():
        path = names[key] if isinstance(key, int) and 0 <= key < len(names) else key
        if path not in found:
            raise NeaptideError(f"dynamic names {key!r}, which is no tensor among the arguments: {', '.join(found) or 'there are none'}")
        tensor = found[path]
        for dim, like in wanted.items():
            if not -tensor.dim() <= dim < tensor.dim():
                raise NeaptideError(f"dynamic names dimension {dim} of {path}, which has {tensor.dim()}")
            size = like if isinstance(like, Size) else Size(like) if isinstance(like, str) else Size(*like)
            if sizes.setdefault(size.name, size) != size and like != size.name:
                raise NeaptideError(f"size {size.name} is declared twice, as {sizes[size.name]} and as {size}")
            have = tensor.shape[dim]
            if at.setdefault(size.name, have) != have:
                raise NeaptideError(
                    f"size {size.name} is {at[size.name]} in one place of the example and {have} in dimension {dim} of {path}"
                )
            dims.setdefault(id(tensor), {})[dim % tensor.dim()] = size.name
    if not sizes:
        raise NeaptideError("dynamic names no size: say which dimensions vary, such as dynamic={'x': {0: 'B'}}")
    for size in sizes.values():
        if not size.allows(at[size.name]):
            raise NeaptideError(f"the example has {size.name}={at[size.name]}, outside its own range: {size}")
    return tuple(sizes.values()), dims, at


def _tiled(tensor: Any, shape: Mapping[int, int]) -> Any:
    """`tensor` with other sizes in some dimensions, its values repeated, dense in the same order of strides."""
    import torch

    order = sorted(range(tensor.dim()), key=lambda d: (-tensor.stride(d), d))
    out = tensor.detach().permute(order)
    for d, n in shape.items():
        out = out.index_select(order.index(d), torch.arange(n, device=tensor.device) % max(tensor.shape[d], 1))
    return out.contiguous().permute([order.index(d) for d in range(tensor.dim())])


# ---- profiles and polynomials --------------------------------------------------------------------------------------------------


def _profile(lifetimes: Lifetimes, nbytes: Sequence[Terms]) -> list[Terms]:
    """Bytes alive at each step at which something is born."""
    steps = len(lifetimes.order)
    born: list[list[int]] = [[] for _ in range(steps + 1)]
    dead: list[list[int]] = [[] for _ in range(steps + 1)]
    for s, (birth, death) in enumerate(zip(lifetimes.birth.tolist(), lifetimes.death.tolist(), strict=True)):
        if birth >= 0 and nbytes[s]:
            born[birth].append(s)
            dead[death].append(s)
    out: list[Terms] = []
    live: Terms = {}
    for step in range(steps):
        for s in dead[step]:
            live = plus(live, nbytes[s], -1)
        for s in born[step]:
            live = plus(live, nbytes[s])
        if born[step]:
            out.append(live)
    return out


def _structure(graph: Graph) -> Any:
    """What has to be the same at all sizes for storages to be the same ones."""
    return (
        [(n.op, n.inputs, n.outputs, n.writes) for n in graph.nodes],
        [(t.storage, t.dtype) for t in graph.tensors],
        [s.role for s in graph.storages],
        graph.released,
    )


def _interpolate(grid: Sequence[Sequence[int]], values: Mapping[tuple[int, ...], int]) -> Terms:
    """The polynomial through `values` over the grid, of degree below the number of samples in each generator."""
    coefficients: dict[tuple[int, ...], Fraction] = {i: Fraction(v) for i, v in values.items()}
    for axis, samples in enumerate(grid):
        basis = [_lagrange(samples, k) for k in range(len(samples))]
        moved: dict[tuple[int, ...], Fraction] = {}
        for index, c in coefficients.items():
            for power, b in enumerate(basis[index[axis]]):
                key = (*index[:axis], power, *index[axis + 1 :])
                moved[key] = moved.get(key, Fraction(0)) + b * c
        coefficients = moved
    return {tuple((g, e) for g, e in enumerate(powers) if e): c for powers, c in coefficients.items() if c}


def _lagrange(samples: Sequence[int], k: int) -> list[Fraction]:
    """Coefficients, constant first, of the polynomial that is 1 at sample `k` and 0 at the others."""
    out = [Fraction(1)]
    for j, x in enumerate(samples):
        if j != k:
            scale = Fraction(1, samples[k] - x)
            shifted = [Fraction(0), *out]
            out = [scale * (shifted[i] - x * (out[i] if i < len(out) else 0)) for i in range(len(shifted))]
    return out


def listed(at: Mapping[str, int]) -> str:
    """Sizes in words: `B=8, S=128`."""
    return ", ".join(f"{n}={v}" for n, v in at.items())
