"""A whole step of the user's own as a Graph, `mode="step"`: whatever a function does, with several models, accumulation and optimizers.

The function runs twice on hollow tensors, and its second run is the graph: the first makes the optimizers' state, as a real first step
does. What it works on is found where Python keeps it: in its closure, its defaults, the globals its code names, the object it is a method
of, and inside lists, tuples, dicts and plain objects there. Modules, optimizers and tensors found so are made hollow in place, and given
back with their memory, their gradients and their state, whatever happened inside.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .errors import TraceError
from .fake import borrowed, kernel_strides
from .graph import Graph
from .hollow import Hollows
from .in_place_gradients import accumulate_in_place
from .lent_optimizers import optimizers_lent
from .structure import tensors_in
from .trace import declare_inputs, declare_weights, graph_meta, no_collection, user_errors
from .training import TrainingRecorder, in_recording
from .weightless import eager_branches

DEPTH = 6  # how far inside containers and objects things are looked for
SIMPLE = (str, bytes, int, float, complex, bool, type(None), type, torch.dtype, torch.device, torch.Size, types.ModuleType)


def trace_step(step: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Graph:
    """The Graph of a call `step(*args, **kwargs)` after an earlier one, gradients on. Nothing is computed, all is left as it was.

    Nodes of a backward pass carry that phase, those inside an optimizer's `step` the phase "optimizer". Raises `TraceError` with the
    user's line where `step` cannot be traced, and when it works on no module, optimizer or tensor that can be found.
    """
    if not callable(step) or isinstance(step, torch.nn.Module):
        raise TraceError(f"mode='step' records a function that does a whole training step; a {type(step).__name__} is none")
    found = Found()
    found.look("", step, 0)
    if not (found.modules or found.tensors):
        raise TraceError(
            f"{_name(step)} reaches no module and no tensor, in its closure, defaults, globals or object: give the function that holds them"
        )
    hollows = Hollows()
    recorder = _StepRecorder(_name(step), fakes=hollows)
    with contextlib.ExitStack() as stack:
        stack.enter_context(user_errors(step, training=True))
        stack.callback(hollows.give_back)
        for module in found.modules.values():
            stack.enter_context(borrowed(module, hollows.take))
        for tensor in found.tensors.values():
            hollows.take(tensor)
        for part in (torch.enable_grad(), eager_branches(), no_collection(), kernel_strides(hollows.mode)):
            stack.enter_context(part)
        optimizers = stack.enter_context(optimizers_lent(hollows))
        with hollows.active():
            for current in (_StepRecorder(_name(step), fakes=hollows), recorder):
                _declare(current, found, optimizers)
                given, named = declare_inputs(current, args, kwargs, step)
                with in_recording(current), contextlib.ExitStack() as scopes:
                    for module in found.modules.values():
                        scopes.enter_context(current.scopes(module))
                    result = step(*given, **named)
                current.settle()
        for _, tensor in tensors_in(result):
            recorder.output(tensor)
        _declare_left(recorder, found, optimizers)
        facts: dict[str, Any] = {"assumptions": recorder.answers.assumptions} if recorder.answers.assumptions else {}
        graph = recorder.finish(**graph_meta(step, device="cpu", mode="step"), **facts)
    return accumulate_in_place(graph, recorder.mergeable)


class Found:
    """What a function works on, by the name it has there: `modules`, and `tensors` that belong to none."""

    def __init__(self) -> None:
        self.modules: dict[str, torch.nn.Module] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self._seen: set[int] = set()

    def look(self, name: str, value: Any, depth: int) -> None:
        """Take up `value` and what it holds."""
        if isinstance(value, SIMPLE) or id(value) in self._seen or depth > DEPTH:
            return
        self._seen.add(id(value))
        if isinstance(value, torch.nn.Module):
            self.modules[name or type(value).__name__] = value
        elif isinstance(value, torch.Tensor):
            self.tensors[name] = value
        elif isinstance(value, torch.optim.Optimizer):
            for i, group in enumerate(value.param_groups):
                self.look(f"{name}.params[{i}]", group["params"], depth + 1)
        else:
            for part, item in _parts(value):
                self.look(f"{name}{part}" if part.startswith("[") else f"{name}.{part}".lstrip("."), item, depth + 1)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of what a function, a container or a plain object holds."""
    if isinstance(value, functools.partial):
        yield from (("", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, types.MethodType):
        yield from ((value.__func__.__name__, value.__func__), ("", value.__self__))
    elif isinstance(value, types.FunctionType):
        code = value.__code__
        for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # a cell that is not filled yet
                yield name, cell.cell_contents
        yield from (value.__kwdefaults__ or {}).items()
        yield from ((f"[{i}]", item) for i, item in enumerate(value.__defaults__ or ()))
        names = {n for c in (code, *(k for k in code.co_consts if isinstance(k, types.CodeType))) for n in c.co_names}
        yield from ((name, value.__globals__[name]) for name in sorted(names) if name in value.__globals__)
    elif isinstance(value, Mapping):
        yield from ((f"[{key!r}]", item) for key, item in list(value.items()))
    elif isinstance(value, list | tuple | set):
        yield from ((f"[{i}]", item) for i, item in enumerate(value))
    elif not type(value).__module__.startswith(("torch", "builtins", "numpy")):
        yield from getattr(value, "__dict__", {}).items()


class _StepRecorder(TrainingRecorder):
    """Phases as autograd and the optimizers say; nothing else knows them in a function of the user's own."""

    stepping = 0

    @property
    def phase(self) -> str:
        """The phase that an op belongs to which comes now."""
        return "optimizer" if self.stepping else "forward" if torch._C._current_autograd_node() is None else "backward"

    @phase.setter
    def phase(self, value: str) -> None:
        """Phases are not set here."""

    def __enter__(self) -> _StepRecorder:
        def begin(*_: Any) -> None:
            self.stepping += 1

        def end(*_: Any) -> None:
            self.stepping -= 1

        self._hooks = register_optimizer_step_pre_hook(begin), register_optimizer_step_post_hook(end)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()


def _declare(recorder: TrainingRecorder, found: Found, optimizers: Mapping[int, torch.optim.Optimizer]) -> None:
    """What is there before the step: weights, other tensors, gradients and state that an earlier step left."""
    for name, module in found.modules.items():
        declare_weights(recorder, module, prefix=name if len(found.modules) > 1 else "")
    for name, tensor in found.tensors.items():
        recorder.external(recorder.fakes.of(tensor), "buffer", name, value=recorder.fakes.value(tensor))  # type: ignore[union-attr]
    for name, role, tensor in _left(found, optimizers):
        recorder.external(tensor, role, name)


def _declare_left(recorder: TrainingRecorder, found: Found, optimizers: Mapping[int, torch.optim.Optimizer]) -> None:
    """What outlives the step: gradients that were kept, and the optimizers' state."""
    for name, role, tensor in _left(found, optimizers):
        recorder.set_role(tensor, role, name)
        recorder.output(tensor)


def _left(found: Found, optimizers: Mapping[int, torch.optim.Optimizer]) -> Iterator[tuple[str, str, torch.Tensor]]:
    names = {id(p): n for module in found.modules.values() for n, p in module.named_parameters()}
    for module in found.modules.values():
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                yield f"{name}.grad", "gradient", parameter.grad
    for optimizer in optimizers.values():
        for parameter, state in optimizer.state.items():
            for path, tensor in tensors_in(dict(state)):
                yield f"{names.get(id(parameter), '')}.{path}", "optimizer_state", tensor


def _name(step: Any) -> str:
    return getattr(step, "__name__", type(step).__name__)
