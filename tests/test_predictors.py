"""Predictors: they recover laws that are there, say how far they are off, and survive a file."""

from __future__ import annotations

import json
import pickle
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neaptide.cli import main
from neaptide.compiler.errors import FormatError, MissingExtraError, NeaptideError
from neaptide.targets.database import CostDatabase, NetworkRow, OperatorRow
from neaptide.targets.predictors import Columns, OperatorPredictor, Predictor, fit, fit_operators, load_predictor, read_csv, save_predictor
from neaptide.targets.predictors.fit import accuracy_of, spearman

OPS = ("skip", "conv1", "conv3", "pool")
COST = {"skip": 0.1, "conv1": 1.0, "conv3": 5.0, "pool": 0.7}


def nets(n, places=5, seed=0):
    rng = np.random.default_rng(seed)
    return Columns({f"p{i}": rng.choice(OPS, n) for i in range(places)}, {})


def additive(columns):
    return 2.0 + np.sum([[COST[op] for op in column] for column in columns.texts.values()], axis=0)


def test_an_additive_law_is_found_exactly():
    predictor = fit(nets(120), additive(nets(120)), boosting=False)
    unseen = nets(500, seed=1)
    assert accuracy_of(predictor.predict(unseen), additive(unseen)).error < 1e-3
    assert predictor.accuracy.error < 1e-3
    assert predictor.accuracy.spearman > 0.99  # costs that are equal differ in their last digit


def test_equal_shapes_are_tied_when_there_are_few_networks():
    """20 places of 4 operators from 40 networks: only with one unknown an operator is there enough to learn from."""
    predictor = fit(nets(40, places=20), additive(nets(40, places=20)), boosting=False)
    unseen = nets(300, places=20, seed=1)
    assert predictor.fitted.model.view == "tied"
    assert accuracy_of(predictor.predict(unseen), additive(unseen)).error < 0.01


def test_boosting_finds_what_operators_do_to_each_other():
    pytest.importorskip("sklearn", reason="boosting needs scikit-learn: pip install 'neaptide[search]'")

    def law(columns):
        dead = columns.texts["p0"] == "skip"
        return additive(columns) - np.where(dead, 0.9 * (additive(columns) - 2.0), 0.0)

    train, unseen = nets(300), nets(300, seed=1)
    plain, boosted = fit(train, law(train), boosting=False), fit(train, law(train))
    assert boosted.fitted.trees is not None
    errors = [accuracy_of(p.predict(unseen), law(unseen)).error for p in (plain, boosted)]
    assert errors[1] < 0.5 * errors[0]
    assert boosted.accuracy.error == pytest.approx(errors[1], rel=0.5)


def test_trees_say_what_scikit_learn_says():
    ensemble = pytest.importorskip("sklearn.ensemble", reason="boosting needs scikit-learn: pip install 'neaptide[search]'")
    from neaptide.targets.predictors import boosting

    rng = np.random.default_rng(0)
    x = rng.random((200, 6))
    y = np.sin(5 * x[:, 0]) + x[:, 1] * x[:, 2]
    ours = boosting.grow(x, y, np.ones(200))
    theirs = ensemble.GradientBoostingRegressor(
        init="zero", n_estimators=boosting.TREES, max_depth=boosting.DEPTH, learning_rate=boosting.RATE, subsample=boosting.ROW_SHARE,
        max_features=boosting.FEATURE_SHARE, min_samples_leaf=boosting.LEAF, random_state=0,
    ).fit(x.astype(np.float32), y)  # fmt: skip
    unseen = rng.random((100, 6))
    np.testing.assert_allclose(ours.predict(unseen), theirs.predict(unseen.astype(np.float32)), rtol=1e-9)


def test_the_error_bar_is_honest_under_noise():
    train, unseen = nets(400), nets(400, seed=1)
    rng = np.random.default_rng(2)
    predictor = fit(train, additive(train) * rng.normal(1, 0.1, 400).clip(0.5), boosting=False)
    seen = accuracy_of(predictor.predict(unseen), additive(unseen) * rng.normal(1, 0.1, 400).clip(0.5))
    assert predictor.accuracy.error == pytest.approx(seen.error, rel=0.2)
    assert predictor.accuracy.error_90 == pytest.approx(seen.error_90, rel=0.2)


def test_predictions_never_fall_to_zero_and_unknown_texts_count_for_nothing():
    train = nets(60)
    predictor = fit(train, additive(train), boosting=False)
    strange = Columns({f"p{i}": np.array(["never seen", ""]) for i in range(5)}, {})
    assert (predictor.predict(strange) > 0).all()
    with pytest.raises(FormatError, match="'p4'"):
        predictor.predict(Columns({f"p{i}": np.array(["skip"]) for i in range(4)}, {}))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12))
@settings(max_examples=60, deadline=None)
def test_spearman_is_pearson_of_mean_ranks(pairs):
    def rank(values, v):
        return sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2

    a, b = zip(*pairs, strict=True)
    ra, rb = [rank(a, v) for v in a], [rank(b, v) for v in b]
    got = spearman(np.array(a), np.array(b))
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert got == 0
    else:
        assert got == pytest.approx(np.corrcoef(ra, rb)[0, 1], abs=1e-9)


def test_too_little_or_wrong_is_refused():
    with pytest.raises(NeaptideError, match="at least 20"):
        fit(nets(10), additive(nets(10)))
    with pytest.raises(NeaptideError, match="above zero"):
        fit(nets(30), additive(nets(30)) - 100)


