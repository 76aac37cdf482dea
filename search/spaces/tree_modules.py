"""torch modules of ProxylessNAS's tree space."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from .proxyless_tree import EDGES, EXPANSION, STEM


def _edge(operation: str, channels: int) -> nn.Module:
    if operation == "identity":
        return nn.Identity()
    if operation == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, 1)
    if operation == "max_pool_3x3":
        return nn.MaxPool2d(3, 1, 1)
    dilation = 2 if operation.startswith("dil") else 1
    kernel = int(operation[-1])
    depthwise = nn.Conv2d(channels, channels, kernel, 1, dilation * (kernel // 2), dilation, channels, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class Tree(nn.Module):
    """Two branches of two inner nodes of two leaves each; a node hands its input on to both branches and adds what they return."""

    def __init__(self, operations: Sequence[str], channels: int):
        super().__init__()
        self.edges = nn.ModuleList(_edge(operation, channels) for operation in operations)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.inner(x, at) + self.inner(x, at + 3) for at in range(0, EDGES, 6)]
        return branches[0] + branches[1]

    def inner(self, x: Tensor, at: int) -> Tensor:
        """What the inner node behind edge `at` returns."""
        y = self.edges[at](x)
        return self.edges[at + 1](y) + self.edges[at + 2](y)


class Bottleneck(nn.Module):
    """PyramidNet's bottleneck around a tree; its shortcut is widened with channels of zeros."""

    def __init__(self, operations: Sequence[str], cin: int, width: int, halves: bool):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(cin)
        self.reduce = nn.Conv2d(cin, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(2) if halves else nn.Identity()
        self.tree = Tree(operations, width)
        self.norm3 = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(width, EXPANSION * width, 1, bias=False)
        self.norm4 = nn.BatchNorm2d(EXPANSION * width)
        self.shortcut = nn.AvgPool2d(2) if halves else nn.Identity()
        self.wider = EXPANSION * width - cin

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.relu2(self.norm2(self.reduce(self.norm1(x)))))
        y = self.norm4(self.expand(self.relu3(self.norm3(self.tree(y)))))
        x = self.shortcut(x)
        return y + (functional.pad(x, (0, 0, 0, 0, 0, self.wider)) if self.wider else x)


class NetworkOfTrees(nn.Module):
    """Stem, bottlenecks of the given `widths`, norm, ReLU, pool, classifier. `per_stage`: blocks between halvings of the resolution."""

    def __init__(self, trees: Sequence[Sequence[str]], widths: Sequence[int], per_stage: int, classes: int):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, STEM, 3, padding=1, bias=False), nn.BatchNorm2d(STEM))
        inputs = [STEM, *(EXPANSION * width for width in widths)]
        self.blocks = nn.Sequential(
            *(
                Bottleneck(tree, cin, width, k > 0 and k % per_stage == 0)
                for k, (tree, cin, width) in enumerate(zip(trees, inputs, widths, strict=False))
            )
        )
        self.norm = nn.BatchNorm2d(inputs[-1])
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(inputs[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.blocks(self.stem(x))))
        return self.classifier(self.flatten(self.pool(x)))
