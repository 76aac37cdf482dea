"""Graphs of NAS-Bench-201 networks, a few hundred microseconds each.

The tables of a graph hold first what every network has, then edge by edge the layers of that edge in all cells, then the sums. An edge's
part of the tables so depends on its operation and on how much stands before it, of which there are few combinations: it is made once,
remembered, and shared by thousands of graphs. Only the nodes, which stand in the order in which the network runs, are made anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import chain

from ...compiler.graph import Graph, Node, Ref, Storage, Tensor
from .fragments import Placed, inference_node, place_all
from .layers import LayerGraph

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NONE, SKIP, CONV_1, CONV_3, POOL = range(5)
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""(source, target) of each edge, in the order of the benchmark's strings and of the genes."""
INCOMING = tuple(tuple((e, source) for e, (source, to) in enumerate(EDGES) if to == target) for target in (1, 2, 3))
"""The edges into nodes 1, 2 and 3: (edge, source)."""

_ADD = {"args": [Ref(0), Ref(1)], "kwargs": {}}
_DOUBLE = {"args": [Ref(0), Ref(0)], "kwargs": {}}
_ZERO = {"args": [Ref(0), 0.0], "kwargs": {}}
_META = {"frontend": "layers", "device": "cpu", "mode": "inference"}

Tables = tuple[tuple[Tensor, ...], tuple[Storage, ...]]


