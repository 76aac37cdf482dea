"""A search space of your own in one page: small MBConv networks for 64-pixel images, priced exactly.

`python examples/own_space.py` prices 2,000 of them. To search them for accuracy under a limit, on a folder of images:
`neaptide search --space examples/own_space.py:Tiny --engine nsga2 --objective accuracy,peak --constraint "peak<=256KiB" --data FOLDER`.
"""
# ruff: noqa: RUF012

from __future__ import annotations

import numpy as np
from torch import nn

from neaptide.search.oracle import Oracle
from neaptide.search.spaces.own import Choice, OwnSpace


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, expand: int, stride: int):
        super().__init__()
        middle = inputs * expand
        self.layers = nn.Sequential(conv(inputs, middle), conv(middle, middle, kernel, stride, middle), conv(middle, outputs)[:2])
        self.same = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.layers(x) if self.same else self.layers(x)


class Tiny(OwnSpace):
    """Two stages of one or two blocks. The second block of a stage matters only where there is one."""

    options = {"classes": 10}
    choices = {
        "width": (8, 16),
        "depth1": (1, 2), "kernel1": (3, 5), "expand1": (2, 4), "kernel2": Choice((3, 5), when=("depth1", (2,))),
        "depth2": (1, 2), "kernel3": (3, 5), "expand3": (2, 4), "kernel4": Choice((3, 5), when=("depth2", (2,))),
    }  # fmt: skip
    cuts = {  # one tensor alone runs between these, so each is priced once; all depend on what is said here and on nothing else
        "0": ("width",),
        "1": ("width", "kernel1", "expand1"),
        "2": ("width", "kernel2", "depth1"),
        "3": ("width", "kernel3", "expand3"),
        "4": ("width", "kernel4", "depth2"),
        "5|6|7": ("width",),
    }

    def shape(self, choices):
        return (1, 3, 64, 64)

    def build(self, choices):
        w = choices["width"]
        layers = [
            conv(3, w, 3, stride=2),
            Block(w, 2 * w, choices["kernel1"], choices["expand1"], stride=2),
            Block(2 * w, 2 * w, choices["kernel2"], 4, stride=1) if "kernel2" in choices else nn.Identity(),
            Block(2 * w, 4 * w, choices["kernel3"], choices["expand3"], stride=2),
            Block(4 * w, 4 * w, choices["kernel4"], 4, stride=1) if "kernel4" in choices else nn.Identity(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * w, self.options["classes"]),
        ]
        return nn.Sequential(*layers)


def main() -> None:
    space = Tiny()
    rows = space.sample_rows(np.random.default_rng(0), 2000)
    costs = Oracle(space).cost(rows, ("params", "macs", "peak"))
    print(f"{space.size} networks, of which these drawn need least and most memory:")
    for i in (costs["peak"].argmin(), costs["peak"].argmax()):
        (arch,) = space.decode(rows[[i]])
        print(f"  {costs['peak'][i]:,} B, {costs['macs'][i]:,} MACs, {costs['params'][i]:,} parameters: {space.text(arch)}")


if __name__ == "__main__":
    main()
