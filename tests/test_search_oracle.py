"""The oracle against the full pipeline: composition, its proof obligations, arenas, accountings, least values, and what it remembers."""

from __future__ import annotations

import pickle
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from neaptide.compiler.count import count
from neaptide.compiler.errors import NeaptideError, SourceError
from neaptide.compiler.graph import WEIGHT_ROLES, Graph, GraphBuilder
from neaptide.passes.allocate import allocate
from neaptide.passes.attribution import parameter_elements
from neaptide.passes.schedule import schedule
from neaptide.passes.verify import verify_graph, verify_plan, verify_schedule
from neaptide.search.layouts import composable_arena, plain_arena
from neaptide.search.least import Factor, covering_rows, least_of_sum, minimise
from neaptide.search.oracle import Oracle
from neaptide.search.segment_costs import Solved, solve
from neaptide.search.segments import Cutter, Segment, as_graph
from neaptide.search.space import Architecture, Slot, Space
from neaptide.search.spaces import list_spaces, load_space
from neaptide.search.stretches import stretches, whole_segment, window_bound
from neaptide.search.tables import SOLVED, SlotTables
from neaptide.testing import brute_force_optimum

pytestmark = pytest.mark.usefixtures("own_memory")

SMALLER = {"darts": {"layers": 5, "channels": 8}, "proxyless_tree": {"B": 2}, "nasbench201": {"N": 2}}
KINDS = ("absent", "plain", "residual", "squeezed")


class Chain(Space):
    """A space of a user's own: a stem, three blocks that may be absent, and a head, traced from its modules. Gene 0: width."""

    name = "chain"
    cardinalities = (2, 4, 4, 4)

    def slots(self) -> tuple[Slot, ...]:
        return (Slot("stem", (0,)), *(Slot(f"block{i}", (0, i)) for i in (1, 2, 3)), Slot("head|", (0,)))

    def module(self, arch: Architecture):
        return _module(8 + 4 * arch.genes[0], [KINDS[g] for g in arch.genes[1:]])

    def graph(self, arch: Architecture) -> Graph:
        import torch

        from neaptide.compiler.trace import trace

        return trace(self.module(arch).eval(), (torch.zeros(self.input_shape(arch)),))

    def input_shape(self, arch: Architecture) -> tuple[int, ...]:
        return (1, 3, 12, 12)

    def text(self, arch: Architecture) -> str:
        return "-".join(map(str, arch.genes))

    def parse(self, text: str) -> Architecture:
        return self.architecture([int(part) for part in text.split("-")])


def _module(width: int, kinds: list[str]):
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, kind: str):
            super().__init__()
            self.kind = kind
            self.body = nn.Sequential(
                nn.Conv2d(width, 3 * width, 1), nn.BatchNorm2d(3 * width), nn.ReLU(inplace=True), nn.Conv2d(3 * width, width, 1)
            )
            self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Sigmoid()) if kind == "squeezed" else None

        def forward(self, x):
            y = self.body(x)
            if self.squeeze is not None:
                y = y * self.squeeze(y)
            return x + y if self.kind == "residual" else y

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, width, 3, padding=1)
            for i, kind in enumerate(kinds, 1):
                if kind != "absent":
                    setattr(self, f"block{i}", Block(kind))
            self.head = nn.Linear(width, 5)

        def forward(self, x):
            x = self.stem(x)
            for i, kind in enumerate(kinds, 1):
                if kind != "absent":
                    x = getattr(self, f"block{i}")(x)
            return self.head(torch.flatten(x.mean((2, 3), keepdim=True), 1))

    return Net()


def pipeline(graph: Graph) -> dict[str, int]:
    """What the full pipeline says of one network, every result checked by the slow verifiers."""
    verify_graph(graph)
    found = schedule(graph)
    verify_schedule(graph, found)
    plan = allocate(graph, found)
    verify_plan(graph, plan)
    assert found.lower_bound <= found.peak <= plan.arena
    return {
        "peak": found.peak,
        "peak_bound": found.lower_bound,
        "arena": plan.arena,
        **pipeline_sums(graph),
    }


def pipeline_sums(graph: Graph) -> dict[str, int]:
    return {
        "params": sum(parameter_elements(graph).values()),
        "macs": count(graph).macs,
        "weight_bytes": sum(s.nbytes for s in graph.storages if s.role in WEIGHT_ROLES),
    }


