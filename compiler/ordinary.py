"""What is no ordinary model or tensor, said before anything is recorded or run: sparse and nested tensors, lazy and scripted modules.

An analysis counts storages, and some tensors have none that Python can see, or several. A compiled module is another module underneath,
which is what is recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy

from .errors import TraceError
from .structure import tensors_in

_LAYOUTS = {torch.sparse_coo: "COO", torch.sparse_csr: "CSR", torch.sparse_csc: "CSC", torch.sparse_bsr: "BSR", torch.sparse_bsc: "BSC"}


def check_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise `TraceError` naming the first argument that holds a tensor which is no run of bytes, and what to pass instead."""
    for called, value in _arguments(args, kwargs):
        for _, tensor in tensors_in(value):
            if (said := _unlike(tensor)) is not None:
                raise TraceError(f"{called} is {said}")


def check_module(module: torch.nn.Module) -> None:
    """Raise `TraceError` naming the first part of `module` whose memory cannot be seen."""
    for path, part in module.named_modules():
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            if is_lazy(tensor):
                raise TraceError(
                    f"{_part(path, part)} has no {name} yet: it takes its shape from the first input. Call the model once, `model(x)`, "
                    "before you give it"
                )
            if (said := _unlike(tensor)) is not None:
                raise TraceError(f"{name} of {_part(path, part)} is {said}")


def check_values(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise `TraceError` for a module or arguments that cannot be run, since they have no values that memory holds as they are."""
    given = [(called, t) for called, value in _arguments(args, kwargs) for _, t in tensors_in(value)]
    if isinstance(module, torch.nn.Module):
        given += [(f"weight {name!r}", t) for name, t in (*module.named_parameters(), *module.named_buffers())]
    for called, tensor in given:
        if isinstance(tensor, FakeTensor) or tensor.is_meta:
            raise TraceError(f"{called} is on the meta device or fake, and a measurement needs its values: give a model with real weights")
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
            raise TraceError(f"{called} is a {type(tensor).__name__}: a measurement takes plain tensors")
        if tensor.is_complex():
            raise TraceError(f"{called} holds complex numbers, which are not measured: pass real and imaginary parts, torch.view_as_real")


@contextlib.contextmanager
def uncompiled(model: Any) -> Iterator[None]:
    """Inside: every part of a module that torch.compile made, or `module.compile()` changed, is the module that it was made from."""
    wrapped: list[tuple[torch.nn.Module, str, torch.nn.Module]] = []
    changed: list[tuple[torch.nn.Module, Any]] = []
    for part in list(model.modules()) if isinstance(model, torch.nn.Module) else ():
        for name, child in list(part._modules.items()):
            if child is not None and (original := getattr(child, "_orig_mod", None)) is not None:
                wrapped.append((part, name, child))
                part._modules[name] = original
        if part._compiled_call_impl is not None:
            changed.append((part, part._compiled_call_impl))
            part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, name, child in wrapped:
            part._modules[name] = child
        for part, call in changed:
            part._compiled_call_impl = call


def _arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(f"argument {i}", value) for i, value in enumerate(args)] + [(f"argument {name!r}", value) for name, value in kwargs.items()]


def _unlike(tensor: torch.Tensor) -> str | None:
    """What a tensor is that is no run of bytes, and what to give instead; None for one that is."""
    if tensor.is_nested:
        return "a nested tensor, of rows that differ in length: pad it, torch.nested.to_padded_tensor(x, 0.0)"
    if tensor.layout in _LAYOUTS:
        return f"a sparse tensor ({_LAYOUTS[tensor.layout]}), whose parts are storages of their own: pass x.to_dense()"
    if tensor.is_quantized:
        return f"a quantized tensor ({tensor.dtype}), whose scales are no part of its storage: pass x.dequantize()"
    return None


def _part(path: str, part: torch.nn.Module) -> str:
    return f"{type(part).__name__} {path!r}" if path else f"the {type(part).__name__}"
