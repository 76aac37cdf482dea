"""What every search space keeps to, over all of `list_spaces()`, and facts of single spaces."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neaptide.compiler.count import count
from neaptide.compiler.errors import SourceError
from neaptide.compiler.graph import WEIGHT_ROLES
from neaptide.passes.schedule import schedule
from neaptide.search.space import Space
from neaptide.search.spaces import _CLASSES, list_spaces, load_space

# What makes networks of a space small enough to trace within a second.
SMALL: dict[str, dict] = {
    "ofa_mbv3": {"resolutions": (32, 64), "classes": 10},
    "compofa": {"resolutions": (32, 64), "classes": 10},
    "moofa": {"resolutions": (32, 64), "classes": 10},
    "proxyless_mbconv": {"resolution": 32, "classes": 10},
    "fbnetv2": {"resolutions": (32, 64), "classes": 10},
    "nasbench201": {"N": 1},
    "darts": {"channels": 4, "layers": 4, "resolution": 16},
    "memnet": {"width": 4, "max_blocks": 3, "resolution": 16},
    "proxyless_tree": {"B": 1, "F": 64, "resolution": 16},
}
# What makes a space small enough to walk; `None`: it is already.
TINY: dict[str, list[dict] | None] = {
    "nasbench201": None,
    "nasbench_macro": None,
    "ofa_mbv3": [
        {"resolutions": (32,), "depths": (1, 2), "kernels": (3, 5), "expands": (3,)},
        {"resolutions": (32, 64), "depths": (2,), "kernels": (3,), "expands": (3, 4)},
    ],
    "moofa": [{"resolutions": (32,), "depths": (1, 2), "kernels": (3,), "expands": (1, 2)}],
    "compofa": [
        {"resolutions": (32, 64), "depths": (1, 2), "kernels": (3, 5), "expands": (3, 4)},
        {"resolutions": (32, 64), "kernel": "fixed"},
    ],
}
WALKED = 400_000
SLOW = settings(max_examples=3, deadline=None, derandomize=True)
QUICK = settings(max_examples=15, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**32 - 1)


def space_called(name: str, **options) -> Any:
    module = f"neaptide.search.spaces.{_CLASSES[name][0]}"
    if find_spec(module) is None:
        pytest.skip(f"there is no {module} yet")
    return load_space(name, **options)


@pytest.fixture(params=list_spaces(), scope="module")
def space(request) -> Space:
    return space_called(request.param)


@pytest.fixture(params=list_spaces(), scope="module")
def small(request) -> Space:
    return space_called(request.param, **SMALL.get(request.param, {}))


def is_canonical(space: Space, arch) -> bool:
    in_range = len(arch.genes) == len(space.cardinalities) and all(0 <= g < c for g, c in zip(arch.genes, space.cardinalities, strict=True))
    return arch.space == space.name and in_range and space.architecture(arch.genes) == arch


# ---- genes, rows, text -----------------------------------------------------------------------------------------------------------


def test_samples_are_canonical_rows(space):
    rows = space.sample_rows(np.random.default_rng(0), 300)
    assert rows.dtype == np.int16 and rows.shape == (300, len(space.cardinalities))
    assert (rows >= 0).all() and (rows < np.asarray(space.cardinalities)).all()
    again = space.canonical_rows(rows.copy())
    assert again.dtype == np.int16 and (again == rows).all()
    assert len({tuple(r) for r in rows.tolist()}) > 1
    assert (space.sample_rows(np.random.default_rng(0), 300) == rows).all()
    assert is_canonical(space, space.sample(np.random.default_rng(1)))


def test_canonical_rows_leave_their_argument_alone(space):
    rng = np.random.default_rng(3)
    rows = rng.integers(0, space.cardinalities, (50, len(space.cardinalities)), dtype=np.int16)
    before = rows.copy()
    space.canonical_rows(rows)
    assert (rows == before).all()


@QUICK
@given(seed=SEEDS)
def test_encoding_text_and_digest_round_trip(space, seed):
    archs = space.decode(space.sample_rows(np.random.default_rng(seed), 5))
    assert space.decode(space.encode(archs)) == archs
    texts = [space.text(a) for a in archs]
    assert [space.parse(t) for t in texts] == archs
    assert len(set(texts)) == len(set(archs)) == len({a.digest for a in archs})
    assert [space.text(space.parse(t)) for t in texts] == texts
    assert all(len(a.digest) == 16 and a.digest == replace(a).digest for a in archs)


@pytest.mark.parametrize("text", ["", "nonsense", "r192", "|nor_conv_3x3~0|"])
def test_what_is_no_architecture_is_refused(space, text):
    with pytest.raises(SourceError):
        space.parse(text)


def test_genes_out_of_range_are_refused(space):
    genes = [0] * len(space.cardinalities)
    for wrong in (genes[:-1], [*genes[:-1], space.cardinalities[-1]], [-1, *genes[1:]]):
        with pytest.raises(SourceError, match="gene"):
            space.architecture(wrong)


def test_describe_makes_the_space_again(small):
    said = small.describe()
    again = load_space(said["name"], **said["options"])
    assert said["name"] == small.name and again.cardinalities == small.cardinalities and again.describe() == said
    arch = small.sample(np.random.default_rng(0))
    assert again.graph(arch) == small.graph(arch)


def test_features_are_one_row_each(space):
    rows = space.sample_rows(np.random.default_rng(5), 20)
    features = space.features(rows)
    assert features.dtype == np.float32 and features.shape[0] == 20
    different = len({tuple(r) for r in rows.tolist()})
    assert len({tuple(f) for f in features.tolist()}) == different


# ---- moves -----------------------------------------------------------------------------------------------------------------------


@settings(QUICK, max_examples=3)
@given(seed=SEEDS)
def test_neighbours_are_different_canonical_and_mutual(space, seed):
    rng = np.random.default_rng(seed)
    arch = space.sample(rng)
    around = space.neighbours(arch)
    assert around and len(set(around)) == len(around) and arch not in around
    assert space.neighbours(arch) == around
    own_moves = type(space).neighbours is not Space.neighbours
    for other in (around[i] for i in rng.permutation(len(around))[:12]):
        assert is_canonical(space, other)
        if not own_moves and sum(a != b for a, b in zip(arch.genes, other.genes, strict=True)) == 1:
            assert arch in space.neighbours(other)


@QUICK
@given(seed=SEEDS)
def test_mutations_differ_and_follow_the_generator(space, seed):
    arch = space.sample(np.random.default_rng(seed))
    for rate in (None, 0.1, 1.0):
        one, two = (space.mutate(arch, np.random.default_rng(seed), rate=rate) for _ in range(2))
        assert one == two != arch and is_canonical(space, one)


@QUICK
@given(seed=SEEDS)
def test_crossover_takes_genes_from_its_parents(space, seed):
    rng = np.random.default_rng(seed)
    a, b = space.decode(space.sample_rows(rng, 2))
    child = space.crossover(a, b, rng)
    assert is_canonical(space, child)
    assert all(g in (p, q, 0) for g, p, q in zip(child.genes, a.genes, b.genes, strict=True))
    assert space.crossover(a, a, rng) == a


# ---- size ------------------------------------------------------------------------------------------------------------------------


def walked(space: Space) -> int:
    """How many different canonical rows all gene vectors have."""
    total = int(np.prod(np.asarray(space.cardinalities, np.int64)))
    assert total <= WALKED
    index = np.unravel_index(np.arange(total), space.cardinalities)
    return len(np.unique(space.canonical_rows(np.stack(index, axis=1).astype(np.int16)), axis=0))


@pytest.mark.parametrize(("name", "options"), [(n, o) for n, variants in TINY.items() for o in variants or [{}]])
def test_size_is_what_a_walk_finds(name, options):
    space = space_called(name, **options)
    assert space.size == walked(space)
    if space.size < 100:
        assert len(list(space.enumerate())) == len(set(space.enumerate())) == space.size


def test_size_of_fbnetv2_is_what_a_walk_finds(monkeypatch):
    from neaptide.search.spaces import fbnetv2

    monkeypatch.setattr(fbnetv2, "TABLE", (((1, 1, 1), (12, 16, 4), 1, 1), ((0.75, 1.75, 0.5), (16, 20, 4), 1, 2)))
    space = fbnetv2.FBNetV2(resolutions=(32, 64))
    assert space.size == walked(space) == 2 * (2 * 9) * (2 * (8 * 3 + 1))


def test_published_sizes():
    assert space_called("ofa_mbv3").size == 25 * 7371**5
    assert space_called("moofa").size == 4 * 7371**5
    assert space_called("compofa", kernel="fixed", resolutions=(224,)).size == 243
    assert space_called("compofa", resolutions=(224,)).size == (9 + 27 + 81) ** 5
    assert space_called("proxyless_mbconv").size == 6**6 * 7**15
    assert 1e44 < space_called("fbnetv2").size < 1e45
    assert space_called("nasbench_macro").size == 6561


# ---- networks --------------------------------------------------------------------------------------------------------------------


def structure(graph) -> tuple:
    """What a graph is but for the numbering of its tables: tensors numbered as nodes first touch them."""
    tensors: dict[int, int] = {}
    storages: dict[int, int] = {}

    def seen(t):
        tensor = graph.tensors[t]
        storages.setdefault(tensor.storage, len(storages))
        return tensors.setdefault(t, len(tensors))

    inputs = [seen(t) for t in graph.inputs]
    nodes = [
        (n.op, n.scope, dict(n.attrs), [seen(t) for t in n.inputs], [seen(t) for t in n.outputs], sorted(storages[s] for s in n.writes))
        for n in graph.nodes
    ]
    table = [(x.shape, x.dtype, storages[x.storage], x.offset, x.strides, x.name) for x in (graph.tensors[t] for t in tensors)]
    held = [replace(graph.storages[s], id=0) for s in storages]
    return inputs, nodes, table, held, [seen(t) for t in graph.outputs]


def storage_multiset(graph) -> list:
    return sorted((s.role, s.nbytes, s.name) for s in graph.storages)


def parameters(graph) -> int:
    return sum(t.numel for t in graph.tensors if graph.storages[t.storage].role == "parameter" and t.name)


@SLOW
@given(seed=SEEDS)
def test_graph_is_the_trace_of_the_module(small, seed):
    torch = pytest.importorskip("torch")
    from neaptide import trace

    torch.set_num_threads(1)
    arch = small.sample(np.random.default_rng(seed))
    module = small.module(arch).eval()
    ours, traced = small.graph(arch).check(), trace(module, (torch.zeros(small.input_shape(arch)),))
    assert storage_multiset(ours) == storage_multiset(traced)
    for left, right in zip(structure(ours), structure(traced), strict=True):
        assert left == right
    a, b = count(ours), count(traced)
    assert (a.macs, a.elementwise_flops, a.unknown) == (b.macs, b.elementwise_flops, {})
    assert parameters(ours) == sum(p.numel() for p in module.parameters())
    assert schedule(ours, time_limit=5).peak == schedule(traced, time_limit=5).peak


@settings(SLOW, max_examples=1)
@given(seed=SEEDS)
def test_modules_train(small, seed):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    arch = small.sample(np.random.default_rng(seed))
    module, shape = small.module(arch), small.input_shape(arch)
    module.train()(torch.randn(2, *shape[1:])).square().mean().backward()
    missing = {name for name, p in module.named_parameters() if p.grad is None}
    assert not missing or small.name in ("nasbench201",)  # layers that lead nowhere are kept there, as the benchmark has them


def slot_of(slots, scope: str) -> int:
    """The slot that a module path belongs to."""
    owners = [i for i, s in enumerate(slots) for part in s.scope.split("|") if scope == part or scope.startswith(part + ".")]
    assert len(owners) == 1, (scope, owners)
    return owners[0]


def by_slot(space: Space, arch) -> list[list]:
    """Signatures of an architecture's nodes by slot."""
    graph, slots = space.graph(arch), space.slots()
    found: list[list] = [[] for _ in slots]
    at = 0
    for node in graph.nodes:
        i = slot_of(slots, node.scope)
        assert i >= at, f"{node.scope} runs after slot {slots[at].scope}"
        at = i
        shapes = [[(graph.tensors[t].shape, graph.tensors[t].dtype) for t in ts] for ts in (node.inputs, node.outputs)]
        found[i].append((node.op, node.scope, dict(node.attrs), shapes))
    return found


