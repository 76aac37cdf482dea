"""Facts of attention: every aten form of scaled dot-product attention, its backward, and the fused transformer layers."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from .graph import Tensor
from .ops import Call, MissingFact, OpFacts, Work

SOFTMAX_FLOPS = 5  # per element: running maximum, subtraction, exp, running sum, division


def attention_pairs(queries: int, keys: int, *, causal: bool, bottom_right: bool = False) -> int:
    """Query-key pairs of one head: all, or those that a causal mask keeps.

    Query i (from 0) sees keys 0..i when the mask is aligned top left, as torch's `is_causal` is, and keys
    0..i + keys - queries when it is aligned bottom right.
    """
    if not causal:
        return queries * keys
    shift = keys - queries if bottom_right else 0
    return _clamped_sum(queries + shift, keys) - _clamped_sum(shift, keys)


def _clamped_sum(last: int, most: int) -> int:
    """Sum of min(max(x, 0), most) over all whole x up to `last`."""
    rising = max(0, min(last, most))
    return rising * (rising + 1) // 2 + max(0, last - most) * most


def _sizes(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int, int, int, int]:
    """(batch x query heads, queries, keys, D, Dv) of (..., heads, sequence, depth) operands; grouped heads are shared."""
    if len(q.shape) < 2:
        raise MissingFact("attention on vectors")
    return prod(q.shape[:-2]), q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1]


def attention_work(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, masked: bool = False, dropout: bool = False) -> Work:
    """Q K^T and P V, with scaling, an optional mask's addition, softmax and dropout's multiplication on every pair."""
    heads, queries, keys, depth, value_depth = _sizes(q, k, v)
    pairs = heads * attention_pairs(queries, keys, causal=causal)
    return Work(pairs * (depth + value_depth), pairs * (1 + masked + SOFTMAX_FLOPS + dropout))


def _forward(mask_at: int, causal_at: int, dropout_at: int, mask_name: str = "attn_mask") -> Callable[[Call], Work]:
    def work(call: Call) -> Work:
        q, k, v = call.tensor(0, "query"), call.tensor(1, "key"), call.tensor(2, "value")
        causal = bool(call.value(causal_at, "is_causal", False))
        return attention_work(
            q,
            k,
            v,
            causal=causal and call.causal_half,
            masked=call.value(mask_at, mask_name) is not None,
            dropout=bool(call.value(dropout_at, "dropout_p", 0.0)),
        )

    return work


def _backward(causal_at: int) -> Callable[[Call], Work]:
    """The five products of a fused backward: Q K^T again, dV = P^T dO, dP = dO V^T, dQ = dS K, dK = dS^T Q.

    Elementwise, per pair: scaling and exp against the saved log-sum-exp (3), dS = P * (dP - delta) and its scaling (3); per
    output element: delta = sum(dO * O) (2).
    """

    def work(call: Call) -> Work:
        grad, q, k, v = (call.tensor(i, name) for i, name in enumerate(("grad_out", "query", "key", "value")))
        causal = bool(call.value(causal_at, "is_causal", False)) and call.causal_half
        heads, queries, keys, depth, value_depth = _sizes(q, k, v)
        pairs = heads * attention_pairs(queries, keys, causal=causal)
        return Work(pairs * (3 * depth + 2 * value_depth), 6 * pairs + 2 * grad.numel)

    return work


def _flash_forward(call: Call) -> Work:
    """Operands (batch, sequence, heads, depth); ragged batches given by cumulative lengths have no static count."""
    if call.value(3, "cum_seq_q") is not None:
        raise MissingFact("attention over ragged batches")
    q, k, v = call.tensor(0, "query"), call.tensor(1, "key"), call.tensor(2, "value")
    batch, queries, heads, depth = q.shape
    causal = bool(call.value(8, "is_causal", False)) and call.causal_half
    pairs = batch * heads * attention_pairs(queries, k.shape[1], causal=causal, bottom_right=True)
    return Work(pairs * (depth + v.shape[-1]), pairs * (1 + SOFTMAX_FLOPS))


def _efficient_forward(call: Call) -> Work:
    """Operands (batch, sequence, heads, depth); `custom_mask_type` 1 is causal top left, 2 bottom right."""
    if call.value(4, "cu_seqlens_q") is not None:
        raise MissingFact("attention over ragged batches")
    q, k, v = call.tensor(0, "query"), call.tensor(1, "key"), call.tensor(2, "value")
    batch, queries, heads, depth = q.shape
    mask = int(call.value(9, "custom_mask_type", 0))
    pairs = batch * heads * attention_pairs(queries, k.shape[1], causal=mask > 0 and call.causal_half, bottom_right=mask == 2)
    biased = call.value(3, "bias") is not None
    return Work(pairs * (depth + v.shape[-1]), pairs * (1 + biased + SOFTMAX_FLOPS))


def _sequence_first_backward(causal_at: int) -> Callable[[Call], Work]:
    """As `_backward` for operands (batch, sequence, heads, depth); a causal mask is aligned bottom right."""

    def work(call: Call) -> Work:
        cumulative = call.value(6, "cum_seq_q")
        if cumulative is not None:
            raise MissingFact("attention over ragged batches")
        grad, q, k, v = (call.tensor(i, name) for i, name in enumerate(("grad_out", "query", "key", "value")))
        batch, queries, heads, depth = q.shape
        mask = int(call.value(causal_at, "is_causal", 0))
        aligned = mask == 2 or isinstance(call.value(causal_at, "is_causal", 0), bool)
        pairs = batch * heads * attention_pairs(queries, k.shape[1], causal=mask > 0 and call.causal_half, bottom_right=aligned)
        return Work(pairs * (3 * depth + 2 * v.shape[-1]), 6 * pairs + 2 * grad.numel)

    return work


def _rescaled_projection(call: Call) -> Work:
    """Biases for queries, keys and values, and the scaling of the queries."""
    qkv = call.tensor(0, "qkv")
    return Work(0, qkv.numel + qkv.numel // 3)


def multi_head_work(q: Tensor, k: Tensor, width: int, heads: int, *, masked: bool, averaged: bool = False) -> Work:
    """Projections in (width to 3 x width, biased), attention over `heads`, projection out; operands (N, S, width)."""
    batch, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    rows = batch * queries
    pairs = batch * heads * queries * keys
    projections = (2 * rows + 2 * batch * keys) * width * width
    biases = (2 * rows + 2 * batch * keys) * width
    scaled_queries = rows * width
    average = pairs + batch * queries * keys if averaged else 0
    return Work(projections + 2 * pairs * (width // heads), biases + scaled_queries + pairs * (masked + SOFTMAX_FLOPS) + average)


def _native_multi_head_attention(call: Call) -> Work:
    q, k = call.tensor(0, "query"), call.tensor(1, "key")
    width, heads = int(call.value(3, "embed_dim")), int(call.value(4, "num_head"))
    averaged = bool(call.value(10, "need_weights", True)) and bool(call.value(11, "average_attn_weights", True))
    return multi_head_work(q, k, width, heads, masked=call.value(9, "mask") is not None, averaged=averaged)


def _transformer_encoder_layer(call: Call) -> Work:
    """Self-attention, two layer norms, a biased two-layer perceptron and two residual sums."""
    x = call.tensor(0, "src")
    width, heads = int(call.value(1, "embed_dim")), int(call.value(2, "num_heads"))
    attention = multi_head_work(x, x, width, heads, masked=call.value(18, "mask") is not None)
    hidden = call.tensor(14, "ffn_weight_1").shape[0]
    rows = prod(x.shape[:-1])
    activation = 5 if call.value(7, "use_gelu") else 1
    norms = 2 * (8 * x.numel + 4 * rows)
    elementwise = norms + rows * hidden * (1 + activation) + rows * width + 2 * x.numel
    return Work(attention.macs + 2 * rows * width * hidden, attention.elementwise + elementwise)


def _facts(work: Callable[[Call], Work], *names: str) -> dict[str, OpFacts]:
    return {name: OpFacts("attention", work) for name in names}


FACTS: dict[str, OpFacts] = {
    **_facts(
        _forward(3, 5, 4),
        "aten.scaled_dot_product_attention",
        "aten._scaled_dot_product_attention_math",
        "aten._scaled_dot_product_attention_math_for_mps",
    ),
    **_facts(_forward(-1, 4, 3), "aten._scaled_dot_product_flash_attention", "aten._scaled_dot_product_flash_attention_for_cpu"),
    **_facts(_forward(-1, 7, 6), "aten._scaled_dot_product_flash_attention.quantized"),
    **_facts(_forward(3, 6, 5, "attn_bias"), "aten._scaled_dot_product_efficient_attention", "aten._scaled_dot_product_cudnn_attention"),
    **_facts(_forward(3, 5, 4, "attn_bias"), "aten._scaled_dot_product_fused_attention_overrideable"),
    **_facts(_backward(7), "aten._scaled_dot_product_flash_attention_for_cpu_backward"),
    **_facts(_backward(11), "aten._scaled_dot_product_flash_attention_backward", "aten._scaled_dot_product_efficient_attention_backward"),
    **_facts(_backward(14), "aten._scaled_dot_product_cudnn_attention_backward"),
    **_facts(_backward(13), "aten._scaled_dot_product_fused_attention_overrideable_backward"),
    **_facts(_flash_forward, "aten._flash_attention_forward"),
    **_facts(_efficient_forward, "aten._efficient_attention_forward"),
    **_facts(_sequence_first_backward(11), "aten._flash_attention_backward"),
    **_facts(_sequence_first_backward(14), "aten._efficient_attention_backward"),
    **_facts(_rescaled_projection, "aten._transform_bias_rescale_qkv"),
    **_facts(_native_multi_head_attention, "aten._native_multi_head_attention"),
    **_facts(_transformer_encoder_layer, "aten._transformer_encoder_layer_fwd"),
}
