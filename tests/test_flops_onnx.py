"""Work of ONNX operators equals hand counts, and an exported network costs what the traced one costs."""

import pytest
import torch
from torch import nn

from neaptide.compiler.count import count
from neaptide.compiler.graph import Graph
from neaptide.compiler.reference_models import reference_model
from neaptide.compiler.trace import trace

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402


def one_node(op, operands, results, *, domain="", opset=23, constants=(), **attributes):
    """(MACs, elementwise FLOPs) of one node; operands are shapes, None for an omitted one, or arrays given as constants."""
    values, names, weights = [], [], []
    for i, shape in enumerate(operands):
        names.append("" if shape is None else f"x{i}")
        if shape is None:
            continue
        if i in dict(constants):
            array = dict(constants)[i]
            weights.append(helper.make_tensor(f"x{i}", TensorProto.INT64 if isinstance(array[0], int) else TensorProto.FLOAT, shape, array))
        else:
            dtype = TensorProto.UINT8 if op in INTEGER else TensorProto.FLOAT
            values.append(helper.make_tensor_value_info(f"x{i}", dtype, shape))
    outs = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, shape) for i, shape in enumerate(results)]
    if op in INTEGER:
        outs = [helper.make_tensor_value_info(f"y{i}", TensorProto.INT32, shape) for i, shape in enumerate(results)]
    node = helper.make_node(op, names, [o.name for o in outs], domain=domain, **attributes)
    graph = helper.make_graph([node], "one", values, outs, weights)
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    counts = count(Graph.from_onnx(helper.make_model(graph, opset_imports=opsets)))
    assert not counts.unknown
    return counts.macs, counts.elementwise_flops