@QUICK
@given(seed=SEEDS)
def test_slots_hold_every_node_and_depend_on_their_genes_alone(small, seed):
    space = small
    slots = space.slots()
    if not slots:
        pytest.skip(f"the networks of {space.name} have no cuts")
    rng = np.random.default_rng(seed)
    arch, other = space.decode(space.sample_rows(rng, 2))
    nodes = by_slot(space, arch)
    for i in rng.permutation(len(slots))[:4]:
        genes = [a if g in slots[i].genes else b for g, (a, b) in enumerate(zip(arch.genes, other.genes, strict=True))]
        mixed = space.architecture(genes)
        assert all(mixed.genes[g] == arch.genes[g] for g in slots[i].genes)
        assert by_slot(space, mixed)[i] == nodes[i]


@QUICK
@given(seed=SEEDS)
def test_one_storage_alone_crosses_from_slot_to_slot(small, seed):
    space = small
    slots = space.slots()
    if not slots:
        pytest.skip(f"the networks of {space.name} have no cuts")
    graph = space.graph(space.sample(np.random.default_rng(seed)))
    owner = [slot_of(slots, node.scope) for node in graph.nodes]
    for at in sorted(set(owner))[1:]:
        before = {s for v, node in enumerate(graph.nodes) if owner[v] < at for s in graph.touches[node.id]}
        after = {s for v, node in enumerate(graph.nodes) if owner[v] >= at for s in graph.touches[node.id]}
        crossing = {s for s in before & after if graph.storages[s].role not in WEIGHT_ROLES}
        assert len(crossing) == 1, slots[at].scope


