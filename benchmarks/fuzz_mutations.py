"""Damage to files: blind (bits, cuts, splices) and by structure (fields of a protobuf, values of a JSON document, members of a zip,
headers of an `.npy`, cells of a database, values of a table of text), everything drawn from one `random.Random`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import re
import sqlite3
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

INTS = (-1, 0, 1, 2, 3, 7, 64, 255, 4096, 65_537, 2**24, 2**31 - 1, 2**31, 2**40, 2**53, 2**61, 2**62, 2**63 - 1, -(2**31), -(2**63))
WIDE = (*INTS, 2**63, 2**64, 10**30, -(10**30))
FLOATS = (0.0, -0.0, 1e-320, 0.5, -1.5, 1e30, 1e308, -1e308, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    "x",
    "constant",
    "NaN",
    "a\nb",
    "\x1b[31m",
    "\u202e",
    "[/red]",
    "../../x",
    "/etc/passwd",
    "x" * 5000,
    "\0",
    "-1",
    "float32",
    "{}",
)


def mutated(kind: str, data: bytes, other: bytes, rng: random.Random) -> tuple[bytes, str]:
    """`data`, a file of format `kind`, damaged one to four times, and how; `other` is another file of that format, to splice from."""
    told = []
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        structured = STRUCTURED[kind] if rng.random() < 0.85 else None
        if structured is not None:
            try:
                data, how = structured(data, rng), structured.__name__.strip("_")
            except Unreadable:
                data, how = _bytes(data, other, rng), "bytes"
        else:
            data, how = _bytes(data, other, rng), "bytes"
        told.append(how)
    return data, "+".join(told)


class Unreadable(Exception):
    """Earlier damage went too deep for damage by structure."""


# ---- bytes ------------------------------------------------------------------------------------------------------------


def _bytes(data: bytes, other: bytes, rng: random.Random) -> bytes:
    if not data:
        return other[: rng.randrange(len(other) + 1)]
    at, size = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 16, 64, 512))
    way = rng.randrange(7)
    if way == 0:
        out = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        return bytes(out)
    if way == 1:
        return data[:at]
    if way == 2:
        return data[:at] + data[at : at + size] * rng.choice((2, 3, 50)) + data[at + size :]
    if way == 3:
        return data[:at] + data[at + size :]
    if way == 4:
        start = rng.randrange(len(other) + 1)
        return data[:at] + other[start : start + 8 * size] + data[at + rng.choice((0, size)) :]
    if way == 5:
        return data[:at] + rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * size + data[at + size :]
    return data[:at] + rng.randbytes(size) + data[at + size :]


# ---- protobuf ---------------------------------------------------------------------------------------------------------


def _protobuf(data: bytes, rng: random.Random) -> bytes:
    """One field anywhere in an ONNX model: another value, gone, twice, or that of a message of the same type elsewhere."""
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise Unreadable from None
    messages = list(_messages(model))
    message = rng.choice(messages)
    field = rng.choice(
        list(message.DESCRIPTOR.fields) if rng.random() < 0.2 else [f for f, _ in message.ListFields()] or list(message.DESCRIPTOR.fields)
    )
    with contextlib.suppress(ValueError, TypeError, DecodeError):
        _change(message, field, messages, rng)
    return model.SerializeToString()


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in (value,) if hasattr(value, "ListFields") else value:
                yield from _messages(part)


def _change(message: Any, field: Any, messages: list[Any], rng: random.Random) -> None:
    value: Any = getattr(message, field.name)
    many = not (type(value) in (bool, int, float, str, bytes) or hasattr(value, "ListFields"))
    if field.type == field.TYPE_MESSAGE:
        twins = [m for m in messages if m.DESCRIPTOR.name == field.message_type.name]
        if many:
            way = rng.randrange(4)
            if way == 0 and len(value):
                del value[rng.randrange(len(value))]
            elif way == 1 and len(value):
                value.add().CopyFrom(rng.choice(list(value)))
            elif way == 2 and len(value) > 1:
                items = [copy.deepcopy(v) for v in value]
                rng.shuffle(items)
                del value[:]
                value.extend(items)
            elif twins:
                value.add().CopyFrom(copy.deepcopy(rng.choice(twins)))
        elif twins and rng.random() < 0.6:
            value.CopyFrom(copy.deepcopy(rng.choice(twins)))
        else:
            message.ClearField(field.name)
        return
    new = _scalar(field, messages, rng)
    if not many:
        if rng.random() < 0.15:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, new)
    elif len(value) and rng.random() < 0.3:
        del value[rng.randrange(len(value))]
    elif len(value) and rng.random() < 0.7:
        value[rng.randrange(len(value))] = new
    else:
        value.append(new)


def _scalar(field: Any, messages: list[Any], rng: random.Random) -> Any:
    if field.type == field.TYPE_ENUM:
        return rng.choice([v.number for v in field.enum_type.values])
    if field.type == field.TYPE_STRING:
        names = [
            text for m in messages for f, v in m.ListFields() if f.type == f.TYPE_STRING for text in ([v] if isinstance(v, str) else v)
        ]
        return rng.choice(names) if names and rng.random() < 0.7 else rng.choice(TEXTS)
    if field.type == field.TYPE_BYTES:
        return rng.choice((b"", b"\xff", rng.randbytes(8), b"NOTSET", b"linear", b"add"))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return rng.choice(FLOATS)
    if field.type == field.TYPE_INT32:
        return rng.choice([i for i in INTS if -(2**31) <= i < 2**31] + list(range(1, 27)))
    if field.type == field.TYPE_UINT64:
        return rng.choice([i for i in INTS if i >= 0])
    return rng.choice(INTS)


# ---- JSON -------------------------------------------------------------------------------------------------------------


def _json(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON document: another kind, an extreme, gone, twice, or a value from elsewhere in it."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise Unreadable from None
    places = list(_places(document))
    if not places:
        return json.dumps(rng.choice((None, [], {}, 1, "x"))).encode()
    holder, key = rng.choice(places)
    way = rng.randrange(8)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif way == 2:
        source, at = rng.choice(places)
        holder[key] = copy.deepcopy(source[at])
    elif way == 3 and isinstance(holder, dict):
        holder[rng.choice((*TEXTS, *holder))] = holder.pop(key)
    else:
        holder[key] = _another(holder[key], rng)
    return json.dumps(document).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _another(value: Any, rng: random.Random) -> Any:
    """A value of mostly the same kind as `value`, and of an extreme size."""
    if rng.random() < 0.3:
        return rng.choice((None, True, [], {}, 0, 1.5, "x", [[]], {"$ref": 0}, {"$atom": ["float", "nan"]}))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((*WIDE, value + 1, value - 1, -value, value * 1000, float(value)))
    if isinstance(value, float):
        return rng.choice((*FLOATS, -value, value * 1e6))
    if isinstance(value, str):
        return rng.choice((*TEXTS, value + "x", value[1:], value.upper()))
    if isinstance(value, list):
        return rng.choice(([*value, *value], value[:-1], value[::-1], [value]))
    return rng.choice((None, [value], 3))


def _json_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines()
    if not lines:
        raise Unreadable
    at = rng.randrange(len(lines))
    way = rng.randrange(6)
    if way == 0:
        del lines[at]
    elif way == 1:
        lines.insert(at, rng.choice(lines))
    else:
        lines[at] = _json(lines[at], rng)
    return b"\n".join(lines) + b"\n"


# ---- zips -------------------------------------------------------------------------------------------------------------


def _npz(data: bytes, rng: random.Random) -> bytes:
    """A member of an `.npz`: another header, other numbers, another name, gone, twice; or a directory that lies."""
    members = _unzipped(data)
    at = rng.randrange(len(members))
    name, body = members[at]
    way = rng.randrange(9)
    if way == 0:
        del members[at]
    elif way == 1:
        members.append((rng.choice(members)[0], body))
    elif way == 2:
        members[at] = (rng.choice(members)[0], body)
    elif way == 3:
        members[at] = (name, rng.choice(members)[1])
    elif way == 4 and name == "header.npy":
        members[at] = (name, _npy_of(_json(body[_header_end(body) :], rng)))
    elif way == 5:
        return _lying(_zipped(members, rng), rng)
    elif way == 6:
        start = min(_header_end(body), len(body))
        members[at] = (name, body[:start] + _bytes(body[start:] or b"\0", body, rng))
    else:
        members[at] = (name, _npy_header(body, rng))
    return _zipped(members, rng)


def _zip_of_json(data: bytes, rng: random.Random) -> bytes:
    """A member of a zip of JSON documents and raw tensors: a `.pt2` file."""
    members = _unzipped(data)
    documents = [i for i, (_, body) in enumerate(members) if body[:1] in (b"{", b"[")]
    at = rng.choice(documents) if documents and rng.random() < 0.8 else rng.randrange(len(members))
    name, body = members[at]
    way = rng.randrange(8)
    if way == 0:
        del members[at]
    elif way == 1:
        members[at] = (rng.choice(members)[0], body)
    elif way == 2:
        members.append((name, rng.choice(members)[1]))
    elif at in documents:
        members[at] = (name, _json(body, rng))
    else:
        members[at] = (name, _bytes(body, body, rng))
    return _zipped(members, rng, zipfile.ZIP_STORED)


def _unzipped(data: bytes) -> list[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist() if info.file_size < 1 << 24]
    except Exception as error:  # whatever earlier damage makes of a zip, nothing more can be done to its members
        raise Unreadable from error
    if not members:
        raise Unreadable
    return members


def _zipped(members: list[tuple[str, bytes]], rng: random.Random, method: int | None = None) -> bytes:
    import warnings

    stream = io.BytesIO()
    chosen = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)) if method is None else method
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", chosen) as archive:
        warnings.simplefilter("ignore")  # two members of one name
        for name, body in members:
            archive.writestr(zipfile.ZipInfo(name or "x"), body, chosen)
    return stream.getvalue()


def _lying(data: bytes, rng: random.Random) -> bytes:
    """A field of one entry of the directory at the end, overwritten: flags, method, checksum, sizes, offset."""
    entries = [m.start() for m in re.finditer(b"PK\x01\x02", data)]
    if not entries:
        raise Unreadable
    at, (start, size) = rng.choice(entries), rng.choice(((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (42, 4)))
    value = rng.choice((0, 1, 8, 12, 2**16 - 1, 10**6, 2**31, 2**32 - 1)) % (1 << (8 * size))
    return data[: at + start] + value.to_bytes(size, "little") + data[at + start + size :]


def _header_end(body: bytes) -> int:
    return 10 + int.from_bytes(body[8:10], "little") if body[:6] == b"\x93NUMPY" and len(body) > 10 else 0


def _npy_header(body: bytes, rng: random.Random) -> bytes:
    end = _header_end(body)
    if not end:
        raise Unreadable
    text = body[10:end].decode("latin1").strip()
    dtypes = ("|u1", "<i8", "<f8", "<f4", ">i4", "|b1", "|O", "|S3", "<U3", "<c16", "<M8[s]", "|V4", "[('a', '<i4')]", "<f2", "|S0", "<i99")
    shapes = (
        "()",
        "(0,)",
        "(1,)",
        "(3,)",
        "(1000000, 1000000)",
        "(9223372036854775807,)",
        "(-1,)",
        "(2, 2, 2)",
        "(True,)",
        "3",
        "(10**9,)",
    )
    way = rng.randrange(5)
    if way == 0:
        text = re.sub(r"'descr': ('[^']*'|\[.*\])", f"'descr': {repr(d) if (d := rng.choice(dtypes))[0] != '[' else d}", text)
    elif way == 1:
        text = re.sub(r"'shape': \([^)]*\)", f"'shape': {rng.choice(shapes)}", text)
    elif way == 2:
        text = text.replace("False", "True")
    elif way == 3:
        text = rng.choice((text[: rng.randrange(len(text))], "{" * 3000, "__import__('os')", text + text))
    else:
        return body[:6] + bytes(rng.choice(((1, 0), (2, 0), (3, 0), (9, 9)))) + body[8:]
    if rng.random() < 0.5 and way in (0, 1):  # bytes that suit the new header, so that only its meaning is wrong
        return _npy_with(text, body[end:], rng)
    return body[:8] + _padded(text) + body[end:]


def _npy_with(text: str, numbers: bytes, rng: random.Random) -> bytes:
    import numpy as np

    try:
        header = __import__("ast").literal_eval(text)
        need = int(np.prod(header["shape"], dtype=np.float64) * np.dtype(header["descr"]).itemsize)
    except Exception:  # a header that was damaged before; it stays with the bytes that it has
        need = len(numbers)
    if not 0 <= need < 1 << 22:
        need = len(numbers)
    filled = (numbers * (need // max(1, len(numbers)) + 1))[:need] if numbers else rng.randbytes(need)
    return b"\x93NUMPY\x01\x00" + _padded(text) + filled


def _padded(text: str) -> bytes:
    raw = text.encode("latin1", "replace")
    raw += b" " * (-(len(raw) + 11) % 64) + b"\n"
    return min(len(raw), 65_535).to_bytes(2, "little") + raw


def _npy_of(raw: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + _padded(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({len(raw)},), }}") + raw


# ---- databases --------------------------------------------------------------------------------------------------------


def _sqlite(data: bytes, rng: random.Random) -> bytes:
    """A cell of another kind, a row that is gone or twice, a table or column that is, another version."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.sqlite"
        path.write_bytes(data)
        try:
            with contextlib.closing(sqlite3.connect(path)) as database, database:
                database.execute("PRAGMA ignore_check_constraints=ON")
                _cell(database, rng)
        except (sqlite3.Error, UnicodeDecodeError, OverflowError):
            raise Unreadable from None
        return path.read_bytes()


