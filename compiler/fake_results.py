"""Fake results remembered by the call that made them: most ops of a network have been seen before, in this model or another.

Torch keeps such a cache too, but looking a call up there costs more than the recorder's own view of it: the op, its encoded
arguments, and the dtype, shape, strides and offset of each tensor. Kept for ops that only make new tensors, and for ops that only
write their first argument.

`kernel_layout` mends the first result of ops whose fake kernels stride dimensions of size 1 otherwise than torch's own do.
Nothing is wrong with either stride, but later kernels choose their layouts, and so their memory, by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensor

from .graph import contiguous_strides

MOST = 100_000
_layouts: dict[Any, tuple[type, tuple[tuple[Any, Any, torch.dtype], ...]]] = {}
_in_place: set[Any] = set()


WITH_NUMBER = frozenset(f"aten.{op}.Tensor" for op in ("add", "sub", "mul", "div"))
LAYER_NORM = "aten.native_layer_norm.default"
GROUP_NORM = "aten.native_group_norm.default"
BATCH_NORM = "aten.native_batch_norm.default"
NORMS = frozenset((LAYER_NORM, GROUP_NORM, BATCH_NORM))


def kernel_layout(op: str, args: Sequence[Any], out: Any) -> Any:
    """`out` of `op` on fake CPU tensors, its first tensor strided as torch's CPU kernel strides it.

    With a number as second operand, element-wise ops order dimensions by the strides of the first one; layer norm is row-major;
    group norm takes the memory format that torch suggests for its input, batch norm the first that its input is contiguous in.
    """
    if op in WITH_NUMBER:
        x = args[0]
        if isinstance(x, FakeTensor) and not isinstance(args[1], torch.Tensor) and _is_concrete(x):
            return _restrided(out, _iterator_strides(x.shape, x.stride()))
        return out
    if op not in NORMS or not _is_concrete(args[0]):
        return out
    x = args[0]
    shape = tuple(x.shape)
    if op == LAYER_NORM or (op == BATCH_NORM and x.is_contiguous()):
        strides = contiguous_strides(shape)
    elif op == BATCH_NORM and len(shape) == 4 and x.is_contiguous(memory_format=torch.channels_last):
        strides = _channels_last(shape)
    else:
        strides = contiguous_strides(shape) if suggest_memory_format(x) is torch.contiguous_format else _channels_last(shape)
    return (_restrided(out[0], strides), *out[1:])


def _channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    n, c, *space = shape
    batch, *rest = contiguous_strides((n, *space, c))
    return (batch, 1, *rest[:-1])


def _is_concrete(x: torch.Tensor) -> bool:
    return all(type(d) is int for d in x.shape)


def _iterator_strides(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Strides that torch's TensorIterator gives the result of an element-wise op with one tensor operand of these strides."""
    order = list(range(len(shape)))[::-1]
    for i in range(1, len(order)):
        later = i
        for earlier in range(i - 1, -1, -1):
            a, b = order[earlier], order[later]
            if not strides[a] or not strides[b] or (strides[a], shape[a]) == (strides[b], shape[b]):
                continue
            if (strides[a], shape[a]) < (strides[b], shape[b]):
                if strides[a] == strides[b]:
                    continue
                break
            order[earlier], order[later] = b, a
            later = earlier
    made, step = [0] * len(shape), 1
    for d in order:
        made[d] = step
        step *= max(1, shape[d])
    return tuple(made)


def _restrided(t: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    """A new fake tensor like `t` with `strides`; `t` itself if it has them."""
    if type(t) is not FakeTensor or t.stride() == tuple(strides):
        return t
    with torch._C._DisableTorchDispatch():
        elem = torch.empty_strided(t.shape, strides, dtype=t.dtype, device="meta")
        return FakeTensor(t.fake_mode, elem, t.fake_device)


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


def recall(key: Any) -> tuple[type, tuple[tuple[Any, Any, torch.dtype], ...]] | None:
    """What an equal call returned: a tensor, list or tuple, as a type, and (shape, strides, dtype) of each; None if there was none."""
    return _layouts.get(key)


def remember(key: Any, out: Any, args: Sequence[Any]) -> None:
    """Keep the layout of `out` if it is new dense CPU tensors only, apart from each other and from every tensor in `args`."""
    single = isinstance(out, torch.Tensor)
    if len(_layouts) >= MOST or not (single or type(out) in (tuple, list)):
        return
    results = (out,) if single else out
    if any(t is None for t in results):
        return
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


def recall_in_place(key: Any) -> bool:
    """Whether an equal call was seen to write its first argument, return it and leave its window as it was."""
    return key in _in_place


def remember_in_place(key: Any) -> None:
    """Keep that the call writes and returns its first argument, and does nothing to its window."""
    if len(_in_place) < MOST:
        _in_place.add(key)
