"""`trace`: a PyTorch model becomes a Graph without running it."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from .errors import NeaptideError, TraceError
from .fake import Fakes, borrowed
from .graph import Graph
from .recorder import OWN_FOLDER, TORCH_FOLDER, Recorder
from .structure import map_tensors, tensors_in


def trace(
    model: torch.nn.Module,
    args: Sequence[Any] | torch.Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    device: str = "cpu",
    mode: str = "inference",
    loss: Callable[..., Any] | None = None,
    optimizer: Any = None,
    allow_real_run: bool = False,
) -> Graph:
    """The Graph of `model(*args, **kwargs)`, recorded on fake tensors: nothing is computed, the model is left as it was."""
    if isinstance(args, torch.Tensor):
        args = (args,)
    if mode == "training":
        from .training import trace_training

        return trace_training(model, args, kwargs, device=device, loss=loss, optimizer=optimizer)
    fakes = Fakes(device=device)
    recorder = Recorder(type(model).__name__, fakes=fakes)
    declare_weights(recorder, model)
    fake_args, fake_kwargs = declare_inputs(recorder, args, kwargs or {})
    with user_errors(model), inference_on(model, fakes), recorder, recorder.scopes(model):
        result = model(*fake_args, **fake_kwargs)
    for _, tensor in tensors_in(result):
        recorder.output(tensor)
    return recorder.finish(**graph_meta(model, device=device, mode=mode))


def graph_meta(model: Any, *, device: str, mode: str) -> dict[str, Any]:
    """What every traced graph says about where it came from."""
    return {
        "frontend": "recorder",
        "model": f"{type(model).__module__}.{type(model).__qualname__}",
        "device": device,
        "mode": mode,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__},
    }


@contextlib.contextmanager
def inference_on(model: torch.nn.Module, fakes: Fakes) -> Iterator[None]:
    """Inside: `model` in eval mode on fake tensors, no gradients. After: the model as it was."""
    with borrowed(model, fakes), torch.no_grad():
        model.eval()
        with fakes.mode:
            yield


def declare_weights(recorder: Recorder, model: torch.nn.Module) -> None:
    """Tell `recorder` the parameters and buffers of `model` under their first names; further names go to meta "tied"."""
    fakes = recorder.fakes
    first: dict[int, str] = {}
    for role, named in (("parameter", model.named_parameters), ("buffer", model.named_buffers)):
        for name, tensor in named(remove_duplicate=False):
            if id(tensor) in first:
                recorder.builder.meta.setdefault("tied", {}).setdefault(first[id(tensor)], []).append(name)
                continue
            first[id(tensor)] = name
            stand_in = tensor if fakes is None else fakes.of(tensor)
            recorder.external(stand_in, role, name, value=None if tensor.is_meta else tensor)


def declare_inputs(recorder: Recorder, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Tell `recorder` every tensor in the arguments, in order; returns the arguments to call the model with."""
    fakes = recorder.fakes
    for name, tensor in (*tensors_in(list(args), "args"), *tensors_in(dict(kwargs))):
        recorder.input(tensor if fakes is None else fakes.of(tensor), name, value=None if tensor.is_meta else tensor)
    if fakes is None:
        return args, kwargs
    return map_tensors(fakes.of, list(args)), map_tensors(fakes.of, dict(kwargs))


@contextlib.contextmanager
def user_errors(model: Any) -> Iterator[None]:
    """An exception of the model becomes a `TraceError` with the user's own line and the original message."""
    try:
        yield
    except NeaptideError:
        raise
    except Exception as error:
        line = user_line(error)
        where = f" at {line}" if line else ""
        message = " ".join(str(error).split())
        raise TraceError(f"{type(model).__name__} raised {type(error).__name__}{where} while it was traced: {message}") from error


def user_line(error: BaseException) -> str:
    """`file:line` of the innermost frame of `error` that is neither torch's nor this package's; "" if there is none."""
    found = ""
    for frame, lineno in traceback.walk_tb(error.__traceback__):
        name = frame.f_code.co_filename
        if not name.startswith((TORCH_FOLDER, OWN_FOLDER, "<")) and os.path.basename(name) != "contextlib.py":
            found = f"{name}:{lineno}"
    return found
