"""Training steps as Graphs: forward, backward and the optimizer's step, recorded on fake tensors.

`TrainingLoop.step` is the step that is recorded, and an ordinary training loop runs the same statements in the same order:
gradients are cleared at the end of a step, the model's output and the loss are held until the step ends. By default the
second step is recorded, the steady state in which the optimizer's state exists; step 1 creates that state.

What no op shows is added here: a Python number multiplied with a tensor that needs gradients is saved as an 8-byte tensor. Gradients that
meet are added in place by autograd only when nothing else holds their storage, as the recorder does; that is mended. Optimizers read their
step count, which is answered.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._C import _current_autograd_node
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor

from .answers import Answers
from .beside_dispatch import watched
from .errors import TraceError
from .fake import Fakes, StandIn, borrowed, kernel_strides
from .graph import Graph
from .hollow import Hollows
from .in_place_gradients import accumulate_in_place
from .lent_optimizers import optimizers_lent
from .op_info import DROPPED_NAMESPACES
from .optimizers import make_optimizer
from .recorder import Recorder
from .structure import tensors_in
from .trace import DATA_DEPENDENT, declare_inputs, declare_weights, graph_meta, no_collection, user_errors
from .weightless import eager_branches

ORIGIN = "neaptide.origin"
CARRIED = 64  # elements of a buffer whose value is carried from one step into the next

Phase = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class TrainingLoop:
    """What one step of training does.

    `loss`: scalar from the model's output; None means the output's own `loss` where it has one, else the sum of its floating
    tensors. `accumulate`: forward and backward passes per optimizer step, the loss divided by it. `set_to_none`: whether
    gradients are dropped at the end of the step or zeroed. `autocast`: dtype name (`"bfloat16"`) under which the forward pass
    and the loss run, None for none.
    """

    loss: Callable[[Any], torch.Tensor] | None = None
    accumulate: int = 1
    set_to_none: bool = True
    autocast: str | None = None

    def step(
        self,
        model: torch.nn.Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        optimizer: torch.optim.Optimizer | None,
        phase: Phase = contextlib.nullcontext,
        before_clearing: Callable[[], None] | None = None,
    ) -> None:
        """One step; every part runs inside `phase("forward" | "backward" | "optimizer")`.

        Without an optimizer nothing clears gradients at the end: they are what the step is for, and the next step drops them.
        """
        if optimizer is None:
            model.zero_grad(set_to_none=True)
        for _ in range(self.accumulate):
            with phase("forward"), self._casting():
                output = model(*args, **kwargs)
                loss = self._loss_of(output)
                if self.accumulate > 1:
                    loss = loss / self.accumulate
            with phase("backward"):
                loss.backward()
        with phase("optimizer"):
            if optimizer is not None:
                optimizer.step()
            if before_clearing is not None:
                before_clearing()
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=self.set_to_none)

    def _casting(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast("cpu", dtype=getattr(torch, self.autocast))

    def _loss_of(self, output: Any) -> torch.Tensor:
        if self.loss is not None:
            return self.loss(output)
        own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if isinstance(own, torch.Tensor):
            return own
        parts = [t for _, t in tensors_in(output) if t.requires_grad and t.is_floating_point()]
        if not parts:
            raise TraceError(
                f"the output, a {type(output).__name__}, holds no tensor that needs gradients: give loss=, or unfreeze parameters"
            )
        total = parts[0].sum()
        for part in parts[1:]:
            total = total + part.sum()
        return total


def trace_training(
    model: torch.nn.Module,
    args: Sequence[Any] | torch.Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    device: str = "cpu",
    loss: Callable[[Any], torch.Tensor] | None = None,
    optimizer: Any = None,
    step: int = 2,
    accumulate: int = 1,
    set_to_none: bool = True,
    autocast: str | None = None,
) -> Graph:
    """The Graph of training step `step` (1 or 2) of `model`, put in training mode; nothing is computed, the model is left as it was.

    `optimizer`: None (forward and backward only), a name with options such as `"sgd"`, `"sgd:momentum=0.9"`, `"adamw:fused"`,
    a class, a function from parameters to an optimizer, or an optimizer over the model's parameters. The rest as in
    `TrainingLoop`. Nodes carry their `phase`; storages of gradients and of optimizer state carry those roles, and the ones
    that an earlier step left behind are external. Raises `TraceError` with the user's line when the model cannot be traced.
    """
    if step not in (1, 2):
        raise TraceError(f"step={step!r}: 1 is the first step, which creates the optimizer's state, and 2 any later one")
    if accumulate < 1:
        raise TraceError(f"accumulate={accumulate!r}: a step has one forward and backward pass or more")
    loop = TrainingLoop(loss, accumulate, set_to_none, autocast)
    args = (args,) if isinstance(args, torch.Tensor) else args
    name, bounds = type(model).__name__, False
    try:
        recorder = TrainingRecorder(name, fakes=Hollows())
        graph = record_step(recorder, model, args, kwargs or {}, loop, optimizer, step)
    except TraceError as error:
        bounds = isinstance(error.__cause__, DATA_DEPENDENT)
        recorder = TrainingRecorder(name, fakes=Hollows() if bounds else Fakes(device=device), bounds=bounds)
        try:
            graph = record_step(recorder, model, args, kwargs or {}, loop, optimizer, step)
        except TraceError:
            if bounds:
                raise error from error.__cause__
            raise
    return accumulate_in_place(graph, recorder.mergeable)


def record_step(
    recorder: TrainingRecorder,
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    loop: TrainingLoop,
    optimizer: Any = None,
    step: int = 2,
) -> Graph:
    """Step `step` of `loop` as `recorder` sees it: gradients that meet are still added into new tensors. As in `trace_training`."""
    fakes = recorder.fakes
    assert fakes is not None
    _import_what_optimizers_import()
    with contextlib.ExitStack() as stack:
        stack.enter_context(user_errors(model, training=True))
        if isinstance(fakes, Hollows):
            stack.callback(fakes.give_back)
            stack.enter_context(optimizers_lent(fakes))
        lend = fakes.take if isinstance(fakes, Hollows) else None
        stand_in = lend or fakes.of
        for part in (borrowed(model, stand_in, lend), torch.enable_grad(), eager_branches(), no_collection(), kernel_strides(fakes.mode)):
            stack.enter_context(part)
        model.train()
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        with fakes.active():
            optim = make_optimizer(optimizer, list(parameters.values()), _state_stand_in(fakes))
            if step == 2 and (optim is not None or any(p._post_accumulate_grad_hooks for p in parameters.values())):
                first = TrainingRecorder(recorder.builder.name, fakes=fakes, concrete=recorder.concrete, bounds=recorder.answers.bounds)
                _run(first, loop, model, args, kwargs, parameters, optim)
                _carry_values(first, model)
            _run(recorder, loop, model, args, kwargs, parameters, optim)
            _declare_results(recorder, parameters, optim)
        facts: dict[str, Any] = {"training": _facts(loop, optim, step)}
        if recorder.answers.assumptions:
            facts["assumptions"] = recorder.answers.assumptions
        if recorder.answers.bounded:
            facts["bounds"] = True
        return recorder.finish(**graph_meta(model, device=str(fakes.device), mode="training"), **facts)


def _state_stand_in(fakes: Fakes | Hollows) -> StandIn:
    """Stand-ins for an optimizer's tensors: its parameters' own, and for its state such as end when it is replaced."""
    if not isinstance(fakes, Hollows):
        return fakes.of
    return lambda tensor: fakes.of(tensor) if isinstance(tensor, torch.nn.Parameter) else fakes.fresh(tensor)


def _run(
    recorder: TrainingRecorder,
    loop: TrainingLoop,
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    parameters: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """One step under `recorder`; `model` and `optimizer` are over fakes."""
    declare_weights(recorder, model)
    fake_args, fake_kwargs = declare_inputs(recorder, args, kwargs, model)
    _declare_state(recorder, parameters, optimizer)

    def name_state() -> None:
        _name_state(recorder, parameters, optimizer)

    with in_recording(recorder), recorder.scopes(model):
        loop.step(model, fake_args, fake_kwargs, optimizer, recorder.in_phase, name_state)


@contextlib.contextmanager
def in_recording(recorder: TrainingRecorder) -> Iterator[None]:
    """Inside: `recorder` sees every op, and memory that no op makes."""
    with watched(recorder, recorder.answers.read), recorder:
        yield


def _carry_values(recorder: TrainingRecorder, model: torch.nn.Module) -> None:
    """What small buffers hold after a recorded step, such as counters that the next one branches on, where that can be computed."""
    if isinstance(recorder.fakes, Hollows):
        for buffer in model.buffers():
            if buffer.numel() <= CARRIED:
                with contextlib.suppress(DataDependentOutputException):
                    recorder.fakes.learn(buffer, recorder.answers.read(buffer))


def _facts(loop: TrainingLoop, optimizer: torch.optim.Optimizer | None, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "optimizer": type(optimizer).__name__ if optimizer is not None else "none",
        "accumulate": loop.accumulate,
        "set_to_none": loop.set_to_none,
        "autocast": loop.autocast,
    }


# ---- the recorder in training ---------------------------------------------------------------------------------------------


class TrainingRecorder(Recorder):
    """Records grad mode with each node, tensors that autograd saves unseen, and which gradient sums a real run makes in place.

    `mergeable`: ids of `aten.add.Tensor` nodes of the backward pass whose first argument autograd may overwrite if it dies there.
    """

    def __init__(self, name: str, *, fakes: Fakes | Hollows, concrete: Callable[[Any], Any] = int, bounds: bool = False):
        self.answers = Answers(bounds=bounds)
        super().__init__(name, fakes=fakes, concrete=concrete, answer=self._number, chosen=self.answers.chosen)
        self.answers.recorder = self
        self.mergeable: list[int] = []
        self._unsettled: list[_Recorded] = []

    def _number(self, func: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """Answers, and where none is known 1 for a number: an optimizer's step count, a loss to print. Never a branch."""
        optimizing = self.phase == "optimizer"
        exact = NotImplemented if optimizing else self.answers.ask(func, args, kwargs)
        if exact is not NotImplemented or func is not torch.ops.aten._local_scalar_dense.default:
            return exact
        constant = getattr(args[0], "constant", None)
        if constant is not None:
            return func(constant)
        if args[0].dtype == torch.bool and not optimizing:
            return NotImplemented
        if not optimizing:
            entry = {"op": str(func), "at": self.source, "what": "1, which stands for a value that is not known"}
            self.answers.assumptions.append(entry)
        return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1

    @contextlib.contextmanager
    def in_phase(self, phase: str) -> Iterator[None]:
        """Inside: nodes carry `phase`."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.settle()
            self.phase = before

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if self._unsettled and func.namespace not in DROPPED_NAMESPACES:
            self.settle()
        known = self.node_id
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if self.node_id == known:
            return out
        node = self.builder.nodes[-1]
        if torch.is_grad_enabled():
            assert isinstance(node.attrs, dict)
            node.attrs["grad"] = True
            for tensor in out if isinstance(out, list | tuple) else (out,):
                if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                    numbers = tuple(_numbers_as_tensors(func, args))
                    self._unsettled.append(_Recorded(weakref.ref(tensor), node.scope, node.source, numbers, node.id))
        elif func is torch.ops.aten.add.Tensor and self.phase == "backward" and _is_accumulation(args):
            self.mergeable.append(node.id)
        if self.phase == "backward" and not node.scope:
            behind: Any = _current_autograd_node()
            scope, source = behind.metadata.get(ORIGIN, ("", "")) if behind is not None else ("", "")
            self.builder.nodes[-1] = replace(node, scope=scope, source=source or node.source)
        return out

    def settle(self) -> None:
        """Look at what autograd made of the last ops, which it does after they are dispatched; views are left alone, whose history
        changes when it is looked at before an in-place op on them is complete.

        Each of its nodes learns where in the model it comes from, so that the backward pass can be told module by module. Each
        number it saved, an 8-byte tensor made without dispatch, becomes a node; numbers are saved past any saved-tensor hooks,
        so looking at one never starts a recomputation.
        """
        still_unsettled = []
        for recorded in self._unsettled:
            tensor = recorded.tensor()
            if tensor is None or tensor._is_view():
                continue
            behind: Any = tensor.grad_fn
            if behind is None:
                if tensor.requires_grad is False and self.node_id - recorded.node < 2:
                    still_unsettled.append(recorded)
                continue
            behind.metadata.setdefault(ORIGIN, (recorded.scope, recorded.source))
            for name in recorded.numbers:
                saved = getattr(behind, f"_saved_{name}", None)
                if isinstance(saved, torch.Tensor) and not isinstance(saved, FakeTensor) and self.storage_id(saved) is None:
                    self.event("neaptide.saved_number", saved)
        self._unsettled = still_unsettled


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A result whose autograd node is not known yet; `numbers`: arguments where a Python number stood for a tensor."""

    tensor: weakref.ref[torch.Tensor]
    scope: str
    source: str
    numbers: tuple[str, ...]
    node: int


