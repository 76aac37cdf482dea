"""Models that torch.export saves, one for each kind of thing it writes into a `.pt2` file: name -> `case()`."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch._higher_order_ops as higher_order
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

Case = tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]
CASES: dict[str, Callable[[], Case]] = {}


class Wrapped(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def module(name: str, build: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> None:
    """A module on noise of `shapes`."""
    CASES[name] = lambda: (build(), tuple(torch.rand(s) for s in shapes), {}, None)


def function(name: str, f: Callable[..., Any], *args: Any, dynamic: Any = None) -> None:
    """A function of `args`; shapes stand for noise."""
    given = tuple(torch.rand(a) if isinstance(a, tuple) else a for a in args)
    CASES[name] = lambda: (Wrapped(f), given, {}, None if dynamic is None else {"args": dynamic})


IMAGE, ROWS, SEQUENCE, CLIP = (2, 4, 8, 8), (3, 8), (2, 5, 8), (1, 2, 4, 4, 4)
BATCH, LENGTH = Dim("batch", min=2, max=64), Dim("length", min=2, max=128)

module("linear", lambda: nn.Linear(8, 4), ROWS)
module("bilinear", lambda: nn.Bilinear(8, 8, 3), ROWS, ROWS)
module("conv1d", lambda: nn.Conv1d(5, 4, 3), SEQUENCE)
module("conv2d", lambda: nn.Conv2d(4, 6, 3, padding="same"), IMAGE)
module("conv3d", lambda: nn.Conv3d(2, 3, 2), CLIP)
module("conv-circular", lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), IMAGE)
module("conv-transpose", lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), IMAGE)
module("batch-norm", lambda: nn.BatchNorm2d(4), IMAGE)
module("batch-norm-eval", lambda: nn.BatchNorm2d(4).eval(), IMAGE)
module("group-norm", lambda: nn.GroupNorm(2, 4), IMAGE)
module("instance-norm", lambda: nn.InstanceNorm2d(4, affine=True), IMAGE)
module("layer-norm", lambda: nn.LayerNorm(8), SEQUENCE)
module("rms-norm", lambda: nn.RMSNorm(8), SEQUENCE)
module("local-response", lambda: nn.LocalResponseNorm(2), IMAGE)
module("max-pool", lambda: nn.MaxPool2d(2), IMAGE)
module("max-pool-indices", lambda: nn.MaxPool2d(2, return_indices=True), IMAGE)
module("avg-pool", lambda: nn.AvgPool2d(2), IMAGE)
module("lp-pool", lambda: nn.LPPool2d(2.0, 2), IMAGE)
module("adaptive-pool", lambda: nn.AdaptiveAvgPool2d(3), IMAGE)
module("adaptive-max-pool", lambda: nn.AdaptiveMaxPool2d(2), IMAGE)
module("lstm", lambda: nn.LSTM(8, 6, 2, batch_first=True), SEQUENCE)
module("gru", lambda: nn.GRU(8, 6, bidirectional=True), SEQUENCE)
module("rnn-cell", lambda: nn.RNNCell(8, 6), ROWS)
module("encoder-layer", lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), SEQUENCE)
module("encoder-layer-eval", lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), SEQUENCE)
module("decoder-layer", lambda: nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), SEQUENCE, SEQUENCE)
module("attention", lambda: nn.MultiheadAttention(8, 2), SEQUENCE, SEQUENCE, SEQUENCE)
module("dropout", lambda: nn.Dropout(0.3), ROWS)
module("gelu-tanh", lambda: nn.GELU(approximate="tanh"), ROWS)
module("softmax", lambda: nn.Softmax(1), ROWS)
module("pixel-shuffle", lambda: nn.PixelShuffle(2), IMAGE)
module("upsample-bilinear", lambda: nn.Upsample(scale_factor=2.0, mode="bilinear"), IMAGE)
module("upsample-nearest", lambda: nn.Upsample(scale_factor=1.5), IMAGE)
module("pad-reflect", lambda: nn.ReflectionPad2d(2), IMAGE)
module("fold", lambda: nn.Fold((4, 4), 2), (1, 8, 9))
module("unfold", lambda: nn.Unfold(2), IMAGE)
module("cosine", lambda: nn.CosineSimilarity(), ROWS, ROWS)
module("cross-map", lambda: nn.Sequential(OrderedDict([("a-1", nn.Linear(8, 8)), ("b 2", nn.PReLU())])), ROWS)
CASES["embedding"] = lambda: (nn.Embedding(10, 4), (torch.tensor([[1, 2], [3, 4]]),), {}, None)
CASES["embedding-bag"] = lambda: (nn.EmbeddingBag(10, 4), (torch.tensor([[1, 2], [3, 4]]),), {}, None)

CASES["linear-dynamic"] = lambda: (nn.Linear(8, 4), (torch.rand(3, 8),), {}, ({0: BATCH},))
CASES["conv-dynamic"] = lambda: (
    nn.Conv2d(4, 6, 3, stride=2),
    (torch.rand(2, 4, 9, 11),),
    {},
    ({0: BATCH, 2: Dim("h", min=6), 3: Dim("w", min=6)},),
)
CASES["pool-dynamic"] = lambda: (nn.AvgPool2d(2, ceil_mode=True), (torch.rand(2, 4, 9, 11),), {}, ({2: Dim.AUTO},))
CASES["attention-dynamic"] = lambda: (
    nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), (torch.rand(2, 5, 8),), {}, ({0: BATCH, 1: LENGTH},)
)  # fmt: skip
function("cat-dynamic", lambda x: torch.cat([x, x.flip(0)]) * x.shape[0], ROWS, dynamic=({0: BATCH},))
function("mean-dynamic", lambda x: x.sum(0) / x.shape[0], ROWS, dynamic=({0: BATCH},))
function("sqrt-dynamic", lambda x: x * (x.shape[0] + 0.5) ** 0.5, ROWS, dynamic=({0: BATCH},))
function("scaled-dynamic", lambda x: x.new_zeros(int(x.shape[0] * 1.5)), (6, 8), dynamic=({0: Dim.AUTO},))
function("third-dynamic", lambda x: x.new_zeros(1 + x.shape[0] // 3), (6, 8), dynamic=({0: Dim.AUTO},))
function("mod-dynamic", lambda x: F.pad(x, (0, 0, 0, -x.shape[0] % 4)), (6, 8), dynamic=({0: BATCH},))
function("max-dynamic", lambda x, y: x.new_zeros(max(x.shape[0], y.shape[0])), (6, 8), (4, 2), dynamic=({0: BATCH}, {0: LENGTH}))
function("arange-dynamic", lambda x: torch.arange(x.shape[0]), (6, 8), dynamic=({0: BATCH},))
function("interpolate-dynamic", lambda x: F.interpolate(x, scale_factor=1.7), IMAGE, dynamic=({2: Dim("h", min=4), 3: Dim("w", min=4)},))
function("reshape-dynamic", lambda x: x.reshape(x.shape[0] // 2, -1), (6, 8), dynamic=({0: 2 * Dim("half", min=2)},))
function("power-dynamic", lambda x: x.new_zeros(x.shape[0] ** 2), (6, 8), dynamic=({0: BATCH},))
function("compare-dynamic", lambda x: x * (x.shape[0] > 4 and x.shape[0] < 60), (6, 8), dynamic=({0: Dim("n", min=5, max=50)},))
function("square-dynamic", lambda x: x.reshape(-1, 2).t() @ x.reshape(-1, 2), (6, 8), dynamic=({0: Dim.AUTO, 1: Dim.AUTO},))
function("diagonal-dynamic", lambda x: torch.diagonal(x[:, :4]) + x.shape[0] / 2, (6, 8), dynamic=({0: BATCH},))

function("nonzero", lambda x: torch.nonzero(x > 0.5).sum(), ROWS)
function("item", lambda x: x[: int(x.shape[0] - 1)] * x.sum().item(), ROWS)


def _slice_by_value(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    k: Any = n.item()
    torch._check(k >= 0)
    torch._check(k <= x.shape[0])
    return x[:k].sum() + x.narrow(0, 0, k).sum()


def _float_by_value(x: torch.Tensor) -> torch.Tensor:
    scale = x.max().item()
    return x * scale + (scale * 2.5) ** 2


function("slice-by-value", _slice_by_value, ROWS, torch.tensor(2))
function("float-by-value", _float_by_value, ROWS)
function("masked-select", lambda x: x[x > 0.5] * 2, ROWS)
function("greater-than", lambda x: torch.sym_max(x.shape[0], 3) * x, ROWS, dynamic=({0: BATCH},))
function("sym-not", lambda x: torch.where(torch.tensor(bool(x.shape[0] > 1)), x, -x), ROWS, dynamic=({0: BATCH},))
function("vmap", lambda x, y: torch.vmap(torch.dot)(x, y), ROWS, ROWS)
function("vmap-dynamic", lambda x: torch.vmap(lambda r: r * r.sum())(x), ROWS, dynamic=({0: BATCH},))
function("vmap-nested", lambda x: torch.vmap(torch.vmap(torch.sin), in_dims=1, out_dims=1)(x), ROWS)
function("cond", lambda x: torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x.sin(), (x,)), ROWS)
function("while-loop", lambda x: higher_order.while_loop(lambda x: x.sum() < 100, lambda x: (x * 2,), (x,)), ROWS)
function("scan", lambda x: higher_order.scan(lambda c, x: (c + x, c * x), torch.zeros(8), x), ROWS)
function("map", lambda x: higher_order.map(lambda r, *_: r.cos(), x), ROWS)


def _quiet(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y = x * 2
    return y + 1


def _autocast(x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x @ x.t()


function("no-grad", _quiet, ROWS)
function("autocast", _autocast, ROWS)
function("inplace-input", lambda x: x.add_(1) * 2, ROWS)
function("einsum", lambda x, y: torch.einsum("ij,kj->ik", x, y), ROWS, ROWS)
function("fft", lambda x: torch.fft.irfft(torch.fft.rfft(x, norm="ortho")), ROWS)
function("stft", lambda x: torch.view_as_real(torch.stft(x, 16, return_complex=True)), (2, 64))
function("linalg", lambda x: torch.linalg.svd(x)[1] + torch.linalg.norm(x, "fro"), ROWS)
function("sort", lambda x: torch.sort(x, stable=True)[0] + torch.topk(x, 2)[0][:, :1], ROWS)
function("scatter", lambda x: x.scatter_reduce(1, torch.zeros(3, 8, dtype=torch.int64), x, "amax"), ROWS)
function("grid-sample", lambda x, g: F.grid_sample(x, g, align_corners=False), IMAGE, (2, 3, 3, 2))
function("attention-math", lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True), (1, 2, 4, 8))
function("losses", lambda x: F.cross_entropy(x, torch.tensor([1, 2, 3])) + F.huber_loss(x, x * 2), ROWS)
function("random", lambda x: x + torch.randn_like(x) * torch.randperm(8), ROWS)
function("complex", lambda x: torch.complex(x, x).abs() * (1 + 2j), ROWS)
function("casts", lambda x: (x.half().float(), x.to(torch.float8_e4m3fn).float(), x.bool(), x.long()), ROWS)
function("infinity", lambda x: x.masked_fill(x > 0.5, float("-inf")).clamp(min=-math.inf) + float("nan"), ROWS)
function("lists", lambda xs: [xs[0] + xs[1], {"sum": xs[0], "last": (xs[1],)}], [torch.rand(2), torch.rand(2)])
function("mappings", lambda m: {k: v * 2 for k, v in m.items()}, {"a": torch.rand(2), "b c": torch.rand(2)})
function("ordered", lambda m: OrderedDict((k, v * 2) for k, v in m.items()), OrderedDict(x=torch.rand(2)))
function("numbers", lambda x, i, f, b, s, n: (x * i + f if b and s == "mean" else x, i, f, b, n), ROWS, 3, 0.5, True, "mean", None)
function("constant", lambda x: x + torch.tensor([1.0, 2.0]), (3, 2))
function("split", lambda x: [*x.split([3, 5], 1), *x.chunk(2, 1), *x.unbind(0)], ROWS)
function("clone-out", lambda x: torch.add(x, x, out=torch.empty_like(x)), ROWS)


class Mutated(nn.Module):
    """Buffers that the forward pass writes, one of them not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = nn.Buffer(torch.zeros(1))
        self.cache = nn.Buffer(torch.zeros(4, 8), persistent=False)
        self.lazy = torch.rand(8)

    def forward(self, x: torch.Tensor, *, scale: float = 2.0) -> torch.Tensor:
        self.calls.add_(1)
        self.cache[: x.shape[0]] = x
        return self.cache.sum(0) * self.calls * scale + self.lazy


class Tied(nn.Module):
    """Weights under two names, and a view of another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids))


CASES["mutated"] = lambda: (Mutated(), (torch.rand(3, 8),), {"scale": 3.0}, None)
CASES["tied"] = lambda: (Tied(), (torch.tensor([[1, 2, 3]]),), {}, None)
CASES["half"] = lambda: (nn.Linear(8, 4).to(torch.bfloat16), (torch.rand(3, 8, dtype=torch.bfloat16),), {}, None)
CASES["double"] = lambda: (nn.Linear(8, 4).double(), (torch.rand(3, 8, dtype=torch.float64),), {}, None)
