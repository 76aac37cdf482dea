"""`trace`: a PyTorch model becomes a Graph, on the lowest rung of a ladder that holds it.

1. `meta`: a model given as a factory is built without its weights and run on fake tensors.
2. `fake`: a real (or meta) model, its tensors replaced by fakes while it runs. Nothing is computed.
3. `bounds`: as 2, but an op whose output size depends on data gets the largest size it can have.
4. `run`: one real run is recorded; only with `allow_real_run=True`.

On every rung values that depend only on known data (real inputs, constants) are computed exactly from the few ops behind them.
`Graph.meta` says which rung it was ("rung"), what the graph rests on ("assumptions") and whether sizes are bounds ("bounds").
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    UnsupportedOperatorException,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv

from .answers import Answers
from .beside_dispatch import watched
from .errors import NeaptideError, TraceError
from .fake import Fakes, QuickFakeTensorMode, borrowed, kernel_strides
from .graph import Graph
from .hollow import Hollows
from .ordinary import check_arguments, check_module, uncompiled
from .recorder import OWN_FOLDER, REFERENCE_FILES, TORCH_FOLDER, Recorder
from .structure import map_tensors, tensors_in
from .weightless import eager_branches, weightless

DATA_DEPENDENT = (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode)


def trace(
    model: torch.nn.Module | Callable[..., Any],
    args: Sequence[Any] | torch.Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    device: str = "cpu",
    mode: str = "inference",
    loss: Callable[..., Any] | None = None,
    optimizer: Any = None,
    allow_real_run: bool = False,
) -> Graph:
    """The Graph of `model(*args, **kwargs)` as PyTorch would run it on the CPU; the model is left as it was.

    `model`: a module, real or on the meta device; a factory of one (a module class or any callable without required parameters),
    which is built without weights where it can be; or another function of tensors. `args`, `kwargs`: example arguments, in any
    nesting of containers, dataclasses and objects; tensors on the meta device will do. `mode="inference"` runs in eval mode
    without gradients; `mode="training"` records a training step with `loss` and `optimizer` (see `compiler.training`); with `mode="step"`,
    `model` is a function that does a whole step itself (see `compiler.own_steps`).

    The model is not run unless `allow_real_run` is true and nothing else works. Raises `TraceError`, with the user's own line,
    when the model raises, an op has no fake kernel, or control flow depends on data that is not known.
    """
    args = (args,) if isinstance(args, torch.Tensor) else args
    _check_request(args, kwargs, device, mode)
    kwargs = dict(kwargs or {})
    check_arguments(args, kwargs)
    if mode == "step":
        from .own_steps import trace_step

        if loss is not None or optimizer is not None or allow_real_run:
            raise TraceError("mode='step' records a function that computes its loss and steps its optimizers itself: give it alone")
        return trace_step(model, args, kwargs)
    if mode == "training":
        if allow_real_run:
            raise TraceError("allow_real_run=True is for inference: a training step is recorded on fake tensors alone; leave it out")
        from .training import trace_training

        module = as_module(model)
        with uncompiled(module):
            return trace_training(module, args, kwargs, device=device, loss=loss, optimizer=optimizer)
    if loss is not None or optimizer is not None:
        raise TraceError(f"{'loss' if loss is not None else 'optimizer'}= belongs to mode='training'; this is mode='inference'")
    return _climb(model, args, kwargs, allow_real_run)


def _check_request(args: Any, kwargs: Any, device: str, mode: str) -> None:
    if mode not in ("inference", "training", "step"):
        raise TraceError(f"mode={mode!r}: choose 'inference', 'training' or 'step'")
    if torch.device(device).type != "cpu":
        raise TraceError(
            f"device={device!r}: only 'cpu' can be traced exactly. Without the device its kernels are chosen otherwise "
            "(attention falls back to the math form), so the peak would be wrong; trace on 'cpu' and read the graph peak"
        )
    if not isinstance(args, Sequence) or isinstance(args, str):
        raise TraceError(f"args is a {type(args).__name__}: give a tuple of the model's positional arguments")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TraceError(f"kwargs is a {type(kwargs).__name__}: give a mapping of names to the model's keyword arguments")


# ---- the ladder -----------------------------------------------------------------------------------------------------------


def _climb(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], allow_real_run: bool) -> Graph:
    """The first rung that holds; its error, put in words, when none does."""
    factory = _is_factory(model)
    light: Any = None
    real: Any = None
    failure: Exception | None = None
    if factory:
        try:
            with weightless(meta=True) as skipped:
                light = _built(model)
        except Exception as error:
            failure = error
        if light is not None:
            try:
                with uncompiled(light):
                    return _record_fake(light, args, kwargs, "meta", skipped)
            except Exception as error:
                failure = error
        try:
            with weightless(meta=False) as skipped:
                real = _built(model)
        except Exception as error:
            raise explain(error if light is None or failure is None else failure, model) from error
    else:
        real, skipped = as_module(model), {}
    try:
        with uncompiled(real):
            return _record_fake(real, args, kwargs, "fake", skipped)
    except Exception as error:
        failure = error
    if isinstance(failure, DATA_DEPENDENT):
        with contextlib.suppress(Exception), uncompiled(real):
            return _record_fake(real, args, kwargs, "bounds", skipped)
    if not allow_real_run:
        raise explain(failure, real) from failure
    if factory:
        light = real = failure = None
        with user_errors(model):
            real = _built(model)
    with uncompiled(real):
        return _record_real(real, args, kwargs)


def _is_factory(model: Any) -> bool:
    """True for a module class and for any callable, not a module, that needs no arguments."""
    if isinstance(model, torch.nn.Module) or not callable(model):
        return False
    try:
        parameters = inspect.signature(model).parameters.values()
    except (TypeError, ValueError):
        return False
    return all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def _built(factory: Any) -> torch.nn.Module:
    model = factory()
    if not isinstance(model, torch.nn.Module):
        raise TraceError(f"{_name(factory)}() returned a {type(model).__name__}, not a torch.nn.Module")
    return as_module(model)


class Function(torch.nn.Module):
    """A plain function as a module."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def as_module(model: Any) -> torch.nn.Module:
    """`model` as an ordinary module: compiled wrappers are taken off, factories called, functions wrapped."""
    if isinstance(model, torch.nn.Module):
        module = getattr(model, "_orig_mod", model)
        check_module(module)
        return module
    if not callable(model):
        raise TraceError(f"model is a {type(model).__name__}: give a torch.nn.Module, a factory of one, or a function of tensors")
    return _built(model) if _is_factory(model) else type(_name(model), (Function,), {})(model)


