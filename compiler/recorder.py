"""The recorder: turns the aten ops of a run into a Graph.

It sees every op as it reaches a kernel: order, shapes, dtypes, aliasing (identity of untyped storages), writes (from the op's
schema), and the moment each storage dies (weak references). On `Hollows` nothing is computed or allocated, and everything above the
kernels (composites, autograd, optimizers) goes as in a plain run. On `Fakes` it is a dispatch mode, which some of them notice; that is
for symbolic sizes, and for what no hollow tensor stands for. Without either a real run is recorded, past no mode.

How to drive it::

    hollows = Hollows()
    recorder = Recorder("net", fakes=hollows)          # fakes=None records a real run
    for name, p in model.named_parameters():           # before the run: what is there already
        recorder.external(hollows.of(p), "parameter", name, value=p)
    x = recorder.input(hollows.of(x_real), "x")
    with borrowed(model, hollows.of), hollows.active(), recorder, recorder.scopes(model):
        y = model(x)
        recorder.phase = "backward"                    # later nodes carry this phase
        y.sum().backward()
    recorder.set_role(p.grad, "gradient", name)        # roles of storages may be set until the end, while the tensor lives
    recorder.output(y)
    graph = recorder.finish(frontend="recorder")

`finish` stops the watch on deaths, so the graph's `released` says None for what is still held then. `node_id` is the id that
the next node gets, `started` that of the last node that has started. `event` adds a node for memory that dispatch does not show.
Sizes that are symbolic go through `concrete` (default int); `sizes[storage id]` keeps the unconverted number of bytes.
`answer(func, args, kwargs)` is asked before each op whose result depends on data (see `compiler.answers`); it returns what the
op returns, or `NotImplemented`. `chosen(func, mask)` tells how many elements a mask chooses, None if nobody knows, for ops whose memory
depends on that; nodes carry it as attribute "chosen".
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch._C._autograd import _get_sequence_nr
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from .args import dtype_name, encode
from .errors import TraceError
from .fake import Fakes
from .fake_kernels import FAKE_KERNELS
from .fake_results import call_key, kernel_layout
from .graph import Graph, GraphBuilder, Ref
from .hollow import Hollows, current_handler, intercepted
from .op_info import UNMARKED_WRITES, OpInfo, op_info

TORCH_FOLDER = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
OWN_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep
REFERENCE_FILES = os.path.join(OWN_FOLDER, "reference_")  # the built-in models are models, not front end
RNG_NAME = "rng state"
DEVICE_OF = torch.ops.prim.device.default


def _code_kind(filename: str) -> str:
    if filename.startswith(OWN_FOLDER):
        return "user" if filename.startswith(REFERENCE_FILES) else "own"
    return "torch" if filename.startswith((TORCH_FOLDER, "<")) else "user"


class Recorder(TorchDispatchMode):
    """Records ops that reach a kernel; see the module's text for how to drive it. A dispatch mode only when its tensors are `Fakes`."""

    def __init__(
        self,
        name: str = "graph",
        *,
        fakes: Fakes | Hollows | None = None,
        concrete: Callable[[Any], Any] = int,
        answer: Callable[[Any, tuple, Mapping[str, Any]], Any] | None = None,
        chosen: Callable[[Any, torch.Tensor], int | None] | None = None,
        sources: bool = True,
    ):
        super().__init__()
        self.builder = GraphBuilder(name)
        self.fakes = fakes
        self.concrete = concrete
        self.answer = answer
        self.chosen = chosen
        self.phase = "forward"
        self.started = -1
        self.sizes: list[Any] = []
        self.roles: list[str] = []
        self.names: list[str] = []
        self.random_ops: dict[str, int] = {}
        self.rng_storage: int | None = None
        self.source = ""
        self._sources = sources
        self._scope: list[str] = [""]
        self._forward_places: dict[int, tuple[str, str]] = {}
        self._released: list[int | None] = []
        self._watch: dict[int, tuple[weakref.ref, int]] = {}
        self._tensors: dict[int, tuple[weakref.ref, int, int]] = {}
        self._windows: dict[tuple, int] = {}
        self._window_of: list[tuple] = []
        self._kept: list[Any] = []
        self._infos: dict[Any, OpInfo] = {}
        self._user_code: dict[Any, str] = {}
        self._watching = True
        self._handler = lambda op, args, kwargs: self.__torch_dispatch__(op, (), args, kwargs)

    # ---- what exists before the run -----------------------------------------------------------------------------

    @property
    def node_id(self) -> int:
        """Id of the next node."""
        return len(self.builder.nodes)

    def external(self, tensor: torch.Tensor, role: str, name: str = "", *, value: Any = None) -> torch.Tensor:
        """Declare a tensor whose bytes exist before the run; returns it. `value`: the real tensor, kept in `Graph.values`."""
        known = self.tensor_id(tensor)
        if known is None:
            known = self._define(tensor, role, name)
        if value is not None:
            self.builder.values.setdefault(known, value)
        return tensor

    def input(self, tensor: torch.Tensor, name: str = "", *, value: Any = None) -> torch.Tensor:
        """Declare a graph input; returns it. A tensor given twice becomes two input tensors on one storage."""
        tid = self._define(tensor, "input", name)
        self.builder.inputs.append(tid)
        if value is not None:
            self.builder.values[tid] = value
        return tensor

    def output(self, tensor: torch.Tensor) -> int:
        """Declare a graph output, in order; returns its tensor id. A tensor never seen becomes a constant."""
        tid = self._use(tensor)[0]
        self.builder.outputs.append(tid)
        return tid

    def tensor_id(self, tensor: torch.Tensor) -> int | None:
        """Id of the tensor that this object stands for now; None if it was not seen, or if its storage was exchanged."""
        known = self._tensors.get(id(tensor))
        if known is None or known[0]() is not tensor or known[2] != tensor.untyped_storage()._cdata:
            return None
        return known[1]

    def storage_id(self, tensor: torch.Tensor) -> int | None:
        """Id of the storage under `tensor`; None if it was not seen."""
        watched = self._watch.get(tensor.untyped_storage()._cdata)
        return watched[1] if watched else None

    def set_role(self, tensor: torch.Tensor, role: str, name: str | None = None) -> None:
        """Say what the storage under `tensor` is (`"gradient"`, `"optimizer_state"`, ...), and name it. Unknown storages are left alone."""
        sid = self.storage_id(tensor)
        if sid is not None:
            self.roles[sid] = role
            if name is not None:
                self.names[sid] = name

    def event(self, op: str, tensor: torch.Tensor) -> None:
        """Add a node `op` that gives birth to `tensor`, for memory that appears without a dispatched op."""
        node = self.node_id
        self.started = node
        out = self._define(tensor, "activation", "")
        self.builder.node(op, (), (out,), scope=self._scope[-1], source=self._source(sys._getframe(1)), phase=self.phase)

    # ---- where the run is ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def scopes(self, model: torch.nn.Module) -> Iterator[None]:
        """Inside: nodes carry the dotted path of the innermost module of `model` whose forward is running."""
        names = {id(module): name for name, module in model.named_modules()}
        stack = self._scope
        entered: list[bool] = []

        def enter(module: torch.nn.Module, args: Any) -> None:
            name = names.get(id(module))
            entered.append(name is not None)
            if name is not None:
                stack.append(name)

        def leave(module: torch.nn.Module, args: Any, result: Any) -> None:
            if entered and entered.pop():
                stack.pop()

        handles = (
            torch.nn.modules.module.register_module_forward_pre_hook(enter),
            torch.nn.modules.module.register_module_forward_hook(leave, always_call=True),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            del stack[1:]

    def _source(self, frame: Any) -> str:
        """`file:line` of the innermost frame that is neither torch's nor this package's front end; "" if there is none."""
        if not self._sources:
            return ""
        kinds = self._user_code
        inside = True
        while frame is not None:
            code = frame.f_code
            kind = kinds.get(code)
            if kind is None:
                kind = kinds[code] = _code_kind(code.co_filename)
            if kind == "user":
                return f"{code.co_filename}:{frame.f_lineno}"
            if kind == "own":
                if not inside:
                    return ""
            else:
                inside = False
            frame = frame.f_back
        return ""

    def _place(self, source: str) -> tuple[str, str]:
        """Module path and line of the op that is dispatched now: those running, or for a backward op those of its forward op.

        Autograd numbers its nodes; a forward op comes right after the making of its node, a backward op inside that node's run.
        """
        scope = self._scope[-1]
        if self.phase == "backward" and not scope and not source:
            node = torch._C._current_autograd_node()
            return ("", "") if node is None else self._forward_places.get(node._sequence_nr(), ("", ""))
        if torch.is_grad_enabled():
            self._forward_places.setdefault(_get_sequence_nr() - 1, (scope, source))
        return scope, source

    # ---- the dispatch -------------------------------------------------------------------------------------------

    def __enter__(self) -> Recorder:
        if isinstance(self.fakes, Fakes):
            return super().__enter__()
        self._interception = intercepted(self._handler)
        self._interception.__enter__()
        return self

    def running(self) -> bool:
        """Whether ops of this thread are being recorded here now."""
        return current_handler() is self._handler if not isinstance(self.fakes, Fakes) else _get_current_dispatch_mode() is self

    def __exit__(self, *error: Any) -> None:
        if isinstance(self.fakes, Fakes):
            super().__exit__(*error)
        else:
            self._interception.__exit__(*error)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No wrapper around dispatch: it would import the compiler stack and cost time on every op."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        info = self._infos.get(func)
        if info is None:
            info = self._infos[func] = op_info(func)
        if info.dropped:
            if func is DEVICE_OF and isinstance(args[0], FakeTensor):
                return args[0].fake_device
            return func(*args, **kwargs)
        inputs: list[int] = []
        refs: dict[int, Ref] = {}
        foreign: dict[int, torch.Tensor] = {}

        def ref(tensor: torch.Tensor) -> Ref:
            tid, stand_in = self._use(tensor, lifted=info.lift)
            if stand_in is not tensor:
                foreign[id(tensor)] = stand_in
            found = refs.get(tid)
            if found is None:
                found = refs[tid] = Ref(len(inputs))
                inputs.append(tid)
            return found

        attrs = {
            "args": [encode(a, ref, self.concrete) for a in args],
            "kwargs": {k: encode(v, ref, self.concrete) for k, v in kwargs.items()},
        }
        if foreign:
            args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: foreign.get(id(t), t), (args, kwargs))
        node = self.started = len(self.builder.nodes)
        scope, source = self._place(self._source(sys._getframe(1)))
        self.source = source
        if info.masked and self.chosen is not None:
            given = {id(t): t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
            attrs["chosen"] = [self.chosen(func, t) for t in given.values() if t.dtype in (torch.bool, torch.uint8)]
        out = self.answer(func, args, kwargs) if info.dependent and self.answer is not None else NotImplemented
        if out is NotImplemented:
            out = self._run(info, func, args, kwargs, attrs, inputs)
        writes = self._written(info, args, kwargs)
        outputs = self._results(info, out, attrs)
        self.builder.node(
            "aten.lift_fresh_copy.default" if info.lift else info.name,
            inputs,
            outputs,
            writes=writes,
            attrs=attrs,
            scope=scope,
            source=source,
            phase=self.phase,
        )
        assert node == len(self.builder.nodes) - 1, "an op was recorded inside another"
        return out

    def _run(self, info: OpInfo, func: Any, args: tuple, kwargs: Any, attrs: dict[str, Any], inputs: Sequence[int]) -> Any:
        """What the op returns: of itself in a real run, else as the kernels of fakes or of hollow tensors say."""
        if self.fakes is None:
            return func(*args, **kwargs)
        if isinstance(self.fakes, Hollows):
            key = call_key(func, attrs, [self._window_of[t] for t in inputs]) if info.plain or info.in_place else None
            return self.fakes.run(info, func, args, kwargs, key)
        kernel: Any = FAKE_KERNELS.get(info.name, func)
        return kernel_layout(info.name, args, kernel(*args, **kwargs))

    def _written(self, info: OpInfo, args: tuple, kwargs: Mapping[str, Any]) -> tuple[int, ...]:
        found: list[int] = []
        positions = info.writes
        if self._writes_unmarked(info, args):
            positions = tuple((i, "") for i in UNMARKED_WRITES[info.name][0])
        for i, name in positions:
            value = args[i] if i < len(args) else kwargs.get(name)
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    sid = self._watch[storage._cdata][1]
                    self._resize(sid, storage.nbytes())
                    if sid not in found:
                        found.append(sid)
        if info.random and not self._is_deterministic(info, args, kwargs):
            if self.rng_storage is None:
                self.rng_storage = self._add_storage(0, "buffer", RNG_NAME)
            found.append(self.rng_storage)
            self.random_ops[info.name] = self.random_ops.get(info.name, 0) + 1
        return tuple(found)

    @staticmethod
    def _writes_unmarked(info: OpInfo, args: tuple) -> bool:
        """True for an op that writes arguments which its schema does not mark, as this call's flag says."""
        unmarked = UNMARKED_WRITES.get(info.name)
        return unmarked is not None and bool(args[unmarked[1]])

    @staticmethod
    def _is_deterministic(info: OpInfo, args: tuple, kwargs: Mapping[str, Any]) -> bool:
        """True for an op with a dropout probability of 0."""
        if info.dropout is None:
            return False
        i, name = info.dropout
        return not (args[i] if i < len(args) else kwargs.get(name, 0.0))

    def _results(self, info: OpInfo, out: Any, attrs: dict[str, Any]) -> tuple[int, ...]:
        if isinstance(out, torch.Tensor):
            return (self._define(out, "activation", ""),)
        if isinstance(out, list | tuple):
            return tuple(
                self._define(t, "activation", "")
                for item in out
                for t in (item if isinstance(item, list | tuple) else (item,))
                if isinstance(t, torch.Tensor)
            )
        return ()

    # ---- tensors and storages -----------------------------------------------------------------------------------

    def _use(self, tensor: torch.Tensor, *, lifted: bool = False) -> tuple[int, torch.Tensor]:
        """Id of a tensor that an op reads, and the tensor to give to the op."""
        tid = self.tensor_id(tensor)
        if tid is not None:
            return tid, tensor
        foreign = self.fakes is not None and not lifted and self.storage_id(tensor) is None
        stand_in = self.fakes.of(tensor) if foreign and self.fakes is not None else tensor
        if stand_in is not tensor:
            tid = self.tensor_id(stand_in)
            return (self._constant(stand_in, None if tensor.is_meta else tensor) if tid is None else tid), stand_in
        if lifted and self.fakes is not None:
            return self._constant(tensor, tensor), tensor
        if lifted:
            return self._constant(torch.empty_like(tensor, device="meta"), tensor.clone()), tensor
        sid = self.storage_id(tensor)
        if sid is None:
            return self._constant(tensor, tensor.detach().clone() if self.fakes is None else self.fakes.value(tensor)), tensor
        known = self._windows.get((sid, *self._window(tensor)))
        if known is None:
            known = self._alias(tensor, sid)
        self._tensors[id(tensor)] = (weakref.ref(tensor), known, tensor.untyped_storage()._cdata)
        return known, tensor

    def _constant(self, tensor: torch.Tensor, value: Any) -> int:
        """A tensor made where no op is seen; kept alive so that its identity stays its own."""
        self._kept.append(tensor)
        tid = self._define(tensor, "constant", "")
        if value is not None:
            with torch._C._DisableTorchDispatch():
                self.builder.values[tid] = value.detach()
        return tid

    def _alias(self, tensor: torch.Tensor, sid: int) -> int:
        """A window on a known storage that no op made (autograd unpacks such): an `as_strided` of the latest tensor there."""
        dtype, shape, strides, offset = self._window(tensor)
        base = next((t for t in reversed(self.builder.tensors) if t.storage == sid and t.dtype == dtype), None)
        if base is None:
            raise TraceError(f"a {dtype} window appeared on storage {sid} that holds no {dtype} tensor, and no op made it")
        itemsize = tensor.element_size()
        attrs = {"args": [Ref(0), list(shape), list(strides), offset // itemsize], "kwargs": {}}
        self.started = self.node_id
        out = self._define(tensor, "activation", "")
        self.builder.node("aten.as_strided.default", (base.id,), (out,), attrs=attrs, scope=self._scope[-1], phase=self.phase)
        return out

    def _window(self, tensor: torch.Tensor) -> tuple[str, tuple[int, ...], tuple[int, ...], int]:
        shape: tuple[Any, ...] = tuple(tensor.shape)
        strides: tuple[Any, ...] = tensor.stride()
        offset: Any = tensor.storage_offset()
        if self.fakes is not None and self.fakes.mode.shape_env is not None:
            concrete = self.concrete
            shape, strides, offset = tuple(map(concrete, shape)), tuple(map(concrete, strides)), concrete(offset)
        return dtype_name(tensor.dtype), shape, strides, offset * tensor.element_size()

    def _define(self, tensor: torch.Tensor, role: str, name: str) -> int:
        """A new tensor id for this object, on its storage, which is added when it is new."""
        storage = tensor.untyped_storage()
        cdata = storage._cdata
        watched = self._watch.get(cdata)
        if watched is None:
            sid = self._add_storage(storage.nbytes(), role, name)
            self._watch[cdata] = (weakref.ref(storage, lambda _, c=cdata, s=sid: self._died(c, s)), sid)
        else:
            sid = watched[1]
        dtype, shape, strides, offset = window = self._window(tensor)
        tid = self.builder.tensor(shape, dtype, sid, offset=offset, strides=strides, name=name)
        self._tensors[id(tensor)] = (weakref.ref(tensor), tid, cdata)
        self._windows[(sid, *window)] = tid
        self._window_of.append(window)
        return tid

    def _add_storage(self, nbytes: Any, role: str, name: str) -> int:
        self.sizes.append(nbytes)
        self.roles.append(role)
        self.names.append(name)
        self._released.append(None)
        return self.builder.storage(0, role, name)

    def _resize(self, sid: int, nbytes: Any) -> None:
        """An op may grow the storage it writes (`out=`, `resize_`): the largest size counts."""
        if nbytes is not self.sizes[sid] and self.concrete(nbytes) > self.concrete(self.sizes[sid]):
            self.sizes[sid] = nbytes

    def _died(self, cdata: int, sid: int) -> None:
        if self._watching:
            self._released[sid] = max(self.started, 0)
            self._watch.pop(cdata, None)

    # ---- the end ------------------------------------------------------------------------------------------------

    def finish(self, *, check: bool = True, **meta: Any) -> Graph:
        """The graph of what was recorded, with `meta`; the recorder is spent. Raises `GraphError` if it is not well formed."""
        self._watching = False
        builder = self.builder
        for sid, storage in enumerate(builder.storages):
            builder.storages[sid] = type(storage)(sid, int(self.concrete(self.sizes[sid])), self.roles[sid], self.names[sid])
        builder.released = self._released
        builder.meta = {**meta, **builder.meta}
        if self.random_ops:
            builder.meta["random_ops"] = self.random_ops
        self._kept.clear()
        self._tensors.clear()
        self._watch.clear()
        return builder.build(check=check)
