"""A torch module into Relax through Neaptide's own trace: what takes `torch.export` seconds takes the recorder a tenth.

The traced Graph becomes an fx program over its weights, in which nothing is written in place, and TVM's own converters turn each
op into Relax. A module with an op that they do not know is refused here, and imported through `torch.export`.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import tvm
from torch import fx
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from ...compiler.args import decode, torch_dtype
from ...compiler.errors import NeaptideError, SourceError
from ...compiler.graph import WEIGHT_ROLES, Graph, Node
from ...compiler.trace import trace
from .folding import fold_batch_norm
from .plain_graph import make_plain

_VIEWS = ("aten._unsafe_view.default", "aten._reshape_alias.default")


class Untranslated(NeaptideError):
    """The traced program has something that this path does not translate; the message says what."""


@dataclass(frozen=True)
class TracedProgram:
    """`graph`: aten calls over placeholders, every node with its shape in `meta["val"]`. `inputs`: names of the placeholders that
    the caller fills; `values`: weights by the name of theirs.
    """

    graph: fx.Graph
    inputs: tuple[str, ...]
    values: dict[str, torch.Tensor]


def traced_relax(module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> tvm.IRModule:
    """Inference of `module` as a Relax module whose `main` takes its inputs alone, BatchNorm folded.

    Raises `Untranslated` for what TVM's converters or this path do not know, `TraceError` for what cannot be traced, `SourceError` for what
    has no result.
    """
    graph = trace(module, args, kwargs)
    if not graph.outputs:
        raise SourceError(f"{type(module).__name__} returns no tensor that it made; a network that is measured has a result")
    return graph_relax(graph)


def graph_relax(graph: Graph) -> tvm.IRModule:
    """An aten graph as `traced_relax` gives it. Weights whose values the graph lacks are zeros: operators are the same, outputs are not.

    Raises `Untranslated` for what TVM's converters or this path do not know.
    """
    importer = _Importer()
    program = traced_program(graph, importer.convert_map)
    fold_batch_norm(program.graph, program.values)
    _finish(program.graph)
    return importer.relax(program)


def traced_program(graph: Graph, known: Mapping[str, Any]) -> TracedProgram:
    """`graph` as an fx program of ops in `known` (by name and overload) and native BatchNorm, without what nothing reads."""
    if graph.meta.get("bounds"):
        raise Untranslated("a size depends on data")
    _check_written(graph)
    needed, read = _needed(graph)
    fx_graph = fx.Graph()
    nodes: dict[int, fx.Node] = {}
    values: dict[str, torch.Tensor] = {}
    inputs = []
    for t in graph.inputs:
        nodes[t] = _placeholder(fx_graph, graph, t, f"input_{len(inputs)}")
        inputs.append(nodes[t].name)
    for node in graph.nodes:
        if node.id not in needed:
            continue
        for t in node.inputs:
            if t not in nodes:
                nodes[t] = _weight(fx_graph, graph, t, values)
        _call(fx_graph, graph, node, nodes, known, read)
    for t in graph.outputs:
        if t not in nodes:
            nodes[t] = _weight(fx_graph, graph, t, values)
    fx_graph.output(tuple(nodes[t] for t in graph.outputs))
    for name in make_plain(fx_graph, values, known):
        raise Untranslated(f"{name} has no conversion to Relax")
    _placeholders_first(fx_graph)
    return TracedProgram(fx_graph, tuple(inputs), values)


class _Importer(ExportedProgramImporter):
    """TVM's converters, driven from a `TracedProgram`, and those that it lacks."""

    def create_convert_map(self) -> dict[str, Any]:
        """As TVM's, with the reductions to the largest and the smallest."""
        known: dict[str, Any] = dict(cast(Any, ExportedProgramImporter).create_convert_map(self))
        return {**known, "amax.default": self._extreme(relax.op.max), "amin.default": self._extreme(relax.op.min)}

    def _extreme(self, reduce: Any) -> Any:
        def convert(node: fx.Node) -> relax.Var:
            x, *rest = cast(Any, self.retrieve_args(node))
            dims = node.kwargs.get("dim", rest[0] if rest else ())
            keep = node.kwargs.get("keepdim", rest[1] if len(rest) > 1 else False)
            return self.block_builder.emit(reduce(x, list(dims) or None, bool(keep)))

        return convert

    def relax(self, program: TracedProgram) -> tvm.IRModule:
        variables = {}
        for node in program.graph.nodes:
            if node.op == "placeholder":
                like = node.meta["val"]
                variables[node.name] = relax.Var(node.name, relax.TensorType(list(like.shape), self._convert_data_type(like.dtype)))
        self.block_builder = relax.BlockBuilder()
        with self.block_builder.function(name="main", params=list(variables.values())):
            with self.block_builder.dataflow():
                outputs = self._translate_fx_graph(None, program.graph.nodes, variables)
                result = self.block_builder.emit_output(outputs[0] if len(outputs) == 1 else outputs)
            self.block_builder.emit_func_output(result)
        weights = {name: self._convert_pytorch_tensor_to_tvm(value) for name, value in program.values.items() if name in variables}
        return relax.transform.BindParams("main", weights)(self.block_builder.get())


def importer() -> _Importer:
    """TVM's converters, and the ones added to them."""
    return _Importer()


