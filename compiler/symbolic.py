"""One recording with symbolic sizes: how many bytes each storage has, as expressions in batch, length or resolution.

Sizes that the caller names are symbols of a `ShapeEnv`; parameters and all other sizes stay numbers. Each time the run asks
something about a symbol whose answer is not the same for all its values (`B < 16`, when a kernel is chosen), the answer for the
sizes at hand is taken and kept as a guard: the recording holds wherever all guards do.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch._guards import Source
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_impls import register_op_impl
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from .errors import TraceError
from .fake import Fakes, borrowed
from .graph import Graph
from .recorder import Recorder
from .structure import map_tensors, tensors_in
from .trace import declare_inputs, declare_weights, user_errors
from .weightless import eager_branches

if TYPE_CHECKING:
    import sympy

# Per tensor of the arguments, by identity: which of its dimensions is which symbol.
Dynamic = Mapping[int, Mapping[int, str]]


@dataclass(frozen=True)
class SymbolicRecording:
    """`graph` as it is at the sizes `at`; `nbytes`: bytes of each of its storages, everywhere where all `guards` hold."""

    graph: Graph
    nbytes: tuple[sympy.Expr, ...]
    guards: tuple[Any, ...]
    at: Mapping[str, int]


@dataclass(frozen=True)
class _Named(Source):
    """Where a symbol comes from, for torch's messages."""

    symbol: str

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.symbol


class _Sizes:
    """The symbols of one recording."""

    def __init__(self, at: Mapping[str, int], symbols: Mapping[str, sympy.Symbol]):
        self.at = at
        self.symbols = symbols
        self.env = ShapeEnv(duck_shape=False)
        self.ints: dict[str, Any] = {}
        self._inner: dict[Any, sympy.Symbol] = {}
        for name, size in at.items():
            if size < 2:  # torch takes 0 and 1 for numbers: broadcasting and contiguity differ there
                self.ints[name] = size
                continue
            source = _Named(name)
            symbol = self.env.create_symbol(size, source, DimDynamic.DYNAMIC)
            self._inner[symbol] = symbols[name]
            self.ints[name] = self.env.create_symintnode(symbol, hint=size, source=source)

    def expression(self, size: Any) -> sympy.Expr:
        """A number of bytes over the caller's symbols."""
        import sympy

        if not isinstance(size, torch.SymInt):
            return sympy.Integer(int(size))
        found = self.env.simplify(size.node.expr).xreplace(self._inner)
        unknown = found.free_symbols - set(self.symbols.values())
        if unknown:
            raise TraceError(f"a size depends on the values of tensors ({', '.join(map(str, unknown))}), so it has no formula in sizes")
        return found

    def guards(self) -> tuple[Any, ...]:
        """What was taken for granted, over the caller's symbols, without repeats."""
        import sympy

        found: list[Any] = [sympy.Eq(self.symbols[n], v) if v < 2 else sympy.Ge(self.symbols[n], 2) for n, v in self.at.items()]
        found += [sympy.Eq(inner, value) for inner, value in self.env.replacements.items() if inner in self._inner]
        found += [guard.expr for guard in self.env.guards]
        return tuple(dict.fromkeys(g.xreplace(self._inner) for g in found if g is not sympy.true))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside: torch does not print the errors of fake kernels that it raises."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@register_op_impl(torch.ops.aten.constant_pad_nd.default)
def _padded(mode: FakeTensorMode, func: Any, x: torch.Tensor, pad: Sequence[Any], value: Any = 0) -> Any:
    """Padding of symbolic sizes; torch's own kernel takes every size for a number, and so fixes it."""
    if not x._has_symbolic_sizes_strides:
        return NotImplemented
    shape = list(x.shape)
    for i in range(len(pad) // 2):
        shape[-1 - i] += pad[2 * i] + pad[2 * i + 1]
    with mode:
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=suggest_memory_format(x))


