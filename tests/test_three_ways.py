"""One model through the recorder, `torch.export` and ONNX gives one memory peak, once spelling is set aside.

The front ends name the same computation differently: PyTorch's views are copies in ONNX, one operator here is three there, `relu_`
writes where `Relu` makes a new tensor, and each keeps results that nobody reads. `normal_form` sets exactly this aside:

1. Weights: a node that reads only weights and constants happens before the run (transposed weights, shapes, zero states).
2. Movement: a result that holds the elements of its first operand, elsewhere or in another shape (views, transposes, reshapes,
   slices, splits, clones, a `Gather` at constant positions, a concatenation of one), is that operand. Concatenation, padding and
   look-ups in a table are not movement.
3. Pointwise expressions: a pointwise result that only pointwise nodes read is not a tensor of its own but part of theirs, so the spelling
   of an activation or of a norm in inference (pointwise, too) does not matter. The tensor that the expression makes takes over the bytes of
   an operand of its size that dies there; an in-place op is a pointwise op.
4. Dead results: what no graph output depends on does not exist (pooling indices, statistics of norms).

What is left are tensors made by contractions, pools, softmax, norms, concatenations and pointwise expressions, in the order traced.
The peak is that of their sizes, graph inputs apart. Attention is one operator in all three (ONNX operator set 23).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from neaptide.compiler.exported import from_exported_program
from neaptide.compiler.graph import ITEMSIZE, Graph, Node
from neaptide.compiler.ops import op_facts
from neaptide.compiler.trace import trace
from neaptide.passes.liveness import liveness

pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore")

INFERENCE_NORMS = {"native_batch_norm", "_native_batch_norm_legit_no_training", "BatchNormalization"}
MAKES_A_TENSOR = {"cat", "Concat", "stack", "constant_pad_nd", "Pad", "embedding", "index", "repeat", "Tile", "index_select"}


@dataclass(frozen=True)
class Step:
    """One operation of the normal form: values read and made, by the id of the tensor that stands for them."""

    op: str
    pointwise: bool
    reads: tuple[int, ...]
    makes: tuple[int, ...]


class NormalForm:
    """`steps` of a graph in traced order after rules 1 to 4, the bytes of each value in `nbytes`, and the `outputs`."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.value: dict[int, int | str] = {}
        self.kinds: dict[int, str] = {}
        for t in graph.tensors:
            if graph.definer[t.id] == -1:
                self.value[t.id] = "input" if graph.storages[t.storage].role == "input" else "weight"
        for node in graph.nodes:
            self._classify(node)
        self.outputs = {v for t in graph.outputs if isinstance(v := self.value[t], int)}
        self.readers: dict[int, list[int]] = {}
        alive = {self.value[t] for t in graph.outputs}
        needed: set[int] = set()
        for node in reversed(graph.nodes):
            if node.id in self.kinds and any(t in alive for t in node.outputs):
                needed.add(node.id)
                for t in node.inputs:
                    alive.add(v := self.value[t])
                    if isinstance(v, int):
                        self.readers.setdefault(v, []).append(node.id)
        self.steps = [step for node in graph.nodes if node.id in needed and (step := self._step(node)).makes]

    def nbytes(self, value: int) -> int:
        return self.graph.tensors[value].numel * ITEMSIZE[self.graph.tensors[value].dtype]

    def _classify(self, node: Node) -> None:
        """Rules 1 and 2: what the node's results stand for; other nodes are kept as "pointwise" or "maker"."""
        if all(self.value[t] == "weight" for t in node.inputs):
            self.value.update((t, "weight") for t in node.outputs)
        elif self._moves(node):
            self.value.update((t, self.value[node.inputs[0]]) for t in node.outputs)
        else:
            facts = op_facts(node.op)
            assert facts is not None, f"{node.op} is in no table"
            pointwise = facts.kind == "elementwise" or name(node) in INFERENCE_NORMS
            self.kinds[node.id] = "pointwise" if pointwise else "maker"
            self.value.update((t, t) for t in node.outputs)

    def _moves(self, node: Node) -> bool:
        facts = op_facts(node.op)
        if name(node) in MAKES_A_TENSOR:
            return name(node) in ("cat", "Concat") and len(node.inputs) == 1
        if name(node) == "Gather":
            return self.value[node.inputs[1]] == "weight" and self.value[node.inputs[0]] != "weight"
        return self.graph.is_view(node) or (facts is not None and facts.kind in ("view", "data movement"))

    def _absorbed(self, value: int) -> bool:
        """Rule 3: part of the pointwise expressions that read it."""
        pointwise = self.kinds[self.graph.definer[value]] == "pointwise"
        return pointwise and value not in self.outputs and all(self.kinds[u] == "pointwise" for u in self.readers[value])

    def _step(self, node: Node) -> Step:
        made = tuple(t for t in node.outputs if (t in self.readers or t in self.outputs) and not self._absorbed(t))
        return Step(name(node), self.kinds[node.id] == "pointwise", tuple(dict.fromkeys(self._sources(node))), made)

    def _sources(self, node: Node) -> list[int]:
        found: list[int] = []
        for t in node.inputs:
            v = self.value[t]
            if isinstance(v, int):
                found += self._sources(self.graph.nodes[self.graph.definer[v]]) if self._absorbed(v) else [v]
        return found

    def run(self) -> tuple[int, list[int]]:
        """Most bytes alive at once, outputs kept to the end; and the bytes of every allocation, sorted."""
        last = {v: i for i, s in enumerate(self.steps) for v in (*s.reads, *s.makes)}
        last.update((v, len(self.steps)) for v in self.outputs)
        alive: set[int] = set()
        most, allocations = 0, []
        for i, step in enumerate(self.steps):
            dying = [v for v in step.reads if last[v] == i and v in alive]
            alive.update(step.makes)
            total = sum(map(self.nbytes, alive))
            if step.pointwise and any(self.nbytes(v) == self.nbytes(step.makes[0]) for v in dying):
                total -= self.nbytes(step.makes[0])
            else:
                allocations += map(self.nbytes, step.makes)
            most = max(most, total)
            alive = {v for v in alive if last[v] > i}
        return most, sorted(allocations)


