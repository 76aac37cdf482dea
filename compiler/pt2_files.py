"""`.pt2` files, read safely: everything in the archive that could run code is refused before torch opens it.

`torch.export.load` unpickles some members, evaluates the text of symbolic sizes, resolves call targets by attribute path and loads
compiled libraries. A file from a stranger is read here only if its pickles hold nothing but tensors and containers (torch's
weights-only unpickler accepts them), its size expressions are arithmetic, its targets are operators, and it holds no libraries.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .errors import FormatError

SAFER = "Re-export the model with torch.export.save from tensors alone, or load it yourself if you trust it and pass the ExportedProgram"
FUNCTIONS = frozenset(
    (
        "Abs", "Add", "And", "CeilToInt", "CleanDiv", "Eq", "FloatPow", "FloatTrueDiv", "FloorDiv", "FloorToInt", "Ge", "Gt", "Identity",
        "IntTrueDiv", "Integer", "IsNonOverlappingAndDenseIndicator", "Le", "Lt", "Max", "Min", "Mod", "ModularIndexing", "Mul", "Ne",
        "Not", "Or", "Pow", "PowByNatural", "PythonMod", "Rational", "RoundDecimal", "RoundToInt", "Symbol", "ToFloat", "TruncToFloat",
        "TruncToInt", "Where", "Xor", "ceiling", "floor",
    )
)  # fmt: skip
PYTHON_OPERATORS = frozenset(
    ("add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "index", "invert", "le", "lshift", "lt", "mod", "mul", "ne", "neg", "not_",
     "or_", "pos", "pow", "rshift", "sub", "truediv", "xor")
)  # fmt: skip
MATH = frozenset(("ceil", "floor", "trunc", "sqrt", "pow", "exp", "log", "log2", "cos", "sin", "tan"))


def load_pt2(path: str | os.PathLike[str]) -> torch.export.ExportedProgram:
    """The program in the `.pt2` file at `path`. Raises `FormatError` when it is missing, damaged, or could run code."""
    path = Path(path)
    label = f"{path.name!r}"
    if not path.is_file():
        raise FormatError(f"exported program {str(path)!r} {'is a folder' if path.is_dir() else 'does not exist'}")
    _check_members(path, label)
    from torch.export.pt2_archive._package import load_pt2 as torch_load

    try:
        programs = torch_load(str(path)).exported_programs
    except Exception as error:  # torch's reader has no error type of its own
        raise FormatError(
            f"{label} is not an exported program that torch {torch.__version__} reads: {' '.join(str(error).split())}"
        ) from error
    if len(programs) != 1:
        raise FormatError(f"{label} holds {len(programs)} programs; save one program a file")
    return next(iter(programs.values()))


def _check_members(path: Path, label: str) -> None:
    """Raise `FormatError` unless every member of the archive is harmless."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist()]
            if len({name.lower() for name in names}) != len(names):
                raise FormatError(f"{label} names a member twice, so two readers may see different contents. {SAFER}")
            roots = {name.split("/", 1)[0] for name in names}
            if len(roots) != 1 or not any("/models/" in name and name.endswith(".json") for name in names):
                raise FormatError(f"{label} is not a .pt2 archive of this torch: it has no single folder with models/*.json. {SAFER}")
            for name in names:
                _check_member(archive, name, name.split("/", 1)[1] if "/" in name else name, label)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError) as error:
        raise FormatError(f"{label} is not a .pt2 archive or is cut short: {error}") from error


def _check_member(archive: zipfile.ZipFile, full: str, name: str, label: str) -> None:
    if name.startswith(("data/aotinductor/", "data/executorch/")) or name.endswith((".so", ".dll", ".dylib")):
        raise FormatError(f"{label} holds a compiled library ({name}), which loading would run. {SAFER}")
    if re.match(r"data/constants/(custom_obj|opaque_obj)", name):
        raise FormatError(f"{label} holds a pickled object ({name}), which loading would run. {SAFER}")
    if name.endswith(".pt"):
        _check_pickle(archive.read(full), name, label)
    elif name.startswith("models/"):
        for key, value in _strings(_parse(archive.read(full), name, label)):
            _check_text(key, value, name, label)
    elif name.endswith(".json") and name.startswith(("data/weights/", "data/constants/")):
        folder = full.rsplit("/", 1)[0]
        for entry in (_parse(archive.read(full), name, label).get("config") or {}).values():
            if not isinstance(entry, dict) or not isinstance(entry.get("path_name"), str):
                raise FormatError(f"{label}: {name} does not list tensors")
            if re.match(r"(custom_obj|opaque_obj)", entry["path_name"]):
                raise FormatError(f"{label} holds a pickled object ({entry['path_name']}), which loading would run. {SAFER}")
            if entry.get("use_pickle"):
                try:
                    data = archive.read(f"{folder}/{entry['path_name']}")
                except KeyError:
                    raise FormatError(f"{label}: {name} names {entry['path_name']!r}, which the archive does not hold") from None
                _check_pickle(data, entry["path_name"], label)


def _parse(data: bytes, name: str, label: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{label}: {name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{label}: {name} is not a JSON object")
    return value


def _check_pickle(data: bytes, name: str, label: str) -> None:
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # whatever the restricted unpickler dislikes, torch would then unpickle without restriction
        raise FormatError(f"{label} holds a pickle ({name}) with more than tensors in it, which loading would run. {SAFER}") from error


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, dict):
        for k, item in value.items():
            if key == "range_constraints":
                yield "expr_str", k
            yield from _strings(item, k)


def _check_text(key: str, value: str, name: str, label: str) -> None:
    if key == "target" and not _is_operator(value):
        raise FormatError(f"{label}: {name} calls {value!r}, which is no operator. {SAFER}")
    if key == "expr_str" and not _is_arithmetic(value):
        raise FormatError(f"{label}: {name} holds the size expression {value!r}, which is not arithmetic. {SAFER}")


def _is_operator(target: str) -> bool:
    """Whether a serialized call target (or the name of a weight, which stands under the same key) can do nothing but compute."""
    root, _, rest = target.partition(".")
    if root.startswith("_operator"):
        return root == "_operator" and rest in PYTHON_OPERATORS
    if root.startswith("math"):
        return root == "math" and rest in MATH
    if root.startswith("torch"):
        return re.fullmatch(r"torch\.(ops\.\w+\.\w+(\.\w+)?|sym_\w+|_sym_\w+)", target) is not None and "__" not in target
    return not target.startswith("#")


def _is_arithmetic(text: str) -> bool:
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    callees = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return all(_is_harmless(node, id(node) in callees) for node in ast.walk(tree))


def _is_harmless(node: ast.AST, called: bool) -> bool:
    """Whether one node of a size expression is arithmetic; `called`: it is the function of a call."""
    if isinstance(node, ast.Call):
        named = isinstance(node.func, ast.Name) and node.func.id == "Symbol"
        return isinstance(node.func, ast.Name) and (named or not node.keywords)
    if isinstance(node, ast.Name):
        return node.id in FUNCTIONS if called else re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,40}", node.id) is not None and "__" not in node.id
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (int, float, bool)) or (
            isinstance(node.value, str) and re.fullmatch(r"\w{1,40}", node.value) is not None
        )
    structure = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.keyword, ast.Load)
    return isinstance(node, (*structure, ast.operator, ast.unaryop, ast.cmpop, ast.boolop))
