"""NAS-Bench-Macro (arXiv 2103.11922): eight blocks with three choices each on 32-pixel images, all 6,561 networks trained.

The benchmark's parameter counts hold batch norms and its FLOPs are multiply-adds of convolutions and of the classifier; every network
here has exactly those. A skipped block whose shape changes is a 1x1 convolution with its norm.
"""

from __future__ import annotations

import re

from ...compiler.errors import SourceError
from ..space import Architecture, Slot
from .mobile import Chain, ChainSpace, Classifier, Conv, GlobalPool, MBConv

WIDTHS = (64, 64, 128, 128, 128, 256, 256, 256)
STRIDES = (2, 1, 2, 1, 1, 2, 1, 1)
OPERATIONS = (None, (3, 3), (6, 5))  # identity, (expansion, kernel)


class NASBenchMacro(ChainSpace):
    """Genes and text: eight digits, as in the benchmark: 0 skips, 1 expands by 3 with kernel 3, 2 expands by 6 with kernel 5."""

    name = "nasbench_macro"
    cardinalities = (3,) * 8

    def __init__(self, *, classes: int = 10, resolution: int = 32):
        self.classes, self.resolution = classes, resolution

    def describe(self) -> dict[str, object]:
        """See `Space.describe`."""
        return {"name": self.name, "options": {"classes": self.classes, "resolution": self.resolution}}

    def text(self, arch: Architecture) -> str:
        """See `Space.text`."""
        return "".join(map(str, arch.genes))

    def parse(self, text: str) -> Architecture:
        """See `Space.parse`."""
        if not re.fullmatch("[012]{8}", text.strip()):
            raise SourceError(f"{text!r} is no network of {self.name}: eight digits 0, 1 or 2")
        return Architecture(self.name, tuple(map(int, text.strip())))

    def slots(self) -> tuple[Slot, ...]:
        """See `Space.slots`."""
        return (Slot("stem", ()), *(Slot(f"blocks.{i}", (i,)) for i in range(8)), Slot("head", ()))

    def chain(self, arch: Architecture) -> Chain:
        """See `ChainSpace.chain`."""
        parts = [("stem", Conv(32, 3, 1, "relu6")), *self._blocks(arch)]
        parts += [("head.mix", Conv(1280, activation="relu6")), ("head.pool", GlobalPool()), ("head.classifier", Classifier(self.classes))]
        return Chain((1, 3, self.resolution, self.resolution), tuple(parts))

    def _blocks(self, arch: Architecture) -> list[tuple[str, Conv | MBConv]]:
        blocks: list[tuple[str, Conv | MBConv]] = []
        inputs = 32
        for i, (gene, width, stride) in enumerate(zip(arch.genes, WIDTHS, STRIDES, strict=True)):
            operation, same = OPERATIONS[gene], stride == 1 and inputs == width
            if operation is not None:
                expand, kernel = operation
                blocks.append((f"blocks.{i}", MBConv(width, inputs * expand, kernel, stride, shortcut=same)))
            elif not same:
                blocks.append((f"blocks.{i}", Conv(width, stride=stride)))
            inputs = width
        return blocks