def concrete(value: Any) -> Any:
    """The number that a symbolic size stands for in this recording, without a guard."""
    return value.node.hint if isinstance(value, torch.SymInt) else int(value)


def record_symbolic(
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    dynamic: Dynamic,
    at: Mapping[str, int],
    symbols: Mapping[str, sympy.Symbol],
    *,
    mode: str = "inference",
    loss: Any = None,
    optimizer: Any = None,
) -> SymbolicRecording:
    """Record `model(*args, **kwargs)` once, with the dimensions in `dynamic` symbolic and `at[name]` as the size at hand.

    `symbols`: the sympy symbol for each name. `mode`, `loss`, `optimizer` as in `trace`. Raises `TraceError` when the model cannot
    be recorded so: an op without symbolic shapes, sizes that depend on data.
    """
    sizes = _Sizes(at, symbols)
    fakes = Fakes(FakeTensorMode(allow_non_fake_inputs=True, shape_env=sizes.env, static_shapes=True))

    def stand_in(tensor: torch.Tensor) -> torch.Tensor:
        dims = dynamic.get(id(tensor))
        return fakes.of(tensor) if dims is None else symbolic_like(tensor, dims, sizes.ints, fakes.mode)

    with user_errors(model), quiet():
        fake_args, fake_kwargs = map_tensors(stand_in, list(args)), map_tensors(stand_in, dict(kwargs))
        if mode == "training":
            graph, nbytes = _training_step(model, fake_args, fake_kwargs, fakes, loss, optimizer)
        else:
            graph, nbytes = _inference(model, fake_args, fake_kwargs, fakes)
        return SymbolicRecording(graph, tuple(map(sizes.expression, nbytes)), sizes.guards(), dict(at))


def _inference(model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], fakes: Fakes) -> tuple[Graph, list[Any]]:
    """The graph of one call, and the sizes of its storages, some symbolic."""
    recorder = Recorder(type(model).__name__, fakes=fakes, concrete=concrete, sources=False)
    declare_weights(recorder, model)
    declare_inputs(recorder, args, kwargs, model)
    with borrowed(model, fakes.of), torch.no_grad(), eager_branches():
        model.eval()
        with fakes.mode, recorder, recorder.scopes(model):
            result = model(*args, **kwargs)
    for _, tensor in tensors_in(result):
        recorder.output(tensor)
    return recorder.finish(frontend="recorder", mode="inference"), recorder.sizes


def _training_step(
    model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], fakes: Fakes, loss: Any, optimizer: Any
) -> tuple[Graph, list[Any]]:
    """The same of one training step. Storages carry their number as a name past the one rewrite that joins some of them."""
    from .in_place_gradients import accumulate_in_place
    from .training import TrainingLoop, TrainingRecorder, record_step

    recorder = TrainingRecorder(type(model).__name__, fakes=fakes, concrete=concrete)
    graph = record_step(recorder, model, args, kwargs, TrainingLoop(loss), optimizer)
    numbered = replace(graph, storages=tuple(replace(s, name=str(s.id)) for s in graph.storages))
    joined = accumulate_in_place(numbered, recorder.mergeable)
    return joined, [recorder.sizes[int(s.name)] for s in joined.storages]


def symbolic_like(tensor: torch.Tensor, dims: Mapping[int, str], ints: Mapping[str, Any], mode: FakeTensorMode) -> torch.Tensor:
    """A fake tensor like `tensor`, dense and in the same order of strides, whose dimensions `dims` have the sizes `ints`."""
    order = sorted(range(tensor.dim()), key=lambda d: (-tensor.stride(d), d))
    shape = [ints[dims[d]] if d in dims else tensor.shape[d] for d in range(tensor.dim())]
    with mode:
        dense = torch.empty([shape[d] for d in order], dtype=tensor.dtype, device="cpu")
    back = [order.index(d) for d in range(tensor.dim())]
    with mode, torch.no_grad():
        return dense if back == list(range(tensor.dim())) else dense.permute(back)