def agree(space: Space, rows: np.ndarray) -> None:
    metrics = ("peak", "arena", "params", "macs", "flops", "weight_bytes")
    costs = Oracle(space).cost(rows, metrics)
    assert_array_equal(costs["flops"], 2 * costs["macs"])
    for i, arch in enumerate(space.decode(rows)):
        expected = pipeline(space.graph(arch))
        bound = expected.pop("peak_bound")
        got = {name: int(costs[name][i]) for name in expected}
        assert got == expected, space.text(arch)
        assert costs.proven is not None and costs.peak_bound is not None
        assert costs.peak_bound[i] <= expected["peak"]
        if bound == expected["peak"]:
            assert costs.proven[i]


# ---- against the full pipeline --------------------------------------------------------------------------------------


def test_a_space_of_ones_own_costs_what_the_pipeline_says():
    space = Chain()
    agree(space, space.sample_rows(np.random.default_rng(0), 10))


@pytest.mark.parametrize("name", list_spaces())
def test_spaces_cost_what_the_pipeline_says(name):
    space = load_space(name, **SMALLER.get(name, {}))
    agree(space, space.sample_rows(np.random.default_rng(5), 3))


@pytest.mark.parametrize(
    "text",
    [
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
        "|skip_connect~0|+|skip_connect~0|none~1|+|skip_connect~0|none~1|none~2|",
        "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|nor_conv_1x1~1|none~2|",
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|none~1|+|none~0|none~1|nor_conv_3x3~2|",
    ],
)
def test_cells_that_lead_nowhere_are_priced_too(text):
    space = load_space("nasbench201", C=4, N=2)
    agree(space, space.encode([space.parse(text)]))


def test_objects_and_rows_cost_the_same():
    space = load_space("nasbench_macro")
    oracle = Oracle(space)
    rows = space.sample_rows(np.random.default_rng(1), 50)
    for metric in ("peak", "params", "macs"):
        assert_array_equal(oracle.cost(rows)[metric], oracle.cost(space.decode(rows))[metric])
    one = oracle.cost(space.decode(rows)[0])
    assert len(one) == 1 and one.values(0) == {name: int(oracle.cost(rows)[name][0]) for name in ("params", "macs", "peak")}


# ---- cuts -----------------------------------------------------------------------------------------------------------


def random_chain(seed: int, slots: int = 3, *, passing: int = 1) -> Graph:
    """Slots s0, s1, ... of a few random nodes each, every slot reading what the one before handed on, `passing` tensors: views, in-place
    writes, dead ends, weights, workspaces, nodes without bytes, and slots without nodes."""
    r = Random(seed)
    b = GraphBuilder("chain")
    x = b.tensor((64 * r.choice((4, 9, 16)),), "uint8", role="input")
    b.inputs.append(x)
    before: list[int] = []
    for k in range(slots):
        mine = [x, *before]
        for _ in range(r.randrange(5)):
            extra = {"scope": f"s{k}.n", "workspace": r.choice((0, 0, 0, 448))}
            y = b.tensors[r.choice(mine)]
            kind = r.randrange(6)
            if kind == 0:
                mine.append(b.tensor(y.shape, "uint8", y.storage))
                b.node("view", [y.id], [mine[-1]], scope=f"s{k}.n")
            elif kind == 1:
                mine.append(b.tensor(y.shape, "uint8", y.storage))
                b.node("op_", [y.id], [mine[-1]], writes=(y.storage,), **extra)
            elif kind == 2:
                b.node("empty", [], [b.tensor((0,), "uint8")], scope=f"s{k}.n")
            else:
                others = [r.choice(mine) for _ in range(r.randrange(2))]
                weight = [b.tensor((3,), "uint8", role="parameter")] if kind == 3 else []
                mine.append(b.tensor((64 * r.choice((1, 4, 9, 30)),), "uint8"))
                b.node("op", [y.id, *others, *weight], [mine[-1]], **extra)
        x = mine[-1] if r.random() < 0.9 else r.choice(mine)
        before = [r.choice(mine) for _ in range(passing - 1)]
    b.outputs.append(x)
    return b.build()