class GraphMaker:
    """Makes the graphs of one set of options and remembers the parts that they share."""

    def __init__(self, channels: int, repeats: int, classes: int, resolution: int):
        self._classes, self._resolution = classes, resolution
        widths = [(channels << stage, resolution >> stage) for stage in range(3)]
        self._widths = widths
        self._cells = [(k, *widths[k // (repeats + 1)]) for k in range(3 * repeats + 2) if k % (repeats + 1) < repeats]
        self._reductions = {(stage + 1) * (repeats + 1) - 1: stage + 1 for stage in range(2)}
        self._blocks: dict[tuple[int, int, int], tuple[tuple[Placed, ...], Tables]] = {}
        self._sums: dict[tuple[int, int], Tables] = {}

    def make(self, genes: Sequence[int]) -> Graph:
        """The inference graph of the network whose cells have operation `genes[e]` on edge e."""
        tensors, storages = [self._common_tables[0]], [self._common_tables[1]]
        start, behind = len(tensors[0]), len(storages[0])
        layers: list[tuple[Placed, ...] | None] = []
        for e, gene in enumerate(genes):
            if gene <= SKIP:
                layers.append(None)
                continue
            placed, tables = self._blocks.get((e, gene, start)) or self._place_edge(e, gene, start, behind)
            layers.append(placed)
            tensors.append(tables[0])
            storages.append(tables[1])
            start += len(tables[0])
            behind += len(tables[1])
        per_cell = sum(sums_into(edges, genes) for edges in INCOMING)
        tables = self._sums.get((per_cell, start)) or self._place_sums(per_cell, start, behind)
        tensors.append(tables[0])
        storages.append(tables[1])
        nodes, out = self._nodes(genes, layers, start)
        return Graph(
            "NetworkOf201", tuple(nodes), tuple(chain.from_iterable(tensors)), tuple(chain.from_iterable(storages)), (0,), (out,), _META
        )

    def _nodes(self, genes: Sequence[int], layers: list[tuple[Placed, ...] | None], made: int) -> tuple[list[Node], int]:
        """The nodes in the order in which the network runs, and its result. `made`: the first tensor of the sums."""
        nodes: list[Node] = []
        stem, *reductions, tail = self._common
        x = stem.append(nodes, 0)
        for i, (k, _, _) in enumerate(self._cells):
            if k - 1 in self._reductions:
                x = reductions[self._reductions[k - 1] - 1].append(nodes, x)
            scope = f"cells.{k}"
            values = [x]
            for edges in INCOMING:
                total = -1
                for e, source in edges:
                    gene = genes[e]
                    if gene == NONE:
                        continue
                    placed = layers[e]
                    y = placed[i].append(nodes, values[source]) if placed else values[source]
                    if total < 0:
                        total = y
                    else:
                        inputs, attrs = ((total, y), _ADD) if total != y else ((y,), _DOUBLE)
                        nodes.append(inference_node(len(nodes), "aten.add.Tensor", inputs, (made,), (), attrs, scope))
                        total, made = made, made + 1
                if total < 0:
                    nodes.append(inference_node(len(nodes), "aten.mul.Tensor", (x,), (made,), (), _ZERO, scope))
                    total, made = made, made + 1
                values.append(total)
            x = values[3]
        return nodes, tail.append(nodes, x)

    # ---- parts made once --------------------------------------------------------------------------------------------

    @cached_property
    def _common(self) -> tuple[Placed, ...]:
        """Stem, residual blocks and tail, placed behind the input."""
        parts = [(self._stem(), "stem")]
        parts += [(self._residual_block(stage), f"cells.{k}") for k, stage in self._reductions.items()]
        return place_all([*parts, (self._tail(), "")], 1, 1)

    @cached_property
    def _common_tables(self) -> Tables:
        shape = (1, 3, self._resolution, self._resolution)
        image = Tensor(0, shape, "float32", 0, name="x")
        tensors, storages = joined(self._common)
        return (image, *tensors), (Storage(0, 4 * image.numel, "input", "x"), *storages)

    def _place_edge(self, e: int, gene: int, start: int, behind: int) -> tuple[tuple[Placed, ...], Tables]:
        """The layers of edge `e` in every cell, their tensors from `start` and their storages from `behind` on."""
        made = {width: _edge(gene, *width) for width in self._widths}
        placed = place_all([(made[c, size], f"cells.{k}.layers.{e}") for k, c, size in self._cells], start, behind)
        self._blocks[e, gene, start] = placed, joined(placed)
        return self._blocks[e, gene, start]

    def _place_sums(self, per_cell: int, start: int, behind: int) -> Tables:
        tensors, storages = [], []
        for _, c, size in self._cells:
            for _ in range(per_cell):
                tensors.append(Tensor(start + len(tensors), (1, c, size, size), "float32", behind + len(storages)))
                storages.append(Storage(behind + len(storages), 4 * c * size * size))
        self._sums[per_cell, start] = tuple(tensors), tuple(storages)
        return self._sums[per_cell, start]

    def _stem(self) -> Graph:
        net = LayerGraph("stem", (1, 3, self._resolution, self._resolution))
        return net.build(net.batch_norm(net.conv2d(net.input, self._widths[0][0], 3, "0"), "1"))

    def _residual_block(self, stage: int) -> Graph:
        (cin, size), (cout, _) = self._widths[stage - 1], self._widths[stage]
        net = LayerGraph("residual", (1, cin, size, size))
        y = relu_conv_norm(net, net.input, cout, 3, "conv_a.op", stride=2)
        y = relu_conv_norm(net, y, cout, 3, "conv_b.op")
        beside = net.conv2d(net.avg_pool(net.input, 2, "downsample.0"), cout, 1, "downsample.1")
        return net.build(net.add(beside, y, ""))

    def _tail(self) -> Graph:
        c, size = self._widths[-1]
        net = LayerGraph("tail", (1, c, size, size))
        x = net.relu(net.batch_norm(net.input, "lastact.0"), "lastact.1", inplace=True)
        x = net.flatten(net.global_avg_pool(x, "global_pooling"), "flatten")
        return net.build(net.linear(x, self._classes, "classifier"))


def sums_into(edges: Sequence[tuple[int, int]], genes: Sequence[int]) -> int:
    """Tensors that joining `edges` makes: one for each summand but the first, or the zeros of a node without any."""
    live = sum(genes[e] != NONE for e, _ in edges)
    return live - 1 if live else 1


def joined(placed: Sequence[Placed]) -> Tables:
    """The tables of `placed`, one behind the other."""
    return tuple(chain.from_iterable(p.tensors for p in placed)), tuple(chain.from_iterable(p.storages for p in placed))


def relu_conv_norm(net: LayerGraph, x: int, channels: int, kernel: int, scope: str, *, stride: int = 1) -> int:
    """ReLU, convolution, batch norm: what cell spaces put on most of their edges."""
    x = net.conv2d(net.relu(x, f"{scope}.0"), channels, kernel, f"{scope}.1", stride=stride)
    return net.batch_norm(x, f"{scope}.2")


def _edge(gene: int, channels: int, size: int) -> Graph:
    net = LayerGraph(OPERATIONS[gene], (1, channels, size, size))
    if gene == POOL:
        return net.build(net.avg_pool(net.input, 3, "op", stride=1, padding=1, count_include_pad=False))
    return net.build(relu_conv_norm(net, net.input, channels, 3 if gene == CONV_3 else 1, "op"))
