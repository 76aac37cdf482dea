"""A once-for-all supernet: the weights of every network of an elastic MobileNetV3 space in those of its largest one.

(Cai et al. 2020, "Once-for-All", section 3, as its program does it.) A subnet reads
- of a depthwise kernel its centre, each smaller size through a linear map of the next larger one's centre: one map for each layer and
  step, shared by its channels, the identity at first;
- of a stage its first blocks; of a block's middle channels the first ones, which `sort_channels` makes the most important ones;
- batch statistics of its own: those of the supernet are of no use to a subnet, so take a subnet out with `extract` and recalibrate it.

The weights are named as in `space.module(largest)`, under `net.`, which is what makes `extract` a matter of names and corners.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ...compiler.errors import SourceError
from ..space import Architecture
from ..spaces import mobile
from ..spaces.ofa import OFAMobileNetV3

_ACTIVATIONS = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
}


def largest(space: OFAMobileNetV3) -> Architecture:
    """The architecture with the last choice everywhere: the teacher, and the supernet itself."""
    return space.decode(np.asarray([space.cardinalities]) - 1)[0]


class ElasticSupernet(nn.Module):
    """All networks of `space` in one module: `forward(x)` runs `active`, the largest until another is set.

    `x`: (n, 3, side, side); `active`'s resolution is not imposed on it. Weights start as those of `space.module`.
    Raises `SourceError` for a space whose largest network does not hold the others.
    """

    def __init__(self, space: OFAMobileNetV3):
        super().__init__()
        if space.expands[-1] == 1 and len(space.expands) > 1:
            raise SourceError(
                f"expansions {', '.join(f'{e:g}' for e in space.expands)} share no weights: blocks with 1, the largest, have no "
                "convolution for the others to be a part of; add a larger one"
            )
        self.space = space
        self.active = largest(space)
        self.net: Any = space.module(self.active)
        for module in list(self.net.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, ElasticBatchNorm(child.num_features, child.eps))
        self.maps = nn.ParameterDict()
        kernels = space.kernels
        for path, layer in space.chain(self.active).parts:
            if isinstance(layer, mobile.MBConv) and path.startswith("stages."):
                for larger, smaller in zip(kernels[:0:-1], kernels[-2::-1], strict=True):
                    self.maps[_map_name(path, larger, smaller)] = nn.Parameter(torch.eye(smaller * smaller))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for path, layer in self.space.chain(self.active).parts:
            module = self.net.get_submodule(path)
            if isinstance(layer, mobile.MBConv):
                x = self._block(path, module, layer, x)
            elif isinstance(layer, mobile.Conv):
                x = _conv(module, layer, x, module.conv.weight)
            else:
                x = module(x)
        return x

    def extract(self, arch: Architecture) -> nn.Module:
        """`space.module(arch)` with this supernet's weights, and of its batch statistics the corners; recalibrate before use.

        In training mode, and in evaluation with equal statistics, it gives what the supernet gives with `active = arch`.
        """
        self._check(arch)
        with torch.random.fork_rng(devices=[]):
            module = self.space.module(arch)
        own = self.net.state_dict()
        kernels = {path: layer.kernel for path, layer in self.space.chain(arch).parts if isinstance(layer, mobile.MBConv)}
        with torch.no_grad():
            for name, target in module.state_dict().items():
                source = own[name]
                path = name.removesuffix(".depthwise.conv.weight")
                if path in kernels and path != name:
                    source = self._kernel(path, source, kernels[path])
                target.copy_(source[tuple(slice(0, n) for n in target.shape)])
        return module.train(self.training)

    def _check(self, arch: Architecture) -> None:
        if arch.space != self.space.name or len(arch.genes) != len(self.space.cardinalities):
            raise SourceError(f"an architecture of space {arch.space} is no subnet of this supernet of {self.space.name}")

    def _kernel(self, path: str, weight: torch.Tensor, size: int) -> torch.Tensor:
        """The depthwise weights (channels, 1, size, size) that a kernel of `size` reads of `weight`."""
        for larger, smaller in zip(self.space.kernels[:0:-1], self.space.kernels[-2::-1], strict=True):
            if weight.shape[-1] == larger and size < larger:
                edge = (larger - smaller) // 2
                core = weight[:, :, edge : edge + smaller, edge : edge + smaller]
                mapped = core.reshape(-1, smaller * smaller) @ self.maps[_map_name(path, larger, smaller)].T
                weight = mapped.view(len(core), 1, smaller, smaller)
        return weight

    def _block(self, path: str, module: Any, layer: mobile.MBConv, x: torch.Tensor) -> torch.Tensor:
        y, middle = x, layer.middle
        for name, conv in layer.before():
            part = getattr(module, name)
            weight = part.conv.weight[:middle]
            y = _conv(part, conv, y, weight if name == "expand" else self._kernel(path, weight, layer.kernel))
        if layer.squeeze:
            gate = functional.adaptive_avg_pool2d(y, 1)
            reduce, expand = module.se.reduce, module.se.expand
            gate = functional.relu(functional.conv2d(gate, reduce.weight[: layer.squeeze, :middle], _corner(reduce.bias, layer.squeeze)))
            y = y * functional.hardsigmoid(functional.conv2d(gate, expand.weight[:middle, : layer.squeeze], _corner(expand.bias, middle)))
        y = _conv(module.project, layer.project, y, module.project.conv.weight[:, :middle])
        return x + y if layer.shortcut else y


class ElasticBatchNorm(nn.BatchNorm2d):
    """Batch norm of as many of its first channels as come in; training updates the statistics of those alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[1]
        mean, var, count = self.running_mean, self.running_var, self.num_batches_tracked
        assert mean is not None and var is not None and count is not None
        momentum = 0.0
        if self.training:
            count += 1
            momentum = 1.0 / float(count) if self.momentum is None else self.momentum
        return functional.batch_norm(x, mean[:n], var[:n], self.weight[:n], self.bias[:n], self.training, momentum, self.eps)


