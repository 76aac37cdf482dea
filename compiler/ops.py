"""Op facts: for every aten and ONNX op, what kind of work it is and how much, in one registry.

Conventions, the same for every op and in every table:
- `macs` are the multiply-adds of contractions (convolution, matrix products, attention, recurrent layers): one per term of
  the defining sum, terms on padding included, terms that a transposed convolution crops included. FLOPs are two per MAC.
- `elementwise` is everything else that computes (activations, norms, softmax, pooling, interpolation, reductions, biases,
  optimizers), in FLOPs: one per addition, multiplication, division, comparison, selection, rounding or elementary function
  (exp, log, sqrt, tanh, erf, sigmoid, power, ...) of the op's defining formula. Index and weight arithmetic is not counted.
- A complex MAC is four real ones; a complex addition is two FLOPs and a multiplication or division six.
- Views, data movement, creation and random numbers are work of zero, explicitly. An op without facts, or whose node lacks
  what its formula needs, has unknown work, which is not zero.

Adding an op: one line in the module of its topic (`ops_pointwise`, `ops_contraction`, ...), and a hand count in `tests/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from math import prod
from typing import Any, NamedTuple

from .graph import Graph, Node, Ref, Tensor

KINDS = (
    "contraction",
    "attention",
    "rnn",
    "elementwise",
    "norm",
    "softmax",
    "pool",
    "interpolate",
    "reduction",
    "sort",
    "fft",
    "optimizer",
    "random",
    "data movement",
    "view",
    "creation",
)


class Work(NamedTuple):
    """Work of one node: `macs` multiply-adds of contractions and `elementwise` FLOPs of everything else."""

    macs: int = 0
    elementwise: int = 0

    @property
    def flops(self) -> int:
        """Two per multiply-add."""
        return 2 * self.macs


NO_WORK = Work()


class MissingFact(LookupError):
    """A formula asked a node for an argument that it does not have; its work is unknown."""


@dataclass(frozen=True, slots=True)
class OpFacts:
    """What is known about one op.

    `kind`: one of `KINDS`. `work`: a formula over a `Call`, None for ops that never compute. `may_inplace`: each output
    element depends only on the elements at its own place, so the result may take the storage of an input of equal shape,
    dtype and strides. `is_view`: outputs are windows on the first input's storage, always (an op such as `reshape` that
    only sometimes copies is data movement).
    """

    kind: str
    work: Callable[[Call], Work] | None = None
    may_inplace: bool = False

    @property
    def is_view(self) -> bool:
        return self.kind == "view"


class Call:
    """A node with its arguments, as formulas see it.

    `causal_half`: whether attention that is called with `is_causal` counts only the pairs that the mask keeps.
    """

    __slots__ = ("args", "attrs", "causal_half", "graph", "node")

    def __init__(self, graph: Graph, node: Node, causal_half: bool = False):
        self.graph, self.node, self.causal_half = graph, node, causal_half
        self.attrs = node.attrs
        self.args = self.attrs.get("args")

    def value(self, position: int, name: str, default: Any = None) -> Any:
        """The aten argument at `position` (-1: keyword only), or given by keyword `name`, else `default`; tensors as `Ref`s."""
        args = self.args
        if args is None:
            raise MissingFact(f"{self.node.op} without recorded arguments")
        if 0 <= position < len(args):
            return args[position]
        return self.attrs.get("kwargs", {}).get(name, default)

    def maybe(self, position: int, name: str) -> Tensor | None:
        """The tensor argument at `position` or named `name`, None when it was left out."""
        value = self.value(position, name)
        if value is None:
            return None
        if not isinstance(value, Ref):
            raise MissingFact(f"{self.node.op}: argument {name!r} is no tensor")
        return self.graph.tensors[self.node.inputs[value.index]]

    def tensor(self, position: int, name: str) -> Tensor:
        """The tensor argument at `position` or named `name`. Raises `MissingFact` when it was left out."""
        value = self.value(position, name)
        if type(value) is not Ref:
            raise MissingFact(f"{self.node.op} lacks argument {name!r}")
        return self.graph.tensors[self.node.inputs[value.index]]

    def tensors(self, position: int, name: str) -> list[Tensor]:
        """The tensors in the list argument at `position` or named `name`."""
        values = self.value(position, name, [])
        return [self.graph.tensors[self.node.inputs[v.index]] for v in values if isinstance(v, Ref)]

    def output(self, i: int = 0) -> Tensor:
        """The i-th tensor the node defines."""
        if i >= len(self.node.outputs):
            raise MissingFact(f"{self.node.op} has no output {i}")
        return self.graph.tensors[self.node.outputs[i]]

    def operand(self, i: int) -> Tensor | None:
        """The i-th operand of an ONNX node, None when it is omitted or absent."""
        operands = self.attrs.get("$inputs")
        if operands is not None:
            value = operands[i] if i < len(operands) else None
            return None if value is None else self.graph.tensors[self.node.inputs[value.index]]
        return self.graph.tensors[self.node.inputs[i]] if i < len(self.node.inputs) else None

    def needed(self, i: int) -> Tensor:
        """The i-th operand of an ONNX node. Raises `MissingFact` when there is none."""
        tensor = self.operand(i)
        if tensor is None:
            raise MissingFact(f"{self.node.op} lacks operand {i}")
        return tensor


def per_axis(value: Any, rank: int) -> tuple[int, ...]:
    """`value`, one integer or a list, as one integer per spatial axis."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * rank if len(values) == 1 else values


