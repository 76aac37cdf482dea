"""ProxylessNAS's space for CIFAR (arXiv 1812.00332): a PyramidNet whose 3 x 3 convolutions are trees of learned edges.

The paper gives B blocks in each of three stages, F output channels of the last block, trees of depth 3 with two branches at every node but
the leaves, 12 learnable edges a tree and 7 operations. It leaves open, and here is chosen:
- Blocks are PyramidNet's bottlenecks (arXiv 1610.02915): one 3 x 3 convolution each, so that B = 18 gives the paper's 12 x 18 x 3 edges.
  Their width grows by equal steps from 16 to F / 4, their output is four times that. With F = 400, networks of separable convolutions
  have 4.8 to 6.4 M parameters (the paper's have 5.7 and 5.8 M); widths up to F itself would make several times as many.
- A tree of depth 3 has 2 + 4 + 8 edges. The two at the root only hand the tree's input on; the 4 and the 8 are learned: 12.
- A node hands its input to both branches (replication) and adds what they return. Split and concatenation, the other pair of the tree
  spaces (arXiv 1806.02639), would halve the width of every edge at each level.
- Separable convolutions are depthwise, 1 x 1, batch norm, ReLU. In the first block of stages 2 and 3 a 2 x 2 average pool halves
  the resolution ahead of the tree, as PyramidNet's shortcut does, so that every edge keeps its shape and identity is always possible.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...compiler.errors import SourceError
from ..space import Architecture, Slot, Space
from .layers import LayerGraph

if TYPE_CHECKING:
    from torch import nn

    from ...compiler.graph import Graph

OPERATIONS = ("dil_sep_3x3", "identity", "sep_3x3", "sep_5x5", "sep_7x7", "avg_pool_3x3", "max_pool_3x3")
EDGES = 12
"""Learned edges of a tree, in the order in which they run: below each of the four inner nodes the edge to it, then its two leaves'."""
STAGES = 3
STEM = 16
EXPANSION = 4
_DIGITS = re.compile(f"[0-{len(OPERATIONS) - 1}]{{{EDGES}}}")


