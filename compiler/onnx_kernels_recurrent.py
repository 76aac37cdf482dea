"""ONNX's recurrent operators in torch: LSTM, GRU and RNN, one layer in one or both directions. Conventions as in `onnx_kernels_nn`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .onnx_kernels import require


def _recurrent(
    kind: str,
    gates: Sequence[int],
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    states: Sequence[Tensor | None],
    direction: str,
    hidden: int,
) -> tuple[Tensor, ...]:
    """Run torch's recurrence `kind`, whose gates are ONNX's reordered by `gates`; y is (steps, directions, batch, hidden)."""
    ways = w.shape[0]
    weights: list[Tensor] = []
    for d in range(ways):

        def torch_order(t: Tensor) -> Tensor:
            return torch.cat([t.unflatten(0, (len(gates), hidden))[g] for g in gates])

        weights += [torch_order(w[d]), torch_order(r[d])]
        if b is not None:
            half = b.shape[1] // 2
            weights += [torch_order(b[d, :half]), torch_order(b[d, half:])]
    initial = [torch.zeros(ways, x.shape[1], hidden, dtype=x.dtype) if s is None else s for s in states]
    x = x.flip(0) if direction == "reverse" else x
    run = getattr(torch, kind)
    state = tuple(initial) if len(initial) > 1 else initial[0]
    y, *last = run(x, state, weights, b is not None, 1, 0.0, False, direction == "bidirectional", False)
    y = y.unflatten(-1, (ways, hidden)).transpose(1, 2)
    return ((y.flip(0) if direction == "reverse" else y).contiguous(), *last)


def lstm(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None, h: Tensor | None = None,
    c: Tensor | None = None, peepholes: Tensor | None = None, *, direction: str = "forward", hidden_size: int, layout: int = 0,
    activations: Any = None, input_forget: int = 0, clip: float | None = None, results: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    usual = activations is None or [a.lower() for a in activations] == ["sigmoid", "tanh", "tanh"] * w.shape[0]
    require(lengths is None and peepholes is None and not layout and not input_forget and clip is None and usual, "this LSTM")
    return _recurrent("lstm", (0, 2, 3, 1), x, w, r, b, (h, c), direction, hidden_size)[:results]


def gru(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None, h: Tensor | None = None, *,
    direction: str = "forward", hidden_size: int, layout: int = 0, activations: Any = None, linear_before_reset: int = 0,
    clip: float | None = None, results: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    usual = activations is None or [a.lower() for a in activations] == ["sigmoid", "tanh"] * w.shape[0]
    require(lengths is None and not layout and bool(linear_before_reset) and clip is None and usual, "this GRU")
    return _recurrent("gru", (1, 0, 2), x, w, r, b, (h,), direction, hidden_size)[:results]


def rnn(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None, h: Tensor | None = None, *,
    direction: str = "forward", hidden_size: int, layout: int = 0, activations: Any = None, clip: float | None = None, results: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    kinds = {a.lower() for a in activations or ["tanh"]}
    require(lengths is None and not layout and clip is None and len(kinds) == 1 and kinds <= {"tanh", "relu"}, "this RNN")
    return _recurrent(f"rnn_{kinds.pop()}", (0,), x, w, r, b, (h,), direction, hidden_size)[:results]


TUPLE_KERNELS: dict[str, Callable[..., tuple[Tensor, ...]]] = {"LSTM": lstm, "GRU": gru, "RNN": rnn}
