"""Damaged files of every format, through the commands that read them: read or refused in a sentence, within 2 GB and 20 s."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("onnx")
if sys.platform != "linux":
    pytest.skip("peaks of resident memory are read off /proc", allow_module_level=True)

from benchmarks import fuzz_files, fuzz_mutations
from benchmarks.fuzz_files import BAD, MIX, judge, make_case, places, run_cases, summary
from benchmarks.fuzz_seeds import make_seeds

CASES = 2_000


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> dict[str, list[Path]]:
    return make_seeds(tmp_path_factory.mktemp("seeds"), MIX)


def test_no_damaged_file_ends_as_a_bug(seeds, tmp_path):
    cases = list(run_cases(range(CASES), 0, tuple(MIX), seeds, workers=1, keep=tmp_path))
    assert len({case.number for case in cases}) == CASES
    assert not places(cases)
    read = [case for case in cases if case.verdict == "ok"]
    assert len(read) > CASES / 10  # damage that always shows at once would test nothing behind the door


def test_a_case_is_its_number(seeds):
    for number in range(200):
        first, second = make_case(number, 7, tuple(MIX), seeds), make_case(number, 7, tuple(MIX), seeds)
        assert first[0] == second[0] and first[3] == second[3]
        if fuzz_mutations.STRUCTURED[first[0]].__name__ != "_sqlite":  # SQLite counts the changes of a file in it
            assert first[1] == second[1]


@pytest.mark.parametrize("kind", [kind for kind in MIX if kind != "study"])
def test_honest_files_are_read(seeds, kind, tmp_path, monkeypatch):
    """Each seed of a format, undamaged, by some command of its format."""
    if not seeds.get(kind):
        pytest.skip(f"what makes {kind} files is not installed")
    monkeypatch.setattr(fuzz_files, "mutated", lambda kind, data, other, rng: (data, "none"))
    verdicts = [judge(number, 3, (kind,), seeds, None, 0).verdict for number in range(12)]
    assert "ok" in verdicts and not set(verdicts) & set(BAD), verdicts


def _misbehave(monkeypatch, what):
    monkeypatch.setattr(fuzz_files, "run_command", lambda *_: what())


@pytest.mark.parametrize(
    ("what", "verdict"),
    [
        (lambda: 0, "ok"),
        (lambda: print("neaptide: no", file=sys.stderr) or 2, "refused"),
        (lambda: 2, "bug"),
        (lambda: 5, "bug"),
        (lambda: 1 // 0, "bug"),
        (lambda: print("neaptide: this is a bug in Neaptide", file=sys.stderr) or 1, "bug"),
        (lambda: print("neaptide: out of memory", file=sys.stderr) or 1, "memory"),
    ],
)
def test_what_is_bad_is_called_so(seeds, monkeypatch, tmp_path, what, verdict):
    _misbehave(monkeypatch, what)
    case = judge(1, 0, ("json",), seeds, tmp_path / "kept", 0)
    assert case.verdict == verdict
    assert sorted(p.suffix for p in (tmp_path / "kept").glob("*")) == ([".json", ".txt"] if verdict in BAD else [])


def test_memory_and_time_are_those_of_the_case(seeds, monkeypatch):
    monkeypatch.setattr(fuzz_files, "MEMORY", 50_000_000)
    _misbehave(monkeypatch, lambda: bytearray(b"x" * 120_000_000) and 0)
    assert judge(1, 0, ("json",), seeds, None, 0).verdict == "memory"
    _misbehave(monkeypatch, lambda: 0)
    assert judge(1, 0, ("json",), seeds, None, 0).verdict == "ok"
    monkeypatch.setattr(fuzz_files, "CPU_S", 0.05)
    _misbehave(monkeypatch, _work_for_a_tenth)
    assert judge(1, 0, ("json",), seeds, None, 0).verdict == "time"


def _work_for_a_tenth() -> int:
    spent = time.process_time()
    while time.process_time() - spent < 0.1:
        pass
    return 0


def test_a_case_that_ends_its_process_is_bad_and_the_rest_goes_on(seeds, tmp_path, monkeypatch):
    """The worker is killed under the third case, as the kernel does with one that fills the memory."""
    cases, run = [], run_cases(range(6), 0, ("json",), seeds, workers=1, keep=tmp_path)
    plain = fuzz_files._Worker.give

    def give(worker, number):
        plain(worker, number)
        if number == 2:
            os.kill(worker._process.pid, signal.SIGKILL)

    monkeypatch.setattr(fuzz_files._Worker, "give", give)
    cases = list(run)
    assert [case.number for case in cases] == list(range(6))
    assert [case.number for case in cases if case.verdict == "signal"] == [2]
    assert (tmp_path / "signal-2.json").is_file()
    assert summary(cases)[0][:2] == ("json", "6") and places(cases)[0][1:] == (1, 2)
