"""Building models without their weights: big tensors stay unallocated or uninitialised, small values stay true.

Constructors spend their time drawing random weights, which no analysis of memory reads. `weightless(meta=True)` puts tensors made
by `torch.empty`, and other big factory results, on the meta device and makes `torch.nn.init` do nothing; tables that code
computes (position ids, frequencies, relative indices) keep their real values. `weightless(meta=False)` builds on real memory and
skips only random draws into big tensors, for constructors that look at values.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

BIG = 1 << 14
FACTORIES = frozenset((torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.normal))
EMPTY = frozenset((torch.empty, torch.empty_strided))
DRAWS = frozenset(
    getattr(torch.Tensor, name)
    for name in ("uniform_", "normal_", "random_", "bernoulli_", "exponential_", "cauchy_", "log_normal_", "erfinv_")
)
INNER_INITS = ("_no_grad_uniform_", "_no_grad_normal_", "_no_grad_trunc_normal_", "_no_grad_fill_", "_no_grad_zero_")
DRAWN_INITS = INNER_INITS[:3]


class _Weightless(TorchFunctionMode):
    def __init__(self, meta: bool):
        super().__init__()
        self.meta = meta
        self.skipped: dict[int, torch.Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" and (self.meta or _is_big(args, kwargs)):
            return self.skip(args[0] if args else kwargs["tensor"])
        if func in DRAWS and _is_big(args, kwargs):
            return self.skip(args[0])
        if self.meta and kwargs.get("device") is None and (func in EMPTY or (func in FACTORIES and _numel(args, kwargs) >= BIG)):
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)

    def skip(self, tensor: torch.Tensor) -> torch.Tensor:
        """Leave a tensor's bytes as they are, and remember that they mean nothing."""
        if not tensor.is_meta:
            self.skipped[tensor.untyped_storage()._cdata] = tensor
        return tensor


def _is_big(args: tuple, kwargs: Any) -> bool:
    tensor = args[0] if args else kwargs.get("tensor")
    return isinstance(tensor, torch.Tensor) and (tensor.is_meta or tensor.numel() >= BIG)


def _numel(args: tuple, kwargs: Any) -> int:
    """Elements that a factory call makes, from whatever integers its size argument holds."""
    size = kwargs.get("size", args)
    n = 1
    for item in size if isinstance(size, tuple | list) else (size,):
        for d in item if isinstance(item, tuple | list) else (item,):
            n *= d if isinstance(d, int) else 1
    return n


@contextlib.contextmanager
def weightless(*, meta: bool) -> Iterator[dict[int, torch.Tensor]]:
    """Inside: models are built without their weights. Yields the tensors with meaningless bytes, by the identity of their storage."""
    mode = _Weightless(meta)

    def skip_init(inner: Any) -> Any:
        def init(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if meta or tensor.is_meta or tensor.numel() >= BIG:
                return mode.skip(tensor)
            return inner(tensor, *args, **kwargs)

        return init

    names = INNER_INITS if meta else DRAWN_INITS
    patches = {name: skip_init(getattr(torch.nn.init, name)) for name in names}
    with mock.patch.multiple(torch.nn.init, **patches), mode:
        yield mode.skipped


@contextlib.contextmanager
def eager_branches() -> Iterator[None]:
    """Inside: libraries that branch on "is this being traced?" take the branch of an ordinary eager run.

    transformers builds other masks when it meets fake tensors; the memory of those is not the memory of a run. torch's own log of
    errors inside fake kernels is silenced too: the error itself is raised and explained.
    """
    with contextlib.ExitStack() as stack:
        checks = sys.modules.get("transformers.utils.import_utils")
        if checks is not None and hasattr(checks, "is_fake_tensor"):
            stack.enter_context(mock.patch.object(checks, "is_fake_tensor", lambda x: False))
        stack.enter_context(mock.patch.object(logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True))
        yield
