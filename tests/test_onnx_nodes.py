"""ONNX nodes that are not what their operators take: each is refused in a sentence that names node, attribute and value."""

from __future__ import annotations

import base64

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, defs, helper, numpy_helper  # noqa: E402

from neaptide.compiler.errors import FormatError, NeaptideError  # noqa: E402
from neaptide.compiler.from_onnx import from_onnx  # noqa: E402
from neaptide.compiler.graph import Atom, Graph, GraphBuilder  # noqa: E402
from neaptide.compiler.onnx_attrs import python_values  # noqa: E402
from neaptide.compiler.onnx_nodes import TEXTS  # noqa: E402
from neaptide.compiler.onnx_sequences import METHODS, PARTS  # noqa: E402

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def value(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, inputs, initializers=(), opset=20, outputs=("y",)):
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(initializers).items()]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_empty_tensor_value_info(name) for name in outputs], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def refusal(*arguments, **keywords) -> str:
    with pytest.raises(FormatError) as caught:
        from_onnx(model(*arguments, **keywords))
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    return str(caught.value)


# ---- attributes -------------------------------------------------------------------------------------------------------


def test_every_text_attribute_of_onnx_is_known_or_free():
    """A text attribute that a formula or kernel could choose by has its values in the table; the rest are texts of any content."""
    free = {"equation", "value_string", "value_strings", "to", "pattern", "delimiter", "stopwords", "locale", "case_change_action",
            "pixel_format", "pool_strings", "update_rule", "activation"}  # fmt: skip
    texts = (defs.OpSchema.AttrType.STRING, defs.OpSchema.AttrType.STRINGS)
    missing = {
        (schema.name, name)
        for schema in defs.get_all_schemas_with_history()
        for name, attribute in schema.attributes.items()
        if schema.domain == "" and attribute.type in texts and name not in free and name not in TEXTS.get(schema.name, {})
    }
    assert missing == {("TfIdfVectorizer", "mode")}  # its operands are texts and its result counts, whatever the mode


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, names in TEXTS.items() for name in names if "." not in op])
@pytest.mark.parametrize("text", ["", "NoSuchValue", b"\xff"])
def test_texts_that_no_operator_knows(op, name, text):
    node = helper.make_node(op, ["x"] * max(1, defs.get_schema(op, 20).min_input if op != "TensorScatter" else 3), ["y"])
    many = name == "activations"
    node.attribute.extend([helper.make_attribute(name, [text] if many else text)])
    said = refusal([node], [value("x", [1, 1, 4, 4])], opset=24)
    assert op in said and (f"has {name} " in said or "lacks its attribute" in said or "takes" in said), said


def test_a_value_is_named_with_those_there_are():
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], mode="")
    said = refusal([node], [value("x", [1, 1, 4, 4])], {"s": np.array([1, 1, 2, 2], np.float32)})
    assert "has mode ''; it is one of nearest, linear, cubic" in said


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        (helper.make_attribute("axis", 1.5), "has attribute 'axis' of kind float; it is int"),
        (helper.make_attribute("axis", [1, 2]), "has attribute 'axis' of kind ints; it is int"),
        (helper.make_attribute("axis", "1"), "of kind string"),
        (onnx.AttributeProto(name="axis", i=1), "of no known kind"),
        (onnx.AttributeProto(name="axis", type=2, i=1, ref_attr_name="outer"), "refers to a function's attribute"),
    ],
)
def test_attributes_of_another_kind(attribute, said):
    node = helper.make_node("Concat", ["x", "x"], ["y"])
    node.attribute.extend([attribute])
    assert said in refusal([node], [value("x", [2, 2])])
    node.attribute.extend([helper.make_attribute("axis", 0)])
    assert "two attributes called 'axis'" in refusal([node], [value("x", [2, 2])]) or "of" in said


def test_an_attribute_that_is_needed():
    assert "lacks its attribute 'axis'" in refusal([helper.make_node("Concat", ["x", "x"], ["y"])], [value("x", [2, 2])])


AT = onnx.StringStringEntryProto(key="location", value="f")


def tensor(**fields):
    return TensorProto(name="v", **fields)


@pytest.mark.parametrize(
    "fill",
    [
        tensor(data_type=FLOAT, dims=[1], raw_data=b"\0" * 4096),
        tensor(data_type=FLOAT, dims=[1], float_data=[1, 2, 3]),
        tensor(data_type=FLOAT, dims=[1]),
        tensor(data_type=FLOAT, dims=[2**40]),
        tensor(data_type=FLOAT, dims=[-1], raw_data=b""),
        tensor(data_type=99, dims=[1], raw_data=b"\0"),
        tensor(data_type=FLOAT, dims=[1], data_location=TensorProto.EXTERNAL, external_data=[AT]),
    ],
)  # fmt: skip
def test_tensors_in_attributes_hold_their_numbers(fill):
    node = helper.make_node("ConstantOfShape", ["s"], ["y"], value=fill)
    said = refusal([node], [], {"s": np.array([3])})
    assert "'v'" in said or "'value'" in said
    raw = base64.b64encode(node.attribute[0].SerializeToString()).decode()
    with pytest.raises(FormatError, match="is not all there"):  # the same in a graph's JSON, which nobody has checked
        python_values({"value": Atom("onnx.attribute", raw)})


# ---- operands ---------------------------------------------------------------------------------------------------------

SPLIT = helper.make_node("SplitToSequence", ["x"], ["s"], axis=0)


