"""Hollow tensors: ordinary CPU tensors of any size without memory, and a place in torch's dispatcher where their ops are answered.

A composite of torch, a derivative formula and autograd's engine look at what they are given: under a dispatch mode, and for tensor
subclasses and meta tensors, they copy where they would write in place, and choose other algorithms. A recording that is to show what a
plain run does must let them see plain tensors and no mode. Hollow tensors are plain. Their storages have a size and an address that may
be read (it holds zeros) and not be written; no op computes on them, for inside `intercepted` each op that reaches a kernel is handed over
by a fallback of the dispatch key `Fake`, which lies below autograd and every composite, and which torch 2.13 uses for nothing else.

`Hollows` stands in for `compiler.fake.Fakes`: `of` gives one hollow tensor per real or meta tensor. Shapes, strides and dtypes of results
come from torch's fake kernels, run on `Shadows` of the arguments.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch._subclasses.fake_tensor import FakeTensor

from .fake import PLAIN_TENSORS, QuickFakeTensorMode
from .fake_kernels import FAKE_KERNELS
from .fake_results import kernel_layout, recall, recall_in_place, remember, remember_in_place
from .op_info import OpInfo, known_info

Handler = Callable[[Any, tuple, Mapping[str, Any]], Any]

CPU = torch.device("cpu")
EMPTY = "aten.empty.memory_format"
KEY = torch._C._dispatch_key_parse("Fake")
KEYS = torch._C.DispatchKeySet(KEY)
READABLE = (1 << 36, 1 << 30, 1 << 24, 1 << 16)  # bytes of address space at which zeros may be read; the first that can be had

_active = threading.local()


class NotHollow(RuntimeError):
    """Something that a hollow tensor cannot stand for, or that cannot be done to one; a recording on fake tensors may hold it."""


# ---- the place in the dispatcher --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def intercepted(handler: Handler) -> Iterator[None]:
    """Inside, in this thread: `handler(op, args, kwargs)` stands in for the kernel of every op, and gives what it returns.

    It sees what kernels see: composites are taken apart, autograd and autocast are done. Inside the handler ops run as always.
    """
    _library()
    before = getattr(_active, "handler", None)
    _active.handler = handler
    try:
        with torch._C._IncludeDispatchKeyGuard(KEY):
            yield
    finally:
        _active.handler = before


def current_handler() -> Handler | None:
    """The handler of this thread; None outside `intercepted` and inside `unseen`."""
    if torch._C._dispatch_tls_is_dispatch_key_included(KEY) and not torch._C._dispatch_tls_is_dispatch_key_excluded(KEY):
        return getattr(_active, "handler", None)
    return None


def _library() -> Any:
    """The fallback of the key, registered once in a process; it is asked for nothing outside `intercepted`."""
    if not _registered:
        library = torch.library.Library("_", "IMPL")
        library.fallback(_fallback, "Fake")
        _registered.append(library)
    for operator in torch._ops._higher_order_ops.values():  # conditions, loops, attention with functions: their Python form, op by op
        plain = operator.py_kernels.get(torch._C.DispatchKey.CompositeExplicitAutograd)
        if plain is not None and KEY not in operator.py_kernels:
            operator.py_impl(KEY)(plain)
    return _registered[0]


_registered: list[Any] = []


def _fallback(op: Any, *args: Any, **kwargs: Any) -> Any:
    handler = getattr(_active, "handler", None)
    if _is_composite(op) and not torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.Python):
        return op._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
    with torch._C._ExcludeDispatchKeyGuard(KEYS):
        if handler is None or torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.Python):
            return op(*args, **kwargs)
        return handler(op, args, kwargs)


@functools.cache
def _is_composite(op: Any) -> bool:
    """Whether an op is made of others; one comes here only from code that runs below autograd."""
    keys = torch._C.DispatchKey
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return has(op.name(), keys.CompositeImplicitAutograd) and not has(op.name(), keys.CPU)


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """Inside, in this thread: ops run as always, unseen by a handler."""
    with torch._C._ExcludeDispatchKeyGuard(KEYS):
        yield


# ---- tensors without memory ---------------------------------------------------------------------------------------------------


def hollow_storage(nbytes: int) -> torch.UntypedStorage:
    """A storage on the CPU that says it has `nbytes`, and has none."""
    made: Any = torch._C._construct_storage_from_data_pointer(_zeros(), CPU, nbytes)
    return made


def over(storage: torch.UntypedStorage, dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int], offset: Any = 0) -> torch.Tensor:
    """A plain tensor over `storage`; `offset` in elements."""
    tensor = torch.empty(0, dtype=dtype).set_(storage, offset, tuple(shape), tuple(strides))
    torch._C._set_throw_on_mutable_data_ptr(tensor)
    return tensor


def hollow(dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
    """A plain dense CPU tensor over a hollow storage of its own, of just the bytes that its shape and strides reach."""
    reach = 0 if 0 in shape else 1 + sum((d - 1) * s for d, s in zip(shape, strides, strict=True))
    return over(hollow_storage(reach * dtype.itemsize), dtype, shape, strides)


def is_hollow(tensor: torch.Tensor) -> bool:
    """Whether a tensor has no memory, as far as this can be told: one that is no plain CPU tensor is not hollow."""
    if type(tensor) not in PLAIN_TENSORS or tensor.device != CPU or tensor.layout != torch.strided or tensor.is_nested:
        return False
    with torch._C._DisableTorchDispatch():
        try:
            tensor.untyped_storage().data_ptr()
        except RuntimeError:
            return True
    return False


def _zeros() -> int:
    """Address of zeros that nobody can write, in no memory. Kernels that read a hollow tensor against the rules find them."""
    if not _mapped:
        for nbytes in READABLE:
            with contextlib.suppress(OSError, ValueError):
                region = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE, prot=mmap.PROT_READ)
                _mapped.append((region, np.frombuffer(region, np.uint8).ctypes.data))
                break
        else:
            raise NotHollow(f"no {READABLE[-1]:,} bytes of address space are left to point tensors at")
    return _mapped[0][1]


_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0)
_mapped: list[tuple[mmap.mmap, int]] = []


class Hollows:
    """One hollow tensor per real or meta tensor, over one hollow storage per storage: tied weights stay tied, views stay views.

    `mode`: where fake kernels run. `filled`: whether `torch.empty` gives real memory, as a composite of torch needs that makes a
    tensor of numbers and writes them itself. Raises `NotHollow` for tensor subclasses, other layouts and other devices.
    """

    def __init__(self, mode: QuickFakeTensorMode | None = None):
        self.mode = mode or QuickFakeTensorMode(allow_non_fake_inputs=True)
        self.device = CPU
        self.filled = False
        self._made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._reals: dict[int, torch.Tensor] = {}
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._lent: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, bool]] = []

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` itself, made hollow until `give_back`: hooks on it and whoever holds it go on as they are. A stand-in if it cannot be.

        Its gradient, where it has one, is left out meanwhile.
        """
        if id(tensor) in self._reals or is_hollow(tensor) or tensor.device != CPU or not tensor.is_leaf:
            return self.of(tensor)
        made = self._make(tensor)
        with torch._C._DisableTorchDispatch(), torch.no_grad(), unseen():
            real, grad, needs = tensor.data, tensor.grad, tensor.requires_grad
            tensor.grad = None
            tensor.data = made.data
        self._lent.append((tensor, real, grad, needs))
        self._reals[id(tensor)] = real
        return tensor

    def fresh(self, tensor: torch.Tensor) -> torch.Tensor:
        """A stand-in that nothing here holds on to, so that it ends when the run lets go of it."""
        return tensor if is_hollow(tensor) else self._make(tensor)

    def learn(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """From now on `value` is what `tensor`, a stand-in or one that was taken, stands for."""
        self._reals[id(tensor)] = value

    def give_back(self) -> None:
        """Every tensor that was taken has its memory and its gradient again."""
        with torch._C._DisableTorchDispatch(), torch.no_grad(), unseen():
            for tensor, real, grad, needs in reversed(self._lent):
                tensor.grad = None
                tensor.data = real
                tensor.requires_grad_(needs)
                tensor.grad = grad
        self._lent.clear()

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The hollow tensor that stands for `tensor`; `tensor` itself when it is hollow already."""
        known = self._made.get(id(tensor))
        if known is None:
            if id(tensor) in self._reals or is_hollow(tensor):
                return tensor
            known = self._made[id(tensor)] = (tensor, self._make(tensor))
            self._reals[id(known[1])] = tensor
        return known[1]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Inside: ops are done on hollow tensors, and nobody records them."""
        with intercepted(self._unrecorded):
            yield

    def _unrecorded(self, func: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        info = known_info(func)
        if info.dropped:
            return func(*args, **kwargs)
        args, kwargs = pytree.tree_map_only(torch.Tensor, self.of, (args, dict(kwargs))) if not info.lift else (args, kwargs)
        return self.run(info, func, args, kwargs, None)

    def value(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The real tensor that a hollow one stands for; None if there is none with bytes."""
        real = self._reals.get(id(tensor))
        return None if real is None or real.is_meta else real

    def _make(self, tensor: torch.Tensor) -> torch.Tensor:
        if type(tensor) not in PLAIN_TENSORS or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            raise NotHollow(f"a {type(tensor).__name__} of layout {tensor.layout} is no plain tensor")
        if tensor.device.type not in ("cpu", "meta"):
            raise NotHollow(f"a tensor lies on {tensor.device}, not on the CPU")
        with torch._C._DisableTorchDispatch(), torch.no_grad(), unseen():
            real = tensor.untyped_storage()
            storage = self._storages.get(real._cdata)
            if storage is None:
                storage = self._storages[real._cdata] = hollow_storage(real.nbytes())
            made = over(storage, tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset())
            if tensor.is_conj():
                torch._C._set_conj(made, True)
            if tensor.is_neg():
                torch._C._set_neg(made, True)
            if isinstance(tensor, torch.nn.Parameter):
                made = torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
            else:
                made.requires_grad_(tensor.requires_grad)
        for name, value in vars(tensor).items():
            setattr(made, name, value)
        return made

    # ---- what ops return ------------------------------------------------------------------------------------------------------

    def run(self, info: OpInfo, func: Any, args: tuple, kwargs: Mapping[str, Any], key: Any) -> Any:
        """What `func` returns: of itself where it only looks at shapes, as remembered from an equal call, or as its fake kernel says."""
        if info.shapes_only:
            return func(*args, **kwargs)
        if self.filled and info.name == EMPTY:
            return func(*args, **kwargs)
        if info.lift:
            return hollow(args[0].dtype, args[0].shape, args[0].stride())
        if key is not None and info.plain and (known := recall(key)) is not None:
            kind, layouts = known
            made = [hollow(dtype, shape, strides) for shape, strides, dtype in layouts]
            return made[0] if kind is torch.Tensor else kind(made)
        if key is not None and info.in_place and recall_in_place(key):
            return args[0]
        shadows = Shadows(self.mode)
        fake_args, fake_kwargs = pytree.tree_map_only(torch.Tensor, shadows.of, (args, dict(kwargs)))
        kernel: Any = FAKE_KERNELS.get(info.name, func)
        with torch._C._AutoDispatchBelowAutograd(), self.mode:
            out = kernel_layout(info.name, fake_args, kernel(*fake_args, **fake_kwargs))
        if info.mask is not None and info.mask < len(args) and isinstance(out, tuple) and len(out) == len(args[info.mask]):
            out = tuple(t if wanted else None for t, wanted in zip(out, args[info.mask], strict=True))
        if key is not None and info.plain:
            remember(key, out, [t for t in pytree.tree_leaves((fake_args, fake_kwargs)) if isinstance(t, torch.Tensor)])
        elif key is not None and info.in_place and out is fake_args[0] and shadows.unchanged():
            remember_in_place(key)
        return shadows.hollow(out)


class Shadows:
    """Fake tensors of one call that lie on each other as its hollow arguments do, and the way back from what the call returns."""

    def __init__(self, mode: QuickFakeTensorMode):
        self.mode = mode
        self._fakes: dict[int, tuple[torch.Tensor, FakeTensor]] = {}
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._back: dict[int, torch.UntypedStorage] = {}

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The shadow of `tensor`; `tensor` itself if it lies on the meta device, or is a fake."""
        if isinstance(tensor, FakeTensor) or tensor.is_meta:
            return tensor
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            raise NotHollow(f"a {type(tensor).__name__} of layout {tensor.layout} is no plain tensor")
        known = self._fakes.get(id(tensor))
        if known is None:
            with torch._C._DisableTorchDispatch(), torch.no_grad():
                real = tensor.untyped_storage()
                storage = self._storages.get(real._cdata)
                if storage is None:
                    storage = self._storages[real._cdata] = torch.empty(real.nbytes(), dtype=torch.uint8, device="meta").untyped_storage()
                    self._back[storage._cdata] = real
                elem = torch.empty(0, dtype=tensor.dtype, device="meta").set_(
                    storage, tensor.storage_offset(), tensor.shape, tensor.stride()
                )
                if tensor.is_conj():
                    torch._C._set_conj(elem, True)
                if tensor.is_neg():
                    torch._C._set_neg(elem, True)
                known = self._fakes[id(tensor)] = (tensor, FakeTensor(self.mode, elem, CPU))
        return known[1]

    def unchanged(self) -> bool:
        """Whether the call left sizes, strides and storages of its arguments as they were."""
        return all(
            fake.shape == real.shape
            and fake.stride() == real.stride()
            and fake.storage_offset() == real.storage_offset()
            and fake.untyped_storage().nbytes() == real.untyped_storage().nbytes()
            for real, fake in self._fakes.values()
        )

    def hollow(self, out: Any) -> Any:
        """`out` of a call, with hollow tensors for fakes: the argument itself where it is one, else one on the same storage.

        Raises `NotHollow` where the call gave an argument another size, or returned something that is no plain tensor.
        """
        if not self.unchanged():
            raise NotHollow("an op resizes its argument")
        mine = {id(fake): real for real, fake in self._fakes.values()}

        def back(fake: torch.Tensor) -> torch.Tensor:
            if id(fake) in mine:
                return mine[id(fake)]
            if not isinstance(fake, FakeTensor):
                return fake
            if fake.layout != torch.strided or fake.is_quantized or fake.fake_device.type not in ("cpu", "meta"):
                raise NotHollow(f"an op returned a tensor of layout {fake.layout} on {fake.fake_device}")
            with torch._C._DisableTorchDispatch(), torch.no_grad():
                shape, strides, offset = tuple(fake.shape), fake.stride(), fake.storage_offset()
                if fake.fake_device.type == "meta":
                    mine[id(fake)] = torch.empty_strided(shape, strides, dtype=fake.dtype, device="meta")
                    return mine[id(fake)]
                storage = fake.untyped_storage()
                if storage._cdata not in self._back:
                    self._back[storage._cdata] = hollow_storage(storage.nbytes())
                    self._storages[-storage._cdata] = storage
                made = mine[id(fake)] = over(self._back[storage._cdata], fake.dtype, shape, strides, offset)
                if fake.is_conj():
                    torch._C._set_conj(made, True)
                if fake.is_neg():
                    torch._C._set_neg(made, True)
                return made

        return pytree.tree_map_only(torch.Tensor, back, out)
