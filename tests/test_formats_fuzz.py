"""Readers of JSON and CSV: whatever they are given, they return something well formed or name the place in one paragraph."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neaptide.compiler.errors import FormatError, GraphError
from neaptide.compiler.foreign_text import shown
from neaptide.compiler.graph import Graph
from neaptide.passes.allocate import allocate_lifetimes
from neaptide.passes.lifetimes_csv import format_plan, parse_lifetimes, read_lifetimes, write_plan
from neaptide.testing import generate, graphs, lifetimes

HEADER = "id,lower,upper,size\n"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def one_paragraph(error: Exception) -> bool:
    text = str(error)
    return bool(text.strip()) and "\n" not in text and "Traceback" not in text


# ---- JSON -----------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(graphs())
def test_graphs_survive_json(graph):
    assert Graph.from_json(graph.to_json()) == graph
    assert Graph.from_json(graph.to_json(indent=1).encode()) == graph


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_damaged_json_is_refused_or_well_formed(data):
    """One value anywhere in a graph's JSON is replaced, removed, or repeated."""
    graph = generate.random_graph(random.Random(data.draw(st.integers(0, 200))).randrange, max_nodes=5)
    parsed = json.loads(graph.to_json())
    holder, key = data.draw(st.sampled_from(list(_places(parsed))))
    if data.draw(st.booleans()):
        holder[key] = data.draw(json_values)
    elif isinstance(holder, list) and data.draw(st.booleans()):
        holder.insert(key, holder[key])
    else:
        del holder[key]
    _accepts_or_explains(parsed)
    _accepts_or_explains(json.dumps(parsed))


@settings(max_examples=300, deadline=None)
@given(json_values | st.fixed_dictionaries({"nodes": json_values, "bufs": json_values}, optional={"out": json_values, "name": json_values}))
@example({"nodes": [], "bufs": []})
@example({"nodes": [{"op": "a", "ins": [0], "outs": [0]}], "bufs": [4], "out": [0]})
@example({"nodes": [{"op": "a", "ins": [], "outs": [True]}], "bufs": [4, 4], "out": [0]})
def test_arbitrary_json_is_refused_or_well_formed(value):
    _accepts_or_explains(json.dumps(value))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.binary(max_size=60))
@example("")
@example("{")
@example("[" * 5000)
@example(b"\xff\xfe")
@example('{"nodes": [], "bufs": [1' + "0" * 5000 + "]}")
def test_arbitrary_text_is_no_graph(source):
    _accepts_or_explains(source)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_truncated_json_is_refused(data):
    text = generate.random_graph(random.Random(data.draw(st.integers(0, 50))).randrange, min_nodes=1).to_json()
    cut = data.draw(st.integers(0, len(text.rstrip()) - 1))
    with pytest.raises(FormatError) as caught:
        Graph.from_json(text[:cut])
    assert one_paragraph(caught.value)


def test_json_files_are_named(tmp_path):
    path = tmp_path / "broken.json"
    with pytest.raises(FormatError, match=r"absent\.json"):
        Graph.load_json(str(tmp_path / "absent.json"))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match=r"broken\.json"):
        Graph.load_json(str(path))
    path.write_text('{"nodes": [')
    with pytest.raises(FormatError, match=r"broken\.json"):
        Graph.load_json(str(path))