def _record_fake(
    model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], rung: str, skipped: Mapping[int, torch.Tensor]
) -> Graph:
    """The graph of a run on hollow tensors; on fake ones where those do not do."""
    try:
        return _record_on(Hollows(), model, args, kwargs, rung, skipped)
    except Exception as error:
        if isinstance(error, DATA_DEPENDENT) and rung != "bounds":
            raise
        shapes = ShapeEnv() if rung == "bounds" else None
        fakes = Fakes(QuickFakeTensorMode(allow_non_fake_inputs=True, shape_env=shapes))
        return _record_on(fakes, model, args, kwargs, rung, skipped)


def _record_on(
    fakes: Fakes | Hollows, model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], rung: str, skipped: Mapping[int, torch.Tensor]
) -> Graph:
    answers = Answers(bounds=rung == "bounds")
    recorder = answers.recorder = Recorder(_name(model), fakes=fakes, answer=answers.ask, chosen=answers.chosen)
    lend = fakes.take if isinstance(fakes, Hollows) else None
    with contextlib.ExitStack() as stack:
        if isinstance(fakes, Hollows):
            stack.callback(fakes.give_back)
        for part in (borrowed(model, fakes.of, lend), torch.no_grad(), eager_branches(), kernel_strides(fakes.mode), no_collection()):
            stack.enter_context(part)
        model.eval()
        declare_weights(recorder, model, skipped)
        fake_args, fake_kwargs = declare_inputs(recorder, args, kwargs, model)
        with watched(recorder, answers.read), fakes.active(), recorder, recorder.scopes(model):
            result = model(*fake_args, **fake_kwargs)
        return _finished(recorder, model, result, rung, answers)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Inside: Python's cycle collector rests. It would end tensors at moments that differ from run to run."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _record_real(model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Graph:
    """One real run on copies of the inputs; buffers are put back."""
    for name, tensor in (*_named_tensors(model, args, kwargs), *model.named_parameters()):
        if tensor.is_meta:
            raise TraceError(f"a real run needs values, and {name} is on the meta device: give real tensors, or a factory of the model")
    recorder = Recorder(_name(model))
    saved = [(b, b.detach().clone()) for b in model.buffers()]
    declare_weights(recorder, model)
    run_args, run_kwargs = declare_inputs(recorder, args, kwargs, model)
    try:
        with user_errors(model), borrowed(model, None), torch.no_grad():
            model.eval()
            with watched(recorder, lambda tensor: tensor), recorder, recorder.scopes(model):
                result = model(*run_args, **run_kwargs)
    finally:
        with torch.no_grad():
            for buffer, value in saved:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
    return _finished(recorder, model, result, "run", None)