def _check_written(graph: Graph) -> None:
    """An op in place may write what nobody reads under an older name; anything else has no functional form here."""
    tensors = graph.tensors
    for node in graph.nodes:
        for s in node.writes:
            whole = len(node.outputs) == 1 and node.inputs and tensors[node.outputs[0]].storage == tensors[node.inputs[0]].storage == s
            if not whole or tensors[node.outputs[0]].shape != tensors[node.inputs[0]].shape:
                raise Untranslated(f"{node.op} writes in place in a way that has no functional form")
            if graph.storages[s].role != "activation":
                raise Untranslated(f"{node.op} writes {graph.storages[s].role} {graph.storages[s].name!r}")
            numel = {t.numel for t in tensors if t.storage == s}
            before = {t.id for t in tensors if t.storage == s and graph.definer[t.id] < node.id}
            after = [*(t for later in graph.nodes[node.id + 1 :] for t in later.inputs), *graph.outputs]
            if len(numel) > 1 or before.intersection(after):
                raise Untranslated(f"{node.op} writes what is read under another name")


def _needed(graph: Graph) -> tuple[set[int], set[int]]:
    """Nodes and tensors that an output depends on."""
    read, needed = set(graph.outputs), set()
    for node in reversed(graph.nodes):
        if read.intersection(node.outputs):
            needed.add(node.id)
            read.update(node.inputs)
    return needed, read


def _call(fx_graph: fx.Graph, graph: Graph, node: Node, nodes: dict[int, fx.Node], known: Mapping[str, Any], read: Collection[int]) -> None:
    """Append `node` and note what defines each of its outputs that is `read`."""
    target = _functional(node.op)
    arguments = decode(node.attrs["args"], [nodes[t] for t in node.inputs])
    named = decode(node.attrs.get("kwargs", {}), [nodes[t] for t in node.inputs])
    if node.op in _VIEWS:
        target, arguments = torch.ops.aten.view.default, arguments[:2]
    elif target is torch.ops.aten.t.default:
        target, arguments = torch.ops.aten.permute.default, [arguments[0], [1, 0] if graph.tensors[node.inputs[0]].shape[1:] else [0]]
    elif target is torch.ops.aten.native_batch_norm.default and not arguments[5]:
        pass
    elif not isinstance(target, torch._ops.OpOverload):
        raise Untranslated(f"{node.op} has no conversion to Relax")
    made = fx_graph.call_function(target, tuple(arguments), named)
    outputs = [_like(graph, t) for t in node.outputs]
    several = len(target._schema.returns) > 1 or isinstance(target._schema.returns[0].type, torch.ListType)
    made.meta["val"] = outputs if several else outputs[0]
    if not several:
        nodes[node.outputs[0]] = made
        return
    for i, t in enumerate(node.outputs):
        if t not in read:
            continue
        nodes[t] = fx_graph.call_function(operator.getitem, (made, i))
        nodes[t].meta["val"] = outputs[i]


def _functional(op: str) -> Any:
    """The overload that `op` names, in its form that writes nothing; None for what is not aten's."""
    namespace, _, rest = op.partition(".")
    name, _, overload = rest.partition(".")
    packet = getattr(torch.ops.aten, name, None) if namespace == "aten" else None
    if packet is not None and name.endswith("_") and not name.startswith("__"):
        packet = getattr(torch.ops.aten, name[:-1], None)
    return getattr(packet, overload, None)


def _like(graph: Graph, t: int) -> torch.Tensor:
    return torch.empty(graph.tensors[t].shape, dtype=torch_dtype(graph.tensors[t].dtype), device="meta")


def _placeholder(fx_graph: fx.Graph, graph: Graph, t: int, name: str) -> fx.Node:
    node = fx_graph.placeholder(name)
    node.meta["val"] = _like(graph, t)
    return node


def _weight(fx_graph: fx.Graph, graph: Graph, t: int, values: dict[str, torch.Tensor]) -> fx.Node:
    tensor = graph.tensors[t]
    value = graph.values.get(t, torch.zeros(()).to(torch_dtype(tensor.dtype)).expand(tensor.shape))
    if graph.storages[tensor.storage].role not in WEIGHT_ROLES or not isinstance(value, torch.Tensor):
        raise Untranslated(f"tensor {t} of the trace has no value")
    node = _placeholder(fx_graph, graph, t, f"weight_{len(values)}")
    values[node.name] = value
    return node


def _placeholders_first(fx_graph: fx.Graph) -> None:
    first = next(iter(fx_graph.nodes))
    for node in list(fx_graph.nodes):
        if node.op == "placeholder" and node is not first:
            first.append(node)
            first = node


def _finish(fx_graph: fx.Graph) -> None:
    """Drop calls and weights that nothing reads; give BatchNorm that is left the form that TVM converts."""
    for node in reversed(list(fx_graph.nodes)):
        if node.target is torch.ops.aten.native_batch_norm.default:
            node.target, node.args = torch.ops.aten._native_batch_norm_legit_no_training.default, (*node.args[:5], *node.args[6:])
        if not node.users and (node.op == "call_function" or (node.op == "placeholder" and node.name.startswith("weight_"))):
            fx_graph.erase_node(node)
