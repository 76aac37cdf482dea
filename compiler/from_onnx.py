"""ONNX in: a Graph whose nodes are the model's nodes, one for one.

Initializers and `Constant` nodes become parameter and constant storages whose values stay unread until asked for. Operators
that only rename bytes (`Reshape`, `Flatten`, `Squeeze`, `Unsqueeze`, `Identity`, `Dropout` in inference) become views: their
result shares its operand's storage. Functions local to the model are inlined. An `If` whose condition is known is replaced by
the branch it takes; other control flow stays one node that reads what its subgraphs capture, with the memory that its
subgraphs need beyond its own operands and results as `workspace` (an upper bound).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import FormatError, GraphError
from .graph import Graph, GraphBuilder
from .onnx_attrs import encode, op_name, shape_keys
from .onnx_control import captured, control_flow
from .onnx_files import PACKED, OnnxFile, Weights, check_tensor, packed_size, read_model
from .onnx_nodes import check_attributes, check_operands
from .onnx_sequences import Sequences
from .onnx_shapes import ShapeInference

if TYPE_CHECKING:
    import onnx

VIEWS = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"))
CONTROL_FLOW = frozenset(("If", "Loop", "Scan"))


def from_onnx(model: Any, *, name: str | None = None, shapes: Mapping[str, Sequence[int] | int] | None = None) -> Graph:
    """The Graph of an ONNX model given as a path, the bytes of a file, or an `onnx.ModelProto`.

    `shapes`: concrete shapes of inputs with dynamic dimensions, `{"x": (1, 3, 224, 224)}`, or sizes of named dimensions,
    `{"batch": 1}`; also upper bounds for results whose shape depends on data. Nothing outside the model's folder is read.
    Raises `FormatError` for anything that is not a complete, well-formed, acyclic model of tensors.
    """
    file = read_model(model)
    graph = _inlined(file).graph
    importer = Importer(file, GraphBuilder(name or graph.name or "onnx"), dict(shapes or {}))
    return importer.model(graph)


def _inlined(file: OnnxFile) -> onnx.ModelProto:
    """The model with its local functions inlined; weights take no part in that and are left out of the copy."""
    import onnx
    from onnx import helper, inliner

    model = file.model
    if not model.functions:
        return model
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    named = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name not in named:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    try:
        inlined = inliner.inline_local_functions(light)
    except Exception as error:  # the C++ inliner has no exception type of its own
        raise FormatError(f"{file.label}: its local functions cannot be inlined: {' '.join(str(error).split())}") from error
    if inlined.functions:
        raise FormatError(
            f"{file.label}: local function {inlined.functions[0].name!r} cannot be inlined (recursive, or of another operator set)"
        )
    del inlined.graph.input[len(model.graph.input) :]
    inlined.graph.initializer.extend(model.graph.initializer)
    inlined.graph.sparse_initializer.extend(model.graph.sparse_initializer)
    return inlined


@dataclass
class Scope:
    """What a list of nodes can see: tensor id by value name, the types of those values, and the sequences of them."""

    tensors: dict[str, int]
    shapes: ShapeInference
    sequences: Sequences

    def inside(self, graph: onnx.GraphProto) -> Scope:
        """The scope of a subgraph that takes the place of its node: it sees all that this one does."""
        shapes = self.shapes.child(declared(graph))
        return Scope(dict(self.tensors), shapes, Sequences(shapes, self.sequences.members))

    def below(self, graph: onnx.GraphProto) -> Scope:
        """The scope of a subgraph that is a graph of its own: it knows the outer types and has no tensors yet."""
        shapes = self.shapes.child(declared(graph))
        return Scope({}, shapes, Sequences(shapes))


class Importer:
    """Fills a `GraphBuilder` from a graph proto, node by node."""

    def __init__(self, file: OnnxFile, builder: GraphBuilder, given: dict[str, Any]):
        self.file = file
        self.builder = builder
        self.given = given
        self.protos: dict[int, onnx.TensorProto] = {}
        self.bounded: list[str] = []
        self.packed: list[int] = []

    def error(self, text: str) -> FormatError:
        return FormatError(f"{self.file.label}: {text}")

    def sub(self, name: str) -> Importer:
        """An importer of a subgraph into a graph of its own."""
        return Importer(self.file, GraphBuilder(name), self.given)

    # ---- the model ----------------------------------------------------------------------------------------------------

    def model(self, graph: onnx.GraphProto) -> Graph:
        import onnx

        opsets = {o.domain: o.version for o in self.file.model.opset_import}
        shapes = ShapeInference(self.file, opsets, declared(graph), self.given)
        scope = Scope({}, shapes, Sequences(shapes))
        for name, value in self.given.items():
            if not isinstance(value, int) and not (isinstance(value, Sequence) and all(isinstance(d, int) and d >= 0 for d in value)):
                raise FormatError(f"shapes[{name!r}] is {value!r}; a shape is a sequence of sizes, a named dimension one size")
        weights = {t.name for t in graph.initializer}
        for value in graph.input:
            if value.name not in weights:
                self.graph_input(value, scope)
        self.initializers(graph, scope)
        self.nodes(graph, scope)
        for value in graph.output:
            self.builder.outputs.append(self.resolve(value.name, scope, "graph output"))
        self.builder.meta.update(
            frontend="onnx",
            opsets=opsets,
            ir_version=int(self.file.model.ir_version),
            producer=f"{self.file.model.producer_name} {self.file.model.producer_version}".strip(),
            versions={"onnx": onnx.__version__},
            input_names=[v.name for v in graph.input if v.name not in weights],
            output_names=[v.name for v in graph.output],
        )
        if self.bounded:
            self.builder.meta["workspace_bounds"] = list(self.bounded)
        if self.packed:
            self.builder.meta["packed"] = list(self.packed)
        try:
            built = self.builder.build()
        except GraphError as error:  # sizes that are possible one by one and not together
            raise self.error(str(error)) from None
        return Graph(
            built.name, built.nodes, built.tensors, built.storages, built.inputs, built.outputs, built.meta,
            values=Weights(self.file, self.protos),
        )  # fmt: skip

    def graph_input(self, value: onnx.ValueInfoProto, scope: Scope) -> None:
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            raise self.error(f"input {value.name!r} is a {str(kind).removesuffix('_type')}; graphs hold tensors only")
        tensor = value.type.tensor_type
        given = self.given.get(value.name)
        if given is not None:
            shape: list[int] = [given] if isinstance(given, int) else list(given)
            declared = [d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in tensor.shape.dim]
            if tensor.HasField("shape") and (
                len(shape) != len(declared) or any(d not in (None, s) for d, s in zip(declared, shape, strict=True))
            ):
                raise self.error(
                    f"input {value.name!r} has shape {_spell(tensor)}; shapes[{value.name!r}] = {tuple(shape)} does not fit it"
                )
        elif not tensor.HasField("shape"):
            raise self.error(f"input {value.name!r} states no shape: give one with from_onnx(..., shapes={{{value.name!r}: (...)}})")
        else:
            shape = []
            for d in tensor.shape.dim:
                fixed = d.HasField("dim_value") and d.dim_value >= 0  # below 0 some exporters write what they do not know
                size = d.dim_value if fixed else self.given.get(d.dim_param) if d.dim_param else None
                if not isinstance(size, int) or size < 0:
                    raise self.error(
                        f"input {value.name!r} has the dynamic shape {_spell(tensor)}: give sizes with from_onnx(..., "
                        f"shapes={{{value.name!r}: (...)}})" + (f", or shapes={{{d.dim_param!r}: 1}}" if d.dim_param else "")
                    )
                shape.append(size)
        scope.shapes.define(value.name, tensor.elem_type, shape)
        self.builder.inputs.append(self.define(value.name, scope, role="input"))

    def initializers(self, graph: onnx.GraphProto, scope: Scope) -> None:
        if graph.sparse_initializer:
            raise self.error(f"initializer {graph.sparse_initializer[0].values.name!r} is sparse; save the model with dense weights")
        for tensor in graph.initializer:
            self.constant(tensor.name, tensor, scope, "parameter")

    def constant(self, name: str, tensor: onnx.TensorProto, scope: Scope, role: str) -> None:
        check_tensor(tensor, self.file)
        scope.shapes.define_constant(name, tensor)
        self.protos[self.define(name, scope, role=role)] = tensor

    def define(self, name: str, scope: Scope, *, role: str = "activation", alias: int | None = None) -> int:
        """A tensor for value `name` of the type that inference gave it: on the storage of tensor `alias`, or on one of its own."""
        if not name:
            raise self.error("a value has no name")
        if name in scope.tensors:
            raise self.error(f"value {name!r} is defined twice")
        elem_type, dims = scope.shapes.of(name)
        dtype, shape, nbytes = packed_size(elem_type, dims)
        if elem_type in PACKED:
            self.packed.append(len(self.builder.tensors))
        if alias is None:
            storage, offset = self.builder.storage(nbytes, role, name), 0
        else:
            storage, offset = self.builder.tensors[alias].storage, self.builder.tensors[alias].offset
        scope.tensors[name] = self.builder.tensor(shape, dtype, storage, offset=offset, name=name)
        return scope.tensors[name]

    def resolve(self, name: str, scope: Scope, user: str) -> int:
        if name not in scope.tensors:
            fault = "is a sequence; graphs hold tensors only" if name in scope.sequences.members else "is defined nowhere"
            raise self.error(f"{user} {name!r} {fault}")
        return scope.tensors[name]

    # ---- nodes --------------------------------------------------------------------------------------------------------

    def nodes(self, graph: onnx.GraphProto, scope: Scope) -> None:
        makers = {name: node for node in graph.node for name in node.output if name}
        for node in graph.node:
            for name in (*node.input, *captured(node)):
                if name and name not in scope.tensors and name not in scope.sequences.members:
                    self.missing(name, node, makers)
            self.check(node, scope)
            if node.domain in ("", "ai.onnx") and scope.sequences.concerns(node):
                self.sequence(node, scope)
            elif node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                if len(node.output) != 1:
                    raise self.error(f"{scope.shapes.called(node)} has {len(node.output)} results")
                self.constant(node.output[0], self.constant_value(node), scope, "constant")
            elif node.op_type in CONTROL_FLOW and node.domain in ("", "ai.onnx"):
                control_flow(self, node, scope)
            else:
                scope.shapes.infer(node)
                self.node(node, scope)

    def check(self, node: onnx.NodeProto, scope: Scope) -> None:
        """Raise `FormatError` for attributes or operands that the operator does not take; all operands are defined."""
        schema, members = scope.shapes.schema(node), scope.sequences.members

        def error(text: str) -> FormatError:
            return self.error(f"{ShapeInference.called(node)} {text}")

        check_attributes(node, schema, self.file, error)
        check_operands(node, schema, scope.shapes.elem_type, lambda name: name in members and name not in scope.tensors, error)
        sequence = next((name for name in node.input if name in members), None)
        if sequence is not None and not scope.sequences.concerns(node):
            raise error(f"reads the sequence {sequence!r}; graphs hold tensors only")

    def sequence(self, node: onnx.NodeProto, scope: Scope) -> None:
        """Add what stands for a node that makes or reads a sequence."""
        nodes, constants, renamed = scope.sequences.dissolve(node)
        for name, tensor in constants.items():
            self.constant(name, tensor, scope, "constant")
        for made in nodes:
            made.metadata_props.extend(node.metadata_props)
            scope.shapes.infer(made)
            self.node(made, scope)
        for name, known in renamed.items():
            self.rename(name, self.resolve(known, scope, "sequence member"), known, scope, scope)

    def rename(self, name: str, tensor: int, known: str, inner: Scope, scope: Scope) -> None:
        """Let value `name` of `scope` be the tensor that `inner` knows as `known`."""
        if name in scope.tensors:
            raise self.error(f"value {name!r} is defined twice")
        scope.tensors[name] = tensor
        scope.shapes.define(name, *inner.shapes.of(known))
        scope.shapes.known[name] = inner.shapes.value(known)

    def missing(self, name: str, node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> None:
        """Say why `node` cannot read `name` where it stands: nobody makes it, a cycle, or nodes out of order."""
        called = ShapeInference.called
        if name not in makers:
            raise self.error(f"{called(node)} reads {name!r}, which nothing defines")
        seen, stack = {name}, [name]
        while stack:
            for operand in (*makers[value].input, *captured(makers[value])) if (value := stack.pop()) in makers else ():
                if operand in node.output:
                    raise self.error(
                        f"the graph is cyclic: {called(node)} reads {name!r}, which {called(makers[name])} makes from its result"
                    )
                if operand not in seen:
                    seen.add(operand)
                    stack.append(operand)
        raise self.error(
            f"the nodes are not in topological order: {called(node)} reads {name!r} before {called(makers[name])} makes it. Sort the nodes"
        )

    def constant_value(self, node: onnx.NodeProto) -> onnx.TensorProto:
        from onnx import helper

        if len(node.attribute) == 1:
            attribute = node.attribute[0]
            if attribute.name == "value" and attribute.type == attribute.TENSOR:
                return attribute.t
            kinds = {"value_int": 7, "value_ints": 7, "value_float": 1, "value_floats": 1, "value_string": 8, "value_strings": 8}
            if attribute.name in kinds and not attribute.ref_attr_name:
                try:
                    value: Any = helper.get_attribute_value(attribute)
                    many = attribute.name.endswith("s")
                    values = list(value) if many else [value]
                    return helper.make_tensor(node.output[0], kinds[attribute.name], [len(values)] if many else [], values)
                except (ValueError, TypeError) as error:
                    raise self.error(f"{ShapeInference.called(node)} holds no value of its kind: {error}") from error
        raise self.error(f"{ShapeInference.called(node)} holds {[a.name for a in node.attribute]}, not one dense value")

    def node(self, node: onnx.NodeProto, scope: Scope, captures: Sequence[str] = (), workspace: int = 0) -> None:
        """Add `node`, whose results have types in `scope`."""
        if not any(node.output):
            raise self.error(f"{ShapeInference.called(node)} has no results")
        operands = [scope.tensors[name] if name else None for name in node.input]
        while operands and operands[-1] is None:
            operands.pop()
        inputs = [t for t in operands if t is not None] + [scope.tensors[name] for name in captures]
        alias = operands[0] if _is_view(node, scope) else None
        outputs = [self.define(name, scope, alias=alias if i == 0 else None) for i, name in enumerate(node.output) if name]
        made = [bool(name) for name in node.output]
        while not made[-1]:
            made.pop()
        attrs = {**encode(node), **shape_keys(operands, made, node.name, list(captures))}
        module, source = _origin(node)
        self.builder.node(
            op_name(node.domain, node.op_type), inputs, outputs, attrs=attrs, scope=module, source=source, workspace=workspace
        )


# ---- facts of protos and of small graphs ------------------------------------------------------------------------------


def _is_view(node: onnx.NodeProto, scope: Scope) -> bool:
    """Whether the first result of `node` is its first operand under another shape."""
    if node.domain not in ("", "ai.onnx") or not node.input or not node.input[0] or not node.output[0]:
        return False
    if scope.shapes.of(node.input[0])[0] != scope.shapes.of(node.output[0])[0]:
        return False
    if node.op_type == "Dropout":
        training = scope.shapes.value(node.input[2]) if len(node.input) > 2 and node.input[2] else False
        old = any(a.name == "is_test" and not a.i for a in node.attribute)
        return training is not None and not bool(training) and not old
    return node.op_type in VIEWS


def _spell(tensor: onnx.TypeProto.Tensor) -> str:
    sizes = (str(d.dim_value) if d.HasField("dim_value") and d.dim_value >= 0 else repr(d.dim_param)[1:-1] or "?" for d in tensor.shape.dim)
    return f"({', '.join(sizes)})"


def _origin(node: onnx.NodeProto) -> tuple[str, str]:
    """(module path, file:line) of a node, from torch's metadata or from a path-like node name; empty when unknown."""
    metadata = {p.key: p.value for p in node.metadata_props}
    scopes = re.findall(r"'([^']*)'", metadata.get("pkg.torch.onnx.name_scopes", ""))
    lines = re.findall(r'File "([^"]+)", line (\d+)', metadata.get("pkg.torch.onnx.stack_trace", ""))
    lines = [line for line in lines if "/site-packages/torch/" not in line[0]] or lines
    source = ":".join(lines[-1]) if lines else ""
    if "neaptide.scope" in metadata:
        return metadata["neaptide.scope"], source
    if scopes:
        return (scopes[-2] if len(scopes) > 1 else ""), source
    parts = [p for p in node.name.split("/") if p]
    if len(parts) < 2:
        return "", source
    path: list[str] = []
    for part in parts[:-1]:
        if path and part.startswith(path[-1] + "."):
            path[-1] = part
        else:
            path.append(part)
    return ".".join(path), source


def declared(graph: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    return {value.name: value.type for value in (*graph.value_info, *graph.output)}
