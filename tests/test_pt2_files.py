"""`.pt2` files from strangers: what torch.export writes is read, and whatever else a file may hold is one sentence and runs nothing."""

from __future__ import annotations

import inspect
import io
import json
import logging
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import exported_models
from neaptide.cli import main
from neaptide.compiler import allowed_ops
from neaptide.compiler.allowed_ops import NAMESPACES, REVIEWED, overload_of, refusal, target_refusal
from neaptide.compiler.errors import FormatError, NeaptideError, TraceError
from neaptide.compiler.exported import from_exported_program
from neaptide.compiler.graph import Atom, Graph, GraphBuilder
from neaptide.compiler.oracle import with_workspace
from neaptide.compiler.pt2_files import load_pt2
from neaptide.compiler.size_expressions import functions, is_arithmetic
from neaptide.compiler.to_fx import to_fx

BY_VALUE = frozenset(("float-by-value", "item", "masked-select", "nonzero", "slice-by-value"))
BY_BRANCH = frozenset(("cond", "map", "scan", "while-loop"))


def export(module, args, kwargs=None, dynamic=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, args, kwargs, dynamic_shapes=dynamic)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", exported_models.CASES)
def test_what_torch_export_saves_is_read(name, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    torch.export.save(export(*exported_models.CASES[name]()), tmp_path / "net.pt2")
    program = load_pt2(tmp_path / "net.pt2")
    if name in BY_VALUE | BY_BRANCH:
        with pytest.raises(TraceError) as refused:
            from_exported_program(program)
        assert "\n" not in str(refused.value)
        return
    graph = from_exported_program(program)
    graph.check()
    assert graph.outputs


# ---- operators --------------------------------------------------------------------------------------------------------


def overloads(namespace):
    """Every operator of `namespace` that torch dispatches, by name."""
    for full in torch._C._dispatch_get_all_op_names():
        if full.startswith(f"{namespace}::"):
            base, _, overload = full.removeprefix(f"{namespace}::").partition(".")
            yield f"{namespace}.{base}.{overload or 'default'}"


def test_every_operator_that_takes_a_text_is_reviewed_or_refused():
    refused, seen = set(), set()
    for name in overloads("aten"):
        op = overload_of(name)
        for argument in op._schema.arguments:
            if "str" in str(argument.type):
                key = (name.split(".")[1], argument.name)
                seen |= {key}
                if key not in REVIEWED:
                    assert refusal(op) is not None, name
                    refused |= {key[0]}
    assert seen >= REVIEWED
    assert refused == {"from_file", "_print", "_test_string_default", "_test_ambiguous_defaults"}


def test_what_computes_may_run_and_nothing_that_touches_the_world(monkeypatch):
    monkeypatch.setattr(allowed_ops, "_called_here", set())  # what models of other tests called in this process
    allowed = [n for namespace in ("aten", "prims") for n in overloads(namespace) if refusal(overload_of(n)) is None]
    assert len(allowed) > 3000
    for word in ("file", "save", "print", "cuda_", "stream", "_ptr", "autocast_set", "pin_memory"):
        assert not [n for n in allowed if word in n.split(".")[1] and "profile" not in n], word
    for namespace in sorted({n.split("::")[0] for n in torch._C._dispatch_get_all_op_names()} - NAMESPACES):
        assert all(refusal(op) for n in overloads(namespace) if (op := overload_of(n)) is not None), namespace


def test_operators_of_torchscript_alone_are_refused():
    """torch.ops reaches them too: aten.save writes a file."""
    known = torch._C._dispatch_get_all_op_names()
    names = {f"{s.name}.{s.overload_name}".rstrip(".") for s in torch._C._jit_get_all_schemas() if s.name.startswith("aten::")}
    for name in names - set(known):
        base, _, overload = name.removeprefix("aten::").partition(".")
        assert target_refusal(f"torch.ops.aten.{base}.{overload or 'default'}") is not None, name


@pytest.mark.parametrize(
    "name", ["load_library.__func__.__call__", "aten.add.__class__", "loaded_libraries.add.__call__", "aten..x", "_dir.x.y"]
)
def test_a_name_reaches_operators_alone(name):
    assert overload_of(name) is None
    with pytest.raises(TraceError, match="no operator"):
        to_fx(node_graph(name))


def test_the_user_s_own_operators_run_again_where_the_user_s_model_ran():
    with torch.library._scoped_library("strangers", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
        assert "namespace" in str(refusal(torch.ops.strangers.twice.default))
        with pytest.raises(TraceError, match=r"'strangers\.twice\.default' is of the namespace"):
            to_fx(node_graph("strangers.twice.default"))
        from neaptide import trace

        graph = trace(lambda x: torch.ops.strangers.twice(x), (torch.ones(2),))
        assert torch.equal(to_fx(graph)(torch.ones(2))[0], torch.full((2,), 2.0))


# ---- sizes ------------------------------------------------------------------------------------------------------------


def test_every_function_of_torch_s_sympy_is_known():
    from torch._export.serde import serialize

    source = inspect.getsource(serialize.GraphModuleDeserializer.deserialize)
    written = {line.split('"')[1] for line in source.splitlines() if "torch.utils._sympy.functions." in line and '"' in line}
    assert len(written) > 15
    assert written <= functions()


@pytest.mark.parametrize(
    "text",
    [
        "GreaterThan(Symbol('u0', integer=True), Integer(0))", "Mul(Float('2.5', precision=53), Symbol('zuf0'))",
        "FloatPow(Mul(Float('2.5', precision=53), Symbol('zuf0')), Float('2.0', precision=53))",
        "Pow(Symbol('s33', positive=True), Integer(2))",
        "TruncToInt(Mul(Float('1.7', precision=53), ToFloat(Symbol('s69', positive=True, integer=True))))", "Rational(1, 3)", "-s0 % 4",
    ],
)  # fmt: skip
def test_sizes_that_torch_writes(text):
    assert is_arithmetic(text)


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9", "Pow(Integer(9), Pow(Integer(9), Integer(9)))", "LShift(Integer(1), Integer(10000000000))", "1 << 10000000000",
        "Max('exit()')", "Integer('__import__(1)')", "Symbol('u99999999999')", "Symbol('u9_999_999_999')", "Float('1', precision=10**9)",
        "Float('1', precision=1000000000)", "((s0**64)**64)**64", "PowByNatural(s0, s1)", "1e999999999**9", "s0.args", "Lambda(s0, 1)",
        "Function('f')(1)", "parse_expr(s0)", "Add(1, evaluate=False)", "s0 if s0 else 1", "(s0 := 3)", "9" * 100,
        "+".join(["s0"] * 20_000),
    ],
)  # fmt: skip
def test_sizes_that_are_more_than_arithmetic(text):
    assert not is_arithmetic(text)


