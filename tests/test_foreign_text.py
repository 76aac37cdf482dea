"""Names of strangers: whatever is in them, no command and no file lets a terminal obey it, a page turn it round or a spreadsheet run it."""

from __future__ import annotations

import ast
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Group
from rich.table import Table
from rich.text import Text

import neaptide
from neaptide.cli import main
from neaptide.compiler.foreign_text import cell_text, csv_cell, shown, shown_in
from neaptide.compiler.graph import Graph, GraphBuilder
from neaptide.report.console import SafeConsole
from neaptide.targets.database import CostDatabase, NetworkRow, OperatorRow

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = (
    "\x1b[2J\x1b]0;title\x07", "\x9b31m", "a\x00b", "\x7f\x08\r", "\u202egnp.exe", "\u2066x\u2069", "a\u200bb", "x\u2028y\u2029z", "\x85",
    "[/red]", "[bold]x[/bold]", "[link=file:///etc/passwd]x[/link]", ":smile:", "=1+2", "@x", "\u061c", "\ufeff",
)  # fmt: skip
ALL = " ".join(HOSTILE)


def raw(text: str) -> list[str]:
    """The characters of `text` that should not stand in it as they are."""
    return [c for c in text if shown(c) != c]


def test_shown_texts():
    assert shown("plain ünï 漢字 [x] \\x1b") == "plain ünï 漢字 [x] \\x1b"
    assert shown("\x1b[2J\x9b\x00\x7f") == "\\x1b[2J\\x9b\\x00\\x7f"
    assert shown("\u202ea\u2066\u200e\u061c\u2028") == "\\u202ea\\u2066\\u200e\\u061c\\u2028"
    assert shown("\ud800") == "\\ud800" and shown("\U000e0041") == "\\U000e0041"
    assert shown("a\n\tb\r") == "a\n\tb\\x0d" and shown("a\nb", keep="") == "a\\x0ab"
    assert shown_in({"\x1b": ["\x00", 1, None, ("\x9b",)]}) == {"\\x1b": ["\\x00", 1, None, ["\\x9b"]]}


@given(st.text(st.characters()))
def test_what_is_shown_is_drawn_and_stays_as_it_is(text):
    once = shown(text)
    assert shown(once) == once
    assert all(c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f" and not "\ud800" <= c <= "\udfff") for c in once)
    once.encode("utf-8")


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+2", "'=1+2"), ("+x", "'+x"), ("-x", "'-x"), ("@x", "'@x"), ("\t=1", "\\x09=1"), ("\r=1", "\\x0d=1"), ("\uff1d1", "'\uff1d1"),
        ("-5", "-5"), ("+1.5e-3", "+1.5e-3"), ("-1-2", "'-1-2"), ("-\u0663", "'-\u0663"), ("conv", "conv"), ("", ""), (-5, -5),
        (None, None),
        ("\x1b[2J", "\\x1b[2J"), ("a\nb", "a\\x0ab"),
    ],
)  # fmt: skip
def test_cells(value, cell):
    assert csv_cell(value) == cell


@given(st.text("'=+-@1.x"))
def test_cells_are_read_back(text):
    assert cell_text(csv_cell(text)) == text


@given(st.text(st.characters()), st.booleans(), st.integers(20, 120))
def test_no_console_lets_a_text_through(text, terminal, width):
    """As a string, a cell, a styled text and in a group: only what rich itself writes is not drawn."""
    out = io.StringIO()
    console = SafeConsole(file=out, width=width, force_terminal=terminal, color_system=None, legacy_windows=False)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    table.add_row(Text(text, style="bold"))
    console.print(text, Group(Text(text), text), table)
    console.rule(text)
    written = out.getvalue()
    assert not raw(written.replace("\x1b[1m", "").replace("\x1b[0m", "").replace("\x1b[3m", "")), written


def test_markup_is_text():
    out = io.StringIO()
    SafeConsole(file=out, width=80).print("[/red] [bold]x[/bold] :smile:", Text("[/red]"))
    assert out.getvalue() == "[/red] [bold]x[/bold] :smile: [/red]\n"


