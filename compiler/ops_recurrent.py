"""Facts of recurrent layers and cells: LSTM, GRU and plain RNN, whole, per layer, or fused pointwise parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from .graph import Tensor
from .ops import Call, MissingFact, OpFacts, Work

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
MODES = ("rnn_relu", "rnn_tanh", "lstm", "gru")  # the integer modes of cudnn and mkldnn


def cell_flops(cell: str, *, biased: bool) -> int:
    """Pointwise FLOPs of one unit of a cell at one step, the sum of its two products and biases included.

    LSTM: four gates, three sigmoids and a tanh; c' = f c + i g; h = o tanh(c'). GRU: three gates, two sigmoids and a tanh;
    n = tanh(x + r h); h' = (1 - z) n + z h. RNN: one gate and its activation.
    """
    gates = GATES[cell]
    sums = gates * (3 if biased else 1)
    return sums + gates + {"lstm": 5, "gru": 5}.get(cell, 0)


def recurrent_work(cell: str, rows: int, matrices: Sequence[Tensor], hidden: int, *, biased: bool) -> Work:
    """Every row (a sample at a step) meets every weight matrix once; `hidden` sums the widths of all layers and directions."""
    return Work(rows * sum(m.numel for m in matrices), rows * hidden * cell_flops(cell, biased=biased))


def _hidden_widths(cell: str, matrices: Sequence[Tensor]) -> int:
    """Summed hidden widths: input and recurrent matrices have gates x hidden rows, projections (rows below that) have none."""
    tall = [m.shape[0] for m in matrices]
    top = max(tall, default=0)
    return sum(r for r in tall if r == top) // (2 * GATES[cell])


def _layers(cell: str) -> Callable[[Call], Work]:
    """lstm(input, hx, params, has_biases, ...) and lstm.data(data, batch_sizes, hx, params, has_biases, ...)."""

    def work(call: Call) -> Work:
        packed = call.node.op.endswith(".data")
        x, at = call.tensor(0, "input"), 3 if packed else 2
        matrices = [t for t in call.tensors(at, "params") if len(t.shape) == 2]
        biased = bool(call.value(at + 1, "has_biases", True))
        return recurrent_work(cell, prod(x.shape[:-1]), matrices, _hidden_widths(cell, matrices), biased=biased)

    return work


def _cudnn(call: Call) -> Work:
    x, weights = call.tensor(0, "input"), call.tensors(1, "weight")
    cell = MODES[int(call.value(6, "mode"))]
    matrices = [t for t in weights if len(t.shape) == 2]
    return recurrent_work(cell, prod(x.shape[:-1]), matrices, _hidden_widths(cell, matrices), biased=len(matrices) < len(weights))


def _cudnn_backward(call: Call) -> Work:
    """Gradients of inputs and of weights: each product of the forward pass twice; pointwise parts about twice as well."""
    x, weights = call.tensor(0, "input"), call.tensors(1, "weight")
    cell = MODES[int(call.value(10, "mode"))]
    matrices = [t for t in weights if len(t.shape) == 2]
    width = _hidden_widths(cell, matrices)
    forward = recurrent_work(cell, prod(x.shape[:-1]), matrices, width, biased=len(matrices) < len(weights))
    return Work(2 * forward.macs, 2 * forward.elementwise)


def _mkldnn(call: Call) -> Work:
    """One direction of one layer: (input, w_ih, w_hh, b_ih, b_hh, ...)."""
    x, matrices = call.tensor(0, "input"), [call.tensor(1, "weight0"), call.tensor(2, "weight1")]
    cell = MODES[int(call.value(9, "mode"))]
    biased = bool(call.value(12, "has_biases", True))
    return recurrent_work(cell, prod(x.shape[:-1]), matrices, int(call.value(10, "hidden_size")), biased=biased)


def _mkldnn_backward(call: Call) -> Work:
    """Gradients of inputs and of weights: each product of the forward pass twice; pointwise parts about twice as well."""
    x, matrices = call.tensor(0, "input"), [call.tensor(1, "weight1"), call.tensor(2, "weight2")]
    cell = MODES[int(call.value(14, "mode"))]
    forward = recurrent_work(
        cell, prod(x.shape[:-1]), matrices, int(call.value(15, "hidden_size")), biased=bool(call.value(17, "has_biases", True))
    )
    return Work(2 * forward.macs, 2 * forward.elementwise)


def _cell(cell: str, matrices_at: int) -> Callable[[Call], Work]:
    """lstm_cell(input, hx[], w_ih, w_hh, b_ih, b_hh); gru_cell and rnn cells with one hx."""

    def work(call: Call) -> Work:
        x, matrices = call.tensor(0, "input"), [call.tensor(matrices_at, "w_ih"), call.tensor(matrices_at + 1, "w_hh")]
        biased = call.maybe(matrices_at + 2, "b_ih") is not None
        return recurrent_work(cell, prod(x.shape[:-1]), matrices, matrices[0].shape[0] // GATES[cell], biased=biased)

    return work


def _fused_cell(cell: str, factor: int = 1) -> Callable[[Call], Work]:
    """The pointwise part of a cell, given both products."""

    def work(call: Call) -> Work:
        units = call.output().numel
        biased = call.maybe(3, "input_bias") is not None if factor == 1 else False
        return Work(0, factor * units * cell_flops(cell, biased=biased))

    return work


def _fused_lstm_backward(call: Call) -> Work:
    """Per unit: derivatives of three sigmoids and two tanhs (three FLOPs each) and ten products and sums."""
    state = call.maybe(2, "cx")
    if state is None:
        raise MissingFact("fused LSTM backward without its cell state")
    return Work(0, 25 * state.numel)


def _fused_gru_backward(call: Call) -> Work:
    """Per unit: derivatives of two sigmoids and a tanh (three FLOPs each) and six products and sums."""
    return Work(0, 15 * call.tensor(0, "grad_hy").numel)


def _facts(**works: Callable[[Call], Work]) -> dict[str, OpFacts]:
    return {f"aten.{name}": OpFacts("rnn", work) for name, work in works.items()}


FACTS = _facts(
    lstm=_layers("lstm"),
    gru=_layers("gru"),
    rnn_tanh=_layers("rnn_tanh"),
    rnn_relu=_layers("rnn_relu"),
    _cudnn_rnn=_cudnn,
    _cudnn_rnn_backward=_cudnn_backward,
    mkldnn_rnn_layer=_mkldnn,
    mkldnn_rnn_layer_backward=_mkldnn_backward,
    lstm_cell=_cell("lstm", 2),
    gru_cell=_cell("gru", 2),
    rnn_tanh_cell=_cell("rnn_tanh", 2),
    rnn_relu_cell=_cell("rnn_relu", 2),
    _thnn_fused_lstm_cell=_fused_cell("lstm"),
    _thnn_fused_gru_cell=_fused_cell("gru"),
    _thnn_fused_lstm_cell_backward_impl=_fused_lstm_backward,
    _thnn_fused_lstm_cell_backward=_fused_lstm_backward,
    _thnn_fused_gru_cell_backward=_fused_gru_backward,
)
