"""ProxylessNAS's ImageNet space (ICLR 2019): 21 inverted residual blocks with a kernel and an expansion each, or none at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...compiler.errors import SourceError
from ..space import Architecture, Slot
from .mobile import Chain, ChainSpace, Classifier, Conv, GlobalPool, Layer, MBConv, divisible

WIDTHS = (24, 40, 80, 96, 192, 320)
DEPTHS = (4, 4, 4, 4, 4, 1)
STRIDES = (2, 2, 2, 1, 2, 1)
CHOICES = ((3, 3), (3, 6), (5, 3), (5, 6), (7, 3), (7, 6))  # (kernel, expansion)
WORDS = (*(f"k{k}e{e}" for k, e in CHOICES), "zero")


class ProxylessMBConv(ChainSpace):
    """Genes: one a block. 0 to 5 are kernels 3, 5, 7 with expansions 3 and 6; 6, not for a stage's first block, leaves the block out.

    `width_mult` scales the widths, the last one only upwards. `strides`: of the six stages. Text: `k5e3-zero-zero-k3e6/...`,
    one part for each stage.
    """

    name = "proxyless_mbconv"

    def __init__(
        self,
        *,
        width_mult: float = 1.0,
        resolution: int = 224,
        stem_stride: int = 2,
        strides: Sequence[int] = STRIDES,
        classes: int = 1000,
        dropout: float = 0.1,
    ):
        if len(strides) != len(STRIDES):
            raise SourceError(f"space {self.name} has {len(STRIDES)} stages, not {len(strides)} strides")
        self.options = {
            "width_mult": width_mult, "resolution": resolution, "stem_stride": stem_stride, "strides": list(strides),
            "classes": classes, "dropout": dropout,
        }  # fmt: skip
        self.resolution, self.stem_stride, self.strides, self.classes, self.dropout = resolution, stem_stride, strides, classes, dropout
        self.stem, self.first = divisible(32 * width_mult), divisible(16 * width_mult)
        self.widths = tuple(divisible(w * width_mult) for w in WIDTHS)
        self.last = divisible(1280 * max(1.0, width_mult))
        self.positions = tuple((s, b) for s, depth in enumerate(DEPTHS) for b in range(depth))
        self.cardinalities = tuple(len(CHOICES) + (b > 0) for _, b in self.positions)

    def describe(self) -> dict[str, Any]:
        """See `Space.describe`."""
        return {"name": self.name, "options": self.options}

    def text(self, arch: Architecture) -> str:
        """See `Space.text`."""
        words = iter(WORDS[g] for g in arch.genes)
        return "/".join("-".join(next(words) for _ in range(depth)) for depth in DEPTHS)

    def parse(self, text: str) -> Architecture:
        """See `Space.parse`."""
        stages = [stage.split("-") for stage in text.strip().split("/")]
        if tuple(map(len, stages)) != DEPTHS:
            raise SourceError(f"{text!r} is no network of {self.name}: {len(DEPTHS)} stages of {', '.join(map(str, DEPTHS))} blocks")
        genes = []
        for stage in stages:
            for b, word in enumerate(stage):
                if word not in WORDS[: len(CHOICES) + (b > 0)]:
                    raise SourceError(f"block {word!r} of {text!r} is not {', '.join(WORDS[: len(CHOICES) + (b > 0)])}")
                genes.append(WORDS.index(word))
        return self.architecture(genes)

    def slots(self) -> tuple[Slot, ...]:
        """See `Space.slots`."""
        blocks = [Slot(f"stages.{s}.{b}", (i,)) for i, (s, b) in enumerate(self.positions)]
        return (Slot("stem|first", ()), *blocks, Slot("head", ()))

    def chain(self, arch: Architecture) -> Chain:
        """See `ChainSpace.chain`."""
        parts: list[tuple[str, Layer]] = [
            ("stem", Conv(self.stem, 3, self.stem_stride, "relu6")),
            ("first", MBConv(self.first, self.stem, 3, expand=False)),
        ]
        for (stage, block), gene in zip(self.positions, arch.genes, strict=True):
            if gene < len(CHOICES):
                kernel, expand = CHOICES[gene]
                width = self.widths[stage]
                inputs = width if block else (self.first, *self.widths)[stage]
                stride = 1 if block else self.strides[stage]
                block_of = MBConv(width, inputs * expand, kernel, stride, shortcut=stride == 1 and inputs == width)
                parts.append((f"stages.{stage}.{block}", block_of))
        parts += [
            ("head.mix", Conv(self.last, activation="relu6")),
            ("head.pool", GlobalPool()),
            ("head.classifier", Classifier(self.classes, self.dropout)),
        ]
        return Chain((1, 3, self.resolution, self.resolution), tuple(parts), eps=1e-3)
