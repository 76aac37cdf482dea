"""Whatever bytes or protos arrive, the ONNX reader gives a checked Graph or one clear NeaptideError."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from hypothesis import HealthCheck, example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from neaptide.compiler.errors import FormatError, NeaptideError  # noqa: E402
from neaptide.compiler.from_onnx import from_onnx  # noqa: E402

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
MANY = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
)


def value(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def seed_models() -> list[bytes]:
    """Small models that reach every part of the reader: weights, shape arithmetic, control flow, functions, external data."""
    branch = helper.make_graph([helper.make_node("Neg", ["x"], ["t"])], "then", [], [value("t", [1, 2, 4, 4])])
    other = helper.make_graph([helper.make_node("Abs", ["x"], ["e"])], "else", [], [value("e", [1, 2, 4, 4])])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["h", "h"], ["h2"])],
        "body", [value("i", [], INT64), value("go", [], BOOL), value("h", [1, 2])], [value("on", [], BOOL), value("h2", [1, 2])],
    )  # fmt: skip
    twice = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [
        helper.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=other),
        helper.make_node("Conv", ["i", "w"], ["k"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Twice", ["k"], ["d"], domain="local"),
        helper.make_node("MaxPool", ["d"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Shape", ["p"], ["s"]),
        helper.make_node("Slice", ["s", "zero", "two"], ["s2"]),
        helper.make_node("Constant", [], ["minus"], value_ints=[-1]),
        helper.make_node("ReduceMean", ["p"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("Loop", ["trips", "", "m"], ["l"], body=body),
        helper.make_node("Concat", ["one", "minus"], ["to"], axis=0),
        helper.make_node("Reshape", ["l", "to"], ["y"]),
        helper.make_node("ConstantOfShape", ["s2"], ["z"]),
        helper.make_node("Range", ["r0", "r9", "r1"], ["r"]),
    ]
    weights = [
        numpy_helper.from_array(np.ones((2, 2, 3, 3), np.float32), "w"), numpy_helper.from_array(np.array([1]), "one"),
        numpy_helper.from_array(np.array([0]), "zero"), numpy_helper.from_array(np.array([2]), "two"),
        numpy_helper.from_array(np.array(3), "trips"), numpy_helper.from_array(np.array(0), "r0"),
        numpy_helper.from_array(np.array(9), "r9"), numpy_helper.from_array(np.array(1), "r1"),
    ]  # fmt: skip
    outside = TensorProto(name="far", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="far.bin")
    graph = helper.make_graph(
        nodes, "seed", [value("x", [1, 2, 4, 4]), value("c", [], BOOL)], [value("y", [1, 2]), value("z", None), value("r", None, INT64)],
        [*weights, outside],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return [helper.make_model(graph, opset_imports=opsets, functions=[twice], ir_version=9).SerializeToString()]


SEEDS = seed_models()


def read(source) -> None:
    """The reader's whole contract: a checked graph, or a NeaptideError of one paragraph."""
    try:
        graph = from_onnx(source)
    except NeaptideError as error:
        text = str(error)
        assert text and "\n" not in text and "Traceback" not in text
    else:
        graph.check()


def test_the_seeds_are_read():
    for seed in SEEDS:
        assert from_onnx(seed).nodes


@MANY
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 7)), min_size=1, max_size=6))
def test_flipped_bits(seed, flips):
    data = bytearray(seed)
    for at, bit in flips:
        data[at % len(data)] ^= 1 << bit
    read(bytes(data))


@MANY
@given(st.sampled_from(SEEDS), st.integers(0, 10_000), st.integers(0, 10_000), st.binary(max_size=12))
def test_cut_and_spliced(seed, start, stop, middle):
    read(seed[: start % len(seed)])
    read(seed[: start % len(seed)] + middle + seed[stop % len(seed) :])


@MANY
@given(st.binary(max_size=200))
@example(b"")
def test_random_bytes(data):
    with pytest.raises(FormatError):
        from_onnx(b"\xff" + data)
    read(data)


