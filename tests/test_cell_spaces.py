"""Facts of the cell spaces: NAS-Bench-201, DARTS, MemNet, ProxylessNAS trees. What holds of every space is in `test_spaces`."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neaptide.compiler.count import count
from neaptide.compiler.errors import SourceError
from neaptide.search.space import Architecture
from neaptide.search.spaces import darts, memnet, proxyless_tree
from neaptide.search.spaces.fragments import place
from neaptide.search.spaces.layers import LayerGraph
from neaptide.search.spaces.nasbench201 import EDGES, OPERATIONS, NASBench201

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = settings(max_examples=25, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**32 - 1)
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 1), "
    "('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), "
    "('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)


def cost(graph) -> tuple[int, int]:
    """Parameters and multiply-adds."""
    return graph.bytes_by_role()["parameter"] // 4, count(graph).macs


# ---- NAS-Bench-201 ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table_201(shared_dir):
    path = shared_dir / "data" / "nasbench201.npz"
    if not path.is_file():
        pytest.skip(f"no {path.name} in the benchmark data")
    return np.load(path)


@pytest.mark.parametrize(("name", "classes", "resolution"), [("cifar10", 10, 32), ("cifar100", 100, 32), ("imagenet16", 120, 16)])
def test_cells_cost_what_the_benchmark_says(table_201, name, classes, resolution):
    space = NASBench201(num_classes=classes, resolution=resolution)
    some = np.random.default_rng(0).permutation(space.size)[:250]
    wanted = np.stack([table_201[f"params_{name}"], table_201[f"flops_{name}"]], axis=1)[some].tolist()
    assert [list(cost(space.graph(arch))) for arch in space.decode(table_201["ops"][some])] == wanted


def test_cells_are_written_as_in_the_benchmark(table_201):
    space = NASBench201()
    for arch, text in zip(space.decode(table_201["ops"]), table_201["arch_str"], strict=True):
        assert space.text(arch) == text.decode() and space.parse(text.decode()) == arch


@pytest.mark.parametrize(("text", "what"), [
    ("|none~0|+|none~0|none~1|", "3 nodes"),
    ("|none~0|+|none~0|+|none~0|none~1|none~2|", "list 2 edges"),
    ("|none~0|+|none~0|conv~1|+|none~0|none~1|none~2|", "'conv~1'"),
    ("|none~0|+|none~0|none~0|+|none~0|none~1|none~2|", "'none~0'"),
])  # fmt: skip
def test_what_is_no_cell_is_quoted(text, what):
    with pytest.raises(SourceError, match=what):
        NASBench201().parse(text)


@QUICK
@given(genes=st.tuples(*[st.integers(0, 4)] * 6))
def test_a_cell_is_the_sum_over_its_edges(genes):
    """By the benchmark's definition: node j is the sum of o(node i) over i < j, where `none` is zeros."""
    torch = pytest.importorskip("torch")
    network = NASBench201(C=4, N=1, resolution=8).module(Architecture("nasbench201", genes))
    cell = network.get_submodule("cells.0").eval()
    x = torch.randn(2, 4, 8, 8)
    nodes = [x, 0, 0, 0]
    with torch.no_grad():
        for e, (source, target) in enumerate(EDGES):
            read = nodes[source]
            nodes[target] = nodes[target] + (read * 0.0 if OPERATIONS[genes[e]] == "none" else cell.get_submodule(f"layers.{e}")(read))
        assert torch.equal(cell(x), nodes[3])


def test_weights_are_named_as_in_the_benchmark():
    pytest.importorskip("torch")
    space = NASBench201(C=4, N=2)
    keys = space.module(space.architecture([3] * 6)).state_dict().keys()
    assert {"stem.1.running_var", "cells.0.layers.5.op.1.weight", "cells.2.conv_a.op.2.bias", "cells.2.downsample.1.weight"} <= keys
    assert {"lastact.0.weight", "classifier.weight", "classifier.bias"} <= keys


def test_graphs_share_tables_and_stay_apart():
    space, fresh = NASBench201(C=4, N=1, resolution=8), NASBench201(C=4, N=1, resolution=8)
    archs = space.decode(space.sample_rows(np.random.default_rng(0), 40))
    graphs = [space.graph(arch) for arch in archs]
    for arch, graph in zip(reversed(archs), reversed(graphs), strict=True):
        assert graph == fresh.graph(arch) == space.graph(arch).check()


