"""Running a graph inside its memory plan: the end-to-end proof that lifetimes and offsets are right.

Every planned storage is a window on one buffer, at its planned offset. The buffer is filled with 0xFF first, and again under each
storage the moment it dies and under each workspace the moment it begins, so whatever reads a storage too early or too late, or
shares bytes with a living one, reads NaN or -1. Outputs that equal eager's bit for bit are then evidence for order, lifetimes,
aliasing and offsets at once.

In-place ops run on their windows. An op with a native `out=` form writes its results in place; other results are computed outside
and copied in: `transient_bytes` says how much memory that took. Memory that kernels allocate inside themselves is outside too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compiler.errors import NeaptideError, PlanError, TraceError
from ..compiler.graph import Graph, Node, contiguous_strides
from .liveness import liveness
from .verify_plan import verify_plan

SAME_IN_PLACE = frozenset(("aten.native_batch_norm.default", "aten.where.self", "aten.index_select.default"))

if TYPE_CHECKING:
    import torch

    from .allocate import Plan

POISON = 0xFF
# What they make is uninitialized by definition, so the poison stays: nobody may read it.
UNINITIALIZED = frozenset(
    (
        "aten.empty.memory_format",
        "aten.empty_like.default",
        "aten.empty_strided.default",
        "aten.new_empty.default",
        "aten.new_empty_strided.default",
    )
)


@dataclass(frozen=True, eq=False)
class ArenaRun:
    """What one run in an arena gave.

    `outputs`: the graph outputs, copied out of the arena. `written`: final values of the weights and caller's inputs that the graph
    writes, by name; the originals are untouched. `arena_bytes`: size of the buffer. `transient_bytes`: most bytes that the results of
    one op took outside the arena before they were copied in. `copied`: bytes copied in, by op; `native`: number of ops that wrote
    their results in place.
    """

    outputs: tuple[torch.Tensor, ...] = field(repr=False)
    written: Mapping[str, torch.Tensor] = field(repr=False)
    arena_bytes: int
    transient_bytes: int
    copied: Mapping[str, int]
    native: int

    def matches(self, expected: Any) -> bool:
        """Whether the tensors in `expected` (any nesting) equal `outputs` bit for bit, in order."""
        return self.difference(expected) is None

    def difference(self, expected: Any) -> str | None:
        """The first way in which the tensors in `expected` are not `outputs`, None if they are equal bit for bit."""
        from ..compiler.structure import tensors_in

        tensors = [tensor for _, tensor in tensors_in(expected)]
        if len(tensors) != len(self.outputs):
            return f"{len(self.outputs)} outputs, {len(tensors)} expected"
        for i, (got, want) in enumerate(zip(self.outputs, tensors, strict=True)):
            if got.shape != want.shape or got.dtype != want.dtype:
                return f"output {i} is {got.dtype} {list(got.shape)}, expected {want.dtype} {list(want.shape)}"
            wrong = int((_bytes(got) != _bytes(want)).sum())
            if wrong:
                return f"output {i} differs in {wrong:,} of {got.numel() * got.element_size():,} bytes"
        return None


def execute_in_arena(
    graph: Graph,
    plan: Plan,
    args: Sequence[Any] | torch.Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    order: Sequence[int] | None = None,
    seed: int | None = 0,
) -> ArenaRun:
    """Run `graph` on `args` and `kwargs` (as given to `trace`, or a tensor per graph input) with storages where `plan` puts them.

    `order`: another order than the plan's, if the plan is valid for it. With `plan.inputs` `"planned"` the inputs are copied into the
    arena; with `"caller"` they stay where they are. `seed`: seeds torch's generator for the run, whose state is put back after it;
    None leaves the generator alone and draws from it. Raises `PlanError` for a plan that does not fit the graph, `TraceError` where a
    weight has no value or an op cannot run, and `NeaptideError` for inputs of another shape.
    """
    import torch

    if order is not None:
        plan = replace(plan, order=graph.check_order(order))
    verify_plan(graph, plan)
    run = _Run(graph, plan, _given_inputs(graph, args, kwargs or {}))
    with torch.no_grad(), _seeded(seed):
        return run.run()


def _given_inputs(graph: Graph, args: Sequence[Any] | torch.Tensor, kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """A tensor per graph input, checked. Raises `NeaptideError` naming the input that does not fit."""
    import torch

    from ..compiler.args import dtype_name
    from ..compiler.structure import tensors_in

    args = [args] if isinstance(args, torch.Tensor) else list(args)
    given = [tensor.detach() for _, tensor in (*tensors_in(args), *tensors_in(dict(kwargs)))]
    if len(given) != len(graph.inputs):
        raise NeaptideError(f"graph {graph.name!r} takes {len(graph.inputs)} input tensors; {len(given)} were given")
    for t, tensor in zip(graph.inputs, given, strict=True):
        wanted = graph.tensors[t]
        if tuple(tensor.shape) != wanted.shape or dtype_name(tensor.dtype) != wanted.dtype:
            raise NeaptideError(
                f"input {wanted.name or t!r} of graph {graph.name!r} is {wanted.dtype} {list(wanted.shape)}; "
                f"given was {dtype_name(tensor.dtype)} {list(tensor.shape)}. Trace the model with these inputs"
            )
    return given


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    import torch

    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class _Run:
    """One run: the arena, the value of every tensor defined so far, and what it cost."""

    def __init__(self, graph: Graph, plan: Plan, given: Sequence[torch.Tensor]):
        import torch

        self.graph = graph
        self.plan = plan
        device = next((t.device for t in given), torch.device("cpu"))
        self.arena = torch.full((plan.arena,), POISON, dtype=torch.uint8, device=device)
        self.values: dict[int, torch.Tensor] = {}
        self.written = {s for node in graph.nodes for s in node.writes}
        self.copies: dict[int, torch.UntypedStorage] = {}
        self.native = self.transient = 0
        self.copied: dict[str, int] = {}
        for t, tensor in zip(graph.inputs, given, strict=True):
            self._place_input(t, tensor)
        for t, tensor in zip(graph.inputs, given, strict=True):
            if _bytes(self.values[t]).ne(_bytes(tensor)).any():
                raise NeaptideError(f"input {graph.tensors[t].name or t!r} shares memory with another input, which was given other values")

    def run(self) -> ArenaRun:
        graph, plan = self.graph, self.plan
        ranges = liveness(graph, plan.order, inputs=plan.inputs)
        pinned = graph.pinned
        dying: dict[int, list[int]] = {}
        for s in np.flatnonzero(ranges.death > ranges.birth).tolist():
            if s not in pinned:
                dying.setdefault(int(ranges.death[s]) - 1, []).append(s)
        for step, v in enumerate(plan.order):
            node = graph.nodes[v]
            if node.workspace:
                self._poison(plan.workspace_offsets[v], node.workspace)
            self._run_node(node)
            for s in dying.get(step, ()):
                self._poison(plan.offsets[s], graph.storages[s].nbytes)
        outputs = tuple(self._value(t).resolve_conj().clone() for t in graph.outputs)
        return ArenaRun(outputs, self._written_values(), plan.arena, self.transient, dict(self.copied), self.native)

    # ---- where things are ---------------------------------------------------------------------------------------------

    def _poison(self, offset: int, nbytes: int) -> None:
        self.arena[offset : offset + nbytes].fill_(POISON)

    def _window(self, tensor: int) -> torch.Tensor:
        """The arena under `tensor`, as its shape, strides and dtype."""
        import torch

        from ..compiler.args import torch_dtype

        described = self.graph.tensors[tensor]
        dtype = torch_dtype(described.dtype)
        strides = described.strides or contiguous_strides(described.shape)
        if not self.graph.storages[described.storage].nbytes:
            return torch.empty_strided(described.shape, strides, dtype=dtype, device=self.arena.device)
        start = self.plan.offsets[described.storage] + described.offset
        if start % dtype.itemsize:
            raise PlanError(f"tensor {tensor} ({described.dtype}) would lie at byte {start}: plan with an alignment of at least 16 to run")
        empty = torch.empty(0, dtype=dtype, device=self.arena.device)
        return empty.set_(self.arena.untyped_storage(), start // dtype.itemsize, described.shape, strides)

    def _place_input(self, tensor: int, given: torch.Tensor) -> None:
        storage = self.graph.tensors[tensor].storage
        if storage in self.plan.offsets:
            self.values[tensor] = self._window(tensor)
            self.values[tensor].copy_(given)
        elif storage in self.written:
            self.values[tensor] = self._own(storage, given)
        else:
            self.values[tensor] = given

    def _own(self, storage: int, value: torch.Tensor) -> torch.Tensor:
        """`value` on this run's own copy of its storage: one copy for all tensors on it."""
        import torch

        if storage not in self.copies:
            self.copies[storage] = value.untyped_storage().clone()
        empty = torch.empty(0, dtype=value.dtype, device=value.device)
        return empty.set_(self.copies[storage], value.storage_offset(), value.shape, value.stride())

    def _value(self, tensor: int) -> torch.Tensor:
        if tensor not in self.values:
            from ..compiler.calls import require_value

            value = require_value(self.graph, tensor, "Running in an arena").detach()
            storage = self.graph.tensors[tensor].storage
            self.values[tensor] = self._own(storage, value) if storage in self.written else value
        return self.values[tensor]

    def _written_values(self) -> dict[str, torch.Tensor]:
        out: dict[str, torch.Tensor] = {}
        for tensor, value in self.values.items():
            storage = self.graph.storages[self.graph.tensors[tensor].storage]
            external = self.graph.definer[tensor] == -1 and storage.id not in self.plan.offsets
            if external and storage.id in self.written and storage.nbytes:
                out.setdefault(self.graph.tensors[tensor].name or storage.name or f"tensor {tensor}", value)
        return out

    # ---- one node -----------------------------------------------------------------------------------------------------

    def _run_node(self, node: Node) -> None:
        from ..compiler.calls import call_of, outputs_of

        graph = self.graph
        kinds = [self._kind(node, t) for t in node.outputs]
        mutates = not node.op.startswith(("onnx.", "neaptide.")) and _mutates(node.op)
        if node.op in UNINITIALIZED and kinds == ["born"]:
            self.values[node.outputs[0]] = self._window(node.outputs[0])
            return
        if node.op.startswith("onnx.") and graph.is_view(node):
            for t in node.outputs:
                source = next(i for i in node.inputs if graph.tensors[i].storage == graph.tensors[t].storage)
                self.values[t] = self._value(source).reshape(graph.tensors[t].shape)
            return
        call = call_of(graph, node, [self._value(t) for t in node.inputs])
        if call is None:
            return
        targets = {i: self._window(t) for i, (t, kind) in enumerate(zip(node.outputs, kinds, strict=True)) if kind == "born"}
        out = _native_out(node.op) if targets and len(targets) == len(kinds) and not node.writes else None
        if out is not None and len(out[1]) == len(targets):
            out[0](*call.args, **call.kwargs, **dict(zip(out[1], targets.values(), strict=True)))
            self.native += 1
            results = list(targets.values())
        else:
            results = outputs_of(call, call.function(*call.args, **call.kwargs), len(node.outputs))
        outside = 0
        for i, (t, kind, result) in enumerate(zip(node.outputs, kinds, results, strict=True)):
            target = targets.get(i)
            if target is None and kind == "written" and not mutates:
                target = self._value_window(node, t)
            if target is None:
                assert result is not None, f"node {node.id} ({node.op}) leaves an alias undefined"
                self._check_alias(node, t, result)
                self.values[t] = result
                continue
            if result is not None and target is not result:
                if target.shape != result.shape:
                    raise TraceError(f"node {node.id} ({node.op}) gave shape {list(result.shape)}; the graph says {list(target.shape)}")
                target.copy_(result)
                outside += result.untyped_storage().nbytes()
                self.copied[node.op] = self.copied.get(node.op, 0) + target.numel() * target.element_size()
            self.values[t] = target
        self.transient = max(self.transient, outside)

    def _kind(self, node: Node, tensor: int) -> str:
        """How `node` makes `tensor`: on bytes "born" now, on bytes "written" now, or as a "view" of bytes it reads."""
        storage = self.graph.tensors[tensor].storage
        if self.graph.birth[storage] == node.id:
            return "born"
        return "written" if storage in node.writes else "view"

    def _value_window(self, node: Node, tensor: int) -> torch.Tensor:
        """Where a result lies that takes over the storage of one of the node's operands."""
        import torch

        from ..compiler.args import torch_dtype

        storage = self.graph.tensors[tensor].storage
        if storage in self.plan.offsets:
            return self._window(tensor)
        base = next(self._value(t) for t in node.inputs if self.graph.tensors[t].storage == storage)
        described = self.graph.tensors[tensor]
        dtype = torch_dtype(described.dtype)
        empty = torch.empty(0, dtype=dtype, device=base.device)
        strides = described.strides or contiguous_strides(described.shape)
        return empty.set_(base.untyped_storage(), described.offset // dtype.itemsize, described.shape, strides)

    def _check_alias(self, node: Node, tensor: int, result: torch.Tensor) -> None:
        """A view, or the result of an in-place op, must lie where the graph says."""
        storage = self.graph.tensors[tensor].storage
        if storage in self.plan.offsets and result.numel() and self.graph.storages[storage].nbytes:
            expected = self.arena.data_ptr() + self.plan.offsets[storage] + self.graph.tensors[tensor].offset
            if result.data_ptr() != expected:
                raise PlanError(
                    f"output {tensor} of node {node.id} ({node.op}) lies {result.data_ptr() - expected:+,} bytes from where the "
                    "graph says: the op made new memory where the graph has an alias"
                )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    plain = tensor.detach().resolve_conj().resolve_neg().flatten()
    return plain.clone(memory_format=torch.contiguous_format).view(torch.uint8)


@cache
def _mutates(op: str) -> bool:
    from ..compiler.args import operator

    return bool(operator(op)._schema.is_mutable)


@cache
def _native_out(op: str) -> tuple[Any, tuple[str, ...]] | None:
    """The `out=` form of an op and the names of its out arguments; None where there is none, it only copies, or it may compute otherwise.

    An op whose two forms torch generates from one kernel ("structured") gives the same bits in both. Of the others some use the memory
    given as scratch, or resize it; LAPACK's ask for a layout.
    """
    import torch

    from ..compiler.args import operator

    if op.startswith("onnx."):
        return None
    function = operator(op)
    schema = function._schema
    name = f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name
    structured = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeExplicitAutogradNonFunctional")
    if schema.is_mutable or "linalg_" in name or not (structured or op in SAME_IN_PLACE):
        return None
    wanted = [(a.name, str(a.type)) for a in function._schema.arguments]
    packet = function.overloadpacket
    for name in packet.overloads():
        overload = getattr(packet, name)
        outs = tuple(a.name for a in overload._schema.arguments if a.is_out)
        rest = [(a.name, str(a.type)) for a in overload._schema.arguments if not a.is_out]
        if outs and rest == wanted:
            return None if torch.Tag.generated in overload.tags else (overload, outs)
    return None
