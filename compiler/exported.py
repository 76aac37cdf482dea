"""Exported programs and fx modules in: their nodes are run on fake tensors under the recorder.

An fx graph says what is computed, not what is allocated: whether `reshape` copies, `contiguous` returns its operand, or `linear`
is one kernel shows only when the node is dispatched. So each fx node is run, on fakes, and the Graph holds the aten ops it
dispatches, with true aliasing, under the fx node's own module path and source line. Roles come from the signature: parameters,
buffers and constants are weights, user inputs are inputs; a program that returns new values of its buffers or inputs ends with
the copies into them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from .allowed_ops import NAMESPACES, refusal
from .errors import TraceError
from .fake import Fakes, borrowed, kernel_strides
from .graph import Graph
from .recorder import TORCH_FOLDER, Recorder
from .structure import tensors_in
from .trace import declare_inputs, declare_weights, user_errors

# Higher-order operators that run one subgraph once, and where its module stands among the arguments.
WRAPPERS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4, "wrap": 0, "invoke_subgraph": 0}
MUTATIONS = frozenset(("BUFFER_MUTATION", "USER_INPUT_MUTATION", "PARAMETER_MUTATION"))


def from_exported_program(program: Any, *, name: str = "exported") -> Graph:
    """The Graph of a `torch.export.ExportedProgram`, or of the `.pt2` file at a path (loaded only if that unpickles no code).

    Dynamic dimensions take the sizes of the example inputs. Graph inputs are the user inputs, in order; outputs the user outputs.
    Raises `FormatError` for a file that is refused, `TraceError` naming the node for a program that cannot be run on fakes.
    """
    if isinstance(program, (str, os.PathLike)):
        from .pt2_files import load_pt2

        program = load_pt2(program)
    if not isinstance(program, torch.export.ExportedProgram):
        raise TraceError(f"an exported program is a torch.export.ExportedProgram or the path of a .pt2 file, not {type(program).__name__}")
    signature = program.graph_signature
    fakes = Fakes(device=_device(program))
    recorder = Recorder(name, fakes=fakes)
    stores = {**program.constants, **program.state_dict}
    by_name: dict[str, torch.Tensor] = {}
    values: list[Any] = []
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(nodes, signature.input_specs, strict=True):
        kind, target = spec.kind.name, spec.target or ""
        if kind == "USER_INPUT":
            values.append(_user_input(recorder, node, spec.arg))
            if isinstance(values[-1], torch.Tensor):
                by_name[spec.arg.name] = values[-1]
        elif kind in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR"):
            real = stores[target]
            values.append(_weight(recorder, real, kind.removesuffix("_TENSOR").lower(), target))
            by_name[target] = values[-1]
        else:
            raise TraceError(f"input {spec.arg.name!r} of {name!r} is a {kind.lower()}, not a tensor; such programs cannot be traced")
    with user_errors(program), borrowed(program.graph_module, fakes.of), torch.no_grad(), kernel_strides(fakes.mode), fakes.mode, recorder:
        results = _Replay(program.graph_module, recorder).run(*values)
        outputs = []
        for result, spec in zip(results, signature.output_specs, strict=True):
            if spec.kind.name in MUTATIONS:
                torch.ops.aten.copy_.default(by_name[spec.target or ""], result)
            else:
                outputs.append(result)
    return _finish(recorder, outputs, "exported")


def from_fx(module: Any, args: Sequence[Any] = (), *, name: str = "fx") -> Graph:
    """The Graph of a `torch.fx.GraphModule`, aten level or higher, in the mode (train or eval) it is in.

    `args`: example inputs; without them the `meta["val"]` (or `meta["tensor_meta"]`) of its placeholders. Raises `TraceError`
    naming the placeholder that has neither, or the user's line where the module cannot be run on fakes.
    """
    if not isinstance(module, fx.GraphModule):
        raise TraceError(f"from_fx takes a torch.fx.GraphModule, not {type(module).__name__}; use neaptide.trace for other modules")
    fakes = Fakes()
    recorder = Recorder(name, fakes=fakes)
    declare_weights(recorder, module)
    nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
    if args:
        values, _ = declare_inputs(recorder, args, {})
    else:
        values = [recorder.input(fakes.of(_example(node)), node.name) for node in nodes]
    with user_errors(module), borrowed(module, fakes.of), torch.no_grad(), kernel_strides(fakes.mode), fakes.mode, recorder:
        result = _Replay(module, recorder).run(*values)
    return _finish(recorder, result, "fx")


class _Replay(fx.Interpreter):
    """Runs an fx graph node by node; what a node dispatches gets its module path and source line."""

    def __init__(self, module: fx.GraphModule, recorder: Recorder, within: fx.Node | None = None):
        super().__init__(module, garbage_collect_values=True)
        self.extra_traceback = False
        self.recorder = recorder
        self.within = within

    def run_node(self, n: fx.Node) -> Any:
        first = self.recorder.node_id
        result = super().run_node(n)
        scope, source = _origin(n)
        if scope or source:
            nodes = self.recorder.builder.nodes
            for i in range(first, len(nodes)):
                nodes[i] = replace(nodes[i], scope=scope or nodes[i].scope, source=source or nodes[i].source)
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self._higher_order(target, args)
        why = refusal(target) if isinstance(target, torch._ops.OpOverload) and target.namespace in NAMESPACES else None
        if why is not None:  # fake tensors do not keep aten.from_file from making a file
            raise TraceError(f"operator '{target}' {why}: a program is analysed without running that; take it out and export anew")
        return super().call_function(target, args, kwargs)

    def _higher_order(self, target: torch._ops.HigherOrderOperator, args: tuple[Any, ...]) -> Any:
        at = WRAPPERS.get(target.name())
        if at is None:
            raise TraceError(
                f"{target.name()!r} chooses what to run from data, so one run does not show its memory: "
                "export the model without control flow, or trace it with example data and allow_real_run=True"
            )
        body = next(i for i, a in enumerate(args) if i >= at and isinstance(a, torch.nn.Module))
        operands = [a for a in args[body + 1 :] if not isinstance(a, str)]
        context = contextlib.nullcontext()
        if target.name() == "wrap_with_autocast":
            context = torch.autocast(args[0], dtype=args[1], enabled=args[2], cache_enabled=args[3])
        with context:
            return _Replay(args[body], self.recorder).run(*operands)


def _finish(recorder: Recorder, result: Any, frontend: str) -> Graph:
    for _, tensor in tensors_in(result):
        recorder.output(tensor)
    return recorder.finish(frontend=frontend, device="cpu", mode="inference", versions={"torch": torch.__version__})


# ---- inputs and weights -----------------------------------------------------------------------------------------------


def _device(program: torch.export.ExportedProgram) -> str:
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.device.type != "meta":
            return str(value.device)
    return "cpu"


def _weight(recorder: Recorder, real: Any, role: str, name: str) -> torch.Tensor:
    assert recorder.fakes is not None
    if isinstance(real, FakeTensor) or real.is_meta:
        return recorder.external(recorder.fakes.of(_blank(real)), role, name)
    return recorder.external(recorder.fakes.of(real), role, name, value=real)


def _user_input(recorder: Recorder, node: fx.Node, arg: Any) -> Any:
    assert recorder.fakes is not None
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return _size(value) if isinstance(value, torch.SymInt) else getattr(arg, "value", value)
    return recorder.input(recorder.fakes.of(_blank(value)), node.name)


def _example(node: fx.Node) -> torch.Tensor:
    """A meta tensor like what the metadata of a placeholder says."""
    value = node.meta.get("val", node.meta.get("example_value"))
    if isinstance(value, torch.Tensor):
        return _blank(value)
    meta = node.meta.get("tensor_meta")
    if meta is None or not hasattr(meta, "dtype"):
        raise TraceError(f'placeholder {node.name!r} carries no meta["val"]: give example inputs, Graph.from_fx(module, args)')
    return torch.empty_strided(meta.shape, meta.stride, dtype=meta.dtype, device="meta")


def _blank(tensor: torch.Tensor) -> torch.Tensor:
    """A meta tensor with the sizes of `tensor`; symbolic ones take their hints."""
    shape, stride = [_size(d) for d in tensor.shape], [_size(d) for d in tensor.stride()]
    return torch.empty_strided(shape, stride, dtype=tensor.dtype, device="meta")


def _size(value: Any) -> int:
    if not isinstance(value, torch.SymInt):
        return int(value)
    hint = value.node.hint
    if hint is None:
        raise TraceError(f"the size {value} depends on data and has no example value: trace the model with neaptide.trace instead")
    return int(hint)


def _origin(node: fx.Node) -> tuple[str, str]:
    """(module path, file:line) of an fx node, from the metadata that tracers leave; empty when there is none."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    path = re.sub(r"^(L\['self'\]|L__self__|self)\.?", "", path)
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    lines = [line for line in lines if not line[0].startswith(TORCH_FOLDER)] or lines
    return path, ":".join(lines[-1]) if lines else ""
