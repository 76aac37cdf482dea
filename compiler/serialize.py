"""Graphs as JSON: Neaptide's own versioned form, and the plain form `{"nodes": [{"op", "ins", "outs"}], "bufs": [bytes], "out": [buf]}`.

In the plain form every buffer is one storage and one `uint8` tensor; a node with op `input` makes its outputs graph inputs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import FormatError, GraphError
from .graph import Atom, Graph, GraphBuilder, Node, Ref, Storage, Tensor

FORMAT = "neaptide.graph"
VERSION = 1


def dumps(graph: Graph, *, indent: int | None = None) -> str:
    """`graph` as JSON text. Runtime `values` are left out."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "name": graph.name,
        "meta": encode_attrs(dict(graph.meta)),
        "storages": [[s.nbytes, s.role, s.name] for s in graph.storages],
        "tensors": [
            [t.storage, t.dtype, list(t.shape), t.offset, None if t.strides is None else list(t.strides), t.name] for t in graph.tensors
        ],
        "nodes": [_node_fields(node) for node in graph.nodes],
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
    }
    if graph.released:
        document["released"] = list(graph.released)
    return json.dumps(document, indent=indent, allow_nan=False)


def load(path: str | os.PathLike[str]) -> Graph:
    """Read a graph from a JSON file. Raises `FormatError` that names the file."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise FormatError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    try:
        return loads(text, name=Path(path).stem)
    except (FormatError, GraphError) as error:
        raise type(error)(f"{path}: {error}") from None


def loads(source: str | bytes | Mapping[str, Any], *, name: str = "graph") -> Graph:
    """Graph from JSON text or a parsed mapping, in either form; see `Graph.from_json`."""
    if isinstance(source, Mapping):
        document: Any = source
    else:
        try:
            document = json.loads(source, parse_constant=_finite, parse_float=_finite)
        except json.JSONDecodeError as error:
            raise FormatError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
        except UnicodeDecodeError as error:
            raise FormatError(f"not JSON: byte {error.start} is not UTF-8") from None
        except ValueError:
            raise FormatError("not a graph: the JSON holds a number of thousands of digits") from None
        except RecursionError:
            raise FormatError("not a graph: the JSON nests too deeply") from None
    if not isinstance(document, Mapping):
        raise FormatError(f"not a graph: the document is a {type(document).__name__}, expected an object")
    try:
        if "bufs" in document:
            return _from_plain(document, name)
        return _from_document(document, name)
    except RecursionError:
        raise FormatError("not a graph: attributes nest too deeply") from None


def _finite(text: str) -> float:
    """A number of a graph's JSON, where those that JSON lacks stand as atoms."""
    value = float(text)
    if value - value != 0:
        raise FormatError(f"not a graph: the JSON holds the number {text[:40]}, which is not finite")
    return value


# ---- Neaptide's own form ------------------------------------------------------------------------------------------------


def _node_fields(node: Node) -> dict[str, Any]:
    fields: dict[str, Any] = {"op": node.op, "in": list(node.inputs), "out": list(node.outputs)}
    if node.writes:
        fields["writes"] = list(node.writes)
    if node.attrs:
        fields["attrs"] = encode_attrs(dict(node.attrs))
    if node.scope:
        fields["scope"] = node.scope
    if node.source:
        fields["source"] = node.source
    if node.workspace:
        fields["workspace"] = node.workspace
    if node.phase != "forward":
        fields["phase"] = node.phase
    return fields


def _from_document(doc: Mapping[str, Any], name: str) -> Graph:
    if doc.get("format") != FORMAT:
        raise FormatError(f"not a graph: expected format {FORMAT!r} or the keys 'nodes', 'bufs' and 'out', got keys {_keys(doc)}")
    if doc.get("version") != VERSION:
        raise FormatError(f"graph version {doc.get('version')!r} is not one this Neaptide reads (it reads {VERSION})")
    read = _Reader()
    storages = tuple(
        Storage(
            i,
            read.count(row[0], f"storages[{i}].nbytes"),
            read.text(row[1], f"storages[{i}].role"),
            read.text(row[2], f"storages[{i}].name"),
        )
        for i, row in enumerate(read.rows(doc, "storages", 3))
    )
    tensors = tuple(
        Tensor(
            i,
            read.counts(row[2], f"tensors[{i}].shape"),
            read.text(row[1], f"tensors[{i}].dtype"),
            read.count(row[0], f"tensors[{i}].storage"),
            read.count(row[3], f"tensors[{i}].offset"),
            None if row[4] is None else read.counts(row[4], f"tensors[{i}].strides"),
            read.text(row[5], f"tensors[{i}].name"),
        )
        for i, row in enumerate(read.rows(doc, "tensors", 6))
    )
    nodes = []
    for i, row in enumerate(read.items(doc, "nodes")):
        where = f"nodes[{i}]"
        if not isinstance(row, Mapping):
            raise FormatError(f"{where} is a {type(row).__name__}, expected an object")
        attrs = decode_attrs(row.get("attrs", {}), where)
        if not isinstance(attrs, dict):
            raise FormatError(f"{where}.attrs is not an object")
        nodes.append(
            Node(
                i,
                read.text(row.get("op"), f"{where}.op"),
                read.counts(row.get("in"), f"{where}.in"),
                read.counts(row.get("out"), f"{where}.out"),
                read.counts(row.get("writes", []), f"{where}.writes"),
                attrs,
                read.text(row.get("scope", ""), f"{where}.scope"),
                read.text(row.get("source", ""), f"{where}.source"),
                read.count(row.get("workspace", 0), f"{where}.workspace"),
                read.text(row.get("phase", "forward"), f"{where}.phase"),
            )
        )
    released = tuple(
        None if r is None else read.whole(r, f"released[{i}]")
        for i, r in enumerate(read.items(doc, "released") if "released" in doc else [])
    )
    meta = decode_attrs(doc.get("meta", {}), "meta")
    if not isinstance(meta, dict):
        raise FormatError("meta is not an object")
    return Graph(
        read.text(doc.get("name", name), "name"),
        tuple(nodes),
        tensors,
        storages,
        read.counts(doc.get("inputs"), "inputs"),
        read.counts(doc.get("outputs"), "outputs"),
        meta,
        released,
    ).check()


