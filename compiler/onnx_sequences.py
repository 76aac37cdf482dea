"""Sequences of tensors, dissolved: a graph holds tensors only, so each sequence operator becomes what it does to tensors.

`SplitToSequence` becomes `Split` (and `Squeeze` where it drops the axis), `ConcatFromSequence` becomes `Concat` (over `Unsqueeze`d
tensors where it makes an axis), and `SequenceConstruct`, `SequenceAt`, `SequenceInsert`, `SequenceErase`, `SequenceEmpty`,
`SequenceLength` and `Identity` only say which tensors are meant. Positions and lengths must be known, which they are wherever shapes are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import FormatError
from .onnx_shapes import ShapeInference

if TYPE_CHECKING:
    import onnx

    StandIn = tuple[list[onnx.NodeProto], dict[str, onnx.TensorProto], dict[str, str]]

PARTS = 4096  # of one sequence; each becomes a tensor of the graph
METHODS = {
    "SplitToSequence": "_split", "ConcatFromSequence": "_concat", "SequenceConstruct": "_construct", "SequenceEmpty": "_empty",
    "SequenceAt": "_at", "SequenceInsert": "_insert", "SequenceErase": "_erase", "SequenceLength": "_length", "Identity": "_identity",
}  # fmt: skip


class Sequences:
    """The sequences of one scope: names of the member values, by the name of the sequence."""

    def __init__(self, shapes: ShapeInference, members: dict[str, list[str]] | None = None):
        self.shapes = shapes
        self.members = dict(members or {})

    def concerns(self, node: onnx.NodeProto) -> bool:
        """Whether `node` makes or reads a sequence."""
        return (node.op_type in METHODS and node.op_type != "Identity") or (
            node.op_type == "Identity" and len(node.input) == 1 and node.input[0] in self.members
        )

    def dissolve(self, node: onnx.NodeProto) -> StandIn:
        """What stands for `node`: nodes over tensors, the constants they read, and new names of values that exist already.

        Raises `FormatError` naming the node when a position, a length or the sequence itself is not known.
        """
        if not node.output or not node.output[0] or any(not name for name in node.input[:1]):
            raise self._error(node, "lacks an operand or a result")
        try:
            return getattr(self, METHODS[node.op_type])(node)
        except IndexError:
            raise self._error(node, f"has {len(node.input)} operands") from None

    def _error(self, node: onnx.NodeProto, text: str) -> FormatError:
        return FormatError(f"{self.shapes.file.label}: {self.shapes.called(node)} {text}")

    def _of(self, node: onnx.NodeProto) -> list[str]:
        if node.input[0] not in self.members:
            raise self._error(node, f"reads {node.input[0]!r}, which is no sequence that is known before it runs")
        return self.members[node.input[0]]

    def _position(self, node: onnx.NodeProto, operand: int, size: int, default: int | None = None) -> int:
        if operand >= len(node.input) or not node.input[operand]:
            if default is None:
                raise IndexError
            return default
        value = self.shapes.value(node.input[operand])
        at = int(value.reshape(())) if value is not None and value.size == 1 and value.dtype.kind in "iu" else None
        if at is None or not -size <= at < size + (default is not None):
            raise self._error(node, "takes a position that is not known before it runs, or outside its sequence")
        return at + size if at < 0 else at

    def _split(self, node: onnx.NodeProto) -> StandIn:
        import numpy as np
        from onnx import helper, numpy_helper

        attrs = {a.name: a.i for a in node.attribute}
        _, shape = self.shapes.of(node.input[0])
        axis, keep = attrs.get("axis", 0), attrs.get("keepdims", 1)
        if not -len(shape) <= axis < len(shape):
            raise self._error(node, f"splits axis {axis} of shape {shape}")
        sizes = self._sizes(node, shape[axis])
        keep = keep or len(node.input) > 1
        parts = [f"{node.output[0]}.{i}" for i in range(len(sizes))]
        self.members[node.output[0]] = parts
        whole = parts if keep else [f"{p}.kept" for p in parts]
        constants, inputs, extra = {}, [node.input[0]], {}
        modern = self.shapes.opsets.get("", 0) >= 13
        if modern:
            name = f"{node.output[0]}.sizes"
            constants[name] = numpy_helper.from_array(np.array(sizes, np.int64), name)
            inputs.append(name)
        else:
            extra["split"] = sizes
        nodes = [helper.make_node("Split", inputs, whole, name=node.name, axis=axis, **extra)]
        if not keep:
            if modern:
                name = f"{node.output[0]}.axis"
                constants[name] = numpy_helper.from_array(np.array([axis], np.int64), name)
                nodes += [helper.make_node("Squeeze", [w, name], [p]) for w, p in zip(whole, parts, strict=True)]
            else:
                nodes += [helper.make_node("Squeeze", [w], [p], axes=[axis]) for w, p in zip(whole, parts, strict=True)]
        return nodes, constants, {}

    def _sizes(self, node: onnx.NodeProto, length: int) -> list[int]:
        if len(node.input) < 2 or not node.input[1]:
            if length > PARTS:
                raise self._error(node, f"splits into {length:,} parts; at most {PARTS:,} are taken apart")
            return [1] * length
        value = self.shapes.value(node.input[1])
        if value is None:
            raise self._error(node, "splits into sizes that are not known before it runs")
        if value.ndim:
            sizes = [int(v) for v in value.reshape(-1)]
        else:
            each = int(value)
            if each < 1 or -(-length // each) > PARTS:
                raise self._error(node, f"splits {length:,} into parts of {each:,}; at most {PARTS:,} parts are taken apart")
            sizes = [min(each, length - at) for at in range(0, length, each)]
        if sum(sizes) != length or any(s < 0 for s in sizes) or len(sizes) > PARTS:
            raise self._error(node, f"splits {length} into {sizes[:20]}")
        return sizes

    def _concat(self, node: onnx.NodeProto) -> StandIn:
        from onnx import helper, numpy_helper

        attrs = {a.name: a.i for a in node.attribute}
        parts, axis = self._of(node), attrs.get("axis", 0)
        if not parts:
            raise self._error(node, "joins an empty sequence")
        if not attrs.get("new_axis", 0):
            return [helper.make_node("Concat", parts, [node.output[0]], name=node.name, axis=axis)], {}, {}
        import numpy as np

        raised = [f"{node.output[0]}.{i}" for i in range(len(parts))]
        name = f"{node.output[0]}.axis"
        if self.shapes.opsets.get("", 0) >= 13:
            constants = {name: numpy_helper.from_array(np.array([axis], np.int64), name)}
            nodes = [helper.make_node("Unsqueeze", [p, name], [r]) for p, r in zip(parts, raised, strict=True)]
        else:
            constants = {}
            nodes = [helper.make_node("Unsqueeze", [p], [r], axes=[axis]) for p, r in zip(parts, raised, strict=True)]
        return [*nodes, helper.make_node("Concat", raised, [node.output[0]], name=node.name, axis=axis)], constants, {}

    def _construct(self, node: onnx.NodeProto) -> StandIn:
        self.members[node.output[0]] = list(node.input)
        return [], {}, {}

    def _empty(self, node: onnx.NodeProto) -> StandIn:
        self.members[node.output[0]] = []
        return [], {}, {}

    def _identity(self, node: onnx.NodeProto) -> StandIn:
        self.members[node.output[0]] = list(self._of(node))
        return [], {}, {}

    def _at(self, node: onnx.NodeProto) -> StandIn:
        parts = self._of(node)
        return [], {}, {node.output[0]: parts[self._position(node, 1, len(parts))]}

    def _insert(self, node: onnx.NodeProto) -> StandIn:
        parts = list(self._of(node))
        parts.insert(self._position(node, 2, len(parts), len(parts)), node.input[1])
        self.members[node.output[0]] = parts
        return [], {}, {}

    def _erase(self, node: onnx.NodeProto) -> StandIn:
        parts = list(self._of(node))
        if not parts:
            raise self._error(node, "takes from an empty sequence")
        del parts[min(self._position(node, 1, len(parts), len(parts) - 1), len(parts) - 1)]
        self.members[node.output[0]] = parts
        return [], {}, {}

    def _length(self, node: onnx.NodeProto) -> StandIn:
        import numpy as np
        from onnx import numpy_helper

        name = f"{node.output[0]}.length"
        return [], {name: numpy_helper.from_array(np.array(len(self._of(node)), np.int64), name)}, {node.output[0]: name}
