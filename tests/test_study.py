"""Searches from end to end: limits, studies that are taken up again, farms, what comes out, and the command line."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import neaptide
from neaptide.cli import main
from neaptide.compiler.errors import BudgetError, NeaptideError, SourceError
from neaptide.report.search_html import render_search
from neaptide.report.units import parse_bytes
from neaptide.search.constraints import Constraint, Constraints, parse_constraint
from neaptide.search.data import ImageData, TabularData
from neaptide.search.engine import Outcome, Proposal
from neaptide.search.evaluate import CostsAlone, Tabular
from neaptide.search.feasible import FeasibleSampler
from neaptide.search.metrics import parse_amount
from neaptide.search.network_source import network_source
from neaptide.search.objectives import front, losses, parse_objectives
from neaptide.search.oracle import Oracle
from neaptide.search.outputs import over_limits, write_front, write_network
from neaptide.search.result import Candidate
from neaptide.search.run import search
from neaptide.search.setup import Budget, parse_budget
from neaptide.search.spaces import list_spaces, load_space
from neaptide.search.spaces.own import OwnSpace
from neaptide.search.study import Study, only_one
from neaptide.targets.cost import Cost
from neaptide.targets.spec import load_target

pytestmark = pytest.mark.usefixtures("own_memory")

CELLS = {"C": 4, "N": 1}
WORDS = ["--space", "nasbench201", "--space-option", "C=4", "--space-option", "N=1", "--engine", "evolution", "--preset", "smoke"]


@pytest.fixture(scope="module")
def space():
    return load_space("nasbench201", **CELLS)


@pytest.fixture(scope="module")
def oracle(space):
    return Oracle(space)


@pytest.fixture(scope="module")
def table(space):
    """Accuracies out of the air: what a search sees and what it does not differ."""
    rng, n = np.random.default_rng(0), space.size
    return TabularData("made up", space.name, space.cardinalities, np.arange(n), rng.uniform(10, 90, n), rng.uniform(10, 90, n))


@pytest.fixture(scope="module")
def images():
    """Sixty-four images of two classes that differ in brightness."""
    import torch

    labels = torch.arange(96) % 2
    pixels = (torch.rand(96, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 100 + 100 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    part = lambda a, b: (pixels[a:b], labels[a:b])  # noqa: E731
    return ImageData("bright or dark", part(0, 48), part(48, 72), part(72, 96), (0.5,) * 3, (0.3,) * 3, ("dark", "bright"))


def trials_of(result):
    return [(c.index, c.arch, dict(c.values), c.feasible) for c in result.trials]


# ---- limits ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, metric, limit",
    [
        ("peak<=320KB", "peak", 320_000),
        ("peak <= 320KiB", "peak", 327_680),
        ("flash<=1MB", "flash", 1_000_000),
        ("arena<=65536", "arena", 65_536),
        ("params<=500k", "params", 500_000),
        ("macs<=10M", "macs", 10_000_000),
        ("MACs<=1.5G", "macs", 1_500_000_000),
        ("latency<=5ms", "latency", 0.005),
        ("latency<=250us", "latency", 0.00025),
        ("instructions<=20M", "instructions", 20_000_000),
        ("weight-bytes<=1,024", "weight_bytes", 1024),
    ],
)
def test_constraints_are_read(text, metric, limit):
    constraint = parse_constraint(text)
    assert (constraint.metric, constraint.text) == (metric, text)
    assert constraint.limit == pytest.approx(limit, rel=1e-12)


@pytest.mark.parametrize(
    "text, words",
    [
        ("peak", ["'peak'", "peak<=320KiB"]),
        ("peak<=", ["'peak<='"]),
        ("peak<=much", ["'much'", "KiB", "320KiB"]),
        ("peak<=5ms", ["'5ms'", "KiB"]),
        ("latency<=3KB", ["'3KB'", "ms"]),
        ("params<=0", ["above zero"]),
        ("peka<=3KB", ["'peka'", "did you mean 'peak'"]),
        ("peak>=3KB", ["<="]),
        ("peak<3KB", ["<="]),
        ("accuracy<=3", ["accuracy", "objective"]),
    ],
)
def test_wrong_constraints_are_quoted(text, words):
    with pytest.raises(SourceError) as error:
        parse_constraint(text)
    assert repr(text) in str(error.value)
    for word in words:
        assert word in str(error.value)


@given(st.integers(1, 10**7), st.sampled_from(["", "B", "KB", "KiB", "MB", "MiB", "GB", "GiB", "k", "M"]))
def test_bytes_are_read_as_everywhere_else(n, unit):
    assert parse_amount(f"{n}{unit}", "bytes") == parse_bytes(f"{n}{unit}")


def test_a_target_brings_its_memories(oracle):
    board = load_target("stm32f746")
    constraints = Constraints(["params<=1M"], oracle, board)
    assert [(c.metric, c.limit) for c in constraints] == [("params", 1e6), ("peak", board.sram), ("flash", board.flash)]
    assert "stm32f746's SRAM" in list(constraints)[1].text
    assert len(Constraints([], oracle, load_target("cpu"))) == 0


def test_limits_that_a_run_breaks_are_named(oracle):
    """The oracle's instructions are predicted, and its flash has no code: what was measured may be over a limit that they keep."""
    limits = Constraints(["instructions<=20M", "flash<=1MB", "peak<=320KB", "params<=1k"], oracle)
    cost = Cost("stm32f746", "measured", "n", instructions=21_500_000, arena=320_000, flash=1_000_001)
    assert over_limits(cost, limits) == "measured 21,500,000, over instructions<=20M; measured 1,000,001 B, over flash<=1MB"
    assert over_limits(replace(cost, instructions=None, flash=1_000_000), limits) == ""


