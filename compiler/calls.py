"""What a node calls: the function that computes it, its arguments, and which of its results are the node's outputs.

A node runs again if it is an aten op (of any registered torch namespace) or an ONNX operator. Nodes of the front end's own
(`neaptide.*`: memory that appears without an operator) compute nothing. Anything else, such as a node of a plain graph, cannot run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch._subclasses.fake_tensor import FakeTensor

from .args import call_args, runnable
from .errors import TraceError
from .graph import Graph, Node


@dataclass(frozen=True, slots=True)
class Call:
    """`function(*args, **kwargs)`; `single`: it returns the node's one output itself, not a structure that holds its outputs."""

    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    single: bool


def call_of(graph: Graph, node: Node, inputs: Sequence[Any]) -> Call | None:
    """The call of `node` over `inputs` (runtime values or fx nodes, one per `node.inputs`); None if it computes nothing.

    Raises `TraceError` for an operator that cannot be run: one that this process does not know, or a plain graph's own name.
    """
    if node.op.startswith("neaptide."):
        return None
    if node.op.startswith("onnx."):
        from .onnx_ops import onnx_call

        return onnx_call(graph, node, inputs)
    function = runnable(node.op)
    args, kwargs = call_args(node.attrs, inputs)
    returns = function._schema.returns
    return Call(function, tuple(args), kwargs, len(returns) == 1 and str(returns[0].type) == "Tensor")


def outputs_of(call: Call, result: Any, count: int) -> list[torch.Tensor | None]:
    """The `count` results of `call` that are the node's outputs, in order; None where a kernel leaves one undefined.

    Raises `TraceError` when there are not so many.
    """
    if call.single:
        return [result]
    leaves = result if isinstance(result, tuple) and len(result) == count else tensors_of(result)
    if len(leaves) != count:
        raise TraceError(f"{call.function} gave {len(leaves)} tensors; the graph says {count}")
    return list(leaves)


def tensors_of(result: Any) -> list[torch.Tensor]:
    """The tensors in a nested result, in order; what an op leaves undefined (None) is no output."""
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def tensor_at(result: Any, index: int) -> torch.Tensor:
    """The tensor at `index` among those of a nested result."""
    return tensors_of(result)[index]


def require_value(graph: Graph, tensor: int, purpose: str) -> torch.Tensor:
    """The runtime value of an external tensor. Raises `TraceError` naming it when the graph has none."""
    value = graph.values.get(tensor)
    if isinstance(value, torch.Tensor) and not value.is_meta and not isinstance(value, FakeTensor):
        return value
    storage = graph.storages[graph.tensors[tensor].storage]
    name = graph.tensors[tensor].name or storage.name or f"tensor {tensor}"
    raise TraceError(
        f"{purpose} needs the values of {storage.role} {name!r}, and graph {graph.name!r} has none: "
        "trace, in inference mode, a model with real weights (not one built on the meta device); JSON and training graphs hold none"
    )
