"""Reference convolutional networks for images, as `torch.nn` modules with the structure of their torchvision editions."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_norm(cin: int, cout: int, kernel: int, stride: int = 1, *, groups: int = 1, act: type[nn.Module] | None = None) -> nn.Sequential:
    """Same-padded convolution without bias, batch norm, and an activation that overwrites its input."""
    layers: list[nn.Module] = [nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(cout)]
    return nn.Sequential(*layers, *([act(inplace=True)] if act else []))


# ---- ResNet ---------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Basic block (two 3 x 3) or bottleneck (1 x 1, 3 x 3, 1 x 1; stride on the 3 x 3) with a projected shortcut."""

    def __init__(self, cin: int, width: int, stride: int, expansion: int):
        super().__init__()
        cout = width * expansion
        kernels = (3, 3) if expansion == 1 else (1, 3, 1)
        widths = (cin, width, cout) if expansion == 1 else (cin, width, width, cout)
        strided = kernels.index(3)
        for i, kernel in enumerate(kernels):
            conv = nn.Conv2d(widths[i], widths[i + 1], kernel, stride if i == strided else 1, kernel // 2, bias=False)
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
        self.depth = len(kernels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = conv_norm(cin, cout, 1, stride) if stride != 1 or cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.depth + 1):
            y = self.get_submodule(f"conv{i}")(y)
            y = self.get_submodule(f"bn{i}")(y)
            if i < self.depth:
                y = self.relu(y)
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


def _resnet(depths: tuple[int, ...], expansion: int, classes: int) -> nn.Module:
    """Module and parameter names are torchvision's, so its weights load."""
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(3, 64, 7, 2, 3, bias=False)),
        ("bn1", nn.BatchNorm2d(64)),
        ("relu", nn.ReLU(inplace=True)),
        ("maxpool", nn.MaxPool2d(3, 2, 1)),
    ]
    cin = 64
    for i, depth in enumerate(depths):
        blocks = []
        for j in range(depth):
            blocks.append(Residual(cin, 64 << i, 2 if i and not j else 1, expansion))
            cin = (64 << i) * expansion
        layers.append((f"layer{i + 1}", nn.Sequential(*blocks)))
    layers += [("avgpool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("fc", nn.Linear(cin, classes))]
    return nn.Sequential(OrderedDict(layers))


def resnet18(classes: int = 1000) -> nn.Module:
    """ResNet-18: basic blocks, depths 2, 2, 2, 2."""
    return _resnet((2, 2, 2, 2), 1, classes)


def resnet50(classes: int = 1000) -> nn.Module:
    """ResNet-50: bottlenecks, depths 3, 4, 6, 3."""
    return _resnet((3, 4, 6, 3), 4, classes)


# ---- MobileNet ------------------------------------------------------------------------------------------------------


def _divisible(channels: float) -> int:
    """Nearest multiple of 8, never more than 10 % below `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class SqueezeExcite(nn.Module):
    """Channel gate from globally pooled features; input and output (N, C, H, W)."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))
        return x * F.hardsigmoid(self.expand(gate))


class InvertedResidual(nn.Module):
    """Expand 1 x 1, depthwise, optional squeeze-and-excitation, project 1 x 1; residual where the shape allows.

    As in torchvision, version 3 of the network (`in_place`) adds the residual into the projection's result.
    """

    def __init__(
        self,
        cin: int,
        hidden: int,
        cout: int,
        kernel: int,
        stride: int,
        *,
        act: type[nn.Module],
        squeeze: bool = False,
        in_place: bool = False,
    ):
        super().__init__()
        layers: list[nn.Module] = [] if hidden == cin else [conv_norm(cin, hidden, 1, act=act)]
        layers.append(conv_norm(hidden, hidden, kernel, stride, groups=hidden, act=act))
        if squeeze:
            layers.append(SqueezeExcite(hidden, _divisible(hidden // 4)))
        layers.append(conv_norm(hidden, cout, 1))
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and cin == cout
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        if not self.residual:
            return self.body(x)
        if not self.in_place:
            return x + self.body(x)
        y = self.body(x)
        y += x
        return y


def mobilenet_v2(width: float = 1.0, classes: int = 1000) -> nn.Module:
    """MobileNetV2 with channel multiplier `width`; input (N, 3, R, R), any resolution R that is a multiple of 32."""
    cin = _divisible(32 * width)
    layers: list[nn.Module] = [conv_norm(3, cin, 3, 2, act=nn.ReLU6)]
    for expansion, channels, depth, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        cout = _divisible(channels * width)
        for j in range(depth):
            layers.append(InvertedResidual(cin, cin * expansion, cout, 3, 1 if j else stride, act=nn.ReLU6))
            cin = cout
    last = _divisible(1280 * max(1.0, width))
    layers.append(conv_norm(cin, last, 1, act=nn.ReLU6))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(last, classes))


def mobilenet_v3_small(classes: int = 1000) -> nn.Module:
    """MobileNetV3-Small: squeeze-and-excitation, ReLU and hard-swish; input (N, 3, 224, 224)."""
    layers: list[nn.Module] = [conv_norm(3, 16, 3, 2, act=nn.Hardswish)]
    cin = 16
    for kernel, hidden, cout, squeeze, act, stride in (
        (3, 16, 16, True, nn.ReLU, 2),
        (3, 72, 24, False, nn.ReLU, 2),
        (3, 88, 24, False, nn.ReLU, 1),
        (5, 96, 40, True, nn.Hardswish, 2),
        (5, 240, 40, True, nn.Hardswish, 1),
        (5, 240, 40, True, nn.Hardswish, 1),
        (5, 120, 48, True, nn.Hardswish, 1),
        (5, 144, 48, True, nn.Hardswish, 1),
        (5, 288, 96, True, nn.Hardswish, 2),
        (5, 576, 96, True, nn.Hardswish, 1),
        (5, 576, 96, True, nn.Hardswish, 1),
    ):
        layers.append(InvertedResidual(cin, hidden, cout, kernel, stride, act=act, squeeze=squeeze, in_place=True))
        cin = cout
    layers.append(conv_norm(96, 576, 1, act=nn.Hardswish))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(576, 1024), nn.Hardswish(inplace=True), nn.Dropout(0.2)]
    return nn.Sequential(*layers, *head, nn.Linear(1024, classes))


# ---- DenseNet -------------------------------------------------------------------------------------------------------


class DenseLayer(nn.Sequential):
    """Norm, ReLU, 1 x 1 to four times the growth, norm, ReLU, 3 x 3 to the growth."""

    def __init__(self, cin: int, growth: int):
        wide = 4 * growth
        super().__init__(
            nn.BatchNorm2d(cin),
            nn.ReLU(inplace=True),
            nn.Conv2d(cin, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
            nn.Conv2d(wide, growth, 3, padding=1, bias=False),
        )


class DenseBlock(nn.Module):
    """Each layer reads the concatenation of the block's input and of all layers before it."""

    def __init__(self, cin: int, growth: int, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(cin + i * growth, growth) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


def densenet121(classes: int = 1000) -> nn.Module:
    """DenseNet-121: growth 32, blocks of 6, 12, 24 and 16 layers."""
    layers: list[nn.Module] = [conv_norm(3, 64, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for i, depth in enumerate((6, 12, 24, 16)):
        layers.append(DenseBlock(channels, 32, depth))
        channels += 32 * depth
        if i < 3:
            halve = nn.Conv2d(channels, channels // 2, 1, bias=False)
            layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), halve, nn.AvgPool2d(2)]
            channels //= 2
    head = [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers, *head)


# ---- GoogLeNet ------------------------------------------------------------------------------------------------------


def _inception_conv(cin: int, cout: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return conv_norm(cin, cout, kernel, stride, act=nn.ReLU)


class Inception(nn.Module):
    """Four branches, concatenated: 1 x 1; 1 x 1 then 3 x 3, twice; 3 x 3 max pool then 1 x 1."""

    def __init__(self, cin: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pooled: int):
        super().__init__()
        self.branches = nn.ModuleList(
            [
                _inception_conv(cin, one, 1),
                nn.Sequential(_inception_conv(cin, reduce3, 1), _inception_conv(reduce3, three, 3)),
                nn.Sequential(_inception_conv(cin, reduce5, 1), _inception_conv(reduce5, five, 3)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), _inception_conv(cin, pooled, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def googlenet(classes: int = 1000) -> nn.Module:
    """GoogLeNet with batch norm and without auxiliary heads; input (N, 3, 224, 224)."""

    def pool(kernel: int) -> nn.Module:
        return nn.MaxPool2d(kernel, 2, ceil_mode=True)

    return nn.Sequential(
        _inception_conv(3, 64, 7, 2),
        pool(3),
        _inception_conv(64, 64, 1),
        _inception_conv(64, 192, 3),
        pool(3),
        Inception(192, 64, 96, 128, 16, 32, 32),
        Inception(256, 128, 128, 192, 32, 96, 64),
        pool(3),
        Inception(480, 192, 96, 208, 16, 48, 64),
        Inception(512, 160, 112, 224, 24, 64, 64),
        Inception(512, 128, 128, 256, 24, 64, 64),
        Inception(512, 112, 144, 288, 32, 64, 64),
        Inception(528, 256, 160, 320, 32, 128, 128),
        pool(2),
        Inception(832, 256, 160, 320, 32, 128, 128),
        Inception(832, 384, 192, 384, 48, 128, 128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(1024, classes),
    )


# ---- U-Net ----------------------------------------------------------------------------------------------------------


class UNet(nn.Module):
    """Four levels down by max pooling, four up by transposed convolution, with skips; (N, 3, R, R) to (N, classes, R, R)."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        widths = [width << i for i in range(5)]
        self.down = nn.ModuleList(self._double(cin, cout) for cin, cout in zip([3, *widths[:4]], widths, strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, 2) for c in reversed(widths[:4]))
        self.merge = nn.ModuleList(self._double(2 * c, c) for c in reversed(widths[:4]))
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def _double(cin: int, cout: int) -> nn.Sequential:
        relu = nn.ReLU(inplace=True)
        return nn.Sequential(nn.Conv2d(cin, cout, 3, padding=1), relu, nn.Conv2d(cout, cout, 3, padding=1), relu)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, level in enumerate(self.down):
            x = level(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)


def unet(width: int = 64, classes: int = 1) -> nn.Module:
    """U-Net whose first level has `width` channels."""
    return UNet(width, classes)
