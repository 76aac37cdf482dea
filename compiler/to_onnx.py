"""A Graph back into an ONNX model whose nodes stand in a given order.

A graph that came from ONNX is rebuilt node for node: the model's nodes are the graph's, in the order.

A graph of aten ops goes through torch's ONNX exporter, whose decompositions turn one aten op into none (views that vanish), one, or
several ONNX nodes. Then the order means this: every ONNX node that stems from an aten node names it in its metadata, under
`neaptide.node`; the nodes of one aten node stand together, and these runs stand in the order. `onnx_order` reads it back.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .args import torch_dtype
from .errors import FormatError, MissingExtraError, TraceError
from .graph import Graph, Node
from .onnx_attrs import decode, operands, results, split_op
from .onnx_files import ELEM_TYPES, PROTOBUF_LIMIT, Weights, require_onnx

if TYPE_CHECKING:
    import onnx

NODE_KEY = "neaptide.node"


def to_onnx(graph: Graph, order: Sequence[int] | None = None) -> onnx.ModelProto:
    """An `onnx.ModelProto`, accepted by onnx's checker, whose nodes stand in `order` (traced order if None).

    Weights are in-line. ONNX models keep no state: what an aten graph writes into its own buffers is lost after each run. Raises
    `OrderError` for an order that is none, `TraceError` for a weight without value or an op that has no ONNX form, `FormatError` above
    protobuf's 2 GiB, `MissingExtraError` without onnx (or onnxscript, for aten graphs).
    """
    require_onnx("Writing ONNX")
    order = tuple(range(len(graph.nodes))) if order is None else graph.check_order(order)
    if sum(s.nbytes for s in graph.storages if s.role in ("parameter", "buffer", "constant")) > PROTOBUF_LIMIT:
        raise FormatError(f"the weights of graph {graph.name!r} are over protobuf's 2 GiB; an ONNX model cannot hold them in-line")
    model = _Rebuilt(graph).model(order) if graph.meta.get("frontend") == "onnx" else _exported(graph, order)
    import onnx

    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise FormatError(f"graph {graph.name!r} makes no valid ONNX model: {' '.join(str(error).split())}") from error
    return model


def onnx_order(model: onnx.ModelProto) -> list[int]:
    """The graph nodes that the nodes of `model` stem from, each once, as their runs stand; nodes that vanished are absent."""
    out: list[int] = []
    for node in model.graph.node:
        for prop in node.metadata_props:
            if prop.key == NODE_KEY and (not out or out[-1] != int(prop.value)):
                out.append(int(prop.value))
    return out


# ---- graphs that came from ONNX ---------------------------------------------------------------------------------------


class _Rebuilt:
    """Writes an ONNX-born graph: a name per tensor, initializers from its values, nodes from its attributes."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.names: dict[int, str] = {}
        taken: set[str] = set()
        wanted = dict(zip(graph.inputs, graph.meta.get("input_names", ()), strict=False))
        for t, name in zip(graph.outputs, graph.meta.get("output_names", ()), strict=False):
            if graph.definer[t] != -1:
                wanted.setdefault(t, name)
        for t in (*wanted, *range(len(graph.tensors))):
            if t not in self.names:
                name = wanted.get(t) or graph.tensors[t].name or f"tensor_{t}"
                while name in taken:
                    name += f"__{t}"
                taken.add(name)
                self.names[t] = name

    def model(self, order: Sequence[int]) -> onnx.ModelProto:
        from onnx import helper

        graph = self.graph
        nodes = [self.node(graph.nodes[v]) for v in order]
        outputs = []
        for t, name in zip(graph.outputs, graph.meta.get("output_names", ()), strict=True):
            if self.names[t] != name:
                nodes.append(helper.make_node("Identity", [self.names[t]], [name]))
            outputs.append(self.info(t, name))
        used = {t for node in graph.nodes for t in node.inputs} | set(graph.outputs)
        weights = [self.weight(t) for t in sorted(used) if graph.definer[t] == -1 and t not in graph.inputs]
        unsaid = {*graph.meta.get("packed", ()), *graph.outputs}
        made = [self.info(t, self.names[t]) for node in graph.nodes for t in node.outputs if t not in unsaid]
        inputs = [self.info(t, self.names[t]) for t in graph.inputs]
        proto = helper.make_graph(nodes, graph.name or "graph", inputs, outputs, weights, value_info=made)
        opsets = [helper.make_opsetid(domain, version) for domain, version in graph.meta["opsets"].items()]
        return helper.make_model(proto, opset_imports=opsets, ir_version=int(graph.meta["ir_version"]), producer_name="neaptide")

    def info(self, tensor: int, name: str) -> onnx.ValueInfoProto:
        from onnx import helper

        described = self.graph.tensors[tensor]
        return helper.make_tensor_value_info(name, ELEM_TYPES[described.dtype], described.shape)

    def weight(self, tensor: int) -> onnx.TensorProto:
        from onnx import numpy_helper

        if isinstance(self.graph.values, Weights):
            return self.graph.values.proto(tensor, self.names[tensor])
        from .calls import require_value
        from .onnx_ops import to_numpy

        return numpy_helper.from_array(to_numpy(require_value(self.graph, tensor, "An ONNX model")), self.names[tensor])

    def node(self, node: Node) -> onnx.NodeProto:
        import onnx

        domain, op_type = split_op(node.op)
        inputs = [self.names[t] if t is not None else "" for t in operands(node)]
        outputs = [self.names[t] if t is not None else "" for t in results(node)]
        proto = onnx.NodeProto(op_type=op_type, domain=domain, name=str(node.attrs.get("$name", "")), input=inputs, output=outputs)
        proto.attribute.extend(decode(node.attrs))
        captured = list(node.attrs.get("$captures", ()))
        if captured:
            renamed = {name: self.names[t] for name, t in zip(captured, node.inputs[-len(captured) :], strict=True)}
            for attribute in proto.attribute:
                if attribute.type == attribute.GRAPH:
                    _rename(attribute.g, renamed)
        proto.metadata_props.add(key=NODE_KEY, value=str(node.id))
        return proto


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Replace the outer values that a subgraph reads; its own names hide outer ones."""
    own = {v.name for v in graph.input} | {t.name for t in graph.initializer} | {o for n in graph.node for o in n.output}
    names = {old: new for old, new in names.items() if old not in own and old != new}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for attribute in node.attribute:
            if attribute.type == attribute.GRAPH:
                _rename(attribute.g, names)
    for value in graph.output:
        value.name = names.get(value.name, value.name)


# ---- graphs of aten ops -----------------------------------------------------------------------------------------------


def _exported(graph: Graph, order: Sequence[int]) -> onnx.ModelProto:
    """Torch's exporter over a module that runs one submodule a node, in the order; their names travel into the metadata."""
    import importlib.util

    import torch

    if importlib.util.find_spec("onnxscript") is None:
        raise MissingExtraError("onnxscript", "onnx", "Writing a graph of aten ops as ONNX")
    stepwise = _stepwise(graph, order)
    inputs = tuple(torch.zeros(graph.tensors[t].shape, dtype=torch_dtype(graph.tensors[t].dtype), device="cpu") for t in graph.inputs)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(stepwise, inputs)
            made = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    except Exception as error:  # the exporter wraps failures of every kind
        reason = " ".join(str(error.__cause__ or error).split())
        raise TraceError(f"graph {graph.name!r} has no ONNX form that torch's exporter knows: {reason[:500]}") from error
    assert made is not None
    return _tidied(made.model_proto, graph)