def _cell(database: sqlite3.Connection, rng: random.Random) -> None:
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")]
    filled = [t for t in tables if database.execute(f'SELECT 1 FROM "{t}" LIMIT 1').fetchone()]
    if not filled:
        raise Unreadable
    table = rng.choice(filled)
    columns = [row[1] for row in database.execute(f'PRAGMA table_info("{table}")')]
    column, rows = rng.choice(columns), database.execute(f'SELECT COUNT(*) FROM "{table}"').fetchone()[0]
    old = database.execute(f'SELECT "{column}" FROM "{table}" LIMIT 1 OFFSET {rng.randrange(rows)}').fetchone()[0]
    way = rng.randrange(12)
    if way == 0:
        database.execute(f'DROP TABLE "{table}"')
    elif way == 1:
        database.execute(f'ALTER TABLE "{table}" DROP COLUMN "{column}"')
    elif way == 2:
        database.execute(f"PRAGMA user_version = {rng.choice((0, 1, 3, 99, -1))}")
    elif way == 3:
        database.execute(f'DELETE FROM "{table}" WHERE "{column}" IS ?', (old,))
    else:
        database.execute(f'UPDATE OR IGNORE "{table}" SET "{column}" = ? WHERE "{column}" IS ?', (_cell_value(old, rng), old))


