"""Facts of composite ops: eager torch takes them apart before dispatch, exported programs may keep them whole."""

from __future__ import annotations

from collections.abc import Callable
from math import log2, prod

from .graph import Tensor
from .ops import NO_WORK, Call, OpFacts, Work, is_complex


def _reduced(flops: int, n: int, reduction: int) -> Work:
    """A pointwise loss of `flops` an element over `n` elements, then a sum (2), a mean (1) or neither (0)."""
    return Work(0, flops * n + (n if reduction else 0) + (reduction == 1))


def _dropout(call: Call) -> Work:
    """x mask / (1 - p) while training."""
    return Work(0, 2 * call.output().numel) if call.value(2, "train", True) else NO_WORK


def _cross_entropy(call: Call) -> Work:
    """A log softmax, then per target of class indices a negation; per element of class probabilities a product and a sum."""
    x, target = call.tensor(0, "self"), call.tensor(1, "target")
    loss = _reduced(1, target.numel, int(call.value(3, "reduction", 1)))
    if target.shape == x.shape:
        loss = _reduced(2, x.numel, int(call.value(3, "reduction", 1)))
    return Work(0, 5 * x.numel + loss.elementwise)


def _nll_loss(call: Call) -> Work:
    return _reduced(1, call.tensor(1, "target").numel, int(call.value(3, "reduction", 1)))


def _pointwise_loss(flops: int) -> Callable[[Call], Work]:
    def work(call: Call) -> Work:
        return _reduced(flops, call.tensor(0, "self").numel, int(call.value(2, "reduction", 1)))

    return work


def _cosine_similarity(call: Call) -> Work:
    """Three dot products (two FLOPs a term each), then two roots, a maximum, a product and a division a result."""
    return Work(0, 6 * max(call.tensor(0, "x1").numel, call.tensor(1, "x2").numel) + 5 * call.output().numel)


def _pairwise_distance(call: Call) -> Work:
    """Difference, eps, power and sum a term; one root a result."""
    return Work(0, 4 * max(call.tensor(0, "x1").numel, call.tensor(1, "x2").numel) + call.output().numel)


def _cdist(call: Call) -> Work:
    """Difference, power and sum a term; one root a pair."""
    y = call.output()
    return Work(0, y.numel * (3 * call.tensor(0, "x1").shape[-1] + 1))


def _bilinear(call: Call) -> Work:
    """Per output channel a product with the left input, then a contraction with the right one."""
    y, weight = call.output(), call.tensor(2, "weight")
    terms = y.numel * weight.shape[1] * weight.shape[2]
    return Work(terms, terms + (y.numel if call.maybe(3, "bias") is not None else 0))


def transform_flops(long: Tensor, dims: list[int], *, real: bool) -> int:
    """5 n log2 n FLOPs per complex transform of n points along `dims` of `long`, half of it for real data."""
    n = prod(long.shape[d] for d in dims)
    full = 5 * long.numel * log2(n) if n > 1 else 0
    return round(full / 2 if real else full)


def _fft(default_dims: tuple[int, ...] | None, *, inverse_real: bool = False, forward_real: bool = False) -> Callable[[Call], Work]:
    def work(call: Call) -> Work:
        x, y = call.tensor(0, "self"), call.output()
        given = call.value(2, "dim", default_dims)
        dims = list(range(len(x.shape))) if given is None else [given] if isinstance(given, int) else list(given)
        return Work(0, transform_flops(x if forward_real else y, dims, real=inverse_real or forward_real))

    return work


def _stft(call: Call) -> Work:
    """Per frame a window's product and a transform of n_fft points; outputs are (batch, frequencies, frames)."""
    y, n = call.output(), int(call.value(1, "n_fft"))
    real = call.value(6, "onesided") is not False and not is_complex(call.tensor(0, "self"))
    spectra = y.shape if is_complex(y) else y.shape[:-1]
    frames = prod(spectra) // max(1, spectra[-2])
    return Work(0, frames * (n + round(5 * n * log2(n) / (2 if real else 1))))


_FFTS = {
    **{f"fft_{name}": _fft((-1,)) for name in ("fft", "ifft")},
    **{f"fft_{name}": _fft((-2, -1)) for name in ("fft2", "ifft2")},
    **{f"fft_{name}": _fft(None) for name in ("fftn", "ifftn")},
    "fft_rfft": _fft((-1,), forward_real=True),
    "fft_rfft2": _fft((-2, -1), forward_real=True),
    "fft_rfftn": _fft(None, forward_real=True),
    "fft_irfft": _fft((-1,), inverse_real=True),
    "fft_irfft2": _fft((-2, -1), inverse_real=True),
    "fft_irfftn": _fft(None, inverse_real=True),
    "stft": _stft,
}

_WORKS: dict[str, tuple[str, Callable[[Call], Work]]] = {
    "dropout": ("random", _dropout),
    "feature_dropout": ("random", _dropout),
    "alpha_dropout": ("random", _dropout),
    "feature_alpha_dropout": ("random", _dropout),
    "cross_entropy_loss": ("softmax", _cross_entropy),
    "nll_loss": ("reduction", _nll_loss),
    "nll_loss_nd": ("reduction", _nll_loss),
    "nll_loss2d": ("reduction", _nll_loss),
    "l1_loss": ("reduction", _pointwise_loss(2)),
    "kl_div": ("reduction", _pointwise_loss(3)),
    "cosine_similarity": ("reduction", _cosine_similarity),
    "pairwise_distance": ("reduction", _pairwise_distance),
    "cdist": ("reduction", _cdist),
    "bilinear": ("contraction", _bilinear),
    **{name: ("fft", work) for name, work in _FFTS.items()},
}

FACTS = {f"aten.{name}": OpFacts(kind, work) for name, (kind, work) in _WORKS.items()}