def test_composition_brackets_the_optimum_of_random_chains():
    composed = dead = refused = 0
    for seed in range(250):
        graph = random_chain(seed)
        cut = Cutter("chain", [Slot(f"s{k}", ()) for k in range(3)]).cut(graph)
        if isinstance(cut, str):
            refused += 1
            continue
        solved = [solve(segment) for segment in cut]
        peak, bound = max(s.peak for s in solved), max(s.bound for s in solved)
        optimum = brute_force_optimum(graph)
        if not graph.nodes:
            continue
        assert bound <= optimum <= peak, seed
        composed += 1
        dead += any(segment.dead for segment in cut)
        if not any(segment.dead for segment in cut):
            assert bound == peak, seed
        weights = [s for segment in cut for s in segment.weights]
        assert sorted(weights) == [s.id for s in graph.storages if s.role == "parameter"]
        arena = max(composable_arena(s)[0] for s in solved)
        order = [segment.nodes[v] for segment in cut for v in schedule(as_graph(segment)).order]
        assert allocate(graph, order, capacity=arena).arena <= arena, seed
    assert composed > 150 and dead > 50 and refused >= 10, (composed, dead, refused)


def test_stretches_and_windows_bracket_the_optimum_of_random_networks():
    met = 0
    cutter = Cutter("chain", [Slot(f"s{k}", ()) for k in range(3)])
    for seed in range(150):
        graph = random_chain(seed, passing=1 + seed % 3)
        if not graph.nodes:
            continue
        parts, graphs = stretches(cutter, graph)
        peak = max(solve(whole_segment(own)).peak for own in graphs)
        windows = [parts[k].nodes + parts[k + 1].nodes for k in (0, 1)]
        bound = max(window_bound(graph, nodes, time_limit=5) for nodes in windows)
        assert bound <= brute_force_optimum(graph) <= peak, seed
        met += bound == peak
    assert met > 60, met


def test_darts_cells_are_stretches_that_prove_the_peak():
    space = load_space("darts", layers=6, channels=8)
    rows = space.sample_rows(np.random.default_rng(13), 3)
    oracle = Oracle(space, memory=False)
    oracle.cost(rows)
    mixed = np.concatenate([rows[:, :12], np.roll(rows, 1, axis=0)[:, 12:]], axis=1)
    costs = oracle.cost(mixed)
    assert costs.kinds["peak"] == "exact" and oracle.solved_whole == 0
    for i, arch in enumerate(space.decode(mixed)):
        found = schedule(space.graph(arch))
        assert (found.peak, found.optimal) == (costs["peak"][i], True)


def cut_of(cutter: Cutter, graph: Graph) -> tuple[Segment, ...]:
    cut = cutter.cut(graph)
    assert not isinstance(cut, str), cut
    return cut


def _two_paths(skip: bool, shared: bool = False, partial: bool = False) -> Graph:
    b = GraphBuilder("net")
    x = b.tensor((8,), "uint8", role="input")
    b.inputs.append(x)
    w = b.tensor((4,), "uint8", role="parameter", name="a.w")
    y, z = b.tensor((8,), "uint8"), b.tensor((8,), "uint8")
    b.node("op", [x, w], [y], scope="a")
    passed = y
    if partial:
        passed = b.tensor((4,), "uint8", b.tensors[y].storage)
        b.node("view", [y], [passed], scope="a")
    b.node("op", [passed, *([x] if skip else []), *([w] if shared else [])], [z], scope="b")
    b.outputs.append(z)
    return b.build()


@pytest.mark.parametrize(
    ("options", "why"),
    [({"skip": True}, "behind slot 0"), ({"skip": False, "shared": True}, "a.w"), ({"skip": False, "partial": True}, "part")],
)
def test_what_is_no_cut_is_refused_with_its_reason(options, why):
    slots = (Slot("a", ()), Slot("b", ()))
    assert not isinstance(Cutter("net", slots).cut(_two_paths(skip=False)), str)
    reason = Cutter("net", slots).cut(_two_paths(**options))
    assert isinstance(reason, str) and why in reason


def test_a_node_outside_every_slot_is_an_error():
    with pytest.raises(SourceError, match="no slot of space net covers node 1"):
        Cutter("net", (Slot("a", ()),)).cut(_two_paths(skip=False))


