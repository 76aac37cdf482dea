"""Cost rows and databases from strangers: no schedule in them runs what no search wrote, and no value in them is believed unread."""

from __future__ import annotations

import copy
import ctypes
import importlib.util
import json
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from neaptide.cli import main
from neaptide.compiler.errors import FormatError
from neaptide.targets.cost_rows import export_rows, import_rows, read_rows
from neaptide.targets.database import MIGRATIONS, CostDatabase, OperatorRow
from neaptide.targets.schedule_traces import ANNOTATIONS, KINDS, check_schedule

needs_tvm = pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="tvm not installed: pip install 'neaptide[tvm]'")
# Run when the operator is loaded: what C knows of the environment is gone.
IR = """
@llvm.global_ctors = appending global [1 x { i32, ptr, ptr }] [{ i32, ptr, ptr } { i32 65535, ptr @clearenv, ptr null }]
declare i32 @clearenv()
"""
TRACE: Any = [
    [
        ["GetSBlock", [], ["conv2d_nchw", "main"], ["b0"]],
        ["GetLoops", ["b0"], [], ["l1", "l2", "l3"]],
        ["SamplePerfectTile", ["l1"], [2, 64], ["v4", "v5"]],
        ["Split", ["l1", "v4", "v5"], [True, False], ["l6", "l7"]],
        ["Annotate", ["l6", 64], ["pragma_auto_unroll_max_step"], []],
        ["Vectorize", ["l7"], [], []],
    ],
    [[2, [4, 2]]],
]


def convolution() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval(), torch.randn(1, 3, 12, 12)


def run(database: Path, trials: int) -> Any:
    from neaptide.targets.spec import load_target
    from neaptide.targets.tvm.cpu import measure_cpu

    network, x = convolution()
    with CostDatabase(database) as costs:
        return measure_cpu(network, (x,), target=load_target("cpu"), name="net", trials=trials, peers=False, database=costs)


def rows_of(database: Path) -> list[Any]:
    with CostDatabase(database) as costs:
        return list(costs.rows())


def write_row(database: Path, column: str, value: Any) -> None:
    db = sqlite3.connect(database)
    db.execute(f"UPDATE operators SET {column} = ?", (value,))
    db.commit()
    db.close()


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A row with a trace of MetaSchedule's, as tuning writes it, and the trace with LLVM IR in it."""
    from neaptide.targets.tvm import search_space
    from neaptide.targets.tvm.fused_graph import fused_program
    from neaptide.targets.tvm.importer import to_relax
    from neaptide.targets.tvm.tune import cpu_target

    database = tmp_path_factory.mktemp("honest") / "costs.sqlite"
    run(database, 1)
    (row,) = rows_of(database)
    network, x = convolution()
    (func,) = fused_program(to_relax(network, (x,), None), name="net").kernels.values()
    trace, _ = next(search_space.candidates(func, cpu_target(1), lambda _: [1e-3], rules="llvm", count=1, seed=1))
    return row, trace


def armed(trace: Any) -> Any:
    """`trace` with LLVM IR at the last loop it annotates."""
    trace = copy.deepcopy(trace)
    loop = next(i for i in reversed(trace[0]) if i[0] == "Annotate" and i[2] == ["pragma_unroll_explicit"])[1][0]
    trace[0].append(["Annotate", [loop, f'"{IR}"'], ["pragma_import_llvm"], []])
    return trace


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """Whether `IR` has run in this process."""
    monkeypatch.setenv("NEAPTIDE_CANARY", "alive")
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    yield lambda: getenv(b"NEAPTIDE_CANARY") is None
    for name, value in os.environ.items():
        os.putenv(name, value)


@needs_tvm
def test_llvm_in_a_trace_runs_where_nothing_checks_it(honest, ran):
    """What the others guard against is real: TVM alone runs the text."""
    from tvm import s_tir

    from neaptide.targets.tvm import search_space
    from neaptide.targets.tvm.fused_graph import fused_program
    from neaptide.targets.tvm.importer import to_relax
    from neaptide.targets.tvm.tune import build, cpu_target

    network, x = convolution()
    (func,) = fused_program(to_relax(network, (x,), None), name="net").kernels.values()
    schedule = s_tir.Schedule(search_space.operator_module(func))
    s_tir.schedule.Trace.apply_json_to_schedule(armed(honest[1]), schedule)
    assert build(schedule.mod, cpu_target(1)).function
    assert ran()


