"""The networks of `benchmarks.mcu`, at the sizes microcontrollers run them; weights are random, BatchNorm statistics too."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional


def conv_norm(
    inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int | tuple[int, int] = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution padded to keep the size at stride 1, and BatchNorm."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (sides[0] // 2, sides[1] // 2)
    return nn.Sequential(nn.Conv2d(inputs, outputs, sides, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outputs))


class Inverted(nn.Module):
    """MobileNetV2's block."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        widen = [conv_norm(inputs, hidden, 1), nn.ReLU6()] if expansion > 1 else []
        self.body = nn.Sequential(*widen, conv_norm(hidden, hidden, 3, stride, hidden), nn.ReLU6(), conv_norm(hidden, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenet_v2(width: float = 0.35, classes: int = 10) -> nn.Module:
    """MobileNetV2 (arXiv 1801.04381, table 2)."""

    def channels(n: int) -> int:
        return max(8, int(n * width + 4) // 8 * 8)

    layers: list[nn.Module] = [conv_norm(3, channels(32), 3, 2), nn.ReLU6()]
    inputs = channels(32)
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, outputs, repeats, stride in stages:
        for i in range(repeats):
            layers.append(Inverted(inputs, channels(outputs), stride if i == 0 else 1, expansion))
            inputs = channels(outputs)
    layers += [conv_norm(inputs, channels(1280), 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels(1280), classes)]
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """ResNet's basic block, with a projection where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(conv_norm(inputs, outputs, 3, stride), nn.ReLU(), conv_norm(outputs, outputs, 3))
        self.skip = nn.Identity() if stride == 1 and inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.skip(x))


def resnet8() -> nn.Module:
    """MLPerf Tiny's image classifier."""
    blocks = [Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2)]
    return nn.Sequential(conv_norm(3, 16, 3), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """MobileNetV1's block."""
    depthwise = conv_norm(inputs, inputs, 3, stride, inputs)
    return nn.Sequential(depthwise, nn.ReLU(), conv_norm(inputs, outputs, 1), nn.ReLU())


def mobilenet_vww() -> nn.Module:
    """MLPerf Tiny's person detector: MobileNetV1 at width 0.25."""
    outputs = (16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256)
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    inputs = (8, *outputs)
    blocks = [separable(i, o, s) for i, o, s in zip(inputs, outputs, strides, strict=False)]
    return nn.Sequential(conv_norm(3, 8, 3, 2), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 2))


def ds_cnn() -> nn.Module:
    """MLPerf Tiny's keyword spotter."""
    stem = nn.Sequential(nn.Conv2d(1, 64, (10, 4), (2, 2), (4, 1), bias=False), nn.BatchNorm2d(64), nn.ReLU())
    return nn.Sequential(stem, *[separable(64, 64) for _ in range(4)], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 12))


def autoencoder() -> nn.Module:
    """MLPerf Tiny's anomaly detector."""
    sizes = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128)
    layers = [nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()) for i, o in pairwise(sizes)]
    return nn.Sequential(*layers, nn.Linear(128, 640))


class DartsCell(nn.Module):
    """A cell of the DARTS space: separable and dilated convolutions, pools, four nodes concatenated."""

    def __init__(self, channels: int = 8):
        super().__init__()

        def depthwise(kernel: int, dilation: int) -> nn.Sequential:
            padding = dilation * (kernel - 1) // 2
            spatial = nn.Conv2d(channels, channels, kernel, 1, padding, dilation, channels, bias=False)
            return nn.Sequential(nn.ReLU(), spatial, nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

        self.first, self.second = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)
        self.separable3, self.separable5 = depthwise(3, 1), depthwise(5, 1)
        self.dilated3, self.dilated5 = depthwise(3, 2), depthwise(5, 2)
        self.mean, self.max = nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.MaxPool2d(3, 1, 1)
        self.head = nn.Linear(4 * channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.first(x)
        b = self.second(a)
        one = self.separable3(a) + self.dilated3(b)
        two = self.max(a) + self.separable5(one)
        three = self.mean(one) + self.dilated5(b)
        four = three + b
        return self.head(torch.cat([one, two, three, four], 1).mean((2, 3)))


class Excited(nn.Module):
    """A depthwise block with squeeze-and-excitation and hard swish, as in MobileNetV3."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 16, 3, 2), nn.Hardswish())
        self.spatial = nn.Sequential(conv_norm(16, 16, 5, 2, 16), nn.Hardswish())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Hardsigmoid())
        self.out = nn.Sequential(conv_norm(16, 24, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.spatial(self.stem(x))
        return self.out(x * self.gate(x))


class Transformer(nn.Module):
    """A pre-norm transformer block over 16 tokens."""

    def __init__(self, width: int = 64, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(self.norm2(x))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MobileNetV2-0.35 at 64": (mobilenet_v2, (1, 3, 64, 64)),
    "ResNet8": (resnet8, (1, 3, 32, 32)),
    "MobileNet-0.25 VWW": (mobilenet_vww, (1, 3, 96, 96)),
    "DS-CNN": (ds_cnn, (1, 1, 49, 10)),
    "autoencoder": (autoencoder, (1, 640)),
    "DARTS cell": (DartsCell, (1, 3, 32, 32)),
    "SE net": (Excited, (1, 3, 32, 32)),
    "transformer block": (Transformer, (1, 16, 64)),
}


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network called `name` and an input; the same ones every time."""
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    model = build()
    for part in model.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    return model.eval(), torch.randn(shape)
