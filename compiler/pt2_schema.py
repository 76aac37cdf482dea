"""The JSON of a `.pt2` file, checked against torch's own schema before torch reads it: types everywhere, and every text by its place.

torch turns a program into Python source: names of nodes and arguments become names of variables, so each must be one. Call targets
must be operators that only compute, sizes arithmetic, and the trees of arguments made of plain containers: torch imports the module
that the tree of a `defaultdict` or an enum names. What Neaptide does not need is left out: torch would run the guards.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from torch._export.serde import schema

from .allowed_ops import PYTHON_OPERATORS, target_refusal
from .errors import FormatError
from .pt2_archive import SAFER
from .size_expressions import is_arithmetic, is_symbol

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,1000}")
PATH = re.compile(r"[^\x00-\x1f\x7f-\x9f\"'\\\u2028\u2029]{0,2000}")  # of a weight: torch writes it between quotes
PAYLOAD = re.compile(r"[A-Za-z0-9_.-]{1,200}")
TREES = frozenset(
    ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", "collections.deque", "torch.Size",
     "torch.fx.immutable_collections.immutable_list", "torch.fx.immutable_collections.immutable_dict")
)  # fmt: skip
KEPT_METADATA = ("stack_trace", "nn_module_stack")
LARGEST = 2**63
NODES_DEEP = 64
SMALL_POWER = 64


def program_of(document: Mapping[str, Any], label: str, member: str) -> schema.ExportedProgram:
    """`document`, the JSON of a program, as torch's dataclass. Raises `FormatError` naming the place that is not as it should be."""
    checker = _Checker(label, member)
    checker.check(schema.ExportedProgram, document, "program")
    return checker.built(schema.ExportedProgram, _reduced(document))


def payload_of(document: Mapping[str, Any], label: str, member: str) -> dict[str, schema.PayloadMeta]:
    """`document`, the list of a program's weights or constants, by their names. Raises `FormatError` as `program_of` does."""
    checker = _Checker(label, member)
    checker.check(schema.PayloadConfig, document, "payload")
    return checker.built(schema.PayloadConfig, document).config


