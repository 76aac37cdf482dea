"""FBNetV2's largest space (DMaskingNAS, CVPR 2020, Tables 2 and 3): block type, expansion and filters of 18 blocks.

Table 2 gives the stages with the range of expansions and filters of each, Table 3 the block types: kernel 3 or 5, ReLU or hard swish,
squeeze-and-excite or not, and skip. The paper's grids make every width between the convolutions a whole number, `inputs * expansion`,
so none is rounded. Where a skip changes the shape it is a 1x1 convolution, as in the released networks of this family, whose
expansions and filters do not lie on these grids (`search.published` builds those). The paper does not list the input resolutions it
searched; they are an option here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ...compiler.errors import SourceError
from ..space import Architecture, Slot
from .mobile import Chain, ChainSpace, Classifier, Conv, GlobalPool, Layer, MBConv, divisible

# (expansions, filters, blocks, stride of the first), each range as (low, high, step)
TABLE = (
    ((1, 1, 1), (12, 16, 4), 1, 1),
    ((0.75, 3.25, 0.5), (16, 28, 4), 1, 2),
    ((0.75, 3.25, 0.5), (16, 28, 4), 2, 1),
    ((0.75, 3.25, 0.5), (16, 40, 8), 1, 2),
    ((0.75, 3.25, 0.5), (16, 40, 8), 2, 1),
    ((0.75, 3.75, 0.5), (48, 96, 8), 1, 2),
    ((0.75, 3.75, 0.5), (48, 96, 8), 2, 1),
    ((0.75, 4.5, 0.75), (72, 128, 8), 4, 1),
    ((0.75, 4.5, 0.75), (112, 216, 8), 1, 2),
    ((0.75, 4.5, 0.75), (112, 216, 8), 3, 1),
)
STEM, LAST = 16, 1984
TYPES = (*(f"ir_k{k}{se}{hs}" for k in (3, 5) for se in ("", "_se") for hs in ("", "_hs")), "skip")
SKIP = len(TYPES) - 1


def _grid(low: float, high: float, step: float) -> tuple[float, ...]:
    return tuple(low + i * step for i in range(round((high - low) / step) + 1))


class FBNetV2(ChainSpace):
    """Genes: resolution, then type, expansion and filters of each block; the expansion of a skip is 0.

    `resolutions`: the choices, ascending (the paper's largest inputs are 224, 256 and 288 for its F, L and P families).
    Text: `r256/ir_k3_se_hs:e0.75:f16/skip:f16/...`.
    """

    name = "fbnetv2"

    def __init__(self, *, resolutions: Sequence[int] = (256,), classes: int = 1000, dropout: float = 0.2):
        self.resolutions, self.classes, self.dropout = tuple(resolutions), classes, dropout
        if not self.resolutions or list(self.resolutions) != sorted(set(self.resolutions)):
            raise SourceError(f"space {self.name}: resolutions {self.resolutions} are to be ascending")
        self.rows_of_table = [
            (_grid(*expansions), tuple(int(f) for f in _grid(*filters)), stride if i == 0 else 1)
            for expansions, filters, blocks, stride in TABLE
            for i in range(blocks)
        ]
        self.cardinalities = (len(self.resolutions), *(c for e, f, _ in self.rows_of_table for c in (len(TYPES), len(e), len(f))))

    def describe(self) -> dict[str, Any]:
        """See `Space.describe`."""
        return {"name": self.name, "options": {"resolutions": list(self.resolutions), "classes": self.classes, "dropout": self.dropout}}

    def canonical_rows(self, rows: np.ndarray) -> np.ndarray:
        """See `Space.canonical_rows`."""
        rows = rows.copy()
        rows[:, 2::3][rows[:, 1::3] == SKIP] = 0
        return rows

    @cached_property
    def size(self) -> int:
        """See `Space.size`."""
        total = len(self.resolutions)
        for expansions, filters, _ in self.rows_of_table:
            total *= len(filters) * (SKIP * len(expansions) + 1)
        return total

    def text(self, arch: Architecture) -> str:
        """See `Space.text`."""
        blocks = []
        for (expansions, filters, _), (kind, e, f) in zip(self.rows_of_table, self._blocks(arch), strict=True):
            expansion = "" if kind == SKIP else f":e{expansions[e]:g}"
            blocks.append(f"{TYPES[kind]}{expansion}:f{filters[f]}")
        return "/".join([f"r{self.resolutions[arch.genes[0]]}", *blocks])

    def parse(self, text: str) -> Architecture:
        """See `Space.parse`."""
        first, *blocks = text.strip().split("/")
        if first not in {f"r{r}" for r in self.resolutions} or len(blocks) != len(self.rows_of_table):
            raise SourceError(
                f"{text!r} is no network of {self.name}: a resolution of {', '.join(f'r{r}' for r in self.resolutions)} and "
                f"{len(self.rows_of_table)} blocks, like r256/ir_k3:e1:f16/..."
            )
        genes = [self.resolutions.index(int(first[1:]))]
        for i, (block, (expansions, filters, _)) in enumerate(zip(blocks, self.rows_of_table, strict=True)):
            found = re.fullmatch(r"(\w+?)(?::e([\d.]+))?:f(\d+)", block)
            kind, expansion, width = found.groups() if found else ("", None, "0")
            known = kind in TYPES and (expansion is None) == (kind == "skip")
            e = float(expansion) if expansion else expansions[0]
            if not known or e not in expansions or int(width) not in filters:
                raise SourceError(
                    f"block {i}, {block!r}, is not TYPE:eEXPANSION:fFILTERS with a type of {', '.join(TYPES)} (skip without expansion), "
                    f"an expansion of {', '.join(f'{x:g}' for x in expansions)} and filters of {', '.join(map(str, filters))}"
                )
            genes += [TYPES.index(kind), expansions.index(e), filters.index(int(width))]
        return self.architecture(genes)

    def slots(self) -> tuple[Slot, ...]:
        """See `Space.slots`."""
        blocks = [Slot(f"blocks.{i}", (0, *([3 * i] if i else []), *range(3 * i + 1, 3 * i + 4))) for i in range(len(self.rows_of_table))]
        return (Slot("stem", (0,)), *blocks, Slot("head", (0, 3 * len(blocks))))

    def chain(self, arch: Architecture) -> Chain:
        """See `ChainSpace.chain`."""
        parts: list[tuple[str, Layer]] = [("stem", Conv(STEM, 3, 2, "hardswish"))]
        inputs = STEM
        for i, ((expansions, filters, stride), (kind, e, f)) in enumerate(zip(self.rows_of_table, self._blocks(arch), strict=True)):
            width, same = filters[f], stride == 1 and filters[f] == inputs
            if kind != SKIP:
                parts.append((f"blocks.{i}", _block(TYPES[kind], inputs, int(inputs * expansions[e]), width, stride)))
            elif not same:
                parts.append((f"blocks.{i}", Conv(width, 1, stride, "relu")))
            inputs = width
        parts += [
            ("head.mix", Conv(LAST, activation="hardswish")),
            ("head.pool", GlobalPool()),
            ("head.classifier", Classifier(self.classes, self.dropout)),
        ]
        resolution = self.resolutions[arch.genes[0]]
        return Chain((1, 3, resolution, resolution), tuple(parts))

    def _blocks(self, arch: Architecture) -> list[tuple[int, ...]]:
        return [arch.genes[i : i + 3] for i in range(1, len(arch.genes), 3)]


def _block(kind: str, inputs: int, middle: int, width: int, stride: int) -> MBConv:
    activation = "hardswish" if kind.endswith("_hs") else "relu"
    return MBConv(
        width,
        middle,
        int(kind[4]),
        stride,
        activation,
        squeeze=divisible(middle // 4) if "_se" in kind else 0,
        expand=middle != inputs,
        shortcut=stride == 1 and inputs == width,
    )
