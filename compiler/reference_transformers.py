"""Reference transformers and recurrent networks, as `torch.nn` modules with the widths of their publications."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head self-attention through `scaled_dot_product_attention`; input and output (N, S, width)."""

    def __init__(self, width: int, heads: int, causal: bool = False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, s, width = x.shape
        q, k, v = self.qkv(x).view(n, s, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(n, s, width))


class Block(nn.Module):
    """Attention and a four times wider perceptron with residuals; norms before each (`post_norm`: after each)."""

    def __init__(self, width: int, heads: int, *, causal: bool = False, gelu: str = "none", post_norm: bool = False, eps: float = 1e-5):
        super().__init__()
        self.post_norm = post_norm
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width, heads, causal)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(gelu), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        if self.post_norm:
            x = self.norm1(x + self.attention(x))
            return self.norm2(x + self.mlp(x))
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Non-overlapping patches, a class token, pre-norm blocks, a linear classifier; input (N, 3, R, R), R the resolution."""

    def __init__(self, width: int, depth: int, heads: int, *, patch: int = 16, resolution: int = 224, classes: int = 1000):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, (resolution // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*[Block(width, heads, eps=1e-6) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], dim=1)
        return self.head(self.norm(self.blocks(tokens + self.positions))[:, 0])


class GPT2(nn.Module):
    """Causal language model; int64 tokens (N, S) to hidden states (N, S, width), or to logits with `head` (tied weights)."""

    def __init__(self, width: int, depth: int, heads: int, *, vocabulary: int = 50_257, context: int = 1024, head: bool = False):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[Block(width, heads, causal=True, gelu="tanh") for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = head

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.norm(self.blocks(x))
        return F.linear(x, self.tokens.weight) if self.head else x


class Bert(nn.Module):
    """Post-norm encoder with pooler; int64 tokens (N, S) to (hidden states (N, S, width), pooled (N, width))."""

    def __init__(self, width: int, depth: int, heads: int, *, vocabulary: int = 30_522, context: int = 512):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.segments = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.Sequential(*[Block(width, heads, post_norm=True, eps=1e-12) for _ in range(depth)])
        self.pooler = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(at) + self.segments(torch.zeros_like(tokens))
        x = self.blocks(self.norm(x))
        return x, torch.tanh(self.pooler(x[:, 0]))


class SequenceClassifier(nn.Module):
    """Stacked LSTM whose last step is classified; input (N, T, features)."""

    def __init__(self, features: int, width: int, layers: int, classes: int):
        super().__init__()
        self.lstm = nn.LSTM(features, width, layers, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def vit_tiny(classes: int = 1000, resolution: int = 224) -> nn.Module:
    """ViT-Ti/16: 12 blocks of width 192 with 3 heads."""
    return VisionTransformer(192, 12, 3, classes=classes, resolution=resolution)


def vit_b_16(classes: int = 1000, resolution: int = 224) -> nn.Module:
    """ViT-B/16: 12 blocks of width 768 with 12 heads."""
    return VisionTransformer(768, 12, 12, classes=classes, resolution=resolution)


def gpt2_small(head: bool = False) -> nn.Module:
    """GPT-2 small: 12 blocks of width 768 with 12 heads."""
    return GPT2(768, 12, 12, head=head)


def bert_tiny() -> nn.Module:
    """BERT-tiny: 2 blocks of width 128 with 2 heads."""
    return Bert(128, 2, 2)


def lstm(features: int = 128, width: int = 256, layers: int = 2, classes: int = 10) -> nn.Module:
    """Two LSTM layers of width 256 over 128 features."""
    return SequenceClassifier(features, width, layers, classes)


def transformer_block(width: int = 256, heads: int = 4, causal: bool = False) -> nn.Module:
    """One pre-norm block; input and output (N, S, width)."""
    return Block(width, heads, causal=causal)
