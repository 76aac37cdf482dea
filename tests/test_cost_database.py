"""The cost database: what was put comes back, through kills, crowds, upgrades and files; quickly."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from neaptide.cli import main
from neaptide.compiler.errors import FormatError, NeaptideError
from neaptide.targets.cost_rows import export_rows, import_rows
from neaptide.targets.database import MIGRATIONS, VERSION, CostDatabase, NetworkRow, OperatorRow

WRITER = """
import sys
from neaptide.targets.database import CostDatabase, OperatorRow
path, name, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
db = CostDatabase(path)
print("open", flush=True)
for i in range(n):
    db.put(OperatorRow(f"{name} {i}", "cpu", "t1", float(i), features={"op": "conv", "pad": "x" * (i % 500)}))
    print(i, flush=True)
"""


def op(signature="conv 1x2", target="cpu", toolchain="t1", value=10.0, **more):
    return OperatorRow(signature, target, toolchain, value, **more)


def start_writer(path, name, n):
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(n)], stdout=subprocess.PIPE, text=True)


def intact(path):
    return sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_put_and_get(tmp_path):
    row = op(unit="seconds", value=1e-3, spread=0.02, bytes=64, features={"op": "conv", "macs": 12}, extra={"trace": [1, 2]}, created=5.0)
    net = NetworkRow("net", "cpu", "t1", 30.0, {"conv 1x2": 3}, created=6.0)
    with CostDatabase(tmp_path / "deep" / "c.sqlite") as db:
        db.put_all([row, net])
    with CostDatabase(tmp_path / "deep" / "c.sqlite") as db:
        assert db.get("conv 1x2", "cpu", "t1") == row
        assert db.get_network("net", "cpu", "t1") == net
        assert db.get("conv 1x2", "cpu", "t2") is None
        assert db.get("conv 1x2", "gpu", "t1") is None
        assert db.counts() == [("cpu", "t1", 1, 1)]
        assert list(db.rows(NetworkRow)) == [net]


def test_newer_replaces_older_and_not_the_other_way(tmp_path):
    with CostDatabase(tmp_path / "c.sqlite") as db:
        db.put(op(value=1.0, created=10.0))
        assert db.put_all([op(value=2.0, created=9.0)]) == 0
        assert db.put_all([op(value=3.0, created=11.0)]) == 1
        found = db.get("conv 1x2", "cpu", "t1")
        assert found is not None
        assert found.value == 3.0


def test_a_batch_is_all_or_nothing(tmp_path):
    with CostDatabase(tmp_path / "c.sqlite") as db:
        with pytest.raises(ValueError, match="cannot cost"):
            db.put_all([op(), op("bad", value=float("nan"))])
        assert db.counts() == []
        db.put(op())
        assert db.counts() == [("cpu", "t1", 1, 0)]


def test_a_query_is_one_lookup_however_much_is_known(tmp_path):
    """Counted in statements and in instructions of SQLite's machine, some ten of which take a microsecond."""
    with CostDatabase(tmp_path / "c.sqlite") as db:
        db.put_all(op(f"conv {i}", features={"op": "conv", "macs": i}) for i in range(5000))
        db.get("conv 7", "cpu", "t1")
        statements, steps = [], itertools.count()
        connection = db._db()
        connection.set_trace_callback(statements.append)
        connection.set_progress_handler(lambda: next(steps) < 0, 1)
        assert all(db.get(f"conv {i}", "cpu", "t1") is not None for i in range(50))
        connection.set_progress_handler(None, 1)
        connection.set_trace_callback(None)
        (plan,) = connection.execute(f"EXPLAIN QUERY PLAN {statements[0]}").fetchall()
    assert len(statements) == 50
    assert 50 < next(steps) <= 50 * 100, "a walk through 5,000 rows takes over 5,000 each"
    assert plan[3].startswith("SEARCH operators USING ") and "signature=? AND target=? AND toolchain=?" in plan[3]


def test_kill_while_writing_loses_at_most_the_row_in_flight(tmp_path):
    path = tmp_path / "c.sqlite"
    for attempt in range(4):
        writer = start_writer(path, f"w{attempt}", 10**6)
        assert writer.stdout is not None
        assert writer.stdout.readline().strip() == "open"
        said = [int(writer.stdout.readline()) for _ in range(1 + 13 * attempt)]
        writer.send_signal(signal.SIGKILL)
        said += [int(line) for line in writer.communicate()[0].split()]
        with CostDatabase(path) as db:
            kept = sorted(int(row.value) for row in db.rows(like=f"w{attempt} "))
        assert kept == list(range(len(kept)))
        assert len(said) <= len(kept) <= len(said) + 1
        assert len(said) > 13 * attempt
        assert intact(path)


def test_processes_share_a_file(tmp_path):
    path = tmp_path / "c.sqlite"
    writers = [start_writer(path, f"w{k}", 60) for k in range(3)]
    assert [w.wait(120) for w in writers] == [0, 0, 0]
    with CostDatabase(path) as db:
        assert db.counts() == [("cpu", "t1", 180, 0)]
    assert intact(path)


def test_threads_and_forks_share_an_object(tmp_path):
    with CostDatabase(tmp_path / "c.sqlite") as db:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda i: db.put(op(f"conv {i}")), range(40)))
        child = os.fork() if hasattr(os, "fork") else None
        if child == 0:
            db.put(op("from the child"))
            os._exit(0)
        if child is not None:
            assert os.waitpid(child, 0)[1] == 0
            assert db.get("from the child", "cpu", "t1") is not None
        assert db.counts()[0][2] == 40 + (child is not None)


