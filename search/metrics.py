"""The numbers that a search may optimise or limit: what each counts, its unit, and which way is better.

What the oracle prices depends on the architecture alone; scores and accuracies come from an evaluator.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ..compiler.errors import SourceError

Unit = Literal["bytes", "count", "seconds", "score"]

# KB, MB and GB are powers of 1000 and KiB, MiB and GiB powers of 1024, as in every budget of the command line.
UNITS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "bytes": {
            "": 1, "b": 1,
            "k": 1000, "kb": 1000, "m": 1000**2, "mb": 1000**2, "g": 1000**3, "gb": 1000**3,
            "ki": 1024, "kib": 1024, "mi": 1024**2, "mib": 1024**2, "gi": 1024**3, "gib": 1024**3,
        },
        "count": {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9},
        "seconds": {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0},
        "score": {"": 1.0, "%": 0.01},
    }
)  # fmt: skip
EXAMPLES: Mapping[str, str] = MappingProxyType({"bytes": "320KiB", "count": "500k", "seconds": "5ms", "score": "0.9"})
_AMOUNT = re.compile(r"\s*(\d[\d_,]*(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)\s*([A-Za-zµ%]*)\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that architectures are compared by. `priced`: the oracle knows it without training or scoring anything."""

    name: str
    unit: Unit
    maximize: bool
    priced: bool
    title: str


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        m.name: m
        for m in (
            Metric("accuracy", "score", True, False, "validation accuracy"),
            Metric("naswot", "score", True, False, "NASWOT score"),
            Metric("synflow", "score", True, False, "SynFlow score"),
            Metric("grad_norm", "score", True, False, "gradient norm"),
            Metric("params", "count", False, True, "parameters"),
            Metric("macs", "count", False, True, "multiply-accumulates"),
            Metric("flops", "count", False, True, "FLOPs"),
            Metric("weight_bytes", "bytes", False, True, "weights"),
            Metric("flash", "bytes", False, True, "flash"),
            Metric("peak", "bytes", False, True, "planned peak"),
            Metric("arena", "bytes", False, True, "arena"),
            Metric("latency", "seconds", False, True, "latency"),
            Metric("instructions", "count", False, True, "instructions"),
        )
    }
)
PRICED = tuple(m.name for m in METRICS.values() if m.priced)


def metric(name: str) -> Metric:
    """The metric called `name`. Raises `SourceError` with the nearest name."""
    key = name.strip().lower().replace("-", "_")
    if key not in METRICS:
        near = difflib.get_close_matches(key, METRICS, n=1)
        raise SourceError(f"there is no metric {name!r}: " + (f"did you mean {near[0]!r}?" if near else f"one of {', '.join(METRICS)}"))
    return METRICS[key]


def parse_amount(text: str, unit: Unit) -> float:
    """`text` as bytes, a count, seconds or a score: `320KiB`, `500k`, `10M`, `5ms`, `0.9`. Raises `ValueError` saying what is allowed."""
    match = _AMOUNT.fullmatch(text)
    scale = UNITS[unit].get(match[2].lower()) if match else None
    if match is None or scale is None:
        units = ", ".join(u for u in UNITS[unit] if u)
        raise ValueError(f"wanted a number, or one with a unit out of {units}, such as {EXAMPLES[unit]}")
    number = float(match[1].replace(",", "").replace("_", ""))
    value = number * scale
    if unit in ("bytes", "count"):
        value = float(int(value + 1e-9))
    if value <= 0:
        raise ValueError(f"must be above zero, such as {EXAMPLES[unit]}")
    return value


def format_amount(value: float, unit: Unit) -> str:
    """`value` in full: `327,680 B`, `1,234`, `5.2 ms`."""
    if unit == "bytes":
        return f"{value:,.0f} B"
    if unit == "count":
        return f"{value:,.0f}"
    if unit == "seconds":
        return f"{value:.4g} s" if value >= 1 else f"{value * 1e3:.4g} ms" if value >= 1e-3 else f"{value * 1e6:.4g} us"
    return f"{value:.4g}"