def is_complex(tensor: Tensor) -> bool:
    """True for complex dtypes."""
    return tensor.dtype.startswith("complex")


def numel(shape: Any) -> int:
    """Number of elements of `shape`."""
    return prod(shape)


_TOPICS = (
    "ops_movement",
    "ops_pointwise",
    "ops_reduction",
    "ops_norm",
    "ops_spatial",
    "ops_contraction",
    "ops_attention",
    "ops_recurrent",
    "ops_training",
    "ops_composite",
    "ops_onnx",
)


@cache
def registry() -> Mapping[str, OpFacts]:
    """All op facts by name: a packet (`aten.convolution`), an overload (`aten.max.dim`), or an ONNX op (`onnx.Conv`)."""
    merged: dict[str, OpFacts] = {}
    for topic in _TOPICS:
        facts: Mapping[str, OpFacts] = import_module(f".{topic}", __package__).FACTS
        twice = merged.keys() & facts.keys()
        if twice:
            raise AssertionError(f"{topic} defines again: {sorted(twice)}")
        merged.update(facts)
    return merged


@cache
def op_facts(op: str) -> OpFacts | None:
    """Facts of `op` as nodes name it (`aten.add_.Tensor`), None for an unknown op.

    Looks for the overload, then the packet, then both without the trailing underscore of in-place ops.
    """
    facts = registry()
    namespace, _, rest = op.partition(".")
    if namespace == "onnx":
        return facts.get(op)
    packet, _, overload = rest.partition(".")
    for name in dict.fromkeys((packet, packet[:-1] if packet.endswith("_") else packet)):
        for key in (f"{namespace}.{name}.{overload}", f"{namespace}.{name}"):
            if key in facts:
                return facts[key]
    return None


# What a formula raises for arguments that its op does not take: axes that are not there, texts for numbers, a stride of 0.
_NOT_ITS_ARGUMENTS = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)


def node_work(graph: Graph, node: Node, *, causal_half: bool = False) -> Work | None:
    """Work of `node`; None when its op has no facts, or its arguments are not recorded or none that the op takes.

    Graphs from files carry arguments that nobody has run: only the op itself could tell which are possible.
    """
    facts = op_facts(node.op)
    if facts is None:
        return None
    if facts.work is None:
        return NO_WORK
    try:
        work = facts.work(Call(graph, node, causal_half))
        return work if all(type(n) is int and n >= 0 for n in work) else None
    except _NOT_ITS_ARGUMENTS:
        return None