@needs_tvm
@pytest.mark.parametrize("trials", [0, 1])
def test_a_database_with_llvm_in_it_runs_nothing(honest, tmp_path, ran, trials):
    row, trace = honest
    database = tmp_path / "costs.sqlite"
    with CostDatabase(database) as costs:
        costs.put(replace(row, extra={"trials": 9, "trace": armed(trace)}))
    with pytest.warns(UserWarning, match="pragma_import_llvm") as caught:
        cost = run(database, trials)
    assert not ran()
    assert len([w for w in caught if row.signature in str(w.message)]) == 1
    assert cost.max_error is not None and cost.max_error < 1e-5
    assert (cost.latency is None) == (trials == 0)
    (kept,) = rows_of(database)
    assert kept.extra["trials"] == (1 if trials else 9)  # tuned anew, it is replaced
    if trials:
        check_schedule(kept.extra["trace"])


@needs_tvm
def test_a_database_with_llvm_in_it_runs_nothing_for_a_gpu(honest, tmp_path, ran):
    from tvm.target import Target

    from neaptide.targets.tvm.cuda_tune import tuned_operators
    from neaptide.targets.tvm.fused_graph import fused_program
    from neaptide.targets.tvm.importer import to_relax

    network, x = convolution()
    (func,) = fused_program(to_relax(network, (x,), None), name="net").kernels.values()
    machine = Target({"kind": "cuda", "arch": "sm_80"})
    with CostDatabase(tmp_path / "costs.sqlite") as costs:
        costs.put(OperatorRow("conv", "gpu", "t", 1e-3, "seconds", extra={"trials": 9, "trace": armed(honest[1])}))
        with pytest.warns(UserWarning, match="pragma_import_llvm"):
            found = tuned_operators(
                {"conv": func}, machine, lambda _: lambda _module, _best: [1e-3], target="gpu", toolchain="t", trials=0, database=costs
            )
        assert not found and not ran()


@needs_tvm
def test_a_trace_applied_by_hand_is_checked_too(honest, ran):
    from neaptide.targets.tvm.fused_graph import fused_program
    from neaptide.targets.tvm.importer import to_relax
    from neaptide.targets.tvm.search_space import applied

    network, x = convolution()
    (func,) = fused_program(to_relax(network, (x,), None), name="net").kernels.values()
    assert applied(func, honest[1])
    with pytest.raises(ValueError, match="pragma_import_llvm"):
        applied(func, armed(honest[1]))
    assert not ran()


@needs_tvm
def test_an_import_names_the_line_and_the_annotation(honest, tmp_path, capsys):
    row, trace = honest
    export_rows([row, replace(row, signature="other", extra={"trials": 9, "trace": armed(trace)})], tmp_path / "rows.jsonl")
    assert main(["cost", "import", str(tmp_path / "rows.jsonl"), "--database", str(tmp_path / "costs.sqlite")]) == 2
    said = capsys.readouterr().err
    assert "rows.jsonl:3: " in said and "pragma_import_llvm" in said
    assert rows_of(tmp_path / "costs.sqlite") == []


@needs_tvm
@pytest.mark.parametrize("rules", ["llvm", "cuda"])
def test_what_searches_write_is_on_the_list(rules):
    from tvm.target import Target

    from neaptide.targets.tvm import search_space
    from neaptide.targets.tvm.fused_graph import fused_program
    from neaptide.targets.tvm.importer import to_relax
    from neaptide.targets.tvm.tune import cpu_target

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.wise, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = torch.nn.functional.max_pool2d(torch.relu(self.wise(self.first(x))), 2)
            y = self.last(x.mean((2, 3)))
            return torch.softmax(y, -1), x.flatten(2) @ x.flatten(2).transpose(1, 2), x.sum()

    gpu = {"kind": "cuda", "arch": "sm_80", "max_threads_per_block": 1024, "max_shared_memory_per_block": 49152, "thread_warp_size": 32}
    target = cpu_target(2) if rules == "llvm" else Target({**gpu, "max_num_threads": 1024})
    kinds: set[str] = set()
    for func in fused_program(to_relax(Net().eval(), (torch.randn(1, 3, 32, 32),), None), name="net").kernels.values():
        for trace, _ in search_space.candidates(func, target, lambda _: [1e-3], rules=rules, count=6, seed=3):
            assert search_space.applied(func, trace)
            kinds |= {i[0] for i in trace[0]}
    assert kinds >= {"Annotate", "Split", "Fuse", "SamplePerfectTile", "EnterPostproc", "Vectorize"}
    assert kinds - {"Annotate", "Unannotate"} <= set(KINDS)


