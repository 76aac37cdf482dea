"""`neaptide measure` as a person types it: one JSON document, a page, and a Ctrl-C that leaves the database as it was."""

from __future__ import annotations

import importlib.util
import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neaptide.cli import main
from neaptide.targets.cost import Cost
from neaptide.targets.database import CostDatabase

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="tvm not installed: pip install 'neaptide[tvm]'")
NET = """
import torch
from torch import nn
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), (torch.randn(1, 16),)
"""
PROGRAM = """
import pathlib, sys
from neaptide.targets.tvm import tune
real = tune.build
def build(*args):
    built = real(*args)
    pathlib.Path("searching").touch()  # candidates are there: one of 100,000 trials is over
    return built
tune.build = build
from neaptide.cli import main
sys.exit(main())
"""


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with a small model in it."""
    monkeypatch.chdir(tmp_path)
    Path("small.py").write_text(NET)
    return tmp_path


def test_json_and_a_page(desk, capsys):
    assert main(["measure", "small.py:net", "-t", "sm_90", "--json", "--html", "cost.html", "--database", "c.sqlite"]) == 0
    said = capsys.readouterr()
    cost = Cost.from_dict(json.loads(said.out))
    assert cost.kind == "bound" and cost.latency and said.err == "wrote cost.html\n"
    page = Path("cost.html").read_text()
    assert "a lower bound" in page and all(op.signature.partition("(")[0] in page for op in cost.per_op)
    assert main(["measure", "small.py:net", "-t", "sm_90", "--html", "no/cost.html"]) == 1
    assert "there is no folder 'no'" in capsys.readouterr().err
    with CostDatabase("c.sqlite") as database:
        assert database.counts() == []  # a bound teaches nothing


def test_a_real_ctrl_c_in_a_search_leaves_the_database_sound(desk, start):
    words = ["measure", "small.py:net", "--target", "cpu", "--database", "c.sqlite"]
    assert main([*words, "--trials", "1"]) == 0
    with CostDatabase("c.sqlite") as database:
        before = list(database.rows())
    process = start([sys.executable, "-c", PROGRAM, *words, "--trials", "100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while not Path("searching").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out, err) == (130, b"", b"neaptide: interrupted\n")
    check = sqlite3.connect("c.sqlite")
    assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    check.close()
    with CostDatabase("c.sqlite") as database:
        assert list(database.rows()) == before and before
