"""Facts of contractions: convolutions, matrix products, and their quantised, grouped and backward forms."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from .graph import Tensor
from .ops import Call, MissingFact, OpFacts, Work, is_complex


def macs_of(terms: int, tensor: Tensor) -> int:
    """Real multiply-adds of `terms` products whose dtype is that of `tensor`."""
    return 4 * terms if is_complex(tensor) else terms


def convolution_macs(x: Tensor, weight: Tensor, y: Tensor, transposed: bool) -> int:
    """MACs of y = convolution(x, weight).

    Forward: every output element is a sum over weight[0], shape (C_in / groups, *kernel). Transposed: every input element
    adds to one such window per output channel of its group; weight is (C_in, C_out / groups, *kernel).
    """
    if len(weight.shape) < 2 or weight.shape[0] == 0:
        raise MissingFact("convolution with a packed weight")
    window = prod(weight.shape[1:])
    return macs_of((x.numel if transposed else y.numel) * window, y)


def _convolution(call: Call) -> Work:
    y = call.output()
    macs = convolution_macs(call.tensor(0, "input"), call.tensor(1, "weight"), y, bool(call.value(6, "transposed", False)))
    return Work(macs, y.numel if call.maybe(2, "bias") else 0)


def _plain_convolution(transposed: bool, bias_at: int | None) -> Callable[[Call], Work]:
    def work(call: Call) -> Work:
        y = call.output()
        macs = convolution_macs(call.tensor(0, "input"), call.tensor(1, "weight"), y, transposed)
        return Work(macs, y.numel if bias_at is not None and call.maybe(bias_at, "bias") else 0)

    return work


def _convolution_backward(call: Call) -> Work:
    """One convolution's worth for the input's gradient, one for the weight's, a sum for the bias's, as `output_mask` asks."""
    grad, x, weight = call.tensor(0, "grad_output"), call.tensor(1, "input"), call.tensor(2, "weight")
    mask = call.value(10, "output_mask", (True, True, True))
    macs = convolution_macs(x, weight, grad, bool(call.value(7, "transposed", False)))
    return Work(macs * (bool(mask[0]) + bool(mask[1])), grad.numel if mask[2] else 0)


def _conv_tbc(call: Call) -> Work:
    """Weight (kernel, C_in, C_out), output (T, B, C_out)."""
    weight, y = call.tensor(1, "weight"), call.output()
    return Work(y.numel * weight.shape[0] * weight.shape[1], y.numel)


def deformable_work(x: Tensor, weight: Tensor, y: Tensor, *, masked: bool, biased: bool) -> Work:
    """An ordinary convolution over bilinearly sampled inputs (seven FLOPs a sample), optionally modulated by a mask."""
    samples = y.shape[0] * x.shape[1] * prod(y.shape[2:]) * prod(weight.shape[2:])
    return Work(y.numel * prod(weight.shape[1:]), samples * (7 + masked) + y.numel * biased)


def _deform_conv2d(call: Call) -> Work:
    """torchvision's op (input, weight, offset, mask, bias, ..., use_mask)."""
    masked = bool(call.value(13, "use_mask", True))
    return deformable_work(call.tensor(0, "input"), call.tensor(1, "weight"), call.output(), masked=masked, biased=True)


def product(left: int, inner: int = -1, *, added: int | None = None) -> Callable[[Call], Work]:
    """Matrix products: every output element is a sum over the axis `inner` of argument `left`; `added`: a summand's place."""

    def work(call: Call) -> Work:
        a, y = call.tensor(left, "self"), call.output()
        extra = 0
        if added is not None and call.maybe(added, "bias") is not None:
            scaled = (call.value(-1, "beta", 1) != 1) + (call.value(-1, "alpha", 1) != 1)
            extra = (1 + scaled) * y.numel
        return Work(macs_of(y.numel * a.shape[inner], y), extra * (2 if is_complex(y) else 1))

    return work


def _addmm_activation(call: Call) -> Work:
    y = call.output()
    activation = 5 if call.value(-1, "use_gelu", False) else 1
    return Work(y.numel * call.tensor(1, "mat1").shape[-1], (1 + activation) * y.numel)


def _matmul(call: Call) -> Work:
    """`matmul`, also of vectors: the last axis of the left operand is summed."""
    a, y = call.tensor(0, "self"), call.output()
    return Work(macs_of(y.numel * a.shape[-1], y))


