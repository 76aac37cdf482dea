"""What is written for other programs and for people: units, traces, snapshots, DOT, notebook, HTML text."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import re
import sys
import xml.dom.minidom
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

import neaptide
from neaptide.compiler.errors import SourceError, WriteError
from neaptide.compiler.foreign_text import shown
from neaptide.compiler.graph import Graph, GraphBuilder
from neaptide.passes.liveness import liveness
from neaptide.report.budget import explain
from neaptide.report.chrome_trace import chrome_trace
from neaptide.report.dot import quoted, to_dot
from neaptide.report.html import render_html
from neaptide.report.memory_snapshot import ARENA_ADDRESS, memory_snapshot, snapshot_bytes
from neaptide.report.notebook import live_svg
from neaptide.report.units import bar_chart, format_bytes, format_count, format_share, parse_bytes, resample, sparkline

EVIL = 'a</script><b onload="x">\'&\u2028\\'
SAVERS = ("save_json", "save_html", "save_chrome_trace", "save_memory_snapshot", "save_dot")


def tree(name: str = "tree") -> Graph:
    """Six branches under three modules, some with workspace, one weight, all joined at the end."""
    build = GraphBuilder(name)
    x = build.tensor((32,), "float32", role="input", name="x")
    weight = build.tensor((8, 8), "float32", role="parameter", name="body.0.weight")
    build.inputs.append(x)
    made = []
    for i in range(6):
        out = build.tensor((100 + 10 * i,), "float32")
        build.node(f"aten.op{i}.default", (x, weight), (out,), scope=f"body.{i % 3}", source=f"/src/net.py:{10 + i}", workspace=64 * i)
        made.append(out)
    joined = build.tensor((4,), "float32")
    build.node("aten.cat.default", made, (joined,), scope="head", source="/src/net.py:30")
    build.outputs.append(joined)
    return build.build()


@pytest.fixture(scope="module")
def analysis():
    return neaptide.analyze(tree())


# ---- units -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n, text",
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (10_039_296, "9.57 MiB"), (1023.9 * 1024, "1.00 MiB"), (5 << 40, "5.00 TiB")],
)
def test_bytes_are_read_in_powers_of_1024(n, text):
    assert format_bytes(n) == text


@pytest.mark.parametrize(
    "n, text", [(0, "0"), (999, "999"), (1000, "1.00 k"), (25_557_032, "25.6 M"), (4_089_184_256, "4.09 G"), (999_999, "1.00 M")]
)
def test_counts_are_read_in_powers_of_1000(n, text):
    assert format_count(n) == text


AMOUNTS = {
    "320KB": 320_000, "320KiB": 327_680, "8 GB": 8 * 10**9, "2.5MiB": 2_621_440, "4096": 4096, "64k": 64_000, "1,024 B": 1024,
    "1_000": 1000,
}  # fmt: skip


@pytest.mark.parametrize("text, n", AMOUNTS.items())
def test_budgets_as_people_write_them(text, n):
    assert parse_bytes(text) == n


@pytest.mark.parametrize("text", ["", "lots", "12XB", "-5KB", "1.2.3MB", "KB", "1e9"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(SourceError, match="320KiB"):
        parse_bytes(text)


@given(st.integers(0, 1 << 50))
def test_a_printed_size_reads_back_within_half_a_per_cent(n):
    assert abs(parse_bytes(format_bytes(n)) - n) <= 0.0051 * n


@given(st.lists(st.integers(0, 10**12), max_size=500), st.integers(1, 80))
def test_no_peak_is_lost_in_a_sparkline(values, width):
    columns = resample(values, width)
    assert len(columns) == min(width, len(values))
    assert max(columns, default=0) == max(values, default=0)
    line = sparkline(columns)
    assert len(line) == len(columns)
    if max(values, default=0):
        assert "█" in line


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60), st.integers(1, 6))
def test_a_taller_chart_says_the_same(values, height):
    lines = bar_chart(values, height)
    assert len(lines) == height and {len(line) for line in lines} == {len(values)}
    for column, value in enumerate(values):
        assert (value == 0) == all(line[column] == " " for line in lines)
    assert (lines[0].find("█") >= 0) == (max(values) > 0)


def test_shares():
    assert [format_share(0, 10), format_share(1, 1000), format_share(1, 2), format_share(1, 0)] == ["0 %", "<1 %", "50 %", "-"]


# ---- files for other programs --------------------------------------------------------------------------------------------------


def test_chrome_trace_counts_the_live_bytes_and_nests_its_slices(analysis):
    trace = json.loads(json.dumps(chrome_trace(analysis)))
    events = trace["traceEvents"]
    assert all({"ph", "pid", "tid", "name"} <= set(e) and (e["ph"] == "M" or e["ts"] >= 0) for e in events)
    counters = [e for e in events if e["ph"] == "C" and e["pid"] == 1]
    live = {}
    for e in counters:
        live[e["ts"]] = sum(e["args"].values())
    filled, now = [], 0
    for step in range(len(analysis.graph.nodes)):
        now = live.get(step, now)
        filled.append(now)
    assert filled == analysis.planned.live.tolist()
    assert live[len(analysis.graph.nodes)] == 0
    for pid in {e["pid"] for e in events}:
        slices = [e for e in events if e["ph"] == "X" and e["pid"] == pid]
        ops = [e for e in slices if e["cat"] == "op"]
        assert [e["ts"] for e in ops] == list(range(len(analysis.graph.nodes)))
        spans = [(e["ts"], e["ts"] + e["dur"]) for e in slices]
        assert all(b <= c or d <= a or (a <= c and d <= b) or (c <= a and b <= d) for a, b in spans for c, d in spans)


def test_module_slices_cover_their_ops(analysis):
    slices = [e for e in chrome_trace(analysis)["traceEvents"] if e["ph"] == "X" and e["pid"] == 1]
    for e in slices:
        if e["cat"] == "module":
            inside = analysis.schedule.order[e["ts"] : e["ts"] + e["dur"]]
            scopes = [analysis.graph.nodes[v].scope for v in inside]
            assert all(scope == e["args"]["module"] or scope.startswith(e["args"]["module"] + ".") for scope in scopes)


def test_memory_snapshot_replays_to_the_planned_profile(analysis):
    snapshot = memory_snapshot(analysis)
    live: dict[int, int] = {}
    highest = 0
    for e in snapshot["device_traces"][0]:
        if e["action"] == "alloc":
            assert e["addr"] not in live
            assert all(e["addr"] + e["size"] <= a or a + n <= e["addr"] for a, n in live.items())
            live[e["addr"]] = e["size"]
            highest = max(highest, sum(live.values()))
        elif e["action"] == "free_completed":
            assert live.pop(e["addr"]) == e["size"]
    assert highest == analysis.planned_peak
    active = {b["address"]: b["size"] for b in snapshot["segments"][0]["blocks"] if b["state"] == "active_allocated"}
    assert active == live
    for segment in snapshot["segments"]:
        assert sum(b["size"] for b in segment["blocks"]) == segment["total_size"]
    assert [s["total_size"] for s in snapshot["segments"]] == [analysis.arena, 256, 128]
    assert snapshot["segments"][0]["address"] == ARENA_ADDRESS


def test_memory_snapshot_opens_in_memory_viz(analysis, tmp_path):
    path = tmp_path / "snapshot.pickle"
    analysis.save_memory_snapshot(path)
    snapshot = pickle.loads(path.read_bytes())
    from torch.cuda import _memory_viz

    assert "segments: 3" in _memory_viz.segsum(snapshot)
    said = _memory_viz.trace(snapshot)
    assert "cudaMalloc" in said and said.count("free completed") == 6 + 5
    flame = _memory_viz.memory(snapshot, format_flamegraph=lambda lines: lines)
    assert "parameter body.0.weight" in flame
    assert "snapshot.pickle" in _memory_viz.trace_plot(snapshot)
    assert "Allocator State History" in _memory_viz.segment_plot(snapshot)
    assert any(f["line"] == 12 and f["filename"] == "/src/net.py" for e in snapshot["device_traces"][0] for f in e["frames"])


def test_a_snapshot_holds_plain_values_only(analysis, tmp_path):
    class Plain(pickle.Unpickler):
        def find_class(self, module_name, global_name):
            raise AssertionError(f"{module_name}.{global_name}")

    path = tmp_path / "snapshot.pickle"
    analysis.save_memory_snapshot(path)
    assert Plain(io.BytesIO(path.read_bytes())).load()["device_traces"]


def test_a_snapshot_uses_only_what_memory_viz_unpickles(analysis):
    known = {
        "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINGET", "LONG_BINGET", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE1", "TUPLE2",
        "TUPLE3", "TUPLE", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINUNICODE",
        "BINUNICODE", "NEWFALSE", "NEWTRUE", "NONE", "BINFLOAT",
    }  # fmt: skip
    assert {op.name for op, _, _ in pickletools.genops(snapshot_bytes(analysis))} <= known


def test_dot_has_every_op_and_edge(analysis):
    text = to_dot(analysis)
    assert len(re.findall(r"^ *n\d+ \[", text, re.MULTILINE)) == len(analysis.graph.nodes)
    assert len(re.findall(r"n\d+ -> n\d+", text)) == 6
    assert text.count("subgraph cluster_") == 4
    assert text.count("{") == text.count("}") and text.count("penwidth=3") == 1


def test_dot_strings_are_escaped():
    assert quoted('a"b\\c\nd') == '"a\\"b\\\\c\\nd"'
    text = to_dot(neaptide.analyze(tree(EVIL)))
    assert len(re.findall(r'(?<!\\)"', text)) % 2 == 0


# ---- pages -------------------------------------------------------------------------------------------------------------------


def test_a_notebook_gets_well_formed_escaped_html():
    a = neaptide.analyze(tree(EVIL))
    page = xml.dom.minidom.parseString(a._repr_html_().replace("\u2028", ""))
    assert not page.getElementsByTagName("b")[0].hasAttribute("onload") and not page.getElementsByTagName("script")
    assert len(page.getElementsByTagName("path")) == 3
    assert f"{a.planned_peak:,} B" in a._repr_html_()


def test_live_svg_of_nothing_is_nothing():
    assert live_svg(liveness(GraphBuilder("empty").build())) == ""


def test_the_page_is_one_offline_file_whose_data_reads_back():
    a = neaptide.analyze(tree(EVIL))
    page = render_html(a)
    scripts: list[str] = []
    tags: list[str] = []

    class Scripts(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append(tag)
            assert not any(k in ("src", "srcset") or k.startswith("on") for k, _ in attrs)
            assert all(v is None or not v.startswith(("http:", "https:", "//")) for k, v in attrs if k == "href")

        def handle_data(self, data):
            if tags and tags[-1] == "script":
                scripts.append(data)

    Scripts().feed(page)
    assert tags.count("script") == 2 and "http" not in "".join(scripts[1:])
    data = json.loads(scripts[0])
    assert data["name"] == shown(EVIL)
    best = next(v for v in data["views"] if v["key"] == "best")
    assert best["peak"] == a.planned_peak and best["order"] == list(a.schedule.order)
    assert data["storages"]["offset"] == [a.plan.offsets[s] for s in data["storages"]["id"]]


# ---- budgets and files -------------------------------------------------------------------------------------------------------


def test_over_budget_names_the_offenders_and_a_way_out(analysis):
    text = explain(analysis, "peak", 100)
    assert f"peak {analysis.planned_peak:,} B, budget 100 B" in text
    assert "peak at aten." in text and "net.py:" in text and "no order of these ops fits" in text
    assert "weights 256 B" in explain(analysis, "total", 1000)
    traced = neaptide.analyze(tree(), order="traced")
    if traced.lower_bound < traced.planned_peak:
        assert "--order best" in explain(traced, "peak", traced.lower_bound)
    assert "beside the peak" in explain(analysis, "total", 300)


@pytest.mark.parametrize("method", SAVERS)
def test_files_are_whole_or_not_there(analysis, tmp_path, monkeypatch, method):
    target = tmp_path / "out"
    getattr(analysis, method)(target)
    before = target.read_bytes()
    assert before
    with pytest.raises(WriteError, match="nowhere"):
        getattr(analysis, method)(tmp_path / "nowhere" / "out")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="No space left"):
        getattr(analysis, method)(target)
    assert target.read_bytes() == before
    assert os.listdir(tmp_path) == ["out"]


def test_reports_need_no_torch():
    code = (
        "import sys, neaptide; from neaptide.compiler.graph import Graph\n"
        "a = neaptide.analyze(Graph.from_json({'nodes': [{'op': 'input', 'ins': [], 'outs': [0]}, {'op': 'f', 'ins': [0], 'outs': [1]}],"
        " 'bufs': [8, 4], 'out': [1]}))\n"
        "a.table(); a.to_json(); a._repr_html_()\n"
        "print('torch' in sys.modules)"
    )
    import subprocess

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"