def test_violations_are_relative_and_added_up(space, oracle):
    constraints = Constraints(["params<=8k", "peak<=50000"], oracle)
    assert constraints.violations({"params": 12_000, "peak": 20_000}) == (0.5, 0.0)
    assert constraints.violation({"params": 12_000, "peak": 100_000}) == 1.5
    rows = space.sample_rows(np.random.default_rng(0), 40)
    costs = oracle.cost(rows, metrics=("params", "peak"))
    expected = [constraints.violation(costs.values(i)) for i in range(len(rows))]
    assert constraints.row_violations(rows).tolist() == pytest.approx(expected)
    assert constraints.feasible_rows(rows).tolist() == [v == 0 for v in expected]
    assert 0 < sum(v == 0 for v in expected) < len(rows)
    with pytest.raises(SourceError, match="peak"):
        constraints.violation({"params": 1})


def test_impossible_limits_are_refused_with_the_least_value():
    space = load_space("nasbench_macro")
    oracle = Oracle(space)
    value, arch = oracle.least("params")
    Constraints([Constraint("params", value, "just enough")], oracle).check()
    with pytest.raises(BudgetError) as error:
        Constraints([f"params<={int(value) - 1}"], oracle).check()
    assert f"{int(value):,}" in str(error.value) and space.text(arch) in str(error.value) and "params<=" in str(error.value)


def test_feasible_architectures_are_drawn(space, oracle):
    constraints = Constraints(["params<=8k"], oracle)
    sampler = FeasibleSampler(space, constraints)
    drawn = sampler.draw(np.random.default_rng(1), 30)
    assert len(set(drawn)) == 30 and constraints.feasible_rows(space.encode(drawn)).all()
    assert sampler.draw(np.random.default_rng(1), 30) == drawn
    assert not set(sampler.draw(np.random.default_rng(1), 30, set(drawn))) & set(drawn)


def test_limits_that_chance_never_meets_are_walked_to(space, monkeypatch):
    """The oracle stands in: only what is within two genes of all zeros is allowed, and sampling never draws a zero."""

    class Steep:
        space = load_space("nasbench201", **CELLS)

        def cost(self, rows, metrics):
            return {"params": np.count_nonzero(rows, axis=1)}

        def least(self, metric):
            return 0, self.space.architecture([0] * 6)

    steep = Steep()
    monkeypatch.setattr(type(space), "sample_rows", lambda self, rng, n: rng.integers(1, 5, (n, 6), dtype=np.int16))
    sampler = FeasibleSampler(space, Constraints(["params<=2"], steep))
    drawn = sampler.draw(np.random.default_rng(0), 5)
    assert drawn and all(np.count_nonzero(a.genes) <= 2 for a in drawn)
    steep.least = lambda metric: (0, space.architecture([1] * 6))
    with pytest.raises(BudgetError, match="none keeps all of params<=2; the least among them: parameters 6;"):
        FeasibleSampler(space, Constraints(["params<=2"], steep)).draw(np.random.default_rng(0), 5)


# ---- objectives -----------------------------------------------------------------------------------------------------------------


