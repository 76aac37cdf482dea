"""Published networks from their block tables count as their publishers say."""

import json

import pytest

from neaptide.compiler.errors import SourceError
from neaptide.search.published import from_published, published_chain, published_counts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows(shared_dir):
    path = shared_dir / "data" / "published_models.json"
    if not path.is_file():
        pytest.skip(f"no {path.name} in the benchmark data")
    return {row["name"]: row for row in json.loads(path.read_text())["models"]}


@pytest.mark.parametrize("name", ["fbnet_a", "fbnet_c", "FBNetV2_F3", "FBNetV2_F4"])
def test_fbnets_count_to_the_last_published_digit(rows, name):
    row = rows[name]
    params, macs = published_counts(row)
    assert round(params / 1e6, 5) == round(row["params_m"], 5)
    assert macs == round(row["flops_m"] * 1e6)


def test_proxyless_and_ofa_rows_count_as_recomputed(rows):
    counted = [row for row in rows.values() if row.get("arch") and "computed_params" in row]
    assert len(counted) == 37
    for row in counted:
        assert published_counts(row) == (row["computed_params"], row["computed_macs"]), row["name"]


@pytest.mark.parametrize("name", ["fbnet_a", "FBNetV2_F3", "proxyless_mobile", "ofa-lg-8"])
def test_module_is_the_graph(rows, name):
    torch = pytest.importorskip("torch")
    from neaptide import trace

    row = rows[name]
    size = row["resolution"] or row["arch"]["input_size"]
    traced = trace(from_published(row).eval(), (torch.zeros(1, 3, size, size),))
    ours = published_chain(row).graph().check()
    assert ours.tensors == traced.tensors and ours.storages == traced.storages
    assert [(n.op, n.inputs, n.outputs, n.writes, n.scope, n.attrs) for n in ours.nodes] == [
        (n.op, n.inputs, n.outputs, n.writes, n.scope, n.attrs) for n in traced.nodes
    ]


BLOCK = {"op": "ir_k3", "out": 16, "stride": 1, "repeat": 1, "expand": 2}
STEM = {"op": "conv_k3", "out": 8, "stride": 2, "repeat": 1}


def fbnet(*blocks):
    return {"name": "mine", "arch": {"input_size": 32, "stages": [[STEM], list(blocks)]}}


@pytest.mark.parametrize("op", ["ir_k3_dil", "ir", "conv", "skip_k3", "pool", "ir_k3_g2x"])
def test_unknown_blocks_are_named(op):
    with pytest.raises(SourceError, match=f"'{op}'"):
        published_chain(fbnet({**BLOCK, "op": op}))


def test_grouped_expansions_are_refused():
    """They shuffle channels, which no block here does."""
    with pytest.raises(SourceError, match="ir_k3_g2"):
        published_chain(fbnet({**BLOCK, "op": "ir_k3_g2", "pwl_groups": 2}))


@pytest.mark.parametrize("arch", [None, {}, {"kind": "ResNet"}])
def test_rows_without_a_known_table_are_named(arch):
    with pytest.raises(SourceError, match="'mine'"):
        from_published({"name": "mine", "arch": arch})


def test_repeated_blocks_stride_once():
    chain = published_chain(fbnet({**BLOCK, "stride": 2, "repeat": 3}))
    assert [getattr(layer, "stride", None) for path, layer in chain.parts if path.startswith("stages.1")] == [2, 1, 1]