def _finished(recorder: Recorder, model: Any, result: Any, rung: str, answers: Answers | None) -> Graph:
    for _, tensor in tensors_in(result):
        recorder.output(tensor)
    facts: dict[str, Any] = {"rung": rung}
    if answers is not None and answers.assumptions:
        facts["assumptions"] = answers.assumptions
    if answers is not None and answers.bounded:
        facts["bounds"] = True
    return recorder.finish(**graph_meta(model, device="cpu", mode="inference"), **facts)


# ---- shared with the recording of training steps --------------------------------------------------------------------------


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


def declare_weights(
    recorder: Recorder, model: torch.nn.Module, skipped: Mapping[int, torch.Tensor] | None = None, *, prefix: str = ""
) -> None:
    """Tell `recorder` the parameters and buffers of `model` under their first names, after `prefix`; further names go to meta "tied".

    Their values go along, except for tensors on meta and those over storages in `skipped`, whose bytes mean nothing.
    """
    fakes = recorder.fakes
    first: dict[int, str] = {}
    tied: dict[str, list[str]] = {}
    held: dict[str, list[tuple[str, torch.Tensor]]] = {"parameter": [], "buffer": []}
    for path, module in model.named_modules(remove_duplicate=False):
        dot = "".join(f"{part}." for part in (prefix, path) if part)
        held["parameter"].extend((dot + name, t) for name, t in module._parameters.items() if t is not None)
        held["buffer"].extend((dot + name, t) for name, t in module._buffers.items() if t is not None)
    for role, named in held.items():
        for name, tensor in named:
            if id(tensor) in first:
                tied.setdefault(first[id(tensor)], []).append(name)
                continue
            first[id(tensor)] = name
            stand_in = tensor if fakes is None else fakes.of(tensor)
            real = tensor if fakes is None else fakes.value(stand_in)
            known = real is not None and not real.is_meta and not (skipped and real.untyped_storage()._cdata in skipped)
            recorder.external(stand_in, role, name, value=real if known else None)
    if tied:
        recorder.builder.meta["tied"] = {**recorder.builder.meta.get("tied", {}), **tied}