def changed(path: tuple[Any, ...], value: Any) -> Any:
    """`TRACE` with another value at `path`."""
    trace = copy.deepcopy(TRACE)
    place: Any = trace
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return trace


REFUSED = {
    "llvm": (changed((0, 4), ["Annotate", ["l6", '"define void @x() { ret void }"'], ["pragma_import_llvm"], []]), "pragma_import_llvm"),
    "c": (changed((0, 4), ["Annotate", ["l6", '"int x;"'], ["pragma_import_c"], []]), "pragma_import_c"),
    "tensor intrinsic": (changed((0, 4), ["Annotate", ["b0", '"x"'], ["meta_schedule.auto_tensorize"], []]), "auto_tensorize"),
    "tensorize": (changed((0, 5), ["Tensorize", ["b0"], ["any_intrinsic", True], []]), "'Tensorize'"),
    "index map": (changed((0, 5), ["TransformLayout", ["b0"], [0, 1, "lambda i: i"], []]), "'TransformLayout'"),
    "unsafe": (changed((0, 5), ["UnsafeHideBufferAccess", ["b0"], ["read", [0]], []]), "UnsafeHideBufferAccess"),
    "key that is a list": (changed((0, 4, 2), [["pragma_import_llvm"]]), "pragma_import_llvm"),
    "value of another type": (changed((0, 4, 1), ["l6", '"16"']), "pragma_auto_unroll_max_step"),
    "unrolled a billion times": (changed((0, 4, 1), ["l6", 10**9]), "1000000000"),
    "split by a billion": (changed((0, 3, 1), ["l1", "v4", 10**9]), "instruction 3, Split"),
    "split by a text": (changed((0, 3, 1), ["l1", '"x"', "v5"]), "instruction 3, Split"),
    "flag that is a number": (changed((0, 3, 2), [1, 0]), "instruction 3, Split"),
    "other function": (changed((0, 0, 2), ["conv2d_nchw", "other"]), "instruction 0, GetSBlock"),
    "block of any text": (changed((0, 0, 2), ["x\x1b[2J", "main"]), "instruction 0, GetSBlock"),
    "decision for what decides nothing": (changed((1, 0), [0, [4, 2]]), "GetSBlock"),
    "decision of another instruction": (changed((1, 0), [99, [4, 2]]), "decision"),
    "decision that is negative": (changed((1, 0), [2, [-4, 2]]), "SamplePerfectTile"),
    "decision beyond all": (changed((1, 0), [2, [1 << 70, 2]]), "SamplePerfectTile"),
    "too many": ([[["EnterPostproc", [], [], []]] * 5000, []], "5,000 instructions"),
    "instruction that is none": ([[["EnterPostproc"]], []], "instruction 0"),
    "number": (3, "is 3"),
    "nothing": (None, "is None"),
    "name": ("os.system", "os.system"),
    "own of another kind": ({"kind": "exec"}, "'exec'"),
    "own of a list": ({"kind": ["product"]}, "product"),
    "own without sizes": ({"kind": "product"}, "product"),
    "own with more": ({"kind": "product", "rows": 2, "vectors": 1, "lanes": 4}, "lanes"),
    "own tile of a billion": ({"kind": "product", "rows": 10**9, "vectors": 1}, "rows is 1000000000"),
    "own tile that is true": ({"kind": "product", "rows": True, "vectors": 1}, "rows is True"),
    "own tile that is a fraction": ({"kind": "window", "rows": 1, "vectors": 1.5, "together": 1}, "vectors is 1.5"),
}


def test_the_trace_that_is_changed_is_fine_itself():
    check_schedule(TRACE)
    check_schedule({"kind": "window", "rows": 2, "vectors": 4, "together": 1})
    assert not any("import" in key or "tensor" in key for key in ANNOTATIONS)


@pytest.mark.parametrize("name", REFUSED)
def test_schedules_that_no_search_writes_are_refused_at_import(name, tmp_path):
    schedule, said = REFUSED[name]
    row = OperatorRow("conv", "cpu", "t", 1e-3, "seconds", extra={"trials": 1, "trace": schedule})
    export_rows([row], tmp_path / "rows.jsonl")
    with pytest.raises(FormatError, match=r"rows\.jsonl:2: ") as caught:
        list(read_rows(tmp_path / "rows.jsonl"))
    assert said in str(caught.value)


