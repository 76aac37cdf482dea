"""ONNX attributes as the JSON-like values of `Node.attrs`, and back.

Integers, floats, strings and non-empty lists of them are themselves; a float that JSON cannot hold is
`Atom("float", "inf")`; everything else (tensors, graphs, empty lists) is `Atom("onnx.attribute", base64 of the proto)`.
Three keys begin with `$`, which no ONNX attribute does: `$name` is the node's name; `$inputs` lists the operands, `Ref`s
with None for an omitted one, when some are omitted or when `Node.inputs` ends with values that a subgraph captures, whose
names stand in `$captures`; `$outputs` lists which results exist, True or False, when some do not.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import FormatError
from .graph import Atom, Node, Ref
from .onnx_files import fills
from .onnx_nodes import tensors_of

if TYPE_CHECKING:
    import onnx


def op_name(domain: str, op_type: str) -> str:
    """The IR name of an ONNX operator: `onnx.Conv`, `onnx.com.microsoft.FusedConv`."""
    return f"onnx.{op_type}" if domain in ("", "ai.onnx") else f"onnx.{domain}.{op_type}"


def split_op(op: str) -> tuple[str, str]:
    """(domain, op_type) of an IR name."""
    domain, _, op_type = op.removeprefix("onnx.").rpartition(".")
    return domain, op_type


def encode(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of `node`, without the `$` keys. Raises `FormatError` for one that is not well formed."""
    out: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            raise FormatError(
                f"attribute {attribute.name!r} of node {node.name or node.op_type!r} refers to a function's attribute outside one"
            )
        if not attribute.name or attribute.name.startswith("$"):
            raise FormatError(f"node {node.name or node.op_type!r} has an attribute called {attribute.name!r}")
        out[attribute.name] = _encode_one(attribute)
    return out


def _encode_one(attribute: onnx.AttributeProto) -> Any:
    kind = attribute.type
    if kind == attribute.INT:
        return attribute.i
    if kind == attribute.FLOAT:
        return attribute.f if math.isfinite(attribute.f) else Atom("float", str(attribute.f))
    if kind == attribute.INTS and attribute.ints:
        return list(attribute.ints)
    if kind == attribute.FLOATS and attribute.floats and all(map(math.isfinite, attribute.floats)):
        return list(attribute.floats)
    try:
        if kind == attribute.STRING:
            return attribute.s.decode()
        if kind == attribute.STRINGS and attribute.strings:
            return [s.decode() for s in attribute.strings]
    except UnicodeDecodeError:
        pass  # bytes that are no text travel as the proto
    return Atom("onnx.attribute", base64.b64encode(attribute.SerializeToString(deterministic=True)).decode())


def decode(attrs: Mapping[str, Any]) -> list[onnx.AttributeProto]:
    """`encode` undone: the attribute protos of a node, `$` keys left out."""
    from onnx import helper

    out = []
    for name, value in attrs.items():
        if name.startswith("$"):
            continue
        if isinstance(value, Atom) and value.kind == "onnx.attribute":
            out.append(_attribute(value))
        else:
            out.append(helper.make_attribute(name, float(value.value) if isinstance(value, Atom) else value))
    return out


def _attribute(atom: Atom) -> onnx.AttributeProto:
    import onnx
    from google.protobuf.message import DecodeError

    attribute = onnx.AttributeProto()
    try:
        attribute.ParseFromString(base64.b64decode(atom.value, validate=True))
    except (ValueError, DecodeError) as error:
        raise FormatError(f"an ONNX attribute of the graph is not the base64 of one: {error}") from error
    for tensor in tensors_of(attribute):
        if not fills(tensor):
            raise FormatError(f"attribute {attribute.name!r} holds a tensor of shape {list(tensor.dims)} that is not all there")
    return attribute


def python_values(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as Python values: numbers, strings, lists; tensors as numpy arrays; graphs as `GraphProto`. No `$` keys."""
    from onnx import helper, numpy_helper

    out: dict[str, Any] = {}
    for name, value in attrs.items():
        if name.startswith("$"):
            continue
        if isinstance(value, Atom) and value.kind == "onnx.attribute":
            attribute = _attribute(value)
            got = helper.get_attribute_value(attribute)
            out[name] = numpy_helper.to_array(got) if attribute.type == attribute.TENSOR else got
        else:
            out[name] = float(value.value) if isinstance(value, Atom) else value
    return out


def operands(node: Node) -> list[int | None]:
    """Tensor ids of the formal operands in order, None where one is omitted; captured values are not operands."""
    spec = node.attrs.get("$inputs")
    if spec is None:
        return list(node.inputs)
    return [None if ref is None else node.inputs[ref.index] for ref in spec]


def results(node: Node) -> list[int | None]:
    """Tensor ids of the formal results in order, None where one is not made."""
    spec = node.attrs.get("$outputs")
    if spec is None:
        return list(node.outputs)
    made = iter(node.outputs)
    return [next(made) if exists else None for exists in spec]


def shape_keys(inputs: list[int | None], outputs: list[bool], name: str, captures: list[str]) -> dict[str, Any]:
    """The `$` keys that `operands` and `results` need, as few as do."""
    keys: dict[str, Any] = {}
    if name:
        keys["$name"] = name
    if captures or None in inputs:
        at = iter(range(len(inputs)))
        keys["$inputs"] = [None if t is None else Ref(next(at)) for t in inputs]
    if captures:
        keys["$captures"] = list(captures)
    if not all(outputs):
        keys["$outputs"] = list(outputs)
    return keys