def name(node: Node) -> str:
    """The operator without its namespace and overload."""
    parts = node.op.split(".")
    return parts[1] if parts[0] == "aten" else parts[-1]


# ---- models -----------------------------------------------------------------------------------------------------------


class InvertedResidual(nn.Module):
    def __init__(self, wide, out, stride):
        super().__init__()
        self.same = wide == out and stride == 1
        self.body = nn.Sequential(
            nn.Conv2d(wide, 4 * wide, 1, bias=False), nn.BatchNorm2d(4 * wide), nn.ReLU6(inplace=True),
            nn.Conv2d(4 * wide, 4 * wide, 3, stride, 1, groups=4 * wide, bias=False), nn.BatchNorm2d(4 * wide), nn.ReLU6(inplace=True),
            nn.Conv2d(4 * wide, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip

    def forward(self, x):
        return x + self.body(x) if self.same else self.body(x)


class MobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.blocks = nn.Sequential(InvertedResidual(8, 8, 1), InvertedResidual(8, 12, 2), InvertedResidual(12, 12, 1))
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.pool = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.MaxPool2d(3, 2, 1)
        self.a, self.a_norm, self.b, self.short = (
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 16, 3, 1, 1),
            nn.Conv2d(8, 16, 1, 2),
        )
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.norm(self.stem(x)), inplace=True))
        y = self.b(F.relu(self.a_norm(self.a(x)), inplace=True))
        y += self.short(x)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(F.relu(y, inplace=True), 1), 1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.up, self.d, self.out = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 8, 3, 1, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        a = F.relu(self.a(x))
        b = F.relu(self.b(F.max_pool2d(a, 2)))
        c = F.relu(self.c(F.max_pool2d(b, 2)))
        b = F.interpolate(c, scale_factor=2.0, mode="nearest") + b
        return self.out(F.relu(self.d(torch.cat([self.up(b), a], 1))))


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(24, 8, 1)
        self.layers = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(8 + 4 * i), nn.ReLU(), nn.Conv2d(8 + 4 * i, 4, 3, 1, 1)) for i in range(4))

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return F.avg_pool2d(self.down(torch.cat(features, 1)), 2)


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b, self.out = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x):
        x = F.silu(self.conv(x))
        gate = self.b(F.silu(self.a(x.mean((2, 3), keepdim=True)))).sigmoid()
        return F.hardswish(self.out(x * gate))


class TransformerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out, self.up, self.down = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 128), nn.Linear(128, 32)

    def forward(self, x):
        batch, steps, width = x.shape
        q, k, v = self.qkv(self.n1(x)).reshape(batch, steps, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, steps, width))
        return x + self.down(F.gelu(self.up(self.n2(x))))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.a, self.b, self.c, self.d = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.b(F.gelu(self.a(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        return (x + self.d(F.gelu(self.c(self.norm(x))))).mean(1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(50, 16), nn.LSTM(16, 24, batch_first=True), nn.Linear(24, 5)

    def forward(self, ids):
        return self.head(self.lstm(self.embed(ids))[0][:, -1])


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(3, 4, 5, padding=2),
            nn.Conv2d(3, 4, 1),
        )
        self.out = nn.Conv2d(24, 8, 3, stride=2)

    def forward(self, x):
        parts = [F.relu(self.a(x)), F.relu(self.b(x)), F.relu(self.c(x)), self.d(F.max_pool2d(x, 3, 1, 1))]
        return self.out(torch.cat(parts, 1)).softmax(1)


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 128), nn.Linear(128, 128), nn.Linear(128, 10)

    def forward(self, x):
        return F.log_softmax(self.c(torch.tanh(self.b(torch.tanh(self.a(x))))), 1)


class GatedConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv1d(8, 32, 5, padding=2), nn.Conv1d(16, 8, 1)

    def forward(self, x):
        a, b = self.conv(x).chunk(2, 1)
        return x + self.out(a * b.sigmoid())


IMAGE = (2, 3, 32, 32)
MODELS = {
    "mobilenet": (MobileNet, IMAGE), "resnet": (ResNet, IMAGE), "u-net": (UNet, IMAGE), "densenet": (DenseNet, IMAGE),
    "squeeze-excite": (SqueezeExcite, IMAGE), "transformer": (TransformerBlock, (2, 16, 32)), "mixer": (Mixer, (2, 3, 16, 16)),
    "lstm": (Recurrent, (3, 9)), "inception": (Inception, IMAGE), "perceptron": (Perceptron, (4, 64)),
    "gated conv": (GatedConv, (2, 8, 100)),
}  # fmt: skip
PEAKS = {
    "mobilenet": 147456, "resnet": 20480, "u-net": 262144, "densenet": 393216, "squeeze-excite": 196608, "transformer": 24576,
    "mixer": 8192, "lstm": 4320, "inception": 393216, "perceptron": 4096, "gated conv": 38400,
}  # fmt: skip


@cache
def three_ways(key):
    """The graphs of a model by way in."""
    torch.manual_seed(0)
    build, shape = MODELS[key]
    model = build().eval()
    x = torch.randint(0, 50, shape) if key == "lstm" else torch.randn(shape)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    made = torch.onnx.export(model, (x,), dynamo=True, optimize=False, verbose=False, opset_version=23)
    assert made is not None
    return {
        "recorder": trace(model, x),
        "export": from_exported_program(torch.export.export(model, (x,))),
        "onnx": Graph.from_onnx(made.model_proto),
    }


@pytest.mark.parametrize("key", MODELS)
def test_three_ways_in_one_peak(key):
    forms = {way: NormalForm(graph) for way, graph in three_ways(key).items()}
    runs = {way: form.run() for way, form in forms.items()}
    assert {way: peak for way, (peak, _) in runs.items()} == dict.fromkeys(forms, PEAKS[key])
    allocations = [made for _, made in runs.values()]
    assert allocations[0] == allocations[1] == allocations[2], "allocations match one by one, too"


@pytest.mark.parametrize("key", MODELS)
def test_recorder_and_export_agree_without_any_normal_form(key):
    graphs = three_ways(key)
    assert liveness(graphs["recorder"], inputs="caller").peak == liveness(graphs["export"], inputs="caller").peak


def test_the_older_onnx_exporter_too(tmp_path):
    """It folds norms into convolutions and runs on operator set 17."""
    for key in ("mobilenet", "resnet", "densenet", "u-net"):
        torch.manual_seed(0)
        build, shape = MODELS[key]
        path = tmp_path / "net.onnx"
        torch.onnx.export(build().eval(), (torch.randn(shape),), path, dynamo=False, opset_version=17)
        assert NormalForm(Graph.from_onnx(path)).run()[0] == PEAKS[key]


def test_the_normal_form_keeps_what_costs_memory():
    """Two models that differ by one kept tensor have different normal forms."""

    class Keeps(nn.Module):
        def __init__(self, late):
            super().__init__()
            self.late, self.a, self.b = late, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            y = self.a(x)
            z = self.b(self.b(y))
            return self.b(z + y) if self.late else self.b(z)

    x = torch.randn(IMAGE)
    early, late = (NormalForm(trace(Keeps(k).eval(), x)) for k in (False, True))
    unit = 2 * 8 * 32 * 32 * 4
    assert (early.run()[0], late.run()[0]) == (2 * unit, 3 * unit)
