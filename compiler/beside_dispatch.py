"""What a run does with tensors where no op is seen: values read by Python, copies of storages and of the random state, composites of
torch that read or write memory themselves (`max_pool1d` without gradients, `ctc_loss` and `tensor_split` with numbers in tensors).

`watched` puts functions of its own in place of torch's while a recorder runs; they do what they always did for tensors that are not
hollow and for threads that record nothing.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from .hollow import Hollows, hollow_storage, is_hollow, over, unseen
from .recorder import Recorder

RANDOM_STATE, COPY = "neaptide.random_state", "neaptide.copy"
MAX_POOL1D = torch.ops.aten.max_pool1d.default


@contextlib.contextmanager
def watched(recorder: Recorder, read: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Inside: memory that no op makes becomes nodes of `recorder`; `read(tensor)` gives the real tensor whose values Python asks for.

    `read` raises what tracing ends with where values are not known.
    """
    mine = recorder.running
    make_subclass, deepcopy, show = torch.Tensor._make_subclass, torch.Tensor.__deepcopy__, torch.Tensor.__repr__
    get_rng_state = torch.random.get_rng_state

    def plain_subclass(cls: Any, *args: Any, **kwargs: Any) -> Any:
        with unseen():  # it detaches its argument, and wants to be the first to give the result a Python object
            return make_subclass(cls, *args, **kwargs)

    def rng_state() -> torch.Tensor:
        with unseen():
            state = get_rng_state()
        if mine():
            recorder.event(RANDOM_STATE, state)
        return state

    def values_first(name: str) -> Callable[..., Any]:
        original = getattr(torch.Tensor, name)

        def method(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if mine() and is_hollow(self):
                with unseen():
                    return original(read(self), *args, **kwargs)
            return original(self, *args, **kwargs)

        return method

    def copied(self: torch.Tensor, memo: dict[int, Any]) -> Any:
        if not (mine() and is_hollow(self)):
            return deepcopy(self, memo)
        if id(self) in memo:
            return memo[id(self)]
        if not self.is_leaf:
            raise RuntimeError("Only Tensors created explicitly by the user support the deepcopy protocol at the moment")
        made = memo[id(self)] = _copy(recorder, self, memo)
        for name, value in vars(self).items():
            setattr(made, name, copy.deepcopy(value, memo))
        return made

    def shown(self: torch.Tensor, **kwargs: Any) -> str:
        if mine() and is_hollow(self):
            return f"tensor(..., size={tuple(self.shape)}, dtype={self.dtype})"
        return show(self, **kwargs)

    max_pool1d, ctc_loss = torch.max_pool1d, torch.ctc_loss

    def pooled(input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        needs_gradient = input.requires_grad and torch.is_grad_enabled()
        if not (mine() and is_hollow(input)) or needs_gradient:
            return max_pool1d(input, *args, **kwargs)
        with unseen():
            return recorder.__torch_dispatch__(MAX_POOL1D, (), (input, *_pool_arguments(*args, **kwargs)))

    def connectionist(
        log_probs: torch.Tensor, targets: torch.Tensor, input_lengths: Any, target_lengths: Any, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        if mine() and isinstance(input_lengths, torch.Tensor):
            input_lengths, target_lengths = input_lengths.to(torch.int64).tolist(), target_lengths.to(torch.int64).tolist()
        with _filled(recorder.fakes) if mine() else contextlib.nullcontext():
            return ctc_loss(log_probs, targets, input_lengths, target_lengths, *args, **kwargs)

    pad_packed = torch._VF._pad_packed_sequence

    def padded(*args: Any, **kwargs: Any) -> Any:
        with _filled(recorder.fakes) if mine() else contextlib.nullcontext():
            return pad_packed(*args, **kwargs)

    def split(original: Callable[..., Any]) -> Callable[..., Any]:
        def tensor_split(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if mine():
                args = tuple(_numbers(a) for a in args)
                kwargs = {k: _numbers(v) for k, v in kwargs.items()}
            return original(self, *args, **kwargs)

        return tensor_split

    methods: dict[str, Any] = {name: values_first(name) for name in ("tolist", "numpy", "__array__")}
    methods |= {"tensor_split": split(torch.Tensor.tensor_split)}
    methods |= {"_make_subclass": staticmethod(plain_subclass), "__deepcopy__": copied, "__repr__": shown}
    with contextlib.ExitStack() as stack:
        for name, method in methods.items():
            stack.enter_context(_attribute(torch.Tensor, name, method))
        for module in (torch, torch.random):
            stack.enter_context(mock.patch.object(module, "get_rng_state", rng_state))
        stack.enter_context(mock.patch.multiple(torch, max_pool1d=pooled, ctc_loss=connectionist))
        stack.enter_context(mock.patch.object(torch, "tensor_split", split(torch.tensor_split)))
        stack.enter_context(mock.patch.object(torch._VF, "_pad_packed_sequence", padded, create=True))
        stack.enter_context(mock.patch.object(torch, "compile", _uncompiled))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _uncompiled(model: Any = None, **_: Any) -> Any:
    """`torch.compile` while a recording runs: what is given, as it is."""
    return model if model is not None else _uncompiled


def _numbers(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else value


def _pool_arguments(kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False) -> tuple[Any, ...]:
    """As torch's parser gives them to the operator."""
    lists = ([v] if isinstance(v, int) else [] if v is None else list(v) for v in (kernel_size, stride, padding, dilation))
    return *lists, ceil_mode


@contextlib.contextmanager
def _filled(hollows: Any) -> Iterator[None]:
    """Inside: a composite may make tensors of numbers and write them itself."""
    if not isinstance(hollows, Hollows):
        yield
        return
    hollows.filled = True
    try:
        yield
    finally:
        hollows.filled = False


def _copy(recorder: Recorder, tensor: torch.Tensor, memo: dict[Any, Any]) -> torch.Tensor:
    """A copy on a storage of its own, one for each storage in one `copy.deepcopy`; gradients are copied too."""
    with unseen(), torch.no_grad():
        storage = tensor.untyped_storage()
        known = memo.get(("hollow", storage._cdata))
        if known is None:
            known = memo[("hollow", storage._cdata)] = hollow_storage(storage.nbytes())
        made = over(known, tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset())
        if isinstance(tensor, torch.nn.Parameter):
            made = torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
        else:
            made.requires_grad_(tensor.requires_grad)
        if recorder.storage_id(made) is None:
            recorder.event(COPY, made)
        if tensor.grad is not None:
            made.grad = copy.deepcopy(tensor.grad, memo)
    return made


@contextlib.contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside: `owner.name` is `value`; after, it is what it was, or absent again where it was inherited."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
