"""A Graph back into a runnable `torch.fx.GraphModule`.

The module calls exactly the graph's operators, in the given order. Placeholders are the graph inputs; the result is the tuple of
graph outputs. Parameters and buffers keep their names and share the memory of the graph's values, except those that the graph
writes, of which the module owns copies. An in-place op stays one: later readers of its storage see what it wrote, because the
graph's dependencies (and so every topological order) keep reads and writes of a storage apart.
"""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from .calls import Call, call_of, require_value, tensor_at
from .errors import TraceError
from .graph import WEIGHT_ROLES, Graph, Node


def to_fx(graph: Graph, order: Sequence[int] | None = None) -> fx.GraphModule:
    """A `GraphModule` that computes `graph` with its nodes in `order` (traced order if None).

    `module(*inputs)` takes a tensor per graph input and returns the tuple of graph outputs; scopes and source lines travel as
    `nn_module_stack` and `stack_trace` metadata. Random ops draw from torch's global generator. Raises `OrderError` for an order
    that is none, `TraceError` where a weight has no value or an op cannot run.
    """
    return _Writer(graph, tuple(range(len(graph.nodes))) if order is None else graph.check_order(order)).write()


class _Writer:
    def __init__(self, graph: Graph, order: Sequence[int]):
        self.graph = graph
        self.order = order
        self.out = fx.Graph()
        self.root = nn.Module()
        self.env: dict[int, Any] = {}
        self.written = {s for node in graph.nodes for s in node.writes}
        self.copies: dict[int, torch.UntypedStorage] = {}

    def write(self) -> fx.GraphModule:
        graph = self.graph
        for i, t in enumerate(graph.inputs):
            name = graph.tensors[t].name or graph.storages[graph.tensors[t].storage].name or f"input_{i}"
            self.env[t] = self.out.placeholder(_identifier(name) or f"input_{i}")
        for v in self.order:
            self.node(graph.nodes[v])
        self.out.output(tuple(self.value(t) for t in graph.outputs))
        self.out.lint()
        module = fx.GraphModule(self.root, self.out, class_name=re.sub(r"\W+", "_", graph.name) or "Graph")
        return module.eval()

    def node(self, node: Node) -> None:
        call = call_of(self.graph, node, [self.value(t) for t in node.inputs])
        if call is None:
            return
        made = self.call(node, call)
        made.meta["node"] = node.id
        if node.scope:
            made.meta["nn_module_stack"] = {node.scope: (node.scope, "")}
        if node.source:
            path, _, line = node.source.rpartition(":")
            made.meta["stack_trace"] = f'  File "{path}", line {line}, in forward\n'
        if call.single:
            self.env[node.outputs[0]] = made
            return
        flat = self.is_flat(call, len(node.outputs))
        for i, t in enumerate(node.outputs):
            self.env[t] = self.out.call_function(operator.getitem if flat else tensor_at, (made, i))

    def call(self, node: Node, call: Call) -> fx.Node:
        if isinstance(call.function, nn.Module):
            name = f"op_{node.id}"
            self.root.add_module(name, call.function)
            return self.out.call_module(name, call.args, dict(call.kwargs))
        args, kwargs = pytree.tree_map_only(torch.Tensor, lambda value: self.constant(node, value), (call.args, dict(call.kwargs)))
        return self.out.call_function(call.function, args, kwargs)

    @staticmethod
    def is_flat(call: Call, outputs: int) -> bool:
        """Whether result i of the call is output i of the node."""
        schema = getattr(call.function, "_schema", None)
        if schema is None:
            return False
        types = [str(r.type) for r in schema.returns]
        return types == ["List[Tensor]"] or types == ["Tensor"] * outputs

    # ---- values -------------------------------------------------------------------------------------------------------

    def value(self, tensor: int) -> Any:
        """The fx node of a tensor; external tensors become attributes when first read."""
        if tensor not in self.env:
            self.env[tensor] = self.attribute(tensor)
        return self.env[tensor]

    def attribute(self, tensor: int) -> fx.Node:
        described = self.graph.tensors[tensor]
        storage = self.graph.storages[described.storage]
        value = require_value(self.graph, tensor, "A runnable module")
        if storage.id in self.written:
            value = self.copied(storage.id, value)
        parameter = storage.role == "parameter" and storage.id not in self.written
        return self.register(described.name or storage.name or f"{storage.role}_{tensor}", value, parameter=parameter)

    def copied(self, storage: int, value: torch.Tensor) -> torch.Tensor:
        """`value` on the module's own copy of its storage, one copy for all tensors there."""
        if storage not in self.copies:
            self.copies[storage] = value.untyped_storage().clone()
        return torch.empty(0, dtype=value.dtype, device=value.device).set_(
            self.copies[storage], value.storage_offset(), value.shape, value.stride()
        )

    def constant(self, node: Node, value: torch.Tensor) -> fx.Node:
        return self.register(f"constant_of_{node.id}", value)

    def register(self, name: str, value: torch.Tensor, *, parameter: bool = False) -> fx.Node:
        """Hold `value` in the module under (nearly) `name`; returns the fx node that reads it."""
        parts = [re.sub(r"\W", "_", part) or "_" for part in name.split(".")]
        owner = self.root
        for part in parts[:-1]:
            child = getattr(owner, part, None)
            if child is None:
                child = nn.Module()
                owner.add_module(part, child)
            if not isinstance(child, nn.Module):
                return self.register("_".join(parts), value, parameter=parameter)
            owner = child
        last = parts[-1]
        while hasattr(owner, last):
            last += "_"
        if parameter:
            owner.register_parameter(last, nn.Parameter(value.detach(), requires_grad=False))
        else:
            owner.register_buffer(last, value.detach())
        return self.out.get_attr(".".join([*parts[:-1], last]))


def missing_values(graph: Graph) -> list[str]:
    """Names of the weights that some node reads and that have no value; a graph with none of them can run."""
    external = {t for node in graph.nodes for t in node.inputs if graph.definer[t] == -1} - set(graph.inputs)
    weights = sorted(t for t in external if graph.storages[graph.tensors[t].storage].role in WEIGHT_ROLES)
    out = []
    for t in weights:
        try:
            require_value(graph, t, "Running")
        except TraceError:
            out.append(graph.tensors[t].name or graph.storages[graph.tensors[t].storage].name or f"tensor {t}")
    return out


def _identifier(name: str) -> str:
    """`name` as one of Python's; "" if nothing of it is left."""
    plain = re.sub(r"[^0-9A-Za-z_]+", "_", name).strip("_")
    return f"_{plain}" if plain[:1].isdigit() or keyword.iskeyword(plain) else plain