def _cell_value(old: Any, rng: random.Random) -> Any:
    if isinstance(old, str) and old[:1] in ("{", "[") and rng.random() < 0.7:
        with contextlib.suppress(Unreadable):
            return _json(old.encode(), rng).decode()
    return rng.choice((None, b"\xff\x00", *INTS, *FLOATS, *TEXTS))


# ---- text -------------------------------------------------------------------------------------------------------------


def _lines(data: bytes, rng: random.Random) -> bytes:
    """A line that is gone, twice or moved, or one value of it replaced: of TOML what follows "=", of CSV a cell."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    way = rng.randrange(8)
    if way == 0:
        del lines[at]
    elif way == 1:
        lines.insert(rng.randrange(len(lines)), lines[at])
    else:
        value = str(rng.choice((*WIDE, *FLOATS, *TEXTS))).encode("utf-8", "surrogatepass")
        if b"=" in lines[at]:
            quoted = rng.choice(
                (value, json.dumps(value.decode()).encode(), b"[]", b"{}", b"true", b'"128 XB"', b"1979-05-27", b'["a", 1]')
            )
            lines[at] = lines[at].split(b"=")[0] + b"= " + quoted
        elif lines[at].startswith(b"["):
            lines[at] = rng.choice((b"[" + value + b"]", b"[[memory]]", b"[memory.sram]", b"[]", lines[at].upper()))
        else:
            cells = lines[at].split(b",")
            cells[rng.randrange(len(cells))] = value
            lines[at] = b",".join(cells)
    return b"\n".join(lines)


STRUCTURED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "onnx": _protobuf, "pt2": _zip_of_json, "json": _json, "csv": _lines, "toml": _lines, "images": _npz, "table": _npz,
    "predictor": _npz, "costs": _sqlite, "kernels": _sqlite, "study": _sqlite, "jsonl": _json_lines,
}  # fmt: skip