# ---- single spaces ---------------------------------------------------------------------------------------------------------------


def test_nasbench_macro_counts_are_the_benchmark_s(shared_dir):
    path = shared_dir / "data" / "nasbench_macro.npz"
    if not path.is_file():
        pytest.skip(f"no {path.name} in the benchmark data")
    table, space = np.load(path), space_called("nasbench_macro")
    for i in np.random.default_rng(0).permutation(space.size)[:150]:
        arch = space.architecture(table["arch"][i].tolist())
        graph = space.graph(arch)
        assert (parameters(graph), count(graph).macs) == (table["params"][i], table["flops"][i]), space.text(arch)


@pytest.mark.parametrize(("name", "key", "options"), [
    ("ofa_mbv3", "mit_ofa", {}), ("moofa", "moofa", {}), ("compofa", "compofa", {}),
    ("moofa", "imagenette_config1", {"expands": (3, 4, 6)}), ("moofa", "imagenette_config2", {"expands": (1, 1.5, 2)}),
])  # fmt: skip
def test_measured_subnets_are_in_their_space(shared_dir, name, key, options):
    from neaptide.search.spaces.ofa import Settings

    path = shared_dir / "data" / "ofa_accuracy.npz"
    if not path.is_file():
        pytest.skip(f"no {path.name} in the benchmark data")
    table, space = np.load(path), space_called(name, **options)
    given = Settings(table[f"{key}_r"], table[f"{key}_d"], table[f"{key}_ks"], table[f"{key}_e"])
    rows = space.rows(given)
    assert (space.canonical_rows(rows) == rows).all()
    back = space.settings(rows)
    there = back.kernel > 0
    assert (back.resolution == given.resolution).all() and (back.depth == given.depth).all()
    assert (back.kernel[there] == given.kernel[there]).all() and (back.expand[there] == given.expand[there]).all()
    assert (there.reshape(-1, 5, 4).sum(axis=2) == given.depth).all()


def test_settings_a_space_does_not_offer_are_named():
    from neaptide.search.spaces.ofa import Settings

    space = space_called("compofa")
    depth, kernel = np.full((1, 5), 2), np.full((1, 20), 3)
    with pytest.raises(SourceError, match="pairs with that depth, 3"):
        space.rows(Settings(np.asarray([224]), depth, kernel, np.full((1, 20), 6)))
    with pytest.raises(SourceError, match="kernel 9 is not in space ofa_mbv3: 3, 5, 7"):
        space_called("ofa_mbv3").rows(Settings(np.asarray([224]), depth, kernel * 3, np.full((1, 20), 6)))
    with pytest.raises(SourceError, match="resolution 100 is not in space moofa"):
        space_called("moofa").parse(
            space_called("ofa_mbv3", resolutions=(100,)).text(space_called("ofa_mbv3").architecture([0] * 46)).replace("e3", "e2")
        )


def test_digests_never_change():
    """Studies on disk refer to architectures by digest."""
    assert space_called("nasbench_macro").parse("01201201").digest == "e24bf2bb370882e5"
