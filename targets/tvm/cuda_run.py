"""A compiled network run on a GPU in one arena, timed in turns with torch eager, and the most bytes that each took.

Everything here also runs with torch's device "cpu" and operators that TVM compiles for it; memory is then not counted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import tvm

from ...compiler.args import torch_dtype
from ...compiler.graph import ITEMSIZE, Graph
from ...compiler.models import load_model
from ...passes.allocate import Plan
from ..nvcc import cuda_compiler
from ..spec import Target
from .cpu import Timing, interleaved


@dataclass(frozen=True)
class GpuRun:
    """`outputs`: of Neaptide's run, as arrays. `timings`: by runtime, "tvm" being Neaptide's. `per_op`: seconds by node, each alone.

    `arena`: bytes of its buffer; `peaks`: by runtime the bytes that torch's allocator handed out at most, weights and inputs aside; empty
    on a CPU.
    """

    outputs: tuple[np.ndarray, ...]
    timings: Mapping[str, Timing]
    per_op: Mapping[int, float]
    arena: int
    peaks: Mapping[str, int]


def gpu_name(target: Target) -> str | None:
    """The GPU that torch and TVM both see, if its architecture is the target's; else None."""
    import torch

    if not torch.cuda.is_available() or not tvm.cuda(0).exist:
        return None
    major, minor = torch.cuda.get_device_capability()
    return torch.cuda.get_device_name() if target.tvm.get("arch", "").rstrip("a") == f"sm_{major}{minor}" else None


def run_beside_torch(
    graph: Graph,
    plan: Plan,
    functions: Mapping[str, Any],
    machine: tvm.target.Target,
    inputs: Sequence[np.ndarray],
    eager: Callable[[], Any] | None,
    *,
    device: str = "cuda",
    rounds: int = 15,
) -> GpuRun:
    """Run `graph` in its plan's order with all its storages in one buffer at the plan's offsets, in turns with `eager`.

    `functions`: scheduled operators by op, for `machine`. `eager`: from `torch_eager`, None where torch cannot run the model. Operators are
    timed alone with TVM's `time_evaluator`, warm; runs as wall time from an idle device to an idle device, with TF32 off.
    """
    with nullcontext() if device == "cpu" else cuda_compiler():
        library = tvm.compile(tvm.IRModule(dict(functions)), target=machine)
    network = _Network(graph, plan, library, inputs, device)
    peaks = {"tvm": bytes_at_most(network.start, device)}
    outputs = network.outputs()
    runners: dict[str, Callable[[], Any]] = {"tvm": network.run}
    with _without_tf32():
        if eager is not None:
            runners["torch"] = _until_idle(eager, device)
            runners["torch"]()  # once before its memory is counted: libraries take workspaces that stay
            peaks["torch"] = bytes_at_most(runners["torch"], device)
        timings = interleaved(runners, rounds=rounds)
    known = {label: peak for label, peak in peaks.items() if peak is not None}
    return GpuRun(outputs, MappingProxyType(timings), MappingProxyType(network.per_op()), network.arena_bytes, MappingProxyType(known))


def torch_eager(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None, inputs: Sequence[np.ndarray], *, device: str = "cuda"
) -> Callable[[], Any] | None:
    """One inference of `model` in torch eager on `device`; None for ONNX, which torch does not run.

    A module runs as a copy in inference mode; the model that was given stays where it is.
    """
    import torch
    from torch.utils._pytree import tree_map

    model = load_model(model)
    if isinstance(model, torch.export.ExportedProgram):
        module: Any = copy.deepcopy(model.module())
    elif isinstance(model, torch.nn.Module):
        module = copy.deepcopy(model).eval()
    else:
        return None
    module = module.to(device)
    given = tuple(args) if args or kwargs else tuple(map(torch.from_numpy, inputs))
    placed, named = tree_map(lambda t: t.to(device) if isinstance(t, torch.Tensor) else t, (given, dict(kwargs or {})))

    def run() -> Any:
        with torch.inference_mode():
            return module(*placed, **named)

    return run


def bytes_at_most(run: Callable[[], Any], device: str) -> int | None:
    """The bytes that torch's allocator hands out at most while `run` runs, beside those it had handed out before; None on a CPU."""
    import torch

    if device == "cpu":
        run()
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


class _Network:
    """Operators over one arena that torch allocates. Weights have places of their own; `start` takes the arena and runs once."""

    def __init__(self, graph: Graph, plan: Plan, library: Any, inputs: Sequence[np.ndarray], device: str):
        import torch

        self._graph, self._plan, self._library, self._device = graph, plan, library, device
        self._inputs = [torch.from_numpy(array) for array in inputs]
        self._own: dict[int, Any] = {}
        for t, value in graph.values.items():
            flat = torch.from_numpy(np.ascontiguousarray(value)).to(device).reshape(-1).view(torch.uint8)
            self._own[graph.tensors[t].storage] = flat
        self._places: list[Any] = []
        self._steps: list[tuple[int, Callable[..., Any], list[Any]]] = []
        self.arena_bytes = 0

    def start(self) -> None:
        """Allocate the arena, lay every tensor out in it, and run once."""
        import torch

        graph, plan = self._graph, self._plan
        arena = torch.zeros(plan.arena, dtype=torch.uint8, device=self._device)
        self.arena_bytes = arena.numel()
        self._places = [self._place(t, arena) for t in range(len(graph.tensors))]
        self._steps = [
            (v, self._library[graph.nodes[v].op], [self._places[t] for t in (*graph.nodes[v].inputs, *graph.nodes[v].outputs)])
            for v in plan.order
            if not graph.is_view(graph.nodes[v])
        ]
        self.run()

    def run(self) -> None:
        """One inference, from an idle device to an idle device; the inputs are copied in again, for the arena may reuse their place."""
        for t, array in zip(self._graph.inputs, self._inputs, strict=True):
            self._places[t].copy_(array)
        for _, call, arguments in self._steps:
            call(*arguments)
        _finish(self._device)

    def outputs(self) -> tuple[np.ndarray, ...]:
        """The outputs of the last run, copied."""
        return tuple(self._places[t].cpu().numpy().copy() for t in self._graph.outputs)

    def per_op(self) -> dict[int, float]:
        """Median seconds of each operator alone, by node."""
        device = tvm.cpu() if self._device == "cpu" else tvm.cuda(0)
        return {
            v: float(self._library.mod.time_evaluator(self._graph.nodes[v].op, device, number=3, repeat=5)(*arguments).median)
            for v, _, arguments in self._steps
        }

    def _place(self, t: int, arena: Any) -> Any:
        """A view of the arena where the plan places the tensor's storage, else of a place of its own."""
        import torch

        tensor = self._graph.tensors[t]
        nbytes = tensor.numel * ITEMSIZE[tensor.dtype]
        offset = self._plan.offsets.get(tensor.storage)
        if offset is not None:
            flat = arena[offset + tensor.offset : offset + tensor.offset + nbytes]
        else:
            if tensor.storage not in self._own:
                whole = self._graph.storages[tensor.storage].nbytes
                self._own[tensor.storage] = torch.zeros(whole, dtype=torch.uint8, device=self._device)
            flat = self._own[tensor.storage][tensor.offset : tensor.offset + nbytes]
        return flat.view(torch_dtype(tensor.dtype)).view(tensor.shape)


def _until_idle(run: Callable[[], Any], device: str) -> Callable[[], None]:
    def whole() -> None:
        run()
        _finish(device)

    return whole


def _finish(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize()


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Single precision as TVM's kernels compute it."""
    import torch

    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = False
        yield
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed
