"""What every search space keeps to, over all of `list_spaces()`, and facts of single spaces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neaptide.compiler.count import count
from neaptide.compiler.errors import SourceError
from neaptide.search.space import Space
from neaptide.search.spaces import list_spaces, load_space
from neaptide.search.spaces.nasbench201_graph import EDGES, OPERATIONS
from neaptide.testing.spaces import check_genes, check_graph, check_moves, check_slots, is_canonical, parameters

pytestmark = pytest.mark.usefixtures("one_thread")

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
SLOW = settings(max_examples=2, deadline=None, derandomize=True)
QUICK = settings(max_examples=8, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**32 - 1)


def space_called(name: str, **options) -> Any:
    return load_space(name, **options)


@pytest.fixture(params=list_spaces(), scope="module")
def space(request) -> Space:
    return space_called(request.param)


@pytest.fixture(params=list_spaces(), scope="module")
def small(request) -> Space:
    return space_called(request.param, **SMALL.get(request.param, {}))


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


@QUICK
@given(seed=SEEDS)
def test_genes_text_and_digests_round_trip(space, seed):
    check_genes(space, np.random.default_rng(seed))


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


@settings(QUICK, max_examples=5)
@given(seed=SEEDS)
def test_moves_stay_in_the_space(space, seed):
    rng = np.random.default_rng(seed)
    check_moves(space, space.sample(rng), rng)


@QUICK
@given(seed=SEEDS)
def test_mutations_follow_their_rate_and_generator(space, seed):
    arch = space.sample(np.random.default_rng(seed))
    for rate in (None, 0.1, 1.0):
        one, two = (space.mutate(arch, np.random.default_rng(seed), rate=rate) for _ in range(2))
        assert one == two != arch and is_canonical(space, one)


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


@SLOW
@given(seed=SEEDS)
def test_graph_is_the_trace_of_the_module(small, seed):
    check_graph(small, small.sample(np.random.default_rng(seed)))


@settings(SLOW, max_examples=1)
@given(seed=SEEDS)
def test_modules_train(small, seed):
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    arch = small.sample(np.random.default_rng(seed))
    module, shape = small.module(arch), small.input_shape(arch)
    module.train()(torch.randn(2, *shape[1:])).square().mean().backward()
    missing = {name for name, p in module.named_parameters() if p.grad is None}
    names = {name for name, _ in module.named_parameters()}
    assert missing == (layers_that_lead_nowhere(arch, names) if small.name == "nasbench201" else set())


def layers_that_lead_nowhere(arch, names: set[str]) -> set[str]:
    """Parameters on edges of nasbench201 into nodes that nothing reads: no output depends on them, and the benchmark keeps them."""
    used = {3}
    for (source, to), gene in sorted(zip(EDGES, arch.genes, strict=True), key=lambda edge: -edge[0][1]):
        if to in used and OPERATIONS[gene] != "none":
            used.add(source)
    nowhere = tuple(f"layers.{e}." for e, (_, to) in enumerate(EDGES) if to not in used)
    return {name for name in names if any(f".{edge}" in name for edge in nowhere)}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(genes=st.lists(st.integers(0, len(OPERATIONS) - 1), min_size=len(EDGES), max_size=len(EDGES)))
def test_layers_of_nasbench201_that_get_no_gradient_are_those_that_lead_nowhere(genes):
    import torch

    space = space_called("nasbench201", C=2, N=1, resolution=8)
    arch = space.architecture(genes)
    module = space.module(arch)
    module.train()(torch.randn(2, *space.input_shape(arch)[1:])).square().mean().backward()
    missing = {name for name, p in module.named_parameters() if p.grad is None}
    assert missing == layers_that_lead_nowhere(arch, {name for name, _ in module.named_parameters()})


@QUICK
@given(seed=SEEDS)
def test_slots_hold_every_node_and_depend_on_their_genes_alone(small, seed):
    if not small.slots():
        pytest.skip(f"the networks of {small.name} have no cuts")
    rng = np.random.default_rng(seed)
    check_slots(small, small.sample(rng), rng)


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
