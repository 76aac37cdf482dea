"""Exact polynomials in sizes, and proofs that one of them is never below another.

A size (batch, length, resolution) is a whole number in a declared range and, maybe, a multiple of a step. A `Ring` turns
integer expressions over such sizes into polynomials in `size / step`, with rational coefficients. Rounding goes away where it is
exact (`(32*t - 1) // 2` is `16*t - 1`); a quotient that truly rounds becomes a generator of its own, a whole number >= 0. What is
no polynomial at all (a maximum, say) becomes a generator of unknown sign.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING, Any

from ..compiler.errors import NeaptideError

if TYPE_CHECKING:
    import sympy

PAIRED = 40

# (generator, exponent > 0) pairs, ascending; () is the constant term.
Monomial = tuple[tuple[int, int], ...]
# Coefficient per monomial, none of them 0.
Terms = dict[Monomial, Fraction]
# Least and greatest whole value per generator, None for unbounded.
Box = Sequence[tuple[int | None, int | None]]


@dataclass(frozen=True)
class Size:
    """A size by name: a whole number from `min` to `max` (None: unbounded) that is a multiple of `step`."""

    name: str
    min: int = 1
    max: int | None = None
    step: int = 1

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise NeaptideError(f"size {self.name!r} is not a name: use letters, digits and underscores, such as 'B'")
        if self.min < 0 or self.step < 1 or self.least > self.most(self.least):
            raise NeaptideError(f"size {self.name}: no multiple of {self.step} lies between {self.min} and {self.max}")

    @property
    def least(self) -> int:
        """Smallest allowed value over `step`."""
        return -(-self.min // self.step)

    def most(self, unbounded: Any = None) -> Any:
        """Largest allowed value over `step`; `unbounded` when there is none."""
        return unbounded if self.max is None else self.max // self.step

    def allows(self, value: int) -> bool:
        """Whether `value` is in the range and a multiple of the step."""
        return value % self.step == 0 and self.least <= value // self.step <= self.most(value // self.step)

    @cached_property
    def symbol(self) -> sympy.Symbol:
        import sympy

        return sympy.Symbol(self.name, integer=True, positive=self.min > 0, nonnegative=True)

    def __str__(self) -> str:
        upper = "" if self.max is None else f" <= {self.max}"
        return f"{self.min} <= {self.name}{upper}" + (f", a multiple of {self.step}" if self.step > 1 else "")


def plus(a: Terms, b: Terms, factor: Fraction | int = 1) -> Terms:
    """a + factor * b."""
    out = dict(a)
    for monomial, coefficient in b.items():
        total = out.get(monomial, Fraction(0)) + factor * coefficient
        if total:
            out[monomial] = total
        else:
            out.pop(monomial, None)
    return out


def times(a: Terms, b: Terms) -> Terms:
    """a * b."""
    out: Terms = {}
    for m, c in a.items():
        for n, d in b.items():
            powers = dict(m)
            for g, e in n:
                powers[g] = powers.get(g, 0) + e
            monomial = tuple(sorted(powers.items()))
            total = out.get(monomial, Fraction(0)) + c * d
            if total:
                out[monomial] = total
            else:
                out.pop(monomial, None)
    return out


def constant(value: int | Fraction) -> Terms:
    """The polynomial that is `value` everywhere."""
    return {(): Fraction(value)} if value else {}


@dataclass(frozen=True)
class Generator:
    """What a variable of a polynomial stands for: its value over known sizes, its sympy form, and whether it is known to be >= 0."""

    value: Callable[[Mapping[str, int]], int]
    expression: sympy.Expr
    non_negative: bool


class Ring:
    """Polynomials over `sizes` and whatever else expressions bring in; the first generators are the sizes over their steps."""

    def __init__(self, sizes: Sequence[Size]):
        self.sizes = tuple(sizes)
        self.generators = [Generator(lambda at, s=s: at[s.name] // s.step, s.symbol / s.step, True) for s in self.sizes]
        self._index = {s.name: i for i, s in enumerate(self.sizes)}
        self._found: dict[Any, int] = {}
        self._read: dict[sympy.Expr, Terms] = {}

    # ---- from and to sympy --------------------------------------------------------------------------------------

    def read(self, expression: Any) -> Terms:
        """The polynomial that `expression`, an integer-valued sympy expression over the names of the sizes, stands for."""
        import sympy

        expression = sympy.sympify(expression)
        known = self._read.get(expression)
        if known is None:
            known = self._read[expression] = self._parse(expression)
        return known

    def _parse(self, e: Any) -> Terms:
        if e.is_Rational:
            return constant(Fraction(int(e.p), int(e.q)))
        if e.is_Symbol:
            if e.name not in self._index:
                raise NeaptideError(f"size {e.name} is none of {', '.join(self._index) or 'the declared ones'}")
            i = self._index[e.name]
            return {((i, 1),): Fraction(self.sizes[i].step)}
        if e.is_Add:
            out: Terms = {}
            for part in e.args:
                out = plus(out, self.read(part))
            return out
        if e.is_Mul or (e.is_Pow and e.exp.is_Integer and e.exp >= 0):
            out = constant(1)
            for factor in e.args if e.is_Mul else [e.base] * int(e.exp):
                out = times(out, self.read(factor))
            return out
        kind = type(e).__name__
        if kind in ("floor", "FloorDiv", "CleanDiv", "CeilDiv", "Mod", "PythonMod"):
            a, b = map(self.read, e.args[0].as_numer_denom() if kind == "floor" else e.args)
            quotient = self._quotient(plus({}, a, -1) if kind == "CeilDiv" else a, b)
            if quotient is not None and kind == "CeilDiv":
                return plus({}, quotient, -1)
            if quotient is not None:
                return plus(a, times(quotient, b), -1) if kind.endswith("Mod") else quotient
        return self._generator(e, e, lambda at: self._number(e, at), False)

    def _quotient(self, a: Terms, b: Terms) -> Terms | None:
        """a // b where b is a whole number > 0 and the coefficients of a are whole; None elsewhere."""
        import sympy

        if set(b) != {()} or b[()] < 0 or b[()].denominator != 1 or any(c.denominator != 1 for c in a.values()):
            return None
        divisor = int(b[()])
        whole = {m: Fraction(c.numerator // divisor) for m, c in a.items() if c.numerator // divisor}
        rest = {m: Fraction(c.numerator % divisor) for m, c in a.items() if c.numerator % divisor}
        if set(rest) <= {()}:
            return whole
        if not all(self.generators[g].non_negative for m in rest for g, _ in m):
            return None
        form = sympy.floor(self.write(rest) / divisor)
        key = (frozenset(rest.items()), divisor)
        return plus(whole, self._generator(key, form, lambda at: int(self.value(rest, at)) // divisor, True))

    def _generator(self, key: Any, form: Any, value: Callable[[Mapping[str, int]], int], non_negative: bool) -> Terms:
        if key not in self._found:
            self._found[key] = len(self.generators)
            self.generators.append(Generator(value, form, non_negative))
        return {((self._found[key], 1),): Fraction(1)}

    def _number(self, e: Any, at: Mapping[str, int]) -> int:
        import sympy

        return int(e.xreplace({s: sympy.Integer(at[s.name]) for s in e.free_symbols}))

    def write(self, terms: Terms) -> sympy.Expr:
        """`terms` as a sympy expression in the symbols of the sizes."""
        import sympy

        parts = []
        for monomial, c in terms.items():
            powers = [self.generators[g].expression ** n for g, n in monomial]
            parts.append(sympy.Mul(sympy.Rational(c.numerator, c.denominator), *powers))
        return sympy.expand(sympy.Add(*parts))

    def value(self, terms: Terms, at: Mapping[str, int]) -> Fraction:
        """`terms` where each size has the value `at[name]`."""
        values: dict[int, int] = {}
        total = Fraction(0)
        for monomial, c in terms.items():
            product = 1
            for g, n in monomial:
                if g not in values:
                    values[g] = self.generators[g].value(at)
                product *= values[g] ** n
            total += c * product
        return total

    def fix(self, terms: Terms, at: Mapping[str, int]) -> Terms:
        """`terms` where the sizes named in `at` have these values and the others vary."""
        import sympy

        if not at:
            return terms
        values = {s.symbol: sympy.Integer(at[s.name]) for s in self.sizes if s.name in at}
        return self.read(self.write(terms).xreplace(values))

    # ---- proofs -------------------------------------------------------------------------------------------------

    def box(self) -> list[tuple[int | None, int | None]]:
        """Bounds of every generator that follow from the declared ranges."""
        bounds: list[tuple[int | None, int | None]] = [(s.least, s.most()) for s in self.sizes]
        return bounds + [(0 if g.non_negative else None, None) for g in self.generators[len(bounds) :]]

    def non_negative(self, terms: Terms, box: Box) -> bool:
        """True only when `terms` is proven to be >= 0 everywhere in `box`.

        Each bounded generator is rewritten as its lower bound plus a variable >= 0, or, between two bounds, in the Bernstein basis;
        no negative coefficient then means no negative value.
        """
        found = _coefficients(terms, box, _degrees(terms))
        return found is not None and all(c >= 0 for c in found.values())

    def never_falls(self, terms: Terms) -> bool:
        """True only when `terms` is known not to fall when a size grows: a sum of products of generators that never fall."""
        return all(c >= 0 and all(self.generators[g].non_negative for g, _ in m) for m, c in terms.items() if m)

    def undominated(self, candidates: Iterable[Terms], box: Box) -> list[Terms]:
        """`candidates` less those that are proven to be below the maximum of the others everywhere in `box`; largest first at a corner.

        One is dropped when another one, or a mean of two others with fixed weights, is proven to be at least as large.
        """
        corner = {s.name: s.step * (box[i][1] or max(4 * (box[i][0] or 1), 64)) for i, s in enumerate(self.sizes)}
        distinct = list({frozenset(t.items()): t for t in candidates}.values())
        distinct.sort(key=lambda t: self.value(t, corner), reverse=True)
        kept: list[Terms] = []
        for terms in distinct:
            if not any(self.non_negative(plus(other, terms, -1), box) for other in kept):
                kept = [other for other in kept if not self.non_negative(plus(terms, other, -1), box)] + [terms]
        for terms in list(kept) if len(kept) <= PAIRED else ():
            others = [t for t in kept if t is not terms]
            if any(_below_a_mean(terms, a, b, box) for a, b in combinations(others, 2)):
                kept = others
        return kept


def _below_a_mean(terms: Terms, a: Terms, b: Terms, box: Box) -> bool:
    """Whether `w * a + (1 - w) * b >= terms` everywhere in `box` is proven for one weight w in [0, 1]."""
    over_a, over_b = plus(a, terms, -1), plus(b, terms, -1)
    degrees = _degrees(over_a, over_b)
    rows_a, rows_b = _coefficients(over_a, box, degrees), _coefficients(over_b, box, degrees)
    if rows_a is None or rows_b is None:
        return False
    low, high = Fraction(0), Fraction(1)
    for monomial in {*rows_a, *rows_b}:
        x, y = rows_a.get(monomial, Fraction(0)), rows_b.get(monomial, Fraction(0))
        if x == y:
            if x < 0:
                return False
        elif x > y:
            low = max(low, -y / (x - y))
        else:
            high = min(high, y / (y - x))
    return low <= high


def _degrees(*polynomials: Terms) -> dict[int, int]:
    """Highest exponent of each generator that occurs."""
    degrees: dict[int, int] = {}
    for terms in polynomials:
        for monomial in terms:
            for g, n in monomial:
                degrees[g] = max(n, degrees.get(g, 0))
    return degrees


def _coefficients(terms: Terms, box: Box, degrees: Mapping[int, int]) -> Terms | None:
    """`terms` in a basis that is nowhere negative in `box`; None when a generator has no lower bound."""
    for g, degree in degrees.items():
        low, high = box[g]
        if low is None:
            return None
        terms = _in_basis(terms, g, low, high, degree)
    return terms


def _in_basis(terms: Terms, g: int, low: int, high: int | None, degree: int) -> Terms:
    """Coefficients of `terms` with generator `g` in the basis `(g - low)**k`, or in the Bernstein basis of [low, high].

    The exponent of `g` then numbers the elements of the basis.
    """
    rows: dict[Monomial, dict[int, Fraction]] = {}
    for monomial, c in terms.items():
        power = dict(monomial).get(g, 0)
        rest = tuple(p for p in monomial if p[0] != g)
        row = rows.setdefault(rest, {})
        for k in range(power + 1):
            row[k] = row.get(k, Fraction(0)) + c * comb(power, k) * low ** (power - k)
    out: Terms = {}
    for rest, row in rows.items():
        if high is not None:
            width = high - low
            row = {
                j: sum((Fraction(comb(j, k), comb(degree, k)) * row.get(k, 0) * width**k for k in range(j + 1)), Fraction(0))
                for j in range(degree + 1)
            }
        for k, c in row.items():
            if c:
                out[tuple(sorted((*rest, (g, k)))) if k else rest] = c
    return out
