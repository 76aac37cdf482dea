"""Peaks as formulas: equal to concrete traces, sound where pieces were dropped, honest about where they hold."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neaptide.compiler.errors import NeaptideError, TraceError
from neaptide.compiler.reference_models import REFERENCE_MODELS
from neaptide.compiler.trace import trace
from neaptide.passes.formula import PeakFormula, peak_formula
from neaptide.passes.liveness import eager_liveness, liveness
from neaptide.passes.polynomial import Ring, Size
from neaptide.passes.regions import joined, region_of

pytestmark = pytest.mark.usefixtures("one_thread")


def concrete_peak(model, args, which="graph", **options):
    graph = trace(model, args, **options)
    return (liveness(graph, inputs="caller") if which == "graph" else eager_liveness(graph)).peak


class Mixed(torch.nn.Module):
    """Early steps grow with the square of the length, late ones with the length and a constant."""

    def forward(self, x):
        scores = (x @ x.transpose(1, 2)).softmax(-1)
        return torch.cat([(scores @ x).mean(1), x.new_zeros(x.shape[0], 5000)], 1)


# ---- formulas against concrete traces -------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["graph", "eager"])
@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2_035_64", "ds_cnn"])
def test_batch(name, which):
    reference = REFERENCE_MODELS[name]
    model = reference.module()
    formula = peak_formula(model, reference.args(batch=4), dynamic={0: {0: "B"}}, which=which)
    assert formula.method == "symbolic"
    for batch in (1, 2, 5, 16, 33):
        assert formula.evaluate(B=batch) == concrete_peak(model, reference.args(batch=batch), which)


@pytest.mark.parametrize("which", ["graph", "eager"])
def test_batch_and_length(which):
    reference = REFERENCE_MODELS["transformer_block"]
    model = reference.module()
    formula = peak_formula(model, reference.args(batch=2, length=16), dynamic={"x": {0: "B", 1: "S"}}, which=which)
    for batch, length in ((1, 1), (1, 40), (2, 8), (3, 1), (7, 65)):
        assert formula.evaluate(B=batch, S=length) == concrete_peak(model, (torch.zeros(batch, length, 256),), which)


def test_piecewise_in_the_length():
    model = Mixed()
    formula = peak_formula(model, torch.zeros(2, 8, 16), dynamic={0: {0: "B", 1: "S"}})
    assert len(formula.pieces) > 1
    length_symbol = formula.sizes[1].symbol
    assert any(sympy.Poly(p, length_symbol).degree() == 2 for p in formula.pieces)
    winners = set()
    for length in (2, 30, 100, 400):
        peak = formula.evaluate(B=3, S=length)
        assert peak == concrete_peak(model, (torch.zeros(3, length, 16),))
        values = [int(p.subs(formula.sizes[0].symbol, 3).subs(length_symbol, length)) for p in formula.pieces]
        winners.add(values.index(peak))
    assert len(winners) > 1, "one piece was on top everywhere"


def test_resolution_in_steps_is_a_polynomial():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(8, 64, 3, stride=2, padding=1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    ).eval()
    formula = peak_formula(model, torch.zeros(2, 3, 64, 64), dynamic={0: {0: ("B", 1, 64), 2: ("H", 16, 128, 8), 3: "H"}})
    assert all(p.is_polynomial() for b in formula.branches for p in b.pieces)
    for batch, side in ((2, 16), (3, 32), (5, 48), (2, 64), (16, 96), (1, 24)):
        assert formula.evaluate(B=batch, H=side) == concrete_peak(model, (torch.zeros(batch, 3, side, side),))
    with pytest.raises(NeaptideError, match="multiple of 8"):
        formula.evaluate(B=2, H=44)


def test_resolution_without_steps_rounds():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3, stride=2))
    formula = peak_formula(model, torch.zeros(2, 3, 33, 33), dynamic={0: {2: ("H", 16, 200), 3: "H"}})
    for side in (16, 17, 18, 19, 64, 111, 200):
        assert formula.evaluate(H=side) == concrete_peak(model, (torch.zeros(2, 3, side, side),))


@pytest.mark.parametrize("which", ["graph", "eager"])
def test_training_step(which):
    reference = REFERENCE_MODELS["ds_cnn"]
    model = reference.module()
    options: dict[str, Any] = {"mode": "training", "optimizer": "sgd:momentum=0.9"}
    formula = peak_formula(model, reference.args(batch=4), dynamic={0: {0: "B"}}, which=which, **options)
    for batch in (1, 2, 3, 9, 20):
        assert formula.evaluate(B=batch) == concrete_peak(model, reference.args(batch=batch), which, **options)


def test_lstm_is_sampled_and_says_so():
    reference = REFERENCE_MODELS["lstm"]
    model = reference.module()
    formula = peak_formula(model, reference.args(batch=3), dynamic={0: {0: "B"}}, which="eager")
    assert formula.method == "sampled"
    assert formula.note
    assert "sampled" in str(formula)
    for batch in (1, 2, 3, 8, 31):
        assert formula.evaluate(B=batch) == concrete_peak(model, reference.args(batch=batch), "eager")


@pytest.mark.parametrize("name", ["lstm", "ds_cnn"])
def test_an_example_of_one_sample_will_do(name):
    reference = REFERENCE_MODELS[name]
    model = reference.module()
    formula = peak_formula(model, reference.args(batch=1), dynamic={0: {0: "B"}}, which="eager")
    assert formula.branches[0].holds(formula.sizes, {"B": 1})
    for batch in (1, 2, 11, 40):
        assert formula.evaluate(B=batch) == concrete_peak(model, reference.args(batch=batch), "eager")


def test_planned_inputs_are_in_the_peak():
    model = torch.nn.Linear(8, 8)
    caller = peak_formula(model, torch.zeros(3, 8), dynamic={0: {0: "B"}}, inputs="caller")
    planned = peak_formula(model, torch.zeros(3, 8), dynamic={0: {0: "B"}}, inputs="planned")
    assert planned.evaluate(B=5) == caller.evaluate(B=5) + 5 * 8 * 4


def test_strides_of_the_example_are_kept():
    model = torch.nn.Conv2d(4, 8, 3)
    x = torch.zeros(2, 4, 9, 9).to(memory_format=torch.channels_last)
    formula = peak_formula(model, x, dynamic={0: {0: "B"}})
    larger = torch.zeros(6, 4, 9, 9).to(memory_format=torch.channels_last)
    assert formula.evaluate(B=6) == concrete_peak(model, (larger,))


# ---- where they hold ------------------------------------------------------------------------------------------------------


class Branching(torch.nn.Module):
    """Another path for long inputs."""

    def forward(self, x):
        return x.repeat(1, 3).sum(1) if x.shape[0] > 10 else x + 1


def test_a_branch_of_the_model_is_a_branch_of_the_formula():
    formula = peak_formula(Branching(), torch.zeros(4, 100), dynamic={"x": {0: "N"}})
    assert [str(g) for g in formula.guards] == ["N <= 10"]
    for n in (1, 2, 10, 11, 12, 50):
        assert formula.evaluate(N=n) == concrete_peak(Branching(), (torch.zeros(n, 100),))
    assert "N <= 10" in str(formula)
    assert "11 <= N" in str(formula)


class Pinned(torch.nn.Module):
    """Takes a size for a number."""

    def forward(self, x):
        return x + torch.zeros(int(x.shape[0]), 1)


def test_a_size_taken_for_a_number_is_sampled():
    formula = peak_formula(Pinned(), torch.zeros(4, 3), dynamic={"x": {0: "N"}})
    assert formula.method == "sampled"
    assert "holds for N = 4 only" in formula.note
    for n in (1, 2, 9, 30):
        assert formula.evaluate(N=n) == concrete_peak(Pinned(), (torch.zeros(n, 3),))


class OnlyEven(torch.nn.Module):
    def forward(self, x):
        return x.view(2, -1) * 2


def test_outside_the_guards_is_an_error():
    formula = peak_formula(OnlyEven(), torch.zeros(4, 3), dynamic={"x": {0: "N"}})
    assert formula.evaluate(N=8) == 8 * 3 * 4
    with pytest.raises(NeaptideError, match="no recording holds at N=7"):
        formula.evaluate(N=7)


def test_sizes_outside_their_range_are_an_error():
    formula = peak_formula(torch.nn.ReLU(), torch.zeros(4, 3), dynamic={0: {0: ("N", 2, 16)}})
    for n in (1, 17):
        with pytest.raises(NeaptideError, match=f"N={n} is outside"):
            formula.evaluate(N=n)
    with pytest.raises(NeaptideError, match="given: M"):
        formula.evaluate(M=3)


# ---- the inverse ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, 1_000, 60_000, 60_001, 1_000_000])
def test_solve_is_the_largest_that_fits(budget):
    formula = peak_formula(Mixed(), torch.zeros(2, 8, 16), dynamic={0: {0: ("B", 1, 40), 1: ("S", 1, 60)}})
    for batch in (1, 2, 7):
        fitting = [s for s in range(1, 61) if formula.evaluate(B=batch, S=s) <= budget]
        assert formula.solve(budget, B=batch) == (max(fitting) if fitting else None)


def test_solve_crosses_branches():
    formula = peak_formula(Branching(), torch.zeros(4, 100), dynamic={"x": {0: ("N", 1, 100)}})
    for budget in (3_000, 4_000, 5_000, 13_000, 14_000, 10**9):
        fitting = [n for n in range(1, 101) if formula.evaluate(N=n) <= budget]
        assert formula.solve(budget) == max(fitting)


def test_solve_without_an_end_is_an_error():
    formula = peak_formula(torch.nn.ReLU(), torch.zeros(4, 3), dynamic={0: {0: "N"}})
    assert formula.solve(10**12) == 10**12 // 12
    with pytest.raises(NeaptideError, match="fix all but one"):
        formula.solve(10, N=3)


# ---- the request ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({}, "names no size"),
        ({"y": {0: "B"}}, "'y', which is no tensor"),
        ({3: {0: "B"}}, "3, which is no tensor"),
        ({"input": {2: "B"}}, "dimension 2 of input"),
        ({"input": {0: "2B"}}, "'2B' is not a name"),
        ({"input": {0: "B", 1: "B"}}, "size B is 4 in one place of the example and 3"),
        ({"input": {0: ("B", 5, 9)}}, "the example has B=4"),
        ({"input": {0: ("B", 9, 5)}}, "no multiple of 1 lies between 9 and 5"),
    ],
)
def test_requests_that_do_not_fit(dynamic, message):
    with pytest.raises(NeaptideError, match=message):
        peak_formula(torch.nn.ReLU(), torch.zeros(4, 3), dynamic=dynamic)


def test_a_model_that_fails_says_why():
    with pytest.raises(TraceError, match=r"Linear raised RuntimeError.*\[2, 3\] X \[5, 5\]"):
        peak_formula(torch.nn.Linear(5, 5), torch.zeros(4, 3), dynamic={0: {0: "B"}})


def test_nested_arguments_and_keywords():
    class Nested(torch.nn.Module):
        def forward(self, batch, *, mask):
            return batch["x"] * mask

    x = torch.zeros(4, 6)
    formula = peak_formula(Nested(), ({"x": x},), {"mask": torch.ones(4, 1)}, dynamic={"batch.x": {0: "B"}, "mask": {0: "B"}})
    assert formula.evaluate(B=9) == 9 * 6 * 4


def test_the_model_is_left_as_it_was():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)).train()
    before = {k: (v, v.clone()) for k, v in model.state_dict(keep_vars=True).items()}
    peak_formula(model, torch.zeros(4, 4), dynamic={0: {0: "B"}})
    assert model.training
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is before[name][0]
        assert torch.equal(tensor, before[name][1])


def test_to_dict_is_json():
    formula = peak_formula(torch.nn.ReLU(), torch.zeros(4, 3), dynamic={0: {0: "N"}}, name="relu")
    assert isinstance(formula, PeakFormula)
    document = json.loads(json.dumps(formula.to_dict()))
    assert document["branches"][0]["pieces"] == ["12*N"]
    assert document["branches"][0]["holds"] == ["always"]
    assert document["name"] == "relu"
    assert str(formula).splitlines()[1] == "  12*N    where always"


# ---- polynomials and regions, against enumeration -------------------------------------------------------------------------

SIZES = (Size("A", 1, 9), Size("C", 4, 24, 4))
A, C = (s.symbol for s in SIZES)
POINTS = [{"A": a, "C": c} for a in range(1, 10) for c in range(4, 25, 4)]
coefficients = st.integers(-6, 12)


@st.composite
def expressions(draw):
    """Integer expressions over A and C, with quotients and remainders."""
    out = sympy.Integer(draw(coefficients))
    for _ in range(draw(st.integers(1, 4))):
        base = draw(
            st.sampled_from(
                [
                    A,
                    C,
                    A * C,
                    A**2,
                    C**2,
                    sympy.floor((C - 1) / 2),
                    sympy.floor((A + 3 * C) / 4),
                    sympy.Mod(A, 3),
                    sympy.Mod(C, A),
                    sympy.floor(C / A),
                ]
            )
        )
        out += draw(coefficients) * base
    return out


def at_point(expression, point):
    return int(expression.subs({A: point["A"], C: point["C"]}))


@settings(max_examples=100, deadline=None)
@given(expressions())
def test_reading_and_writing_keep_the_value(expression):
    ring = Ring(SIZES)
    terms = ring.read(expression)
    back = ring.write(terms)
    for point in POINTS[::7]:
        assert ring.value(terms, point) == at_point(expression, point) == at_point(back, point)


def test_quotients_without_rounding_go_away():
    ring = Ring(SIZES)
    assert ring.write(ring.read(sympy.floor((C - 1) / 2) + 1)) == C / 2
    assert ring.write(ring.read(sympy.floor((C + 3) / 4) ** 2)) == C**2 / 16
    assert not ring.write(ring.read(sympy.floor(A / 2))).is_polynomial()


@settings(max_examples=150, deadline=None)
@given(st.lists(expressions(), min_size=1, max_size=7))
def test_dropped_pieces_are_never_the_maximum(candidates):
    ring = Ring(SIZES)
    terms = [ring.read(e) for e in candidates]
    kept = ring.undominated(terms, ring.box())
    for point in POINTS:
        assert max(ring.value(t, point) for t in kept) == max(ring.value(t, point) for t in terms)


def test_lines_keep_only_their_upper_hull():
    ring = Ring((Size("B", 1),))
    b = ring.sizes[0].symbol
    kept = ring.undominated([ring.read(e) for e in (10 * b + 1, 5 * b + 80, 2 * b + 100, 6 * b + 5)], ring.box())
    assert {str(ring.write(t)) for t in kept} == {"10*B + 1", "5*B + 80", "2*B + 100"}


@st.composite
def guards(draw):
    left, right = draw(st.sampled_from([A, C, 2 * A - 1, C**2 / 4, sympy.floor(C / 8), A * C, A - C])), draw(st.integers(-3, 60))
    kind = draw(st.sampled_from([sympy.Lt, sympy.Le, sympy.Gt, sympy.Ge, sympy.Eq, sympy.Ne]))
    return kind(left, right) if draw(st.booleans()) else kind(right, left)


@settings(max_examples=200, deadline=None)
@given(st.lists(guards(), max_size=4))
def test_a_region_is_where_its_guards_hold(conditions):
    ring = Ring(SIZES)
    region = region_of(ring, conditions)
    for point in POINTS:
        values = {A: point["A"], C: point["C"]}
        assert region.contains(SIZES, point) == all(bool(sympy.sympify(g).subs(values)) for g in conditions)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=6))
def test_joined_regions_hold_where_one_of_them_did(corners):
    ring = Ring(SIZES)
    boxes = [
        region_of(ring, [sympy.Ge(A, min(a, b)), sympy.Le(A, max(a, b)), sympy.Ge(C, 4 * min(c, d)), sympy.Le(C, 4 * max(c, d))])
        for a, b, c, d in corners
    ]
    union = joined(boxes, SIZES)
    assert len(union) <= len(boxes)
    for point in POINTS:
        assert any(r.contains(SIZES, point) for r in union) == any(r.contains(SIZES, point) for r in boxes)


def test_regions_that_meet_become_one():
    ring = Ring((Size("B", 1), Size("S", 1)))
    b, s = (x.symbol for x in ring.sizes)
    parts = [[g, h] for g, h in itertools.product((sympy.Eq(b, 1), sympy.Ge(b, 2)), (sympy.Eq(s, 1), sympy.Ge(s, 2)))]
    (whole,) = joined([region_of(ring, p) for p in parts], ring.sizes)
    assert whole.text(ring.sizes) == "always"
