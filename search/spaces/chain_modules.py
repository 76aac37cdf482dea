"""The modules of `mobile`'s layer descriptions: plain `nn.Module`s whose parameters are named after the parts they belong to."""

from __future__ import annotations

import torch
from torch import nn

from . import mobile

_ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish, "hardsigmoid": nn.Hardsigmoid}


class Conv(nn.Sequential):
    """`mobile.Conv` on `inputs` channels."""

    def __init__(self, layer: mobile.Conv, inputs: int, eps: float):
        super().__init__()
        conv = nn.Conv2d(
            inputs, layer.channels, layer.kernel, layer.stride, layer.kernel // 2, groups=layer.groups, bias=layer.bias,
        )  # fmt: skip
        self.add_module("conv", conv)
        if layer.norm:
            self.add_module("norm", nn.BatchNorm2d(layer.channels, eps))
        if layer.activation:
            self.add_module("act", _ACTIVATIONS[layer.activation](inplace=True))


class SqueezeExcite(nn.Module):
    """Channels scaled by a gate in [0, 1] that two 1x1 convolutions read from the mean of each channel."""

    def __init__(self, channels: int, squeeze: int, activation: str):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeeze, 1)
        self.act = _ACTIVATIONS[activation](inplace=True)
        self.expand = nn.Conv2d(squeeze, channels, 1)
        self.gate = nn.Hardsigmoid(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


class MBConv(nn.Module):
    """`mobile.MBConv` on `inputs` channels."""

    def __init__(self, layer: mobile.MBConv, inputs: int, eps: float):
        super().__init__()
        self.shortcut = layer.shortcut
        for name, conv in layer.before():
            self.add_module(name, Conv(conv, inputs, eps))
            inputs = conv.channels
        if layer.squeeze:
            self.se = SqueezeExcite(layer.middle, layer.squeeze, layer.squeeze_activation)
        self.project = Conv(layer.project, layer.middle, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for module in self.children():
            y = module(y)
        return x + y if self.shortcut else y


class Classifier(nn.Module):
    """`mobile.Classifier` on `inputs` features."""

    def __init__(self, layer: mobile.Classifier, inputs: int):
        super().__init__()
        self.dropout = nn.Dropout(layer.dropout)
        self.linear = nn.Linear(inputs, layer.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.dropout(torch.flatten(x, 1)))


class Chain(nn.Module):
    """The module of a `mobile.Chain`. Convolutions start from He's normal distribution over the outputs they feed."""

    def __init__(self, chain: mobile.Chain):
        super().__init__()
        channels = chain.input_shape[1]
        self.paths = tuple(scope for scope, _ in chain.parts)
        for scope, layer in chain.parts:
            *parents, name = scope.split(".")
            holder: nn.Module = self
            for parent in parents:
                if not hasattr(holder, parent):
                    holder.add_module(parent, nn.Module())
                holder = getattr(holder, parent)
            holder.add_module(name, _module(layer, channels, chain.eps))
            if isinstance(layer, mobile.Conv | mobile.MBConv):
                channels = layer.channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for path in self.paths:
            x = self.get_submodule(path)(x)
        return x


def _module(layer: mobile.Layer, inputs: int, eps: float) -> nn.Module:
    if isinstance(layer, mobile.Conv):
        return Conv(layer, inputs, eps)
    if isinstance(layer, mobile.MBConv):
        return MBConv(layer, inputs, eps)
    if isinstance(layer, mobile.Classifier):
        return Classifier(layer, inputs)
    return nn.AdaptiveAvgPool2d(1)
