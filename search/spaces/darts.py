"""The space of DARTS: a normal and a reduction cell, each of four nodes that add two operations on earlier states.

Liu, Simonyan and Yang, arXiv 1806.09055. A cell's states are the outputs of the two cells before it and its own nodes, which are
concatenated. Architectures are what DARTS derives: every node has two edges from different states, none of them `none`, so that a cell has
(1 x 3 x 6 x 10) x 7^8 forms. Renaming nodes may give an equal network; such pairs count as different, as in the paper. The network is the
paper's for CIFAR at evaluation. Its auxiliary head plays no part in inference and is left out, as is drop path.
"""

from __future__ import annotations

import ast
import re
from itertools import combinations
from typing import TYPE_CHECKING, Any

from ...compiler.errors import SourceError
from ..space import Architecture, Slot, Space
from .layers import LayerGraph
from .nasbench201_graph import relu_conv_norm

if TYPE_CHECKING:
    from torch import nn

    from ...compiler.graph import Graph

OPERATIONS = ("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
NODES = 4
PAIRS = tuple(tuple(combinations(range(2 + node), 2)) for node in range(NODES))
"""Which two states a node may read, lower first; states 0 and 1 are the cells before, 2 to 5 the nodes."""

Edge = tuple[str, int]
Cell = tuple[tuple[Edge, Edge], ...]
_CELLS = ("normal", "reduce")
_CONCAT = [2, 3, 4, 5]
_GENOTYPE = re.compile(r"\s*Genotype\s*\((.*)\)\s*", re.DOTALL)


class DARTS(Space):
    """24 genes: for the normal and then the reduction cell, for each node, the pair of states it reads (an index into `PAIRS`), the
    operation on the lower and that on the upper (indices into `OPERATIONS`). `channels`: of the first cells' nodes; `layers`: cells.
    """

    name = "darts"
    cardinalities = 2 * tuple(c for pairs in PAIRS for c in (len(pairs), len(OPERATIONS), len(OPERATIONS)))

    def __init__(self, channels: int = 36, layers: int = 20, num_classes: int = 10, resolution: int = 32):
        if min(channels, layers, num_classes) < 1 or resolution < 4 or resolution % 4:
            raise SourceError(
                f"darts takes channels, layers and num_classes of at least 1 and a resolution divisible by 4, not channels={channels}, "
                f"layers={layers}, num_classes={num_classes}, resolution={resolution}"
            )
        self.channels, self.layers, self.num_classes, self.resolution = channels, layers, num_classes, resolution

    def input_shape(self, arch: Architecture) -> tuple[int, ...]:
        return (1, 3, self.resolution, self.resolution)

    def describe(self) -> dict[str, Any]:
        options = {"channels": self.channels, "layers": self.layers, "num_classes": self.num_classes, "resolution": self.resolution}
        return {"name": self.name, "options": options}

    def parts(self) -> tuple[Slot, ...]:
        """Each operation follows its own gene and the pair that says which state it reads; what is around them follows none."""
        found = [Slot("stem|global_pooling|flatten|classifier", ())]
        for i in range(self.layers):
            at = 3 * NODES * (i in reductions(self.layers))
            found.append(Slot(f"cells.{i}", ()))
            for node in range(NODES):
                pair = at + 3 * node
                found += [Slot(f"cells.{i}._ops.{2 * node + k}", (pair, pair + 1 + k)) for k in (0, 1)]
        return tuple(found)

    def stretches(self) -> tuple[Slot, ...]:
        """A cell each, with the layers of the next cell that read what the cell itself reads: its last reader."""
        genes = tuple(range(3 * NODES)), tuple(range(3 * NODES, 6 * NODES))
        ahead = [f"|cells.{i + 1}.preprocess0" if i + 1 < self.layers else "" for i in range(self.layers)]
        cells = [Slot(f"cells.{i}{ahead[i]}", genes[i in reductions(self.layers)]) for i in range(self.layers)]
        return Slot("stem|cells.0.preprocess0", ()), *cells, Slot("global_pooling|flatten|classifier", ())

    def cells(self, arch: Architecture) -> tuple[Cell, Cell]:
        """The normal and the reduction cell: for each node its two edges (operation, state), lower state first."""
        cells = []
        for at in (0, 3 * NODES):
            genes = [arch.genes[at + 3 * node : at + 3 * node + 3] for node in range(NODES)]
            edges = ((PAIRS[node][pair], lower, upper) for node, (pair, lower, upper) in enumerate(genes))
            cells.append(tuple(((OPERATIONS[lower], a), (OPERATIONS[upper], b)) for (a, b), lower, upper in edges))
        return cells[0], cells[1]

    def text(self, arch: Architecture) -> str:
        """A genotype as DARTS prints it: `Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=[2, 3, 4, 5], reduce=[...], ...)`."""
        fields = ", ".join(
            f"{kind}={[edge for edges in cell for edge in edges]}, {kind}_concat={_CONCAT}"
            for kind, cell in zip(_CELLS, self.cells(arch), strict=True)
        )
        return f"Genotype({fields})"

    def parse(self, text: str) -> Architecture:
        fields = _fields(text)
        genes: list[int] = []
        for kind in _CELLS:
            edges = fields.get(kind)
            if not isinstance(edges, (list, tuple)) or len(edges) != 2 * NODES:
                raise SourceError(f"a DARTS genotype lists {2 * NODES} edges as {kind}=[...], not {edges!r}")
            concat = fields.get(f"{kind}_concat", _CONCAT)
            if not isinstance(concat, (list, tuple)) or sorted(concat, key=str) != _CONCAT:
                raise SourceError(f"{kind}_concat={concat!r}: cells of space darts concatenate nodes {_CONCAT}")
            for node in range(NODES):
                genes += _node_genes(kind, node, edges[2 * node : 2 * node + 2])
        return self.architecture(genes)

    def module(self, arch: Architecture) -> nn.Module:
        from .cell_modules import NetworkOfDARTS

        normal, reduce = self.cells(arch)
        return NetworkOfDARTS(normal, reduce, self.channels, self.layers, self.num_classes)

    def graph(self, arch: Architecture) -> Graph:
        normal, reduce = self.cells(arch)
        net = LayerGraph("NetworkOfDARTS", self.input_shape(arch))
        last = net.batch_norm(net.conv2d(net.input, 3 * self.channels, 3, "stem.0"), "stem.1")
        before_last, channels, halved = last, self.channels, False
        for i in range(self.layers):
            halves = i in reductions(self.layers)
            channels *= 1 + halves
            out = _cell(net, reduce if halves else normal, before_last, last, channels, halves, halved, f"cells.{i}")
            before_last, last, halved = last, out, halves
        x = net.flatten(net.global_avg_pool(last, "global_pooling"), "flatten")
        return net.build(net.linear(x, self.num_classes, "classifier"))


def reductions(layers: int) -> tuple[int, int]:
    """The cells that halve the resolution and double the channels: a third and two thirds of the way."""
    return layers // 3, 2 * layers // 3


def _cell(net: LayerGraph, cell: Cell, before_last: int, last: int, channels: int, halves: bool, halved: bool, scope: str) -> int:
    """One cell. `halves`: its edges from the cells before have stride 2; `halved`: the cell before did."""
    if halved:
        states = [_factorized_reduce(net, before_last, channels, f"{scope}.preprocess0")]
    else:
        states = [relu_conv_norm(net, before_last, channels, 1, f"{scope}.preprocess0.op")]
    states.append(relu_conv_norm(net, last, channels, 1, f"{scope}.preprocess1.op"))
    place = 0
    for edges in cell:
        made = []
        for operation, state in edges:
            made.append(_operation(net, operation, states[state], 2 if halves and state < 2 else 1, f"{scope}._ops.{place}"))
            place += 1
        states.append(net.add(made[0], made[1], scope))
    return net.cat(states[2:], scope)


def _operation(net: LayerGraph, operation: str, x: int, stride: int, scope: str) -> int:
    channels = net.shape(x)[1]
    if operation == "skip_connect":
        return x if stride == 1 else _factorized_reduce(net, x, channels, scope)
    if operation == "max_pool_3x3":
        return net.max_pool(x, 3, scope, stride=stride, padding=1)
    if operation == "avg_pool_3x3":
        return net.avg_pool(x, 3, scope, stride=stride, padding=1, count_include_pad=False)
    kernel, separable = int(operation[-1]), operation.startswith("sep")
    for i in range(2 if separable else 1):
        x = net.relu(x, f"{scope}.op.{4 * i}")
        dilation = 1 if separable else 2
        x = net.conv2d(x, channels, kernel, f"{scope}.op.{4 * i + 1}", stride=1 if i else stride, dilation=dilation, groups=channels)
        x = net.batch_norm(net.conv2d(x, channels, 1, f"{scope}.op.{4 * i + 2}"), f"{scope}.op.{4 * i + 3}")
    return x


def _factorized_reduce(net: LayerGraph, x: int, channels: int, scope: str) -> int:
    x = net.relu(x, f"{scope}.relu")
    even = net.conv2d(x, channels // 2, 1, f"{scope}.conv_1", stride=2)
    odd = net.slice(net.slice(x, 2, scope, start=1), 3, scope, start=1)
    odd = net.conv2d(odd, channels // 2, 1, f"{scope}.conv_2", stride=2)
    return net.batch_norm(net.cat([even, odd], scope), f"{scope}.bn")


def _fields(text: str) -> dict[str, Any]:
    """The keyword arguments of a written `Genotype(...)`; `range(2, 6)` is read as the list it stands for."""
    match = _GENOTYPE.fullmatch(text)
    if match is None:
        raise SourceError(f"a DARTS genotype is written Genotype(normal=[...], reduce=[...]), not {text[:60]!r}")
    try:
        call = ast.parse(re.sub(r"range\(\s*2\s*,\s*6\s*\)", repr(_CONCAT), text.strip()), mode="eval").body
        keywords = call.keywords if isinstance(call, ast.Call) else []
        return {word.arg: ast.literal_eval(word.value) for word in keywords if word.arg}
    except (SyntaxError, ValueError) as error:
        raise SourceError(f"genotype {text[:60]!r}... cannot be read: {error}") from error


def _node_genes(kind: str, node: int, edges: Any) -> tuple[int, int, int]:
    """Pair, lower and upper operation of one node from its two written edges."""
    try:
        (state, operation), (other, upper) = sorted((int(state), str(operation)) for operation, state in edges)
    except (TypeError, ValueError) as error:
        raise SourceError(f"node {node} of the {kind} cell: {edges!r} is not two edges (operation, state)") from error
    for name in (operation, upper):
        if name not in OPERATIONS:
            raise SourceError(f"node {node} of the {kind} cell: operation {name!r} is not one of {', '.join(OPERATIONS)}")
    if (state, other) not in PAIRS[node]:
        raise SourceError(
            f"node {node} of the {kind} cell reads states {state} and {other}; it takes two different ones from 0 to {node + 1}"
        )
    return PAIRS[node].index((state, other)), OPERATIONS.index(operation), OPERATIONS.index(upper)