def test_an_older_file_is_migrated_and_keeps_its_rows(tmp_path):
    path = tmp_path / "c.sqlite"
    old = sqlite3.connect(path)
    old.executescript(MIGRATIONS[0])
    old.execute("INSERT INTO operators VALUES ('conv 1x2', 'cpu', 't1', 7.0, 'instructions', NULL, 0, '{}', '{}', 1.0)")
    old.execute("PRAGMA user_version = 1")
    old.commit()
    old.close()
    with CostDatabase(path) as db:
        found = db.get("conv 1x2", "cpu", "t1")
        assert found is not None
        assert found.value == 7.0
        db.put(NetworkRow("net", "cpu", "t1", 1.0, {}))
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone()[0] == VERSION


def test_files_that_are_not_ours_are_refused(tmp_path):
    later = tmp_path / "later.sqlite"
    sqlite3.connect(later).execute(f"PRAGMA user_version = {VERSION + 1}").connection.commit()
    with pytest.raises(FormatError, match="upgrade"):
        CostDatabase(later)
    other = tmp_path / "other.sqlite"
    sqlite3.connect(other).execute("CREATE TABLE music (title)").connection.commit()
    with pytest.raises(FormatError, match="something else"):
        CostDatabase(other)
    junk = tmp_path / "junk.sqlite"
    junk.write_bytes(b"not a database at all" * 100)
    with pytest.raises(FormatError, match="damaged"):
        CostDatabase(junk)
    with pytest.raises(NeaptideError, match="NEAPTIDE_COSTS"):
        CostDatabase(junk / "below" / "a-file.sqlite")


def test_prune(tmp_path):
    with CostDatabase(tmp_path / "c.sqlite") as db:
        db.put_all([op("a", created=1.0), op("b", target="gpu", created=2.0), op("c", toolchain="t2", created=3.0)])
        assert db.prune(before=2.5, dry_run=True) == 2
        assert db.prune(target="gpu") == 1
        assert db.prune(like="a") == 1
        assert [row.signature for row in db.rows()] == ["c"]


def test_export_and_import(tmp_path):
    rows = [op("a", created=1.0, features={"op": "conv"}), NetworkRow("net", "cpu", "t1", 2.0, {"a": 2}, created=2.0)]
    assert export_rows(rows, tmp_path / "c.jsonl") == 2
    with CostDatabase(tmp_path / "c.sqlite") as db:
        assert import_rows(tmp_path / "c.jsonl", db) == (2, 2)
        assert [*db.rows(), *db.rows(NetworkRow)] == rows
        db.put(op("a", created=5.0, value=50.0))
        assert import_rows(tmp_path / "c.jsonl", db)[0] == 2
        kept = db.get("a", "cpu", "t1")
        assert kept is not None
        assert kept.value == 50.0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "not an object"),
        ("{", "Expecting"),
        ('{"table": "songs"}', "table 'songs'"),
        ('{"table": "operators", "signature": "a"}', "'target' is missing"),
        ('{"table": "operators", "signature": "a", "target": "cpu", "toolchain": "t", "value": -1}', "costs -1"),
        ('{"table": "operators", "signature": "a", "target": "cpu", "toolchain": "t", "value": 1, "size": 3}', "unknown key"),
        ('{"table": "operators", "signature": 4}', "signature is 4"),
    ],
)
def test_wrong_lines_are_named_and_nothing_is_imported(tmp_path, line, said):
    path = tmp_path / "c.jsonl"
    export_rows([op("a")], path)
    path.write_text(path.read_text() + line + "\n")
    with CostDatabase(tmp_path / "c.sqlite") as db:
        with pytest.raises(FormatError, match=r"c\.jsonl:3: ") as caught:
            import_rows(path, db)
        assert said in str(caught.value)
        assert db.counts() == []
    (tmp_path / "other.jsonl").write_text(json.dumps({"format": "x"}) + "\n")
    with CostDatabase(tmp_path / "c.sqlite") as db, pytest.raises(FormatError, match=r"other\.jsonl:1: "):
        import_rows(tmp_path / "other.jsonl", db)


def test_command_line(tmp_path, capsys, monkeypatch):
    path = tmp_path / "c.sqlite"
    monkeypatch.setenv("NEAPTIDE_COSTS", str(path))
    assert main(["cost", "show"]) == 0
    assert "empty" in capsys.readouterr().out
    with CostDatabase(path) as db:
        db.put_all([op("conv 1x2", created=1.0), op("pool", target="m7", unit="seconds", value=2e-3, created=2.0)])
        db.put(NetworkRow("net", "m7", "t1", 1.0, {"pool": 1}))
    assert main(["cost", "show"]) == 0
    assert main(["cost", "show", "--like", "pool"]) == 0
    assert "2 ms" in capsys.readouterr().out
    assert main(["cost", "export", str(tmp_path / "all.jsonl")]) == 0
    assert main(["cost", "prune"]) == 2
    assert main(["cost", "prune", "--older-than", "1", "--dry-run"]) == 0
    assert "2 rows would be" in capsys.readouterr().err
    assert main(["cost", "prune", "--all"]) == 0
    assert main(["cost", "import", str(tmp_path / "all.jsonl")]) == 0
    capsys.readouterr()
    assert main(["cost", "show", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)["known"]
    assert [(k["target"], k["operators"], k["networks"]) for k in known] == [("cpu", 1, 0), ("m7", 1, 1)]
    assert main(["cost", "import", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
