"""Exported programs and fx modules in: the same graph as the recorder's, true aliasing, roles, mutations, and safe `.pt2` files."""

from __future__ import annotations

import json
import pickle
import random
import warnings
import zipfile

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from neaptide.compiler.allowed_ops import target_refusal
from neaptide.compiler.errors import FormatError, NeaptideError, TraceError
from neaptide.compiler.exported import from_exported_program, from_fx
from neaptide.compiler.graph import Graph
from neaptide.compiler.size_expressions import is_arithmetic
from neaptide.compiler.trace import trace


class Net(nn.Module):
    """A convolution, a norm, an in-place relu, a residual, a reshape and a counter that the forward pass writes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 64, 10)
        self.calls = nn.Buffer(torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        y = self.norm(self.conv(x)).relu_()
        y = y + y.sigmoid()
        return self.head(y.reshape(y.shape[0], -1)) * self.calls


@pytest.fixture(scope="module")
def net():
    return Net().eval()


@pytest.fixture(scope="module")
def program(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(net, (torch.randn(2, 3, 8, 8),))


def skeleton(graph):
    """Ops, aliasing and roles, without names."""
    nodes = [(n.op, n.inputs, n.outputs, n.writes) for n in graph.nodes]
    return nodes, [(t.shape, t.dtype, t.storage, t.offset, t.strides) for t in graph.tensors], [(s.nbytes, s.role) for s in graph.storages]


def test_an_exported_program_is_the_recorder_s_graph(net, program):
    exported, traced = from_exported_program(program), trace(net, (torch.randn(2, 3, 8, 8),))
    assert skeleton(exported) == skeleton(traced)
    assert {n.scope for n in exported.nodes} == {"", "conv", "norm", "head"}
    assert all("test_exported.py" in n.source for n in exported.nodes if not n.scope)


def test_values_are_the_program_s_weights(net, program):
    graph = from_exported_program(program)
    names = {graph.storages[graph.tensors[t].storage].name: v for t, v in graph.values.items()}
    assert torch.equal(names["conv.weight"], net.conv.weight)
    assert set(names) == {name for name, _ in (*net.named_parameters(), *net.named_buffers())}


def test_a_decomposed_program_ends_with_the_copy_into_its_buffer(program):
    graph = from_exported_program(program.run_decompositions())
    last = graph.nodes[-1]
    assert last.op == "aten.copy_.default"
    assert [graph.storages[s].name for s in last.writes] == ["calls"]
    assert len(graph.outputs) == 1


def test_dynamic_dimensions_take_the_example_s_sizes():
    class Wide(nn.Module):
        def forward(self, x):
            return torch.cat([x, x.flip(0)], 1) * x.shape[0]

    program = torch.export.export(Wide(), (torch.randn(5, 3),), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    graph = from_exported_program(program)
    assert graph.tensors[graph.inputs[0]].shape == (5, 3)
    assert graph.tensors[graph.outputs[0]].shape == (5, 6)


def test_wrapped_regions_run_and_data_dependent_branches_are_refused():
    class Quiet(nn.Module):
        def forward(self, x):
            with torch.no_grad():
                y = x * 2
            return y + 1

    graph = from_exported_program(torch.export.export(Quiet(), (torch.randn(3),)))
    assert [n.op for n in graph.nodes] == ["aten.mul.Tensor", "aten.add.Tensor"]

    class Branch(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x.sin(), (x,))

    with pytest.raises(TraceError, match="'cond' chooses what to run from data"):
        from_exported_program(torch.export.export(Branch(), (torch.randn(3),)))


def test_fx_modules_of_any_level(net):
    x = torch.randn(2, 3, 8, 8)
    high = from_fx(torch.fx.symbolic_trace(net), (x,))
    low = from_fx(make_fx(net)(x))
    assert high.tensors[high.outputs[0]].shape == low.tensors[low.outputs[0]].shape == (2, 10)
    assert {n.scope for n in high.nodes} >= {"conv", "norm", "head"}
    with pytest.raises(TraceError, match="placeholder 'x' carries no meta"):
        from_fx(torch.fx.symbolic_trace(net))
    with pytest.raises(TraceError, match=r"not Net; use neaptide\.trace"):
        from_fx(net)


def test_an_fx_module_is_left_as_it_was(net):
    module = torch.fx.symbolic_trace(net)
    before = {k: (id(v), v.clone()) for k, v in module.state_dict(keep_vars=True).items()}
    from_fx(module, (torch.randn(2, 3, 8, 8),))
    after = module.state_dict(keep_vars=True)
    assert all(id(after[k]) == i and torch.equal(after[k], v) for k, (i, v) in before.items())


# ---- .pt2 files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(program, tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(program, path)
    return path


def rewrite(path, change):
    """Copy the archive with `change(name, data) -> data or None` applied to every member; a member it adds comes last."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    root = next(iter(members)).split("/")[0]
    out = {name: change(name.split("/", 1)[1], data) for name, data in members.items()}
    extra = change("", b"") or {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (*out.items(), *((f"{root}/{k}", v) for k, v in extra.items())):
            archive.writestr(name, data)
    return path


class Boom:
    """What unpickles by running code."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle of the archive was run",))


def boom_archive():
    """A torch file whose pickle runs code."""
    import io

    buffer = io.BytesIO()
    torch.save({"w": Boom()}, buffer)
    return buffer.getvalue()


def test_a_saved_program_is_the_program(saved, program):
    graph = Graph.from_exported_program(str(saved))
    assert skeleton(graph) == skeleton(from_exported_program(program))
    assert all(torch.equal(graph.values[t], v) for t, v in from_exported_program(program).values.items())


def replaced(member, data):
    return lambda name, old: {} if name == "" else (data if name == member else old)


def added(member, data):
    return lambda name, old: {member: data} if name == "" else old


def edited(edit):
    def change(name, old):
        if name != "models/model.json":
            return {} if name == "" else old
        value = json.loads(old)
        edit(value)
        return json.dumps(value).encode()

    return change


def call_hub(value):
    value["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"


def poison_size(value):
    value["range_constraints"]["__import__('os').system('true')"] = {"min_val": 0, "max_val": 9}


def test_archives_that_could_run_code_are_refused(saved, tmp_path):
    hostile = {
        "sample inputs": (replaced("data/sample_inputs/model.pt", boom_archive()), "pickle .*sample_inputs"),
        "a library": (added("data/aotinductor/model/a.so", b"\x7fELF"), "compiled library"),
        "an opaque object": (added("data/constants/opaque_obj_0", pickle.dumps(1)), "pickled object"),
        "legacy weights": (added("data/weights/model.pt", boom_archive()), "pickle .*weights"),
        "a call target": (edited(call_hub), "calls 'torch.hub.load'"),
        "a size": (edited(poison_size), "not arithmetic"),
    }
    original = saved.read_bytes()
    for what, (change, text) in hostile.items():
        path = tmp_path / "hostile.pt2"
        path.write_bytes(original)
        with pytest.raises(FormatError, match=text):
            from_exported_program(rewrite(path, change))
            pytest.fail(f"{what} was accepted")


def test_pickled_weights_are_refused_unless_they_are_tensors(saved):
    def change(name, old):
        if name == "data/weights/model_weights_config.json":
            config = json.loads(old)
            next(iter(config["config"].values()))["use_pickle"] = True
            return json.dumps(config).encode()
        return {} if name == "" else boom_archive() if name == "data/weights/weight_0" else old

    with pytest.raises(FormatError, match=r"pickle \(data/weights/weight_0\)"):
        from_exported_program(rewrite(saved, change))


def test_damaged_files_are_one_clear_error(saved, tmp_path):
    whole = saved.read_bytes()
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 10):
        path = tmp_path / "cut.pt2"
        path.write_bytes(whole[:cut])
        with pytest.raises(FormatError, match=r"cut\.pt2"):
            from_exported_program(path)
    for path, text in ((tmp_path / "none.pt2", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(FormatError, match=text):
            from_exported_program(path)
    with pytest.raises(NeaptideError, match="not Net"):
        from_exported_program(Net())


@pytest.mark.filterwarnings("ignore")
def test_flipped_bits_and_changed_json_give_a_graph_or_one_error(tmp_path):
    program = torch.export.export(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (torch.randn(2, 4),))
    path, rng = tmp_path / "small.pt2", random.Random(0)
    torch.export.save(program, path)
    whole = path.read_bytes()

    def read():
        try:
            from_exported_program(path).check()
        except NeaptideError as error:
            assert "\n" not in str(error)

    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        read()
    for _ in range(80):

        def change(value):
            while isinstance(value, dict | list) and value:
                keys = list(value) if isinstance(value, dict) else range(len(value))
                at = rng.choice(list(keys))
                if rng.random() < 0.3 or not isinstance(value[at], dict | list) or not value[at]:
                    value[at] = rng.choice([None, 0, -1, "x", [], {}, 1e9, "__import__('os')", True])
                    return
                value = value[at]

        path.write_bytes(whole)
        rewrite(path, edited(change))
        read()


@pytest.mark.parametrize("text", ["s0", "2*s0 + 1", "Max(1, s0//2)", "Symbol('s7', positive=True, integer=True)", "Eq(Mod(s1, 8), 0)"])
def test_size_arithmetic_is_accepted(text):
    assert is_arithmetic(text)


@pytest.mark.parametrize(
    "text", ["__import__('os')", "s0.__class__", "exec('1')", "open(s0)", "[s0]", "lambda: 1", "Max(*s0)", "S('exit()')", "f'{s0}'", "s0["]
)
def test_anything_else_is_not_arithmetic(text):
    assert not is_arithmetic(text)


@pytest.mark.parametrize(
    ("target", "fine"),
    [
        ("torch.ops.aten.add.Tensor", True), ("torch.sym_max", True), ("_operator.mul", True), ("math.ceil", True),
        ("_operator.methodcaller", False), ("torch.load", False), ("torchx.hub.load", False), ("math.factorial", False),
        ("torch.ops.aten.__class__", False), ("#ext:op", False),
    ],
)  # fmt: skip
def test_call_targets(target, fine):
    assert (target_refusal(target) is None) is fine