def _dot(call: Call) -> Work:
    a = call.tensor(0, "self")
    return Work(macs_of(a.numel, a))


def _outer(call: Call) -> Work:
    y = call.output()
    return Work(macs_of(y.numel, y))


def _addr(call: Call) -> Work:
    y = call.output()
    return Work(y.numel, y.numel)


def _addbmm(call: Call) -> Work:
    a, y = call.tensor(1, "batch1"), call.output()
    return Work(y.numel * a.shape[0] * a.shape[2], y.numel)


def _linear_backward(call: Call) -> Work:
    grad, weight = call.tensor(1, "grad_output"), call.tensor(2, "weight")
    mask = call.value(3, "output_mask", (True, True, True))
    return Work((grad.numel * weight.shape[-1]) * (bool(mask[0]) + bool(mask[1])), grad.numel if mask[2] else 0)


def _grouped(call: Call) -> Work:
    """Grouped products `(self, mat2)`; the groups split one axis, so their work adds up to one product over it.

    (M, K) by (G, K, N): rows are split. (G, M, K) by (K, N): columns. (M, K) by (K, N) into (G, M, N): the summed axis, each
    group its share. (G, M, K) by (G, K, N): a batch.
    """
    a, b, y = call.tensor(0, "self"), call.tensor(1, "mat2"), call.output()
    bias = y.numel if call.maybe(5 if "scaled" in call.node.op else 3, "bias") is not None else 0
    if len(a.shape) == 2 and len(b.shape) == 2:
        return Work(a.shape[0] * a.shape[1] * b.shape[1], bias)
    return Work(y.numel * a.shape[-1], bias)


def einsum_macs(equation: str, shapes: list[tuple[int, ...]]) -> int:
    """Multiply-adds of an einsum contracted from left to right, two operands at a time.

    A step costs the product of all sizes that occur in its two operands; indices of one operand that nothing else needs
    are summed away first, which is no multiply-add. `...` stands for as many leading axes as are left over. One operand: 0.
    """
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    spare = max((len(shape) - len(t.replace("...", "")) for t, shape in zip(terms, shapes, strict=True) if "..." in t), default=0)
    wild = [chr(0x100 + i) for i in range(spare)]

    def spell(term: str, rank: int | None) -> list[str]:
        head, dots, tail = term.partition("...")
        width = spare if rank is None else rank - len(head) - len(tail)
        return [*head, *(wild[spare - width :] if dots else ()), *tail]

    labels = [spell(t, len(shape)) for t, shape in zip(terms, shapes, strict=True)]
    size: dict[str, int] = {}
    for term, shape in zip(labels, shapes, strict=True):
        for label, d in zip(term, shape, strict=True):
            size[label] = max(size.get(label, 1), d)
    if arrow:
        out = set(spell(result, None))
    else:
        every = [label for term in labels for label in term]
        out = {label for label in every if every.count(label) == 1} | set(wild)
    total, running = 0, set(labels[0])
    for i, term in enumerate(labels[1:], 1):
        later = out.union(*labels[i + 1 :])
        running = {x for x in running if x in later or x in term}
        other = {x for x in term if x in later or x in running}
        total += prod(size[x] for x in running | other)
        running = {x for x in running | other if x in later}
    return total


def _einsum(call: Call) -> Work:
    operands = call.tensors(1, "tensors")
    return Work(macs_of(einsum_macs(call.value(0, "equation"), [t.shape for t in operands]), call.output()))


def _tensordot(call: Call) -> Work:
    a, y = call.tensor(0, "self"), call.output()
    summed = prod(a.shape[d] for d in call.value(2, "dims_self"))
    return Work(macs_of(y.numel * summed, y))


def _trilinear(call: Call) -> Work:
    """sum over `sumdim` of i1 * i2 * i3, the three expanded to one shape: two multiplications and an addition a term.

    Counted as the products it is evaluated by: i1 * i2 elementwise, then a contraction with i3.
    """
    ranks = [set(call.value(3 + i, name)) for i, name in enumerate(("expand1", "expand2", "expand3"))]
    shapes = []
    for i, expand in enumerate(ranks):
        rest = iter(call.tensor(i, f"i{i + 1}").shape)
        rank = len(call.tensor(i, f"i{i + 1}").shape) + len(expand)
        shapes.append([1 if d in expand else next(rest) for d in range(rank)])
    return Work(prod(map(max, *shapes)), prod(map(max, *shapes[:2])))


