"""ONNX nodes as they come in a file: what each has to be before anything is inferred, folded or counted of it.

The schema of an operator says which attributes it takes and of which kind, and what its operands may be; the values that a text attribute
may have stand in its documentation only, and so here. A node that passes has attributes of the stated kind, tensors in them that hold all
their numbers and nothing outside the file, and operands that are tensors (or sequences) of types its operator takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from .onnx_files import check_tensor, fills

if TYPE_CHECKING:
    import onnx

    from .errors import FormatError
    from .onnx_files import OnnxFile

_PADDING = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
_COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_half_pixel_for_nn",
                "tf_crop_and_resize", "output_half_pixel")  # fmt: skip
_ACTIVATIONS = ("Affine", "Elu", "HardSigmoid", "LeakyRelu", "Relu", "ScaledTanh", "Sigmoid", "Softplus", "Softsign", "Tanh",
                "ThresholdedRelu")  # fmt: skip
_SCATTER = ("none", "add", "mul", "max", "min")
_RNN: dict[str, tuple[str, ...]] = {"direction": ("forward", "reverse", "bidirectional"), "activations": _ACTIVATIONS}
_POOL: dict[str, tuple[str, ...]] = {"auto_pad": _PADDING}

# Values of text attributes, by operator of the default domain and of onnxruntime's. Upper and lower case are one in `activations` alone.
TEXTS: dict[str, dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("AveragePool", "Conv", "ConvInteger", "ConvTranspose", "LpPool", "MaxPool", "QLinearConv"), _POOL),
    **dict.fromkeys(("com.microsoft.FusedConv", "com.microsoft.QLinearAveragePool", "com.microsoft.QLinearConv"), _POOL),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _RNN),
    "BitShift": {"direction": ("LEFT", "RIGHT")},
    "Cast": {"round_mode": ("up", "down", "nearest")},
    "CastLike": {"round_mode": ("up", "down", "nearest")},
    "DepthToSpace": {"mode": ("DCR", "CRD")},
    "SpaceToDepth": {"mode": ("DCR", "CRD")},
    "Gelu": {"approximate": ("none", "tanh")},
    "GridSample": {
        "mode": ("linear", "bilinear", "nearest", "cubic", "bicubic"), "padding_mode": ("zeros", "border", "reflection"),
    },
    "NegativeLogLikelihoodLoss": {"reduction": ("none", "sum", "mean")},
    "SoftmaxCrossEntropyLoss": {"reduction": ("none", "sum", "mean")},
    "Pad": {"mode": ("constant", "reflect", "edge", "wrap")},
    "Resize": {
        "mode": ("nearest", "linear", "cubic"), "coordinate_transformation_mode": _COORDINATES,
        "nearest_mode": ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
        "keep_aspect_ratio_policy": ("stretch", "not_larger", "not_smaller"),
    },
    "RoiAlign": {"mode": ("avg", "max"), "coordinate_transformation_mode": ("half_pixel", "output_half_pixel")},
    "ScatterElements": {"reduction": _SCATTER},
    "ScatterND": {"reduction": _SCATTER},
    "TensorScatter": {"mode": ("linear", "circular")},
    "Upsample": {"mode": ("nearest", "linear", "bilinear", "cubic")},
}  # fmt: skip
_TERM = r"[A-Za-z ]*(?:\.\.\.)?[A-Za-z ]*"
_EQUATION = re.compile(rf"{_TERM}(?:,{_TERM})*(?:->{_TERM})?")
_KINDS = {
    1: "float", 2: "int", 3: "string", 4: "tensor", 5: "graph", 6: "floats", 7: "ints", 8: "strings", 9: "tensors", 10: "graphs",
    11: "sparse tensor", 12: "sparse tensors", 13: "type", 14: "types",
}  # fmt: skip
_ELEMENTS = {
    "float": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "string": 8, "bool": 9, "float16": 10,
    "double": 11, "uint32": 12, "uint64": 13, "complex64": 14, "complex128": 15, "bfloat16": 16, "float8e4m3fn": 17,
    "float8e4m3fnuz": 18, "float8e5m2": 19, "float8e5m2fnuz": 20, "uint4": 21, "int4": 22, "float4e2m1": 23, "float8e8m0": 24,
    "uint2": 25, "int2": 26,
}  # fmt: skip
_NAMES = {number: name for name, number in _ELEMENTS.items()}
# Sorts of element types. Operators meet newer types of a sort that they take than their schema lists; another sort is a mistake.
_SORTS = ({1, 10, 11, 16, 17, 18, 19, 20, 23, 24}, {2, 3, 4, 5, 6, 7, 12, 13, 21, 22, 25, 26}, {8}, {9}, {14, 15})


def check_attributes(node: onnx.NodeProto, schema: onnx.defs.OpSchema | None, file: OnnxFile, error: Callable[[str], FormatError]) -> None:
    """Raise what `error` makes of a sentence when an attribute of `node` is not one its operator takes, or holds what it may not."""
    known = {} if schema is None else _attribute_kinds(schema)
    seen: set[str] = set()
    for attribute in node.attribute:
        name, kind = attribute.name, attribute.type
        if name in seen:
            raise error(f"has two attributes called {name!r}")
        seen.add(name)
        if kind not in _KINDS:
            raise error(f"has attribute {name!r} of no known kind ({kind})")
        if name in known and known[name][0] != kind:
            raise error(f"has attribute {name!r} of kind {_KINDS[kind]}; it is {_KINDS.get(known[name][0], '?')}")
        for tensor in tensors_of(attribute):
            check_tensor(tensor, file)
            if node.op_type != "Constant" and not fills(tensor):
                raise error(f"has attribute {name!r}, whose tensor of shape {list(tensor.dims)} does not hold its numbers in the file")
    for name, (_, required) in known.items():
        if required and name not in seen:
            raise error(f"lacks its attribute {name!r}")
    _check_texts(node, error)


def _check_texts(node: onnx.NodeProto, error: Callable[[str], FormatError]) -> None:
    if node.op_type == "Einsum":
        equation = next((a.s.decode(errors="replace") for a in node.attribute if a.name == "equation"), "")
        if not _EQUATION.fullmatch(equation):
            raise error(f"has the equation {equation[:40]!r}; one is written as in 'ij,jk->ik', with letters and ... for dimensions")
    called = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    for attribute in node.attribute:
        allowed = TEXTS.get(called, {}).get(attribute.name)
        for raw in () if allowed is None else (attribute.s,) if attribute.type == attribute.STRING else attribute.strings:
            text = raw.decode(errors="replace")
            same = {a.lower() for a in allowed or ()} if attribute.name == "activations" else set(allowed or ())
            if (text.lower() if attribute.name == "activations" else text) not in same:
                raise error(f"has {attribute.name} {text[:40]!r}; it is one of {', '.join(allowed or ())}")


def tensors_of(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    """Every tensor in `attribute`, those of subgraphs apart."""
    if attribute.type == attribute.TENSOR:
        yield attribute.t
    yield from attribute.tensors
    for sparse in (*([attribute.sparse_tensor] if attribute.type == attribute.SPARSE_TENSOR else ()), *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)


def check_operands(
    node: onnx.NodeProto,
    schema: onnx.defs.OpSchema | None,
    elem_type: Callable[[str], int | None],
    is_sequence: Callable[[str], bool],
    error: Callable[[str], FormatError],
) -> None:
    """Raise what `error` makes of a sentence when an operand of `node` is of a kind or a sort of numbers that its operator does not take.

    `elem_type`: of a value that is a tensor, None for one that is not.
    """
    formal = () if schema is None else _operand_types(schema)
    for i, name in enumerate(node.input):
        if not name:
            continue
        tensors, sequences = formal[min(i, len(formal) - 1)] if formal else (None, False)
        if is_sequence(name):
            if not sequences:
                raise error(f"takes a tensor for operand {i}; {name!r} is a sequence")
            continue
        given = elem_type(name)
        if given is not None and tensors is not None and given not in tensors:
            takes = ", ".join(sorted(_NAMES[t] for t in tensors)) if tensors else "a sequence"
            raise error(f"takes {takes} for operand {i}; {name!r} is {_NAMES.get(given, given)}")


Types = tuple[tuple[frozenset[int], bool], ...]
_facts: dict[tuple[str, str, int], tuple[dict[str, tuple[int, bool]], Types]] = {}


def _of_schema(schema: onnx.defs.OpSchema) -> tuple[dict[str, tuple[int, bool]], Types]:
    """(kind and need of each attribute, element types and whether a sequence may stand there of each operand), asked of onnx once."""
    key = (schema.domain, schema.name, schema.since_version)
    if key not in _facts:
        attributes = {name: (int(cast(Any, a.type).value), bool(a.required)) for name, a in schema.attributes.items()}
        _facts[key] = attributes, tuple(_formal(tuple(formal.types)) for formal in schema.inputs)
    return _facts[key]


def _attribute_kinds(schema: onnx.defs.OpSchema) -> dict[str, tuple[int, bool]]:
    return _of_schema(schema)[0]


def _operand_types(schema: onnx.defs.OpSchema) -> Types:
    return _of_schema(schema)[1]


@cache
def _formal(types: tuple[str, ...]) -> tuple[frozenset[int], bool]:
    listed = {_ELEMENTS[text[7:-1]] for text in types if text.startswith("tensor(") and text[7:-1] in _ELEMENTS}
    return frozenset(kind for sort in _SORTS if sort & listed for kind in sort), any(text.startswith("seq(") for text in types)
