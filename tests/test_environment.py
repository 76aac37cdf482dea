"""A sample of `make fuzz-environment`: what surrounds a command fails, and it ends with the right exit code and one sentence."""

from __future__ import annotations

import pytest

from benchmarks.environment_faults import run_case

SAMPLE = (
    ("full output disk", "end", "analyze"),
    ("stdout full", "before", "cost"),
    ("stdout closed", "before", "analyze"),
    ("output folder removed", "middle", "search"),
    ("home that is nowhere", "before", "measure"),
    ("caches garbled", "before", "analyze"),
    ("cache that is a file", "before", "search"),
    ("ascii streams", "before", "cost"),
    ("odd file names", "before", "analyze"),
)


@pytest.mark.parametrize("case", SAMPLE, ids=", ".join)
def test_a_fault_costs_a_sentence_and_no_old_file(case):
    pytest.importorskip("optuna")
    outcome = run_case(*case)
    if outcome is None:
        pytest.skip(f"this user cannot bring about: {case[0]}")
    assert not outcome.wrong, (outcome.wrong, outcome.code, outcome.said)