INTEGER = {"MatMulInteger", "ConvInteger"}
X = (2, 6, 8, 8)
N = 2 * 6 * 64
CASES = {
    "Conv": (("Conv", [(1, 4, 9, 9), (6, 2, 3, 3), (6,)], [(1, 6, 4, 4)]), {"group": 2, "strides": [2, 2]}, 6 * 16 * 2 * 9, 6 * 16),
    "Conv 1-D dilated": (("Conv", [(2, 3, 20), (5, 3, 4)], [(2, 5, 14)]), {"dilations": [2]}, 2 * 5 * 14 * 3 * 4, 0),
    "Conv 3-D": (("Conv", [(1, 2, 4, 4, 4), (3, 2, 2, 2, 2)], [(1, 3, 3, 3, 3)]), {}, 3 * 27 * 2 * 8, 0),
    "ConvTranspose": (("ConvTranspose", [(1, 4, 5, 5), (4, 3, 2, 2), (3,)], [(1, 3, 10, 10)]), {"strides": [2, 2]}, 100 * 12, 300),
    "ConvInteger": (("ConvInteger", [(1, 2, 5, 5), (3, 2, 3, 3)], [(1, 3, 3, 3)]), {}, 27 * 18, 0),
    "DeformConv": (("DeformConv", [(1, 4, 6, 6), (8, 4, 3, 3), (1, 18, 4, 4)], [(1, 8, 4, 4)]), {}, 8 * 16 * 36, 7 * 4 * 16 * 9),
    "Gemm": (("Gemm", [(3, 4), (4, 5), (5,)], [(3, 5)]), {}, 60, 15),
    "Gemm transposed": (("Gemm", [(4, 3), (5, 4)], [(3, 5)]), {"transA": 1, "transB": 1}, 60, 0),
    "Gemm scaled": (("Gemm", [(3, 4), (4, 5), (5,)], [(3, 5)]), {"alpha": 2.0, "beta": 0.5}, 60, 45),
    "MatMul": (("MatMul", [(2, 1, 3, 4), (7, 4, 5)], [(2, 7, 3, 5)]), {}, 14 * 60, 0),
    "MatMul of vectors": (("MatMul", [(4,), (4, 5)], [(5,)]), {}, 20, 0),
    "MatMulInteger": (("MatMulInteger", [(3, 4), (4, 5)], [(3, 5)]), {}, 60, 0),
    "Einsum": (("Einsum", [(2, 3, 4), (2, 4, 5)], [(2, 3, 5)]), {"equation": "bij,bjk->bik"}, 120, 0),
    "Einsum ellipsis": (("Einsum", [(2, 7, 3, 4), (4, 5)], [(2, 7, 3, 5)]), {"equation": "...ij,jk->...ik"}, 14 * 60, 0),
    "LSTM": (
        ("LSTM", [(7, 2, 5), (2, 24, 5), (2, 24, 6), (2, 48)], [(7, 2, 2, 6)]),
        {"hidden_size": 6, "direction": "bidirectional"},
        14 * 2 * 24 * 11,
        14 * 12 * 21,
    ),
    "GRU": (("GRU", [(7, 2, 5), (1, 18, 5), (1, 18, 6)], [(7, 1, 2, 6)]), {"hidden_size": 6}, 14 * 18 * 11, 14 * 6 * (3 + 3 + 5)),
    "RNN": (("RNN", [(7, 2, 5), (1, 6, 5), (1, 6, 6)], [(7, 1, 2, 6)]), {"hidden_size": 6}, 14 * 6 * 11, 14 * 6 * 2),
    "Attention": (("Attention", [(2, 8, 10, 16), (2, 2, 12, 16), (2, 2, 12, 16)], [(2, 8, 10, 16)]), {}, 16 * 120 * 32, 16 * 120 * 6),
    "Attention 3-D": (
        ("Attention", [(2, 10, 128), (2, 12, 32), (2, 12, 32)], [(2, 10, 128)]),
        {"q_num_heads": 8, "kv_num_heads": 2},
        16 * 120 * 32,
        16 * 120 * 6,
    ),
    "Relu": (("Relu", [X], [X]), {}, 0, N),
    "Add": (("Add", [X, (8,)], [X]), {}, 0, N),
    "Clip": (("Clip", [X, (), ()], [X]), {}, 0, 2 * N),
    "Gelu": (("Gelu", [X], [X]), {"approximate": "tanh"}, 0, 9 * N),
    "Max of three": (("Max", [X, X, X], [X]), {}, 0, 2 * N),
    "Softmax": (("Softmax", [X], [X]), {}, 0, 5 * N),
    "BatchNormalization": (("BatchNormalization", [X, (6,), (6,), (6,), (6,)], [X]), {}, 0, 4 * N + 2 * 6),
    "LayerNormalization": (("LayerNormalization", [X, (8, 8), (8, 8)], [X]), {"axis": 2}, 0, 8 * N + 4 * 12),
    "RMSNormalization": (("RMSNormalization", [X, (8,)], [X]), {}, 0, 4 * N + 3 * N // 8),
    "InstanceNormalization": (("InstanceNormalization", [X, (6,), (6,)], [X]), {}, 0, 8 * N + 4 * 12),
    "GroupNormalization": (("GroupNormalization", [X, (6,), (6,)], [X]), {"num_groups": 3}, 0, 8 * N + 4 * 6),
    "LRN": (("LRN", [X], [X]), {"size": 5}, 0, 10 * N),
    "MaxPool": (("MaxPool", [X], [(2, 6, 4, 4)]), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, 0, 12 * 16 * 9),
    "AveragePool": (("AveragePool", [X], [(2, 6, 4, 4)]), {"kernel_shape": [2, 2], "strides": [2, 2]}, 0, 12 * 16 * 5),
    "GlobalAveragePool": (("GlobalAveragePool", [X], [(2, 6, 1, 1)]), {}, 0, N + 12),
    "Transpose": (("Transpose", [X], [(6, 2, 8, 8)]), {"perm": [1, 0, 2, 3]}, 0, 0),
    "Flatten": (("Flatten", [X], [(2, 384)]), {}, 0, 0),
    "ReduceSum": (("ReduceSum", [X], [(1, 1, 1, 1)]), {}, 0, N),
    "DepthToSpace": (("DepthToSpace", [(1, 8, 2, 2)], [(1, 2, 4, 4)]), {"blocksize": 2}, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operator_hand_counts(name):
    (op, operands, results), attributes, macs, elementwise = CASES[name]
    assert one_node(op, operands, results, **attributes) == (macs, elementwise)


@pytest.mark.parametrize(("mode", "flops"), [("nearest", 0), ("linear", 4 * N * 7), ("cubic", 4 * N * 31)])
def test_resize(mode, flops):
    scales = {2: [1.0, 1.0, 2.0, 2.0]}
    work = one_node("Resize", [X, None, (4,)], [(2, 6, 16, 16)], constants=scales.items(), mode=mode)
    assert work == (0, flops)


def test_onnxruntime_fusions():
    assert one_node("BiasGelu", [X, (8,)], [X], domain="com.microsoft") == (0, 6 * N)
    assert one_node("SkipLayerNormalization", [(2, 7, 8), (2, 7, 8), (8,), (8,)], [(2, 7, 8)], domain="com.microsoft") == (
        0,
        112 * 9 + 4 * 14,
    )
    macs, _ = one_node("Attention", [(2, 7, 32), (32, 96), (96,)], [(2, 7, 32)], domain="com.microsoft", num_heads=4)
    assert macs == 14 * 32 * 96 + 2 * 4 * 49 * 16


def test_control_flow_is_unknown():
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Relu", ["a"], ["b"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ()),
            helper.make_tensor_value_info("c", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, (4,)),
        ],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, ()), helper.make_tensor_value_info("b", TensorProto.FLOAT, (4,))],
    )
    loop = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    inputs = [helper.make_tensor_value_info("n", TensorProto.INT64, ()), helper.make_tensor_value_info("x", TensorProto.FLOAT, (4,))]
    graph = helper.make_graph([loop], "loop", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, (4,))])
    counts = count(Graph.from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])))
    assert counts.unknown == {"onnx.Loop": 1}


@pytest.mark.parametrize("name", ["resnet8", "ds_cnn", "mobilenet_v2_035_64", "transformer_block"])
def test_exported_networks_have_the_macs_of_the_traced_ones(name, tmp_path):
    pytest.importorskip("onnxscript")
    module, args = reference_model(name)
    model, example = module(), args()
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, example, str(path), dynamo=True, external_data=False, verbose=False)
    counts = count(Graph.from_onnx(str(path)))
    assert not counts.unknown
    assert counts.macs == count(trace(model, example)).macs


def test_exported_program_has_the_macs_of_the_traced_one():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    x = torch.randn(2, 3, 8, 8)
    graph = Graph.from_exported_program(torch.export.export(model, (x,)))
    counts = count(graph)
    assert not counts.unknown
    assert counts.macs == count(trace(model, x)).macs == 2 * 8 * 36 * 27 + 2 * 8 * 36 * 4