# ---- attacks ----------------------------------------------------------------------------------------------------------


class Canary:
    """What unpickles by making a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def torch_pickle(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def first_node(document):
    return document["graph_module"]["graph"]["nodes"][0]


def from_file(document, canary):
    node = first_node(document)
    node["target"] = "torch.ops.aten.from_file.out"
    given = [("filename", {"as_string": canary}), ("shared", {"as_bool": True}), ("size", {"as_int": 1})]
    out = {"name": "out", "arg": node["inputs"][0]["arg"], "kind": 2}
    node["inputs"] = [{"name": n, "arg": a, "kind": 1} for n, a in given] + [out]


def renamed(document, canary):
    """A node's name that is a line of the source torch would compile."""
    evil = f"x = 1; open({canary!r}, 'w'); y"
    text = json.dumps(document).replace('"linear"', json.dumps(evil))
    document.clear()
    document.update(json.loads(text))


def guards(document, canary):
    document["guards_code"] = [f"open({canary!r}, 'w')"]


def signature(document):
    return document["graph_module"]["module_call_graph"][0]["signature"]


def defaultdict_tree(document, canary):
    context = {"default_factory_module": "canary_module", "default_factory_name": "x", "dict_context": []}
    spec = {"type": "collections.defaultdict", "context": context, "children_spec": []}
    signature(document)["out_spec"] = json.dumps([1, spec])