def _reduced(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document without guards, which torch would compile, and without metadata but for places in the source."""

    def without(value: Any) -> Any:
        if isinstance(value, list):
            return [without(item) for item in value]
        if not isinstance(value, dict):
            return value
        out = {k: without(v) for k, v in value.items()}
        if "metadata" in value and isinstance(value["metadata"], dict):
            kept = {k: v for k, v in value["metadata"].items() if k in KEPT_METADATA}
            out["metadata"] = (
                kept if _is_module_stack(kept.get("nn_module_stack", "")) else {k: kept[k] for k in kept if k == "stack_trace"}
            )
        return out

    return {**without(document), "guards_code": []}


def _is_module_stack(text: str) -> bool:
    """Whether torch can take a stack of modules apart: entries of a key, a path and a type."""
    return not text or all(re.fullmatch(r"[^,]*,[^,]*,.*", entry, re.DOTALL) for entry in text.split(";"))


class _Checker:
    """Walks JSON along the type hints of torch's dataclasses."""

    def __init__(self, label: str, member: str):
        self.label, self.member = label, member
        self.graphs = 0

    def wrong(self, where: str, what: str) -> FormatError:
        return FormatError(f"{self.label}: {self.member} holds {where[:200]} {what}. {SAFER}")

    def built(self, cls: type, document: Mapping[str, Any]) -> Any:
        """The dataclass of a checked document."""
        from torch._export.serde.serialize import _dict_to_dataclass

        try:
            return _dict_to_dataclass(cls, document)
        except Exception as error:  # torch's reader has no error type of its own
            raise self.wrong(cls.__name__, f"that torch does not read: {' '.join(str(error).split())[:300]}") from error

    def check(self, hint: Any, value: Any, where: str) -> None:
        hint = _resolved(hint)
        origin, given = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            if value is not None:
                self.check(next(a for a in given if a is not type(None)), value, where)
        elif origin is list:
            for i, item in enumerate(self.typed(list, value, where)):
                self.check(given[0], item, f"{where}[{i}]")
        elif origin is dict:
            for key, item in self.typed(dict, value, where).items():
                self.text(where, "", key)
                self.check(given[1], item, f"{where}.{key}")
        elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
            self.record(hint, self.typed(dict, value, where), where)
        elif isinstance(hint, type) and issubclass(hint, enum.IntEnum):
            if isinstance(value, bool) or value not in [int(m) for m in hint]:
                raise self.wrong(where, f"= {str(value)[:60]!r}, which is no {hint.__name__}")
        elif hint is float and isinstance(value, str):
            if value not in ("Infinity", "-Infinity", "NaN"):
                raise self.wrong(where, f"= {value[:60]!r}, which is no number")
        elif not (hint is float and type(value) is int):
            self.typed(hint, value, where)

    def typed(self, kind: Any, value: Any, where: str) -> Any:
        if type(value) is not kind:
            raise self.wrong(where, f"of type {type(value).__name__}, where a {kind.__name__} belongs")
        if kind is int and abs(value) > LARGEST:
            raise self.wrong(where, "beyond 64 bits")
        return value

    def record(self, cls: Any, value: dict[str, Any], where: str) -> None:
        """One dataclass, or the one field of a union."""
        union = issubclass(cls, vars(schema)["_Union"])
        hints = _hints(cls)
        if union and (len(value) != 1 or next(iter(value)) not in hints):
            raise self.wrong(where, f"with the fields {sorted(map(str, value))[:5]}, where one of a {cls.__name__} belongs")
        if cls is schema.Graph:
            self.graphs += 1
            if self.graphs > NODES_DEEP * 64 or where.count(".graph") > NODES_DEEP:
                raise self.wrong(where, "with too many graphs inside graphs")
        for field in dataclasses.fields(cls):
            place = f"{where}.{field.name}"
            if field.name in value:
                self.check(hints[field.name], value[field.name], place)
                if isinstance(value[field.name], str):
                    self.text(place, cls.__name__, value[field.name])
                elif field.name in ("forward_arg_names", "field_names"):
                    for name in value[field.name] or ():
                        self.named(NAME, name, place)
            elif not union and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise self.wrong(where, f"without {field.name!r}")
        if cls is schema.CustomObjArgument or (cls is schema.Argument and "as_custom_obj" in value):
            raise self.wrong(where, "which is a pickled object: loading it would run it")
        if cls is schema.Node:
            self.call(value, where)
        elif cls is schema.ModuleCallSignature:
            _check_tree(value["in_spec"], self, f"{where}.in_spec", keywords=True)
            _check_tree(value["out_spec"], self, f"{where}.out_spec")

    def text(self, where: str, owner: str, value: str) -> None:
        """One text by the place where it stands; the keys of mappings have no `owner`."""
        field = where.rpartition(".")[2]
        if field in ("target", "as_operator"):
            why = target_refusal(value)
            if why is not None:
                raise FormatError(f"{self.label}: {self.member} calls {value[:200]!r}, which {why}. {SAFER}")
        elif field in ("expr_str", "range_constraints"):
            numbered = field == "range_constraints" and value.startswith(("u", "zuf"))  # torch counts up to such a symbol's number
            if not (is_symbol(value) or (is_arithmetic(value) and not numbered)):
                raise FormatError(
                    f"{self.label}: {self.member} holds the size expression {value[:200]!r}, which is not arithmetic. {SAFER}"
                )
        elif field == "path_name":
            self.named(PAYLOAD, value, where)
        elif field.endswith(("_name", "_values")) or field == "name":
            path = field.endswith("_name") and field not in ("as_name",)
            if value or field != "name" or owner not in ("NamedArgument", "Node"):
                self.named(PATH if path else NAME, value, where)

    def named(self, pattern: re.Pattern[str], value: str, where: str) -> None:
        if not pattern.fullmatch(value):
            raise self.wrong(where, f"= {value[:100]!r}, which is no name")

    def call(self, node: Mapping[str, Any], where: str) -> None:
        """Python's own operators work on numbers alone: on lists, or to great powers, they take any memory."""
        root, _, name = node["target"].partition(".")
        if root not in ("_operator", "math"):
            return
        kinds = [next(iter(given["arg"])) for given in node["inputs"]]
        plain = {"as_int", "as_float", "as_bool", "as_sym_int", "as_sym_float", "as_sym_bool"}
        if name != "getitem" and not plain.issuperset(kinds):
            raise self.wrong(where, f"= {node['target']} of {', '.join(kinds)[:100]}, where numbers belong")
        if root == "_operator" and name in PYTHON_OPERATORS & {"pow", "lshift"} and len(kinds) == 2:
            power = next(iter(node["inputs"][1]["arg"].values()))
            if not isinstance(power, (int, float)) or not abs(power) <= SMALL_POWER:
                raise self.wrong(where, f"= {node['target']} by more than {SMALL_POWER} or by what is not known")


def _resolved(hint: Any) -> Any:
    """A hint without its annotations and forward references."""
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            hint = typing.get_args(hint)[0]
        elif isinstance(hint, typing.ForwardRef):
            hint = hint.__forward_arg__
        elif isinstance(hint, str):
            hint = getattr(schema, hint)
        else:
            return hint


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, globalns=dict(vars(schema)))


def _check_tree(text: str, checker: _Checker, where: str, *, keywords: bool = False) -> None:
    """Raise unless `text` is the tree of plain containers; `keywords`: it is that of (arguments, keyword arguments)."""
    try:
        protocol, tree = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise checker.wrong(where, "that is no tree of arguments") from None
    if protocol != 1:
        raise checker.wrong(where, "of an unknown protocol")
    _check_branch(tree, checker, where)
    if keywords and tree["type"] == "builtins.tuple" and len(tree["children_spec"]) == 2:
        named = tree["children_spec"][1]
        if named["type"] == "builtins.dict":
            for key in json.loads(named["context"]):
                checker.named(NAME, key if isinstance(key, str) else "", where)


def _check_branch(tree: Any, checker: _Checker, where: str) -> None:
    if not isinstance(tree, dict) or set(tree) != {"type", "context", "children_spec"} or not isinstance(tree["children_spec"], list):
        raise checker.wrong(where, "that is no tree of arguments")
    kind, context = tree["type"], tree["context"]
    if kind is not None:
        if not isinstance(kind, str) or not (kind in TREES or kind == "collections.namedtuple" or _is_registered(kind)):
            raise checker.wrong(where, f"with a container {str(kind)[:100]!r} that this process does not know")
        if not isinstance(context, str) or "__enum__" in context or "\\u" in context:
            raise checker.wrong(where, "with a container whose keys are no plain ones")
    for child in tree["children_spec"]:
        _check_branch(child, checker, where)


def _is_registered(kind: str) -> bool:
    """Whether a container of the user's own is known here by a name, and its keys are read as JSON."""
    from torch.utils import _pytree as pytree

    cls = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(kind)
    return cls is not None and kind != "collections.defaultdict" and pytree.SUPPORTED_SERIALIZED_TYPES[cls].from_dumpable_context is None
