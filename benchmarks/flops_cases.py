"""One small module per op kind with its multiply-adds counted by hand, and three whole networks.

Plain torch and nothing of Neaptide, so that every peer's own environment can load this file. The networks come from the files
of the built-in reference models, which are plain torch as well.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

COMPILER = Path(__file__).resolve().parent.parent / "compiler"


@dataclass(frozen=True)
class Case:
    """`module` and `args` build the case; `hand`: its multiply-adds, or FLOPs for work without any (`elementwise`).

    `causal`: only the pairs that a causal mask keeps are counted. `training`: the module is in training mode with
    gradients on, which keeps attention off its fused path.
    """

    name: str
    module: Callable[[], nn.Module]
    args: Callable[[], tuple[Any, ...]]
    hand: int
    elementwise: bool = False
    causal: bool = False
    training: bool = False


class Function(nn.Module):
    """A function of tensors as a module, with an idle parameter because some tools read the device off the first one.

    Functions look torch's up when called, so that tools which patch torch see them.
    """

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function
        self.idle = nn.Parameter(torch.zeros(1))

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` of one tensor with itself."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def _case(name: str, module: nn.Module | Callable[..., Any], shapes: list[tuple[int, ...]], hand: int, **flags: bool) -> Case:
    def build() -> nn.Module:
        return module if isinstance(module, nn.Module) else Function(module)

    return Case(name, build, lambda: tuple(torch.randn(s) for s in shapes), hand, **flags)


def _sdpa(*, is_causal: bool = False, enable_gqa: bool = False) -> Callable[..., torch.Tensor]:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=enable_gqa)


def op_cases() -> list[Case]:
    """Contractions, one of each kind. Freshly built modules on every call: some tools leave hooks behind."""
    rows, n = 14, 2 * 6 * 64
    x = [(2, 6, 8, 8)]
    return [
        _case("conv1d", nn.Conv1d(6, 8, 5, 2, 2), [(2, 6, 20)], 2 * 8 * 10 * 6 * 5),
        _case("conv2d", nn.Conv2d(16, 32, 3, padding=1), [(1, 16, 14, 14)], 32 * 196 * 16 * 9),
        _case("conv2d grouped", nn.Conv2d(16, 32, 3, padding=1, groups=4), [(1, 16, 14, 14)], 32 * 196 * 4 * 9),
        _case("conv2d depthwise", nn.Conv2d(16, 16, 3, padding=1, groups=16), [(1, 16, 14, 14)], 16 * 196 * 9),
        _case("conv2d dilated", nn.Conv2d(16, 32, 3, dilation=2), [(1, 16, 14, 14)], 32 * 100 * 16 * 9),
        _case("conv3d", nn.Conv3d(4, 8, 3, padding=1), [(1, 4, 6, 6, 6)], 8 * 216 * 4 * 27),
        _case("conv_transpose1d", nn.ConvTranspose1d(4, 6, 3, 2), [(2, 4, 10)], 2 * 4 * 10 * 6 * 3),
        _case("conv_transpose2d", nn.ConvTranspose2d(16, 8, 2, 2), [(1, 16, 14, 14)], 16 * 196 * 8 * 4),
        _case("conv_transpose3d", nn.ConvTranspose3d(4, 2, 2, 2), [(1, 4, 5, 5, 5)], 4 * 125 * 2 * 8),
        _case("linear", nn.Linear(64, 32), [(5, 64)], 5 * 64 * 32),
        _case("matmul", lambda a, b: torch.matmul(a, b), [(4, 8, 16), (4, 16, 12)], 4 * 8 * 16 * 12),
        _case("bmm", lambda a, b: torch.bmm(a, b), [(4, 8, 16), (4, 16, 12)], 4 * 8 * 16 * 12),
        _case("baddbmm", lambda c, a, b: torch.baddbmm(c, a, b), [(4, 8, 12), (4, 8, 16), (4, 16, 12)], 4 * 8 * 16 * 12),
        _case("einsum", lambda a, b: torch.einsum("bqhd,bkhd->bhqk", a, b), [(2, 7, 4, 8), (2, 9, 4, 8)], 2 * 4 * 7 * 9 * 8),
        _case("SDPA", _sdpa(), [(2, 4, 10, 16)] * 3, 2 * 4 * 10 * 10 * 32),
        _case("SDPA grouped queries", _sdpa(enable_gqa=True), [(2, 8, 10, 16), (2, 2, 12, 16), (2, 2, 12, 16)], 2 * 8 * 10 * 12 * 32),
        _case("SDPA causal, all pairs", _sdpa(is_causal=True), [(2, 4, 10, 16)] * 3, 2 * 4 * 10 * 10 * 32),
        _case("SDPA causal, kept pairs", _sdpa(is_causal=True), [(2, 4, 10, 16)] * 3, 2 * 4 * 55 * 32, causal=True),
        _case("MultiheadAttention", SelfAttention(64, 4), [(2, 7, 64)], rows * 4 * 64 * 64 + 2 * 2 * 7 * 7 * 64, training=True),
        _case("MultiheadAttention fast path", SelfAttention(64, 4), [(2, 7, 64)], rows * 4 * 64 * 64 + 2 * 2 * 7 * 7 * 64),
        _case(
            "TransformerEncoderLayer fast path",
            nn.TransformerEncoderLayer(64, 4, 128, batch_first=True),
            [(2, 7, 64)],
            rows * 4 * 64 * 64 + 2 * 2 * 7 * 7 * 64 + 2 * rows * 64 * 128,
        ),
        _case("LSTM", nn.LSTM(16, 32, 2, bidirectional=True), [(7, 2, 16)], rows * 2 * 128 * (16 + 32 + 64 + 32)),
        _case("LSTM projected", nn.LSTM(16, 32, proj_size=8), [(7, 2, 16)], rows * (128 * (16 + 8) + 8 * 32)),
        _case("GRU", nn.GRU(16, 32), [(7, 2, 16)], rows * 96 * (16 + 32)),
        _case("RNN", nn.RNN(16, 32), [(7, 2, 16)], rows * 32 * (16 + 32)),
        _case("relu (FLOPs)", F.relu, x, n, elementwise=True),
        _case("hardswish (FLOPs)", F.hardswish, x, 5 * n, elementwise=True),
        _case("batch norm (FLOPs)", nn.BatchNorm2d(6), x, 4 * n + 2 * 6, elementwise=True),
        _case("layer norm (FLOPs)", nn.LayerNorm(8), x, 8 * n + 4 * n // 8, elementwise=True),
        _case("group norm (FLOPs)", nn.GroupNorm(3, 6), x, 8 * n + 4 * 2 * 3, elementwise=True),
        _case("softmax (FLOPs)", nn.Softmax(-1), x, 5 * n, elementwise=True),
        _case("max pool (FLOPs)", nn.MaxPool2d(3, 2, 1), x, 2 * 6 * 16 * 9, elementwise=True),
        _case("average pool (FLOPs)", nn.AvgPool2d(2), x, 2 * 6 * 16 * 5, elementwise=True),
        _case("adaptive pool (FLOPs)", nn.AdaptiveAvgPool2d(3), x, 2 * 6 * (10 * 10 + 9), elementwise=True),
        _case("bilinear (FLOPs)", nn.Upsample(scale_factor=2, mode="bilinear"), x, 4 * n * 7, elementwise=True),
    ]


def _reference(file: str, function: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        spec = importlib.util.spec_from_file_location(file, COMPILER / f"{file}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, function)()

    return build


def _resnet50_macs() -> int:
    """The stem, four stages of bottlenecks (1 x 1, 3 x 3 with the stride, 1 x 1, projected shortcuts), the classifier."""
    macs, cin, size = 64 * 112 * 112 * 3 * 49, 64, 56
    for stage, depth in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(depth):
            out = size // 2 if stage and not block else size
            macs += cin * width * size**2 + 9 * width**2 * out**2 + 4 * width**2 * out**2
            macs += cin * 4 * width * out**2 if not block else 0
            cin, size = 4 * width, out
    return macs + 2048 * 1000


def _transformer_macs(tokens: int, width: int, depth: int) -> int:
    """Per block: four projections of width x width, two of width x 4 width, and two products of tokens x tokens."""
    return depth * (tokens * 12 * width**2 + 2 * tokens**2 * width)


def network_cases() -> list[Case]:
    """resnet50, vit_b_16 and gpt2-small, batch 1, counted layer by layer."""

    def image() -> tuple[torch.Tensor]:
        return (torch.randn(1, 3, 224, 224),)

    vit = 196 * 768 * 768 + _transformer_macs(197, 768, 12) + 768 * 1000
    return [
        Case("resnet50", _reference("reference_convnets", "resnet50"), image, _resnet50_macs()),
        Case("vit_b_16", _reference("reference_transformers", "vit_b_16"), image, vit),
        Case(
            "gpt2-small, 128 tokens",
            _reference("reference_transformers", "gpt2_small"),
            lambda: (torch.randint(50_257, (1, 128)),),
            _transformer_macs(128, 768, 12),
        ),
    ]
