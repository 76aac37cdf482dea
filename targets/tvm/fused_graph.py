"""A fused Relax program as a Neaptide Graph: one node per call of a fused operator, reshapes as views.

Relax imports and fuses; the order of the operators and the place of every byte are Neaptide's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm_ffi import structural_map

from ...compiler.errors import SourceError
from ...compiler.graph import Graph, GraphBuilder


@dataclass(frozen=True)
class FusedProgram:
    """`graph`: a node per call, whose op is a key of `kernels`, or `reshape` for a view; constants in `graph.values`.

    `kernels`: fused operators as unscheduled PrimFuncs; parameters are the node's inputs, then its outputs.
    """

    graph: Graph
    kernels: Mapping[str, tirx.PrimFunc]


def fuse(mod: tvm.IRModule) -> tvm.IRModule:
    """Legalize, fuse and fold constants; what only renames bytes stays `relax.reshape`."""
    t = relax.transform
    mod = _constants_in_shape(mod)
    passes = [
        t.DecomposeOpsForInference(),
        t.CanonicalizeBindings(),
        t.LegalizeOps(),
        t.AnnotateTIROpPattern(),
        t.FoldConstant(),
        t.FuseOps(),
        t.FuseTIR(),
        t.DeadCodeElimination(),
        t.RewriteDataflowReshape(),
        t.DeadCodeElimination(),
    ]
    with tvm.target.Target({"kind": "c"}):
        return tvm.transform.Sequential(passes)(mod)


def _constants_in_shape(mod: tvm.IRModule) -> tvm.IRModule:
    """Reshapes and transposes of constants done by numpy: `FoldConstant` would compile a program for each of them."""

    def rule(call: tvm.ir.Call) -> Any:
        op = getattr(call.op, "name", "")
        if op not in ("relax.reshape", "relax.permute_dims") or not isinstance(call.args[0], tvm.ir.GenericConst):
            return call
        array = call.args[0].value.numpy()
        if op == "relax.reshape":
            return relax.const(array.reshape([int(d) for d in call.args[1].values]))
        axes = call.attrs.axes
        return relax.const(np.ascontiguousarray(array.transpose(None if axes is None else [int(axis) for axis in axes])))

    return structural_map(mod, (tvm.ir.Call, rule))


def fused_program(mod: tvm.IRModule, *, name: str = "network") -> FusedProgram:
    """Fuse `mod` (from `to_relax`) and read it as a Graph. Raises `SourceError` for what is not a static tensor program."""
    fused = fuse(mod)
    kernels = {var.name_hint: func for var, func in fused.functions.items() if isinstance(func, tirx.PrimFunc)}
    graph = _Reader(name).read(fused["main"])
    used = {node.op for node in graph.nodes}
    return FusedProgram(graph, {symbol: func for symbol, func in kernels.items() if symbol in used})


class _Reader:
    """Walks the bindings of `main`; `tensors` maps each Relax variable to tensor ids (several for a tuple)."""

    def __init__(self, name: str):
        self.builder = GraphBuilder(name)
        self.tensors: dict[Any, list[int]] = {}
        self.constants: dict[Any, int] = {}

    def read(self, main: Any) -> Graph:
        b = self.builder
        b.meta = {"frontend": "relax", "mode": "inference"}
        for param in main.params:
            shape, dtype = _shape_dtype(param.ty)
            tensor = b.tensor(shape, dtype, role="input", name=param.name)
            b.inputs.append(tensor)
            self.tensors[param] = [tensor]
        for block in main.body.blocks:
            for binding in block.bindings:
                self.tensors[binding.var] = self.bind(binding.var, binding.value)
        b.outputs.extend(self.resolve(main.body.body))
        return b.build()

    def resolve(self, value: Any) -> list[int]:
        """Tensor ids of a variable, constant or tuple of them."""
        if isinstance(value, tvm.ir.GenericConst):
            return [self.constant(value)]
        if isinstance(value, relax.Tuple):
            return [t for field in value.fields for t in self.resolve(field)]
        return self.tensors[value]

    def constant(self, value: Any) -> int:
        if value not in self.constants:
            array = np.require(value.value.numpy(), requirements="C")  # which leaves a scalar one
            tensor = self.builder.tensor(array.shape, str(array.dtype), role="constant", name=f"constant {len(self.constants)}")
            self.builder.values[tensor] = array
            self.constants[value] = tensor
        return self.constants[value]

    def bind(self, var: Any, value: Any) -> list[int]:
        b = self.builder
        if isinstance(value, relax.TupleGetItem):
            return [self.resolve(value.tuple_value)[value.index]]
        if not isinstance(value, relax.Call):
            return self.resolve(value)
        op = getattr(value.op, "name", str(value.op))
        if op == "relax.reshape":
            (source,) = self.resolve(value.args[0])
            shape, dtype = _shape_dtype(var.ty)
            view = b.tensor(shape, dtype, b.tensors[source].storage, name=var.name)
            b.node("reshape", [source], [view])
            return [view]
        if op != "relax.call_tir":
            raise SourceError(f"fused program calls {op}, for which there is no C operator")
        inputs = [t for argument in value.args[1].fields for t in self.resolve(argument)]
        fields = var.ty.fields if isinstance(var.ty, relax.TupleType) else [var.ty]
        outputs = [b.tensor(*_shape_dtype(field), name=var.name) for field in fields]
        b.node(value.args[0].name_hint, inputs, outputs, scope=var.name)
        return outputs


def _shape_dtype(ty: Any) -> tuple[tuple[int, ...], str]:
    dims = ty.shape.values
    if not all(hasattr(d, "value") for d in dims):
        raise SourceError(f"a tensor has the dynamic shape {tuple(map(str, dims))}; firmware needs fixed sizes: give an example input")
    return tuple(int(d) for d in dims), str(getattr(ty.dtype, "dtype", ty.dtype))
