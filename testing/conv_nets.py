"""Random small conv nets: a net is a recipe, a tuple of steps over a growing list of feature maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .generate import Choose

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Step:
    """One feature map: `kind` applied to the maps `operands` (0 is the network's input), with integer parameters."""

    kind: str
    operands: tuple[int, ...]
    params: tuple[int, ...] = ()


class RandomConvNet(nn.Module):
    """Runs `steps` in turn on an input of `batch` images of `shape` (channels, height, width); returns the maps `results`.

    One result is returned bare, several as a tuple. Parameters come from a fixed seed; the module is in eval mode.
    """

    def __init__(self, batch: int, shape: Shape, steps: tuple[Step, ...], results: tuple[int, ...]):
        super().__init__()
        self.batch, self.shape, self.steps, self.results = batch, shape, steps, results
        layers: dict[str, nn.Module] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for i, step in enumerate(steps):
                if step.kind == "conv":
                    c_in, c_out, kernel, stride, groups, bias = step.params
                    layers[str(i)] = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=bool(bias))
                elif step.kind == "norm":
                    layers[str(i)] = nn.BatchNorm2d(step.params[0])
        self.layers = nn.ModuleDict(layers)
        self.eval()

    def __repr__(self) -> str:
        return f"RandomConvNet({self.batch}, {self.shape}, {self.steps}, {self.results})"

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        maps = [x]
        for i, step in enumerate(self.steps):
            maps.append(self._run(i, step, [maps[m] for m in step.operands]))
        picked = tuple(maps[m] for m in self.results)
        return picked[0] if len(picked) == 1 else picked

    def _run(self, i: int, step: Step, xs: list[Tensor]) -> Tensor:
        match step.kind:
            case "conv" | "norm":
                return self.layers[str(i)](xs[0])
            case "relu":
                return F.relu(xs[0])
            case "relu_":
                return F.relu_(xs[0])
            case "add":
                return xs[0] + xs[1]
            case "add_":
                return xs[0].add_(xs[1])
            case "mul":
                return xs[0] * torch.sigmoid(xs[1])
            case "cat":
                return torch.cat(xs, dim=1)
            case "max_pool":
                return F.max_pool2d(xs[0], 2)
            case "avg_pool":
                return F.avg_pool2d(xs[0], 2)
            case "upsample":
                return F.interpolate(xs[0], scale_factor=2.0, mode="nearest")
            case "chunk":
                part, parts = step.params
                return torch.chunk(xs[0], parts, dim=1)[part]
            case "transpose":
                return xs[0].transpose(2, 3)
            case _:
                raise ValueError(f"no step is called {step.kind!r}")


def example_args(net: RandomConvNet) -> tuple[Tensor]:
    """Seeded inputs for `net`: one float32 tensor of shape (batch, channels, height, width)."""
    return (torch.randn((net.batch, *net.shape), generator=torch.Generator().manual_seed(1)),)


def random_conv_net(choose: Choose, *, max_steps: int = 8, inplace: bool = True, views: bool = True) -> RandomConvNet:
    """A net of up to `max_steps` steps over maps of at most 16 channels and 16 x 16 pixels.

    In-place steps never reach the caller's input, so that a net can be run again on the same arguments.
    """
    batch = 1 + choose(2)
    shape = (1 + choose(4), 4 + choose(5), 4 + choose(5))
    shapes, steps, memory = [shape], [], [0]
    kinds = ["conv", "relu", "add", "cat", "norm", "max_pool", "avg_pool", "mul", "upsample"]
    kinds += ["relu_", "add_"] if inplace else []
    kinds += ["chunk", "transpose"] if views else []
    while len(steps) < max_steps and choose(2 * max_steps + 2):
        made = _step(choose, kinds[choose(len(kinds))], shapes, memory)
        if made is not None:
            step, shape = made
            steps.append(step)
            memory.append(memory[step.operands[0]] if step.kind in ("relu_", "add_", "chunk", "transpose") else len(shapes))
            shapes.append(shape)
    results = [len(shapes) - 1]
    for _ in range(choose(3)):
        if (m := len(shapes) - 1 - choose(len(shapes))) not in results:
            results.append(m)
    return RandomConvNet(batch, shapes[0], tuple(steps), tuple(results))


def _step(choose: Choose, kind: str, shapes: list[Shape], memory: list[int]) -> tuple[Step, Shape] | None:
    """A step of this kind and the shape of its map; None where the drawn operands do not allow the kind.

    `memory`: per map, the first map on the same memory; 0 is the caller's.
    """
    m = len(shapes) - 1 - choose(len(shapes))
    c, h, w = shapes[m]
    alike = [i for i, s in enumerate(shapes) if s == shapes[m]]
    if kind in ("relu_", "add_") and memory[m] == 0:
        return None
    if kind == "add_":
        alike = [i for i in alike if memory[i] != memory[m]]
        if not alike:
            return None
    if kind in ("add", "add_", "mul"):
        return Step(kind, (m, alike[-1 - choose(len(alike))])), (c, h, w)
    if kind in ("relu", "relu_"):
        return Step(kind, (m,)), (c, h, w)
    if kind == "norm":
        return Step(kind, (m,), (c,)), (c, h, w)
    if kind == "transpose":
        return Step(kind, (m,)), (c, w, h)
    if kind == "conv":
        groups = (1, c)[choose(2)]
        c_out = groups * (1 + choose(8 // groups)) if groups <= 8 else groups
        kernel, stride = (1, 3)[choose(2)], 1 + choose(2)
        params = (c, c_out, kernel, stride, groups, choose(2))
        return Step(kind, (m,), params), (c_out, (h - 1) // stride + 1, (w - 1) // stride + 1)
    if kind in ("max_pool", "avg_pool"):
        return (Step(kind, (m,)), (c, h // 2, w // 2)) if min(h, w) >= 2 else None
    if kind == "upsample":
        return (Step(kind, (m,)), (c, 2 * h, 2 * w)) if max(h, w) <= 8 else None
    if kind == "chunk":
        return (Step(kind, (m,), (choose(2), 2)), (c // 2, h, w)) if c % 2 == 0 else None
    joined = [i for i, s in enumerate(shapes) if s[1:] == (h, w)]
    n = joined[-1 - choose(len(joined))]
    width = c + shapes[n][0]
    return (Step("cat", (m, n)), (width, h, w)) if width <= 16 else None
