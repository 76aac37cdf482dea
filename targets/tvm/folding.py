"""BatchNorm folded into the layer before it, in an fx program whose weights are placeholders.

Done where every form of a convolution or linear layer is still one op: Relax's own pass misses convolutions that have a bias.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

_NORMS = ("aten.batch_norm.default", "aten.native_batch_norm.default")
_CONVOLUTIONS = {"aten.conv1d.default": False, "aten.conv2d.default": False, "aten.conv_transpose2d.input": True}
_TRANSPOSES = ("aten.t.default", "aten.transpose.int", "aten.permute.default")


@dataclass
class _Layer:
    """What a BatchNorm can be folded into: its weight's output channels lie along `axis`; `with_bias(b)` makes it add `b`."""

    weight: fx.Node
    bias: fx.Node | None
    axis: int
    with_bias: Callable[[fx.Node], None]


def fold_batch_norm(graph: fx.Graph, values: MutableMapping[str, torch.Tensor]) -> int:
    """Fold each BatchNorm into the convolution or linear layer that alone feeds it; returns how many were folded.

    `values`: weights by the name of their placeholder, replaced and never changed in place. With s = gamma / sqrt(var + eps):
    weight' = s * weight and bias' = (bias - mean) * s + beta; bias' takes the place of the running mean, which nothing else
    reads. A layer whose weights serve a second op, or that has another user, keeps its BatchNorm.
    """
    folded = 0
    for norm in list(graph.nodes):
        if str(norm.target) not in _NORMS:
            continue
        fed, gamma, beta, mean, variance, training, _, epsilon = norm.args[:8]
        result = _result(norm)
        layer = _layer(fed)
        if layer is None or result is None or training or mean is None or len(fed.users) != 1:
            continue
        given = [n for n in (layer.weight, mean, variance, gamma, beta, layer.bias) if n is not None]
        if any(n.name not in values for n in given) or len(layer.weight.users) != 1 or len(mean.users) != 1:
            continue
        weight, m, v = (values[n.name].detach().double() for n in (layer.weight, mean, variance))
        scale = torch.rsqrt(v + epsilon) * (1.0 if gamma is None else values[gamma.name].detach().double())
        shift = (0.0 if layer.bias is None else values[layer.bias.name].detach().double()) - m
        shift = shift * scale + (0.0 if beta is None else values[beta.name].detach().double())
        along = [1] * weight.dim()
        along[layer.axis] = -1
        values[layer.weight.name] = (weight * scale.reshape(along)).to(values[layer.weight.name].dtype)
        values[mean.name] = shift.to(values[mean.name].dtype)
        layer.with_bias(mean)
        result.replace_all_uses_with(fed)
        for dead in {result: None, norm: None}:
            graph.erase_node(dead)
        folded += 1
    return folded


def _result(norm: fx.Node) -> fx.Node | None:
    """The normalized tensor: the node itself, or the one item that is read of the three that the native op gives."""
    if str(norm.target) == _NORMS[0]:
        return norm
    users = list(norm.users)
    return users[0] if len(users) == 1 and users[0].args[1:] == (0,) else None


def _layer(node: Any) -> _Layer | None:
    """The layer that `node` is, where BatchNorm's channels are its own output channels."""
    op = str(getattr(node, "target", ""))
    if op in _CONVOLUTIONS or op == "aten.convolution.default":
        arguments = [*node.args, *[None] * 9]
        if op == "aten.convolution.default":
            transposed, groups = arguments[6], arguments[8]
        else:
            transposed, groups = _CONVOLUTIONS[op], arguments[6] or 1
        if node.kwargs or (transposed and groups != 1):
            return None
        return _Layer(arguments[1], arguments[2], int(bool(transposed)), lambda b: _set(node, (*node.args[:2], b, *node.args[3:])))
    if op not in ("aten.linear.default", "aten.addmm.default", "aten.mm.default") or node.kwargs or node.meta["val"].dim() != 2:
        return None
    if op == "aten.linear.default":
        return _Layer(node.args[1], [*node.args, None][2], 0, lambda b: _set(node, (*node.args[:2], b)))
    bias, x, flipped = node.args if op == "aten.addmm.default" else (None, *node.args)
    if str(flipped.target) not in _TRANSPOSES or len(flipped.users) != 1 or (bias is not None and bias.meta["val"].dim() != 1):
        return None

    def add(b: fx.Node) -> None:
        node.target = torch.ops.aten.addmm.default
        node.args = (b, x, flipped)

    return _Layer(flipped.args[0], bias, 0, add)


def _set(node: fx.Node, args: tuple[Any, ...]) -> None:
    node.args = args