def declare_inputs(
    recorder: Recorder, args: Sequence[Any], kwargs: Mapping[str, Any], model: Any = None
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Tell `recorder` every tensor in the arguments, in order; returns the arguments to call the model with.

    Each is named by its parameter in the signature of `model.forward` and its path inside (`"batch.mask"`, `"xs[1]"`).
    """
    fakes = recorder.fakes
    copies: dict[int, torch.Tensor] = {}

    def stand_in(tensor: torch.Tensor) -> torch.Tensor:
        if fakes is not None:
            return fakes.of(tensor)
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().clone()
        return copies[id(tensor)]

    for name, tensor in _named_tensors(model, args, kwargs):
        recorder.input(stand_in(tensor), name, value=None if tensor.is_meta or isinstance(tensor, FakeTensor) else tensor)
    return map_tensors(stand_in, list(args)), map_tensors(stand_in, dict(kwargs))


def _named_tensors(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in the arguments with its name."""
    for name, value in (*zip(parameter_names(model, len(args)), args, strict=True), *kwargs.items()):
        yield from tensors_in(value, name)


def parameter_names(model: Any, count: int) -> list[str]:
    """Names of the first `count` positional arguments of `model.forward`."""
    names: list[str] = []
    try:
        called = model.function if isinstance(model, Function) else model.forward
        parameters = list(inspect.signature(called).parameters.values())
    except (AttributeError, TypeError, ValueError):
        parameters = []
    for p in parameters:
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            names.append(p.name)
        elif p.kind is p.VAR_POSITIONAL:
            names.extend(f"{p.name}[{i}]" for i in range(count - len(names)))
    return names[:count] + [f"args[{i}]" for i in range(len(names), count)]


# ---- errors in words ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def user_errors(model: Any, *, training: bool = False) -> Iterator[None]:
    """An exception of the model becomes a `TraceError` with the user's own line and the original message."""
    try:
        yield
    except NeaptideError:
        raise
    except Exception as error:
        raise explain(error, model, training=training) from error


def explain(error: Exception, model: Any, *, training: bool = False) -> TraceError:
    """What went wrong while `model` was traced, in one paragraph; a training step has no real run to fall back on."""
    if isinstance(error, TraceError):
        return error
    real_run = "analyze its inference with allow_real_run=True" if training else "pass allow_real_run=True to record one real run"
    line = user_line(error)
    where = f" at {line}" if line else ""
    if isinstance(error, DATA_DEPENDENT):
        func = getattr(error, "func", None)
        what = f"{func}" if func is not None else "a branch or a size"
        return TraceError(
            f"{_name(model)}: {what}{where} depends on the values of tensors, which are not known while tracing: "
            f"give real example inputs, rewrite it, or {real_run}"
        )
    if isinstance(error, UnsupportedOperatorException) or "register_fake" in str(error):
        func = getattr(error, "func", None)
        named = re.search(r"\w+::\w+", str(error))
        op = str(func).rsplit(".", 1)[0].replace(".", "::", 1) if func is not None else named.group() if named else "an operator"
        return TraceError(
            f"{_name(model)}: {op}{where} has no fake kernel, so its output shapes are not known: register one with "
            f"torch.library.register_fake({op!r}), or {real_run}"
        )
    message = " ".join(str(error).split())
    if "SparseTensorImpl" in message:
        return TraceError(
            f"{_name(model)} makes a sparse tensor{where}, whose parts are storages of their own: keep it dense, for example with "
            "nn.Embedding(sparse=False) or x.to_dense()"
        )
    if "NestedTensorImpl" in message:
        return TraceError(
            f"{_name(model)} makes a nested tensor{where}, of rows that differ in length: keep it padded, for example with "
            "nn.TransformerEncoder(..., enable_nested_tensor=False)"
        )
    return TraceError(f"{_name(model)} raised {type(error).__name__}{where} while it was traced: {message}")


def user_line(error: BaseException) -> str:
    """`file:line` of the innermost frame of `error` that is neither torch's nor this package's; "" if there is none."""
    found = ""
    for frame, lineno in traceback.walk_tb(error.__traceback__):
        name = frame.f_code.co_filename
        own = name.startswith(OWN_FOLDER) and not name.startswith(REFERENCE_FILES)
        if not own and not name.startswith((TORCH_FOLDER, "<")) and os.path.basename(name) != "contextlib.py":
            found = f"{name}:{lineno}"
    return found


def _name(model: Any) -> str:
    return type(model).__name__ if isinstance(model, torch.nn.Module) else getattr(model, "__name__", type(model).__name__)
