"""Rows of the cost database, and the one reader of their values: what a file says is checked here, whoever wrote it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

UNITS = ("instructions", "seconds")
Unit = Literal["instructions", "seconds"]
TEXT = 1 << 16  # characters of a signature, target or toolchain
TRIALS = 1 << 31
LATEST = 253_402_300_799.0  # the last second of the year 9999
_EXACT = 1 << 53


@dataclass(frozen=True, slots=True)
class OperatorRow:
    """One operator measured alone. `value` in `unit`; `spread`: relative half range of its repetitions; `bytes`: workspace beside
    inputs and outputs; `features`: numbers a predictor learns from (`op` names the kind); `extra`: anything a backend wants back, such
    as its schedule. `created`: seconds since 1970.
    """

    signature: str
    target: str
    toolchain: str
    value: float
    unit: Unit = "instructions"
    spread: float | None = None
    bytes: int = 0
    features: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """One network measured whole. `operators`: how often each operator signature occurs in it."""

    signature: str
    target: str
    toolchain: str
    value: float
    operators: Mapping[str, int]
    unit: Unit = "instructions"
    spread: float | None = None
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    created: float = 0.0


Row = OperatorRow | NetworkRow
TABLES: Mapping[type[Row], str] = MappingProxyType({OperatorRow: "operators", NetworkRow: "networks"})


def checked_row(kind: type[Row], values: Mapping[str, Any]) -> Row:
    """The row of `kind` that `values` describe; those absent are as by default.

    Raises `ValueError` naming the first value that is absent, unknown, of another type, no number or out of range.
    """
    known = {f.name: f for f in fields(kind)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"unknown key {_brief(name)}")
        if not _CHECKS[name](value):
            said = f"it costs {_brief(value)}" if name == "value" else f"{name} is {_brief(value)}"
            raise ValueError(said)
    for name, f in known.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{name!r} is missing")
    if "trials" in values.get("extra", {}) and not _whole(values["extra"]["trials"], TRIALS):
        raise ValueError(f"extra.trials is {_brief(values['extra']['trials'])}")
    return kind(**values)


def _number(value: Any, high: float = math.inf) -> bool:
    """Finite, not negative, and exact enough to be added up."""
    return type(value) in (int, float) and 0 <= value <= high and value < 1e300


def _whole(value: Any, high: int = _EXACT) -> bool:
    return type(value) is int and 0 <= value <= high


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= TEXT and not any("\ud800" <= c <= "\udfff" for c in value)


def _feature(name: Any, value: Any) -> bool:
    numeric = type(value) in (int, float) and abs(value) < 1e300
    return _text(name) and (numeric or isinstance(value, bool) or _text(value))


_CHECKS: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "signature": _text,
        "target": _text,
        "toolchain": _text,
        "value": _number,
        "unit": lambda value: isinstance(value, str) and value in UNITS,
        "spread": lambda value: value is None or _number(value),
        "bytes": _whole,
        "features": lambda value: isinstance(value, Mapping) and all(_feature(*item) for item in value.items()),
        "operators": lambda value: isinstance(value, Mapping) and all(_text(k) and _whole(n) for k, n in value.items()),
        "extra": lambda value: isinstance(value, Mapping) and all(isinstance(k, str) for k in value),
        "created": lambda value: _number(value, LATEST),
    }
)


def _brief(value: Any) -> str:
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of too many digits to be written
        return "too large to be shown"
    return text if len(text) <= 80 else f"{text[:80]}..."
