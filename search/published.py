"""Published networks from their block tables: FBNet and FBNetV2, ProxylessNAS, and Once-For-All's specialised networks.

A row is a mapping as in `published_models.json`: `name`, `resolution` and an `arch` that holds either the stages of a FBNet definition
(`op`, `out`, `stride`, `expand`, ...) or the layers of a ProxylessNAS or Once-For-All configuration (`first_conv`, `blocks`, ...).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..compiler.count import count
from ..compiler.errors import SourceError
from ..compiler.graph import Graph
from .spaces.mobile import Chain, Classifier, Conv, GlobalPool, Layer, MBConv, divisible

if TYPE_CHECKING:
    import torch

_ACTIVATIONS = {"relu": "relu", "relu6": "relu6", "h_swish": "hardswish"}
_CLASSES = 1000


def from_published(row: Mapping[str, Any]) -> torch.nn.Module:
    """The network of `row` with freshly initialised weights. Raises `SourceError` when the row has no block table, or one of a kind
    that is not known, and names the block it cannot read.
    """
    return published_chain(row).module()


def published_chain(row: Mapping[str, Any]) -> Chain:
    """The layers of `row`: `graph()` gives its inference graph without torch. Raises as `from_published` does."""
    arch = row.get("arch")
    if not arch:
        raise SourceError(f"published network {row.get('name')!r} has no block table")
    if "stages" in arch:
        return _fbnet(row, arch)
    if arch.get("kind") in ("ProxylessNASNets", "MobileNetV3"):
        return _layers(row, arch)
    raise SourceError(
        f"published network {row.get('name')!r} is of kind {arch.get('kind')!r}; known are ProxylessNASNets, MobileNetV3, stages"
    )


def published_counts(row: Mapping[str, Any], graph: Graph | None = None) -> tuple[int, int]:
    """(parameters, multiply-adds) of the network of `row`, counted the way its publisher counts them.

    FBNet and FBNetV2: weights of convolutions and of the classifier alone, no biases, no batch norms; an averaged pixel counts as a
    multiply-add. ProxylessNAS and Once-For-All: all parameters, and the multiply-adds of convolutions and of the classifier.
    """
    graph = graph or published_chain(row).graph()
    parameters, macs = [s for s in graph.storages if s.role == "parameter"], count(graph).macs
    if "stages" in row["arch"]:
        parameters = [s for s in parameters if s.name.endswith((".conv.weight", ".linear.weight", ".reduce.weight", ".expand.weight"))]
        macs += sum(graph.tensors[node.inputs[0]].numel for node in graph.nodes if node.op == "aten.mean.dim")
    return sum(s.nbytes for s in parameters) // 4, macs


# ---- ProxylessNAS and Once-For-All ---------------------------------------------------------------------------------------------


def _layers(row: Mapping[str, Any], arch: Mapping[str, Any]) -> Chain:
    first = arch["first_conv"]
    parts: list[tuple[str, Layer]] = [("stem", Conv(first["out"], first["k"], first["s"], _activation(row, first["act"])))]
    parts += [(f"blocks.{i}", _block(row, block)) for i, block in enumerate(arch["blocks"]) if block != "zero"]
    if "final_expand_layer" in arch:
        parts.append(("head.expand", _head(row, arch["final_expand_layer"])))
        parts += [("head.pool", GlobalPool()), ("head.mix", _head(row, arch["feature_mix_layer"]))]
    else:
        parts += [("head.mix", _head(row, arch["feature_mix_layer"])), ("head.pool", GlobalPool())]
    parts.append(("head.classifier", Classifier(arch["classifier"]["o"])))
    eps = 1e-5 if arch["kind"] == "MobileNetV3" else 1e-3
    return Chain((1, 3, row["resolution"], row["resolution"]), tuple(parts), eps)


def _block(row: Mapping[str, Any], block: Mapping[str, Any]) -> MBConv:
    middle = block.get("mid", round(block["i"] * block["e"]))
    return MBConv(
        block["o"],
        middle,
        block["k"],
        block["s"],
        _activation(row, block.get("act", "relu6")),
        squeeze=divisible(middle // 4) if block.get("se") else 0,
        expand=block["e"] != 1,
        shortcut=block["skip"],
    )


def _head(row: Mapping[str, Any], layer: Mapping[str, Any]) -> Conv:
    return Conv(layer["o"], layer["k"], 1, _activation(row, layer["act"]), bias=layer["bias"], norm=layer["bn"])


def _activation(row: Mapping[str, Any], name: str) -> str:
    if name not in _ACTIVATIONS:
        raise SourceError(f"published network {row.get('name')!r} has activation {name!r}; known are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


# ---- FBNet ---------------------------------------------------------------------------------------------------------------------


def _fbnet(row: Mapping[str, Any], arch: Mapping[str, Any]) -> Chain:
    parts: list[tuple[str, Layer]] = []
    channels, divisor = 3, arch.get("width_divisor", 1)
    for s, stage in enumerate(arch["stages"]):
        repeated = [block if i == 0 else {**block, "stride": 1} for block in stage for i in range(block["repeat"])]
        for b, block in enumerate(repeated):
            parts += _fbnet_block(row, block, channels, divisor, f"stages.{s}.{b}")
            channels = block["out"]
    parts += [("head.pool", GlobalPool()), ("head.classifier", Classifier(_CLASSES))]
    return Chain((1, 3, arch["input_size"], arch["input_size"]), tuple(parts))


def _fbnet_block(row: Mapping[str, Any], block: Mapping[str, Any], inputs: int, divisor: int, path: str) -> list[tuple[str, Layer]]:
    """One block by its words: `conv_kK`; `ir_kK`, with `sehsig` where gated and `gG` where grouped; `ir_pool`, pooled before its
    last convolution; `skip`. `hs` swaps ReLU for hard swish.
    """
    kind, *words = block["op"].split("_")
    kernel = next((int(w[1:]) for w in words if re.fullmatch(r"k\d+", w)), 0)
    out, stride, bias, groups = block["out"], block["stride"], block.get("bias", False), block.get("pwl_groups", 1)
    middle = _rounded(inputs * block.get("expand", 1), divisor)
    allowed = {"conv": r"k\d+|hs", "ir": r"k\d+|hs|sehsig|pool|g\d+", "skip": ""}.get(kind)
    shuffled = groups > 1 and middle != inputs
    if (
        allowed is None
        or shuffled
        or not all(re.fullmatch(allowed, w) for w in words)
        or (kind != "skip") != (kernel > 0 or "pool" in words)
    ):
        raise SourceError(f"published network {row.get('name')!r} has a block {block['op']!r} that is not known")
    activation = "hardswish" if "hs" in words else "relu"
    if kind == "conv":
        return [(path, Conv(out, kernel, stride, activation))]
    if kind == "skip":
        return [] if out == inputs and stride == 1 else [(path, Conv(out, 1, stride, activation))]
    if "pool" in words:
        mix = Conv(out, activation=activation, bias=bias, norm=False)
        return [(f"{path}.expand", Conv(middle, activation=activation, bias=bias)), (f"{path}.pool", GlobalPool()), (f"{path}.mix", mix)]
    squeeze = _rounded(middle // 4, divisor) if "sehsig" in words else 0
    same = stride == 1 and out == inputs
    return [(path, MBConv(out, middle, kernel, stride, activation, squeeze, middle != inputs, same, bias, activation, groups))]


def _rounded(value: float, divisor: int) -> int:
    """FBNet's channel rounding: to the nearest multiple of `divisor`, halves up, never more than 5 % below `value`."""
    if value % divisor == 0:
        return int(value)
    rounded = max(1, int(value / divisor + 0.5)) * divisor
    return rounded + divisor if rounded < 0.95 * value else rounded
