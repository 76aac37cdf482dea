"""Answers to questions about values that fake tensors do not hold: `.item()`, `nonzero`, boolean masks.

An exact answer comes first: when a value depends only on tensors whose values are known (real inputs, weights, constants), the
few recorded ops behind it are run for real. Where that is not possible and `bounds` is set, an op whose output size depends on
data gets the largest size it can have. Every answer is written down in `assumptions`, with the op and the user's line, because
the graph holds for such data only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from .args import call_args, operator
from .bounds import BOUNDS, is_mask
from .errors import TraceError
from .graph import Node
from .hollow import Hollows, hollow, unseen
from .op_info import PACKED
from .structure import map_tensors, tensors_in

if TYPE_CHECKING:
    from .recorder import Recorder

SLICE_NODES = 2_000
SLICE_ELEMENTS = 1 << 22
BOUNDED_ANSWERS = 2_000
# Ops whose result holds only values of their first argument, or of all of them (cat).
SELECTIONS = frozenset(
    f"aten.{name}"
    for name in (
        "index.Tensor", "select.int", "slice.Tensor", "view.default", "_unsafe_view.default", "expand.default", "clone.default",
        "gather.default", "masked_select.default", "unsqueeze.default", "squeeze.dim", "permute.default",
        "t.default", "transpose.int", "detach.default", "alias.default", "cat.default", "unbind.int",
        "split.Tensor", "split_with_sizes.default", "index_select.default", "flip.default", "repeat.default",
    )
)  # fmt: skip


# Ops whose result is as large as masks say, whatever their first argument holds.
CHOOSERS = frozenset(("aten.index.Tensor", "aten.masked_select.default", PACKED))


class Unknown(Exception):
    """A value cannot be computed from what is known; the text says what is missing."""


class Answers:
    """Answers for the questions of one recorder: give it `answer=answers.ask`, and set `answers.recorder` to it.

    `bounds`: whether upper bounds may be used. `assumptions`: what the graph then rests on, as `{"op", "at", "what"}`.
    """

    def __init__(self, *, bounds: bool = False):
        self.bounds = bounds
        self.recorder: Recorder
        self.assumptions: list[dict[str, str]] = []
        self._bounds_given = 0
        self._indexed = 0
        self._makers: dict[int, list[int]] = {}
        self._definer: dict[int, int] = {}

    @property
    def bounded(self) -> bool:
        """Whether some size in the graph is an upper bound."""
        return self._bounds_given > 0

    def ask(self, func: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """What `func(*args, **kwargs)` returns, as fakes or a number; `NotImplemented` when there is no answer."""
        if str(func) == "aten.index.Tensor" and not any(is_mask(i) for i in args[1]):
            return NotImplemented
        try:
            result = self._run(func, args, kwargs)
        except Unknown:
            if not self.bounds or str(func) not in BOUNDS or self._bounds_given >= BOUNDED_ANSWERS:
                return NotImplemented
            self._bounds_given += 1
            self._note(func, "the size of the result is an upper bound")
            return self._bound(func, args, kwargs)
        if isinstance(result, bool | int | float | complex):
            self._note(func, f"{result!r}, computed from known values")
            return result
        sizes = ", ".join(str(list(t.shape)) for _, t in tensors_in(result))
        self._note(func, f"result of size {sizes}, computed from known values")
        made = map_tensors(self._stand_in, result)
        return (made[0], result[1]) if str(func) == PACKED else made  # recurrent layers read the batch sizes themselves

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """The values of a recorded tensor, which Python asks for. Raises `DataDependentOutputException` where they are not known."""
        known = self.recorder.tensor_id(tensor)
        op = torch.ops.aten._local_scalar_dense.default
        try:
            with torch._C._DisableTorchDispatch(), torch.no_grad(), unseen():
                value = self._unrecorded(tensor) if known is None else self._evaluate([known])[known]
                value = value.detach().clone()
        except Unknown as error:
            raise DataDependentOutputException(op) from error
        self._note(op, f"values of size {list(value.shape)}, computed from known values")
        return value

    def chosen(self, func: Any, mask: torch.Tensor) -> int | None:
        """How many elements a mask given to `func` chooses; None, and a note, where that is not known."""
        t = self.recorder.tensor_id(mask)
        try:
            with torch._C._DisableTorchDispatch(), torch.no_grad(), unseen():
                value = self._unrecorded(mask) if t is None else self._evaluate([t])[t]
                return int(value.count_nonzero())
        except Unknown:
            self._note(func, "its mask is taken to choose every element")
            return None

    def _unrecorded(self, tensor: torch.Tensor) -> torch.Tensor:
        """What a tensor holds that no op has touched yet."""
        fakes = self.recorder.fakes
        value = fakes.value(tensor) if fakes is not None else tensor
        if value is None:
            raise Unknown("a tensor that was not recorded")
        return value

    def _stand_in(self, real: torch.Tensor) -> torch.Tensor:
        """A tensor laid out as `real`, of the kind that is recorded."""
        if isinstance(self.recorder.fakes, Hollows):
            return hollow(real.dtype, real.shape, real.stride())
        return torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device=real.device)

    def _bound(self, func: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """The largest result that `func` can have."""
        bound = BOUNDS[str(func)]
        fakes = self.recorder.fakes
        if not isinstance(fakes, Hollows):
            return bound(self, func, *args, **kwargs)
        with fakes.mode:
            result = bound(self, func, *args, **kwargs)
        return map_tensors(lambda t: hollow(t.dtype, t.shape, t.stride()), result)

    def _note(self, func: Any, what: str) -> None:
        entry = {"op": str(func), "at": self.recorder.source, "what": what}
        if entry not in self.assumptions[-8:]:
            self.assumptions.append(entry)

    def _run(self, func: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """The real result, from real values of the tensors in the call."""
        if str(func) in CHOOSERS and args[0].dtype not in (torch.bool, torch.uint8):
            shape, dtype = args[0].shape, args[0].dtype
            args = (None, *args[1:])
        else:
            shape = dtype = None
        ids: dict[int, int] = {}
        for _, t in tensors_in((args, kwargs)):
            known = self.recorder.tensor_id(t)
            if known is None:
                raise Unknown("a tensor that was not recorded")
            ids[id(t)] = known
        with torch._C._DisableTorchDispatch(), torch.no_grad():
            values = self._evaluate(list(ids.values()))
            args, kwargs = map_tensors(lambda t: values[ids[id(t)]], (args, dict(kwargs)))
            if shape is not None:  # only the size is asked for, which the masks decide
                args = (torch.zeros((), dtype=dtype).expand(shape), *args[1:])
            return func(*args, **kwargs)

    def _evaluate(self, wanted: Sequence[int]) -> dict[int, torch.Tensor]:
        """Values of recorded tensors: the nodes behind them run once, on copies of what they write over."""
        builder = self.recorder.builder
        nodes = self._slice(wanted)
        written = {s for node in nodes for s in node.writes}
        values: dict[int, torch.Tensor] = {}
        owner: dict[int, int] = {}

        def value(t: int) -> torch.Tensor:
            if t not in values:
                known = builder.values.get(t)
                if known is None:
                    raise Unknown(f"tensor {t} has no value")
                s = builder.tensors[t].storage
                if s in written:
                    if owner.setdefault(s, t) != t:
                        raise Unknown(f"storage {s} is written and has two names")
                    known = known.clone()
                values[t] = known
            return values[t]

        for node in nodes:
            try:
                args, kwargs = call_args(node.attrs, [value(t) for t in node.inputs])
                results = [t for _, t in tensors_in(operator(node.op)(*args, **kwargs))]
            except (TraceError, RuntimeError) as error:
                raise Unknown(str(error)) from error
            values.update(zip(node.outputs, results, strict=True))
        return {t: value(t) for t in wanted}

    def distinct(self, tensor: torch.Tensor) -> int:
        """At most how many different values a recorded tensor holds."""
        self._index()
        t = self.recorder.tensor_id(tensor)
        values = None if t is None else self._possible(t)
        return tensor.numel() if values is None else min(tensor.numel(), len(values))

    def _possible(self, t: int) -> set[Any] | None:
        """Values that a tensor may hold: its own if they are known, else those of what it was selected from; None if unknown."""
        with contextlib.suppress(Unknown), torch._C._DisableTorchDispatch(), torch.no_grad():
            return set(self._evaluate([t])[t].unique().tolist())
        builder = self.recorder.builder
        if t not in self._definer or len(self._makers.get(builder.tensors[t].storage, ())) > 1:
            return None
        node = builder.nodes[self._definer[t]]
        if node.op == "aten.remainder.Scalar" and isinstance(node.attrs["args"][1], int):
            n = abs(node.attrs["args"][1])
            return set(range(n)) if n <= SLICE_NODES else None
        if node.op == "aten.full_like.default":
            return {node.attrs["args"][1]}
        if node.op not in SELECTIONS:
            return None
        found: set[Any] = set()
        for part in node.inputs if node.op == "aten.cat.default" else node.inputs[:1]:
            values = self._possible(part)
            if values is None:
                return None
            found |= values
        return found

    def _slice(self, wanted: Sequence[int]) -> list[Node]:
        """Nodes behind the tensors `wanted`, through definitions and earlier writes, in recorded order."""
        self._index()
        builder = self.recorder.builder
        needed: set[int] = set()
        elements = 0
        stack = [(t, len(builder.nodes)) for t in wanted]
        while stack:
            t, before = stack.pop()
            behind = [v for v in self._makers.get(builder.tensors[t].storage, ()) if v < before]
            if t in self._definer:
                behind.append(self._definer[t])
            elif not behind and t not in builder.values:
                raise Unknown(f"tensor {t} has no value")
            for v in behind:
                if v in needed:
                    continue
                node = builder.nodes[v]
                if self.recorder.rng_storage in node.writes:
                    raise Unknown(f"node {v} ({node.op}) is random")
                needed.add(v)
                elements += sum(builder.tensors[o].numel for o in node.outputs)
                if len(needed) > SLICE_NODES or elements > SLICE_ELEMENTS:
                    raise Unknown("too many ops stand behind the value")
                stack.extend((i, v) for i in node.inputs)
        return [builder.nodes[v] for v in sorted(needed)]

    def _index(self) -> None:
        """Bring up to date: the node that defines each tensor; the nodes that give birth to or write each storage."""
        builder = self.recorder.builder
        tensors = builder.tensors
        for node in builder.nodes[self._indexed :]:
            read = {tensors[t].storage for t in node.inputs}
            for t in node.outputs:
                self._definer[t] = node.id
            for s in {*node.writes, *({tensors[t].storage for t in node.outputs} - read)}:
                self._makers.setdefault(s, []).append(node.id)
        self._indexed = len(builder.nodes)
