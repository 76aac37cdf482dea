"""Reference networks found by search or drawn at random: many branches, so that the order of execution matters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Genotype = tuple[tuple[str, int], ...]

# Table of the DARTS second-order cells (arXiv 1806.09055, figures 4 and 5): two (operation, source) edges per inner node.
DARTS_NORMAL: Genotype = (
    ("sep", 0), ("sep", 1), ("sep", 0), ("sep", 1), ("sep", 1), ("skip", 0), ("skip", 0), ("dil", 2),
)  # fmt: skip
DARTS_REDUCE: Genotype = (
    ("max", 0), ("max", 1), ("skip", 2), ("max", 1), ("max", 0), ("skip", 2), ("skip", 2), ("max", 1),
)  # fmt: skip


class ReLUConvNorm(nn.Sequential):
    """ReLU, 1 x 1 convolution, batch norm."""

    def __init__(self, cin: int, cout: int):
        super().__init__(nn.ReLU(), nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout))


class SeparableConv(nn.Sequential):
    """ReLU, 3 x 3 depthwise, 1 x 1, batch norm, `repeats` times; only the first depthwise has the stride."""

    def __init__(self, channels: int, stride: int, dilation: int, repeats: int):
        layers: list[nn.Module] = []
        for i in range(repeats):
            depthwise = nn.Conv2d(channels, channels, 3, 1 if i else stride, dilation, dilation, channels, bias=False)
            layers += [nn.ReLU(), depthwise, nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        super().__init__(*layers)


class FactorizedReduce(nn.Module):
    """Halves the resolution without dropping pixels: two strided 1 x 1 convolutions, the second on odd pixels."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.relu = nn.ReLU()
        self.even = nn.Conv2d(cin, cout // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(cin, cout - cout // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], 1))


def _edge(kind: str, channels: int, stride: int) -> nn.Module:
    if kind == "skip":
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)
    if kind == "max":
        return nn.MaxPool2d(3, stride, 1)
    return SeparableConv(channels, stride, 1, 2) if kind == "sep" else SeparableConv(channels, stride, 2, 1)


class DartsCell(nn.Module):
    """Reads the outputs of the two cells before it; four inner nodes, each the sum of two edges, are concatenated."""

    def __init__(self, genotype: Genotype, before_last: int, last: int, channels: int, reduction: bool, after_reduction: bool):
        super().__init__()
        prepare = FactorizedReduce if after_reduction else ReLUConvNorm
        self.prepare = nn.ModuleList([prepare(before_last, channels), ReLUConvNorm(last, channels)])
        self.edges = nn.ModuleList(_edge(kind, channels, 2 if reduction and source < 2 else 1) for kind, source in genotype)
        self.sources = [source for _, source in genotype]

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        states = [self.prepare[0](before_last), self.prepare[1](last)]
        for i in range(0, len(self.edges), 2):
            left, right = (self.edges[j](states[self.sources[j]]) for j in (i, i + 1))
            states.append(left + right)
        return torch.cat(states[2:], 1)


class DartsNetwork(nn.Module):
    """A stem, cells of which those at one and two thirds of the depth halve the resolution, and a linear classifier."""

    def __init__(self, channels: int, cells: int, classes: int):
        super().__init__()
        wide = 3 * channels
        self.stem = nn.Sequential(nn.Conv2d(3, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide))
        self.cells = nn.ModuleList()
        before_last = last = wide
        after_reduction = False
        for i in range(cells):
            reduction = i in (cells // 3, 2 * cells // 3)
            channels *= 2 if reduction else 1
            genotype = DARTS_REDUCE if reduction else DARTS_NORMAL
            self.cells.append(DartsCell(genotype, before_last, last, channels, reduction, after_reduction))
            before_last, last, after_reduction = last, 4 * channels, reduction
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        before_last = last = self.stem(x)
        for cell in self.cells:
            before_last, last = last, cell(before_last, last)
        return self.head(self.pool(last).flatten(1))


def darts_cifar(channels: int = 36, cells: int = 20, classes: int = 10) -> nn.Module:
    """The DARTS-V2 evaluation network for CIFAR-10, without auxiliary head; input (N, 3, 32, 32)."""
    return DartsNetwork(channels, cells, classes)


class RandomNode(nn.Module):
    """Gated sum of its inputs, ReLU, 3 x 3 separable convolution, batch norm."""

    def __init__(self, inputs: int, cin: int, cout: int, stride: int):
        super().__init__()
        self.gates = nn.Parameter(torch.zeros(inputs)) if inputs > 1 else None
        self.depthwise = nn.Conv2d(cin, cin, 3, stride, 1, groups=cin, bias=False)
        self.pointwise = nn.Conv2d(cin, cout, 1, bias=False)
        self.norm = nn.BatchNorm2d(cout)
        self.relu = nn.ReLU()

    def forward(self, *inputs: Tensor) -> Tensor:
        x = inputs[0]
        if self.gates is not None:
            weights = torch.sigmoid(self.gates)
            x = x * weights[0]
            for i, other in enumerate(inputs[1:], 1):
                x = x + other * weights[i]
        return self.norm(self.pointwise(self.depthwise(self.relu(x))))


class RandomStage(nn.Module):
    """A Watts-Strogatz graph made acyclic by node number: sources read the stage input at stride 2, sinks are averaged."""

    def __init__(self, cin: int, cout: int, nodes: int, neighbours: int, rewire: float, seed: int):
        import networkx

        super().__init__()
        wiring = networkx.connected_watts_strogatz_graph(nodes, neighbours, rewire, seed=seed)
        self.inputs = [sorted(u for u in wiring[v] if u < v) for v in range(nodes)]
        self.sinks = [v for v in range(nodes) if all(u < v for u in wiring[v])]
        self.nodes = nn.ModuleList(RandomNode(len(us) or 1, cout if us else cin, cout, 1 if us else 2) for us in self.inputs)

    def forward(self, x: Tensor) -> Tensor:
        outs: list[Tensor] = []
        for node, sources in zip(self.nodes, self.inputs, strict=True):
            outs.append(node(*[outs[u] for u in sources]) if sources else node(x))
        total = outs[self.sinks[0]]
        for v in self.sinks[1:]:
            total = total + outs[v]
        return total / len(self.sinks)


def randwire(seed: int = 0, channels: int = 78, nodes: int = 32, classes: int = 1000) -> nn.Module:
    """RandWire-WS(4, 0.75), small regime, arXiv 1904.01569 table 1; `seed` draws the three random stages."""
    stem = nn.Sequential(nn.Conv2d(3, channels // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(channels // 2))
    stages: list[nn.Module] = [RandomNode(1, channels // 2, channels, 2)]
    cin = channels
    for i, (cout, size) in enumerate([(channels, nodes // 2), (2 * channels, nodes), (4 * channels, nodes)]):
        stages.append(RandomStage(cin, cout, size, 4, 0.75, 3 * seed + i))
        cin = cout
    head = [nn.ReLU(), nn.Conv2d(cin, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU()]
    return nn.Sequential(stem, *stages, *head, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes))
