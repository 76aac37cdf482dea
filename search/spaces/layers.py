"""Graphs written layer by layer, without torch, equal to what `neaptide.trace(module.eval(), (x,))` records of the same layers.

`LayerGraph` has one method per layer. A method takes handles (integers that earlier methods gave; `net.input` is the first), the
layer's options, and the module path that runs it, `scope`, which also names its weights. It appends the operators that eager CPU
inference of that layer dispatches and gives the handle of the result:

    net = LayerGraph("Net", (1, 3, 32, 32))
    x = net.conv2d(net.input, 16, 3, "stem.conv", stride=2)      # nn.Conv2d(3, 16, 3, 2, 1, bias=False)
    x = net.batch_norm(x, "stem.norm")
    x = net.relu(x, "stem.act", inplace=True)
    x = net.flatten(net.global_avg_pool(x, "pool"), "")          # torch.flatten in the forward of the root module, whose path is ""
    graph = net.build(net.linear(x, 10, "classifier"))

Weights come first in the tables, parameters before buffers, each in the order of the calls: that of the trace when a module registers
its layers in the order in which it runs them. A layer whose module exists and never runs is not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ...compiler.errors import SourceError
from ...compiler.graph import Atom, Graph, Node, Ref, Storage, Tensor, contiguous_strides

_REFS = tuple(Ref(i) for i in range(16))
_ONE = {"args": [_REFS[0]], "kwargs": {}}
_TWO = {"args": [_REFS[0], _REFS[1]], "kwargs": {}}
_TWICE = {"args": [_REFS[0], _REFS[0]], "kwargs": {}}
_THREE = {"args": [_REFS[0], _REFS[1], _REFS[2]], "kwargs": {}}
_RELU6 = {"args": [_REFS[0], 0.0, 6.0], "kwargs": {}}
_EMPTY = {"args": [[0]], "kwargs": {"dtype": Atom("dtype", "uint8"), "layout": Atom("layout", "strided"), "device": Atom("device", "cpu")}}
_GLOBAL_POOL = {"args": [_REFS[0], [-1, -2], True], "kwargs": {}}
_TO_END = 2**63 - 1
_FIRST_BUFFER = -(1 << 40)


@lru_cache(maxsize=4096)
def _conv_attrs(bias: bool, stride: int, padding: tuple[int, int], dilation: int, groups: int) -> dict[str, Any]:
    return {
        "args": [
            *_REFS[:2], _REFS[2] if bias else None, [stride] * 2, list(padding), [dilation] * 2, False, [0, 0], groups,
        ],
        "kwargs": {},
    }  # fmt: skip


@lru_cache(maxsize=64)
def _norm_attrs(affine: bool, momentum: float, eps: float) -> dict[str, Any]:
    weights = _REFS[1:5] if affine else (None, None, *_REFS[1:3])
    return {"args": [_REFS[0], *weights, False, momentum, eps], "kwargs": {}}


@lru_cache(maxsize=4096)
def _attrs(*args: Any) -> dict[str, Any]:
    """Attributes of a call whose arguments are hashable; tuples stand for lists."""
    return {"args": [list(a) if isinstance(a, tuple) else a for a in args], "kwargs": {}}


class LayerGraph:
    """A graph in the making. `name`: the root module's class; `input_shape`: batch included; weights and activations are float32.

    Handles number the graph input (`input`, 0) and every tensor that the layers made; `shape(handle)` gives a tensor's shape.
    Weights are referred to by negative codes until `build` knows how many there are and numbers all.
    """

    input = 0

    def __init__(self, name: str, input_shape: Sequence[int]):
        self.name = name
        self._parameters: list[tuple[str, tuple[int, ...]]] = []
        self._buffers: list[tuple[str, tuple[int, ...], str]] = []
        self._nodes: list[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...], dict[str, Any], str]] = []
        self._shapes: list[tuple[int, ...]] = []
        self._tensors: list[tuple[str, int, int, tuple[int, ...] | None]] = []
        self._nbytes: list[int] = []
        self._made(tuple(input_shape))

    def shape(self, x: int) -> tuple[int, ...]:
        """Shape of the tensor behind handle `x`."""
        return self._shapes[x]

    # ---- layers with weights --------------------------------------------------------------------------------------

    def conv2d(
        self, x: int, channels: int, kernel: int | tuple[int, int], scope: str, *,
        stride: int = 1, padding: int | None = None, dilation: int = 1, groups: int = 1, bias: bool = False,
    ) -> int:  # fmt: skip
        """`nn.Conv2d(c, channels, kernel, stride, padding, dilation, groups, bias)`; padding None keeps the size at stride 1.

        Raises `SourceError` when the groups do not divide the channels.
        """
        n, c, h, w = self._shapes[x]
        if c % groups or channels % groups:
            raise SourceError(f"{scope}: a convolution of {c} to {channels} channels cannot have {groups} groups")
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        down, across = dilation * (high - 1), dilation * (wide - 1)
        pads = (down // 2, across // 2) if padding is None else (padding, padding)
        inputs = (x, self._parameter(f"{scope}.weight", (channels, c // groups, high, wide)))
        if bias:
            inputs += (self._parameter(f"{scope}.bias", (channels,)),)
        out = self._made((n, channels, (h + 2 * pads[0] - down - 1) // stride + 1, (w + 2 * pads[1] - across - 1) // stride + 1))
        self._nodes.append(
            ("aten.convolution.default", inputs, (out,), (), _conv_attrs(bias, stride, pads, dilation, groups), scope),
        )
        return out

    def batch_norm(self, x: int, scope: str, *, affine: bool = True, momentum: float = 0.1, eps: float = 1e-5) -> int:
        """`nn.BatchNorm2d(c, eps, momentum, affine)` with running statistics, in inference."""
        shape = self._shapes[x]
        c = shape[1:2]
        inputs = (x,)
        if affine:
            inputs += (self._parameter(f"{scope}.weight", c), self._parameter(f"{scope}.bias", c))
        inputs += (self._buffer(f"{scope}.running_mean", c), self._buffer(f"{scope}.running_var", c))
        self._buffer(f"{scope}.num_batches_tracked", (), "int64")
        reserve = self._made((0,), "uint8")
        outputs = (self._made(shape), self._made((0,)), self._made((0,)))
        self._nodes.append(("aten.empty.memory_format", (), (reserve,), (), _EMPTY, scope))
        self._nodes.append(("aten.native_batch_norm.default", inputs, outputs, (), _norm_attrs(affine, momentum, eps), scope))
        return outputs[0]

    def linear(self, x: int, features: int, scope: str, *, bias: bool = True) -> int:
        """`nn.Linear(f, features, bias)` on a tensor of shape (n, f)."""
        n, f = self._shapes[x]
        weight = self._parameter(f"{scope}.weight", (features, f))
        turned = self._window((f, features), "float32", weight, 0, (1, f))
        self._nodes.append(("aten.t.default", (weight,), (turned,), (), _ONE, scope))
        if not bias:
            return self.op("aten.mm.default", (x, turned), (n, features), _TWO, scope)
        return self.op("aten.addmm.default", (self._parameter(f"{scope}.bias", (features,)), x, turned), (n, features), _THREE, scope)

    # ---- pointwise ------------------------------------------------------------------------------------------------

    def relu(self, x: int, scope: str, *, inplace: bool = False) -> int:
        """`nn.ReLU(inplace)`."""
        return self._pointwise("relu", x, scope, inplace, _ONE)

    def relu6(self, x: int, scope: str, *, inplace: bool = False) -> int:
        """`nn.ReLU6(inplace)`."""
        return self._pointwise("hardtanh", x, scope, inplace, _RELU6)

    def hardswish(self, x: int, scope: str, *, inplace: bool = False) -> int:
        """`nn.Hardswish(inplace)`."""
        return self._pointwise("hardswish", x, scope, inplace, _ONE)

    def hardsigmoid(self, x: int, scope: str, *, inplace: bool = False) -> int:
        """`nn.Hardsigmoid(inplace)`."""
        return self._pointwise("hardsigmoid", x, scope, inplace, _ONE)

    def sigmoid(self, x: int, scope: str) -> int:
        """`nn.Sigmoid()`."""
        return self._pointwise("sigmoid", x, scope, False, _ONE)

    def silu(self, x: int, scope: str, *, inplace: bool = False) -> int:
        """`nn.SiLU(inplace)`."""
        return self._pointwise("silu", x, scope, inplace, _ONE)

    def add(self, a: int, b: int, scope: str, *, inplace: bool = False) -> int:
        """`a + b`, or `a += b`; `b` may broadcast to the shape of `a`."""
        return self._binary("add", a, b, scope, inplace)

    def mul(self, a: int, b: int, scope: str, *, inplace: bool = False) -> int:
        """`a * b`, or `a *= b`; `b` may broadcast to the shape of `a`."""
        return self._binary("mul", a, b, scope, inplace)

    def add_number(self, x: int, value: float, scope: str) -> int:
        """`x + value`; with the int 0 it is what `sum(tensors)` starts with."""
        return self.op("aten.add.Tensor", (x,), self._shapes[x], {"args": [_REFS[0], value], "kwargs": {}}, scope)

    def mul_number(self, x: int, value: float, scope: str) -> int:
        """`x * value`, `x.mul(value)`."""
        return self.op("aten.mul.Tensor", (x,), self._shapes[x], {"args": [_REFS[0], value], "kwargs": {}}, scope)

    # ---- pooling --------------------------------------------------------------------------------------------------

    def max_pool(self, x: int, kernel: int, scope: str, *, stride: int | None = None, padding: int = 0) -> int:
        """`nn.MaxPool2d(kernel, stride, padding)`; its indices are a tensor too, as eager torch makes them."""
        n, c, h, w = self._shapes[x]
        stride = stride or kernel
        shape = (n, c, (h + 2 * padding - kernel) // stride + 1, (w + 2 * padding - kernel) // stride + 1)
        attrs = _attrs(_REFS[0], (kernel,) * 2, (stride,) * 2, *([(padding,) * 2] if padding else []))
        out, where = self._made(shape), self._made(shape, "int64")
        self._nodes.append(("aten.max_pool2d_with_indices.default", (x,), (out, where), (), attrs, scope))
        return out

    def avg_pool(
        self, x: int, kernel: int, scope: str, *,
        stride: int | None = None, padding: int = 0, ceil_mode: bool = False, count_include_pad: bool = True,
    ) -> int:  # fmt: skip
        """`nn.AvgPool2d(kernel, stride, padding, ceil_mode, count_include_pad)`."""
        n, c, h, w = self._shapes[x]
        stride = stride or kernel
        rest: list[Any] = [(kernel,) * 2, (stride,) * 2, (padding,) * 2, ceil_mode, count_include_pad]
        defaults = [None, None, (0, 0), False, True]
        while rest[-1] == defaults[-1]:
            rest.pop()
            defaults.pop()
        shape = (n, c, _pooled(h, kernel, stride, padding, ceil_mode), _pooled(w, kernel, stride, padding, ceil_mode))
        return self.op("aten.avg_pool2d.default", (x,), shape, _attrs(_REFS[0], *rest), scope)

    def global_avg_pool(self, x: int, scope: str) -> int:
        """`nn.AdaptiveAvgPool2d(1)`: (n, c, h, w) to (n, c, 1, 1)."""
        return self.op("aten.mean.dim", (x,), (*self._shapes[x][:2], 1, 1), _GLOBAL_POOL, scope)

    # ---- shapes ---------------------------------------------------------------------------------------------------

    def cat(self, xs: Sequence[int], scope: str) -> int:
        """`torch.cat(xs, dim=1)`: along channels."""
        n, _, *rest = self._shapes[xs[0]]
        shape = (n, sum(self._shapes[x][1] for x in xs), *rest)
        inputs = tuple(dict.fromkeys(xs))
        return self.op("aten.cat.default", inputs, shape, {"args": [[Ref(inputs.index(x)) for x in xs], 1], "kwargs": {}}, scope)

    def flatten(self, x: int, scope: str) -> int:
        """`torch.flatten(x, 1)`, a view."""
        n, *rest = self._shapes[x]
        features = 1
        for d in rest:
            features *= d
        out = self._window((n, features), *self._tensors[x][:3], None)
        self._nodes.append(("aten.view.default", (x,), (out,), (), _attrs(_REFS[0], (n, features)), scope))
        return out

    def slice(self, x: int, dim: int, scope: str, *, start: int = 0, stop: int | None = None, step: int = 1) -> int:
        """`x[..., start:stop:step]` along `dim`, a view; an index with several slices is one such call for each that is not whole."""
        shape = list(self._shapes[x])
        dtype, storage, offset, strides = self._tensors[x]
        turned = list(strides or contiguous_strides(shape))
        end = shape[dim] if stop is None else min(stop, shape[dim])
        shape[dim] = max(0, -(-(end - start) // step))
        attrs = _attrs(_REFS[0], dim, start, _TO_END if stop is None else stop, *([step] if step != 1 else []))
        offset += 4 * start * turned[dim]
        turned[dim] *= step
        out = self._window(tuple(shape), dtype, storage, offset, tuple(turned))
        self._nodes.append(("aten.slice.Tensor", (x,), (out,), (), attrs, scope))
        return out

    def pad(self, x: int, padding: Sequence[int], scope: str) -> int:
        """`F.pad(x, padding)` with zeros; `padding` is (left, right, top, bottom, front, back), from the last dimension on."""
        shape = list(self._shapes[x])
        for i in range(0, len(padding), 2):
            shape[-1 - i // 2] += padding[i] + padding[i + 1]
        return self.op("aten.constant_pad_nd.default", (x,), tuple(shape), _attrs(_REFS[0], tuple(padding), 0.0), scope)

    # ---- any other operator, and the end --------------------------------------------------------------------------

    def op(self, op: str, inputs: Sequence[int], shape: Sequence[int], attrs: dict[str, Any], scope: str) -> int:
        """Any operator with one float32 result of `shape` on a storage of its own; `attrs` as in `Node`, not to be changed later."""
        out = self._made(tuple(shape))
        self._nodes.append((op, tuple(inputs), (out,), (), attrs, scope))
        return out

    def build(self, *outputs: int, check: bool = False) -> Graph:
        """The graph with the tensors behind `outputs` as its results; with `check` it is proved well-formed."""
        p, base = len(self._parameters), len(self._parameters) + len(self._buffers)

        def final(code: int) -> int:
            return base + code if code >= 0 else -1 - code if code > _FIRST_BUFFER else p + _FIRST_BUFFER - code

        tensors: list[Tensor] = []
        storages: list[Storage] = []
        weights = [(name, shape, "float32", "parameter") for name, shape in self._parameters]
        weights += [(*buffer, "buffer") for buffer in self._buffers]
        for i, (name, shape, dtype, role) in enumerate(weights):
            nbytes = 4 if dtype == "float32" else 8
            for d in shape:
                nbytes *= d
            tensors.append(Tensor(i, shape, dtype, i, 0, None, name))
            storages.append(Storage(i, nbytes, role, name))
        for i, nbytes in enumerate(self._nbytes):
            storages.append(Storage(base + i, nbytes) if i else Storage(base, nbytes, "input", "x"))
        for i, (shape, (dtype, storage, offset, strides)) in enumerate(zip(self._shapes, self._tensors, strict=True)):
            tensors.append(Tensor(base + i, shape, dtype, final(storage), offset, strides, "" if i else "x"))
        nodes = tuple(
            Node(i, op, tuple(map(final, ins)), tuple([base + t for t in outs]), tuple([base + s for s in writes]), attrs, scope)
            for i, (op, ins, outs, writes, attrs, scope) in enumerate(self._nodes)
        )
        meta = {"frontend": "layers", "device": "cpu", "mode": "inference"}
        graph = Graph(self.name, nodes, tuple(tensors), tuple(storages), (base,), tuple(base + t for t in outputs), meta)
        return graph.check() if check else graph

    def _parameter(self, name: str, shape: tuple[int, ...]) -> int:
        self._parameters.append((name, shape))
        return -len(self._parameters)

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: str = "float32") -> int:
        self._buffers.append((name, shape, dtype))
        return _FIRST_BUFFER + 1 - len(self._buffers)

    def _made(self, shape: tuple[int, ...], dtype: str = "float32") -> int:
        """A tensor on a new storage of its own."""
        nbytes = 4 if dtype == "float32" else 8 if dtype == "int64" else 1
        for d in shape:
            nbytes *= d
        self._nbytes.append(nbytes)
        return self._window(shape, dtype, len(self._nbytes) - 1, 0, None)

    def _window(self, shape: tuple[int, ...], dtype: str, storage: int, offset: int, strides: tuple[int, ...] | None) -> int:
        """A tensor on a storage that is there: a handle's storage number, or the negative code of a weight."""
        self._shapes.append(shape)
        self._tensors.append((dtype, storage, offset, None if strides == contiguous_strides(shape) else strides))
        return len(self._shapes) - 1

    def _pointwise(self, op: str, x: int, scope: str, inplace: bool, attrs: dict[str, Any]) -> int:
        if not inplace:
            return self.op(f"aten.{op}.default", (x,), self._shapes[x], attrs, scope)
        return self._in_place(f"aten.{op}_.default", (x,), attrs, scope)

    def _binary(self, op: str, a: int, b: int, scope: str, inplace: bool) -> int:
        inputs, attrs = ((a, b), _TWO) if a != b else ((a,), _TWICE)
        if not inplace:
            return self.op(f"aten.{op}.Tensor", inputs, self._shapes[a], attrs, scope)
        return self._in_place(f"aten.{op}_.Tensor", inputs, attrs, scope)

    def _in_place(self, op: str, inputs: tuple[int, ...], attrs: dict[str, Any], scope: str) -> int:
        x = inputs[0]
        out = self._window(self._shapes[x], *self._tensors[x])
        self._nodes.append((op, inputs, (out,), (self._tensors[x][1],), attrs, scope))
        return out


def _pooled(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """Output size of a pooling window, by torch's rule: with `ceil_mode` the last window may hang over, but must start inside."""
    span = size + 2 * padding - kernel
    if not ceil_mode:
        return span // stride + 1
    out = -(-span // stride) + 1
    return out - 1 if (out - 1) * stride >= size + padding else out