class Skipping(Chain):
    """Architectures with gene 0 at 1 have a path over the cut; they go through the scheduler whole."""

    name = "skipping"
    cardinalities = (2,)

    def slots(self) -> tuple[Slot, ...]:
        return Slot("a", ()), Slot("b", (0,))

    def graph(self, arch: Architecture) -> Graph:
        return _two_paths(skip=bool(arch.genes[0]))


def test_architectures_without_cuts_go_through_the_scheduler():
    oracle = Oracle(Skipping())
    costs = oracle.cost(np.array([[0], [1], [0]], np.int16), ("peak",))
    assert costs["peak"].tolist() == [16, 24, 16] and costs.kinds["peak"] == "exact"
    assert oracle.cost(np.array([[1]], np.int16), ("arena",))["arena"].tolist() == [192]
    with pytest.raises(SourceError, match="multiply-adds of op are not known"):
        oracle.cost(np.array([[0]], np.int16), ("macs",))


class Promising(Skipping):
    """Slot b says that it depends on nothing, and depends on gene 0."""

    name = "promising"

    def slots(self) -> tuple[Slot, ...]:
        return Slot("a", ()), Slot("b", ())

    def graph(self, arch: Architecture) -> Graph:
        graph = _two_paths(skip=False)
        nodes = list(graph.nodes)
        if arch.genes[0]:
            nodes[1] = replace(nodes[1], workspace=5)
        return graph.with_nodes(nodes)

    def cost(self):
        oracle = Oracle(self)
        oracle.cost(np.array([[0]], np.int16), ("peak",))
        oracle._tables.table[oracle._tables.index(np.array([[1]], np.int16))[0, 0], SOLVED] = -1
        return oracle.cost(np.array([[1]], np.int16), ("peak",))


def test_a_broken_promise_is_noticed():
    with pytest.raises(NeaptideError, match="slot 'b' of space promising depends on more than its genes"):
        Promising().cost()


def test_segments_are_graphs_of_their_own():
    space = load_space("ofa_mbv3")
    for segment in cut_of(Cutter(space.name, space.slots()), space.graph(space.sample(np.random.default_rng(2)))):
        if segment.nodes:
            part = as_graph(segment).check()
            assert solve(segment).peak == schedule(part).peak
        else:
            assert solve(segment).peak == 0


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_tables_give_the_same_whether_values_are_few_or_many():
    rng = np.random.default_rng(3)
    cards, slots = (3, 4, 2, 5), (Slot("a", (0, 1)), Slot("b", ()), Slot("c", (3, 1, 2)))
    dense, sparse = SlotTables(slots, cards), SlotTables(slots, cards, dense_codes=2)
    rows = rng.integers(0, cards, (500, 4)).astype(np.int16)
    facts = {}
    for tables in (dense, sparse):
        for k, slot in enumerate(slots):
            for row in np.unique(rows[:, list(slot.genes)], axis=0) if slot.genes else [np.zeros(0, np.int16)]:
                key = row.astype("<i2").tobytes()
                (at,) = tables.at(k, [key])
                tables.table[at] = facts.setdefault((k, key), rng.integers(0, 99, 8))
    expected = []
    for row in rows:
        per_slot = np.stack([facts[k, row[list(s.genes)].astype("<i2").tobytes()] for k, s in enumerate(slots)])
        expected.append([*per_slot[:, :4].max(0), *per_slot[:, 4:7].sum(0)])
    for tables in (dense, sparse):
        assert_array_equal(tables.compose(rows)[:7].T, expected)
        index = tables.index(rows)
        assert_array_equal(tables.table[index, 4].sum(1), np.array(expected)[:, 4])
    assert (sparse.compose(np.array([[2, 3, 1, 4]], np.int16))[SOLVED] < 0).all() or [2, 3, 1, 4] in rows.tolist()


# ---- arenas ---------------------------------------------------------------------------------------------------------