def _numbers_as_tensors(func: Any, args: tuple) -> Iterator[str]:
    """Names of the arguments where a Python number stands for a tensor."""
    for value, argument in zip(args, func._schema.arguments, strict=False):
        if isinstance(value, int | float) and isinstance(argument.type, torch.TensorType):
            yield argument.name


def _is_accumulation(args: tuple) -> bool:
    """Whether autograd may be adding up a gradient here, and may write the sum over its first part."""
    first, second = args[0], args[1]
    return (
        isinstance(first, torch.Tensor)
        and isinstance(second, torch.Tensor)
        and first.shape == second.shape
        and not first._is_view()
        and first.untyped_storage().nbytes() == first.numel() * first.element_size()
    )


def _declare_state(recorder: Recorder, parameters: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer | None) -> None:
    """What an earlier step left behind is there before this one."""
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            recorder.external(parameter.grad, "gradient", f"{name}.grad")
    for name, tensor in _state_tensors(parameters, optimizer):
        recorder.external(tensor, "optimizer_state", name)


def _declare_results(recorder: Recorder, parameters: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer | None) -> None:
    """What the step leaves for the next one outlives it: kept gradients and the optimizer's state are outputs."""
    for parameter in parameters.values():
        if parameter.grad is not None:
            recorder.output(parameter.grad)
    for _, tensor in _state_tensors(parameters, optimizer):
        recorder.output(tensor)


def _name_state(recorder: Recorder, parameters: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer | None) -> None:
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            recorder.set_role(parameter.grad, "gradient", f"{name}.grad")
    for name, tensor in _state_tensors(parameters, optimizer):
        recorder.set_role(tensor, "optimizer_state", name)


def _state_tensors(parameters: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer | None) -> Iterator[tuple[str, torch.Tensor]]:
    names = {id(p): name for name, p in parameters.items()}
    for parameter, state in optimizer.state.items() if optimizer is not None else ():
        for path, tensor in tensors_in(dict(state)):
            yield f"{names.get(id(parameter), '')}.{path}", tensor


def _import_what_optimizers_import() -> None:
    """Optimizers import torch's compiler at their first use; under a recording its module-level tensors would be recorded."""
    import torch._dynamo
    import torch._inductor  # noqa: F401