def sort_channels(supernet: ElasticSupernet) -> None:
    """Bring the middle channels of every block into falling order of importance, the L1 norm of what the projection reads of each,
    and likewise those between the convolutions of squeeze-and-excitation. The largest network computes what it did before.
    """
    with torch.no_grad():
        for path, layer in supernet.space.chain(largest(supernet.space)).parts:
            if not (isinstance(layer, mobile.MBConv) and path.startswith("stages.") and layer.expand):
                continue
            block = supernet.net.get_submodule(path)
            order = block.project.conv.weight.abs().sum(dim=(0, 2, 3)).argsort(descending=True, stable=True)
            for part in (block.expand, block.depthwise):
                _permute(part.conv.weight, order)
                for tensor in (part.norm.weight, part.norm.bias, part.norm.running_mean, part.norm.running_var):
                    _permute(tensor, order)
            _permute(block.project.conv.weight, order, dim=1)
            if layer.squeeze:
                reduce, expand = block.se.reduce, block.se.expand
                _permute(reduce.weight, order, dim=1)
                _permute(expand.weight, order)
                inner = expand.weight.abs().sum(dim=(0, 2, 3)).argsort(descending=True, stable=True)
                _permute(expand.weight, inner, dim=1)
                _permute(reduce.weight, inner)
                for tensor, by in ((expand.bias, order), (reduce.bias, inner)):
                    if tensor is not None:
                        _permute(tensor, by)


def load_supernet(space: OFAMobileNetV3, tensors: Mapping[str, torch.Tensor]) -> ElasticSupernet:
    """The supernet whose `state_dict` was `tensors`. Raises `SourceError` when they are of another space."""
    supernet = ElasticSupernet(space)
    own = supernet.state_dict()
    wrong = next((n for n in {**own, **tensors} if n not in own or n not in tensors or own[n].shape != tensors[n].shape), None)
    if wrong is not None:
        raise SourceError(f"these weights are not those of a supernet of {space.name} with these options: {wrong} differs")
    supernet.load_state_dict(dict(tensors))
    return supernet


def _conv(module: Any, layer: mobile.Conv, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolution with `weight`, and `module`'s norm and activation after it."""
    bias = _corner(module.conv.bias, len(weight))
    x = functional.conv2d(x, weight, bias, layer.stride, layer.kernel // 2, groups=x.shape[1] if layer.groups > 1 else 1)
    if layer.norm:
        x = module.norm(x)
    return _ACTIVATIONS[layer.activation](x) if layer.activation else x


def _corner(bias: torch.Tensor | None, n: int) -> torch.Tensor | None:
    return None if bias is None else bias[:n]


def _permute(tensor: torch.Tensor, order: torch.Tensor, dim: int = 0) -> None:
    tensor.copy_(tensor.index_select(dim, order))


def _map_name(path: str, larger: int, smaller: int) -> str:
    return f"{path.replace('.', '-')}-{larger}to{smaller}"
