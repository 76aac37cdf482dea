"""Costs without a run: many networks at once as the one-by-one sum, an error bar that networks bear out, and nothing built."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neaptide.cli import main
from neaptide.compiler.errors import BudgetError, NeaptideError, SourceError
from neaptide.compiler.graph import GraphBuilder
from neaptide.targets import predict
from neaptide.targets.database import CostDatabase, NetworkRow, OperatorRow
from neaptide.targets.predict import operator_counts, operator_graph, predict_networks, predicted_cost
from neaptide.targets.predictors import fit_operators, save_predictor, table_of
from neaptide.targets.predictors.fit import accuracy_of
from neaptide.targets.predictors.operators import OperatorPredictor
from neaptide.targets.remember import features
from neaptide.targets.spec import load_target

absent = [name for name in ("tvm", "ziglang", "unicorn", "elftools") if importlib.util.find_spec(name) is None]
needs_mcu = pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} not installed: pip install 'neaptide[mcu]'")
CHANNELS, SIDES = (4, 8, 12, 16, 24, 32), (4, 6, 8, 12, 16)


def signature(inputs: int, outputs: int, side: int, kernel: int = 3) -> str:
    shapes = f"1x{inputs}x{side}x{side},{outputs}x{inputs}x{kernel}x{kernel},1x{outputs}x1x1,1x{outputs}x{side}x{side}"
    return f"conv2d_add_relu({shapes})#{inputs * outputs * side:016x}"


def drawn(rng: np.random.Generator) -> str:
    return signature(int(rng.choice(CHANNELS)), int(rng.choice(CHANNELS)), int(rng.choice(SIDES)), int(rng.choice([1, 3])))


def law(operator: str, rng: np.random.Generator) -> float:
    """A power law of the multiply-adds, up to noise of 5 %."""
    return float(900 + 7.0 * features(operator)["macs"] ** 0.97 * np.exp(rng.normal(0, 0.05)))


def fill(database: CostDatabase, networks: int, seed: int = 0) -> list[NetworkRow]:
    """Measures `networks` of 8 operators; the first half of them goes into the database."""
    rng = np.random.default_rng(seed)
    costs: dict[str, float] = {}
    rows = []
    for i in range(networks):
        operators = {drawn(rng): int(rng.integers(1, 4)) for _ in range(8)}
        for operator in operators:
            costs.setdefault(operator, law(operator, rng))
        value = sum(costs[op] * times for op, times in operators.items())
        rows.append(NetworkRow(f"net {i}", "m7", "t", value, operators))
    kept = rows[: networks // 2]
    seen = sorted({op for row in kept for op in row.operators})
    database.put_all([OperatorRow(op, "m7", "t", costs[op], features=features(op)) for op in seen])
    database.put_all(kept)
    return rows


def known(networks: int) -> tuple:
    """A predictor of `networks` networks, and operators that it has not seen."""
    with tempfile.TemporaryDirectory() as folder, CostDatabase(Path(folder) / "c.sqlite") as database:
        rows = fill(database, 2 * networks, seed=1)
        predictor = fit_operators(database, target="m7", boosting=False)
    return predictor, sorted({op for row in rows for op in row.operators} - set(predictor.table))


PREDICTOR, UNSEEN = known(20)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_many_networks_are_what_each_is(data):
    predictor = PREDICTOR
    pool = [*list(predictor.table)[:12], *UNSEEN[:6]]
    nets = data.draw(st.lists(st.dictionaries(st.sampled_from(pool), st.integers(0, 5), max_size=8), max_size=6))
    found = predict_networks(nets, predictor)
    assert found.unit == "instructions" and len(found.values) == len(found.errors) == len(found.measured) == len(nets)
    for i, net in enumerate(nets):
        total, error = predictor.network((op, features(op), times) for op, times in net.items())
        assert found.values[i] == pytest.approx(total, rel=1e-12)
        assert found.errors[i] == pytest.approx(error, rel=1e-9)
        table = sum(predictor.table.get(op, 0.0) * times for op, times in net.items())
        assert found.measured[i] == pytest.approx(table / total if total else 0.0)


def test_ten_thousand_networks_cost_one_prediction_of_their_operators(monkeypatch):
    """All distinct operators at once, each described once; the rest is sums."""
    described, batches, predict_all = [], [], OperatorPredictor.predict_all
    monkeypatch.setattr(predict, "features", lambda signature: described.append(signature) or features(signature))
    monkeypatch.setattr(OperatorPredictor, "predict_all", lambda self, *given: batches.append(given[0]) or predict_all(self, *given))
    rng = np.random.default_rng(3)
    pool = [*PREDICTOR.table, *UNSEEN]
    nets = [{pool[j]: 1 for j in rng.integers(0, len(pool), 50)} for _ in range(10_000)]
    found = predict_networks(iter(nets), PREDICTOR)
    (batch,) = batches
    assert sorted(batch) == sorted(pool) and sorted(described) == sorted(UNSEEN)
    assert (found.values > 0).all() and (found.errors >= 0).all()


def test_a_graph_is_its_operators():
    operator = UNSEEN[0]
    b = GraphBuilder("two")
    x, y, z = b.tensor((4,), "float32", role="input"), b.tensor((4,), "float32"), b.tensor((4,), "float32")
    view = b.tensor((2, 2), "float32", b.tensors[y].storage)
    b.inputs.append(x)
    for op, inputs, outputs in ((operator, [x], [y]), ("reshape", [y], [view]), (operator, [view], [z])):
        b.node(op, inputs, outputs)
    b.outputs.append(z)
    graph = b.build()
    assert operator_counts(graph) == {operator: 2}
    assert predict_networks([graph], PREDICTOR).values == predict_networks([{operator: 2}], PREDICTOR).values


@needs_mcu
def test_a_graph_without_weights_becomes_the_operators_of_its_module():
    from neaptide.compiler.trace import trace

    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4), nn.ReLU6())

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(*block, nn.Conv2d(4, 4, 1)), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head((x + self.body(x)).mean((2, 3)))

    target = load_target("cortex-m7")
    model, x = Residual().eval(), torch.randn(1, 4, 8, 8)
    whole = operator_graph(model, (x,), target=target)
    bare = operator_graph(replace(trace(model, (x,)), values={}), target=target)
    assert operator_counts(bare) == operator_counts(whole) and sum(operator_counts(bare).values()) == len(bare.nodes)
    assert [node.workspace for node in bare.nodes] == [node.workspace for node in whole.nodes]
    assert features(bare.nodes[0].op)["macs"] == 4 * 9 * 64


def test_the_error_bar_is_that_of_networks_never_seen(tmp_path):
    with CostDatabase(tmp_path / "c.sqlite") as database:
        rows = fill(database, 120)
        predictor = fit_operators(database, target="m7", boosting=False)
    unseen = rows[60:]
    assert predictor.sums is not None and predictor.sums.error < 1e-12 and predictor.sums.networks == 60
    assert predictor.unseen is not None and predictor.unseen.networks > 30
    judged = [row for row in unseen if not set(row.operators) <= set(predictor.table)]
    found = predict_networks([row.operators for row in judged], predictor)
    truth = accuracy_of(found.values, np.array([row.value for row in judged]))
    assert 0.3 * truth.error < predictor.unseen.error < 3 * truth.error
    assert found.errors.mean() >= truth.error  # the larger of that and of the operators' own
    assert 0 < found.measured.mean() < 1


def test_what_is_not_known_is_said(tmp_path):
    with CostDatabase(tmp_path / "c.sqlite") as database:
        database.put(OperatorRow("conv 1", "m7", "t", 10.0))
        table = table_of(database, target="m7")
        alone = predict_networks([{"conv 1": 3}], table)
        assert alone.values.tolist() == [30.0] and np.isnan(alone.errors).all()
        with pytest.raises(NeaptideError, match=r"'conv 2' was never measured on m7.*neaptide measure"):
            predict_networks([{"conv 1": 1, "conv 2": 1}], table)
        assert predict_networks([], table).values.shape == (0,)
        with pytest.raises(NeaptideError, match=r"no measured operators.*neaptide measure.*neaptide cost import.*neaptide cost fit"):
            table_of(database, target="m4")
    with pytest.raises(SourceError, match="lower bound"):
        predicted_cost(nn.ReLU(), (torch.zeros(1),), target=load_target("sm_90"))


@needs_mcu
def test_a_predicted_model_is_the_measured_one_and_nothing_runs(tmp_path, capsys, monkeypatch):
    from neaptide.targets.measure import measure

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.Flatten(), nn.Linear(96, 4)).eval()
    x = torch.randn(1, 3, 8, 8)
    path = tmp_path / "costs.sqlite"
    with CostDatabase(path) as database:
        with pytest.raises(NeaptideError, match="no measured operators"):
            measure(model, (x,), target="stm32f746", predict=True, database=database)
        measured = measure(model, (x,), target="stm32f746", name="small", database=database)

        def refused(*args, **kwargs):
            raise AssertionError("a prediction starts no compiler")

        with monkeypatch.context() as patched:
            patched.setattr(subprocess, "run", refused)
            predicted = measure(model, (x,), target="stm32f746", name="small", predict=True, database=database)
        assert predicted.kind == "predicted" and predicted.instructions == measured.instructions and predicted.error == 0
        assert predicted.plan == measured.plan and predicted.arena is None and predicted.max_error is None and predicted.fits
        assert [op.instructions for op in predicted.per_op] == [op.instructions for op in measured.per_op]
        assert {op.kind for op in predicted.per_op} == {"measured"}
        with pytest.raises(NeaptideError, match=r"no operators of 'stm32f746' with toolchain|compiler 'gcc' is not installed"):
            measure(model, (x,), target="stm32f746", predict=True, compiler="gcc", database=database)
        other = nn.Sequential(nn.Conv2d(3, 7, 3, 2, 1), nn.ReLU()).eval()
        with pytest.raises(NeaptideError, match="never measured"):
            measure(other, (x,), target="stm32f746", predict=True, database=database)
        rng = np.random.default_rng(0)
        (_, toolchain, _, _) = database.counts()[0]
        more = sorted({drawn(rng) for _ in range(60)})
        database.put_all([OperatorRow(op, "stm32f746", toolchain, law(op, rng), features=features(op)) for op in more])
        guess = measure(other, (x,), target="stm32f746", predict=True, database=database)
        assert guess.instructions and guess.error and 0 < guess.error < 1 and guess.per_op[0].kind == "predicted"
        assert "models" in guess.reasons[1]
        with pytest.raises(BudgetError, match="does not fit"):
            measure(nn.Conv2d(3, 64, 3), (torch.zeros(1, 3, 64, 64),), target="stm32f746", predict=True, database=database)
        save_predictor(fit_operators(database, target="stm32f746", boosting=False), tmp_path / "p.npz")
    (tmp_path / "small.py").write_text("from torch import nn\ndef net():\n    return nn.Conv2d(3, 7, 3, 2, 1)\n")
    monkeypatch.chdir(tmp_path)
    words = ["measure", "small.py:net", "--input", "1x3x8x8", "--target", "stm32f746", "--predictor", "p.npz"]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "predicted" and document["error"] > 0
    assert main(words) == 0
    assert "expected" in capsys.readouterr().out
    words[words.index("stm32f746")] = "nrf52840"
    assert main(words) == 2 and "the predictor is for stm32f746" in capsys.readouterr().err


@pytest.mark.skipif("tvm" in absent, reason="tvm not installed: pip install 'neaptide[tvm]'")
def test_a_cpu_is_predicted_from_what_its_tuned_operators_took(tmp_path):
    from neaptide.targets.measure import measure

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 8), nn.ReLU()).eval(), torch.randn(1, 16)
    with CostDatabase(tmp_path / "c.sqlite") as database:
        measured = measure(model, (x,), target="cpu", name="small", trials=2, database=database)
        predicted = measure(model, (x,), target="cpu", name="small", predict=True, database=database)
        with pytest.raises(NeaptideError, match="--toolchain NAME"):
            measure(model, (x,), target="cpu", predict=True, threads=2, database=database)
    assert measured.latency is not None and predicted.latency is not None and predicted.fits is None
    assert predicted.latency == pytest.approx(sum(op.seconds or 0 for op in measured.per_op))
    assert predicted.error == pytest.approx(abs(predicted.latency - measured.latency) / measured.latency)
    assert predicted.plan == measured.plan