def test_flush_layouts_join():
    """A residual block between two tensors: what enters and what leaves both lie at an end, at no cost."""
    blocks = np.array([[0, 4, 64], [1, 3, 256], [2, 4, 256], [3, 5, 128]], np.int64)
    solved = Solved(0, 0, blocks, (0, 3))
    assert composable_arena(solved) == (576, 576)
    assert plain_arena(solved) == (576, 576)
    middle = Solved(0, 0, np.array([[0, 2, 64], [0, 3, 64], [1, 3, 64]], np.int64), (0, 1))
    height, bound = composable_arena(middle)
    assert bound == 192 and height >= 192


# ---- the least ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["flash", "ram"])
def test_least_is_the_least_of_all(weights):
    space = Chain()
    oracle = Oracle(space, weights=weights)
    everything = np.array(list(np.ndindex(*space.cardinalities)), np.int16)
    for metric in ("params", "macs", "flops", "weight_bytes", "peak", "arena"):
        value, arch = oracle.least(metric)
        assert value == oracle.cost(everything, (metric,))[metric].min()
        assert oracle.cost(arch, (metric,))[metric][0] == value
        assert oracle.least(metric).kind == "exact"


def test_without_cuts_sums_come_from_parts_and_the_least_peak_is_a_labelled_bound():
    space = load_space("darts", layers=3, channels=4)
    rows = space.sample_rows(np.random.default_rng(0), 40)
    oracle = Oracle(space)
    sums = oracle.cost(rows, ("params", "macs", "weight_bytes"))
    assert (oracle._tables.table[:, SOLVED] < 0).all()
    for i, arch in enumerate(space.decode(rows[:10])):
        expected = pipeline_sums(space.graph(arch))
        assert {name: int(sums[name][i]) for name in expected} == expected
    peaks = oracle.cost(rows[:5], ("peak", "params"))
    assert_array_equal(peaks["params"], sums["params"][:5])
    found = oracle.least("peak")
    assert found.kind == "bound" and 0 < found.value <= peaks["peak"].min()
    for metric in ("params", "macs"):
        value, arch = oracle.least(metric)
        assert oracle.least(metric).kind == "exact"
        assert value == oracle.cost(arch, (metric,))[metric][0] <= sums[metric].min()


def test_elimination_against_brute_force():
    rng = np.random.default_rng(4)
    cards = (2, 3, 2, 4)
    for _ in range(30):
        scopes = [tuple(rng.permutation(4)[: rng.integers(0, 4)].tolist()) for _ in range(4)]
        factors = [Factor(g, rng.integers(0, 50, [cards[i] for i in g])) for g in scopes]
        others = [Factor(g, rng.integers(0, 50, [cards[i] for i in g])) for g in scopes]
        points = list(np.ndindex(*cards))

        def values(fs, p):
            return [f.values[tuple(p[g] for g in f.genes)] for f in fs]

        for join, total in ((np.add, sum), (np.maximum, max)):
            found = minimise(factors, 4, join)
            assert found is not None
            value, chosen = found
            assert value == min(total(values(factors, p)) for p in points) == total(values(factors, chosen))
        found = least_of_sum(factors, others, 4)
        assert found is not None
        value, chosen = found
        assert value == min(max(values(factors, p)) + sum(values(others, p)) for p in points)


def test_few_rows_cover_every_value():
    cards = (3, 2, 4, 2)
    genes = [(0, 1), (0, 2), (), (3, 0), (1,)]
    rows, places = covering_rows(genes, cards)
    assert len(rows) <= 48
    for of, place in zip(genes, places, strict=True):
        expected = list(np.ndindex(*(cards[g] for g in of)))
        assert [tuple(rows[p, list(of)]) for p in place] == expected


