"""The op facts registry: its names exist, its look-up rules hold, and what it says about views and in-place is true."""

from functools import partial

import pytest
import torch

from neaptide.compiler.ops import KINDS, op_facts, registry

ATEN = [name for name in registry() if name.startswith("aten.")]


def packet(name):
    """The torch op packet of a registered aten name, or of its in-place form."""
    base = name.split(".")[1]
    found = getattr(torch.ops.aten, base, None) or getattr(torch.ops.aten, f"{base}_", None)
    assert found is not None, f"torch has neither aten.{base} nor aten.{base}_"
    return found


def test_every_registered_aten_op_exists_in_torch():
    for name in ATEN:
        found, overload = packet(name), name.split(".")[2:]
        assert not overload or overload[0] in found.overloads(), name


def test_onnx_names_exist_in_the_standard_or_are_onnxruntime_fusions():
    onnx = pytest.importorskip("onnx")
    standard = {f"onnx.{s.name}" for s in onnx.defs.get_all_schemas() if not s.domain}
    ours = {name for name in registry() if name.startswith("onnx.") and not name.startswith("onnx.com.microsoft.")}
    assert ours - standard == {"onnx.SimplifiedLayerNormalization"}


def test_kinds_are_known():
    assert {facts.kind for facts in registry().values()} == set(KINDS)


def test_kinds_that_never_compute_have_no_formula():
    for name, facts in registry().items():
        if facts.kind in ("view", "data movement", "creation") and not name.startswith("aten._foreach"):
            assert facts.work is None, name
        if facts.kind in ("contraction", "attention", "rnn", "norm", "softmax", "pool"):
            assert facts.work is not None, name


@pytest.mark.parametrize(
    ("op", "kind"),
    [
        ("aten.relu_.default", "elementwise"),
        ("aten.add_.Tensor", "elementwise"),
        ("aten.max.dim", "reduction"),
        ("aten.max.other", "elementwise"),
        ("aten.max.default", "reduction"),
        ("aten.zero_.default", "creation"),
        ("aten.transpose_.default", "view"),
        ("aten._fused_adam_.tensor_lr", "optimizer"),
        ("aten.__and__.Tensor", "elementwise"),
        ("aten.convolution", "contraction"),
        ("onnx.Conv", "contraction"),
        ("onnx.com.microsoft.FusedConv", "contraction"),
    ],
)
def test_look_up_by_overload_packet_and_in_place_form(op, kind):
    facts = op_facts(op)
    assert facts is not None and facts.kind == kind


@pytest.mark.parametrize("op", ["mylib.mystery.default", "aten.no_such_op.default", "onnx.NoSuchOp", "relu", ""])
def test_unknown_ops_have_no_facts(op):
    assert op_facts(op) is None


def is_alias(overload):
    """Whether the schema says that the first result shares its first argument's memory without writing to it."""
    schema = overload._schema
    if not schema.returns or not schema.arguments:
        return False
    info = schema.returns[0].alias_info
    return info is not None and not info.is_write


# Ops that return their input or a view of it without saying so in their schema.
UNSPOKEN_VIEWS = {"_unsafe_view", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes", "sym_size"}


def test_views_are_views_by_their_schema():
    for name in ATEN:
        if registry()[name].is_view and name.split(".")[1] not in UNSPOKEN_VIEWS:
            assert any(is_alias(getattr(packet(name), o)) for o in packet(name).overloads()), name


def pointwise_cases():
    """In-place candidates whose schema begins with one or two tensors and otherwise has only defaults."""
    for found in dict.fromkeys(packet(name) for name in ATEN if registry()[name].may_inplace):
        for op in (getattr(found, overload) for overload in found.overloads() if "out" not in overload):
            facts, arguments = op_facts(str(op)), op._schema.arguments
            arity = sum(str(a.type) == "Tensor" for a in arguments)
            required = sum(not a.has_default_value() for a in arguments)
            leading = all(str(a.type) == "Tensor" for a in arguments[:arity])
            mutates, optional = op._schema.is_mutable, any("Optional[Tensor]" in str(a.type) for a in arguments)
            if facts is not None and facts.may_inplace and leading and required <= arity <= 2 and not mutates and not optional:
                bound = {"min": 1} if "min" in (a.name for a in arguments[arity:]) else {}
                yield pytest.param(partial(op, **bound), arity, id=str(op))


def results(op, *args):
    out = op(*args)
    return out if isinstance(out, (list, tuple)) else (out,)


@pytest.mark.parametrize(("op", "arity"), pointwise_cases())
def test_in_place_candidates_read_each_element_at_its_own_place_only(op, arity):
    generator = torch.Generator().manual_seed(0)

    def operands(dtype):
        values = [torch.rand(3, 4, generator=generator) * 0.6 + 0.2 for _ in range(arity)]
        return values if dtype.is_floating_point else [(v * 10).to(dtype) for v in values]

    for dtype in (torch.float32, torch.int64, torch.bool):
        args = operands(dtype)
        try:
            before = results(op, *args)
        except (RuntimeError, NotImplementedError):
            continue  # not an operation on this dtype
        for i in range(arity):
            changed = [a.clone() for a in args]
            changed[i][1, 2] = ~changed[i][1, 2] if dtype == torch.bool else changed[i][1, 2] * 3 - 1
            for a, b in zip(before, results(op, *changed), strict=True):
                assert a.shape == (3, 4)
                differs = (a != b) & ~(a.isnan() & b.isnan())
                differs[1, 2] = False
                assert not differs.any()
        return
    pytest.fail(f"{op} ran on no dtype")