def graph(name: str) -> Graph:
    """A small graph in which everything that has a name is called `name`."""
    b = GraphBuilder(name)
    x = b.tensor((4, 8), "float32", role="input", name=name)
    b.inputs.append(x)
    for i in range(3):
        y = b.tensor((4, 8), "float32", name=f"{name}{i}")
        b.node(f"custom.{name}", (x,), (y,), scope=f"{name}.{name}", source=f"{name}.py:{i}")
        x = y
    b.outputs.append(x)
    return b.build()


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEAPTIDE_COSTS", str(tmp_path / "costs.sqlite"))
    monkeypatch.setenv("NEAPTIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    graph(ALL).save_json(str(tmp_path / "graph.json"))
    return tmp_path


def clean(capsys: pytest.CaptureFixture[str], *files: Path) -> str:
    """What was printed; neither it nor a file holds a character that is not drawn."""
    said = capsys.readouterr()
    for text in (said.out, said.err, *(f.read_bytes().decode("utf-8") for f in files)):
        assert not raw(text.replace("\r\n", "\n")), text
    assert "bug in Neaptide" not in said.err
    return said.out + said.err


@pytest.mark.parametrize("command", [["analyze"], ["analyze", "--json"], ["analyze", "--depth", "9"], ["schedule"], ["schedule", "--json"]])
def test_graphs_on_a_terminal(command, hostile, capsys):
    assert main([*command, "graph.json"]) == 0
    assert ("title" in clean(capsys)) == (command[0] == "analyze")


def test_graphs_over_budget_and_within(hostile, capsys):
    assert main(["analyze", "graph.json", "--budget", "1B"]) == 3
    assert "title" in clean(capsys)
    assert main(["analyze", "graph.json", "--budget", "1GB"]) == 0
    assert "✓ fits" in clean(capsys)


def test_files_of_graphs(hostile, capsys):
    names = {"--html": "a.html", "--dot": "a.dot", "--trace": "a.json"}
    assert main(["analyze", "graph.json", *(word for pair in names.items() for word in pair)]) == 0
    clean(capsys, *(hostile / name for name in names.values()))
    page = (hostile / "a.html").read_text()
    data = page.partition('type="application/json"')[2].partition(">")[2].partition("</script>")[0]
    strings = json.loads(data)["strings"]
    assert strings and not any(map(raw, strings)), "a script would write them into the page"
    assert main(["schedule", "graph.json", "--graph", "order.json"]) == 0
    clean(capsys, hostile / "order.json")


def test_analyses_in_python(hostile, capsys):
    from rich.console import Console

    from neaptide.report.notebook import notebook_html

    a = neaptide.analyze(graph(ALL), kernels=False)
    for text in (str(a), a.graph.to_text(), notebook_html(a), a.to_json()):
        assert not raw(text)
    out = io.StringIO()
    Console(file=out, width=100, legacy_windows=False).print(a)
    assert not raw(out.getvalue())


def test_models_with_hostile_onnx_names(hostile, capsys):
    onnx = pytest.importorskip("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("Relu", ["x" + ALL], ["y" + ALL], name=ALL)
    ends = [helper.make_tensor_value_info(letter + ALL, floats, [4, 4]) for letter in "xy"]
    onnx.save(helper.make_model(helper.make_graph([node], ALL, ends[:1], ends[1:])), "model.onnx")
    assert main(["analyze", "model.onnx", "--no-kernels", "--dot", "a.dot", "--html", "a.html"]) == 0
    clean(capsys, hostile / "a.dot", hostile / "a.html")
    node.op_type = "Strange" + ALL
    onnx.save(helper.make_model(helper.make_graph([node], ALL, ends[:1], ends[1:])), "other.onnx")
    assert main(["analyze", "other.onnx", "--no-kernels"]) in (0, 1)
    clean(capsys)


@pytest.mark.parametrize("name", [*HOSTILE, ALL])
def test_names_of_files_and_things_in_errors(name, hostile, capsys):
    name = name.replace("\x00", "").replace("/", "_")
    for words in (
        ["analyze", name], ["analyze", f"{name}.onnx"], ["analyze", f"{name}.py:f"], ["analyze", "graph.json", "--budget", name],
        ["measure", "tiny", "--target", name], ["cost", "import", name], ["cost", "show", "--database", "costs.sqlite", "--target", name],
        ["allocate", name], ["search", "--space", name, "--engine", "random"], ["search", "--space", "nasbench201", "--engine", name],
        ["search", "--resume", "--out", "x", "--option", name], [name],
    ):  # fmt: skip
        if main(words) == 0:
            assert words[:2] == ["cost", "show"]
        clean(capsys)


def test_rows(hostile, capsys):
    with CostDatabase() as costs:
        for i, name in enumerate([*HOSTILE, ALL]):
            costs.put(OperatorRow(name, f"{name} cpu", f"{name} tools", 1.0 + i, "seconds", features={"op": name, name: 1}))
            costs.put(NetworkRow(name, f"{name} cpu", f"{name} tools", 1.0 + i, {name: 1}, "seconds"))
    for words in (["show"], ["show", "--json"], ["show", "--like", "red"], ["show", "--like", "x", "--json"], ["export", "rows.jsonl"]):
        assert main(["cost", *words]) == 0
        clean(capsys)
    clean(capsys, hostile / "rows.jsonl")
    assert main(["cost", "import", "rows.jsonl", "--database", "again.sqlite"]) == 0
    clean(capsys)
    assert main(["cost", "show", "--like", "", "--target", f"{ALL} cpu", "--database", "again.sqlite"]) == 0
    assert "title" in clean(capsys)
    assert main(["cost", "fit", "--target", f"{ALL} cpu", "-o", "p.npz", "--additive"]) in (0, 1)
    clean(capsys)
    assert main(["cost", "fit", "--target", ALL]) == 1
    clean(capsys)


def test_warnings_of_rows_that_are_not_used(hostile):
    import sqlite3
    import subprocess
    import sys

    with CostDatabase() as costs:
        costs.put(OperatorRow(ALL, "cpu", "t", 1.0))
    db = sqlite3.connect(hostile / "costs.sqlite")
    db.execute("UPDATE operators SET value = 'x'")
    db.commit()
    db.close()
    (hostile / "\x1b[2J").mkdir()
    (hostile / "costs.sqlite").rename(hostile / "\x1b[2J" / "costs.sqlite")
    code = (
        "from neaptide.cli import main; raise SystemExit(main(['cost', 'show', '--target', 'cpu', '--database', '\\x1b[2J/costs.sqlite']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stderr.startswith("neaptide: \\x1b[2J/costs.sqlite: the row ") and done.stderr.count("\n") == 1
    assert not raw(done.stderr + done.stdout)


def test_lifetimes(hostile, capsys):
    rows = [("id", "lower", "upper", "size"), *((name.replace("\x00", ""), 0, 2, 4) for name in HOSTILE if name.strip())]
    with open("blocks.csv", "w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows(rows)
    assert main(["allocate", "blocks.csv", "-o", "plan.csv"]) == 0
    clean(capsys, hostile / "plan.csv")
    with open("plan.csv", newline="", encoding="utf-8") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
    assert main(["allocate", "blocks.csv", "-o", "-"]) == 0
    clean(capsys)
    Path("blocks.csv").write_text(f"id,lower,upper,size\n{ALL.replace(chr(0), '')},0,x,4\n", encoding="utf-8")
    assert main(["allocate", "blocks.csv"]) == 2
    clean(capsys)


def test_targets(hostile, capsys):
    text = json.dumps(ALL).replace("\\u0000", "")
    Path("part.toml").write_text(f'extends = "stm32f746"\nname = {text}\ntitle = {text}\nsource = {text}\n', encoding="utf-8")
    assert main(["measure", "ds_cnn", "--target", "part.toml", "--predict"]) == 1
    clean(capsys)
    Path("part.toml").write_text(f"extends = {text}\n", encoding="utf-8")
    assert main(["measure", "ds_cnn", "--target", "part.toml", "--predict"]) == 2
    clean(capsys)


def test_a_front_in_a_spreadsheet(tmp_path):
    """What a study calls a proposal's origin stands in the CSV."""
    from types import SimpleNamespace

    from neaptide.search.outputs import write_front

    def candidate(name: str) -> Any:
        return SimpleNamespace(index=0, values={"peak": -1.5}, measured=None, origin=name, text=name)

    result: Any = SimpleNamespace(front=[candidate(name) for name in HOSTILE])
    write_front(result, tmp_path / "front.csv")
    text = (tmp_path / "front.csv").read_bytes().decode()
    assert not raw(text.replace("\r\n", "\n"))
    rows = list(csv.reader(io.StringIO(text)))[1:]
    assert {row[1] for row in rows} == {"-1.5"}
    assert not [cell for row in rows for cell in row[2:] if cell[:1] in "=+-@"]


def test_commands_print_through_the_console():
    """A bare `print` in a command writes JSON, or a text that is made safe; everything else goes through `report.console`."""
    safe = {"codec.dumps", "models_json", "format_plan", "result.to_json", "a.to_json"}
    for file in sorted(ROOT.glob("cli*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "print":
                (what,) = call.args
                version = ast.unparse(what) == "f'neaptide {__version__}'"
                assert version or (isinstance(what, ast.Call) and ast.unparse(what.func) in safe), f"{file.name}:{call.lineno}"
    for file in sorted((ROOT / "report").glob("*.py")):
        made = [
            c for c in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(c, ast.Call) and ast.unparse(c.func) == "Console"
        ]
        assert not made or all(ast.unparse(c) == "Console()" for c in made), f"{file.name} makes a console that is not safe"
