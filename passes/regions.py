"""Where a formula holds: a box of sizes and what else has to be true in it.

A recording with symbolic sizes takes some answers for granted (`B < 16`). Those that bound one size by a number make a box; those that
the box proves are dropped; the others are kept as conditions. Regions whose boxes meet are joined.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .polynomial import Box, Ring, Size, constant, plus

FAR = 1 << 40


@dataclass(frozen=True)
class Region:
    """`bounds`: least and greatest value (None: unbounded) per size, in order; `rest`: sympy conditions that hold besides."""

    bounds: tuple[tuple[int, int | None], ...]
    rest: tuple[Any, ...] = ()

    def contains(self, sizes: Sequence[Size], at: Mapping[str, int]) -> bool:
        """Whether the sizes `at` lie in the region."""
        inside = all(low <= at[s.name] and (high is None or at[s.name] <= high) for s, (low, high) in zip(sizes, self.bounds, strict=True))
        return inside and all(_holds(condition, at) for condition in self.rest)

    def conditions(self, sizes: Sequence[Size]) -> tuple[Any, ...]:
        """The region as sympy conditions, less what the declared ranges say already."""
        import sympy

        out: list[Any] = []
        for size, (low, high) in zip(sizes, self.bounds, strict=True):
            if low == high:
                out.append(sympy.Eq(size.symbol, low, evaluate=False))
                continue
            if low > size.min:
                out.append(sympy.Ge(size.symbol, low, evaluate=False))
            if high is not None and high != size.max:
                out.append(sympy.Le(size.symbol, high, evaluate=False))
        return (*out, *self.rest)

    def text(self, sizes: Sequence[Size]) -> str:
        """The region in words; "always" when it is all of the declared ranges."""
        parts: list[str] = []
        for size, (low, high) in zip(sizes, self.bounds, strict=True):
            if low == high:
                parts.append(f"{size.name} = {low}")
            elif low > size.min or high != size.max:
                parts.append((f"{low} <= " if low > size.min else "") + size.name + (f" <= {high}" if high != size.max else ""))
        return " and ".join([*parts, *map(str, self.rest)]) or "always"

    def box(self, ring: Ring) -> Box:
        """Bounds of the generators of `ring` in the region."""
        inside = [
            (-(-low // s.step), None if high is None else high // s.step) for s, (low, high) in zip(ring.sizes, self.bounds, strict=True)
        ]
        return [*inside, *ring.box()[len(inside) :]]


def region_of(ring: Ring, guards: Iterable[Any]) -> Region:
    """The region in which all `guards`, conditions over the sizes of `ring`, hold."""
    bounds: list[tuple[int, int | None]] = [(s.least, s.most()) for s in ring.sizes]
    others = [g for g in guards if not _narrow(bounds, g, ring)]
    others = [g for g in others if not _narrow(bounds, g, ring)]
    region = Region(
        tuple((low * s.step, None if high is None else high * s.step) for s, (low, high) in zip(ring.sizes, bounds, strict=True))
    )
    rest = [_plain(ring, g) for g in others if not _proven(ring, g, region.box(ring))]
    return replace(region, rest=tuple(dict.fromkeys(rest)))


def joined(regions: Iterable[Region], sizes: Sequence[Size]) -> tuple[Region, ...]:
    """The same sizes in fewer regions: two that differ in one size only, and meet there, become one."""
    out: list[Region] = []
    for region in regions:
        out.append(region)
        merging = True
        while merging:
            merging = False
            for i, other in enumerate(out[:-1]):
                union = _union(other, out[-1], sizes)
                if union is not None:
                    out[i : i + 1] = []
                    out[-1] = union
                    merging = True
                    break
    return tuple(out)


def _union(a: Region, b: Region, sizes: Sequence[Size]) -> Region | None:
    differ = [i for i, (x, y) in enumerate(zip(a.bounds, b.bounds, strict=True)) if x != y]
    if a.rest != b.rest or len(differ) > 1:
        return None
    if not differ:
        return a
    (i,) = differ
    (low, high), (low2, high2) = sorted((a.bounds[i], b.bounds[i]), key=lambda r: r[0])
    if high is not None and low2 > high + sizes[i].step:
        return None
    top = None if high is None or high2 is None else max(high, high2)
    return replace(a, bounds=(*a.bounds[:i], (low, top), *a.bounds[i + 1 :]))


def _narrow(bounds: list[tuple[int, int | None]], guard: Any, ring: Ring) -> bool:
    """Narrow `bounds`, in steps, by a guard on one size whose sides drift apart as it grows; whether it is such a one.

    The size at which the difference of the sides changes its sign is found by bisection.
    """
    import sympy

    if guard == sympy.true:
        return True
    if not isinstance(guard, sympy.core.relational.Relational) or len(guard.free_symbols) != 1:
        return False
    (symbol,) = guard.free_symbols
    i = next(i for i, s in enumerate(ring.sizes) if s.symbol == symbol)
    size, (low, high) = ring.sizes[i], bounds[i]
    difference = plus(ring.read(guard.lhs), ring.read(guard.rhs), -1)
    kind: Any = type(guard)
    if not ring.never_falls(difference):
        difference = plus({}, difference, -1)
        kind = {sympy.Ge: sympy.Le, sympy.Gt: sympy.Lt, sympy.Le: sympy.Ge, sympy.Lt: sympy.Gt}.get(kind, kind)
        if not ring.never_falls(difference):
            return False

    def first(least: int) -> int:
        """Smallest t from `low` on where the difference is at least `least`; one past `high` or a huge number if there is none."""
        end = FAR if high is None else high + 1
        return low + bisect_left(range(low, end), True, key=lambda t: ring.value(difference, {size.name: t * size.step}) >= least)

    zero, positive = first(0), first(1)
    below = None if positive >= FAR else positive - 1
    if kind in (sympy.Ge, sympy.Gt):
        bounds[i] = (zero if kind is sympy.Ge else positive, high)
    elif kind in (sympy.Le, sympy.Lt):
        top = positive - 1 if kind is sympy.Le else zero - 1
        bounds[i] = (low, high if top >= FAR - 1 else top)
    elif kind is sympy.Eq:
        bounds[i] = (zero, below)
    elif zero == low:
        bounds[i] = (positive, high)
    elif zero < positive:
        return False
    return True


def _proven(ring: Ring, guard: Any, box: Box) -> bool:
    """Whether `guard` is true everywhere in `box`."""
    import sympy

    if guard == sympy.true:
        return True
    if not isinstance(guard, sympy.core.relational.Relational):
        return False
    difference = plus(ring.read(guard.lhs), ring.read(guard.rhs), -1)
    box = [*box, *ring.box()[len(box) :]]
    above = ring.non_negative(plus(difference, constant(1), -1), box)
    below = ring.non_negative(plus(constant(-1), difference, -1), box)
    proofs = {
        sympy.Ne: above or below,
        sympy.Gt: above,
        sympy.Lt: below,
        sympy.Ge: ring.non_negative(difference, box),
        sympy.Le: ring.non_negative(plus({}, difference, -1), box),
    }
    return proofs.get(type(guard), False)


def _plain(ring: Ring, guard: Any) -> Any:
    """A guard in plain sympy, its sides as polynomials."""
    import sympy

    if isinstance(guard, sympy.core.relational.Relational):
        return guard.func(ring.write(ring.read(guard.lhs)), ring.write(ring.read(guard.rhs)))
    if isinstance(guard, sympy.And | sympy.Or | sympy.Not):
        return guard.func(*(_plain(ring, g) for g in guard.args))
    return guard


def _holds(condition: Any, at: Mapping[str, int]) -> bool:
    import sympy

    return bool(condition.xreplace({s: sympy.Integer(at[s.name]) for s in condition.free_symbols}))
