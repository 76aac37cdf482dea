"""TOML read with the line of every key at hand, so that what is wrong in a file can be pointed at."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..compiler.errors import FormatError

_UNITS = {
    "": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4,
    "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3, "TIB": 1024**4,
    "HZ": 1, "KHZ": 1000, "MHZ": 1000**2, "GHZ": 1000**3,
    "GB/S": 10**9, "TB/S": 10**12, "GFLOP/S": 10**9, "TFLOP/S": 10**12,
}  # fmt: skip
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z/]*)")
_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")

_WORD = re.compile(r"[\w.+-]{0,100}", re.ASCII)
_FLAG = re.compile(r"-m(?:(?:cpu|arch|tune|fpu|abi|float-abi)=[\w.+-]{1,100}|thumb|arm)", re.ASCII)
_TVM_KEYS: Mapping[str, type] = {
    **dict.fromkeys(("kind", "mcpu", "mtriple", "mfloat-abi", "mabi", "arch"), str), **dict.fromkeys(("mattr", "keys"), list),
    **dict.fromkeys(("num-cores", "thread_warp_size", "max_num_threads", "max_threads_per_block", "max_shared_memory_per_block"), int),
    **dict.fromkeys(("registers_per_block", "l2_cache_size_bytes", "vector-width"), int),
}  # fmt: skip


_WANTED = {str: "text in quotes", int: "a whole number", list: "a list of texts in quotes"}


class SpecFile:
    """One TOML file: its values and, per key, the line that sets it."""

    def __init__(self, path: Path):
        self.path = path
        try:
            written = path.read_text(encoding="utf-8")
            self.document: dict[str, Any] = _parser().loads(written)
        except (OSError, UnicodeDecodeError, ValueError) as error:  # TOMLDecodeError is a ValueError and names line and column
            raise FormatError(f"{path}: {error}") from None
        self.lines = _lines(written)

    def table(self, name: tuple[str, ...], allowed: set[str] | None) -> Table:
        """The table called `name`, empty when absent. Any key outside `allowed` is an error (None: all keys are known)."""
        values: Any = self.document
        for part in name:
            values = values.get(part, {})
        table = Table(self, name, values if isinstance(values, Mapping) else {})
        if not isinstance(values, Mapping):
            raise self.error(name, f"{'.'.join(name)} is a table, written [{'.'.join(name)}]")
        for key in values:
            if allowed is not None and key not in allowed:
                near = difflib.get_close_matches(key, allowed, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(allowed))}"
                raise table.error(key, f"unknown key {'.'.join((*name, key))!r}; {hint}")
        return table

    def error(self, key: tuple[str, ...], what: str) -> FormatError:
        """`what` said of the line that sets `key`, else of the innermost table around it that the file has."""
        inside = key
        while inside and inside not in self.lines:
            inside = inside[:-1]
        return FormatError(f"{self.path}:{self.lines.get(inside, 1)}: {what}")


@dataclass(frozen=True)
class Table:
    """One table of a file, read key by key."""

    file: SpecFile
    name: tuple[str, ...]
    values: Mapping[str, Any]

    def take(self, key: str, read: Callable[[Any], Any], default: Any, *, required: bool = False) -> Any:
        """The value of `key` through `read`, or `default`; `required`: an absent key whose default is None is an error."""
        if key not in self.values:
            if required and default is None:
                raise self.error(key, f"{'.'.join((*self.name, key))!r} is missing")
            return default
        try:
            return read(self.values[key])
        except ValueError as error:
            raise self.error(key, f"{'.'.join((*self.name, key))} = {self.values[key]!r}: {error}") from None

    def error(self, key: str, what: str) -> FormatError:
        """`what` said of the line of `key`."""
        return self.file.error((*self.name, key), what)


def amount(value: Any) -> int:
    """A positive whole number of bytes, hertz, FLOP/s or bytes/s, plain or with a unit: 131072, "128 KiB", "216 MHz", "3.35 TB/s"."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError('wanted a whole number, or text with a unit such as "128 KiB" or "216 MHz"')
    if isinstance(value, str):
        match = _AMOUNT.fullmatch(value.strip())
        if match is None or match[2].upper() not in _UNITS:
            raise ValueError("wanted a number with a unit: B, KB, KiB, MB, MiB, GB, GiB, Hz, kHz, MHz, GHz, GB/s, TB/s, GFLOP/s, TFLOP/s")
        exact = float(match[1]) * _UNITS[match[2].upper()]
        if exact != round(exact):
            raise ValueError("not a whole number of units")
        value = round(exact)
    if value <= 0:
        raise ValueError("must be above zero")
    return value


def integer(value: Any) -> int:
    """A whole number, zero or more: an address."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("wanted a whole number, zero or more")
    return value


def factor(value: Any) -> float:
    """A number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError("wanted a number above zero")
    return float(value)


def text(value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise ValueError("wanted text in quotes")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """A list of strings."""
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ValueError("wanted a list of texts in quotes")
    return tuple(value)


def word(value: Any) -> str:
    """One word of letters, digits, `.`, `_`, `+` and `-`: a name that a tool is given."""
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise ValueError("wanted a name of letters, digits, '.', '_', '+' and '-'")
    return value


def machine_flags(value: Any) -> tuple[str, ...]:
    """Flags that tell a compiler its processor, and none that make it read, write or load files."""
    flags = texts(value)
    for before, flag in zip(("", *flags), flags, strict=False):
        if not (_FLAG.fullmatch(flag) or flag == "-target" or (before == "-target" and _WORD.fullmatch(flag) and flag[0] != "-")):
            raise ValueError(f"{flag!r} names no processor: -mcpu=, -march=, -mtune=, -mthumb, -mfloat-abi=, -mfpu=, -target")
    return flags


def tvm_target(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a target says to TVM: its kind and the facts of its processor. Options of the compilers behind TVM may load libraries."""
    if not isinstance(values, Mapping):
        raise ValueError("tvm is a table, written [tvm]")
    for key, value in values.items():
        if key not in _TVM_KEYS:
            raise ValueError(f"{key!r} is not one of {', '.join(sorted(_TVM_KEYS))}")
        if type(value) is not _TVM_KEYS[key]:
            raise ValueError(f"{key} = {value!r}: wanted {_WANTED[_TVM_KEYS[key]]}")
        for one in value if isinstance(value, list) else [value]:
            if type(one) is not int:
                word(one)
            elif not 0 < one < 2**31:
                raise ValueError(f"{key} = {one}: wanted a number above zero, of 31 bits at most")
    return values


def _parser() -> Any:
    return import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def _lines(written: str) -> dict[tuple[str, ...], int]:
    """Per key and table header the first line, from 1, that sets it."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(written.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _parts(header[1])
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines.setdefault((*table, *_parts(key[1])), number)
    return lines


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