# ---- accountings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "key"), [("ofa_mbv3", "mit_ofa"), ("moofa", "moofa"), ("compofa", "compofa")])
def test_published_peaks(shared_dir, name, key):
    from neaptide.search.spaces.ofa import Settings

    path = shared_dir / "data" / "ofa_accuracy.npz"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    data = np.load(path)
    some = np.random.default_rng(0).permutation(len(data[f"{key}_r"]))[:25]
    space: Any = load_space(name)
    rows = space.rows(Settings(*(data[f"{key}_{field}"][some] for field in ("r", "d", "ks", "e"))))
    costs = Oracle(space, accounting="moofa-published").cost(rows, ("peak",))
    assert_array_equal(costs["peak"] // 4, data[f"{key}_peakmem_elems"][some])
    without = Oracle(space, accounting="moofa-published", weights="flash").cost(rows, ("peak",))
    assert (without["peak"] <= costs["peak"]).all()


def test_weights_in_ram_come_on_top():
    space = load_space("nasbench_macro")
    rows = space.sample_rows(np.random.default_rng(6), 20)
    flash, ram = (Oracle(space, weights=w).cost(rows, ("peak", "weight_bytes")) for w in ("flash", "ram"))
    assert_array_equal(ram["peak"], flash["peak"] + flash["weight_bytes"])


def test_memnet_published_counts_rounds_of_the_first_cell():
    space: Any = load_space("memnet", width=8)
    oracle = Oracle(space, accounting="memnet-published", memory=False)
    rows = space.sample_rows(np.random.default_rng(12), 8)
    costs = oracle.cost(rows, ("peak", "weight_bytes"))
    for arch, peak in zip(space.decode(rows), costs["peak"].tolist(), strict=True):
        cell = space.cells(arch)[0]
        rounds: dict[int, int] = {}
        ready, channels = [0], [3]
        for block, operations in zip(cell.blocks, cell.operations, strict=True):
            ends, widths = [], []
            for name, source in zip(operations, block.inputs, strict=True):
                if name == "identity" and channels[source] == cell.width and (source or cell.stride == 1):
                    ends.append(ready[source])
                else:
                    rounds[ready[source]] = rounds.get(ready[source], 0) + 4096 * (channels[source] + cell.width)
                    ends.append(ready[source] + 1)
                widths.append(cell.width)
            ready.append(max(ends))
            channels.append(max(widths) if block.join == "add" else sum(widths))
        assert peak == max(rounds.values())
    on_top = Oracle(space, accounting="memnet-published", weights="ram", memory=False).cost(rows, ("peak",))
    assert_array_equal(on_top["peak"], costs["peak"] + costs["weight_bytes"])
    with pytest.raises(SourceError, match="memnet's first cell"):
        Oracle(load_space("nasbench_macro"), accounting="memnet-published").cost(np.zeros((1, 8), np.int16), ("peak",))


# ---- memory and errors ----------------------------------------------------------------------------------------------


def test_a_second_process_starts_warm(tmp_path, monkeypatch):
    space = load_space("nasbench_macro")
    rows = space.sample_rows(np.random.default_rng(7), 30)
    metrics = ("params", "macs", "peak", "arena")
    first = Oracle(space, memory=tmp_path).cost(rows, metrics)
    monkeypatch.setattr(type(space), "graph", lambda *_: pytest.fail("a network was built again"))
    again = Oracle(space, memory=tmp_path)
    for oracle in (again, pickle.loads(pickle.dumps(again))):
        for metric in metrics:
            assert_array_equal(oracle.cost(rows, metrics)[metric], first[metric])


def test_processes_solve_what_one_solves():
    space = load_space("nasbench_macro")
    rows = space.sample_rows(np.random.default_rng(8), 40)
    alone, together = (Oracle(space, memory=False, workers=n).cost(rows) for n in (1, 2))
    assert_array_equal(alone["peak"], together["peak"])
    assert_array_equal(alone["macs"], together["macs"])


def test_errors_name_the_value_and_the_way_out():
    space = load_space("nasbench_macro")
    oracle = Oracle(space)
    rows = space.sample_rows(np.random.default_rng(9), 2)
    with pytest.raises(SourceError, match="no metric 'speed'"):
        oracle.cost(rows, ("speed",))
    with pytest.raises(SourceError, match=r"gene 1 .* is 9; it takes 0 to"):
        oracle.cost(np.array([[0, 9, 0, 0, 0, 0, 0, 0]], np.int16))
    with pytest.raises(SourceError, match=r"gene 0 .* is -1"):
        oracle.cost(np.array([[-1, 0, 0, 0, 0, 0, 0, 0]], np.int16))
    with pytest.raises(SourceError, match="shape"):
        oracle.cost(np.zeros((2, 3), np.int16))
    with pytest.raises(SourceError, match="of chain has no cost in nasbench_macro"):
        oracle.cost([Architecture("chain", (0, 0, 0, 0))])
    with pytest.raises(SourceError, match="no accounting 'guess'"):
        Oracle(space, accounting="guess")
    with pytest.raises(SourceError, match="ask for it"):
        oracle.cost(rows)["arena"]
    assert len(oracle.cost(rows[:0])) == 0


# ---- predicted and measured -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known_operators(tmp_path_factory):
    """A predictor that knows the operators of one network of `Chain`, and some others, at one second for a million elements moved."""
    pytest.importorskip("tvm")
    from neaptide.search.predicted import fused_operators
    from neaptide.targets.database import CostDatabase, NetworkRow, OperatorRow
    from neaptide.targets.predictors import fit_operators
    from neaptide.targets.remember import features

    space = Chain()
    database = CostDatabase(tmp_path_factory.mktemp("costs") / "costs.sqlite")
    operators = fused_operators(space.graph(space.architecture((1, 1, 2, 3))))
    others = [f"conv2d_add(1x{c}x12x12,8x{c}x1x1,1x8x1x1,1x8x12x12)" for c in range(4, 28)]
    price = {s: (features(s)["input"] + features(s)["output"]) / 1e6 for s in [*operators, *others]}
    database.put_all(OperatorRow(s, "cortex-m4f", "test", v, "seconds", features=features(s)) for s, v in price.items())
    total = sum(price[s] * n for s, n in operators.items())
    database.put(NetworkRow("net", "cortex-m4f", "test", total, operators, "seconds"))
    return fit_operators(database, target="cortex-m4f", boosting=False)


def test_predicted_latency_is_that_of_whole_networks(known_operators):
    import torch

    from neaptide.targets.predict import operator_counts, operator_graph, predict_networks
    from neaptide.targets.spec import load_target

    space = Chain()
    rows = np.array([[1, 1, 2, 3], [1, 3, 0, 2], [0, 1, 0, 0]], np.int16)
    oracle = Oracle(space, "cortex-m4f", predictor=known_operators)
    costs = oracle.cost(rows, ("latency", "peak"))
    assert costs.kinds["latency"] == "predicted" and costs.kinds["peak"] == "exact"
    target = replace(load_target("cortex-m4f"), kind="cpu")
    networks = []
    for arch in space.decode(rows):
        module, example = space.module(arch).eval(), torch.zeros(space.input_shape(arch))
        networks.append(operator_counts(operator_graph(module, (example,), target=target)))
    expected = predict_networks(networks, known_operators)
    np.testing.assert_allclose(costs["latency"], expected.values)
    np.testing.assert_allclose(costs.errors["latency"], expected.errors)
    value, arch = oracle.least("latency")
    assert oracle.least("latency").kind == "predicted" and oracle.cost(arch, ("latency",))["latency"][0] == pytest.approx(value)
    assert value <= costs["latency"].min()
    with pytest.raises(SourceError, match="ask for 'latency'"):
        oracle.cost(rows, ("instructions",))


def test_predictions_need_a_target():
    with pytest.raises(SourceError, match="latency needs a target"):
        Oracle(load_space("nasbench_macro")).cost(np.zeros((1, 8), np.int16), ("latency",))


def test_measured_costs_are_of_the_network_on_its_target(tmp_path):
    """The emulator counts what runs over the planned arena; the operators it ran are in the oracle's database."""
    for module in ("tvm", "unicorn", "ziglang"):
        pytest.importorskip(module)
    from neaptide.targets.database import CostDatabase

    space, arch = Chain(), Architecture("chain", (1, 1, 2, 3))
    database = CostDatabase(tmp_path / "costs.sqlite")
    cost = Oracle(space, "cortex-m4f", database=database).measure(arch)
    assert (cost.kind, cost.target) == ("measured", "cortex-m4f")
    assert cost.arena == cost.plan and cost.max_error is not None and cost.max_error <= 1e-4
    kept = {row.signature: row.value for row in database.rows(target="cortex-m4f")}
    counted = [op.instructions for op in cost.per_op if op.instructions is not None]
    assert len(counted) > 5 and cost.instructions is not None and 0.9 * cost.instructions <= sum(counted) <= cost.instructions
    assert all(kept[op.signature] == pytest.approx(op.instructions, rel=0.05) for op in cost.per_op)
    with pytest.raises(SourceError, match="measure needs a target"):
        Oracle(space).measure(arch)
