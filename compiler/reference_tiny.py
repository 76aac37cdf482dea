"""The four MLPerf Tiny reference networks (github.com/mlcommons/tiny, benchmark/training), as `torch.nn` modules.

Their Keras originals give every convolution and dense layer a bias beside its batch norm; so do these.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Sequential):
    """Convolution with bias, batch norm, optional ReLU."""

    def __init__(self, cin: int, cout: int, kernel: int | tuple[int, int], stride: int = 1, groups: int = 1, relu: bool = True):
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        layers = [nn.Conv2d(cin, cout, (kh, kw), stride, (kh // 2, kw // 2), groups=groups), nn.BatchNorm2d(cout)]
        super().__init__(*layers, *([nn.ReLU()] if relu else []))


class TinyResidual(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, which is a bare 1 x 1 convolution where the shape changes."""

    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__()
        self.conv1 = ConvNorm(cin, cout, 3, stride)
        self.conv2 = ConvNorm(cout, cout, 3, relu=False)
        self.shortcut = nn.Conv2d(cin, cout, 1, stride) if stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.conv2(self.conv1(x)))


def resnet8(classes: int = 10) -> nn.Module:
    """Image classification on CIFAR-10; input (N, 3, 32, 32)."""
    return nn.Sequential(
        ConvNorm(3, 16, 3),
        TinyResidual(16, 16, 1),
        TinyResidual(16, 32, 2),
        TinyResidual(32, 64, 2),
        nn.AvgPool2d(8),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def mobilenet_v1_025_vww(classes: int = 2) -> nn.Module:
    """Visual wake words: MobileNetV1 of width 0.25; input (N, 3, 96, 96)."""
    layers: list[nn.Module] = [ConvNorm(3, 8, 3, 2)]
    cin = 8
    for cout, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1)):
        layers += [ConvNorm(cin, cin, 3, stride, groups=cin), ConvNorm(cin, cout, 1)]
        cin = cout
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(cin, classes))


def ds_cnn(classes: int = 12) -> nn.Module:
    """Keyword spotting on 49 frames of 10 MFCCs; input (N, 1, 49, 10)."""
    layers: list[nn.Module] = [nn.ZeroPad2d((1, 1, 4, 5)), nn.Conv2d(1, 64, (10, 4), 2), nn.BatchNorm2d(64), nn.ReLU()]
    for _ in range(4):
        layers += [ConvNorm(64, 64, 3, groups=64), ConvNorm(64, 64, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def autoencoder() -> nn.Module:
    """Anomaly detection: reconstructs 5 frames of 128 mel bands; input (N, 640)."""
    widths = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128)
    layers: list[nn.Module] = []
    for cin, cout in pairwise(widths):
        layers += [nn.Linear(cin, cout), nn.BatchNorm1d(cout), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 640))
