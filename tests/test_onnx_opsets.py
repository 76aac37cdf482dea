"""Operators whose meaning changed with the opset, and files of exporters that write what they do not know, against onnxruntime."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from neaptide.cli import main
from neaptide.compiler.from_onnx import from_onnx
from neaptide.compiler.to_fx import to_fx
from neaptide.passes.liveness import liveness

FLOAT, UINT8, INT64 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT64


def model(nodes, inputs, outputs, opset, constants=(), ir=8):
    values = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    results = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs]
    graph = helper.make_graph(nodes, "net", values, results, list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def ran(proto, *arrays):
    """What the graph computes, and the shapes that it declares."""
    graph = from_onnx(proto)
    got = to_fx(graph)(*map(torch.from_numpy, arrays))
    got = got if isinstance(got, tuple | list) else (got,)
    assert [tuple(t.shape) for t in got] == [graph.tensors[t].shape for t in graph.outputs]
    return [np.asarray(t) for t in got]


def runtime(proto, **feeds):
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


@pytest.mark.parametrize("last", [0, 1])
def test_argmin_of_unsigned(last):
    x = np.array([[0, 200, 255, 0], [7, 3, 200, 3]], np.uint8)
    node = helper.make_node("ArgMin", ["x"], ["y"], axis=1, keepdims=0, select_last_index=last)
    proto = model([node], [("x", UINT8, x.shape)], [("y", INT64)], 13)
    assert np.array_equal(ran(proto, x)[0], [3, 3] if last else [0, 1])


def test_resize_takes_scales_second_before_opset_11():
    x = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    scales = helper.make_tensor("s", FLOAT, [4], [1.0, 1.0, 1.5, 2.0])
    proto = model([helper.make_node("Resize", ["x", "s"], ["y"], mode="nearest")], [("x", FLOAT, x.shape)], [("y", FLOAT)], 10, [scales])
    assert np.array_equal(ran(proto, x)[0], runtime(proto, x=x)[0])


def test_prelu_has_a_slope_for_each_channel_before_opset_7():
    x = np.linspace(-3, 3, 24, dtype=np.float32).reshape(1, 3, 2, 4)
    slope = helper.make_tensor("s", FLOAT, [3], [0.1, 0.2, 0.5])
    proto = model([helper.make_node("PRelu", ["x", "s"], ["y"])], [("x", FLOAT, x.shape)], [("y", FLOAT)], 6, [slope])
    wide = np.array([0.1, 0.2, 0.5], np.float32).reshape(3, 1, 1)
    assert np.allclose(ran(proto, x)[0], np.where(x < 0, x * wide, x))


@pytest.mark.parametrize("opset", [10, 16])
def test_roi_align_has_half_pixels_from_opset_16(opset):
    x = np.random.default_rng(0).standard_normal((1, 2, 9, 9)).astype(np.float32)
    rois, at = np.array([[0, 0, 4, 4], [1, 1, 8, 7]], np.float32), np.zeros(2, np.int64)
    node = helper.make_node("RoiAlign", ["x", "r", "b"], ["y"], output_height=3, output_width=3, sampling_ratio=2)
    proto = model([node], [("x", FLOAT, x.shape), ("r", FLOAT, rois.shape), ("b", INT64, [2])], [("y", FLOAT)], opset)
    assert np.allclose(ran(proto, x, rois, at)[0], runtime(proto, x=x, r=rois, b=at)[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]])
def test_no_window_begins_beyond_the_end(kind, pads):
    x = np.random.default_rng(0).standard_normal((1, 2, 7, 6)).astype(np.float32)
    node = helper.make_node(kind, ["x"], ["y"], kernel_shape=[3, 3], strides=[3, 2], pads=pads, ceil_mode=1)
    proto = model([node], [("x", FLOAT, x.shape)], [("y", FLOAT)], 19)
    graph = from_onnx(proto)
    assert graph.tensors[graph.outputs[0]].shape == runtime(proto, x=x)[0].shape


def test_stft_is_one_sided_by_default():
    x = np.random.default_rng(0).standard_normal((1, 400, 1)).astype(np.float32)
    constants = [helper.make_tensor("step", INT64, [], [80]), helper.make_tensor("n", INT64, [], [160])]
    proto = model([helper.make_node("STFT", ["x", "step", "", "n"], ["y"])], [("x", FLOAT, x.shape)], [("y", FLOAT)], 17, constants)
    assert ran(proto, x)[0].shape == (1, 4, 81, 2)


@pytest.mark.parametrize(("opset", "kind"), [(9, "float32"), (10, "bool")])
def test_a_dropout_mask_is_as_large_as_the_data(opset, kind):
    proto = model([helper.make_node("Dropout", ["x"], ["y", "mask"])], [("x", FLOAT, [2, 3])], [("y", FLOAT)], opset)
    graph = from_onnx(proto)
    mask = next(t for t in graph.tensors if t.name == "mask")
    assert (mask.shape, mask.dtype) == ((2, 3), kind)


def test_sizes_below_zero_are_unknown_and_names_are_made_pythons(tmp_path, capsys):
    proto = model([helper.make_node("Relu", ["0"], ["1"])], [("0", FLOAT, [-1, 3])], [("1", FLOAT)], 13, ir=3)
    x = np.array([[-1.0, 0.0, 2.0]], np.float32)
    graph = from_onnx(proto, shapes={"0": (1, 3)})
    assert np.array_equal(to_fx(graph)(torch.from_numpy(x))[0], np.maximum(x, 0)) and liveness(graph, inputs="caller").peak == 12
    path = tmp_path / "net.onnx"
    onnx.save(model([helper.make_node("Relu", ["x"], ["y"])], [("x", FLOAT, ["batch", 3])], [("y", FLOAT)], 13), path)
    for given in ("x=2x3", "batch=2"):
        assert main(["analyze", str(path), "--input", given, "--json", "--time-limit", "0.1"]) == 0
    assert main(["analyze", str(path), "--input", "2x3"]) == 2
    assert "name the one whose shape is meant" in capsys.readouterr().err