def enum_tree(document, canary):
    context = json.dumps([{"__enum__": True, "fqn": "canary_module:x", "name": "y"}])
    signature(document)["out_spec"] = json.dumps([1, {"type": "builtins.dict", "context": context, "children_spec": []}])


def argument_name(document, canary):
    signature(document)["forward_arg_names"] = [f"x=open({canary!r}, 'w')"]


def keyword_name(document, canary):
    leaf = {"type": None, "context": None, "children_spec": []}
    positional = {"type": "builtins.tuple", "context": "null", "children_spec": []}
    named = {"type": "builtins.dict", "context": json.dumps([f"x=open({canary!r}, 'w')"]), "children_spec": [leaf]}
    signature(document)["in_spec"] = json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": [positional, named]}])


def weight_name(document, canary):
    text = json.dumps(document).replace('"0.weight"', json.dumps(f'0.w"); open({canary!r}, "w"); ("'))
    document.clear()
    document.update(json.loads(text))


def size(document, canary):
    values = document["graph_module"]["graph"]["tensor_values"]
    next(iter(values.values()))["sizes"][0] = {"as_expr": {"expr_str": f"open({canary!r}, 'w')", "hint": None}}


def range_key(document, canary):
    document["range_constraints"]["u99999999999999"] = {"min_val": 0, "max_val": 9}


def operator_argument(document, canary):
    first_node(document)["inputs"][0]["arg"] = {"as_operator": "torch.hub.load"}


def custom_object(document, canary):
    first_node(document)["inputs"][0]["arg"] = {"as_custom_obj": {"name": "x", "class_fqn": "y"}}


def huge_power(document, canary):
    node = first_node(document)
    node["target"] = "_operator.pow"
    node["inputs"] = [{"name": "", "arg": {"as_int": 9}, "kind": 1}, {"name": "", "arg": {"as_int": 10**12}, "kind": 1}]


def huge_list(document, canary):
    node = first_node(document)
    node["target"] = "_operator.mul"
    node["inputs"] = [{"name": "", "arg": {"as_ints": [0]}, "kind": 1}, {"name": "", "arg": {"as_int": 10**12}, "kind": 1}]


def target(name):
    def change(document, canary):
        first_node(document)["target"] = name

    return change


PROGRAMS = {
    "from_file": from_file, "node name": renamed, "guards": guards, "defaultdict": defaultdict_tree, "enum": enum_tree,
    "argument name": argument_name, "keyword name": keyword_name, "weight name": weight_name, "size": size, "range": range_key,
    "operator": operator_argument, "custom object": custom_object, "power": huge_power, "list": huge_list,
    **{t: target(t) for t in ("torch.hub.load", "torch.ops.aten.save.default", "torch.ops.load_library.__func__.__call__", "torch.load",
                              "torch.ops.higher_order.call_torchbind", "torch.ops.higher_order.print",
                              "torch.ops.symm_mem.get_remote_tensors.default",
                              "torch.ops.c10d.barrier.default", "torch.ops.inductor._alloc_from_pool.default", "torch.classes.load_library",
                              "_operator.methodcaller", "#ext:op")},
}  # fmt: skip
MEMBERS = {
    "sample inputs": ("data/sample_inputs/model.pt", torch_pickle),
    "raw sample inputs": ("data/sample_inputs/model.pt", pickle.dumps),
    "old weights": ("data/weights/model.pt", torch_pickle),
    "old constants": ("data/constants/model.pt", torch_pickle),
    "a pickle elsewhere": ("extra/x.pt", torch_pickle),
    "a custom object": ("data/constants/custom_obj_0", pickle.dumps),
    "an opaque object": ("data/constants/opaque_obj_0", pickle.dumps),
    "a library": ("data/aotinductor/model/a.so", pickle.dumps),
    "a library's package": ("data/aotinductor/model/model.wrapper.json", pickle.dumps),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("pt2") / "small.pt2"
    torch.export.save(export(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (torch.randn(2, 4),)), path)
    return path


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename.split("/", 1)[1]: archive.read(info) for info in archive.infolist()}


