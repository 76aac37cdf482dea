"""Where a formula holds: a box of sizes and what else has to be true in it.

A recording with symbolic sizes takes some answers for granted (`B < 16`). Those that bound one size by a number make a box; those that
the box proves are dropped; the others are kept as conditions. Regions whose boxes meet are joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .polynomial import Box, Ring, Size, constant, plus


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
    bounds: list[tuple[int, int | None]] = [(s.min, s.max) for s in ring.sizes]
    others = [guard for guard in guards if not _narrow(bounds, guard, ring.sizes)]
    region = Region(tuple(bounds))
    rest = (_plain(ring, g) for g in others if not _proven(ring, g, region.box(ring)))
    return replace(region, rest=tuple(dict.fromkeys(rest)))


def joined(regions: Iterable[Region]) -> tuple[Region, ...]:
    """The same sizes in fewer regions: two that differ in one size only, and meet there, become one."""
    out: list[Region] = []
    for region in regions:
        out.append(region)
        merging = True
        while merging:
            merging = False
            for i, other in enumerate(out[:-1]):
                union = _union(other, out[-1])
                if union is not None:
                    out[i : i + 1] = []
                    out[-1] = union
                    merging = True
                    break
    return tuple(out)


def _union(a: Region, b: Region) -> Region | None:
    differ = [i for i, (x, y) in enumerate(zip(a.bounds, b.bounds, strict=True)) if x != y]
    if a.rest != b.rest or len(differ) > 1:
        return None
    if not differ:
        return a
    (i,) = differ
    (low, high), (low2, high2) = sorted((a.bounds[i], b.bounds[i]), key=lambda r: r[0])
    if high is not None and low2 > high + 1:
        return None
    top = None if high is None or high2 is None else max(high, high2)
    return replace(a, bounds=(*a.bounds[:i], (low, top), *a.bounds[i + 1 :]))


def _narrow(bounds: list[tuple[int, int | None]], guard: Any, sizes: Sequence[Size]) -> bool:
    """Narrow `bounds` by a guard that bounds one size by a number; whether it is such a one."""
    import sympy

    if not isinstance(guard, sympy.core.relational.Relational):
        return False
    if isinstance(guard.rhs, sympy.Symbol) and isinstance(guard.lhs, sympy.Integer):
        guard = guard.reversed
    limit = guard.rhs
    i = next((i for i, s in enumerate(sizes) if guard.lhs == s.symbol), None)
    if i is None or not isinstance(limit, sympy.Integer) or isinstance(guard, sympy.Ne):
        return False
    low, high = bounds[i]
    bound = int(limit)
    if isinstance(guard, sympy.Ge | sympy.Gt | sympy.Eq):
        low = max(low, bound + isinstance(guard, sympy.Gt))
    if isinstance(guard, sympy.Le | sympy.Lt | sympy.Eq):
        most = bound - isinstance(guard, sympy.Lt)
        high = most if high is None else min(high, most)
    bounds[i] = (low, high)
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
