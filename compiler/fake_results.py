"""Fake results remembered by the call that made them: most ops of a network have been seen before, in this model or another.

Torch keeps such a cache too, but looking a call up there costs more than the recorder's own view of it: the op, its encoded
arguments, and the dtype, shape, strides and offset of each tensor. Kept for ops that only make new tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

MOST = 100_000
_layouts: dict[Any, tuple[type, tuple[tuple[Any, Any, torch.dtype], ...]]] = {}


def call_key(func: Any, attrs: dict[str, Any], windows: Sequence[Any]) -> Any:
    """What the layout of the results depends on."""
    return func, _frozen(attrs["args"]), _frozen(attrs["kwargs"]), tuple(windows), torch.get_default_dtype()


def _frozen(value: Any) -> Any:
    """Hashable, with 1, 1.0 and True kept apart."""
    kind = type(value)
    if kind is list:
        return tuple([_frozen(item) for item in value])
    if kind is dict:
        return tuple([(key, _frozen(item)) for key, item in value.items()])
    return (kind, value) if kind is float or kind is bool else value


def recall(key: Any, mode: FakeTensorMode) -> Any:
    """New fake tensors laid out as the results of an equal call; None if there was none."""
    known = _layouts.get(key)
    if known is None:
        return None
    kind, layouts = known
    made = []
    with torch._C._DisableTorchDispatch():
        for shape, strides, dtype in layouts:
            elem = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
            made.append(FakeTensor(mode, elem, torch.device("cpu")))
    return made[0] if kind is torch.Tensor else kind(made)


def remember(key: Any, out: Any, args: Sequence[Any]) -> None:
    """Keep the layout of `out` if it is new dense CPU tensors only, apart from each other and from every tensor in `args`."""
    single = isinstance(out, torch.Tensor)
    if len(_layouts) >= MOST or not (single or type(out) in (tuple, list)):
        return
    results = (out,) if single else out
    storages = {t.untyped_storage()._cdata for t in args}
    layouts = []
    for t in results:
        if type(t) is not FakeTensor or t.layout != torch.strided or t.is_quantized or t.storage_offset() or t.fake_device.type != "cpu":
            return
        storage = t.untyped_storage()
        reach = sum((d - 1) * s for d, s in zip(t.shape, t.stride(), strict=True)) + 1 if t.numel() else 0
        if storage._cdata in storages or storage.nbytes() != reach * t.element_size():
            return
        storages.add(storage._cdata)
        layouts.append((tuple(t.shape), t.stride(), t.dtype))
    _layouts[key] = (torch.Tensor if single else type(out), tuple(layouts))
