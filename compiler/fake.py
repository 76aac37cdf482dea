"""Fake stand-ins for tensors and models: the right shapes, strides, dtypes, devices and aliasing, and no bytes.

`Fakes` makes one fake tensor per real or meta tensor, on one fake storage per storage, so tied weights stay tied and views
stay views. `borrowed` lends a model to the recorder with fakes in place of its tensors and gives it back as it was.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from .errors import TraceError

PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


class QuickFakeTensorMode(FakeTensorMode):
    """A `FakeTensorMode` whose dispatch is not wrapped to keep the compiler out, which takes time on every op."""

    __torch_dispatch__ = inspect.unwrap(FakeTensorMode.__torch_dispatch__)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class Fakes:
    """Fake tensors of one `FakeTensorMode`, memoized by tensor and by storage.

    Tensors on the meta device get fakes on `device`; all others keep their own device unless `move` is set.
    """

    def __init__(self, mode: FakeTensorMode | None = None, device: str = "cpu", *, move: bool = False):
        self.mode = mode or QuickFakeTensorMode(allow_non_fake_inputs=True)
        self.device = torch.device(device)
        self.move = move
        self._fakes: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._reals: dict[int, torch.Tensor] = {}
        self._storages: dict[int, torch.UntypedStorage] = {}

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The fake that stands for `tensor`; `tensor` itself when it is a fake already."""
        if isinstance(tensor, FakeTensor):
            return tensor
        known = self._fakes.get(id(tensor))
        if known is None:
            known = self._fakes[id(tensor)] = (tensor, self._make(tensor))
            self._reals[id(known[1])] = tensor
        return known[1]

    def active(self) -> AbstractContextManager[Any]:
        """Inside: factories make fakes."""
        return self.mode

    def value(self, fake: torch.Tensor) -> torch.Tensor | None:
        """The real tensor that `fake` stands for; None if there is none with bytes."""
        real = self._reals.get(id(fake))
        return None if real is None or real.is_meta else real

    def _make(self, tensor: torch.Tensor) -> torch.Tensor:
        if type(tensor) not in PLAIN_TENSORS or tensor.layout != torch.strided or tensor.is_quantized:
            return self.mode.from_tensor(tensor)
        with torch._C._DisableTorchDispatch():
            real = tensor.untyped_storage()
            storage = self._storages.get(real._cdata)
            shape, strides, offset = tensor.shape, tensor.stride(), tensor.storage_offset()
            if storage is None and tensor.is_contiguous() and real.nbytes() == tensor.nbytes:
                elem = torch.empty_strided(shape, strides, dtype=tensor.dtype, device="meta")
                self._storages[real._cdata] = elem.untyped_storage()
            else:
                if storage is None:
                    storage = torch.empty(real.nbytes(), dtype=torch.uint8, device="meta").untyped_storage()
                    self._storages[real._cdata] = storage
                elem = torch.empty(0, dtype=tensor.dtype, device="meta").set_(storage, offset, shape, strides)
            if tensor.is_conj():
                torch._C._set_conj(elem, True)
            if tensor.is_neg():
                torch._C._set_neg(elem, True)
        device = self.device if self.move or tensor.is_meta else tensor.device
        elem.requires_grad_(tensor.requires_grad)
        fake = FakeTensor(self.mode, elem, device)
        for name, value in vars(tensor).items():
            setattr(fake, name, value)
        if isinstance(tensor, torch.nn.Parameter):
            fake._is_param = True
        return fake


@contextlib.contextmanager
def kernel_strides(mode: FakeTensorMode) -> Iterator[None]:
    """Inside: views of fake tensors get the strides that torch's own kernel gives them.

    Fake tensors compute views in Python, which sets other strides for dimensions of size 1; convolutions choose their layout by
    them. The Python form is needed for symbolic sizes only, so modes with a shape environment keep it.
    """
    if mode.shape_env is not None:
        yield
        return
    table = fake_impls.op_implementations_dict
    taken = {op: table.pop(op) for op in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default) if op in table}
    try:
        yield
    finally:
        table.update(taken)


StandIn = Callable[[torch.Tensor], torch.Tensor]


@contextlib.contextmanager
def borrowed(model: torch.nn.Module, stand_in: StandIn | None, lend: StandIn | None = None) -> Iterator[None]:
    """Inside: every tensor that a module of `model` holds is its `stand_in`. After: all is as before, whatever happened inside.

    Parameters, buffers, tensor attributes and tensors in list, tuple and dict attributes are swapped. On the way out each
    module's attributes, and the contents of its list, dict and set attributes, are put back, so modes, hooks, counters and
    caches that the forward pass left behind are gone. Without `stand_in` nothing is swapped, but all is put back. TorchScript modules hold
    their tensors out of reach: `lend` makes those hollow where they are. Raises `TraceError` naming such a module where it is None.
    """
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    saved = [_snapshot(module) for module in modules]
    try:
        if stand_in is not None:
            for module in modules:
                _swap(module, stand_in)
            _lend_scripted(model, lend)
        yield
    finally:
        for module, attributes, contents in saved:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for container, items in contents:
                if (container or items) and not _same_items(container, items):
                    container.clear()
                    (container.extend if isinstance(container, list) else container.update)(items)


def _lend_scripted(model: torch.nn.Module, lend: StandIn | None) -> None:
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            if lend is None:
                raise TraceError(
                    f"{type(module).__name__} {path!r} is a TorchScript module, whose tensors are out of reach: put in the Python module "
                    "it was made from"
                )
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                lend(tensor)


CONTAINERS = frozenset((list, dict, set, OrderedDict))
NO_TENSORS = frozenset((bool, int, float, str, type(None), OrderedDict))


def _snapshot(module: torch.nn.Module) -> tuple[torch.nn.Module, dict[str, Any], list[tuple[Any, Any]]]:
    attributes = dict(module.__dict__)
    contents = [(value, value.copy() if value else ()) for value in attributes.values() if type(value) in CONTAINERS]
    return module, attributes, contents


def _unchanged(container: Any, items: Any) -> bool:
    """Whether a list or dict holds the very objects it held; dicts that refuse changes are asked nothing more."""
    if isinstance(container, set) or len(container) != len(items):
        return False
    if isinstance(container, list):
        return all(a is b for a, b in zip(container, items, strict=True))
    return all(a == b and container[a] is items[b] for a, b in zip(container, items, strict=True))


def _same_items(container: Any, items: Any) -> bool:
    """Whether a container holds the very objects it held, in the same places."""
    if len(container) != len(items) or isinstance(container, set):
        return False
    if isinstance(container, list):
        return all(a is b for a, b in zip(container, items, strict=True))
    return all(k is j and a is b for (k, a), (j, b) in zip(container.items(), items.items(), strict=True))


def _swap(module: torch.nn.Module, stand_in: StandIn) -> None:
    tables: Any = (module._parameters, module._buffers)
    for table in tables:
        table.update({name: stand_in(tensor) for name, tensor in table.items() if tensor is not None})
    attributes = module.__dict__
    for name, value in list(attributes.items()):
        if type(value) in NO_TENSORS or name in ("_parameters", "_buffers", "_modules"):
            continue
        if isinstance(value, torch.Tensor):
            attributes[name] = stand_in(value)
        elif type(value) in (list, tuple) and any(isinstance(item, torch.Tensor) for item in value):
            attributes[name] = type(value)(stand_in(item) if isinstance(item, torch.Tensor) else item for item in value)
        elif type(value) is dict and any(isinstance(item, torch.Tensor) for item in value.values()):
            attributes[name] = {k: stand_in(v) if isinstance(v, torch.Tensor) else v for k, v in value.items()}