def test_objectives_know_which_way_is_better():
    objectives = parse_objectives("accuracy, latency")
    assert [(o.metric, o.maximize) for o in objectives] == [("accuracy", True), ("latency", False)]
    assert losses(objectives, {"accuracy": 90.0, "latency": 0.5, "params": 3}) == (-90.0, 0.5)
    for wrong, word in (("accuracy,accuracy", "twice"), ("acuracy", "did you mean 'accuracy'"), ("accuracy,,peak", "empty")):
        with pytest.raises(SourceError, match=word):
            parse_objectives(wrong)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_the_front_is_what_nothing_beats(points):
    kept = front(np.array(points).reshape(len(points), 3))
    for i, p in enumerate(points):
        beaten = any(all(a <= b for a, b in zip(q, p, strict=True)) and q != p for q in points)
        assert kept[i] == (not beaten and p not in points[:i])


@pytest.mark.parametrize(
    "text, budget", [("200", Budget(trials=200)), ("90s", Budget(seconds=90)), ("1h30m", Budget(seconds=5400)), ("", Budget())]
)
def test_budgets(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["0", "-3", "soon", "m", "3x"])
def test_wrong_budgets(text):
    with pytest.raises(SourceError, match="200"):
        parse_budget(text)


# ---- a search -------------------------------------------------------------------------------------------------------------------


def test_a_search_keeps_its_limits_and_its_study(space, table, tmp_path):
    result = neaptide.search(
        space, "evolution", data=table, objectives="accuracy,macs", constraints=["params<=8k"], folder=tmp_path, preset="smoke", budget=30
    )
    assert len(result.trials) == 30 and all(c.feasible and c.values["params"] <= 8000 for c in result.trials)
    best = max(result.trials, key=lambda c: c.values["accuracy"])
    assert result.best is not None and result.best.arch == best.arch == result.front[0].arch
    assert result.test_accuracy == table.of(best.arch, held_out=True)
    assert result.kinds["peak"] == "exact" and result.best.values["macs"] == Oracle(space).cost([best.arch])["macs"][0]
    import optuna

    study = optuna.load_study(study_name=result.study_name, storage=result.study)
    assert {t.user_attrs["architecture"] for t in study.best_trials} == {c.text for c in result.front}
    assert [t.user_attrs["index"] for t in study.trials] == list(range(30))
    trial = study.trials[7]
    assert [trial.params[g] for g in sorted(trial.params)] == list(result.trials[7].arch.genes)
    assert trial.user_attrs["peak"] == result.trials[7].values["peak"] and trial.user_attrs["origin"] == "random"


def test_the_same_seed_finds_the_same(space, table, tmp_path):
    def found(folder, seed):
        return trials_of(search(space, "evolution", data=table, folder=tmp_path / folder, preset="smoke", budget=24, seed=seed))

    first = found("a", 3)
    assert found("b", 3) == first and found("c", 4) != first


