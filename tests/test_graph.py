"""The IR: rules that check() proves, hazards, text, and JSON in both forms."""

from __future__ import annotations

from dataclasses import replace

import pytest

from neaptide.compiler.errors import FormatError, GraphError, OrderError
from neaptide.compiler.graph import Atom, Graph, GraphBuilder, Ref


def residual_block() -> Graph:
    """conv -> in-place relu -> view of it -> add of the relu and the view of a second conv."""
    b = GraphBuilder("block")
    x = b.tensor((1, 4, 8, 8), "float32", role="input", name="x")
    w = b.tensor((4, 4, 3, 3), "float32", role="parameter", name="conv.weight")
    b.inputs.append(x)
    y = b.tensor((1, 4, 8, 8), "float32")
    args = {"args": [Ref(0), Ref(1), None, [1, 1]], "kwargs": {"dtype": Atom("dtype", "float32"), "p": Atom("float", "inf")}}
    b.node("aten.convolution.default", (x, w), (y,), attrs=args, scope="conv", source="net.py:3")
    s = b.tensors[y].storage
    r = b.tensor((1, 4, 8, 8), "float32", s)
    b.node("aten.relu_.default", (y,), (r,), writes=(s,))
    v = b.tensor((4, 64), "float32", s)
    b.node("aten.view.default", (r,), (v,))
    z = b.tensor((4, 64), "float32")
    b.node("aten.mul.Tensor", (v, v), (z,), workspace=128)
    b.outputs.append(z)
    return b.build()


def test_text_is_stable():
    assert residual_block().to_text() == (
        "graph block(%0: float32[1,4,8,8] @0) {\n"
        "  %1: float32[4,4,3,3] @1 = parameter conv.weight\n"
        "  %2: float32[1,4,8,8] @2 = aten.convolution.default(%0, %1)  # conv net.py:3\n"
        "  %3: float32[1,4,8,8] @2! = aten.relu_.default(%2)\n"
        "  %4: float32[4,64] @2 = aten.view.default(%3)\n"
        "  %5: float32[4,64] @3 = aten.mul.Tensor(%4, %4) workspace=128\n"
        "} -> (%5)\n"
    )


def test_births_views_and_pins():
    g = residual_block()
    assert g.birth == (-1, -1, 0, 3)
    assert [g.is_view(n) for n in g.nodes] == [False, False, True, False]
    assert g.pinned == {3}
    assert g.bytes_by_role()["activation"] == 2 * 1024


def test_hazards_order_reads_and_writes_of_one_storage():
    b = GraphBuilder("hazards")
    x = b.tensor((4,), "float32", role="input")
    b.inputs.append(x)
    a = b.tensor((4,), "float32")
    b.node("born", (x,), (a,))
    s = b.tensors[a].storage
    first = b.tensor((4,), "float32")
    b.node("read_before", (a,), (first,))
    window = b.tensor((2,), "float32", s, offset=8)
    b.node("view", (a,), (window,))
    b.node("write", (), (), writes=(s,))
    second = b.tensor((2,), "float32")
    b.node("read_after", (window,), (second,))
    b.outputs += [first, second]
    g = b.build()
    assert g.dependencies() == ((), (0,), (0,), (0, 1), (2, 3))
    assert g.check_order([0, 2, 1, 3, 4]) == (0, 2, 1, 3, 4)
    with pytest.raises(OrderError, match=r"node 3 \(write\) runs before node 1 \(read_before\)"):
        g.check_order([0, 2, 3, 1, 4])


@pytest.mark.parametrize(
    ("order", "message"),
    [([0, 1, 2], "has 3 nodes"), ([0, 1, 1, 3], "twice"), ([0, 1, 2, 9], "names node 9"), ([1, 0, 2, 3], "before node 0")],
)
def test_orders_that_are_none(order, message):
    with pytest.raises(OrderError, match=message):
        residual_block().check_order(order)


def broken(**changes):
    return lambda g: replace(g, **{k: f(g) for k, f in changes.items()})


