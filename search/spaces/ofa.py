"""Elastic MobileNetV3 networks: Once-For-All (arXiv 1908.09791), CompOFA (arXiv 2104.12642) and MOOFA (CADL workshop of ECCV 2024).

Five stages of two to four inverted residual blocks, each block with a kernel and an expansion of its own, at one of several input
resolutions. The three spaces differ in widths, strides and in which choices hang together. Channels between the 1x1 convolutions of
a block are `divisible(round(inputs * expansion))`. An expansion of 1 is no convolution: there they are the inputs, rounded or not, and
larger expansions have at least as many.

MOOFA's widths are those of its published code (`search.moofa_sizing` derives them; the printed equations do not). Its stages halve the
image once more than Once-For-All's, so that the last one works on 4 x 4 pixels of a 224-pixel image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ...compiler.errors import SourceError
from ..space import Architecture, Slot
from .mobile import Chain, ChainSpace, Classifier, Conv, GlobalPool, MBConv, divisible

STAGES = 5


@dataclass(frozen=True, slots=True)
class Settings:
    """The choices of n architectures as the papers count them. Shapes: `resolution` (n,), `depth` (n, 5), `kernel` and `expand`
    (n, 20) with stage s's block b at column 4 s + b, where a stage has four at most, and 0 beyond a stage's depth.
    """

    resolution: np.ndarray
    depth: np.ndarray
    kernel: np.ndarray
    expand: np.ndarray


class OFAMobileNetV3(ChainSpace):
    """Once-For-All's MobileNetV3 space. Genes: resolution, five depths, then kernel and expansion of each block position.

    `width_mult` scales `widths`: stem, first block, five stages, the last convolution before the pool and the one after it.
    `strides`: first block and stages. `resolutions`, `depths`, `kernels`, `expands`: the choices, ascending. A network for small
    images is `OFAMobileNetV3(resolutions=(32,), strides=(1, 1, 2, 2, 1, 2), classes=10, stem_stride=1)`.
    Text: `r192/k3e4-k5e6/...`, one part for each stage.
    """

    name = "ofa_mbv3"
    WIDTHS = (16, 16, 24, 40, 80, 112, 160, 960, 1280)
    STRIDES = (1, 2, 2, 2, 1, 2)
    RESOLUTIONS = tuple(range(128, 225, 4))
    EXPANDS: tuple[float, ...] = (3, 4, 6)
    ACTIVATIONS = ("relu", "relu", "hardswish", "hardswish", "hardswish")
    SQUEEZE = (False, True, False, True, True)

    def __init__(
        self,
        *,
        width_mult: float = 1.0,
        resolutions: Sequence[int] | None = None,
        depths: Sequence[int] = (2, 3, 4),
        kernels: Sequence[int] = (3, 5, 7),
        expands: Sequence[float] | None = None,
        widths: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        stem_stride: int = 2,
        classes: int = 1000,
        dropout: float = 0.1,
    ):
        self._scaled = {"width_mult": width_mult, "widths": list(widths or self.WIDTHS)}
        self.resolutions = tuple(resolutions or self.RESOLUTIONS)
        self.depths, self.kernels, self.expands = tuple(depths), tuple(kernels), tuple(expands or self.EXPANDS)
        self.widths = tuple(divisible(w * width_mult) if width_mult != 1 else w for w in widths or self.WIDTHS)
        self.strides = (stem_stride, *(strides or self.STRIDES))
        self.classes, self.dropout = classes, dropout
        if len(self.widths) != len(self.WIDTHS) or len(self.strides) != len(self.STRIDES) + 1:
            raise SourceError(
                f"space {self.name}: {len(self.WIDTHS)} widths and {len(self.STRIDES)} strides, as in {self.WIDTHS}, {self.STRIDES}"
            )
        for choices in (self.resolutions, self.depths, self.kernels, self.expands):
            if list(choices) != sorted(set(choices)) or choices[0] <= 0:
                raise SourceError(f"space {self.name}: choices {choices} are to be positive and ascending")
        self.deepest = self.depths[-1]
        self.cardinalities = self._cardinalities()
        self._made: dict[tuple[int, int, float], MBConv] = {}

    def describe(self) -> dict[str, Any]:
        """See `Space.describe`."""
        options = {
            **self._scaled, "resolutions": list(self.resolutions), "depths": list(self.depths), "kernels": list(self.kernels),
            "expands": list(self.expands), "strides": list(self.strides[1:]), "stem_stride": self.strides[0],
            "classes": self.classes, "dropout": self.dropout,
        }  # fmt: skip
        return {"name": self.name, "options": options}

    # ---- genes and settings ---------------------------------------------------------------------------------------

    def _cardinalities(self) -> tuple[int, ...]:
        blocks = (len(self.kernels), len(self.expands)) * (STAGES * self.deepest)
        return (len(self.resolutions), *[len(self.depths)] * STAGES, *blocks)

    def _block_genes(self, stage: int, block: int) -> tuple[int, ...]:
        """Genes of one block position besides resolution and depth."""
        first = 1 + STAGES + 2 * (stage * self.deepest + block)
        return (first, first + 1)

    def settings(self, rows: np.ndarray) -> Settings:
        """What `rows` (n, genes), canonical, choose, in the papers' own values."""
        depth = np.asarray(self.depths, np.int16)[rows[:, 1 : 1 + STAGES]]
        there = self._there(depth)
        blocks = rows[:, 1 + STAGES :].reshape(len(rows), -1, 2)
        kernel = np.where(there, np.asarray(self.kernels, np.int16)[blocks[:, :, 0]], 0)
        expand = np.where(there, np.asarray(self.expands, np.float32)[blocks[:, :, 1]], 0)
        return Settings(np.asarray(self.resolutions, np.int16)[rows[:, 0]], depth, kernel, expand)

    def rows(self, settings: Settings) -> np.ndarray:
        """The canonical rows that make `settings`; values of blocks beyond their stage's depth are not read.

        Raises `SourceError` naming a value that this space does not offer.
        """
        there = self._there(settings.depth)
        kernel = np.where(there, settings.kernel, self.kernels[0])
        expand = np.where(there, settings.expand, self.expands[0])
        blocks = np.stack([self._index("kernel", self.kernels, kernel), self._index("expansion", self.expands, expand)], axis=2)
        return np.concatenate(
            [
                self._index("resolution", self.resolutions, settings.resolution)[:, None],
                self._index("depth", self.depths, settings.depth),
                blocks.reshape(len(blocks), -1),
            ],
            axis=1,
        )

    def canonical_rows(self, rows: np.ndarray) -> np.ndarray:
        """See `Space.canonical_rows`."""
        there = self._there(np.asarray(self.depths)[rows[:, 1 : 1 + STAGES]])
        blocks = np.where(there[:, :, None], rows[:, 1 + STAGES :].reshape(len(rows), -1, 2), 0)
        return np.concatenate([rows[:, : 1 + STAGES], blocks.reshape(len(rows), -1)], axis=1).astype(np.int16)

    @cached_property
    def size(self) -> int:
        """See `Space.size`."""
        choices = len(self.kernels) * len(self.expands)
        return len(self.resolutions) * sum(choices**d for d in self.depths) ** STAGES

    def _there(self, depth: np.ndarray) -> np.ndarray:
        """Which block positions exist, bool (n, positions)."""
        there = np.arange(self.deepest) < depth[:, :, None]
        return there.reshape(len(depth), -1)

    def _index(self, what: str, choices: Sequence[float], values: np.ndarray) -> np.ndarray:
        index = np.searchsorted(np.asarray(choices, np.float32), values)
        wrong = np.asarray(choices, np.float32)[np.minimum(index, len(choices) - 1)] != values
        if wrong.any():
            raise SourceError(
                f"{what} {np.asarray(values)[wrong][0]:g} is not in space {self.name}: {', '.join(f'{c:g}' for c in choices)}"
            )
        return index.astype(np.int16)

    # ---- text -----------------------------------------------------------------------------------------------------

    def text(self, arch: Architecture) -> str:
        """See `Space.text`."""
        s = self.settings(np.asarray([arch.genes], np.int16))
        blocks = [f"k{k}e{e:g}" for k, e in zip(s.kernel[0].tolist(), s.expand[0].tolist(), strict=True)]
        depths = enumerate(s.depth[0].tolist())
        return "/".join([f"r{s.resolution[0]}", *("-".join(blocks[i * self.deepest : i * self.deepest + d]) for i, d in depths)])

    def parse(self, text: str) -> Architecture:
        """See `Space.parse`."""
        first, *stages = text.strip().split("/")
        if not re.fullmatch(r"r\d+", first) or len(stages) != STAGES:
            raise SourceError(f"{text!r} is no network of {self.name}: rRESOLUTION and {STAGES} stages, like r192/k3e4-k5e6/...")
        depth, positions = [], np.zeros((2, STAGES, self.deepest), np.float32)
        for s, stage in enumerate(stages):
            blocks = stage.split("-")
            if len(blocks) not in self.depths:
                raise SourceError(
                    f"stage {stage!r} of {text!r} has {len(blocks)} blocks; {self.name} takes {', '.join(map(str, self.depths))}"
                )
            depth.append(len(blocks))
            for b, block in enumerate(blocks):
                found = re.fullmatch(r"k(\d+)e(\d+(?:\.\d+)?)", block)
                if not found:
                    raise SourceError(f"block {block!r} of {text!r} is not kKERNELeEXPANSION, like k3e4")
                positions[:, s, b] = [float(g) for g in found.groups()]
        kernel, expand = positions.reshape(2, 1, -1)
        (row,) = self.rows(Settings(np.asarray([int(first[1:])]), np.asarray([depth]), kernel, expand)).tolist()
        return Architecture(self.name, tuple(row))

    # ---- networks -------------------------------------------------------------------------------------------------

    def slots(self) -> tuple[Slot, ...]:
        """See `Space.slots`."""
        blocks = [
            Slot(f"stages.{s}.{b}", (0, *([] if b < self.depths[0] else [1 + s]), *self._block_genes(s, b)))
            for s in range(STAGES)
            for b in range(self.deepest)
        ]
        return (Slot("stem|first", (0,)), *blocks, Slot("head", (0,)))

    def chain(self, arch: Architecture) -> Chain:
        """See `ChainSpace.chain`."""
        s = self.settings(np.asarray([arch.genes], np.int16))
        resolution, kernel, expand = int(s.resolution[0]), s.kernel[0].tolist(), s.expand[0].tolist()
        stem, first = self.widths[:2]
        same = stem == first and self.strides[1] == 1
        parts: list[Any] = [
            ("stem", Conv(stem, 3, self.strides[0], "hardswish")),
            ("first", MBConv(first, stem, 3, self.strides[1], "relu", expand=False, shortcut=same)),
        ]
        for i, k in enumerate(kernel):
            if k:
                stage, block = divmod(i, self.deepest)
                parts.append((f"stages.{stage}.{block}", self._block(stage, block, k, expand[i])))
        parts += [
            ("head.expand", Conv(self.widths[7], activation="hardswish")),
            ("head.pool", GlobalPool()),
            ("head.mix", Conv(self.widths[8], activation="hardswish", norm=False)),
            ("head.classifier", Classifier(self.classes, self.dropout)),
        ]
        return Chain((1, 3, resolution, resolution), tuple(parts))

    def _block(self, stage: int, block: int, kernel: int, expand: float) -> MBConv:
        channels = self.widths[2 + stage]
        inputs = channels if block else self.widths[1 + stage]
        stride = 1 if block else self.strides[2 + stage]
        key = (stage if block else -1 - stage, kernel, expand)
        if key not in self._made:
            middle = inputs if expand == 1 else divisible(round(inputs * expand))
            middle = max(middle, inputs) if expand > 1 else middle
            squeeze = divisible(middle // 4) if self.SQUEEZE[stage] else 0
            shortcut = stride == 1 and inputs == channels
            made = MBConv(channels, middle, kernel, stride, self.ACTIVATIONS[stage], squeeze, expand != 1, shortcut)
            self._made[key] = made
        return self._made[key]


class CompOFA(OFAMobileNetV3):
    """CompOFA: a stage's depth fixes the expansion of its blocks (2 blocks: 3, 3: 4, 4: 6). Genes: resolution, five depths, kernels.

    `kernel`: "elastic" lets every block choose, "fixed" takes 3 and 5 as MobileNetV3 has them and leaves 243 networks a resolution.
    """

    name = "compofa"
    FIXED = (3, 5, 3, 3, 5)

    def __init__(self, *, kernel: str = "elastic", **options: Any):
        if kernel not in ("elastic", "fixed"):
            raise SourceError(f"space compofa: kernel is 'elastic' or 'fixed', not {kernel!r}")
        self.elastic = kernel == "elastic"
        super().__init__(**options)
        if len(self.depths) != len(self.expands):
            raise SourceError(f"space compofa pairs depths with expansions: {len(self.depths)} depths, {len(self.expands)} expansions")

    def describe(self) -> dict[str, Any]:
        """See `Space.describe`."""
        said = super().describe()
        return {**said, "options": {"kernel": "elastic" if self.elastic else "fixed", **said["options"]}}

    def _cardinalities(self) -> tuple[int, ...]:
        kernels = [len(self.kernels)] * (STAGES * self.deepest) if self.elastic else []
        return (len(self.resolutions), *[len(self.depths)] * STAGES, *kernels)

    def _block_genes(self, stage: int, block: int) -> tuple[int, ...]:
        return (1 + stage, *([1 + STAGES + stage * self.deepest + block] if self.elastic else []))

    def slots(self) -> tuple[Slot, ...]:
        """See `Space.slots`."""
        return tuple(Slot(slot.scope, tuple(dict.fromkeys(slot.genes))) for slot in super().slots())

    def settings(self, rows: np.ndarray) -> Settings:
        """See `OFAMobileNetV3.settings`."""
        units = rows[:, 1 : 1 + STAGES]
        depth = np.asarray(self.depths, np.int16)[units]
        there = self._there(depth)
        kernel = np.asarray(self.kernels, np.int16)[rows[:, 1 + STAGES :]] if self.elastic else np.repeat(self.FIXED, self.deepest)
        expand = np.repeat(np.asarray(self.expands, np.float32)[units], self.deepest, axis=1)
        resolution = np.asarray(self.resolutions, np.int16)[rows[:, 0]]
        return Settings(resolution, depth, np.where(there, kernel, 0), np.where(there, expand, 0))

    def rows(self, settings: Settings) -> np.ndarray:
        """See `OFAMobileNetV3.rows`."""
        there = self._there(settings.depth)
        units = self._index("depth", self.depths, settings.depth)
        expand = np.repeat(np.asarray(self.expands, np.float32)[units], self.deepest, axis=1)
        fixed = np.repeat(self.FIXED, self.deepest)
        wrong = there & (settings.expand != expand)
        if wrong.any():
            given, due = np.asarray(settings.expand)[wrong][0], expand[wrong][0]
            raise SourceError(f"expansion {given:g} is not what compofa pairs with that depth, {due:g}")
        if not self.elastic and (there & (settings.kernel != fixed)).any():
            raise SourceError(f"compofa with fixed kernels takes {', '.join(map(str, self.FIXED))} in its stages")
        kernel = [self._index("kernel", self.kernels, np.where(there, settings.kernel, self.kernels[0]))] if self.elastic else []
        return np.concatenate([self._index("resolution", self.resolutions, settings.resolution)[:, None], units, *kernel], axis=1)

    def canonical_rows(self, rows: np.ndarray) -> np.ndarray:
        """See `Space.canonical_rows`."""
        if not self.elastic:
            return rows
        there = self._there(np.asarray(self.depths)[rows[:, 1 : 1 + STAGES]])
        return np.concatenate([rows[:, : 1 + STAGES], np.where(there, rows[:, 1 + STAGES :], 0)], axis=1).astype(np.int16)

    @cached_property
    def size(self) -> int:
        """See `Space.size`."""
        choices = len(self.kernels) if self.elastic else 1
        return len(self.resolutions) * sum(choices**d for d in self.depths) ** STAGES


class MOOFA(OFAMobileNetV3):
    """MOOFA: widths chosen so that no stage's memory stands out, expansions 2, 3 and 4, four resolutions. Genes as in Once-For-All.

    The published ablations are `MOOFA(expands=(3, 4, 6))` and `MOOFA(expands=(1, 1.5, 2))`.
    """

    name = "moofa"
    WIDTHS = (3, 8, 24, 96, 288, 360, 384, 392, 392)
    STRIDES = (1, 2, 2, 2, 2, 2)
    RESOLUTIONS = (128, 160, 192, 224)
    EXPANDS = (2, 3, 4)
    ACTIVATIONS = ("hardswish", "hardswish", "hardswish", "relu", "hardswish")
    SQUEEZE = (False, True, True, False, True)