def written(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"small/{name}", data)
    return path


def attacks(small, folder, canary):
    """(name, path) of every hostile file."""
    original = members_of(small)
    for i, (name, change) in enumerate(PROGRAMS.items()):
        document = json.loads(original["models/model.json"])
        before = json.dumps(document)
        change(document, canary)
        assert json.dumps(document) != before, name
        yield name, written(folder / f"program_{i}.pt2", {**original, "models/model.json": json.dumps(document)})
    for i, (name, (member, dump)) in enumerate(MEMBERS.items()):
        yield name, written(folder / f"member_{i}.pt2", {**original, member: dump(Canary(canary))})
    config = json.loads(original["data/weights/model_weights_config.json"])
    for i, meta in enumerate(config["config"].values()):
        meta["use_pickle"] = i == 0
    pickled = {
        **original,
        "data/weights/model_weights_config.json": json.dumps(config),
        "data/weights/weight_0": torch_pickle(Canary(canary)),
    }
    yield "a pickled weight", written(folder / "weight.pt2", pickled)


COMMANDS = [("analyze",), ("schedule",), ("measure", "--target", "cortex-m4f"), ("measure", "--target", "cpu", "--trials", "0")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_runs_what_a_file_holds(command, small, tmp_path, monkeypatch, capsys):
    canary = tmp_path / "canary"
    (tmp_path / "canary_module.py").write_text(f"open({str(canary)!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("NEAPTIDE_CACHE", str(tmp_path / "cache"))
    for name, path in attacks(small, tmp_path, str(canary)):
        if name == "guards" and command[0] == "measure":
            continue  # they are left out, and the model is an honest one
        verb, *options = command
        database = ["--database", str(tmp_path / "costs.sqlite")] if verb == "measure" else []
        status = main([verb, str(path), *options, *database])
        printed = capsys.readouterr()
        assert not canary.exists(), name
        assert status == (0 if name == "guards" else 2), (name, printed.err)
        assert "bug in Neaptide" not in printed.err, name


def test_guards_are_left_out(small, tmp_path):
    canary = tmp_path / "canary"
    document = json.loads(members_of(small)["models/model.json"])
    guards(document, str(canary))
    program = load_pt2(written(tmp_path / "guards.pt2", {**members_of(small), "models/model.json": json.dumps(document)}))
    program.module()(torch.randn(2, 4))
    assert not canary.exists()


def test_files_that_grow_when_read_are_refused(small, tmp_path):
    original = members_of(small)
    with pytest.raises(FormatError, match="compressed"):
        load_pt2(written(tmp_path / "bomb.pt2", {**original, "data/weights/weight_0": bytes(1 << 24)}, zipfile.ZIP_DEFLATED))
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))
    with pytest.raises(FormatError, match="pickle"):
        load_pt2(written(tmp_path / "inner.pt2", {**original, "data/sample_inputs/model.pt": inner.getvalue()}))


@pytest.mark.parametrize("held", [b"", None])
def test_weights_that_claim_terabytes_take_none(small, tmp_path, held):
    members = members_of(small)
    config = json.loads(members["data/weights/model_weights_config.json"])
    meta = next(iter(config["config"].values()))
    meta["tensor_meta"]["sizes"] = [{"as_int": 2**40}, {"as_int": 4}]
    members["data/weights/model_weights_config.json"] = json.dumps(config).encode()
    if held is not None:
        members[f"data/weights/{meta['path_name']}"] = held
    path = written(tmp_path / "claim.pt2", members)
    if held is None:
        with pytest.raises(FormatError, match="reaches over"):
            load_pt2(path)
    else:
        assert next(iter(load_pt2(path).state_dict.values())).is_meta