def test_a_file_gives_the_same_predictions_and_runs_nothing(tmp_path):
    train, unseen = nets(80), nets(50, seed=1)
    with_trees = find_spec("sklearn") is not None
    predictor = fit(train, additive(train), boosting=with_trees, target="a76", unit="seconds")
    save_predictor(predictor, tmp_path / "p.npz")
    again = load_predictor(tmp_path / "p.npz")
    assert isinstance(again, Predictor)
    np.testing.assert_array_equal(again.predict(unseen), predictor.predict(unseen))
    assert (again.accuracy, again.tried, again.target) == (predictor.accuracy, predictor.tried, "a76")
    for wrong in (b"", b"PK\x03\x04 nothing", pickle.dumps(COST)):
        (tmp_path / "wrong.npz").write_bytes(wrong)
        with pytest.raises(FormatError, match=r"wrong\.npz"):
            load_predictor(tmp_path / "wrong.npz")
    np.savez(tmp_path / "other.npz", header=np.frombuffer(json.dumps({"format": "x", "version": 1}).encode(), np.uint8))
    with pytest.raises(FormatError, match="format 'x'"):
        load_predictor(tmp_path / "other.npz")


def test_csv_columns_and_complaints(tmp_path):
    path = tmp_path / "n.csv"
    path.write_text("first,width,latency\nconv,8,1.5\nskip,16,2\n")
    columns, costs = read_csv(path)
    assert list(columns.texts) == ["first"]
    assert columns.numbers["width"].tolist() == [8, 16]
    assert costs.tolist() == [1.5, 2]
    assert read_csv(path, "width")[1].tolist() == [8, 16]
    for written, said in (
        ("a,b\n1,2\n", "--value"),
        ("latency,a\n0,2\n", r":2: latency is '0'"),
        ("latency,a\n1,2\nmany,3\n", r":3: latency is 'many'"),
        ("latency,a\n1\n", ":2: 1 cells"),
        ("latency\n1\n", "no column but"),
        ("a,a,latency\n1,1,1\n", "one name"),
        ("", "header"),
    ):
        path.write_text(written)
        with pytest.raises(FormatError, match=said):
            read_csv(path)


def operator_row(i, kind="conv", target="m7"):
    rng = np.random.default_rng(i)
    macs, out = int(rng.integers(10**4, 10**6)), int(rng.integers(10**2, 10**4))
    features = {"op": kind, "macs": macs, "input": out, "output": out, "kernel": 3, "stride": 1}
    return OperatorRow(f"{kind} {i}", target, "t1", 500.0 + 6 * macs + 4 * out, features=features)


def test_operators_come_from_the_table_or_a_model_of_their_kind(tmp_path):
    with CostDatabase(tmp_path / "c.sqlite") as db:
        db.put_all([operator_row(i, kind) for kind in ("conv", "pool") for i in range(40)])
        db.put(NetworkRow("net", "m7", "t1", 1.1 * (operator_row(0).value * 2 + operator_row(1).value), {"conv 0": 2, "conv 1": 1}))
        predictor = fit_operators(db, target="m7", boosting=False)
        assert set(predictor.models) == {"", "conv", "pool"}
        assert predictor.predict("conv 3", {}) == (operator_row(3).value, 0.0)
        unseen = operator_row(99)
        cost, error = predictor.predict("conv 99", unseen.features)
        assert cost == pytest.approx(unseen.value, rel=0.02)
        assert 0 < error < 0.02
        assert predictor.sums is not None
        assert predictor.sums.error == pytest.approx(1 - 1 / 1.1)
        total, error = predictor.network([("conv 0", {}, 2), ("conv 1", {}, 1)])
        assert total == operator_row(0).value * 2 + operator_row(1).value
        assert error == predictor.sums.error
        save_predictor(predictor, tmp_path / "o.npz")
        again = load_predictor(tmp_path / "o.npz")
        assert isinstance(again, OperatorPredictor)
        assert again.predict("conv 99", unseen.features) == (cost, predictor.models["conv"].accuracy.error)
        with pytest.raises(NeaptideError, match="no measured operators"):
            fit_operators(db, target="m4")
        db.put(OperatorRow("conv 1", "m7", "t2", 1.0))
        with pytest.raises(NeaptideError, match="'t1', 't2'"):
            fit_operators(db, target="m7")


def test_command_fits_a_csv(tmp_path, capsys):
    columns, costs = nets(60), additive(nets(60))
    lines = [",".join([*columns.texts, "ms"])]
    lines += [",".join([*(column[i] for column in columns.texts.values()), str(costs[i])]) for i in range(60)]
    (tmp_path / "n.csv").write_text("\n".join(lines))
    assert main(["cost", "fit", str(tmp_path / "n.csv"), "--value", "ms", "--additive", "-o", str(tmp_path / "p.npz"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["accuracy"]["error"] < 1e-3
    predictor = load_predictor(tmp_path / "p.npz")
    assert isinstance(predictor, Predictor)
    assert predictor.unit == "ms"
    assert main(["cost", "fit", str(tmp_path / "n.csv"), "--additive"]) == 0
    assert "folds" in capsys.readouterr().out
    assert main(["cost", "fit", "--target", "m7", "--database", str(tmp_path / "c.sqlite")]) == 1
    assert "no measured operators" in capsys.readouterr().err
    assert main(["cost", "fit"]) == 2


def test_boosting_without_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn.*pip install 'neaptide\[search\]'"):
        fit(nets(40), additive(nets(40)))
    assert fit(nets(40), additive(nets(40)), boosting=False).accuracy.error < 0.1