@needs_tvm
@pytest.mark.parametrize(
    "schedule",
    [
        {"kind": "product", "rows": 2, "vectors": 1},
        {"kind": "window", "rows": 64, "vectors": 64, "together": 65536},
        [[["GetSBlock", [], ["no_such_block", "main"], ["b0"]]], []],
        [[["GetLoops", ["b7"], [], ["l1"]]], []],
        [[["GetSBlock", [], ["conv2d_nchw", "main"], ["b0"]], ["GetLoops", ["b0"], [], ["l1"]]], []],
        [[["EnterPostproc", [], [], ["l1", "l2"]]], [[0, 1]]],
    ],
)
def test_schedules_that_do_not_fit_the_operator_are_found_anew(honest, tmp_path, schedule):
    database = tmp_path / "costs.sqlite"
    with CostDatabase(database) as costs:
        costs.put(replace(honest[0], extra={"trials": 9, "trace": schedule}))
    with pytest.warns(UserWarning, match="as if it had never been tuned"):
        cost = run(database, 1)
    assert cost.latency is not None
    assert rows_of(database)[0].extra["trials"] == 1


@needs_tvm
def test_programs_out_of_proportion_are_refused():
    from tvm.script import tirx as T

    from neaptide.targets.tvm.proportion import check_proportion

    @T.prim_func(s_tir=True)
    def plain(a: T.Buffer((4096,), "float32"), b: T.Buffer((4096,), "float32")):  # pyright: ignore[reportInvalidTypeForm]
        for i in T.serial(4096):
            with T.sblock("add"):
                v = T.axis.spatial(4096, i)
                b[v] = a[v] + T.float32(1)

    def scheduled(change: Callable[[Any, Any], object]) -> Any:
        from tvm import s_tir

        schedule = s_tir.Schedule(plain)
        change(schedule, schedule.get_loops(schedule.get_sblock("add"))[0])
        return schedule.mod["main"]

    check_proportion(plain, scheduled(lambda s, loop: s.vectorize(s.split(loop, [None, 16])[1])))
    with pytest.raises(ValueError, match="vectors of 4,096 lanes"):
        check_proportion(plain, scheduled(lambda s, loop: s.vectorize(loop)))
    with pytest.raises(ValueError, match="steps"):
        check_proportion(plain, scheduled(lambda s, loop: s.split(loop, [1 << 15, 64])))


NUMBERS = {
    "value that is text": {"value": "x"},
    "value that is negative": {"value": -1.0},
    "value that is no number": {"value": float("nan")},
    "value that is infinite": {"value": float("inf")},
    "value that is true": {"value": True},
    "spread that is text": {"spread": "x"},
    "spread that is negative": {"spread": -0.5},
    "bytes that are negative": {"bytes": -1},
    "bytes that are a fraction": {"bytes": 1.5},
    "bytes beyond all": {"bytes": 1 << 80},
    "unit of another kind": {"unit": "parsecs"},
    "created beyond the calendar": {"created": 1e15},
    "created that is text": {"created": "yesterday"},
    "features that are a list": {"features": [1]},
    "features that are lists": {"features": {"macs": [1]}},
    "features beyond all": {"features": {"macs": 10**400}},
    "trials that are text": {"extra": {"trials": "x"}},
    "trials that are negative": {"extra": {"trials": -5}},
    "trials that are true": {"extra": {"trials": True}},
    "signature with half a character": {"signature": "conv \ud800"},
    "signature without end": {"signature": "x" * 70_000},
    "toolchain that is a number": {"toolchain": 4},
}


@pytest.mark.parametrize("name", NUMBERS)
def test_values_that_no_measurement_gives_are_refused_at_import(name, tmp_path):
    document = {"table": "operators", "signature": "conv", "target": "cpu", "toolchain": "t", "value": 1.0, **NUMBERS[name]}
    path = tmp_path / "rows.jsonl"
    export_rows([], path)
    path.write_text(path.read_text() + json.dumps(document) + "\n")
    with CostDatabase(tmp_path / "costs.sqlite") as costs:
        with pytest.raises(FormatError, match=r"rows\.jsonl:2: "):
            import_rows(path, costs)
        assert not costs.counts()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("value", "x"), ("value", -1.0), ("value", 9e999), ("value", b"\x00"), ("spread", "x"), ("bytes", "x"), ("bytes", 1.5),
        ("unit", "x"), ("created", "x"), ("created", 1e15), ("features", "["), ("features", "[" * 100_000), ("features", b"{}"),
        ("extra", '{"trials": "x"}'), ("extra", "3"), ("signature", b"conv"), ("target", b"cpu"), ("toolchain", b"t"),
    ],
)  # fmt: skip
def test_values_that_no_measurement_gives_are_not_read_from_a_database(column, value, tmp_path, capsys):
    database = tmp_path / "costs.sqlite"
    with CostDatabase(database) as costs:
        costs.put(OperatorRow("conv", "cpu", "t", 1.0))
    write_row(database, column, value)
    with CostDatabase(database) as costs:
        with pytest.warns(UserWarning, match="is not used"):
            assert list(costs.rows()) == []
        if column not in ("signature", "target", "toolchain"):
            with pytest.warns(UserWarning, match="is not used"):
                assert costs.get("conv", "cpu", "t") is None
            costs.put(OperatorRow("conv", "cpu", "t", 2.0))  # measured anew
            found = costs.get("conv", "cpu", "t")
            assert found is not None and found.value == 2.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["cost", "show", "--database", str(database)]) == 0
        assert main(["cost", "show", "--target", "cpu", "--database", str(database)]) == 0
    assert "bug" not in capsys.readouterr().err


