"""torch modules of the MemNet space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .memnet import Block, Cell


def _conv_norm(cin: int, cout: int, kernel: int | tuple[int, int], stride: int = 1, dilation: int = 1, groups: int = 1) -> list[nn.Module]:
    high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (dilation * (high - 1) // 2, dilation * (wide - 1) // 2)
    return [nn.Conv2d(cin, cout, (high, wide), stride, padding, dilation, groups, bias=False), nn.BatchNorm2d(cout)]


def layer(operation: str, cin: int, width: int, stride: int) -> nn.Module:
    """One layer of a block, from `cin` to `width` channels; `memnet.operation` writes the same as a graph."""
    relu = lambda: nn.ReLU(inplace=True)  # noqa: E731
    if operation == "identity":
        return nn.Identity() if (cin, stride) == (width, 1) else nn.Sequential(*_conv_norm(cin, width, 1, stride))
    if operation == "conv_3x3":
        return nn.Sequential(*_conv_norm(cin, width, 3, stride), relu())
    if operation == "dil_conv_3x3":
        return nn.Sequential(*_conv_norm(cin, width, 3, stride, 2), relu())
    if operation == "fac_conv_7x7":
        narrow = [*_conv_norm(width, width, (1, 7)), relu(), *_conv_norm(width, width, (7, 1)), relu()]
        return nn.Sequential(*_conv_norm(cin, width, 1, stride), relu(), *narrow)
    if operation in ("dw_sep_3x3", "dw_sep_5x5"):
        return nn.Sequential(*_conv_norm(cin, cin, int(operation[-1]), stride, 1, cin), *_conv_norm(cin, width, 1), relu())
    pool = nn.AvgPool2d(3, stride, 1) if operation == "avg_pool_3x3" else nn.MaxPool2d(3, stride, 1)
    return nn.Sequential(*_conv_norm(cin, width, 1), pool)


class BlockLayers(nn.Module):
    """The two layers of one block."""

    def __init__(self, block: Block, operations: tuple[str, str], widths: Sequence[int], width: int, stride: int):
        super().__init__()
        self.inputs, self.join = block.inputs, block.join
        first, second = (
            layer(operation, widths[source], width, 1 if source else stride)
            for operation, source in zip(operations, block.inputs, strict=True)
        )
        self.first, self.second = first, second

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        a, b = self.first(states[self.inputs[0]]), self.second(states[self.inputs[1]])
        return a + b if self.join == "add" else torch.cat([a, b], 1)


class CellOfMemNet(nn.Module):
    """Blocks in a row, each reading the cell's input or blocks before it; the output joins the blocks that are connected to it."""

    def __init__(self, cell: Cell, cin: int):
        super().__init__()
        widths = [cin]
        self.blocks = nn.ModuleList()
        for block, operations in zip(cell.blocks, cell.operations, strict=True):
            self.blocks.append(BlockLayers(block, operations, widths, cell.width, cell.stride))
            widths.append(block.channels(cell.width))
        self.ends = cell.ends

    def forward(self, x: Tensor) -> Tensor:
        states = [x]
        for block in self.blocks:
            states.append(block(states))
        outs = [states[j] for j in self.ends]
        return outs[0] if len(outs) == 1 else torch.cat(outs, 1)


class NetworkOfMemNet(nn.Module):
    """Cells in a row, a 2 x 2 max pool, and a linear classifier of every pixel that is left."""

    def __init__(self, cells: Sequence[Cell], resolution: int, classes: int):
        super().__init__()
        channels = 3
        made = []
        for cell in cells:
            made.append(CellOfMemNet(cell, channels))
            channels = cell.channels
            resolution //= cell.stride
        self.cells = nn.Sequential(*made)
        self.pool = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels * (resolution // 2) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.pool(self.cells(x))))
