"""torch modules of the cell spaces: layers that start with a ReLU, and the networks of NAS-Bench-201 and DARTS.

Attribute names are those of the published code, so that weights trained with it load with `load_state_dict`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# ---- layers ---------------------------------------------------------------------------------------------------------


class ReLUConvNorm(nn.Module):
    """ReLU, convolution that keeps the size at stride 1, batch norm."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1):
        super().__init__()
        conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)
        self.op = nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class SeparableConv(nn.Module):
    """ReLU, depthwise, 1 x 1, batch norm, `repeats` times; the first depthwise has the stride."""

    def __init__(self, channels: int, kernel: int, stride: int, dilation: int, repeats: int):
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(repeats):
            padding = dilation * (kernel - 1) // 2
            depthwise = nn.Conv2d(channels, channels, kernel, 1 if i else stride, padding, dilation, channels, bias=False)
            layers += [nn.ReLU(), depthwise, nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class FactorizedReduce(nn.Module):
    """Half the resolution from every pixel: two strided 1 x 1 convolutions, the second one pixel further on."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(cin, cout // 2, 1, 2, bias=False)
        self.conv_2 = nn.Conv2d(cin, cout // 2, 1, 2, bias=False)
        self.bn = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], 1))


class AveragePool(nn.Module):
    """3 x 3 average over what lies inside the image."""

    def __init__(self):
        super().__init__()
        self.op = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Absent(nn.Module):
    """Keeps the place of an edge that carries nothing; it never runs."""


# ---- NAS-Bench-201 --------------------------------------------------------------------------------------------------


class CellOf201(nn.Module):
    """Four nodes; node 0 is the input, each other is the sum of its edges. `edges`: (source, target, operation), targets ascending."""

    def __init__(self, edges: Sequence[tuple[int, int, str]], channels: int):
        super().__init__()
        make = {
            "none": Absent,
            "skip_connect": nn.Identity,
            "nor_conv_1x1": lambda: ReLUConvNorm(channels, channels, 1),
            "nor_conv_3x3": lambda: ReLUConvNorm(channels, channels, 3),
            "avg_pool_3x3": AveragePool,
        }
        self.layers = nn.ModuleList(make[op]() for _, _, op in edges)
        self.live = [[(e, source) for e, (source, to, op) in enumerate(edges) if to == target and op != "none"] for target in (1, 2, 3)]

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for live in self.live:
            if live:
                first, *rest = live
                total = self.layers[first[0]](nodes[first[1]])
                for e, source in rest:
                    total = total + self.layers[e](nodes[source])
            else:
                total = x.mul(0.0)
            nodes.append(total)
        return nodes[3]


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, the first with stride 2, beside an average pool and a 1 x 1 convolution."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.conv_a = ReLUConvNorm(cin, cout, 3, 2)
        self.conv_b = ReLUConvNorm(cout, cout, 3)
        self.downsample = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(cin, cout, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_b(self.conv_a(x))
        return self.downsample(x) + y


class NetworkOf201(nn.Module):
    """Stem, three stages of `repeats` equal cells with a residual block between stages, batch norm, pool, classifier."""

    def __init__(self, edges: Sequence[tuple[int, int, str]], channels: int, repeats: int, classes: int):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        cells: list[nn.Module] = []
        for stage in range(3):
            if stage:
                cells.append(ResidualBlock(channels, 2 * channels))
                channels *= 2
            cells += [CellOf201(edges, channels) for _ in range(repeats)]
        self.cells = nn.Sequential(*cells)
        self.lastact = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.global_pooling(self.lastact(self.cells(self.stem(x))))))


# ---- DARTS ----------------------------------------------------------------------------------------------------------


def _darts_operation(name: str, channels: int, stride: int) -> nn.Module:
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)
    if name == "max_pool_3x3":
        return nn.MaxPool2d(3, stride, 1)
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    separable = name.startswith("sep")
    return SeparableConv(channels, int(name[-1]), stride, 1 if separable else 2, 2 if separable else 1)


class CellOfDARTS(nn.Module):
    """Reads the outputs of the two cells before it. `cell`: for each node its two edges (operation, state)."""

    def __init__(self, cell: Sequence[Sequence[tuple[str, int]]], before_last: int, last: int, channels: int, halves: bool, halved: bool):
        super().__init__()
        self.preprocess0 = FactorizedReduce(before_last, channels) if halved else ReLUConvNorm(before_last, channels, 1)
        self.preprocess1 = ReLUConvNorm(last, channels, 1)
        edges = [edge for node in cell for edge in node]
        self._ops = nn.ModuleList(_darts_operation(name, channels, 2 if halves and state < 2 else 1) for name, state in edges)
        self.states = [state for _, state in edges]

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        states = [self.preprocess0(before_last), self.preprocess1(last)]
        for i in range(0, len(self.states), 2):
            lower, upper = (self._ops[j](states[self.states[j]]) for j in (i, i + 1))
            states.append(lower + upper)
        return torch.cat(states[2:], 1)


class NetworkOfDARTS(nn.Module):
    """A stem, `layers` cells of which those at one and two thirds of the depth reduce, pool, classifier."""

    def __init__(self, normal: Sequence, reduce: Sequence, channels: int, layers: int, classes: int):
        super().__init__()
        width = 3 * channels
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.cells = nn.ModuleList()
        before_last, last, halved = width, width, False
        for i in range(layers):
            halves = i in (layers // 3, 2 * layers // 3)
            channels *= 1 + halves
            self.cells.append(CellOfDARTS(reduce if halves else normal, before_last, last, channels, halves, halved))
            before_last, last, halved = last, 4 * channels, halves
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        before_last = last = self.stem(x)
        for cell in self.cells:
            before_last, last = last, cell(before_last, last)
        return self.classifier(self.flatten(self.global_pooling(last)))