def test_a_row_from_the_future_does_not_stay_for_ever(tmp_path):
    with CostDatabase(tmp_path / "costs.sqlite") as costs:
        costs.put(OperatorRow("conv", "cpu", "t", 1.0, created=4e9 * 10))
        costs.put(OperatorRow("conv", "cpu", "t", 2.0))
        found = costs.get("conv", "cpu", "t")
        assert found is not None and found.value == 2.0


TAMPERED = {
    "trigger": "CREATE TRIGGER t AFTER INSERT ON operators BEGIN DELETE FROM networks; END",
    "view": "CREATE VIEW v AS SELECT * FROM operators",
    "index": "CREATE INDEX i ON operators (value)",
    "table": "CREATE TABLE more (x)",
    "view in place of a table": "DROP TABLE operators; CREATE VIEW operators AS SELECT 1 AS signature",
    "generated column": "ALTER TABLE operators ADD COLUMN g GENERATED ALWAYS AS (abs(value)) VIRTUAL",
    "virtual table": "CREATE VIRTUAL TABLE f USING fts5(x)",
}


@pytest.mark.parametrize("name", TAMPERED)
def test_databases_whose_schema_is_another_are_refused_and_left_alone(name, tmp_path, capsys):
    database = tmp_path / "costs.sqlite"
    db = sqlite3.connect(database)
    for step in (*MIGRATIONS, "PRAGMA user_version = 2", TAMPERED[name]):
        db.executescript(step)
    db.close()
    before = database.read_bytes()
    with pytest.raises(FormatError, match="tampered with"):
        CostDatabase(database)
    assert main(["cost", "show", "--database", str(database)]) == 2
    assert "bug" not in capsys.readouterr().err
    assert database.read_bytes() == before


@pytest.mark.parametrize(
    "change", ["CREATE TRIGGER t AFTER INSERT ON {0} BEGIN DELETE FROM {0}; END", "CREATE VIEW v AS SELECT * FROM {0}"]
)
def test_caches_whose_schema_is_another_are_not_used(change, tmp_path):
    from neaptide.compiler import oracle_cache
    from neaptide.search import segment_memory
    from neaptide.search.spaces import load_space

    def tamper(file: Path, table: str) -> None:
        db = sqlite3.connect(file)
        db.executescript(change.format(table))
        db.close()

    oracle_cache.KernelCache(tmp_path).close()
    tamper(tmp_path / oracle_cache.FILE, "kernels")
    with pytest.warns(UserWarning, match="begun anew"):
        oracle_cache.KernelCache(tmp_path).close()
    oracle_cache.KernelCache(tmp_path).close()
    space = load_space("nasbench201")
    memory = segment_memory.SegmentMemory.of(space, [], tmp_path)
    assert memory is not None and memory.arenas() == {}
    tamper(tmp_path / segment_memory.FILE, "segments")
    with pytest.warns(UserWarning, match="begun anew"):
        again = segment_memory.SegmentMemory.of(space, [], tmp_path)
    assert again is not None and again.arenas() == {}


def test_files_and_traces_have_one_door_each():
    doors = {"sqlite3.connect(": "compiler/sqlite_files.py", "apply_json_to_schedule(": "targets/tvm/search_space.py"}
    root = Path(__file__).resolve().parent.parent
    rooms = ("compiler", "passes", "targets", "search", "report", "testing")
    files = [*root.glob("*.py"), *(file for room in rooms for file in (root / room).rglob("*.py"))]
    for call, door in doors.items():
        found = [file.relative_to(root).as_posix() for file in files if call in file.read_text(encoding="utf-8").replace("`", " ")]
        assert found == [door]
