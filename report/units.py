"""Numbers as people read them: bytes, counts, shares, shapes; and budgets as people write them.

KB, MB and GB are powers of 1000, KiB, MiB and GiB powers of 1024, in what is read and in what is written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..compiler.errors import SourceError

_UNITS = {
    "": 1, "b": 1,
    "k": 1000, "kb": 1000, "m": 1000**2, "mb": 1000**2, "g": 1000**3, "gb": 1000**3, "t": 1000**4, "tb": 1000**4,
    "ki": 1024, "kib": 1024, "mi": 1024**2, "mib": 1024**2, "gi": 1024**3, "gib": 1024**3, "ti": 1024**4, "tib": 1024**4,
}  # fmt: skip
_AMOUNT = re.compile(r"\s*(\d[\d_,]*(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)\s*")


def format_bytes(n: float) -> str:
    """`n` bytes with three or four significant digits in powers of 1024: `9.57 MiB`, `512 B`."""
    size = float(n)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1023.5 or unit == "TiB":
            if unit == "B":
                return f"{int(n)} B"
            return f"{size:.0f} {unit}" if abs(size) >= 99.95 else f"{size:.1f} {unit}" if abs(size) >= 9.995 else f"{size:.2f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def format_count(n: float) -> str:
    """`n` things in powers of 1000: `25.6 M`, `4.09 G`, `512`."""
    size = float(n)
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(size) < 999.5 or unit == "P":
            if unit == "":
                return f"{n:.0f}"
            digits = 0 if abs(size) >= 99.95 else 1 if abs(size) >= 9.995 else 2
            return f"{size:.{digits}f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


def format_share(part: float, whole: float) -> str:
    """`part` of `whole` in per cent; `-` when there is no whole."""
    if whole <= 0:
        return "-"
    share = 100 * part / whole
    return "0 %" if part == 0 else "<1 %" if share < 1 else f"{share:.0f} %"


def format_shape(shape: Sequence[int]) -> str:
    """`1×3×224×224`; a scalar is `scalar`."""
    return "×".join(map(str, shape)) if shape else "scalar"


_SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c"}


def format_dtype(dtype: str) -> str:
    """`float32` as `f32`, `int64` as `i64`; names without a plain width stay."""
    letters = dtype.rstrip("0123456789")
    return _SHORT[letters] + dtype[len(letters) :] if letters in _SHORT and letters != dtype else dtype


def parse_bytes(text: str) -> int:
    """Bytes in `text`: `320KB` (320,000), `320KiB` (327,680), `2.5 GB`, `4096`.

    Raises `SourceError` (exit code 2) when it is not an amount of memory.
    """
    match = _AMOUNT.fullmatch(text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise SourceError(f"{text!r} is not an amount of memory: write for example 320KB (320,000 B), 320KiB (327,680 B) or 8GB")
    return int(float(match[1].replace(",", "").replace("_", "")) * unit)


_BARS = " ▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[int], top: int = 0) -> str:
    """`values` as one line of bars, scaled to `top` or to the largest of them when that is more."""
    return bar_chart(values, 1, top)[0] if values else ""


def bar_chart(values: Sequence[int], height: int, top: int = 0) -> list[str]:
    """`values` as bars on `height` lines, top line first, scaled to `top` or to the largest; what is not 0 shows."""
    scale = max(top, max(values, default=0)) or 1
    levels = [0 if v <= 0 else max(1, round(8 * height * v / scale)) for v in values]
    return ["".join(_BARS[min(8, max(0, level - 8 * row))] for level in levels) for row in reversed(range(height))]


def resample(values: Sequence[int], width: int) -> list[int]:
    """At most `width` numbers that stand for `values`: the largest of each slice, so that no peak is lost."""
    n = len(values)
    if n <= width:
        return [int(v) for v in values]
    return [int(max(values[n * i // width : max(n * i // width + 1, n * (i + 1) // width)])) for i in range(width)]
