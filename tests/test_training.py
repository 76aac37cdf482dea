"""Training steps: peaks equal the profiler's in every phase, roles and phases are right, the model is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.ground_truth import mark, peaks_by_mark
from neaptide.compiler.errors import NeaptideError, SourceError, TraceError
from neaptide.compiler.graph import Graph, GraphBuilder, Ref
from neaptide.compiler.in_place_gradients import accumulate_in_place
from neaptide.compiler.optimizers import make_optimizer
from neaptide.compiler.oracle import with_workspaces
from neaptide.compiler.trace import trace
from neaptide.compiler.training import TrainingLoop, trace_training
from neaptide.passes.liveness import eager_liveness

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


class Residual(nn.Module):
    """Fan-in of gradients, a saved number, dropout."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(24, 96), nn.Linear(96, 24), nn.Linear(24, 5)
        self.norm, self.drop = nn.LayerNorm(24), nn.Dropout(0.1)
        self.checkpointed = checkpointed

    def block(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(self.b(F.gelu(self.a(self.norm(x))))) * 0.35

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            x = checkpoint(self.block, x, use_reentrant=False) if self.checkpointed else self.block(x)  # type: ignore[assignment]
        return self.c(x)


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.body, self.head = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Linear(8, 4),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head((x + F.relu(self.body(x)) / 3).mean((2, 3)))


class InPlace(nn.Module):
    """In-place ops on views, with numbers and with tensors that need gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([self.a(x), x], 1)[:, :8]
        y += self.b(x)
        z = self.b(x).mul_(3.0)
        return y * z


class Tied(nn.Module):
    """One weight used twice, an LSTM whose saved state fake tensors call empty."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(40, 16), nn.LSTM(16, 16, batch_first=True), nn.Linear(16, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden, _ = self.lstm(self.embed(tokens))
        logits = self.head(hidden)
        return {"logits": logits, "loss": F.cross_entropy(logits.flatten(0, 1), tokens.flatten())}


CASES = {
    "residual": (Residual, torch.randn(4, 9, 24), "adamw", {}),
    "checkpointed": (lambda: Residual(checkpointed=True), torch.randn(4, 9, 24), "adamw:fused", {"accumulate": 2}),
    "convolutional": (Convolutional, torch.randn(2, 3, 12, 12), "sgd:momentum=0.9", {"set_to_none": False}),
    "autocast": (Convolutional, torch.randn(2, 3, 12, 12), "adam:foreach", {"autocast": "bfloat16"}),
    "in place": (InPlace, torch.randn(4, 12), "adamw:fused", {"accumulate": 2}),
    "tied": (Tied, torch.randint(40, (3, 7)), "adam", {}),
    "no optimizer": (Residual, torch.randn(4, 9, 24), None, {"loss": lambda y: (y * 2.5).mean()}),
}


def predicted_phases(graph: Graph) -> dict[str, int]:
    """Peak per phase plus what an earlier step left behind."""
    carried = sum(s.nbytes for s in graph.storages if s.role in ("gradient", "optimizer_state") and graph.birth[s.id] < 0)
    live = eager_liveness(graph).live
    return {
        phase: carried + max(int(b) for node, b in zip(graph.nodes, live, strict=True) if node.phase == phase)
        for phase in {n.phase for n in graph.nodes}
    }


@pytest.mark.parametrize("case", CASES)
def test_peaks_of_both_steps_are_the_profilers_to_the_byte(case: str, cache: Path) -> None:
    build, x, optimizer, options = CASES[case]
    predicted = {}
    graphs = with_workspaces((trace_training(build(), (x,), optimizer=optimizer, step=step, **options) for step in (1, 2)), cache_dir=cache)
    for step, graph in enumerate(graphs, 1):
        assert graph.meta["kernels"]["unmeasured"] == {}
        predicted |= {(step, phase): peak for phase, peak in predicted_phases(graph).items()}
    loop = TrainingLoop(**options)

    def steps(model: nn.Module) -> None:
        model.train()
        optim = make_optimizer(optimizer, list(model.parameters()))
        for step in (1, 2):
            loop.step(model, (x,), {}, optim, lambda phase, step=step: mark(f"{step} {phase}"))

    steps(build())
    real = build()
    truth: dict[tuple[int, str], int] = {}
    for name, peak in peaks_by_mark(lambda: steps(real)):
        step, phase = name.split()
        key = (int(step), phase)
        truth[key] = max(truth.get(key, 0), peak.nbytes)
    if optimizer is None:
        truth = {key: value for key, value in truth.items() if key[1] != "optimizer"}
    assert predicted == truth


def test_phases_and_roles(cache: Path) -> None:
    model = Residual()
    graph = trace(model, (torch.randn(2, 3, 24),), mode="training", optimizer="adamw")
    phases = [n.phase for n in graph.nodes]
    assert phases == sorted(phases, key=["forward", "backward", "optimizer"].index)
    roles = graph.bytes_by_role()
    weights = sum(p.numel() * 4 for p in model.parameters())
    steps = 4 * len(list(model.parameters()))
    assert roles["parameter"] == roles["gradient"] == weights
    assert roles["optimizer_state"] == 2 * weights + steps
    assert all(graph.birth[s.id] < 0 for s in graph.storages if s.role == "optimizer_state")
    assert graph.meta["training"] == {"step": 2, "optimizer": "AdamW", "accumulate": 1, "set_to_none": True, "autocast": None}
    first = trace_training(model, (torch.randn(2, 3, 24),), optimizer="adamw", step=1)
    assert all(graph.nodes[first.birth[s.id]].phase == "optimizer" for s in first.storages if s.role == "optimizer_state" and s.nbytes > 4)


def test_what_the_next_step_needs_outlives_the_step() -> None:
    model, x = nn.Linear(6, 4), torch.randn(2, 6)
    weights = 4 * (6 * 4 + 4)

    def kept(**options: Any) -> dict[str, int]:
        graph = trace_training(model, (x,), **options)
        born = [graph.storages[s] for s in sorted(graph.pinned) if graph.birth[s] >= 0]
        return {role: sum(s.nbytes for s in born if s.role == role) for role in ("gradient", "optimizer_state")}

    assert kept() == {"gradient": weights, "optimizer_state": 0}
    assert kept(optimizer="adam:fused", step=1) == {"gradient": 0, "optimizer_state": 2 * weights + 2 * 4}
    assert kept(optimizer="sgd", step=1, set_to_none=False) == {"gradient": weights, "optimizer_state": 0}
    assert kept(optimizer="adam", step=2, set_to_none=False) == {"gradient": 0, "optimizer_state": 0}


def test_backward_nodes_carry_the_module_and_line_they_come_from() -> None:
    graph = trace_training(Convolutional(), (torch.randn(2, 3, 8, 8),))
    backward = [n for n in graph.nodes if n.op == "aten.convolution_backward.default"]
    assert [n.scope for n in backward] == ["body", "stem"]
    assert all(n.source.split(":")[0].endswith("test_training.py") for n in backward)


def test_the_model_and_its_optimizer_are_left_as_they_were() -> None:
    model = Convolutional().eval()
    optimizer = torch.optim.AdamW(model.parameters())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    graph = trace(model, (torch.randn(2, 3, 8, 8),), mode="training", optimizer=optimizer)
    assert {id(p) for p in model.parameters()} == {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert not model.training
    assert not optimizer.state
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert graph.bytes_by_role()["optimizer_state"] > 0
    assert torch.random.get_rng_state is torch.get_rng_state


def test_every_way_to_name_an_optimizer() -> None:
    model = nn.Linear(3, 3)
    x = torch.randn(2, 3)
    real = torch.optim.Adam(model.parameters())
    model(x).sum().backward()
    real.step()
    ways: list[Any] = ["adam", "Adam", torch.optim.Adam, lambda params: torch.optim.Adam(params, lr=1e-4), real]
    graphs = [trace_training(model, (x,), optimizer=way) for way in ways]
    assert len({tuple(n.op for n in g.nodes) for g in graphs}) == 1
    assert trace_training(model, (x,), optimizer="adam:fused,lr=0.1").nodes[-1].op == "aten._fused_adam_.default"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"optimizer": "adamm"}, SourceError, "Did you mean 'adam"),
        ({"optimizer": "adam:speed=9"}, SourceError, "no option 'speed'"),
        ({"optimizer": "adam:lr=fast"}, SourceError, "'fast' is neither"),
        ({"optimizer": 3}, TraceError, "give a name, a class"),
        ({"optimizer": lambda params: None}, TraceError, "returns a torch.optim.Optimizer"),
        ({"step": 3}, TraceError, "step=3"),
        ({"accumulate": 0}, TraceError, "accumulate=0"),
        ({"loss": lambda y: y}, TraceError, "scalar"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], error: type[NeaptideError], words: str) -> None:
    with pytest.raises(error, match=words):
        trace_training(nn.Linear(3, 3), (torch.randn(2, 3),), **options)


