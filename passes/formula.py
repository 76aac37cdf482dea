"""The peak as a formula: a maximum of polynomials in batch size, sequence length or resolution.

One symbolic recording gives every storage's bytes as a polynomial (`compiler/symbolic.py`). Under one order the bytes alive at a
step are a sum of those, and the peak is the maximum over the steps. Steps that are proven never to be above another one are
dropped; nothing is dropped because it looked small somewhere. A recording holds where its guards hold (`B < 16`: another kernel is
chosen above), so sizes outside them are recorded again, each recording a branch of the formula.

Formulas count activations and outputs as `liveness` does. Kernel workspace is measured at concrete sizes only and is not in them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..compiler.errors import NeaptideError, TraceError
from .formula_branches import Branch, Recordings, SizeLike, listed
from .liveness import Inputs
from .polynomial import Ring, Size
from .regions import Region

if TYPE_CHECKING:
    import sympy

SCANNED = 1_000_000


@dataclass(frozen=True)
class PeakFormula:
    """A peak as a function of sizes; `str()` prints it.

    `which`: `"graph"` (traced order, freed after last use) or `"eager"` (Python's references). `method`: `"symbolic"` (from recordings
    with symbolic sizes) or `"sampled"` (every storage interpolated over concrete traces; `note` says why). `branches`: see `Branch`,
    the example's first. `checked`: sizes at which a concrete trace gave the same peak.
    """

    name: str
    which: str
    mode: str
    inputs: str
    sizes: tuple[Size, ...]
    branches: tuple[Branch, ...]
    method: str
    checked: tuple[Mapping[str, int], ...]
    note: str
    ring: Ring = field(repr=False)

    @property
    def pieces(self) -> tuple[sympy.Expr, ...]:
        """Pieces of the branch that the example's sizes are in."""
        return self.branches[0].pieces

    @property
    def guards(self) -> tuple[Any, ...]:
        """Conditions, as sympy relations, under which the branch of the example's sizes holds; the first region's if it has several."""
        return self.branches[0].regions[0].conditions(self.sizes)

    def evaluate(self, **sizes: int) -> int:
        """The peak in bytes, every size given by name. Raises `NeaptideError` for sizes outside the ranges and guards."""
        self._check_names(sizes, {s.name for s in self.sizes})
        for size in self.sizes:
            if not size.allows(sizes[size.name]):
                raise NeaptideError(f"{size.name}={sizes[size.name]} is outside the range the formula was made for: {size}")
        branch = self._branch(sizes)
        if branch is None:
            where = "; ".join(r.text(self.sizes) for b in self.branches for r in b.regions)
            raise NeaptideError(
                f"{self.name}: no recording holds at {listed(sizes)}, only where {where}: "
                "call peak_formula with example inputs of these sizes"
            )
        return max(int(self.ring.value(terms, sizes)) for terms in branch.terms)

    def solve(self, budget: int, **fixed: int) -> int | None:
        """The largest value of the one size not in `fixed` at which the peak is at most `budget` bytes; None when none fits.

        Values at which no recording holds do not count as fitting. Raises `NeaptideError` when every value fits and the size has
        no declared maximum, or when the peak is not proven to grow with it and the range is too large to search.
        """
        free = [s for s in self.sizes if s.name not in fixed]
        if len(free) != 1:
            raise NeaptideError(f"solve() looks for one size: fix all but one of {', '.join(s.name for s in self.sizes)}")
        self._check_names({**fixed, free[0].name: 0}, {s.name for s in self.sizes})
        found = [self._largest(branch, region, budget, free[0], fixed) for branch in self.branches for region in branch.regions]
        return max((n for n in found if n is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON values: pieces and conditions as text."""
        return {
            "name": self.name,
            "which": self.which,
            "mode": self.mode,
            "inputs": self.inputs,
            "unit": "bytes",
            "method": self.method,
            "note": self.note,
            "sizes": [{"name": s.name, "min": s.min, "max": s.max, "step": s.step} for s in self.sizes],
            "branches": [
                {
                    "pieces": [str(p) for p in b.pieces],
                    "holds": [r.text(self.sizes) for r in b.regions],
                    "recorded_at": dict(b.recorded_at),
                }
                for b in self.branches
            ],
            "checked": [dict(c) for c in self.checked],
        }

    def __str__(self) -> str:
        lines = [f"{self.which} peak of {self.name} ({self.mode}) in bytes, {'; '.join(map(str, self.sizes))}"]
        for branch in self.branches:
            where = " or ".join(r.text(self.sizes) for r in branch.regions)
            text = ", ".join(map(str, branch.pieces))
            lines.append(f"  {f'max({text})' if len(branch.pieces) > 1 else text}    where {where}")
        lines.append(
            f"  {self.method}{f' ({self.note})' if self.note else ''}; equal to concrete traces at " + "; ".join(map(listed, self.checked))
        )
        return "\n".join(lines)

    def _branch(self, at: Mapping[str, int]) -> Branch | None:
        return next((b for b in self.branches if b.holds(self.sizes, at)), None)

    def _check_names(self, given: Mapping[str, Any], wanted: set[str]) -> None:
        if set(given) != wanted:
            raise NeaptideError(f"{self.name} has the sizes {', '.join(sorted(wanted))}; given: {', '.join(sorted(given)) or 'none'}")

    def _largest(self, branch: Branch, region: Region, budget: int, free: Size, fixed: Mapping[str, int]) -> int | None:
        """Largest value of `free` in one region of a branch, over the other sizes as fixed."""
        bounds = dict(zip((s.name for s in self.sizes), region.bounds, strict=True))
        least, most = bounds[free.name]
        low, high = -(-least // free.step), None if most is None else most // free.step

        def fits(t: int) -> bool:
            at = {**fixed, free.name: t * free.step}
            return all(self.ring.value(terms, at) <= budget for terms in branch.terms)

        if all(self.ring.never_falls(terms) for terms in branch.terms):
            if not fits(low):
                return None
            good, bad = low, low + 1
            while (high is None or bad <= high) and fits(bad):
                if bad > 1 << 62:
                    raise NeaptideError(f"{self.name}: every {free.name} fits into {budget} bytes; declare a maximum for {free.name}")
                good, bad = bad, 2 * bad
            bad = bad if high is None else min(bad, high + 1)
            while bad - good > 1:
                middle = (good + bad) // 2
                good, bad = (middle, bad) if fits(middle) else (good, middle)
            candidates: Iterable[int] = range(good, low - 1, -1)
        elif high is not None and high - low < SCANNED:
            candidates = (t for t in range(high, low - 1, -1) if fits(t))
        else:
            raise NeaptideError(f"{self.name}: the peak is not proven to grow with {free.name}; declare a smaller maximum for it")
        inside = (t * free.step for t in itertools.islice(candidates, SCANNED))
        return next((n for n in inside if region.contains(self.sizes, {**fixed, free.name: n})), None)


def peak_formula(
    model: Any,
    args: Sequence[Any] | Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Mapping[Any, Mapping[int, SizeLike]],
    mode: str = "inference",
    which: str = "graph",
    inputs: Inputs = "caller",
    loss: Any = None,
    optimizer: Any = None,
    name: str | None = None,
) -> PeakFormula:
    """The peak of `model(*args, **kwargs)` in bytes, as a maximum of polynomials in the sizes named by `dynamic`.

    `dynamic`: which dimensions vary, like the `dynamic_shapes` of `torch.export`: by argument name, path inside it
    (`"batch.mask"`) or position, a mapping from dimension to size: `{"x": {0: "B", 1: "S"}}`. A size is a name, `(name, min, max)`,
    `(name, min, max, step)` or a `Size`; one name at two places is one size. `args` are example inputs, whose sizes the first
    recording is made at. `which="graph"` frees after last use in traced order, `"eager"` when Python lets go. `inputs` as in
    `liveness`. `mode`, `loss`, `optimizer` as in `trace`.

    Every branch is compared with a concrete trace at its own sizes, the first at further ones too. Where a model cannot be recorded
    with symbolic sizes (LSTM), or the comparison fails, the bytes of every storage are interpolated over concrete traces instead and
    compared at sizes left out (`method="sampled"`). Kernel workspace is not counted. Raises `TraceError` when the model cannot be
    traced, `NeaptideError` when `dynamic` fits no argument or no formula agrees with concrete traces.
    """
    if which not in ("graph", "eager"):
        raise NeaptideError(f'which={which!r}: "graph" frees storages after their last use, "eager" when Python lets go of them')
    job = Recordings(model, args, kwargs, dynamic, which, inputs, mode, loss, optimizer)
    name = name or job.name
    try:
        branches, checked = job.symbolic()
        return PeakFormula(name, which, mode, inputs, job.sizes, branches, "symbolic", checked, "", job.ring)
    except TraceError as error:
        why = str(error).split(". ")[0].split(" Exception raised from")[0]
    branches, checked = job.sampled()
    return PeakFormula(name, which, mode, inputs, job.sizes, branches, "sampled", checked, why, job.ring)