@pytest.mark.parametrize(
    "op", sorted({s.name for s in defs.get_all_schemas() if s.domain == "" and s.min_input <= 3 and s.since_version <= 24} - set(METHODS))
)
def test_a_sequence_where_a_tensor_belongs(op):
    """Whatever the operator, at whichever operand."""
    schema = defs.get_schema(op, 24)
    for at in range(max(1, schema.min_input)):
        names = ["x"] * max(1, schema.min_input)
        names[at] = "s"
        node = helper.make_node(op, names, ["y"] * 1)
        for name, attribute in schema.attributes.items():
            if attribute.required and attribute.type == defs.OpSchema.AttrType.INT:
                node.attribute.extend([helper.make_attribute(name, 1)])
        with pytest.raises(NeaptideError) as caught:
            from_onnx(model([SPLIT, node], [value("x", [2, 4])], opset=24))
        said = str(caught.value)
        assert "sequence" in said or "lacks" in said or "takes" in said, said


def test_a_tensor_where_a_sequence_belongs():
    for op in ("ConcatFromSequence", "SequenceAt", "SequenceLength", "SequenceErase"):
        node = helper.make_node(op, ["x"] + ["i"] * (op == "SequenceAt"), ["y"])
        if op == "ConcatFromSequence":
            node.attribute.append(helper.make_attribute("axis", 0))
        assert "takes a sequence for operand 0" in refusal([node], [value("x", [2, 4])], {"i": np.array(0)})


def test_numbers_of_another_sort():
    said = refusal([helper.make_node("Gather", ["x", "i"], ["y"])], [value("x", [2, 4]), value("i", [1])])
    assert "for operand 1; 'i' is float" in said and "int64" in said
    assert "'b' is bool" in refusal(
        [helper.make_node("Conv", ["x", "b"], ["y"])], [value("x", [1, 1, 4, 4]), value("b", [1, 1, 3, 3], BOOL)]
    )
    position = model([SPLIT, helper.make_node("SequenceAt", ["s", "i"], ["y"])], [value("x", [2, 4])], {"i": np.array(np.nan, np.float32)})
    with pytest.raises(FormatError, match="'i' is float"):
        from_onnx(position)


# ---- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [None, 1, 2])
def test_a_split_into_very_many(sizes):
    length = (sizes or 1) * (PARTS + 1)
    nodes = [
        helper.make_node("SplitToSequence", ["x", *(["k"] if sizes else [])], ["s"]),
        helper.make_node("SequenceAt", ["s", "i"], ["y"]),
    ]
    made = {"i": np.array(0), **({"k": np.array(sizes)} if sizes else {})}
    assert f"at most {PARTS:,}" in refusal(nodes, [value("x", [length, 2])], made)
    assert from_onnx(model(nodes, [value("x", [length - (sizes or 1), 2])], made)).nodes


@pytest.mark.parametrize(
    "build",
    [
        lambda: model([helper.make_node("Add", ["x", "x"], ["y"])], [value("x", [2**62])]),
        lambda: model([helper.make_node("Relu", [n], [f"y{n}"]) for n in "abcd"], [value(n, [2**57]) for n in "abcd"], outputs=("ya",)),
        lambda: model([helper.make_node("Expand", ["x", "s"], ["y"])], [value("x", [1, 1])], {"s": np.array([2**40, 2**40])}),
    ],
)  # fmt: skip
def test_sizes_that_pass_64_bits_together(build):
    with pytest.raises(FormatError, match="over 2\\^60 bytes"):
        from_onnx(build())


def test_sums_of_what_a_graph_takes_fit_64_bits():
    for storages, workspace in (([2**63], 0), ([2**59, 2**59, 1], 0), ([2**59], 2**60), ([10**30], 0)):
        builder = GraphBuilder("g")
        x = builder.tensor((1,), "uint8", builder.storage(storages[0], "input"))
        builder.inputs.append(x)
        for i, nbytes in enumerate(storages[1:]):
            y = builder.tensor((1,), "uint8", builder.storage(nbytes))
            builder.node("f", (x,), (y,), workspace=workspace if not i else 0)
        if len(storages) == 1 and workspace:
            builder.node("f", (x,), (builder.tensor((1,), "uint8"),), workspace=workspace)
        with pytest.raises(NeaptideError, match="over 2\\^60 bytes") as caught:
            builder.build()
        assert caught.value.exit_code == 2
        plain = {"nodes": [{"op": "input", "ins": [], "outs": list(range(len(storages)))}], "bufs": storages, "out": []}
        if not workspace:
            with pytest.raises(NeaptideError):
                Graph.from_json(plain)


def test_what_is_computed_to_learn_a_shape_is_small():
    """The result is refused or unknown, and never made: each would take gigabytes."""
    wide = np.arange(4096)
    for nodes, made in (
        ([helper.make_node("ConstantOfShape", ["s"], ["y"])], {"s": np.array([2**40])}),
        ([helper.make_node("Tile", ["a", "s"], ["t"]), helper.make_node("NonZero", ["t"], ["y"])], {"a": wide, "s": np.array([2**22])}),
        (
            [helper.make_node("Expand", ["a", "s"], ["t"]), helper.make_node("NonZero", ["t"], ["y"])],
            {"a": wide, "s": np.array([2**22, 4096])},
        ),
        (
            [helper.make_node("Pad", ["a", "s"], ["t"]), helper.make_node("NonZero", ["t"], ["y"])],
            {"a": wide, "s": np.array([2**30, 2**30])},
        ),
        ([helper.make_node("Range", ["z", "s", "o"], ["y"])], {"z": np.array(0), "s": np.array(2**33), "o": np.array(1)}),
    ):
        try:
            graph = from_onnx(model(nodes, [], made))
        except FormatError:
            continue
        assert sum(s.nbytes for s in graph.storages) >= 2**33
