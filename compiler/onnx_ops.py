"""Running ONNX operators: torch kernels where there are some, onnx's reference implementation for the rest.

`OnnxOp` is one node as a module. Kernels and reference agree on meaning, not on rounding: like any two ONNX runtimes they differ in
the last bits. Control flow always runs in the reference, with the values that its subgraphs capture as further operands.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import onnx_kernels, onnx_kernels_nn, onnx_kernels_quantized, onnx_kernels_recurrent
from .calls import Call
from .errors import TraceError
from .graph import Graph, Node
from .onnx_attrs import decode, python_values, split_op
from .onnx_files import require_onnx, to_torch

if TYPE_CHECKING:
    import numpy as np

KERNELS = {**onnx_kernels.KERNELS, **onnx_kernels.REDUCTIONS, **onnx_kernels_nn.KERNELS, **onnx_kernels_quantized.KERNELS}
TUPLE_KERNELS = {**onnx_kernels_nn.TUPLE_KERNELS, **onnx_kernels_quantized.TUPLE_KERNELS, **onnx_kernels_recurrent.TUPLE_KERNELS}


def onnx_call(graph: Graph, node: Node, inputs: Sequence[Any]) -> Call:
    """The call of an ONNX node over `inputs`, one per `node.inputs`."""
    require_onnx("Running ONNX operators")
    packed = set(graph.meta.get("packed", ())) & set(node.outputs)
    if packed:
        raise TraceError(
            f"node {node.id} ({node.op}) makes {graph.tensors[packed.pop()].name!r} of a type under 8 bits, which torch cannot hold"
        )
    spec = node.attrs.get("$inputs")
    formal = list(inputs) if spec is None else [None if ref is None else inputs[ref.index] for ref in spec]
    captured = list(inputs)[len(inputs) - len(node.attrs.get("$captures", ())) :] if node.attrs.get("$captures") else []
    op = OnnxOp(node.op, node.attrs, graph.meta.get("opsets", {"": 17}), node.attrs.get("$outputs", [True] * len(node.outputs)))
    return Call(op, (*formal, *captured), {}, len(node.outputs) == 1)


class OnnxOp(nn.Module):
    """One ONNX node. `forward` takes its operands (None for an omitted one), then what its subgraphs capture.

    It returns the one tensor, or the tuple of tensors, that the node makes; `made` says which of its formal results those are.
    """

    def __init__(self, op: str, attrs: Mapping[str, Any], opsets: Mapping[str, int], made: Sequence[bool]):
        super().__init__()
        self.domain, self.op_type = split_op(op)
        self.attrs = dict(attrs)
        self.opsets = dict(opsets)
        self.made = list(made)
        self.attributes = {k: to_torch(v) if hasattr(v, "__array__") else v for k, v in python_values(attrs).items()}

    def extra_repr(self) -> str:
        return ", ".join([self.op_type, *(f"{k}={v}" for k, v in self.attributes.items() if not isinstance(v, torch.Tensor))])

    def forward(self, *operands: Any) -> Any:
        results = self._run(operands)
        kept = [result for result, made in zip(results, self.made, strict=False) if made]
        return kept[0] if len(kept) == 1 else tuple(kept)

    def _run(self, operands: tuple[Any, ...]) -> Sequence[torch.Tensor]:
        kernel, many = self._kernel
        if kernel is None:
            return self._reference(operands)
        try:
            with torch.no_grad():
                out = kernel(*operands, **self._keywords)
        except (onnx_kernels.Unsupported, NotImplementedError):  # torch has no kernel for this form, or for this dtype
            return self._reference(operands)
        return out if many else (out,)

    @cached_property
    def _kernel(self) -> tuple[Any, bool]:
        """(kernel, whether it returns a tuple); (None, False) when the operator or one of its attributes has none."""
        if self.domain == "com.microsoft":
            singles, tuples = onnx_kernels_nn.MICROSOFT, onnx_kernels_nn.MICROSOFT_TUPLES
        elif self.domain in ("", "ai.onnx"):
            singles, tuples = KERNELS, TUPLE_KERNELS
        else:
            return None, False
        kernel = tuples.get(self.op_type) or (singles.get(self.op_type) if len(self.made) == 1 else None)
        if kernel is None or not self._accepts(kernel):
            return None, False
        return kernel, self.op_type in tuples

    def _accepts(self, kernel: Any) -> bool:
        names = _keywords(kernel)
        return names is None or set(self.attributes) <= names

    @cached_property
    def _keywords(self) -> dict[str, Any]:
        names = _keywords(self._kernel[0])
        extra: dict[str, Any] = {"opset": self.opsets.get("", self.opsets.get("ai.onnx", 17)), "results": len(self.made)}
        return {**self.attributes, **{k: v for k, v in extra.items() if names is not None and k in names}}

    # ---- the reference ------------------------------------------------------------------------------------------------

    def _reference(self, operands: tuple[Any, ...]) -> list[torch.Tensor]:
        """The results by onnx's own implementation, in numpy. Raises `TraceError` when onnx has none."""
        formal = len(operands) - len(self.attrs.get("$captures", ()))
        names = [f"operand_{i}" if value is not None else "" for i, value in enumerate(operands[:formal])]
        given = dict(zip([*names, *self.attrs.get("$captures", ())], operands, strict=True))
        feeds = {name: to_numpy(value) for name, value in given.items() if name and value is not None}
        try:
            with _quiet():
                got = self._evaluator(names).run(None, feeds)
        except Exception as error:  # numpy code of another library, which raises what it will
            raise TraceError(f"onnx's reference cannot run {self.op_type}: {' '.join(str(error).split())}") from error
        made = iter(got)
        return [to_torch_value(next(made)) if exists else torch.empty(0) for exists in self.made]

    def _evaluator(self, names: list[str]) -> Any:
        import onnx
        from onnx import helper
        from onnx.reference import ReferenceEvaluator

        opsets, version = self.opsets, self.opsets.get("", self.opsets.get("ai.onnx", 17))
        outputs = [f"result_{i}" if made else "" for i, made in enumerate(self.made)]
        node = onnx.NodeProto(op_type=self.op_type, domain=self.domain, input=names, output=outputs)
        node.attribute.extend(decode(self.attrs))
        if self.op_type == "RoiAlign" and version < 16:  # which had no half pixels; the reference takes them for the default
            node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "output_half_pixel"))
            opsets = {**self.opsets, "": 16}
        inputs = [n for n in (*names, *self.attrs.get("$captures", ())) if n]
        graph = helper.make_graph(
            [node], "one", [onnx.ValueInfoProto(name=n) for n in inputs], [onnx.ValueInfoProto(name=n) for n in outputs if n]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(d, v) for d, v in opsets.items()])
        return ReferenceEvaluator(model)


def _keywords(kernel: Any) -> set[str] | None:
    """Names of the keywords a kernel takes; None when it takes any."""
    try:
        parameters = inspect.signature(kernel).parameters.values()
    except ValueError:
        return set()  # one of torch's own functions of tensors alone
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}


def _quiet() -> Any:
    import numpy as np

    return np.errstate(all="ignore")


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A numpy array of the values; dtypes that numpy lacks become ml_dtypes' of the same name."""
    import ml_dtypes

    plain = tensor.detach().cpu().contiguous()
    name = str(plain.dtype).removeprefix("torch.")
    if hasattr(ml_dtypes, name):
        bits = plain.view(torch.int16 if plain.element_size() == 2 else torch.uint8).numpy()
        return bits.view(getattr(ml_dtypes, name))
    return plain.numpy()


def to_torch_value(value: Any) -> torch.Tensor:
    """A torch tensor of a result of the reference."""
    import numpy as np

    return to_torch(np.asarray(value))
