"""ONNX control flow as memory sees it: `If`, `Loop` and `Scan`.

An `If` whose condition is known becomes the branch it takes. Any other node of control flow stays one node that reads what its subgraphs
capture; its `workspace` is an upper bound on the memory that they need beyond what the outer graph counts (operands and results):
for an `If` the larger branch, for a loop its body with the values carried into an iteration beside those carried out of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .graph import Graph
from .onnx_shapes import ShapeInference

if TYPE_CHECKING:
    import onnx

    from .from_onnx import Importer, Scope


def control_flow(importer: Importer, node: onnx.NodeProto, scope: Scope) -> None:
    """Add what stands for an `If`, `Loop` or `Scan`. Raises `FormatError` where its shapes are not known before it runs."""
    bodies = {a.name: a.g for a in node.attribute if a.type == a.GRAPH}
    wanted = {"If": ("then_branch", "else_branch")}.get(node.op_type, ("body",))
    if any(b not in bodies for b in wanted) or not node.input:
        raise importer.error(f"{ShapeInference.called(node)} lacks its operands or its {' or '.join(wanted)}")
    if node.op_type == "If":
        condition = scope.shapes.value(node.input[0])
        if condition is not None and condition.size == 1:
            _inline(importer, node, bodies["then_branch" if bool(condition.reshape(())) else "else_branch"], scope)
        else:
            _branches(importer, node, [bodies[b] for b in wanted], scope)
    else:
        _loop(importer, node, bodies["body"], scope)


def _inline(importer: Importer, node: onnx.NodeProto, branch: onnx.GraphProto, scope: Scope) -> None:
    """Put the nodes of the branch that is always taken in place of the `If`."""
    inner = scope.inside(branch)
    if len(branch.output) != len(node.output):
        raise importer.error(f"{ShapeInference.called(node)} has {len(node.output)} results, its branch {len(branch.output)}")
    importer.initializers(branch, inner)
    importer.nodes(branch, inner)
    for name, value in zip(node.output, branch.output, strict=True):
        tensor = importer.resolve(value.name, inner, "branch output")
        if name:
            importer.rename(name, tensor, value.name, inner, scope)


def _body(importer: Importer, graph: onnx.GraphProto, scope: Scope, operands: Sequence[tuple[int, tuple[int, ...]]]) -> tuple[Graph, Scope]:
    """A subgraph as a graph of its own, with what it captures as constants, given the types of its formal inputs."""
    if len(graph.input) != len(operands):
        raise importer.error(f"subgraph {graph.name!r} takes {len(graph.input)} operands and is given {len(operands)}")
    sub = importer.sub(graph.name or "body")
    inner = scope.below(graph)
    for name in captures(graph):
        if name not in scope.tensors:
            raise importer.error(f"subgraph {graph.name!r} reads {name!r}, which nothing defines before it")
        sub.define(name, inner, role="constant")
    for value, (elem_type, shape) in zip(graph.input, operands, strict=True):
        inner.shapes.define(value.name, elem_type, shape)
        inner.shapes.forget(value.name)
        sub.builder.inputs.append(sub.define(value.name, inner, role="input"))
    sub.initializers(graph, inner)
    sub.nodes(graph, inner)
    for value in graph.output:
        sub.builder.outputs.append(sub.resolve(value.name, inner, "subgraph output"))
    return sub.builder.build(), inner


def _branches(importer: Importer, node: onnx.NodeProto, graphs: Sequence[onnx.GraphProto], scope: Scope) -> None:
    workspace = 0
    types: list[list[tuple[int, tuple[int, ...]]]] = []
    for graph in graphs:
        if len(graph.output) != len(node.output):
            raise importer.error(f"{ShapeInference.called(node)} has {len(node.output)} results, its branch {len(graph.output)}")
        body, inner = _body(importer, graph, scope, ())
        types.append([inner.shapes.of(value.name) for value in graph.output])
        workspace = max(workspace, _inner_peak(body, False) - _born(body))
    for name, first, second in zip(node.output, *types, strict=True):
        if first != second:
            raise importer.error(
                f"{ShapeInference.called(node)} makes {name!r} of shape {first[1]} in one branch and {second[1]} in the other, and its "
                "condition is not known before it runs: export the model with a fixed branch"
            )
        if name:
            scope.shapes.define(name, *first)
    importer.bounded.append(node.name or node.op_type)
    importer.node(node, scope, captured(node), max(0, workspace))


def _loop(importer: Importer, node: onnx.NodeProto, graph: onnx.GraphProto, scope: Scope) -> None:
    called, shapes = ShapeInference.called(node), scope.shapes
    if not all(node.input[2 if node.op_type == "Loop" else 0 :]):
        raise importer.error(f"{called} omits a value that it carries or scans")
    ints = {a.name: list(a.ints) for a in node.attribute}
    if node.op_type == "Loop":
        names = list(node.input[2:])
        trips = shapes.value(node.input[0]) if node.input[0] else None
        count = int(trips.reshape(())) if trips is not None and trips.size == 1 else None
        carried, slices = [shapes.of(n) for n in names], []
        formal = [(7, ()), (9, ()), *carried]
        out_axes: list[int] = []
    else:
        if shapes.opsets.get("", 0) < 9:
            raise importer.error(f"{called} is of operator set 8, whose Scan has a batch axis; convert the model to 9 or later")
        many = next((a.i for a in node.attribute if a.name == "num_scan_inputs"), 0)
        at = len(node.input) - many
        if not 0 < many <= len(node.input):
            raise importer.error(f"{called} has num_scan_inputs {many} and {len(node.input)} operands")
        carried, slices, count = [shapes.of(n) for n in node.input[:at]], [], None
        axes = ints.get("scan_input_axes") or [0] * many
        out_axes = ints.get("scan_output_axes", [])
        for name, axis in zip(node.input[at:], axes, strict=False):
            elem_type, shape = shapes.of(name)
            if not -len(shape) <= axis < len(shape):
                raise importer.error(f"{called} scans axis {axis} of {name!r}, which has shape {shape}")
            count = shape[axis]
            slices.append((elem_type, tuple(d for i, d in enumerate(shape) if i != axis % len(shape))))
        formal = [*carried, *slices]
    body, inner = _body(importer, graph, scope, formal)
    results = [value.name for value in graph.output][1 if node.op_type == "Loop" else 0 :]
    if len(results) != len(node.output) or len(results) < len(carried):
        raise importer.error(f"{called} has {len(node.output)} results, its body makes {len(results)}")
    for i, (name, result) in enumerate(zip(node.output, results, strict=True)):
        elem_type, shape = inner.shapes.of(result)
        if i < len(carried) and (elem_type, shape) != carried[i]:
            raise importer.error(f"{called} carries a value of shape {carried[i][1]} that its body makes {shape}: it grows while it runs")
        if i >= len(carried):
            if count is None:
                got = shapes.override(name, None)
                if got is None:
                    raise importer.error(
                        f"{called} makes {name!r} one slice an iteration and the number of iterations is data: "
                        f"state its shape as an upper bound, from_onnx(..., shapes={{{name!r}: (...)}}), with value_info in the model"
                    )
                elem_type, shape = got
            else:
                k = i - len(carried)
                axis = out_axes[k] % (len(shape) + 1) if k < len(out_axes) else 0
                shape = (*shape[:axis], count, *shape[axis:])
        if name:
            shapes.define(name, elem_type, shape)
    kept = _born(body, range(1, 1 + len(carried)) if node.op_type == "Loop" else range(len(carried)))
    importer.bounded.append(node.name or node.op_type)
    importer.node(node, scope, captured(node), max(0, _inner_peak(body, True) - kept))


# ---- subgraphs ---------------------------------------------------------------------------------------------------------


def _inner_peak(graph: Graph, count_inputs: bool) -> int:
    """Most bytes alive at once while `graph` runs, weights and captured values apart; with its inputs if `count_inputs`."""
    counted = {s.id for s in graph.storages if s.role == "activation" or (count_inputs and s.role == "input")}
    last = {s: node.id for node in graph.nodes for s in graph.touches[node.id]}
    alive = {s for s in counted if graph.storages[s].role == "input" and s in last}
    peak = 0
    for node in graph.nodes:
        alive.update(s for s in graph.touches[node.id] if s in counted)
        peak = max(peak, sum(graph.storages[s].nbytes for s in alive) + node.workspace)
        alive -= {s for s in alive if last[s] <= node.id and s not in graph.pinned}
    return peak


def _born(graph: Graph, outputs: Iterable[int] | None = None) -> int:
    """Bytes of the outputs (all, or those at these positions) that `graph` itself makes."""
    chosen = graph.outputs if outputs is None else [graph.outputs[i] for i in outputs]
    storages = {graph.tensors[t].storage for t in chosen}
    return sum(graph.storages[s].nbytes for s in storages if graph.storages[s].role == "activation")


def _subgraphs(node: onnx.NodeProto) -> Iterable[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == attribute.GRAPH:
            yield attribute.g
        elif attribute.type == attribute.GRAPHS:
            yield from attribute.graphs


def captured(node: onnx.NodeProto) -> list[str]:
    """Outer values that the subgraphs of `node` read, each once, in order of first use."""
    return list(dict.fromkeys(name for graph in _subgraphs(node) for name in captures(graph)))


def captures(graph: onnx.GraphProto) -> list[str]:
    inside = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    inside.update(name for node in graph.node for name in node.output)
    used = [name for node in graph.node for name in (*node.input, *captured(node))]
    used += [value.name for value in graph.output]
    return [name for name in dict.fromkeys(used) if name and name not in inside]
