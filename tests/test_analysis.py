"""`analyze`: what each number means, how they relate, and who owns the memory at the peak."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

import neaptide
from neaptide.compiler.errors import NeaptideError, TraceError
from neaptide.compiler.graph import Graph, GraphBuilder
from neaptide.compiler.reference_models import REFERENCE_MODELS
from neaptide.passes.attribution import live_storages, profile_by_role
from neaptide.passes.liveness import liveness
from neaptide.testing import brute_force_peak, graphs


class Tower(torch.nn.Module):
    """Two layers whose lines are known: the peak is at the second."""

    def __init__(self):
        super().__init__()
        self.narrow = torch.nn.Linear(8, 16)
        self.wide = torch.nn.Linear(16, 512)

    def forward(self, x):
        return self.wide(self.narrow(x)).sum(-1)


def two_branches() -> Graph:
    """x -> a, b (wide) -> small a', b': running one branch to its end first needs less than traced order does."""
    build = GraphBuilder("branches")
    x = build.tensor((16,), "float32", role="input", name="x")
    build.inputs.append(x)
    wide = [build.tensor((256,), "float32") for _ in range(2)]
    small = [build.tensor((4,), "float32") for _ in range(2)]
    for i in range(2):
        build.node("expand", (x,), (wide[i],), scope=f"branch{i}", source=f"net.py:{i}")
    for i in range(2):
        build.node("sum", (wide[i],), (small[i],), scope=f"branch{i}", workspace=100)
    build.outputs.extend(small)
    return build.build()


def test_a_model_by_hand():
    a = neaptide.analyze(Tower(), (torch.randn(4, 8),), kernels=False)
    assert a.weights == 4 * (8 * 16 + 16 + 16 * 512 + 512)
    assert a.params == 8 * 16 + 16 + 16 * 512 + 512
    assert a.macs == 4 * (8 * 16 + 16 * 512)
    assert a.flops == 2 * a.macs
    assert a.inputs == 4 * 8 * 4
    assert a.graph_peak == a.planned_peak == 4 * 4 * (16 + 512)
    assert (a.optimal, a.lower_bound, a.workspace) == (True, a.planned_peak, 0)
    assert a.total_peak == a.weights + a.inputs + a.planned_peak
    assert a.eager_peak is not None and a.eager_peak >= a.graph_peak
    assert a.name == "Tower"
    assert a.graph.nodes[a.peak_node].scope == "wide"
    assert __file__ in a.graph.nodes[a.peak_node].source
    assert [(r.nbytes, r.scope) for r in a.at_peak] == [(4 * 4 * 512, "wide"), (4 * 4 * 16, "narrow")]
    by_path = {m.path: m for m in a.by_module}
    assert list(by_path) == ["", "narrow", "wide"]
    assert by_path["wide"].kind == "Linear" and by_path["wide"].shape == (4, 512)
    assert by_path["wide"].macs + by_path["narrow"].macs == by_path[""].macs == a.macs
    assert by_path["wide"].params == 16 * 512 + 512


def test_the_order_in_use():
    best = neaptide.analyze(two_branches())
    assert best.inputs_policy == "caller"
    assert (best.graph_peak, best.planned_peak, best.lower_bound, best.optimal) == (2048 + 16 + 100, 1024 + 32 + 100, 1156, True)
    assert best.planned_peak == best.activations + best.workspace and best.workspace == 100
    traced = neaptide.analyze(two_branches(), order="traced")
    assert (traced.planned_peak, traced.graph_peak, traced.lower_bound, traced.optimal) == (2164, 2164, 1156, False)
    assert traced.schedule.order == (0, 1, 2, 3) and traced.arena >= 2164


def test_inputs_are_the_callers_or_planned():
    caller = neaptide.analyze(two_branches(), inputs="caller")
    planned = neaptide.analyze(two_branches(), inputs="planned")
    assert planned.planned_peak == 64 + 1024 + 16 + 100  # x waits for the second branch while the first ends
    assert caller.total_peak == caller.planned_peak + 64
    assert planned.total_peak == planned.planned_peak
    plain = Graph.from_json(
        {"nodes": [{"op": "input", "ins": [], "outs": [0]}, {"op": "f", "ins": [0], "outs": [1]}], "bufs": [8, 4], "out": [1]}
    )
    assert neaptide.analyze(plain).inputs_policy == "planned"
    assert neaptide.analyze(plain).planned_peak == 12


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_numbers_keep_their_order_and_add_up(graph):
    a = neaptide.analyze(graph, time_limit=0.5)
    assert a.lower_bound <= a.planned_peak <= a.graph_peak
    assert a.planned_peak <= a.arena
    assert a.graph_peak == brute_force_peak(graph, range(len(graph.nodes)), inputs=a.inputs_policy)
    assert a.planned_peak == brute_force_peak(graph, a.schedule.order, inputs=a.inputs_policy)
    assert sum(r.nbytes for r in a.at_peak) == a.planned_peak == a.activations + a.workspace
    assert a.by_module[0].path == "" and a.by_module[0].at_peak == a.planned_peak
    for role_sum, live in zip(sum(profile_by_role(a.planned).values(), start=0 * a.planned.live), a.planned.live, strict=True):
        assert role_sum == live
    top = [m for m in a.by_module if m.depth == 1]
    assert all(m.at_peak <= a.planned_peak for m in top)


def test_a_golden_set_of_json_keys():
    document = json.loads(neaptide.analyze(two_branches()).to_json())
    assert (document["format"], document["version"]) == ("neaptide.analysis", 1)
    assert list(document) == [
        "format", "version", "name", "mode", "device", "order", "inputs_policy", "eager_peak", "graph_peak", "planned_peak", "lower_bound",
        "optimal", "arena", "weights", "state", "inputs", "activations", "workspace", "total_peak", "params", "macs", "flops",
        "elementwise_flops", "unknown_ops", "peak_at", "at_peak", "by_module", "schedule", "plan", "kinds", "assumptions",
        "provenance",
    ]  # fmt: skip
    assert list(document["at_peak"][0]) == [
        "storage", "nbytes", "share", "role", "name", "shape", "dtype", "node", "op", "scope", "source",
    ]  # fmt: skip
    assert list(document["by_module"][0]) == [
        "path", "depth", "kind", "nodes", "params", "weights", "macs", "born", "at_peak", "share", "shape",
    ]  # fmt: skip
    assert list(document["peak_at"]) == ["node", "step", "op", "scope", "source"]
    assert document["unknown_ops"] == {"expand": 2, "sum": 2}
    assert document["eager_peak"] is None


def test_kernel_workspace_is_in_every_peak():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 7, padding=3), torch.nn.ReLU())
    args = (torch.randn(1, 3, 32, 32),)
    without = neaptide.analyze(model, args, kernels=False)
    measured = neaptide.analyze(model, args)
    workspace = measured.graph.nodes[0].workspace
    assert without.graph.nodes[0].workspace == 0 and without.kinds["workspace"] == "as the graph says"
    assert measured.kinds["workspace"] == "measured"
    assert measured.graph_peak == max(without.graph_peak, 4 * 64 * 32 * 32 + workspace)


def test_a_training_step_has_gradients_and_state_apart():
    model = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    a = neaptide.analyze(model, (torch.randn(8, 4),), mode="training", loss=lambda out: out.sum(), optimizer="adam", kernels=False)
    assert a.mode == "training"
    assert {node.phase for node in a.graph.nodes} == {"forward", "backward", "optimizer"}
    roles = {s.role for s in a.graph.storages}
    assert {"gradient", "optimizer_state"} <= roles
    assert a.total_peak == a.weights + a.state + a.inputs + a.planned_peak


def test_an_empty_graph():
    a = neaptide.analyze(GraphBuilder("empty").build())
    assert (a.graph_peak, a.planned_peak, a.lower_bound, a.arena, a.total_peak, a.optimal) == (0, 0, 0, 0, 0, True)
    assert a.at_peak == () and a.peak_node == -1 and a.to_dict()["peak_at"] is None
    assert "empty" in a.table()


def test_zero_size_tensors():
    a = neaptide.analyze(torch.nn.ReLU(), (torch.zeros(0, 4),), kernels=False)
    assert a.planned_peak == 0 and a.arena == 0 and a.total_peak == 0
    assert a.to_dict()["inputs"] == 0
    assert "ReLU" in a.table()


def test_live_storages_are_the_largest_first_with_the_workspace():
    graph = two_branches()
    lifetimes = liveness(graph, inputs="caller")
    rows = live_storages(graph, lifetimes.alive_at(2), 2)
    assert [(r.nbytes, r.role, r.op) for r in rows] == [
        (1024, "activation", "expand"),
        (1024, "activation", "expand"),
        (100, "workspace", "sum"),
        (16, "activation", "sum"),
    ]
    assert sum(r.share for r in rows) == pytest.approx(1)


def test_progress_is_told():
    said = []
    reference = REFERENCE_MODELS["bert_tiny"]
    neaptide.analyze(reference.module(), reference.args(), kernels=False, progress=lambda *words: said.append(words))
    assert [stage for stage, _, _ in said] == ["tracing", "searching for the best order", "laying out the arena"]


@pytest.mark.parametrize("options, word", [({"inputs": "mine"}, "mine"), ({"order": "worst"}, "worst")])
def test_unknown_options_are_named(options, word):
    with pytest.raises(NeaptideError, match=word):
        neaptide.analyze(two_branches(), **options)


def test_a_model_that_raises_is_named_with_its_line():
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("no such luck")

    with pytest.raises(TraceError, match=r"test_analysis\.py:\d+.*no such luck"):
        neaptide.analyze(Broken(), (torch.zeros(1),))


def test_what_depends_on_data_is_said():
    class Picks(torch.nn.Module):
        def forward(self, x):
            return x[x > 0.5].sum()

    a = neaptide.analyze(Picks(), (torch.linspace(0, 1, 8),), kernels=False)
    assert a.assumptions and a.to_dict()["assumptions"] == a.assumptions
    assert "Depends on data" in a.table()


def test_a_factory_is_built_without_its_weights():
    a = neaptide.analyze(Tower, (torch.randn(4, 8),), kernels=False)
    assert a.params == 8 * 16 + 16 + 16 * 512 + 512 and a.planned_peak == 4 * 4 * (16 + 512)


def test_an_analysis_prints():
    a = neaptide.analyze(two_branches(), name="shown")
    text = a.table(width=90)
    assert "shown" in text and "proven optimal" in text and "branch0" in text
    assert max(map(len, text.splitlines())) <= 90
    assert str(replace(a, optimal=False, lower_bound=1)).count("not proven optimal") == 1


def test_backward_ops_belong_to_the_modules_and_lines_of_their_forward_ops():
    a = neaptide.analyze(Tower(), (torch.randn(4, 8),), mode="training", kernels=False)
    products = [n for n in a.graph.nodes if n.phase == "backward" and n.op == "aten.mm.default"]
    assert [n.scope for n in products] == ["wide", "wide", "narrow"]
    assert len({n.source for n in products}) == 1 and __file__ in products[0].source
    by_path = {m.path: m for m in a.by_module}
    assert by_path["wide"].macs == 3 * 4 * 16 * 512 and by_path["wide"].shape == (4, 512)