def _stepwise(graph: Graph, order: Sequence[int]) -> Any:
    """A module that computes `graph` with one submodule `nID` per node, called in `order`."""
    import torch
    from torch import nn

    from .calls import call_of, outputs_of, require_value

    class Step(nn.Module):
        def __init__(self, node: Node):
            super().__init__()
            self.node = node

        def forward(self, *operands: Any) -> Any:
            call = call_of(graph, self.node, operands)
            return [] if call is None else outputs_of(call, call.function(*call.args, **call.kwargs), len(self.node.outputs))

    class Stepwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for v in order:
                self.add_module(f"n{v}", Step(graph.nodes[v]))
            self.attribute: dict[int, str] = {}
            external = {t for node in graph.nodes for t in node.inputs} | set(graph.outputs)
            for t in sorted(t for t in external if graph.definer[t] == -1 and t not in graph.inputs):
                self.attribute[t] = f"weight_{t}"
                self.register_buffer(f"weight_{t}", require_value(graph, t, "An ONNX model").detach().clone())

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            values: dict[int, Any] = dict(zip(graph.inputs, inputs, strict=True))
            values.update((t, getattr(self, name)) for t, name in self.attribute.items())
            for v in order:
                node = graph.nodes[v]
                made = getattr(self, f"n{v}")(*(values[t] for t in node.inputs))
                values.update(zip(node.outputs, made, strict=False))
            return tuple(values[t] for t in graph.outputs)

    return Stepwise().eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints and logs what is of no concern here (optional packages that are absent)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _tidied(model: onnx.ModelProto, graph: Graph) -> onnx.ModelProto:
    """Name inputs, outputs and weights as the graph does, and each node's aten node in its metadata."""
    for node in model.graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "")
        found = [part.strip(" '\"[]") for part in scopes.split(",")]
        owner = next((part[1:] for part in found if part[:1] == "n" and part[1:].isdigit()), None)
        kept = [p for p in node.metadata_props if p.key == "pkg.torch.onnx.fx_node"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
        if owner is not None:
            node.metadata_props.add(key=NODE_KEY, value=owner)
            scope = graph.nodes[int(owner)].scope
            if scope:
                node.metadata_props.add(key="neaptide.scope", value=scope)
    _rename_values(model.graph, graph)
    return model


def _rename_values(proto: onnx.GraphProto, graph: Graph) -> None:
    names: dict[str, str] = {}
    taken = {name for node in proto.node for name in (*node.input, *node.output)} | {value.name for value in proto.output}
    pairs = [(value.name, t) for value, t in zip(proto.input, graph.inputs, strict=True)]
    pairs += [(tensor.name, int(tensor.name.removeprefix("weight_"))) for tensor in proto.initializer if tensor.name.startswith("weight_")]
    for old, t in pairs:
        wanted = graph.tensors[t].name or graph.storages[graph.tensors[t].storage].name
        if wanted and wanted not in taken:
            names[old] = wanted
            taken.add(wanted)
    for value in (*proto.input, *proto.output, *proto.initializer, *proto.value_info):
        value.name = names.get(value.name, value.name)
    for node in proto.node:
        node.input[:] = [names.get(name, name) for name in node.input]
