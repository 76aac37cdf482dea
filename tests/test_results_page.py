"""docs/results.md: running one benchmark again changes what the page says of that one alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import run

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results.md"
RESULT = {
    "name": "arena",
    "figures": [{"what": "arena over bound", "reach": "<= 1", "got": "2", "reached": False, "peer": "a | b"}],
    "columns": ["instance", "arena"],
    "rows": [["A", "12"]],
    "notes": ["a note"],
}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "STORE", tmp_path)
    return tmp_path


def test_a_page_taken_apart_is_written_as_it_was(store, tmp_path):
    before = PAGE.read_text()
    run._write(tmp_path / "page.md", run._parts(before), quick=False)
    undated = [[line for line in text.splitlines() if "Written by" not in line] for text in (before, (tmp_path / "page.md").read_text())]
    assert undated[0] == undated[1] and len(undated[0]) > 1_000


def test_one_result_takes_its_own_place(store, tmp_path):
    before = run._parts(PAGE.read_text())
    (store / "arena.json").write_text(json.dumps(RESULT))
    run._write(tmp_path / "page.md", before, quick=False)
    after = run._parts((tmp_path / "page.md").read_text())
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == ["arena"]
    assert after["arena"].figures == [r"| arena | arena over bound | <= 1 | 2 | **missed** | a \| b |"]
    assert after["arena"].section[-3:] == ["| instance | arena |", "| --- | --- |", "| A | 12 |"]