def _euclidean_distance(call: Call) -> Work:
    """One product of both operands widened by two columns (norms and ones); clamping and a root a pair, norms before."""
    a, b, y = call.tensor(0, "x1"), call.tensor(1, "x2"), call.output()
    return Work(y.numel * (a.shape[-1] + 2), 2 * y.numel + 3 * a.numel + 2 * b.numel)


def _dyn_quant_matmul(call: Call) -> Work:
    y = call.output()
    return Work(y.numel * int(call.value(3, "in_features")))


def _quantized_linear(call: Call) -> Work:
    """Packed weights hide their shape, but the summed axis is the input's last; each result is rescaled and rounded."""
    x, y = call.tensor(0, "X"), call.output()
    return Work(y.numel * x.shape[-1], 5 * y.numel)


def _facts(work: Callable[[Call], Work], *names: str) -> dict[str, OpFacts]:
    return {name: OpFacts("contraction", work) for name in names}


FACTS: dict[str, OpFacts] = {
    **_facts(_convolution, "aten.convolution", "aten._convolution", "aten.convolution_overrideable"),
    **_facts(
        _plain_convolution(False, 2),
        "aten.conv1d",
        "aten.conv2d",
        "aten.conv3d",
        "aten._convolution_mode",
        "aten.mkldnn_convolution",
        "aten.miopen_convolution",
        "aten.cudnn_convolution_relu",
        "mkldnn._convolution_pointwise",
    ),
    **_facts(
        _plain_convolution(False, 3),
        "aten._slow_conv2d_forward",
        "aten.thnn_conv2d",
        "aten.slow_conv3d",
        "aten.slow_conv3d_forward",
        "aten.slow_conv_dilated2d",
        "aten.slow_conv_dilated3d",
        "aten._conv_depthwise2d",
        "aten.conv_depthwise3d",
    ),
    **_facts(_plain_convolution(False, None), "aten.cudnn_convolution"),
    **_facts(_plain_convolution(True, 2), "aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d"),
    **_facts(_plain_convolution(True, 3), "aten.slow_conv_transpose2d", "aten.slow_conv_transpose3d"),
    **_facts(_plain_convolution(True, None), "aten.cudnn_convolution_transpose"),
    **_facts(_convolution_backward, "aten.convolution_backward", "aten.convolution_backward_overrideable"),
    **_facts(_conv_tbc, "aten.conv_tbc"),
    **_facts(_deform_conv2d, "torchvision.deform_conv2d"),
    **_facts(product(0), "aten.mm", "aten.bmm", "aten.mv", "aten._int_mm", "aten._weight_int8pack_mm"),
    **_facts(product(0), "aten._weight_int4pack_mm", "aten._weight_int4pack_mm_for_cpu", "aten._weight_int4pack_mm_with_scales_and_zeros"),
    **_facts(product(1, added=0), "aten.addmm", "aten.addmv", "aten.baddbmm"),
    **_facts(product(0, added=2), "aten.linear", "aten.mkldnn_linear", "mkldnn._linear_pointwise"),
    **_facts(product(0, added=4), "aten._scaled_mm"),
    **_facts(product(0, added=8), "aten._scaled_mm_v2"),
    **_facts(_addmm_activation, "aten._addmm_activation"),
    **_facts(_matmul, "aten.matmul", "aten.linalg_matmul", "aten.inner"),
    **_facts(_dot, "aten.dot", "aten.vdot", "aten.linalg_vecdot"),
    **_facts(_outer, "aten.outer", "aten.ger", "aten.kron"),
    **_facts(_addr, "aten.addr"),
    **_facts(_addbmm, "aten.addbmm"),
    **_facts(_linear_backward, "aten.linear_backward", "aten.mkldnn_linear_backward"),
    **_facts(_grouped, "aten._grouped_mm", "aten._scaled_grouped_mm"),
    **_facts(_einsum, "aten.einsum"),
    **_facts(_tensordot, "aten.tensordot"),
    **_facts(_trilinear, "aten._trilinear"),
    **_facts(_euclidean_distance, "aten._euclidean_dist"),
    **_facts(_dyn_quant_matmul, "aten._dyn_quant_matmul_4bit"),
    **_facts(_quantized_linear, "quantized.linear", "quantized.linear_relu", "quantized.linear_dynamic"),
}