WRONG = (None, 0, -1, 2**70, 0.5, "x", "", [], [[]], {}, {"config": "x"}, {"as_int": 1}, True, "\x00", "a" * 10_000)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "member", ["models/model.json", "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"]
)
def test_a_wrong_type_anywhere_is_a_graph_or_one_error(small, tmp_path, member):
    original = members_of(small)
    document = json.loads(original[member])

    def places(value, path=()):
        yield path
        if isinstance(value, dict | list):
            for key in value if isinstance(value, dict) else range(len(value)):
                yield from places(value[key], (*path, key))

    for i, path in enumerate(places(document)):
        for wrong in WRONG[i % 3 :: 3]:
            changed = json.loads(original[member])
            if path:
                at = changed
                for key in path[:-1]:
                    at = at[key]
                at[path[-1]] = wrong
            else:
                changed = wrong
            try:
                from_exported_program(written(tmp_path / "wrong.pt2", {**original, member: json.dumps(changed)})).check()
            except NeaptideError as error:
                assert "\n" not in str(error), (path, wrong)


# ---- the same in Graph JSON -------------------------------------------------------------------------------------------


def node_graph(op, args=(), kwargs=None, dtype="float32"):
    """A graph of one node `op` on one tensor of two elements, as a file would hold it."""
    builder = GraphBuilder("hostile")
    x = builder.tensor((2,), dtype, builder.storage(8, role="input"))
    y = builder.tensor((2,), dtype)
    builder.inputs.append(x)
    builder.node(op, (x,), (y,), attrs={"args": list(args), "kwargs": dict(kwargs or {})})
    builder.outputs.append(y)
    return Graph.from_json(builder.build().to_json())


@pytest.mark.parametrize("op", ["aten.from_file.default", "aten.save.default", "load_library.__func__.__call__", "aten._print.default"])
def test_a_graph_read_from_json_touches_nothing(op, tmp_path):
    canary = tmp_path / "canary"
    graph = node_graph(op, [str(canary), True, 1])
    measured = with_workspace(graph, cache_dir=tmp_path / "cache")
    assert measured.meta["kernels"]["measured"] == 0
    assert op in measured.meta["kernels"]["unmeasured"]
    with pytest.raises(TraceError, match="operator"):
        to_fx(graph)
    assert not canary.exists()


def test_the_worker_refuses_by_itself(tmp_path):
    from neaptide.compiler import oracle_worker

    canary = tmp_path / "canary"
    signature = {"op": "aten.from_file.default", "args": [str(canary), True, 1], "kwargs": {}, "tensors": [], "grad": False}
    with pytest.raises(TraceError, match="takes the text 'filename'"):
        oracle_worker.measure(signature)
    assert not canary.exists()


@pytest.mark.parametrize(
    "atom", [Atom("dtype", "load"), Atom("layout", "ops"), Atom("dtype", "hub"), Atom("device", "x"), Atom("float", "z")]
)
def test_attributes_read_back_are_values_alone(atom):
    with pytest.raises(TraceError, match="cannot be turned back"):
        to_fx(node_graph("aten.to.dtype", [atom]))


def test_an_exported_program_of_this_process_makes_no_file_either(small, tmp_path):
    program, canary = load_pt2(small), tmp_path / "canary"
    node = next(n for n in program.graph.nodes if n.op == "call_function")
    node.target, node.args, node.kwargs = torch.ops.aten.from_file.default, (str(canary), True, 1), {}
    with pytest.raises(TraceError, match=r"aten\.from_file\.default' takes the text 'filename'"):
        from_exported_program(program)
    assert not canary.exists()
