"""Facts of reductions, scans, scattered sums, sorting and Fourier transforms."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2, prod

from .ops import Call, OpFacts, Work, is_complex

# ---- reductions and scans -------------------------------------------------------------------------------------------

# (FLOPs per input element, FLOPs per output element)
REDUCTIONS = {
    "sum": (1, 0),
    "nansum": (2, 0),
    "mean": (1, 1),
    "nanmean": (2, 2),
    "prod": (1, 0),
    "amax": (1, 0),
    "amin": (1, 0),
    "aminmax": (2, 0),
    "max": (1, 0),
    "min": (1, 0),
    "argmax": (1, 0),
    "argmin": (1, 0),
    "any": (1, 0),
    "all": (1, 0),
    "count_nonzero": (2, 0),
    "norm": (2, 1),  # |x|^p, sum, root
    "linalg_vector_norm": (2, 1),
    "dist": (3, 1),
    "var": (4, 2),  # mean, difference, square, sum; two divisions
    "std": (4, 3),
    "var_mean": (4, 2),
    "std_mean": (4, 3),
    "logsumexp": (4, 2),  # maximum, difference, exp, sum; log, maximum added back
    "cumsum": (1, 0),
    "cumprod": (1, 0),
    "cummax": (1, 0),
    "cummin": (1, 0),
    "logcumsumexp": (3, 0),
    "trace": (1, 0),
    "equal": (1, 0),
    "bincount": (1, 0),
    "histc": (3, 0),
    "is_nonzero": (1, 0),
    "_is_all_true": (1, 0),
    "_is_any_true": (1, 0),
}


def _reduction(per_input: int, per_output: int) -> Callable[[Call], Work]:
    def work(call: Call) -> Work:
        x = call.tensor(0, "self")
        scale = 2 if is_complex(x) else 1
        return Work(0, scale * (per_input * x.numel + (per_output * call.output().numel if per_output else 0)))

    return work


def _accumulate(at: int, name: str, *, when: int | None = None) -> Callable[[Call], Work]:
    """One addition per element of the argument that is added in; with `when`, only if that flag is set."""

    def work(call: Call) -> Work:
        if when is not None and not call.value(when, "accumulate", False):
            return Work()
        return Work(0, call.tensor(at, name).numel)

    return work


def _scatter_reduce(call: Call) -> Work:
    """One combination per source element, and a division per result for the mean."""
    mean = call.value(4, "reduce") == "mean"
    return Work(0, call.tensor(3, "src").numel + (call.output().numel if mean else 0))


def _scatter(call: Call) -> Work:
    """Moves data unless a `reduce` is asked for."""
    if call.node.op.endswith((".reduce", ".value_reduce")):
        return Work(0, call.tensor(2, "index").numel)
    return Work()


def _embedding_bag(call: Call) -> Work:
    """Sum (0), mean (1) or maximum (2) of the looked-up rows, optionally weighted."""
    weight, indices = call.tensor(0, "weight"), call.tensor(1, "indices")
    looked_up = indices.numel * weight.shape[-1]
    weighted = call.maybe(6, "per_sample_weights") is not None
    mean = int(call.value(4, "mode", 0)) == 1
    return Work(0, looked_up * (1 + weighted) + (call.output().numel if mean else 0))


def _statistics(call: Call) -> Work:
    """Mean and inverse deviation a channel: two sums, a difference and a square an element."""
    return Work(0, 4 * call.tensor(0, "input").numel + 4 * call.output().numel)


def _membership(call: Call) -> Work:
    """A binary search an element."""
    n = call.tensor(1, "test_elements").numel
    return Work(0, call.output().numel * max(1, ceil(log2(n + 1))))


def _nll_loss(call: Call) -> Work:
    """One negation and one addition per target, and a division for the mean."""
    n = call.tensor(1, "target").numel
    reduction = int(call.value(3, "reduction", 1))
    return Work(0, n + (n if reduction else 0) + (reduction == 1))


def _nll_loss_backward(call: Call) -> Work:
    return Work(0, call.tensor(2, "target").numel)


def _ctc_loss(sweeps: int) -> Callable[[Call], Work]:
    """Per step and state of the doubled target: a log-sum-exp of three terms (8 FLOPs) and an addition, `sweeps` times over."""

    def work(call: Call) -> Work:
        log_probs, targets = call.tensor(sweeps - 1, "log_probs"), call.tensor(sweeps, "targets")
        steps, batch = log_probs.shape[0], log_probs.shape[1] if len(log_probs.shape) == 3 else 1
        longest = targets.shape[-1] if len(targets.shape) == 2 else targets.numel // max(1, batch)
        return Work(0, sweeps * 9 * steps * batch * (2 * longest + 1) + (log_probs.numel if sweeps == 2 else 0))

    return work


def _cdist_backward(call: Call) -> Work:
    """Per term: difference, scaling by the pair's factor, and the sum into the gradient."""
    return Work(0, call.tensor(0, "grad").numel * (3 * call.tensor(1, "x1").shape[-1] + 1))


