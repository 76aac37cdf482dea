"""Channel sizing of Memory-Optimized Once-For-All (Girard et al., ECCV-W 2024, section 4): every stage as hungry as the one before.

A stage of inverted bottlenecks with C channels at size I needs the most of its counted ops: expansion, depthwise, projection. The solver
takes that as the budget and gives the next stage the most channels with which none of its counted ops exceeds it, at the next size.
What an op needs is the `SizingRule`, spelled out, because the paper's list follows from one accounting and from no other.

Where this leaves the printed equations, whose literal use gives 16, 16, 16, ... after 24:
- (4) and (5) take the current stage's depthwise at stride 2 and multiply K^2 alone by 4. With the factor on all of it they give 56, 128,
  168, 192, 200, 200 (the rule below with `stride=2`: 56, 128, 192, 216, 224, 224). The published widths come of a stage at stride 1.
- (5) solved for equal depthwise memory gives C (8 I^2 + 4 K^2) / (2 I^2 + 4 K^2); the authors' program has 2 K^2 for the last 4 K^2 over
  the line (94.55 for 93.80 at the first step). Both round to 96.
- (8) and (9) look at the current stage's dominant op and choose which equation to use. Here no counted op of the next stage may exceed
  the budget, whichever is dominant: the same widths, and a rule that also holds with projection, residuals or weights in flash.
- Widths 3 (the stem), 8 (the first block) and 24 (the first stage) are given, not derived; nor is the size 56 they start from.
- The two widths of the head (392, 392) are sized as if the map went on halving, to 3.5 and 1.75; no such down-sampling exists.
- The published accounting forgets that a shortcut's input is alive while depthwise and projection run; `lifetime` has it.
- It has weights in RAM. In flash, as microcontrollers have them, nothing but `flash` bounds the widths: they quadruple with every halving.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..compiler.errors import SourceError

OPS = ("expand", "depthwise", "project")


@dataclass(frozen=True, slots=True)
class SizingRule:
    """What memory means to the solver, in items.

    ops: those counted, of "expand", "depthwise", "project".
    stride: of the depthwise op that sets a stage's budget; the stage that is sized has stride 1.
    residual: whether the block's input stays alive until its projection has run.
    weights: "ram" (an op's weights lie beside its maps) or "flash" (they need no memory).
    kernel, expand, depth: the block that stands for its stage, and how many of them; depth counts in `flash` alone.
    divisor: widths are rounded to multiples of it, to the nearest, and never below 90 % of the solution.
    whole: maps have whole sizes, rounded up at stride 2; else halves are kept as fractions, as published.
    flash: at most so many weights in a stage, or None. With weights in flash nothing else bounds the late stages.
    """

    ops: tuple[str, ...] = ("expand", "depthwise")
    stride: int = 1
    residual: bool = False
    weights: str = "ram"
    kernel: int = 7
    expand: float = 4.0
    depth: int = 4
    divisor: int = 8
    whole: bool = False
    flash: int | None = None

    def __post_init__(self) -> None:
        unknown = [op for op in self.ops if op not in OPS]
        if unknown or not self.ops:
            raise SourceError(f"a sizing rule counts ops of {', '.join(OPS)}, at least one, not {', '.join(unknown) or 'none'}")
        if self.weights not in ("ram", "flash"):
            raise SourceError(f"weights lie in 'ram' or 'flash', not in {self.weights!r}")
        if min(self.stride, self.kernel, self.expand, self.depth, self.divisor) <= 0:
            raise SourceError("stride, kernel, expand, depth and divisor of a sizing rule are above 0")

    def memory(self, op: str, channels: float, size: float, *, stride: int = 1) -> float:
        """Items that `op` of a block with `channels` in and out needs at `size` x `size` in: input, output, and what the rule adds."""
        linear, square = self._terms(op, size, stride)
        return linear * channels + square * channels * channels

    def budget(self, channels: float, size: float) -> tuple[str, float]:
        """The hungriest counted op of a stage and the items it needs."""
        needs = {op: self.memory(op, channels, size, stride=self.stride) for op in self.ops}
        worst = max(needs, key=needs.__getitem__)
        return worst, needs[worst]

    def most_channels(self, op: str, size: float, budget: float) -> float:
        """The real number of channels with which `op` at stride 1 needs exactly `budget` items."""
        return _root(*self._terms(op, size, 1), budget)

    def stage_weights(self, channels: float) -> float:
        """Weights of the convolutions of a stage: `depth` blocks."""
        linear, square = self.depth * self.expand * self.kernel**2, 2.0 * self.depth * self.expand
        return linear * channels + square * channels * channels

    def _terms(self, op: str, size: float, stride: int) -> tuple[float, float]:
        """Memory of `op` as a + b: a x channels + b x channels^2."""
        area = size * size
        after = (math.ceil(size / stride) if self.whole else size / stride) ** 2
        ram, e = self.weights == "ram", self.expand
        kept = area if self.residual and stride == 1 else 0.0
        if op == "expand":
            return (1 + e) * area, e * ram
        if op == "depthwise":
            return e * (area + after) + e * self.kernel**2 * ram + kept, 0.0
        return (1 + e) * after + kept, e * ram


SIZING_RULES = {
    "published": SizingRule(),
    "lifetime": SizingRule(ops=OPS, residual=True, whole=True),
    "weights-in-flash": SizingRule(ops=OPS, residual=True, whole=True, weights="flash"),
}


@dataclass(frozen=True, slots=True)
class SizingStep:
    """From a stage to the next. `budget`: items of `dominant`, the hungriest counted op of a stage with `channels` at `size`;
    `limits`: most channels by what limits them, at `next_size`; `solution`: the least of those; `rounded`: the next stage's width.
    """

    size: float
    channels: int
    dominant: str
    budget: float
    next_size: float
    limits: dict[str, float]
    solution: float
    rounded: int


@dataclass(frozen=True, slots=True)
class Sizing:
    """Widths, the fixed ones first, and how each of the others came about."""

    rule: SizingRule
    widths: tuple[int, ...]
    steps: tuple[SizingStep, ...]


def size_channels(
    rule: str | SizingRule = "published",
    *,
    fixed: Sequence[int] = (3, 8, 24),
    size: float = 56,
    strides: Sequence[int] = (2,) * 6,
    **changes,
) -> Sizing:
    """The widths of a network whose stages need equal memory.

    fixed: the first widths; the last of them is that of the first stage, whose maps are `size` x `size` (224 pixels over 4).
    strides: of each stage to be sized, the head's convolutions counted as stages. `changes`: fields of the rule to replace.
    Raises `SourceError` for an unknown rule or field. `size_channels().widths == (3, 8, 24, 96, 288, 360, 384, 392, 392)`, as published.
    """
    if isinstance(rule, str):
        if rule not in SIZING_RULES:
            raise SourceError(f"no sizing rule {rule!r}; there are {', '.join(SIZING_RULES)}")
        rule = SIZING_RULES[rule]
    try:
        rule = replace(rule, **changes)
    except TypeError as error:
        raise SourceError(f"sizing rule: {error}") from error
    widths, steps = list(fixed), []
    for stride in strides:
        step = _next_stage(rule, widths[-1], size, stride)
        steps.append(step)
        widths.append(step.rounded)
        size = step.next_size
    return Sizing(rule, tuple(widths), tuple(steps))


def round_channels(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels`, at least one and never below 90 % of it (MobileNet's rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def _next_stage(rule: SizingRule, channels: int, size: float, stride: int) -> SizingStep:
    dominant, budget = rule.budget(channels, size)
    after = math.ceil(size / stride) if rule.whole else size / stride
    limits = {op: rule.most_channels(op, after, budget) for op in rule.ops}
    if rule.flash is not None:
        limits["flash"] = _root(rule.depth * rule.expand * rule.kernel**2, 2.0 * rule.depth * rule.expand, rule.flash)
    solution = min(limits.values())
    return SizingStep(size, channels, dominant, budget, after, limits, solution, round_channels(solution, rule.divisor))


def _root(linear: float, square: float, value: float) -> float:
    """The x >= 0 at which linear x + square x^2 is `value`."""
    if square == 0:
        return value / linear
    return (math.sqrt(linear * linear + 4 * square * value) - linear) / (2 * square)
