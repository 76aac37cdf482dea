"""Facts of pooling and interpolation, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, gcd, prod

from .graph import Tensor
from .ops import Call, MissingFact, OpFacts, Work, per_axis

# ---- pooling --------------------------------------------------------------------------------------------------------


def pool_flops(y: Tensor, kernel: tuple[int, ...], *, average: bool) -> int:
    """Per output element the whole window, padding included: a comparison or addition each, and a division for the mean."""
    return y.numel * (prod(kernel) + average)


def adaptive_terms(size: int, out: int) -> int:
    """Summed lengths of the adaptive windows [floor(i size / out), ceil((i + 1) size / out)) along one axis.

    Windows that meet at a fraction share one element; of the `out` places where windows end, gcd(size, out) are whole.
    """
    return size + out - gcd(size, out)


def _pool(rank: int, *, average: bool) -> Callable[[Call], Work]:
    def work(call: Call) -> Work:
        return Work(0, pool_flops(call.output(), per_axis(call.value(1, "kernel_size"), rank), average=average))

    return work


def _adaptive_pool(rank: int, *, average: bool) -> Callable[[Call], Work]:
    def work(call: Call) -> Work:
        x, y = call.tensor(0, "self"), call.output()
        window_terms = prod(adaptive_terms(a, b) for a, b in zip(x.shape[-rank:], y.shape[-rank:], strict=True))
        return Work(0, prod(y.shape[:-rank]) * window_terms + (y.numel if average else 0))

    return work


def _gradient_sum(call: Call) -> Work:
    """Each gradient element is added at one place."""
    return Work(0, call.tensor(0, "grad_output").numel)


def _avg_pool_backward(rank: int) -> Callable[[Call], Work]:
    def work(call: Call) -> Work:
        grad = call.tensor(0, "grad_output")
        return Work(0, grad.numel * (prod(per_axis(call.value(2, "kernel_size"), rank)) + 1))

    return work


def _adaptive_avg_backward(rank: int) -> Callable[[Call], Work]:
    def work(call: Call) -> Work:
        grad, x = call.tensor(0, "grad_output"), call.tensor(1, "self")
        terms = prod(adaptive_terms(a, b) for a, b in zip(x.shape[-rank:], grad.shape[-rank:], strict=True))
        return Work(0, prod(grad.shape[:-rank]) * terms + grad.numel)

    return work


# ---- interpolation --------------------------------------------------------------------------------------------------


def interpolation_flops(elements: int, taps: int) -> int:
    """A weighted sum of `taps` values per element: a multiplication each and one addition fewer."""
    return elements * (2 * taps - 1)


def _interpolate(taps: int) -> Callable[[Call], Work]:
    def work(call: Call) -> Work:
        return Work(0, interpolation_flops(call.output().numel, taps))

    return work


def _interpolate_backward(taps: int) -> Callable[[Call], Work]:
    """Each gradient element is spread over `taps` places: a multiplication and an addition each."""

    def work(call: Call) -> Work:
        return Work(0, call.tensor(0, "grad_output").numel * 2 * taps)

    return work


def _taps(support: int, size: int, out: int) -> int:
    """Inputs under an antialiasing filter of half-width `support`, which widens with the scale when shrinking."""
    return min(size, ceil(support * max(1.0, size / out)) * 2 + 1)


def _antialiased(support: int) -> Callable[[Call], Work]:
    """Two separable passes, columns first."""

    def work(call: Call) -> Work:
        x, y = call.tensor(0, "self"), call.output()
        planes, (h, w), (oh, ow) = prod(y.shape[:-2]), x.shape[-2:], y.shape[-2:]
        return Work(0, planes * (interpolation_flops(h * ow, _taps(support, w, ow)) + interpolation_flops(oh * ow, _taps(support, h, oh))))

    return work


def _grid_sampler(rank: int) -> Callable[[Call], Work]:
    """interpolation_mode 0 (multi)linear, 1 nearest, 2 bicubic."""

    def work(call: Call) -> Work:
        mode = int(call.value(2, "interpolation_mode", 0))
        taps = {0: 2**rank, 1: 1, 2: 4**rank}[mode]
        return Work(0, interpolation_flops(call.output().numel, taps) if taps > 1 else 0)

    return work


def _grid_sampler_backward(rank: int) -> Callable[[Call], Work]:
    """Per sample and tap: two FLOPs for the input's gradient, and for the grid's three per axis."""

    def work(call: Call) -> Work:
        taps = {0: 2**rank, 1: 1, 2: 4**rank}[int(call.value(3, "interpolation_mode", 0))]
        mask = call.value(6, "output_mask", (True, True))
        per_tap = 2 * bool(mask[0]) + (3 * rank if mask[1] and taps > 1 else 0)
        return Work(0, call.tensor(0, "grad_output").numel * taps * per_tap)

    return work


def _antialiased_backward(support: int) -> Callable[[Call], Work]:
    """Each weighted sum of the forward passes becomes a product and an addition per tap."""

    def work(call: Call) -> Work:
        grad, x = call.tensor(0, "grad_output"), call.value(2, "input_size")
        planes, (h, w), (oh, ow) = prod(x[:-2]), x[-2:], grad.shape[-2:]
        return Work(0, planes * 2 * (h * ow * _taps(support, w, ow) + oh * ow * _taps(support, h, oh)))

    return work


def _roi_align(call: Call) -> Work:
    """Bilinear samples (seven FLOPs), averaged; an adaptive number of samples has no static count."""
    ratio = int(call.value(5, "sampling_ratio", -1))
    if ratio <= 0:
        raise MissingFact("roi_align with an adaptive number of samples")
    return Work(0, call.output().numel * (8 * ratio * ratio + 1))


def _facts(kind: str, **works: Callable[[Call], Work]) -> dict[str, OpFacts]:
    return {f"aten.{name}": OpFacts(kind, work) for name, work in works.items()}


def _build() -> dict[str, OpFacts]:
    facts: dict[str, OpFacts] = {}
    for rank in (1, 2, 3):
        largest, mean = _pool(rank, average=False), _pool(rank, average=True)
        adaptive_largest, adaptive_mean = _adaptive_pool(rank, average=False), _adaptive_pool(rank, average=True)
        forward = {
            f"max_pool{rank}d": largest,
            f"max_pool{rank}d_with_indices": largest,
            f"avg_pool{rank}d": mean,
            f"adaptive_max_pool{rank}d": adaptive_largest,
            f"adaptive_avg_pool{rank}d": adaptive_mean,
        }
        only_planes_and_volumes = {
            f"mkldnn_max_pool{rank}d": largest,
            f"fractional_max_pool{rank}d": largest,
            f"_adaptive_avg_pool{rank}d": adaptive_mean,
            f"max_pool{rank}d_with_indices_backward": _gradient_sum,
            f"adaptive_max_pool{rank}d_backward": _gradient_sum,
            f"avg_pool{rank}d_backward": _avg_pool_backward(rank),
            f"_adaptive_avg_pool{rank}d_backward": _adaptive_avg_backward(rank),
        }
        facts |= _facts("pool", **forward, **(only_planes_and_volumes if rank > 1 else {}))
    for name, taps in (("linear1d", 2), ("bilinear2d", 4), ("trilinear3d", 8), ("bicubic2d", 16)):
        forward, backward = _interpolate(taps), _interpolate_backward(taps)
        facts |= _facts("interpolate", **{f"upsample_{name}": forward, f"upsample_{name}_backward": backward})
    facts |= _facts(
        "interpolate",
        _upsample_bilinear2d_aa=_antialiased(1),
        _upsample_bicubic2d_aa=_antialiased(2),
        _upsample_bilinear2d_aa_backward=_antialiased_backward(1),
        _upsample_bicubic2d_aa_backward=_antialiased_backward(2),
        grid_sampler_2d_backward=_grid_sampler_backward(2),
        grid_sampler_3d_backward=_grid_sampler_backward(3),
        grid_sampler=_grid_sampler(2),
        grid_sampler_2d=_grid_sampler(2),
        _grid_sampler_2d_cpu_fallback=_grid_sampler(2),
        cudnn_grid_sampler=_interpolate(4),
        grid_sampler_3d=_grid_sampler(3),
    )
    for rank in (1, 2, 3):
        for name in (f"upsample_nearest{rank}d", f"_upsample_nearest_exact{rank}d"):
            facts[f"aten.{name}"] = OpFacts("interpolate")
            facts[f"aten.{name}_backward"] = OpFacts("interpolate", _gradient_sum)
        for name in (f"reflection_pad{rank}d", f"replication_pad{rank}d"):
            facts[f"aten.{name}_backward"] = OpFacts("reduction", _gradient_sum)
    facts["torchvision.roi_align"] = OpFacts("interpolate", _roi_align)
    return facts


FACTS = _build()