def _pdist(call: Call) -> Work:
    return Work(0, call.output().numel * (3 * call.tensor(0, "self").shape[-1] + 1))


def _sort(call: Call) -> Work:
    """n ceil(log2 n) comparisons a row."""
    x = call.tensor(0, "self")
    dim = call.value(2 if ".stable" in call.node.op else 1, "dim", -1)
    n = x.shape[dim] if x.shape and isinstance(dim, int) and not isinstance(dim, bool) else x.numel
    return Work(0, x.numel * ceil(log2(n)) if n > 1 else 0)


def _topk(call: Call) -> Work:
    """Comparisons of a heap of size k: ceil(log2 k) + 1 an element."""
    x = call.tensor(0, "self")
    k = int(call.value(1, "k"))
    return Work(0, x.numel * (1 + (ceil(log2(k)) if k > 1 else 0)))


def _select_order(call: Call) -> Work:
    """median, kthvalue, mode: as a sort of the flattened input or of its last axis."""
    x = call.tensor(0, "self")
    n = x.numel if call.output().numel == 1 else x.shape[-1]
    return Work(0, x.numel * ceil(log2(n)) if n > 1 else 0)


def _unique(call: Call) -> Work:
    """As a sort of the whole input."""
    n = call.tensor(0, "self").numel
    return Work(0, n * ceil(log2(n)) if n > 1 else 0)


def _searchsorted(sequence_at: int, name: str) -> Callable[[Call], Work]:
    def work(call: Call) -> Work:
        n = call.tensor(sequence_at, name).shape[-1]
        return Work(0, call.output().numel * max(1, ceil(log2(n + 1))))

    return work


def _cdist(call: Call) -> Work:
    """Per term difference, power and sum; one root a pair."""
    y = call.output()
    return Work(0, y.numel * (3 * call.tensor(0, "x1").shape[-1] + 1))


def _fft(call: Call) -> Work:
    """5 n log2 n FLOPs per complex transform of length n (the convention of benchFFT), half of it for real ones."""
    x, y = call.tensor(0, "self"), call.output()
    spatial = x if not is_complex(x) else y
    n = prod(spatial.shape[d] for d in call.value(1, "dim"))
    full = 5 * spatial.numel * log2(n) if n > 1 else 0
    real = not (is_complex(x) and is_complex(y))
    return Work(0, round(full / 2 if real else full))


def _facts(kind: str, **works: Callable[[Call], Work]) -> dict[str, OpFacts]:
    return {f"aten.{name}": OpFacts(kind, work) for name, work in works.items()}


def _build() -> dict[str, OpFacts]:
    facts = {f"aten.{name}": OpFacts("reduction", _reduction(*flops)) for name, flops in REDUCTIONS.items()}
    facts |= _facts(
        "reduction",
        index_add=_accumulate(3, "source"),
        scatter_add=_accumulate(3, "src"),
        index_put=_accumulate(2, "values", when=3),
        _unsafe_index_put=_accumulate(2, "values", when=3),
        _index_put_impl=_accumulate(2, "values", when=3),
        put=_accumulate(2, "source", when=3),
        scatter_reduce=_scatter_reduce,
        index_reduce=_accumulate(3, "source"),
        scatter=_scatter,
        _embedding_bag_dense_backward=_accumulate(0, "grad"),
        embedding_dense_backward=_accumulate(0, "grad_output"),
        _embedding_bag=_embedding_bag,
        _embedding_bag_forward_only=_embedding_bag,
        nll_loss_forward=_nll_loss,
        nll_loss2d_forward=_nll_loss,
        nll_loss_backward=_nll_loss_backward,
        nll_loss2d_backward=_nll_loss_backward,
        _cdist_forward=_cdist,
        _cdist_backward=_cdist_backward,
        _pdist_forward=_pdist,
        _ctc_loss=_ctc_loss(1),
        _ctc_loss_backward=_ctc_loss(2),
        embedding_bag=_embedding_bag,
        _embedding_bag_backward=_accumulate(0, "grad"),
        embedding_backward=_accumulate(0, "grad"),
        segment_reduce=_accumulate(0, "data"),
        sum_to_size=_accumulate(0, "self"),
        batch_norm_stats=_statistics,
        isin=_membership,
    )
    facts |= _facts(
        "sort",
        sort=_sort,
        argsort=_sort,
        topk=_topk,
        median=_select_order,
        nanmedian=_select_order,
        kthvalue=_select_order,
        mode=_select_order,
        _unique=_unique,
        _unique2=_unique,
        unique_dim=_unique,
        unique_consecutive=_accumulate(0, "self"),
        searchsorted=_searchsorted(0, "sorted_sequence"),
        bucketize=_searchsorted(1, "boundaries"),
    )
    facts |= _facts("fft", _fft_r2c=_fft, _fft_c2c=_fft, _fft_c2r=_fft)
    return facts


FACTS = _build()
