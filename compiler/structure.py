"""Tensors inside nested Python values: lists, tuples, mappings, dataclasses and plain objects, by path.

Models take and return values of any shape. A value is read by walking containers in their own order and the attributes of
dataclass instances and plain objects in theirs; `tensors_in` and `map_tensors` visit the same tensors in the same order, so
the leaves of a model's real output line up with the outputs of its graph. Nothing is registered anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

ATOMS = (
    str, bytes, int, float, complex, bool, type(None), type, torch.dtype, torch.device, torch.layout, torch.Size,
    FunctionType, BuiltinFunctionType, MethodType, ModuleType, torch.nn.Module, torch.Generator, torch.UntypedStorage,
)  # fmt: skip


def tensors_in(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor inside `value` with its path (`"[0].mask"`, `"logits"`), in a fixed order, repeats included."""
    yield from _walk(value, path, set())


def _walk(value: Any, path: str, open_ids: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    if isinstance(value, ATOMS) or id(value) in open_ids:
        return
    open_ids.add(id(value))
    for step, item in _items(value):
        yield from _walk(item, _join(path, step), open_ids)
    open_ids.discard(id(value))


def _items(value: Any) -> list[tuple[Any, Any]]:
    """Children of a container or object: `(int or str step, child)`."""
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if isinstance(value, Mapping):
        return [(str(k), v) for k, v in value.items()]
    if isinstance(value, set | frozenset):
        return []
    return list(_attributes(value).items())


def _attributes(value: Any) -> dict[str, Any]:
    """Attributes stored on a plain object, `__slots__` first."""
    found: dict[str, Any] = {}
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(value, name):
                found[name] = getattr(value, name)
    found.update(getattr(value, "__dict__", {}))
    return found


def _join(path: str, step: Any) -> str:
    if isinstance(step, int):
        return f"{path}[{step}]"
    return f"{path}.{step}" if path else step


def map_tensors(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """`value` with every tensor replaced by `change(tensor)`; containers that hold tensors are copied, all else is kept."""
    return _map(change, value, {})


def _map(change: Callable[[torch.Tensor], Any], value: Any, done: dict[int, Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, ATOMS) or not any(True for _ in tensors_in(value)):
        return value
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, tuple):
        items = [_map(change, item, done) for item in value]
        copy: Any = type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    elif isinstance(value, list):
        copy = done[id(value)] = _shallow(value)
        copy[:] = [_map(change, item, done) for item in value]
    elif isinstance(value, Mapping):
        copy = done[id(value)] = _shallow(value)
        for key, item in value.items():
            copy[key] = _map(change, item, done)
    else:
        copy = done[id(value)] = _shallow(value)
        for name, item in _attributes(value).items():
            object.__setattr__(copy, name, _map(change, item, done))
    done[id(value)] = copy
    return copy


def _shallow(value: Any) -> Any:
    """A copy of one container or object that shares its children; no constructor of the user runs for plain objects."""
    import copy

    return copy.copy(value)
