"""A model made ready for firmware, for whatever core: fused operators in C, their order and places, inputs, expected outputs."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from ...compiler.errors import SourceError
from ...compiler.graph import Graph
from ...compiler.models import load_model, model_name
from ...passes.allocate import Plan
from ..onnx_session import onnx_session
from ..spec import Target
from .planning import Planned, planned

if TYPE_CHECKING:
    from ..tvm.lower import Kernel


HALF = re.compile(r"\b(half|bfloat16|nv_bfloat16)\b")  # types of C that its compilers for microcontrollers do not know


@dataclass(frozen=True)
class Network:
    """`found`: the graph, whose nodes are calls of `kernels`, its order and offsets; `signatures` and `functions` (what `kernels` were
    lowered from) by operator. `versions`: what made the kernels. `inputs`: arrays in the graph's order; `expected`: the framework's
    own outputs for them. `inplace`: whether a result may lie over an operand.
    """

    name: str
    found: Planned
    kernels: Mapping[str, Kernel]
    signatures: Mapping[str, str]
    functions: Mapping[str, Any]
    versions: Mapping[str, str]
    inputs: tuple[np.ndarray, ...]
    expected: tuple[np.ndarray, ...]
    inplace: bool = True

    @property
    def graph(self) -> Graph:
        """The graph as it runs."""
        return self.found.graph

    @property
    def plan(self) -> Plan:
        """Its order and offsets."""
        return self.found.plan


def prepare(
    model: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *, name: str | None = None, inplace: bool = True
) -> Network:
    """Import, fuse, schedule and place `model`; under a second where its operators are known, else seconds.

    Arguments as in `targets.tvm.importer.to_relax`; `inplace` as in `planned`. Files and programs that come without `args` run on
    random inputs, the same ones every time. The order is `schedule`'s and the offsets are `allocate`'s, inputs and kernel
    workspaces included.
    """
    with _collector_paused():
        return _prepared(load_model(model), args, kwargs, name or model_name(model), inplace)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Python's cyclic collector off: importing TVM and a model makes hundreds of thousands of objects that stay, and going through
    them again and again takes a quarter of the time.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _prepared(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None, title: str, inplace: bool) -> Network:
    from ..tvm.fused_graph import fused_program
    from ..tvm.importer import to_relax
    from ..tvm.lower import lower, signature
    from ..tvm.schedules import VERSION, scheduled

    program = fused_program(to_relax(model, args, kwargs), name=title)
    kernels = lower(program.kernels, scheduled)
    for symbol, kernel in kernels.items():
        if isinstance(kernel.code, str) and (kind := HALF.search(kernel.code)):
            raise SourceError(
                f"operator {symbol.removeprefix('fused_')} of {title!r} computes in {kind[0]} precision, which C on microcontrollers has "
                "no type for: convert the model to float32"
            )
    found = planned(program.graph, kernels, inplace=inplace)
    signatures = {symbol: signature(symbol, func) for symbol, func in program.kernels.items()}
    inputs = input_arrays(found.graph, args, kwargs)
    versions = {"apache-tvm": version("apache-tvm"), "schedules": str(VERSION)}
    expected = tuple(reference_outputs(model, args, kwargs, inputs))
    return Network(title, found, kernels, signatures, program.kernels, versions, inputs, expected, inplace)


def with_llvm(network: Network, target: Target) -> Network:
    """`network` with its operators as LLVM's objects for the core of `target`, placed anew."""
    from ..tvm.lower import llvm_version, lower
    from ..tvm.schedules import scheduled

    kernels = lower(network.functions, scheduled, target=target.tvm)
    return replace(
        network,
        found=planned(network.found.separate, kernels, inplace=network.inplace),
        kernels=kernels,
        versions={**network.versions, "codegen": llvm_version()},
    )


def reference_outputs(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Outputs of torch's own inference of a module or exported program; of onnxruntime for ONNX."""
    import torch
    from torch.utils._pytree import tree_leaves

    model = load_model(model)
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
        if not args and not kwargs:
            args = tuple(map(torch.from_numpy, inputs))
    if not isinstance(model, torch.nn.Module):
        return _onnx_reference(model, inputs)
    modes = [(part, part.training) for part in model.modules()]
    for part, _ in modes:
        part.training = False
    try:
        with torch.no_grad():
            result = model(*args, **dict(kwargs or {}))
    finally:
        for part, training in modes:
            part.training = training
    return [t.detach().numpy() for t in tree_leaves(result)]


def _onnx_reference(model: Any, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    session = onnx_session(model.SerializeToString())
    feeds = {spec.name: array for spec, array in zip(session.get_inputs(), inputs, strict=True)}
    return [np.asarray(output) for output in session.run(None, feeds)]


def input_arrays(graph: Graph, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> tuple[np.ndarray, ...]:
    """The run's inputs in the order and types of the graph's; standard normal, or zeros for integers, where none are given."""
    import torch
    from torch.utils._pytree import tree_leaves

    tensors = [graph.tensors[t] for t in graph.inputs]
    leaves = [np.asarray(t) for t in tree_leaves((tuple(args), dict(kwargs or {}))) if isinstance(t, (torch.Tensor, np.ndarray))]
    if not leaves:
        draw = np.random.default_rng(0)
        leaves = [draw.standard_normal(t.shape) if t.dtype.startswith("float") else np.zeros(t.shape) for t in tensors]
    if len(leaves) != len(tensors):
        raise SourceError(f"{graph.name!r} takes {len(tensors)} tensors, {len(leaves)} were given")
    return tuple(np.ascontiguousarray(a, t.dtype) for a, t in zip(leaves, tensors, strict=True))
