"""Networks of inverted residual blocks, said once: a `Chain` of layer descriptions gives the graph and the module alike.

A description is a frozen dataclass. `write` puts it into a `LayerGraph`; `chain_modules` makes the `nn.Module` of the same layers.
Every part of a chain has a module path of its own, and one tensor alone runs from part to part.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...compiler.graph import Graph
from ..space import Architecture, Space
from .layers import LayerGraph

if TYPE_CHECKING:
    import torch

ACTIVATIONS = ("relu", "relu6", "hardswish", "hardsigmoid")


def divisible(value: float, divisor: int = 8) -> int:
    """`value` rounded to a multiple of `divisor`, never under it nor more than a tenth below `value`: the MobileNet rule."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def activate(net: LayerGraph, x: int, activation: str | None, scope: str) -> int:
    """`activation` (one of ACTIVATIONS, or None) in place on `x`."""
    if activation is None:
        return x
    return getattr(net, activation)(x, scope, inplace=True)


@dataclass(frozen=True, slots=True)
class Conv:
    """Convolution, batch norm where `norm`, activation where given: submodules `conv`, `norm`, `act`."""

    channels: int
    kernel: int = 1
    stride: int = 1
    activation: str | None = None
    groups: int = 1
    bias: bool = False
    norm: bool = True

    def write(self, net: LayerGraph, x: int, scope: str, eps: float) -> int:
        """Append these layers to `net`; the handle of their result."""
        x = net.conv2d(
            x, self.channels, self.kernel, scope + ".conv", stride=self.stride, groups=self.groups, bias=self.bias,
        )  # fmt: skip
        if self.norm:
            x = net.batch_norm(x, scope + ".norm", eps=eps)
        return activate(net, x, self.activation, scope + ".act")


@dataclass(frozen=True, slots=True)
class MBConv:
    """Inverted residual block: 1x1 `expand` to `middle` channels, `depthwise` kernel, squeeze-and-excite `se`, 1x1 `project`.

    `squeeze`: channels between the two convolutions of `se`, 0 for none, with `squeeze_activation` between them; `expand`: False
    where the input already has `middle` channels and goes to the depthwise convolution as it is; `shortcut`: the input is added to
    the result.
    """

    channels: int
    middle: int
    kernel: int
    stride: int = 1
    activation: str = "relu6"
    squeeze: int = 0
    expand: bool = True
    shortcut: bool = False
    bias: bool = False
    squeeze_activation: str = "relu"
    project_groups: int = 1

    def write(self, net: LayerGraph, x: int, scope: str, eps: float) -> int:
        """Append these layers to `net`; the handle of their result."""
        y = x
        for name, conv in self.before():
            y = conv.write(net, y, f"{scope}.{name}", eps)
        if self.squeeze:
            y = self._squeeze(net, y, scope + ".se")
        y = self.project.write(net, y, scope + ".project", eps)
        return net.add(x, y, scope) if self.shortcut else y

    def before(self) -> list[tuple[str, Conv]]:
        """The convolutions before squeeze-and-excite, by submodule name."""
        first = [("expand", Conv(self.middle, 1, 1, self.activation, bias=self.bias))] if self.expand else []
        return [*first, ("depthwise", Conv(self.middle, self.kernel, self.stride, self.activation, self.middle, self.bias))]

    @property
    def project(self) -> Conv:
        """The last convolution."""
        return Conv(self.channels, groups=self.project_groups, bias=self.bias)

    def _squeeze(self, net: LayerGraph, x: int, scope: str) -> int:
        y = net.global_avg_pool(x, scope + ".pool")
        y = net.conv2d(y, self.squeeze, 1, scope + ".reduce", bias=True)
        y = activate(net, y, self.squeeze_activation, scope + ".act")
        y = net.conv2d(y, self.middle, 1, scope + ".expand", bias=True)
        return net.mul(x, net.hardsigmoid(y, scope + ".gate", inplace=True), scope)


@dataclass(frozen=True, slots=True)
class GlobalPool:
    """Mean over all pixels, which stay as one."""

    def write(self, net: LayerGraph, x: int, scope: str, eps: float) -> int:
        """Append the layer to `net`; the handle of its result."""
        return net.global_avg_pool(x, scope)


@dataclass(frozen=True, slots=True)
class Classifier:
    """Flatten, dropout while training, and a linear layer, submodule `linear`."""

    classes: int
    dropout: float = 0.0

    def write(self, net: LayerGraph, x: int, scope: str, eps: float) -> int:
        """Append the layers to `net`; the handle of their result."""
        return net.linear(net.flatten(x, scope), self.classes, scope + ".linear")


Layer = Conv | MBConv | GlobalPool | Classifier


@dataclass(frozen=True)
class Chain:
    """A network whose `parts`, (module path, layer) each, run one after another. `input_shape`: batch included; `eps`: of every norm."""

    input_shape: tuple[int, int, int, int]
    parts: tuple[tuple[str, Layer], ...]
    eps: float = 1e-5

    def graph(self) -> Graph:
        """Its inference graph, equal to the trace of `module()`."""
        net = LayerGraph("Chain", self.input_shape)
        x = net.input
        for scope, layer in self.parts:
            x = layer.write(net, x, scope, self.eps)
        return net.build(x)

    def module(self) -> torch.nn.Module:
        """Its module with freshly initialised weights."""
        from .chain_modules import Chain as Module

        return Module(self)


class ChainSpace(Space):
    """A space of chains: `chain` says all of a network that `graph`, `module` and `input_shape` need."""

    @abstractmethod
    def chain(self, arch: Architecture) -> Chain:
        """The network's layers."""

    def graph(self, arch: Architecture) -> Graph:
        """See `Space.graph`."""
        return self.chain(arch).graph()

    def module(self, arch: Architecture) -> torch.nn.Module:
        """See `Space.module`."""
        return self.chain(arch).module()

    def input_shape(self, arch: Architecture) -> tuple[int, ...]:
        """See `Space.input_shape`."""
        return self.chain(arch).input_shape
