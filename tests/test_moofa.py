"""MOOFA: channel sizing, accuracy predictors, evolution under a peak, elastic supernets, progressive shrinking, the engine."""

from __future__ import annotations

import math

import pytest

from neaptide.compiler.errors import SourceError
from neaptide.search.moofa_sizing import SizingRule, round_channels, size_channels

# ---- channel sizing ---------------------------------------------------------------------------------------------------


def test_published_widths_and_how_they_came_about():
    sizing = size_channels("published")
    assert sizing.widths == (3, 8, 24, 96, 288, 360, 384, 392, 392)
    steps = [(s.size, s.channels, s.dominant, round(s.solution, 1), s.rounded) for s in sizing.steps]
    assert steps == [
        (56, 24, "depthwise", 93.8, 96),
        (28, 96, "depthwise", 290.1, 288),
        (14, 288, "expand", 362.4, 360),
        (7, 360, "expand", 381.8, 384),
        (3.5, 384, "expand", 389.7, 392),
        (1.75, 392, "expand", 393.4, 392),
    ]
    assert sizing.steps[0].limits == pytest.approx({"expand": 135.9, "depthwise": 93.8}, abs=0.05)


def test_printed_equations_shrink_the_channels():
    """Equations (5), (7) and (9) read literally: the reason why the solver does not use them."""
    c, size, kernel, e, widths = 24, 56, 7, 4, []
    for _ in range(6):
        area = size * size
        depthwise, expand = e * c * (2 * area + kernel**2), c * area * (1 + e) + e * c * c
        linear = (e + 1) * area / 4
        root = (math.sqrt(linear**2 + 4 * e * e * c * (area + kernel**2 + area / 4)) - linear) / (2 * e)
        printed = c * (area + 4 * kernel**2 + area / 4) / (2 * area + 4 * kernel**2)
        from_expand = (math.sqrt(linear**2 + 4 * e * expand) - linear) / (2 * e)
        c = round_channels(min(printed, root) if depthwise > expand else from_expand)
        widths.append(c)
        size /= 2
    assert widths == [16] * 6


@pytest.mark.parametrize("rule", ["published", "lifetime", "weights-in-flash"])
def test_next_stage_fills_the_budget_and_no_more(rule):
    sizing = size_channels(rule)
    for step in sizing.steps:
        needs = [sizing.rule.memory(op, step.solution, step.next_size) for op in sizing.rule.ops]
        assert max(needs) == pytest.approx(step.budget)


def test_other_accountings_give_other_widths():
    assert size_channels(stride=2).widths[3:] == (56, 128, 192, 216, 224, 224)
    assert size_channels("lifetime").widths[3:] == (96, 296, 384, 408, 416, 416)
    assert size_channels("weights-in-flash").widths[3:6] == (96, 384, 1536)
    bounded = size_channels("weights-in-flash", flash=2_000_000)
    assert all(bounded.rule.stage_weights(w) <= 2_000_000 * 1.05 for w in bounded.widths[3:])


def test_sizing_names_what_it_does_not_know():
    with pytest.raises(SourceError, match="there are published, lifetime, weights-in-flash"):
        size_channels("paper")
    with pytest.raises(SourceError, match="colour"):
        size_channels(colour=3)
    with pytest.raises(SourceError, match="squeeze"):
        SizingRule(ops=("squeeze",))