@pytest.mark.parametrize(
    ("breaker", "message"),
    [
        (broken(storages=lambda g: (*g.storages[:-1], replace(g.storages[-1], role="heap"))), "role 'heap'"),
        (broken(storages=lambda g: (*g.storages[:-1], replace(g.storages[-1], nbytes=-1))), "-1 bytes"),
        (broken(storages=lambda g: (*g.storages[:-1], replace(g.storages[-1], nbytes=8))), "ends at byte 1024"),
        (broken(tensors=lambda g: (*g.tensors[:-1], replace(g.tensors[-1], storage=9))), "storage 9"),
        (broken(tensors=lambda g: (*g.tensors[:-1], replace(g.tensors[-1], dtype="float31"))), "float31"),
        (broken(nodes=lambda g: (g.nodes[0], replace(g.nodes[1], inputs=(5,)), *g.nodes[2:])), "before node 3 defines it"),
        (broken(nodes=lambda g: (*g.nodes[:3], replace(g.nodes[3], outputs=(4,)))), "defined twice"),
        (broken(nodes=lambda g: (*g.nodes[:3], replace(g.nodes[3], workspace=-5))), "workspace of -5"),
        (broken(nodes=lambda g: (replace(g.nodes[0], attrs={"args": [Ref(7)]}), *g.nodes[1:])), "refers to input 7"),
        (broken(inputs=lambda g: (1,)), "role 'parameter'"),
        (broken(outputs=lambda g: (77,)), "names tensor 77"),
        (broken(released=lambda g: (1, 2)), "2 release entries"),
    ],
)
def test_check_names_the_offender(breaker, message):
    with pytest.raises(GraphError, match=message):
        breaker(residual_block()).check()


def test_json_round_trip_keeps_everything():
    g = replace(residual_block(), released=(None, None, 3, None), meta={"frontend": "test", "sizes": [1, 2]})
    again = Graph.from_json(g.to_json())
    assert again == g
    assert again.nodes[0].attrs["args"][0] == Ref(0)
    assert again.nodes[0].attrs["kwargs"] == {"dtype": Atom("dtype", "float32"), "p": Atom("float", "inf")}


def test_save_is_atomic_and_names_a_missing_folder(tmp_path):
    g = residual_block()
    g.save_json(str(tmp_path / "g.json"))
    assert Graph.load_json(str(tmp_path / "g.json")) == Graph.from_json(g.to_json())
    assert [p.name for p in tmp_path.iterdir()] == ["g.json"]
    with pytest.raises(FormatError, match="no_such_folder"):
        g.save_json(str(tmp_path / "no_such_folder" / "g.json"))


def test_plain_form():
    g = Graph.from_json(
        {"name": "p", "bufs": [8, 4, 2], "out": [2], "nodes": [
            {"op": "input", "ins": [], "outs": [0]}, {"op": "a", "ins": [0], "outs": [1]}, {"op": "b", "ins": [0, 1], "outs": [2]}]}
    )  # fmt: skip
    assert [s.nbytes for s in g.storages] == [8, 4, 2]
    assert g.inputs == (0,) and g.outputs == (2,)
    assert g.dependencies() == ((), (0,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1, column 2"),
        (b"\xff\xff", "UTF-8"),
        ("[]", "expected an object"),
        ("{}", "expected format"),
        ('{"format": "neaptide.graph", "version": 99}', "version 99"),
        ('{"bufs": [-1], "nodes": [], "out": []}', r"bufs\[0\] is -1"),
        ('{"bufs": [1.5], "nodes": [], "out": []}', "1.5, expected a whole number"),
        ('{"bufs": [1], "nodes": [{"op": "a", "ins": [4], "outs": [0]}], "out": []}', "names buffer 4"),
        ('{"bufs": [1], "nodes": 3, "out": []}', "'nodes' is 3"),
        ("[" * 100_000, "nests too deeply"),
    ],
)
def test_broken_json_is_named(text, message):
    with pytest.raises(FormatError, match=message):
        Graph.from_json(text)


def test_networkx_carries_bytes():
    nx_graph = residual_block().to_networkx()
    assert nx_graph.nodes[3]["workspace"] == 128
    assert nx_graph.edges[0, 1] == {"storages": (2,), "nbytes": 1024}
