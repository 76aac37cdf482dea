"""Which operator of a network is the first whose TVM code, run on this machine as it was written, differs from torch's own result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils._pytree import tree_flatten

from ...compiler.errors import NeaptideError
from ...compiler.trace import trace
from ...passes.allocate import allocate
from ..verdict import difference, tolerance
from .cpu import ALIGNMENT, Network, cpu_target
from .fused_graph import fused_program
from .traced import TracedProgram, importer, traced_program
from .tune import unscheduled


def first_differing(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> str:
    """Its name, operands and error, as the end of a sentence; what is known where none differs or the model is no torch module."""
    if not isinstance(model, torch.nn.Module):
        return "which of its operators differs first is told of torch modules only"
    try:
        graph = trace(model, args, kwargs)
        program = traced_program(graph, importer().convert_map)
    except NeaptideError as error:
        return f"its operators cannot be compared one by one: {error}"
    given = iter(t for t in tree_flatten((list(args), dict(kwargs or {})))[0] if isinstance(t, torch.Tensor))
    known: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "placeholder":
                known[node] = program.values[node.name] if node.name in program.values else next(given)
            elif node.op == "call_function":
                values = fx.node.map_arg((node.args, node.kwargs), lambda n: known[n])
                known[node] = node.target(*values[0], **values[1])
                error = _error(node, known)
                if error is not None:
                    shapes = ", ".join(
                        "x".join(map(str, known[n].shape)) for n in node.all_input_nodes if isinstance(known[n], torch.Tensor)
                    )
                    return f"the first operator that differs is {node.target} of {shapes}, by {error:.2g}"
    return "each of its operators alone gives torch's result on this machine, so the code for the target, or an operator's place, is wrong"


def _error(node: fx.Node, known: Mapping[fx.Node, Any]) -> float | None:
    """How far the converted `node` is from torch's result, where that is more than rounding."""
    want = known[node]
    if not isinstance(want, torch.Tensor) or not isinstance(node.target, torch._ops.OpOverload):
        return None
    inputs = [n for n in dict.fromkeys(tree_flatten((node.args, node.kwargs))[0]) if isinstance(n, fx.Node)]
    alone = fx.Graph()
    at = {}
    for i, n in enumerate(inputs):
        at[n] = alone.placeholder(f"input_{i}")
        at[n].meta["val"] = n.meta["val"]
    copied = alone.node_copy(node, lambda n: at[n])
    copied.meta = dict(node.meta)
    alone.output((copied,))
    try:
        program = fused_program(importer().relax(TracedProgram(alone, tuple(n.name for n in at.values()), {})), name="operator")
    except Exception:  # an operator that is lowered only together with others says nothing about them
        return None
    machine = cpu_target(1, "host")
    plan = allocate(program.graph, alignment=ALIGNMENT, inputs="planned")
    if any(program.graph.tensors[t].storage not in plan.offsets for t in program.graph.inputs):
        return None  # it reads nothing of an input
    built = {symbol: unscheduled(func, machine) for symbol, func in program.kernels.items()}
    arrays = [known[n].detach().resolve_conj().contiguous().numpy() for n in inputs]
    network = Network(program.graph, plan.order, plan, built, arrays)
    network.run()
    got, expected = network.outputs()[0], want.detach().contiguous().numpy()
    error = difference(np.asarray(got), expected)
    return error if error > tolerance(str(expected.dtype)) else None