def encode_attrs(value: Any) -> Any:
    """`Node.attrs`, or any part of them, as JSON values."""
    if isinstance(value, Ref):
        return {"$ref": value.index}
    if isinstance(value, Atom):
        return {"$atom": [value.kind, value.value]}
    if isinstance(value, (list, tuple)):
        return [encode_attrs(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): encode_attrs(item) for key, item in value.items()}
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"$atom": ["float", repr(value)]}
    if isinstance(value, bytes):
        return {"$atom": ["bytes", value.hex()]}
    return value


def decode_attrs(value: Any, where: str) -> Any:
    """The inverse of `encode_attrs`; `FormatError`s begin with `where`."""
    if isinstance(value, list):
        return [decode_attrs(item, where) for item in value]
    if isinstance(value, dict):
        if len(value) == 1 and "$ref" in value:
            if not isinstance(value["$ref"], int):
                raise FormatError(f"{where}: $ref is {value['$ref']!r}, expected the position of an input")
            return Ref(value["$ref"])
        if len(value) == 1 and "$atom" in value:
            pair = value["$atom"]
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair)):
                raise FormatError(f"{where}: $atom is {pair!r}, expected [kind, value]")
            return Atom(pair[0], pair[1])
        return {key: decode_attrs(item, where) for key, item in value.items()}
    return value


# ---- the plain form -----------------------------------------------------------------------------------------------------


def _from_plain(doc: Mapping[str, Any], name: str) -> Graph:
    read = _Reader()
    build = GraphBuilder(read.text(doc.get("name", name), "name"))
    sizes = [read.count(size, f"bufs[{i}]") for i, size in enumerate(read.items(doc, "bufs"))]
    rows = read.items(doc, "nodes")
    given: set[int] = set()
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise FormatError(f"nodes[{i}] is a {type(row).__name__}, expected an object")
        if row.get("op") == "input":
            given.update(read.counts(row.get("outs"), f"nodes[{i}].outs"))
    for i, size in enumerate(sizes):
        build.tensor((size,), "uint8", role="input" if i in given else "activation", name=f"b{i}")

    def buffers(value: Any, where: str) -> tuple[int, ...]:
        ids = read.counts(value, where)
        for b in ids:
            if b >= len(sizes):
                raise FormatError(f"{where} names buffer {b}; there are {len(sizes)}")
        return ids

    for i, row in enumerate(rows):
        op = read.text(row.get("op"), f"nodes[{i}].op")
        outs = buffers(row.get("outs"), f"nodes[{i}].outs")
        if op == "input":
            build.inputs.extend(outs)
        else:
            build.node(op, buffers(row.get("ins"), f"nodes[{i}].ins"), outs)
    build.outputs.extend(buffers(doc.get("out"), "out"))
    build.meta["frontend"] = "plain"
    return build.build()


# ---- reading without trust ----------------------------------------------------------------------------------------------


class _Reader:
    """Typed reads that name the place when something else is there."""

    def items(self, doc: Mapping[str, Any], key: str) -> list[Any]:
        value = doc.get(key)
        if not isinstance(value, list):
            raise FormatError(f"{key!r} is {_kind(value)}, expected a list")
        return value

    def rows(self, doc: Mapping[str, Any], key: str, width: int) -> list[list[Any]]:
        rows = self.items(doc, key)
        for i, row in enumerate(rows):
            if not isinstance(row, list) or len(row) != width:
                raise FormatError(f"{key}[{i}] is {_kind(row)}, expected a list of {width}")
        return rows

    def whole(self, value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise FormatError(f"{where} is {_kind(value)}, expected a whole number")
        if abs(value) >= 2**62:
            raise FormatError(f"{where} is {value}, beyond the 62 bits that sizes may have")
        return value

    def count(self, value: Any, where: str) -> int:
        number = self.whole(value, where)
        if number < 0:
            raise FormatError(f"{where} is {number}, expected zero or more")
        return number

    def counts(self, value: Any, where: str) -> tuple[int, ...]:
        if not isinstance(value, list):
            raise FormatError(f"{where} is {_kind(value)}, expected a list of whole numbers")
        return tuple(self.count(item, where) for item in value)

    def text(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise FormatError(f"{where} is {_kind(value)}, expected text")
        return value


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    return f"{value!r:.40}" if isinstance(value, (bool, int, float, str)) else f"a {type(value).__name__}"


def _keys(doc: Mapping[str, Any]) -> str:
    return ", ".join(sorted(repr(str(k))[1:-1] for k in doc)[:8]) or "none"