names = st.sampled_from(["x", "y", "a", "b", "c", "w", "s", ""])
sizes = st.integers(-2, 6) | st.sampled_from([2**31, 2**62, -(2**63)])
operators = st.sampled_from(
    ["Add", "Conv", "Reshape", "Concat", "Slice", "Gather", "Gemm", "MatMul", "Transpose", "Split", "Pad", "Resize", "Tile", "Expand",
     "Range", "ConstantOfShape", "Loop", "If", "Scan", "Constant", "Shape", "Squeeze", "Unsqueeze", "Dropout", "Cast", "LSTM", "Einsum",
     "TopK", "OneHot", "NonZero", "BatchNormalization", "MaxPool", "QLinearConv", "Nope", "DFT", "Attention", "Clip", "SequenceEmpty",
     "SequenceConstruct", "SequenceAt", "SequenceInsert", "SequenceErase", "SequenceLength", "SplitToSequence", "ConcatFromSequence",
     "Identity"]
)  # fmt: skip
attribute_names = st.sampled_from(
    ["axis", "axes", "perm", "kernel_shape", "strides", "pads", "to", "value", "value_ints", "group", "num_outputs", "equation", "start",
     "end", "keepdims", "num_scan_inputs", "hidden_size", "body", "then_branch", "transA", "direction", "mode", "dilations", "auto_pad"]
)  # fmt: skip
attribute_values = st.one_of(
    st.integers(-5, 9), st.integers(-(2**63), 2**63 - 1), st.floats(width=32), st.lists(st.integers(-3, 9), min_size=1, max_size=5),
    st.lists(st.floats(width=32), min_size=1, max_size=3), st.sampled_from(["NOTSET", "SAME_UPPER", "ij,jk->ik", "i,,->", "bidirectional"]),
    st.builds(lambda d: helper.make_tensor("v", INT64, [len(d)], d), st.lists(st.integers(-3, 9), max_size=4)),
)  # fmt: skip


@st.composite
def nodes(draw):
    attributes = draw(st.dictionaries(attribute_names, attribute_values, max_size=4))
    node = helper.make_node(draw(operators), draw(st.lists(names, max_size=4)), draw(st.lists(names, max_size=3)))
    node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
    if node.op_type in ("If", "Loop", "Scan") and draw(st.booleans()):
        inner = helper.make_graph(
            [helper.make_node("Neg", [draw(names)], ["n"])], "g", [value(n, [2]) for n in draw(st.lists(names, max_size=3, unique=True))],
            [value(draw(st.sampled_from(["n", "x", "q"])), [2])],
        )  # fmt: skip
        for name in ("then_branch", "else_branch", "body"):
            node.attribute.extend([helper.make_attribute(name, inner)])
    return node


@st.composite
def tensors(draw):
    kind = draw(st.sampled_from([0, 1, 7, 7, 8, 9, 16, 22, 99]))
    dims = draw(st.lists(sizes, max_size=3))
    tensor = TensorProto(name=draw(names), data_type=kind, dims=dims, raw_data=draw(st.binary(max_size=40)))
    if all(0 <= d <= 6 for d in dims) and draw(st.booleans()):
        count = int(np.prod(dims, dtype=np.int64))
        tensor = helper.make_tensor(tensor.name, INT64, dims, [draw(st.integers(-2, 8))] * count)
    return tensor


@MANY
@given(st.data())
def test_random_protos(data):
    graph = onnx.GraphProto(name="g")
    graph.node.extend(data.draw(st.lists(nodes(), max_size=6)))
    graph.initializer.extend(data.draw(st.lists(tensors(), max_size=4)))
    for name in data.draw(st.lists(names, max_size=3, unique=True)):
        graph.input.append(
            helper.make_tensor_value_info(name, data.draw(st.sampled_from([1, 7, 9])), data.draw(st.lists(sizes, max_size=4)))
        )
    for name in data.draw(st.lists(names, max_size=3)):
        graph.output.append(value(name, data.draw(st.none() | st.lists(sizes, max_size=4))))
    model = onnx.ModelProto(ir_version=9, graph=graph)
    model.opset_import.append(helper.make_opsetid("", data.draw(st.integers(-1, 25))))
    read(model)
