"""ONNX in: structure, shapes, views, control flow, local functions, weights that stay on disk, and what is refused."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from neaptide.compiler.errors import FormatError, MissingExtraError  # noqa: E402
from neaptide.compiler.from_onnx import from_onnx  # noqa: E402
from neaptide.compiler.graph import Graph  # noqa: E402

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def value(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def weight(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def model(nodes, inputs, outputs, initializers=(), functions=(), opset=17, domains=(), value_info=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers), value_info=list(value_info))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=9)


def conv_net():
    return model(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], name="/features/0/Conv", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Flatten", ["r"], ["f"]),
            helper.make_node("Gemm", ["f", "v"], ["y"], transB=1),
        ],
        [value("x", [1, 3, 8, 8])],
        [value("y", [1, 5])],
        [weight("w", np.ones((4, 3, 3, 3), np.float32)), weight("b", np.ones(4, np.float32)), weight("v", np.ones((5, 256), np.float32))],
    )


def test_a_conv_net_becomes_its_nodes_with_weights_apart():
    graph = Graph.from_onnx(conv_net())
    assert [n.op for n in graph.nodes] == ["onnx.Conv", "onnx.Relu", "onnx.Flatten", "onnx.Gemm"]
    assert graph.bytes_by_role() == {
        "input": 768, "parameter": 4 * (108 + 4 + 1280), "buffer": 0, "constant": 0, "activation": 2 * 1024 + 20, "gradient": 0,
        "optimizer_state": 0,
    }  # fmt: skip
    assert graph.is_view(graph.nodes[2])
    assert graph.tensors[graph.outputs[0]].shape == (1, 5)
    assert graph.nodes[0].scope == "features.0"
    assert graph.nodes[0].attrs["pads"] == [1, 1, 1, 1]
    assert graph.values[graph.nodes[0].inputs[2]].tolist() == [1.0] * 4
    assert Graph.from_json(graph.to_json()) == graph


def test_path_bytes_and_proto_give_the_same_graph(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(conv_net(), path)
    assert from_onnx(path) == from_onnx(str(path)) == from_onnx(path.read_bytes()) == from_onnx(conv_net())


def test_shape_arithmetic_is_followed_to_a_concrete_reshape():
    graph = from_onnx(
        model(
            [
                helper.make_node("Shape", ["x"], ["s"]),
                helper.make_node("Gather", ["s", "zero"], ["n"]),
                helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
                helper.make_node("Constant", [], ["minus"], value_ints=[-1]),
                helper.make_node("Concat", ["n1", "minus"], ["to"], axis=0),
                helper.make_node("Reshape", ["x", "to"], ["y"]),
            ],
            [value("x", ["batch", 3, 4])],
            [value("y", [None, None])],
            [weight("zero", np.int64(0)), weight("axis", np.array([0]))],
        ),
        shapes={"batch": 2},
    )
    assert graph.tensors[graph.outputs[0]].shape == (2, 12)
    assert graph.pinned == {graph.tensors[graph.inputs[0]].storage}


def test_the_expand_of_a_class_token_is_followed():
    """As torch writes `token.expand(n, -1, -1)`: the -1s are replaced by ones through ConstantOfShape, Equal and Where."""
    nodes = [
        helper.make_node("ConstantOfShape", ["three"], ["ones"], value=helper.make_tensor("v", INT64, [1], [1])),
        helper.make_node("Mul", ["ones", "minus"], ["minuses"]),
        helper.make_node("Equal", ["to", "minuses"], ["open"]),
        helper.make_node("Where", ["open", "ones", "to"], ["shape"]),
        helper.make_node("Expand", ["token", "shape"], ["y"]),
    ]
    weights = [weight(n, np.array(v)) for n, v in (("three", [3]), ("minus", -1), ("to", [5, -1, -1]))]
    graph = from_onnx(model(nodes, [value("token", [1, 1, 8])], [value("y", [None, None, None])], weights))
    assert graph.tensors[graph.outputs[0]].shape == (5, 1, 8)


def test_a_dynamic_input_is_refused_by_name_and_accepted_with_shapes():
    dynamic = model([helper.make_node("Relu", ["x"], ["y"])], [value("x", ["n", 3])], [value("y", ["n", 3])])
    with pytest.raises(FormatError, match=r"input 'x' has the dynamic shape \(n, 3\).*shapes=\{'x'"):
        from_onnx(dynamic)
    assert from_onnx(dynamic, shapes={"x": (7, 3)}).tensors[0].shape == (7, 3)
    assert from_onnx(dynamic, shapes={"n": 5}).tensors[0].shape == (5, 3)
    with pytest.raises(FormatError, match="does not fit"):
        from_onnx(dynamic, shapes={"x": (7, 4)})


def test_dropout_is_a_view_in_inference_and_an_operator_in_training():
    def net(training):
        return model(
            [helper.make_node("Dropout", ["x", "", "t"], ["y"])], [value("x", [4])], [value("y", [4])], [weight("t", np.bool_(training))]
        )

    assert from_onnx(net(False)).is_view(from_onnx(net(False)).nodes[0])
    assert not from_onnx(net(True)).is_view(from_onnx(net(True)).nodes[0])


def test_an_omitted_operand_keeps_its_place():
    graph = from_onnx(
        model([helper.make_node("Clip", ["x", "", "hi"], ["y"])], [value("x", [4])], [value("y", [4])], [weight("hi", np.float32(6))])
    )
    spec = graph.nodes[0].attrs["$inputs"]
    assert [None if r is None else r.index for r in spec] == [0, None, 1]


def test_local_functions_are_inlined():
    body = helper.make_function(
        "local", "Twice", ["a"], ["b"],
        [helper.make_node("Relu", ["a"], ["t"]), helper.make_node("Add", ["t", "t"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    net = model(
        [helper.make_node("Twice", ["x"], ["m"], domain="local"), helper.make_node("Twice", ["m"], ["y"], domain="local")],
        [value("x", [2])], [value("y", [2])], functions=[body], domains=["local"],
    )  # fmt: skip
    assert [n.op for n in from_onnx(net).nodes] == ["onnx.Relu", "onnx.Add"] * 2


def branches(condition, wide=1):
    def branch(name, op):
        nodes = [helper.make_node("Concat", ["x"] * wide, [f"{name}_c"], axis=0), helper.make_node(op, [f"{name}_c"], [f"{name}_r"])]
        nodes.append(helper.make_node("Slice", [f"{name}_r", "start", "end"], [f"{name}_o"]))
        return helper.make_graph(nodes, name, [], [value(f"{name}_o", [4])])

    node = helper.make_node("If", ["c"], ["y"], name="choose", then_branch=branch("t", "Relu"), else_branch=branch("e", "Neg"))
    weights = [weight("start", np.array([0])), weight("end", np.array([4]))]
    inputs = [value("x", [4])]
    if condition is None:
        inputs.append(value("c", [], BOOL))
    else:
        weights.append(weight("c", np.bool_(condition)))
    return model([node], inputs, [value("y", [4])], weights)


def test_an_if_whose_condition_is_known_becomes_its_branch():
    assert [n.op for n in from_onnx(branches(True)).nodes] == ["onnx.Concat", "onnx.Relu", "onnx.Slice"]
    assert [n.op for n in from_onnx(branches(False)).nodes] == ["onnx.Concat", "onnx.Neg", "onnx.Slice"]


def test_an_if_whose_condition_is_data_reads_its_captures_and_has_its_branches_memory():
    graph = from_onnx(branches(None, wide=3))
    (node,) = graph.nodes
    names = [graph.tensors[t].name for t in node.inputs]
    assert names == ["c", "x", "start", "end"]
    assert node.workspace == 2 * 48 - 16  # concat and its relu, less the result, which the outer graph counts
    assert graph.meta["workspace_bounds"] == ["choose"]


def test_a_loop_stacks_its_slices_and_counts_its_body():
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["still"]),
            helper.make_node("Add", ["h", "x"], ["h2"]),
            helper.make_node("Relu", ["h2"], ["out"]),
        ],
        "body",
        [value("i", [], INT64), value("go", [], BOOL), value("h", [8])],
        [value("still", [], BOOL), value("h2", [8]), value("out", [8])],
    )
    net = model(
        [helper.make_node("Loop", ["m", "", "x"], ["last", "all"], body=body)],
        [value("x", [8])], [value("last", [8]), value("all", [None, 8])], [weight("m", np.int64(5))],
    )  # fmt: skip
    graph = from_onnx(net)
    assert [graph.tensors[t].shape for t in graph.outputs] == [(8,), (5, 8)]
    assert graph.nodes[0].workspace == 1 + 32 + 32 - 32  # the condition, carried in and out; less carried out, which the outer graph counts


def test_a_scan_has_the_length_of_the_axis_it_scans():
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "e"], ["s2"]), helper.make_node("Neg", ["s2"], ["o"])],
        "body", [value("s", [3]), value("e", [3])], [value("s2", [3]), value("o", [3])],
    )  # fmt: skip
    net = model(
        [helper.make_node("Scan", ["s0", "x"], ["s9", "y"], body=body, num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1])],
        [value("s0", [3]), value("x", [3, 6])], [value("s9", [3]), value("y", [3, 6])],
    )  # fmt: skip
    assert [from_onnx(net).tensors[t].shape for t in from_onnx(net).outputs] == [(3,), (3, 6)]


def test_sequences_dissolve_into_tensors():
    nodes = [
        helper.make_node("SplitToSequence", ["x", "two"], ["q"], axis=1),
        helper.make_node("SequenceAt", ["q", "first"], ["a"]),
        helper.make_node("SequenceAt", ["q", "last"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("SequenceInsert", ["q", "c", "first"], ["r"]),
        helper.make_node("SequenceErase", ["r", "last"], ["s"]),
        helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0),
        helper.make_node("SequenceLength", ["s"], ["n"]),
        helper.make_node("ConcatFromSequence", ["s"], ["z"], axis=0, new_axis=1),
    ]
    weights = [weight(n, np.array(v)) for n, v in (("two", 2), ("first", 0), ("last", -1))]
    outputs = [value("y", [4, 2]), value("n", [], INT64), value("z", [2, 2, 2]), value("a", [2, 2])]
    graph = from_onnx(model(nodes, [value("x", [2, 4])], outputs, weights))
    kinds = [n.op.removeprefix("onnx.") for n in graph.nodes]
    assert kinds == ["Split", "Relu", "Concat", "Unsqueeze", "Unsqueeze", "Concat"]
    assert [graph.tensors[t].shape for t in graph.outputs] == [(4, 2), (), (2, 2, 2), (2, 2)]
    unknown = model(
        [helper.make_node("SplitToSequence", ["x"], ["q"]), helper.make_node("SequenceAt", ["q", "i"], ["y"])],
        [value("x", [2, 4]), value("i", [], INT64)], [value("y", [1, 4])],
    )  # fmt: skip
    with pytest.raises(FormatError, match="takes a position that is not known"):
        from_onnx(unknown)
    listed = model([helper.make_node("SequenceConstruct", ["x", "x"], ["y"])], [value("x", [2])], [value("y", None)])
    with pytest.raises(FormatError, match="graph output 'y' is a sequence"):
        from_onnx(listed)


def test_an_operator_of_onnxruntime_gets_its_shape_and_an_unknown_one_is_named():
    fused = model(
        [helper.make_node("FusedMatMul", ["a", "b"], ["y"], domain="com.microsoft", transB=1)],
        [value("a", [2, 3, 4]), value("b", [2, 5, 4])], [value("y", None)], domains=["com.microsoft"],
    )  # fmt: skip
    assert from_onnx(fused).tensors[from_onnx(fused).outputs[0]].shape == (2, 3, 5)
    strange = model(
        [helper.make_node("Frobnicate", ["x"], ["y"], domain="acme", name="n7")], [value("x", [2])], [value("y", None)], domains=["acme"]
    )
    with pytest.raises(FormatError, match=r"'y', a result of node 'n7' \(acme.Frobnicate\), is unknown.*value_info"):
        from_onnx(strange)
    strange.graph.output[0].CopyFrom(value("y", [9]))
    assert from_onnx(strange).tensors[from_onnx(strange).outputs[0]].shape == (9,)


def test_a_shape_that_depends_on_data_asks_for_a_bound():
    net = model([helper.make_node("NonZero", ["x"], ["y"])], [value("x", [3, 4])], [value("y", [2, None], INT64)])
    with pytest.raises(FormatError, match="depends on data"):
        from_onnx(net)
    assert from_onnx(net, shapes={"y": (2, 12)}).tensors[1].shape == (2, 12)


# ---- what is refused --------------------------------------------------------------------------------------------------


def test_cyclic_unsorted_and_undefined_are_told_apart():
    def net(*nodes):
        return model(list(nodes), [value("x", [2])], [value("y", [2])])

    with pytest.raises(FormatError, match="the graph is cyclic"):
        from_onnx(
            net(helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["y"]))
        )
    with pytest.raises(FormatError, match=r"not in topological order.*Sort"):
        from_onnx(net(helper.make_node("Neg", ["a"], ["y"]), helper.make_node("Relu", ["x"], ["a"])))
    with pytest.raises(FormatError, match="reads 'q', which nothing defines"):
        from_onnx(net(helper.make_node("Neg", ["q"], ["y"])))
    with pytest.raises(FormatError, match="'y' is defined twice"):
        from_onnx(net(helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Relu", ["x"], ["y"])))
    with pytest.raises(FormatError, match="graph output 'y' is defined nowhere"):
        from_onnx(net(helper.make_node("Neg", ["x"], ["z"])))


def test_files_that_are_no_models(tmp_path):
    whole = conv_net().SerializeToString()
    for cut in (0, 1, 10, len(whole) // 2, len(whole) - 3):
        path = tmp_path / f"cut{cut}.onnx"
        path.write_bytes(whole[:cut])
        with pytest.raises(FormatError, match=f"cut{cut}.onnx"):
            from_onnx(path)
    for source, text in ((tmp_path / "none.onnx", "does not exist"), (tmp_path, "is a folder"), (b"hello", "ONNX"), (7, "not int")):
        with pytest.raises(FormatError, match=text):
            from_onnx(source)


def test_without_onnx_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'neaptide\[onnx\]'"):
        from_onnx(b"")


def test_ill_formed_weights_are_named():
    net = conv_net()
    net.graph.initializer[0].raw_data = b"123"
    with pytest.raises(FormatError, match=r"tensor 'w' of shape \[4, 3, 3, 3\] takes 432 bytes, not 3"):
        from_onnx(net)
    net = conv_net()
    net.graph.initializer[0].dims[0] = -1
    with pytest.raises(FormatError, match="'w' has a negative dimension"):
        from_onnx(net)
    net = conv_net()
    net.graph.node[0].name = ""
    net.graph.initializer[0].dims.append(1)
    with pytest.raises(FormatError, match=r"the Conv that makes 'c' is not well formed"):
        from_onnx(net)


def external(tmp_path, location, nbytes=1024, **entries):
    """A model in `tmp_path` whose one weight of 1,024 bytes lies at `location`."""
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[256], data_location=TensorProto.EXTERNAL)
    for key, text in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(text))
    net = model([helper.make_node("Add", ["x", "w"], ["y"])], [value("x", [256])], [value("y", [256])], [tensor])
    path = tmp_path / "in" / "net.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(net.SerializeToString())
    return path


def test_external_data_is_read_when_asked_for_and_not_before(tmp_path):
    path = external(tmp_path, "w.bin", offset=4096)
    graph = from_onnx(path)
    assert graph.bytes_by_role()["parameter"] == 1024
    with pytest.raises(FormatError, match=r"'w' cannot be read from 'w.bin'"):
        graph.values[graph.nodes[0].inputs[1]]
    (path.parent / "w.bin").write_bytes(b"\0" * 4096 + np.arange(256, dtype=np.float32).tobytes())
    assert graph.values[graph.nodes[0].inputs[1]].tolist() == list(range(256))
    (path.parent / "w.bin").write_bytes(b"\0" * 5000)
    with pytest.raises(FormatError, match=r"ends at byte 5,120 of 'w.bin', which has only 5,000"):
        from_onnx(path)


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "a/../../w.bin", "..\\w.bin", "C:\\w.bin", "\\\\host\\w.bin", ""])
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    (tmp_path / "w.bin").write_bytes(b"\0" * 1024)
    with pytest.raises(FormatError, match="'w'"):
        from_onnx(external(tmp_path, location))


def test_links_that_leave_the_folder_are_refused(tmp_path):
    path = external(tmp_path, "w.bin")
    (tmp_path / "secret").write_bytes(b"\0" * 1024)
    os.symlink(tmp_path / "secret", path.parent / "w.bin")
    with pytest.raises(FormatError, match=r"a link to .*secret.* outside the model's folder"):
        from_onnx(path)
    os.unlink(path.parent / "w.bin")
    os.symlink(tmp_path, path.parent / "sub")
    with pytest.raises(FormatError, match="outside the model's folder"):
        from_onnx(external(tmp_path, "sub/secret"))
    (path.parent / "real.bin").write_bytes(b"\0" * 1024)
    os.symlink("real.bin", path.parent / "w2.bin")
    assert from_onnx(external(tmp_path, "w2.bin")).nodes


def test_bfloat16_float8_and_packed_weights_have_their_bytes():
    import torch

    tensors = [
        helper.make_tensor("bf", TensorProto.BFLOAT16, [4], [1.5, 2, 3, -4]),
        helper.make_tensor("f8", TensorProto.FLOAT8E4M3FN, [3], [1.5, 2, 3]),
        helper.make_tensor("i4", TensorProto.INT4, [5], [1, 2, 3, 4, -1]),
    ]
    nodes = [helper.make_node("Identity", [t.name], [t.name + "o"]) for t in tensors]
    graph = from_onnx(
        model(
            nodes,
            [],
            [helper.make_tensor_value_info(n.output[0], t.data_type, t.dims) for n, t in zip(nodes, tensors, strict=True)],
            tensors,
            opset=21,
        )
    )
    assert [graph.storages[s].nbytes for s in range(3)] == [8, 3, 3]
    assert graph.values[0].dtype == torch.bfloat16 and graph.values[0].tolist() == [1.5, 2, 3, -4]
    assert graph.values[1].dtype == torch.float8_e4m3fn