def test_a_model_with_nothing_to_train_says_so() -> None:
    frozen = nn.Linear(3, 3).requires_grad_(False)
    with pytest.raises(TraceError, match="unfreeze"):
        trace_training(frozen, (torch.randn(2, 3),))
    with pytest.raises(TraceError, match="no parameter that needs gradients"):
        trace_training(frozen, (torch.randn(2, 3),), optimizer="sgd")


def sum_of_two(released: int, first_is_external: bool = False) -> Graph:
    """Nodes: make g0, make g1, add them. g0 is released at node `released`."""
    build = GraphBuilder("sum")
    g0, g1, total = (build.tensor((4,), "float32") for _ in range(3))
    if first_is_external:
        build.storages[0] = type(build.storages[0])(0, 16, "gradient", "kept")
        build.node("aten.ones.default", [], [build.tensor((4,), "float32")], attrs={"args": [[4]], "kwargs": {}})
    else:
        build.node("aten.ones.default", [], [g0], attrs={"args": [[4]], "kwargs": {}})
    build.node("aten.ones.default", [], [g1], attrs={"args": [[4]], "kwargs": {}})
    build.node("aten.add.Tensor", [g0, g1], [total], attrs={"args": [Ref(0), Ref(1)], "kwargs": {}}, phase="backward")
    build.node("aten.relu.default", [total], [build.tensor((4,), "float32")], attrs={"args": [Ref(0)], "kwargs": {}})
    build.released = [released, 2, 3, None, *([None] if first_is_external else [])]
    return build.build()


def test_a_sum_lands_on_an_argument_that_dies_there() -> None:
    merged = accumulate_in_place(sum_of_two(released=2), [2])
    node = merged.nodes[2]
    assert node.op == "aten.add_.Tensor"
    assert node.writes == (merged.tensors[node.inputs[0]].storage,) == (merged.tensors[node.outputs[0]].storage,)
    assert len(merged.storages) == 3
    assert merged.released[node.writes[0]] == 3, "it lives as long as the sum did"


@pytest.mark.parametrize(("released", "external"), [(3, False), (2, True)])
def test_a_sum_stays_apart_from_an_argument_still_held(released: int, external: bool) -> None:
    graph = sum_of_two(released, external)
    assert accumulate_in_place(graph, [2]) == graph