def test_a_stretch_that_reaches_back_into_its_input_cannot_be_placed():
    net = LayerGraph("views", (1, 4, 8, 8))
    with pytest.raises(ValueError, match="views"):
        place(net.build(net.slice(net.input, 2, "", start=1)), 1, 1, "cell")
    net = LayerGraph("writes", (1, 4, 8, 8))
    with pytest.raises(ValueError, match="writes"):
        place(net.build(net.relu(net.input, "", inplace=True)), 1, 1, "cell")


# ---- DARTS -----------------------------------------------------------------------------------------------------------------------


def test_the_published_genotype_has_its_published_parameters():
    """3.349342 M, which the authors' code prints for DARTS_V2."""
    space = darts.DARTS()
    arch = space.parse(DARTS_V2)
    assert cost(space.graph(arch))[0] == 3_349_342
    assert space.parse(space.text(arch)) == arch
    assert space.size == (180 * 7**8) ** 2


def test_the_reference_network_is_in_the_space():
    torch = pytest.importorskip("torch")
    from neaptide import trace
    from neaptide.compiler.reference_cells import darts_cifar

    space = darts.DARTS(channels=8, layers=6)
    reference = trace(darts_cifar(8, 6).eval(), (torch.zeros(1, 3, 32, 32),))
    graph = space.graph(space.parse(DARTS_V2))
    assert cost(graph) == cost(reference)
    sizes = [sorted(s.nbytes for s in g.storages if s.role == "activation") for g in (graph, reference)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(("old", "new", "what"), [
    ("('sep_conv_3x3', 1), ('sep_conv_3x3', 0)", "('sep_conv_3x3', 0), ('sep_conv_3x3', 0)", "two different ones"),
    ("('dil_conv_3x3', 2)", "('none', 2)", "'none'"),
    ("('dil_conv_3x3', 2)", "('dil_conv_3x3', 5)", "reads states 0 and 5"),
    ("('dil_conv_3x3', 2)", "7", "node 3 of the normal cell"),
    (", ('dil_conv_3x3', 2)", "", "8 edges"),
    ("reduce_concat=[2, 3, 4, 5]", "reduce_concat=[4, 5]", "concatenate"),
    ("reduce_concat=[2, 3, 4, 5]", "reduce_concat=list()", "cannot be read"),
    ("Genotype(", "Cell(", "Genotype"),
])  # fmt: skip
def test_what_is_no_genotype_is_refused(old, new, what):
    assert old in DARTS_V2
    with pytest.raises(SourceError, match=what):
        darts.DARTS().parse(DARTS_V2.replace(old, new, 1))


# ---- MemNet ----------------------------------------------------------------------------------------------------------------------


def test_round_0_has_98_candidates():
    space = memnet.MemNet()
    first = space.augment()
    assert len(first) == len(set(first)) == 98
    assert {space.text(a) for a in first} == {
        f"(0,0,{o},{p},{c})" for o, p, c in product(memnet.OPERATIONS, memnet.OPERATIONS, memnet.JOINS)
    }
    assert len(space.augment(distinct=True)) == 2 * (7 * 8 // 2)


@QUICK
@given(seed=SEEDS)
def test_candidates_are_counted_by_the_formulas(seed):
    space = memnet.MemNet(max_blocks=4)
    rng = np.random.default_rng(seed)
    arch = space.sample(rng)
    arch = space.parse(space.text(arch).split(" ")[0])
    count_ = arch.genes[0] + 1
    grown = space.augment(arch)
    assert len(grown) == len(set(grown)) == ((count_ + 1) ** 2 * 7**2 * 2 if count_ < 4 else 0)
    locations = (count_ + 1) * 7
    assert len(space.augment(arch, distinct=True)) == (locations * (locations + 1) if count_ < 4 else 0)
    blocks = space.cells(arch)[0].blocks
    read = {source for block in blocks for source in block.inputs} - {0}
    trims = space.trim(arch)
    assert len(trims) == len(set(trims)) == 2 * count_ * 5 + 5 * len(read)
    trimmed = trims[rng.integers(len(trims))]
    assert len(space.trim(trimmed)) == len(trims) - 1 and arch not in space.trim(trimmed)
    for other in space.augment(trimmed)[:3]:
        assert [c.operations[:count_] for c in space.cells(other)] == [c.operations for c in space.cells(trimmed)]


@QUICK
@given(seed=SEEDS)
def test_trims_never_need_more(seed):
    space = memnet.MemNet(width=8, max_blocks=3, resolution=16)
    rng = np.random.default_rng(seed)
    arch = space.sample(rng)
    params, macs = cost(space.graph(arch))
    trims = space.trim(arch)
    for i in rng.permutation(len(trims))[:6]:
        fewer, less = cost(space.graph(trims[i]))
        assert fewer <= params and less <= macs, space.text(trims[i])


def test_size_of_memnet_is_what_a_walk_finds(monkeypatch):
    monkeypatch.setattr(memnet, "OPERATIONS", memnet.OPERATIONS[:2])
    monkeypatch.setattr(memnet, "POSITIONS", memnet.POSITIONS[:1])
    space = memnet.MemNet(max_blocks=2)
    every = np.stack(np.unravel_index(np.arange(np.prod(space.cardinalities)), space.cardinalities), axis=1).astype(np.int16)
    assert space.size == len(np.unique(space.canonical_rows(every), axis=0))


def test_block_features_hold_what_a_block_is():
    space = memnet.MemNet(max_blocks=3)
    arch = space.parse("(0,0,conv_3x3,max_pool_3x3,add)(1,0,dw_sep_3x3,dil_conv_3x3,cat) identity=2.1.2 cut=3.1")
    sequence = space.blocks(arch).reshape(5, 3, memnet.FEATURES)
    assert memnet.FEATURES == 61 and not sequence[:, 2].any()
    names = [f"{kind}{i}" for kind in ("ip1=", "ip2=", "out=") for i in range(15)]
    names += [f"{kind}{o}" for kind in ("o1=", "o2=") for o in memnet.OPERATIONS] + [f"c={c}" for c in memnet.JOINS]
    said = [[{names[i] for i in np.flatnonzero(row)} for row in cell[:2]] for cell in sequence]
    first = {"ip1=0", "ip2=0", "out=1", "o1=conv_3x3", "o2=max_pool_3x3", "c=add"}
    second = {"ip1=1", "ip2=0", "out=2", "o1=dw_sep_3x3", "o2=dil_conv_3x3", "c=cat"}
    assert said[0] == said[3] == said[4] == [first, second]
    assert said[1] == [first - {"o2=max_pool_3x3"}, second]
    assert said[2] == [first - {"out=1"}, second]
    rows = space.sample_rows(np.random.default_rng(0), 200)
    assert len(np.unique(space.block_features(rows), axis=0)) == len(np.unique(rows, axis=0))


@pytest.mark.parametrize(("text", "what"), [
    ("(0,0,conv_3x3,conv_3x3,add)" * 6, "1 to 5 blocks"),
    ("(0,1,conv_3x3,conv_3x3,add)", "locations go from 0 to 0"),
    ("(0,0,conv_4x4,conv_3x3,add)", "conv_4x4"),
    ("(0,0,conv_3x3,conv_3x3,add) identity=6.1.1", "'6.1.1'"),
    ("(0,0,conv_3x3,conv_3x3,add) identity=1.1", "'1.1'"),
    ("(0,0,conv_3x3,conv_3x3,add) skip=1.1", "'skip=1.1'"),
    ("(0,0,conv_3x3,conv_3x3,add) cut=1.1", "no block reads it"),
])  # fmt: skip
def test_what_is_no_memnet_is_refused(text, what):
    with pytest.raises(SourceError, match=what):
        memnet.MemNet().parse(text)


# ---- trees -----------------------------------------------------------------------------------------------------------------------


def test_the_paper_s_trees_have_648_edges_and_networks_of_its_size():
    space = proxyless_tree.ProxylessTree()
    assert len(space.cardinalities) == 648 and space.size == 7**648
    (least, _), (most, _) = (cost(space.graph(space.architecture([space_op] * 648))) for space_op in (2, 4))
    assert least < 5_700_000 < most < 6_500_000
    assert (space.widths()[0], space.widths()[-1]) == (18, 100)


def test_a_tree_adds_what_its_leaves_return():
    torch = pytest.importorskip("torch")
    space = proxyless_tree.ProxylessTree(B=1, F=64, resolution=8)
    tree = space.module(space.sample(np.random.default_rng(0))).get_submodule("blocks.0.tree").eval()
    edges = list(tree.get_submodule("edges").children())
    x = torch.randn(1, 16, 8, 8)
    with torch.no_grad():
        leaves = [edges[leaf](edges[3 * inner](x)) for inner in range(4) for leaf in (3 * inner + 1, 3 * inner + 2)]
        torch.testing.assert_close(tree(x), torch.stack(leaves).sum(0))


@pytest.mark.parametrize(("space", "options"), [
    ("nasbench201", {"resolution": 30}), ("darts", {"layers": 0}), ("memnet", {"max_blocks": 15}), ("proxyless_tree", {"F": 60}),
])  # fmt: skip
def test_options_out_of_range_are_named(space, options):
    from neaptide.search.spaces import load_space

    (name,) = options
    with pytest.raises(SourceError, match=f"{name}={options[name]}"):
        load_space(space, **options)