class ProxylessTree(Space):
    """One gene an edge, an index into `OPERATIONS`: 12 for each block, blocks in the order in which they run.

    `B`: blocks a stage; `F`: output channels of the last block, divisible by 4.
    """

    name = "proxyless_tree"

    def __init__(self, B: int = 18, F: int = 400, num_classes: int = 10, resolution: int = 32):
        if min(B, num_classes) < 1 or EXPANSION * STEM > F or F % EXPANSION or resolution < 4 or resolution % 4:
            raise SourceError(
                f"proxyless_tree takes B and num_classes of at least 1, F of at least {EXPANSION * STEM} and divisible by {EXPANSION}, "
                f"and a resolution divisible by 4, not B={B}, F={F}, num_classes={num_classes}, resolution={resolution}"
            )
        self.B, self.F, self.num_classes, self.resolution = B, F, num_classes, resolution
        self.cardinalities = (len(OPERATIONS),) * (EDGES * STAGES * B)

    def input_shape(self, arch: Architecture) -> tuple[int, ...]:
        return (1, 3, self.resolution, self.resolution)

    def describe(self) -> dict[str, Any]:
        options = {"B": self.B, "F": self.F, "num_classes": self.num_classes, "resolution": self.resolution}
        return {"name": self.name, "options": options}

    def text(self, arch: Architecture) -> str:
        """A digit an edge, blocks joined by "-" and stages by "/"."""
        trees = ["".join(map(str, tree)) for tree in self._trees(arch)]
        return "/".join("-".join(trees[stage * self.B : (stage + 1) * self.B]) for stage in range(STAGES))

    def parse(self, text: str) -> Architecture:
        stages = [stage.split("-") for stage in text.strip().split("/")]
        if [len(stage) for stage in stages] != [self.B] * STAGES:
            raise SourceError(f"{text[:60]!r} is not {STAGES} stages joined by '/', each of {self.B} blocks joined by '-'")
        trees = [tree for stage in stages for tree in stage]
        for tree in trees:
            if not _DIGITS.fullmatch(tree):
                raise SourceError(f"block {tree!r} is not {EDGES} digits from 0 to {len(OPERATIONS) - 1}")
        return self.architecture([int(digit) for tree in trees for digit in tree])

    def neighbours(self, arch: Architecture) -> list[Architecture]:
        genes = arch.genes
        around = ((i, value) for i, gene in enumerate(genes) for value in range(len(OPERATIONS)) if value != gene)
        return [Architecture(self.name, (*genes[:i], value, *genes[i + 1 :])) for i, value in around]

    def slots(self) -> tuple[Slot, ...]:
        blocks = [Slot(f"blocks.{k}", tuple(range(EDGES * k, EDGES * (k + 1)))) for k in range(STAGES * self.B)]
        return Slot("stem", ()), *blocks, Slot("norm|relu|pool|flatten|classifier", ())

    def widths(self) -> list[int]:
        """Channels inside each block; its output has four times as many."""
        count = STAGES * self.B
        return [STEM + round((self.F // EXPANSION - STEM) * k / count) for k in range(1, count + 1)]

    def module(self, arch: Architecture) -> nn.Module:
        from .tree_modules import NetworkOfTrees

        trees = [[OPERATIONS[gene] for gene in tree] for tree in self._trees(arch)]
        return NetworkOfTrees(trees, self.widths(), self.B, self.num_classes)

    def graph(self, arch: Architecture) -> Graph:
        net = LayerGraph("NetworkOfTrees", self.input_shape(arch))
        x = net.batch_norm(net.conv2d(net.input, STEM, 3, "stem.0"), "stem.1")
        for k, (tree, width) in enumerate(zip(self._trees(arch), self.widths(), strict=True)):
            x = _block(net, x, [OPERATIONS[gene] for gene in tree], width, k > 0 and k % self.B == 0, f"blocks.{k}")
        x = net.relu(net.batch_norm(x, "norm"), "relu", inplace=True)
        x = net.flatten(net.global_avg_pool(x, "pool"), "flatten")
        return net.build(net.linear(x, self.num_classes, "classifier"))

    def _trees(self, arch: Architecture) -> list[tuple[int, ...]]:
        return [arch.genes[at : at + EDGES] for at in range(0, len(arch.genes), EDGES)]


def _block(net: LayerGraph, x: int, tree: Sequence[str], width: int, halves: bool, scope: str) -> int:
    """A bottleneck: norm, 1 x 1, norm, ReLU, tree, norm, ReLU, 1 x 1, norm, beside a shortcut widened with channels of zeros."""
    y = net.conv2d(net.batch_norm(x, f"{scope}.norm1"), width, 1, f"{scope}.reduce")
    y = net.relu(net.batch_norm(y, f"{scope}.norm2"), f"{scope}.relu2", inplace=True)
    if halves:
        y = net.avg_pool(y, 2, f"{scope}.pool")
    y = net.relu(net.batch_norm(_tree(net, y, tree, f"{scope}.tree"), f"{scope}.norm3"), f"{scope}.relu3", inplace=True)
    y = net.batch_norm(net.conv2d(y, EXPANSION * width, 1, f"{scope}.expand"), f"{scope}.norm4")
    if halves:
        x = net.avg_pool(x, 2, f"{scope}.shortcut")
    wider = EXPANSION * width - net.shape(x)[1]
    if wider:
        x = net.pad(x, (0, 0, 0, 0, 0, wider), scope)
    return net.add(y, x, scope)


def _tree(net: LayerGraph, x: int, tree: Sequence[str], scope: str) -> int:
    inner = []
    for at in range(0, EDGES, 3):
        y = _edge(net, x, tree[at], f"{scope}.edges.{at}")
        first, second = (_edge(net, y, tree[at + i], f"{scope}.edges.{at + i}") for i in (1, 2))
        inner.append(net.add(first, second, scope))
        if at % 6 == 3:
            inner[-2:] = [net.add(inner[-2], inner[-1], scope)]
    return net.add(inner[0], inner[1], scope)


def _edge(net: LayerGraph, x: int, operation: str, scope: str) -> int:
    if operation == "identity":
        return x
    if operation == "avg_pool_3x3":
        return net.avg_pool(x, 3, scope, stride=1, padding=1)
    if operation == "max_pool_3x3":
        return net.max_pool(x, 3, scope, stride=1, padding=1)
    channels = net.shape(x)[1]
    dilation = 2 if operation.startswith("dil") else 1
    y = net.conv2d(x, channels, int(operation[-1]), f"{scope}.0", dilation=dilation, groups=channels)
    return net.relu(net.batch_norm(net.conv2d(y, channels, 1, f"{scope}.1"), f"{scope}.2"), f"{scope}.3", inplace=True)