def _places(value):
    """Every (container, key) inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _accepts_or_explains(source) -> None:
    try:
        graph = Graph.from_json(source)
    except (FormatError, GraphError) as error:
        assert one_paragraph(error), str(error)
    else:
        graph.check()
        assert Graph.from_json(graph.to_json()) == graph


# ---- CSV ------------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(lifetimes(min_blocks=1), st.data())
def test_layouts_survive_csv(blocks, data):
    drawn = st.lists(_names(), min_size=len(blocks), max_size=len(blocks), unique_by=lambda name: shown(name, keep=""))
    ids = data.draw(drawn)
    layout = allocate_lifetimes(ids, *zip(*blocks, strict=True))
    table = parse_lifetimes(format_plan(layout))
    assert table.ids == tuple(shown(name, keep="") for name in ids)
    assert table.offset is not None
    found, expected = (
        [np.asarray(column).tolist() for column in columns]
        for columns in (
            (table.lower, table.upper, table.size, table.offset),
            (layout.lower, layout.upper, layout.size, layout.offsets),
        )
    )
    assert found == expected


def _names():
    """Ids without surrounding space, which the reader strips, and without what no text file holds."""
    return st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), min_size=1, max_size=6).map(str.strip).filter(bool)


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=80) | st.text(alphabet='id,lowerupsz\n\r"0123456789-. ', max_size=80).map(lambda rest: HEADER + rest))
@example(HEADER + '"a,0,1,2')
@example(HEADER + 'a,0,1,2"\n')
@example(HEADER + "a,0,1,٣\n")
@example(HEADER + "a,0,1," + "9" * 5000)
@example(HEADER + "a,-0,1,2")
@example("\x00")
def test_arbitrary_text_is_refused_or_well_formed(text):
    try:
        table = parse_lifetimes(text)
    except FormatError as error:
        assert one_paragraph(error), str(error)
        assert str(error).startswith("lifetimes")
    else:
        assert len(set(table.ids)) == len(table.ids) == len(table.lower)
        assert (table.lower < table.upper).all()
        assert (table.size >= 0).all()


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"", "t.csv: empty"),
        (b"\n\n", "t.csv: empty"),
        (b"id,lower,size\na,0,1\n", "t.csv:1: no column upper"),
        (b"id,lower,upper,size,color\na,0,1,2,red\n", "t.csv:1: unknown column 'color'"),
        (b"id,lower,upper,size,size\na,0,1,2,2\n", "t.csv:1: column 'size' stands twice"),
        (HEADER.encode() + b"a,0,1\n", "t.csv:2: 3 fields where the header has 4"),
        (HEADER.encode() + b"\na,0,1,-2\n", "t.csv:3: size of block 'a' is -2"),
        (HEADER.encode() + b"a,3,3,2\n", "t.csv:2: block 'a' lives from 3 to 3"),
        (HEADER.encode() + b"a,0,1.5,2\n", "t.csv:2: upper of block 'a' is '1.5', not an integer"),
        (HEADER.encode() + b"a,0,1,\n", "t.csv:2: size of block 'a' is ''"),
        (HEADER.encode() + b"a,0,1,2305843009213693953\n", "t.csv:2: size of block 'a' is 2305843009213693953; at most"),
        (HEADER.encode() + b"a,0,1,2\nb,0,1,2\na,2,3,1\n", "t.csv:4: block 'a' stands twice; it is on line 2"),
        (HEADER.encode() + b",0,1,2\n", "t.csv:2: the id is empty"),
        (b"\xff\xfei,d", "t.csv: byte 0 is not UTF-8"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path, content, place):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_lifetimes(path)
    assert place in str(caught.value)
    assert one_paragraph(caught.value)


def test_byte_order_marks_line_ends_and_column_order_do_not_matter(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfsize, id,upper,lower\r\n8,a,3,0\r\n\r\n16,b,5,3")
    table = read_lifetimes(path)
    assert table.ids == ("a", "b")
    assert (table.lower.tolist(), table.upper.tolist(), table.size.tolist(), table.offset) == ([0, 3], [3, 5], [8, 16], None)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    layout = allocate_lifetimes(["a"], [0], [1], [4])
    with pytest.raises(FormatError, match="nowhere"):
        write_plan(tmp_path / "nowhere" / "plan.csv", layout)
    path = tmp_path / "plan.csv"
    path.write_text("before")

    class Torn:
        ids, upper, size, offsets = ["a", "b"], [1], [4], [0]
        lower = property(lambda self: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        write_plan(path, Torn())  # pyright: ignore[reportArgumentType]
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.csv"]


@pytest.mark.parametrize(
    "meta",
    [
        {"versions": 3}, {"kernels": []}, {"kernels": {"unmeasured": {"op": 1}}}, {"opsets": {"": "17"}}, {"packed": 1}, {"packed": ["x"]},
        {"modules": ["a"]}, {"assumptions": [{}]}, {"assumptions": {"op": "x"}}, {"input_names": [1]}, {"output_names": 5},
        {"ir_version": "9"},
    ],
)  # fmt: skip
def test_what_is_read_of_meta_has_its_kind(meta):
    document = {**json.loads(generate.random_graph(random.Random(0).randrange, min_nodes=2).to_json()), "meta": meta}
    with pytest.raises(GraphError, match=f"meta.*{next(iter(meta))}"):
        Graph.from_json(document)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_numbers_that_json_lacks_are_refused(number):
    text = generate.random_graph(random.Random(0).randrange, min_nodes=2).to_json()
    with pytest.raises(FormatError, match=f"the number {number}, which is not finite"):
        Graph.from_json(text.replace('"meta": {', f'"meta": {{"x": {number}, ', 1).replace(", }", "}", 1))


@pytest.mark.parametrize(
    "attrs",
    [{"args": 3}, {"args": [], "kwargs": "x"}, {"$inputs": [1]}, {"$inputs": {}}, {"$captures": [2]}, {"$outputs": 1}, {"$name": 4}],
)
def test_what_is_read_of_attributes_has_its_kind(attrs):
    document = json.loads(generate.random_graph(random.Random(0).randrange, min_nodes=2).to_json())
    document["nodes"][0]["attrs"] = attrs
    with pytest.raises(GraphError, match="node 0"):
        Graph.from_json(document)