class Broken(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("engine, cheap", [("random", True), ("evolution", True), ("nsga2", True), ("evolution", False)])
def test_a_search_that_breaks_off_anywhere_ends_as_one_that_did_not(engine, cheap, space, table, tmp_path, monkeypatch):
    """Breaks in every third evaluation; each run takes the study up, so every trial is evaluated once and none is lost."""
    settings = {"data": table, "constraints": ["params<=8k"], "objectives": "accuracy,peak", "preset": "smoke", "budget": 16, "workers": 1}
    whole = search(space, engine, folder=tmp_path / "whole", **settings)
    evaluated: list[object] = []
    real = Tabular.evaluate

    def breaking(self, proposal, context):
        evaluated.append(proposal.arch)
        if len(evaluated) % 3 == 2:
            raise Broken
        return real(self, proposal, context)

    monkeypatch.setattr(Tabular, "evaluate", breaking)
    monkeypatch.setattr(Tabular, "cheap", cheap)
    runs = 0
    while True:
        runs += 1
        try:
            resumed = search(space, engine, folder=tmp_path / "broken", resume=True, **settings)
            break
        except Broken:
            assert runs < 30
    assert trials_of(resumed) == trials_of(whole) and resumed.best == whole.best and resumed.front == whole.front
    assert resumed.test_accuracy == whole.test_accuracy and runs > 5
    assert len(evaluated) == len({c.arch for c in whole.trials}) + runs - 1  # what broke, and nothing else, was begun again
    again = search(resume=True, data=table, folder=tmp_path / "broken")  # of a study that is finished: nothing is evaluated
    assert trials_of(again) == trials_of(whole) and again.taken_over == 16


def test_what_was_running_when_the_process_died_is_failed_and_done_again(space, oracle, tmp_path):
    url, objectives = f"sqlite:///{tmp_path / 's.sqlite'}", parse_objectives("accuracy")
    archs = space.decode(space.sample_rows(np.random.default_rng(0), 3))
    study = Study.open(url, "s", space, objectives, {"a": 1}, resume=False)
    study.finish(0, Outcome(Proposal(archs[0]), {"accuracy": 1.0}), 0.1)
    study.start(1, Proposal(archs[1], origin="random"), {"peak": 5})
    del study  # as a kill leaves it
    again = Study.open(url, "s", space, objectives, {"a": 1}, resume=True)
    assert set(again.finished) == {0} and again.finished[0].arch == archs[0]
    again.start(1, Proposal(archs[1]), {"peak": 5})
    again.finish(1, Outcome(Proposal(archs[1]), {"accuracy": 2.0, "peak": 5}), 0.2)
    with pytest.raises(NeaptideError, match="other versions"):
        again.replayed(1, Proposal(archs[2]))
    assert again.replayed(2, Proposal(archs[2])) is None
    import optuna

    states = [
        (t.user_attrs["index"], t.state.name, t.user_attrs.get("stale")) for t in optuna.load_study(study_name="s", storage=url).trials
    ]
    assert states == [(0, "COMPLETE", None), (1, "FAIL", True), (1, "COMPLETE", None)]


def test_scores_without_a_number_are_kept_and_shown(space, tmp_path):
    """SynFlow of a network that nothing flows through is -inf, which JSON cannot say: neither study nor document may fail."""
    url, objectives = f"sqlite:///{tmp_path / 's.sqlite'}", parse_objectives("synflow")
    study, arch = Study.open(url, "s", space, objectives, {}, resume=False), space.architecture([0] * 6)
    study.start(0, Proposal(arch), {"peak": 5})
    for i, value in enumerate((-np.inf, -np.inf, 2.5)):
        study.finish(i, Outcome(Proposal(arch), {"synflow": value, "peak": 5}), 0.1)
    with closing(sqlite3.connect(tmp_path / "s.sqlite")) as db:
        assert [v for (v,) in db.execute("SELECT value_json FROM trial_user_attributes WHERE key = 'synflow'")] == [
            '"-inf"',
            '"-inf"',
            "2.5",
        ]
    again = Study.open(url, "s", space, objectives, {}, resume=True)
    assert [again.finished[i].values["synflow"] for i in range(3)] == [-np.inf, -np.inf, 2.5] and again.finished[1].values["peak"] == 5
    found = Candidate(0, arch, space.text(arch), "random", again.finished[0].values, True).to_dict()
    assert found["synflow"] is None and json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_search_killed_for_real_is_taken_up(oracle, tmp_path, start):
    """Twice in the middle of its work; the end is that of a search in this process.

    The search waits for leave after each progress report. What kills it gives leave until enough trials are written, then once
    more, and kills: however fast either side is, the search is at work and far from its end.
    """
    settings = {"objectives": "macs,peak", "preset": "smoke", "budget": 60, "seed": 5}
    given = {"space": "nasbench201", "engine": "evolution", "space_options": CELLS, "folder": "killed", "resume": True, **settings}
    leave = "lambda stage, done, total: (print(done, flush=True), input())"
    program = f"from neaptide.search.run import search; search(progress={leave}, **{given})"
    for least in (3, 25):
        process = start([sys.executable, "-c", program], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while int(process.stdout.readline()) < least:
            process.stdin.write("go on\n")
            process.stdin.flush()
        process.stdin.write("go on\n")
        process.stdin.flush()
        process.kill()
        process.communicate()
        assert least <= _finished(tmp_path / "killed" / "study.sqlite") < 60
    whole = search(oracle.space, "evolution", folder=tmp_path / "whole", **settings)
    resumed = search(resume=True, folder=tmp_path / "killed")
    assert 25 <= resumed.taken_over < 60 and resumed.front == whole.front
    assert trials_of(resumed) == trials_of(whole)


def _finished(file: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
            return db.execute("SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def test_a_dashboard_may_read_while_a_search_writes(space, tmp_path):
    url, objectives = f"sqlite:///{tmp_path / 's.sqlite'}", parse_objectives("accuracy")
    arch = space.sample(np.random.default_rng(0))
    study = Study.open(url, "s", space, objectives, {}, resume=False)
    with closing(sqlite3.connect(tmp_path / "s.sqlite", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT COUNT(*) FROM trials").fetchone() == (0,)
        study.finish(0, Outcome(Proposal(arch), {"accuracy": 1.0}), 0.1)  # waits for nobody
        assert reader.execute("SELECT COUNT(*) FROM trials").fetchone() == (0,)
        reader.execute("COMMIT")
        assert reader.execute("SELECT COUNT(*) FROM trials").fetchone() == (1,)


def test_a_study_is_not_taken_for_another(space, table, tmp_path):
    settings = {"data": table, "folder": tmp_path, "preset": "smoke", "budget": 4}
    search(space, "random", **settings)
    with pytest.raises(SourceError, match="--resume"):
        search(space, "random", **settings)
    with pytest.raises(SourceError, match=r"its seed is 0, not 7"):
        search(space, "random", **settings, seed=7, resume=True)
    with pytest.raises(SourceError, match="--space"):
        search(resume=True, folder=tmp_path / "elsewhere")
    assert len(search(resume=True, data=table, folder=tmp_path, budget=9).trials) == 9
    assert len(search(space, "random", **settings, study="second").trials) == 4


def test_only_one_search_at_a_time_in_a_folder(space, table, tmp_path):
    with only_one(tmp_path), pytest.raises(NeaptideError, match="another search"):
        search(space, "random", data=table, folder=tmp_path, preset="smoke", budget=4)
    assert search(space, "random", data=table, folder=tmp_path, preset="smoke", budget=4).best is not None


@pytest.mark.parametrize(
    "change, words",
    [
        ({"engine": "evolutoin"}, ["did you mean 'evolution'"]),
        ({"preset": "huge"}, ["'huge'", "smoke"]),
        ({"options": {"populaton": 3}}, ["'populaton'", "population"]),
        ({"options": {"population": "three"}}, ["population", "'three'", "int"]),
        ({"data": None}, ["accuracy", "--data"]),
        ({"objectives": "naswot"}, ["naswot", "images"]),
        ({"training": {"epochs": 3}}, ["table", "epochs"]),
        ({"space": "darts", "space_options": {"layers": 3, "channels": 4}}, ["nasbench201", "darts"]),
        ({"budget": "long"}, ["'long'"]),
        ({"farm": "cows"}, ["'cows'", "ray"]),
        ({"storage": "nonsense://x"}, ["nonsense://x"]),
        ({"storage": f"sqlite:///{__file__}"}, ["test_study.py", "file is not a database"]),
        ({"folder": __file__}, ["test_study.py", "--out"]),
        ({"target": "stm32f7466"}, ["stm32f746"]),
        ({"space": "nasbench_macro", "objectives": "peak", "constraints": ["peak<=10"]}, ["peak<=10", "the least planned peak"]),
    ],
)
def test_what_cannot_be_searched_is_refused_at_once(change, words, space, table, tmp_path, monkeypatch):
    monkeypatch.setattr(Tabular, "evaluate", lambda *_: pytest.fail("evaluated"))
    with pytest.raises(NeaptideError) as error:
        search(**{"space": space, "engine": "evolution", "data": table, "folder": tmp_path, "preset": "smoke", **change})
    for word in words:
        assert word in str(error.value)


def test_an_infeasible_proposal_is_told_and_never_evaluated(space, table, tmp_path, monkeypatch):
    """Engines keep to the limits; one that does not is told so."""
    from neaptide.search.engines import random_search

    monkeypatch.setattr(random_search.FeasibleSampler, "draw", lambda self, rng, n, known=(): space.decode(space.sample_rows(rng, n)))
    told: list[Outcome] = []
    monkeypatch.setattr(random_search.RandomSearch, "tell", lambda self, outcomes: told.extend(outcomes))
    result = search(space, "random", data=table, folder=tmp_path, preset="smoke", budget=32, constraints=["params<=8k"])
    over = [o for o in told if o.values["params"] > 8000]
    assert over and len(over) < 32 and all(not o.feasible and o.violation > 0 and "accuracy" not in o.values for o in over)
    assert all(c.feasible == (c.values["params"] <= 8000) for c in result.trials) and result.best is not None and result.best.feasible


def test_an_engine_that_cannot_even_begin_is_an_error(images, tmp_path):
    """The least network of the space keeps the limit, by its trims; MemNet begins with none, and has nothing to try."""
    small = {"width": 4, "max_blocks": 2, "resolution": 8}
    with pytest.raises(BudgetError, match=r"engine memnet finds no architecture of memnet to begin with under params<=600; loosen"):
        search("memnet", "memnet", space_options=small, data=images, constraints=["params<=600"], folder=tmp_path, preset="smoke")


class Pairs(OwnSpace):
    """Two convolutions, the first one with few or many channels."""

    choices = {"wide": tuple(range(4, 28, 4))}  # noqa: RUF012

    def build(self, choices):
        import torch

        return torch.nn.Sequential(torch.nn.Conv2d(3, choices["wide"], 1), torch.nn.Conv2d(choices["wide"], 4, 1))

    def shape(self, choices):
        return (1, 3, 4, 4)


def test_what_is_measured_meanwhile_does_not_lead_a_search_astray(tmp_path):
    """Costs predicted from a database that learns: a study taken up again predicts as it did when it began."""
    pytest.importorskip("tvm")
    from neaptide.report.search import search_view
    from neaptide.search.predicted import fused_operators
    from neaptide.targets.database import CostDatabase, NetworkRow, OperatorRow
    from neaptide.targets.remember import features

    space = Pairs()
    operators = {s: features(s) for arch in space.enumerate() for s in fused_operators(space.graph(arch))}
    database = CostDatabase(tmp_path / "costs.sqlite")

    def learn(price):
        rows = (
            OperatorRow(s, "cortex-m4f", "test", price(f["input"] + f["output"]), "instructions", features=f) for s, f in operators.items()
        )
        database.put_all(rows)

    learn(lambda elements: 100.0 * elements)
    for i, arch in enumerate(itertools.islice(space.enumerate(), 3)):
        counts = fused_operators(space.graph(arch))
        total = sum(100.0 * (operators[s]["input"] + operators[s]["output"]) * n for s, n in counts.items())
        database.put(NetworkRow(f"net{i}", "cortex-m4f", "test", 1.25 * total, counts, "instructions"))
    settings = {"target": "cortex-m4f", "objectives": "instructions", "preset": "smoke", "measure": 0, "options": {"batch": 2}}
    limited = {**settings, "constraints": ["instructions<=60k"], "database": database}
    whole = search(space, "random", folder=tmp_path / "whole", **limited)
    assert 2 < len(whole.trials) < space.size and {c.values["instructions"] <= 60_000 for c in whole.trials} == {True}
    assert whole.best is not None and 0.1 < whole.best.values["instructions_error"] < 0.4
    said = Console(width=200, file=io.StringIO(), record=True)
    said.print(search_view(whole))
    assert f"expected to be {whole.best.values['instructions_error']:.1%} off" in said.export_text()
    search(space, "random", folder=tmp_path / "broken", **limited, budget=2)
    learn(lambda elements: 1e9 / elements)
    resumed = search(space, resume=True, folder=tmp_path / "broken", database=database, budget=100, measure=0)
    assert trials_of(resumed) == trials_of(whole)
    with pytest.raises(BudgetError, match="instructions<=60k"):  # which a new search, of what is known now, finds too little
        search(space, "random", folder=tmp_path / "other", **limited)


def test_options_left_out_are_those_of_the_preset(tmp_path):
    """On images, MemNet's own space is made as small as its preset wants; options that are given are taken as they are."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", x_train=rng.integers(0, 255, (90, 16, 16, 3), np.uint8), y_train=np.arange(90) % 3,
             x_test=rng.integers(0, 255, (9, 16, 16, 3), np.uint8), y_test=np.arange(9) % 3)  # fmt: skip
    few = {"objectives": "accuracy,peak", "data": tmp_path / "images.npz", "preset": "smoke", "budget": 1, "measure": 0, "workers": 1}
    few["training"] = {"images": 32}
    widths = []
    for i, chosen in enumerate((None, {"width": 4, "max_blocks": 2})):
        found = search("memnet", "memnet", folder=tmp_path / str(i), space_options=chosen, **few)
        options = found.space.describe()["options"]
        widths.append((options["width"], options["resolution"], options["num_classes"]))
    assert widths == [(8, 16, 3), (4, 32, 3)]


def test_costs_alone_need_no_data(space, tmp_path):
    result = search(space, "nsga2", objectives="peak,params", folder=tmp_path, preset="smoke", budget=24)
    assert isinstance(result.best, object) and result.test_accuracy is None and CostsAlone().cheap
    assert result.front[0].values["peak"] == min(c.values["peak"] for c in result.trials)


# ---- farms ----------------------------------------------------------------------------------------------------------------------

SLEEPY = """
    import os, time
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Sleepy:
        cheap = False
        trials = {"smoke": 6, "small": 6, "paper": 6}
        def evaluate(self, proposal, context):
            weight = sum(proposal.arch.genes)
            if context.options.get("batch") == 3 and weight == 7:
                raise ValueError("seven is unlucky")
            if context.options.get("batch") == 2:
                os._exit(9)
            time.sleep(0.05 * (weight % 4))
            return {"accuracy": float(weight), "loss": float(os.getpid() != context.seed)}
        def test(self, arch, context):
            return None
"""


@pytest.fixture
def sleepy(tmp_path, monkeypatch):
    """An evaluator in a module of its own, which worker processes can import."""
    (tmp_path / "sleepy.py").write_text(textwrap.dedent(SLEEPY))
    monkeypatch.syspath_prepend(str(tmp_path))
    import sleepy  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr("neaptide.search.setup.evaluator_for", lambda *_: sleepy.Sleepy())
    yield
    sys.modules.pop("sleepy", None)


def test_workers_change_nothing(space, sleepy, tmp_path):
    here = search(space, "evolution", folder=tmp_path / "1", preset="smoke", budget=20, workers=1)
    there = search(space, "evolution", folder=tmp_path / "3", preset="smoke", budget=20, workers=3)
    assert trials_of(here) == trials_of(there) and here.best == there.best


def test_a_worker_that_fails_or_dies_is_heard(space, sleepy, tmp_path):
    with pytest.raises(NeaptideError, match="seven is unlucky"):
        search(space, "random", folder=tmp_path / "f", preset="smoke", budget=60, workers=2, options={"batch": 3})
    with pytest.raises(NeaptideError, match="ended with code 9"):
        search(space, "random", folder=tmp_path / "d", preset="smoke", budget=4, workers=2, options={"batch": 2})
    db = sqlite3.connect(tmp_path / "d" / "study.sqlite")
    assert db.execute("SELECT COUNT(*) FROM trials WHERE state = 'RUNNING'").fetchone() == (0,)


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'neaptide[ray]'")
def test_a_ray_cluster_of_two_nodes_finds_the_same(space, sleepy, tmp_path, monkeypatch):
    import ray  # pyright: ignore[reportMissingImports]
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    here = search(space, "evolution", folder=tmp_path / "here", preset="smoke", budget=20, workers=1)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        assert len([n for n in ray.nodes() if n["Alive"]]) == 2
        there = search(space, "evolution", folder=tmp_path / "there", preset="smoke", budget=20, farm="ray")
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert trials_of(here) == trials_of(there)


def test_without_ray_the_extra_is_named(space, sleepy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(NeaptideError, match=r"neaptide\[ray\]"):
        search(space, "random", folder=tmp_path, preset="smoke", budget=4, farm="ray")


# ---- training -------------------------------------------------------------------------------------------------------------------


def test_networks_are_trained_and_the_chosen_one_is_written(images, tmp_path):
    import torch

    small = {"C": 2, "N": 1, "resolution": 8}
    settings = {"space_options": small, "data": images, "preset": "smoke", "budget": 4, "training": {"epochs": 2, "batch": 16}}
    threads = torch.get_num_threads()
    result = search("nasbench201", "random", folder=tmp_path / "a", **settings, options={"batch": 2}, workers=1)
    assert result.best is not None and result.space.describe()["options"]["num_classes"] == 2
    assert 0 <= result.best.values["accuracy"] <= 100 and result.test_accuracy is not None
    again = search("nasbench201", "random", folder=tmp_path / "b", **settings, options={"batch": 2}, workers=2)
    assert trials_of(again) == trials_of(result) and again.test_accuracy == result.test_accuracy and torch.get_num_threads() == threads

    written = list(write_network(result, result.best, tmp_path / "out"))
    assert [p.name for p in written] == ["network.py", "network.safetensors", "network.onnx"]
    x = torch.rand(1, 3, 8, 8)
    program = f"import sys, torch; sys.path.insert(0, {str(tmp_path / 'out')!r}); import network; torch.manual_seed(0)"
    code = f"{program}; y = network.make_network()(torch.load('x.pt')); torch.save(y, 'y.pt'); print('neaptide' in sys.modules)"
    torch.save(x, tmp_path / "x.pt")
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"
    import onnx
    import onnx.reference

    y = torch.load(tmp_path / "y.pt")
    model = onnx.load(tmp_path / "out" / "network.onnx")
    (same,) = onnx.reference.ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x.numpy()})
    torch.testing.assert_close(y, torch.from_numpy(same), rtol=1e-4, atol=1e-5)
    write_front(result, tmp_path / "front.csv")
    rows = list(csv.DictReader((tmp_path / "front.csv").open()))
    assert len(rows) == len(result.front) and rows[0]["architecture"] == result.best.text


def test_data_options_that_do_not_apply_are_refused(images, tmp_path):
    x, y = (part.numpy() for part in images.train)
    np.savez(tmp_path / "x.npz", x_train=x.transpose(0, 2, 3, 1), y_train=y)
    with pytest.raises(SourceError, match=r"dataset is for tables, and .*x\.npz holds images"):
        search("nasbench201", "random", data=tmp_path / "x.npz", data_options={"dataset": "cifar100"}, folder=tmp_path / "s")


def test_scores_are_objectives(images, tmp_path):
    settings = {"space_options": {"C": 2, "N": 1, "resolution": 8}, "data": images, "preset": "smoke", "budget": 3}
    result = search("nasbench201", "random", objectives="naswot,params", folder=tmp_path, **settings, workers=1)
    assert result.test_accuracy is None and all("naswot" in c.values for c in result.trials)
    dead = replace(result.trials[0], values={**result.trials[0].values, "naswot": -np.inf})
    assert '"values":[[null' in render_search(replace(result, trials=(dead, *result.trials[1:])))


@pytest.mark.parametrize("name", sorted({*list_spaces()} - {"compofa", "moofa"}))  # these two make the modules of ofa_mbv3
def test_every_space_gives_python_that_stands_alone(name):
    import torch

    options = {"darts": {"layers": 3, "channels": 4}, "proxyless_tree": {"B": 2}, "nasbench201": CELLS}.get(name, {})
    space = load_space(name, **options)
    arch = space.sample(np.random.default_rng(0))
    module = space.module(arch).eval()
    names: dict[str, object] = {"__name__": "network"}
    exec(compile(network_source(module, space.input_shape(arch), title=space.text(arch)), "network.py", "exec"), names)
    again = names["make_network"]()  # type: ignore[operator]
    assert set(again.state_dict()) == set(module.state_dict())
    again.load_state_dict(module.state_dict())
    x = torch.rand(space.input_shape(arch))
    with torch.no_grad():
        torch.testing.assert_close(again(x), module(x), rtol=0, atol=0)


# ---- the command line -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """`neaptide search` in an empty folder: (exit code, standard output, standard error). Exporting ONNX is tested above, and slow."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("neaptide.search.outputs._onnx", lambda *_: b"")

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["search", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_command_line_ends_with_one_line_of_json(run):
    words = [*WORDS, "--objective", "peak,params", "--constraint", "params<=8k", "--budget", "12", "--csv", "f.csv", "--json"]
    code, out, err = run(*words)
    assert code == 0 and out.count("\n") == 1, err
    document = json.loads(out)
    best = document["best"]
    assert best["params"] <= 8000 and {"architecture", "macs", "peak", "cost"} <= set(best) and document["front"][0] == best
    assert (
        "wrote f.csv" in err
        and "drawn at random" in err
        and Path("neaptide-search/network.py").exists()
        and Path("neaptide-search/study.sqlite").exists()
    )
    assert run(*words)[0] == 2  # there is a study already
    code, out, _ = run("--resume", "--json")
    assert code == 0 and json.loads(out)["best"] == best
    code, out, _ = run("--resume")
    assert code == 0 and best["architecture"] in out and "study.sqlite" in out


def test_ctrl_c_says_how_to_go_on(run, monkeypatch):
    real, seen = CostsAlone.evaluate, []

    def interrupted(self, proposal, context):
        seen.append(proposal)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return real(self, proposal, context)

    monkeypatch.setattr(CostsAlone, "evaluate", interrupted)
    code, out, err = run(*WORDS, "--objective", "peak", "--budget", "12", "--out", "a b")
    assert (code, out) == (130, "") and "neaptide search --resume --out 'a b'" in err
    code, out, _ = run("--resume", "--out", "a b", "--json")
    assert code == 0 and json.loads(out)["trials"] == 12 and len(seen) == 13


@pytest.mark.parametrize(
    "words, code, expected",
    [
        ([], 2, ["--space"]),
        (["--space", "nasbench", "--engine", "random"], 2, ["nasbench201"]),
        ([*WORDS, "--constraint", "peak<=tiny"], 2, ["peak<=tiny"]),
        (["-s", "nasbench_macro", "-e", "random", "--objective", "peak", "--constraint", "peak<=100B"], 3, ["the least planned peak is"]),
        ([*WORDS, "--objective", "peak", "--option", "population"], 2, ["KEY=VALUE"]),
        ([*WORDS, "--data", "nowhere"], 2, ["nowhere"]),
        ([*WORDS, "--data", "nowhere", "--data-option", "vall=3"], 2, ["'vall'", "val, seed"]),
        ([*WORDS, "--data", "nowhere", "--data-option", "val=some"], 2, ["val is 'some'", "int"]),
        ([*WORDS, "--space-option", "cells=3"], 2, ["'cells'", "C, N, num_classes"]),
        (["--resume"], 2, ["--space"]),
        ([*WORDS, "--measure", "-1"], 2, ["--measure", "0"]),
    ],
)
def test_wrong_words(run, words, code, expected):
    got, out, err = run(*words)
    assert (got, out) == (code, "") and "Traceback" not in err and "bug" not in err, err
    for word in expected:
        assert word in err
