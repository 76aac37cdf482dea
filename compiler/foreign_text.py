"""Text that others wrote, as it may be shown: names in models, rows, studies and tables.

A terminal obeys control characters, and text with marks of direction or of no width reads as other text than it is. They are shown as
escapes: `\\x1b`, `\\u202e`. A spreadsheet runs a cell that begins like a formula; such a cell gets an apostrophe, as people write it.
"""

from __future__ import annotations

import re
from typing import Any

LAYOUT = "\n\t"  # what a text of several lines needs
# Controls (C0, DEL, C1), soft hyphen, marks of direction, width and line ends, tags and lone surrogates.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def shown(text: str, keep: str = LAYOUT) -> str:
    """`text` with escapes for every character that is not simply drawn, but those in `keep`. What is shown is shown again as it is."""
    if text.isascii() and text.isprintable():
        return text
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def shown_in(value: Any) -> Any:
    """JSON values with every text in them `shown`, keys too."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {shown_in(k): shown_in(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [shown_in(v) for v in value]
    return value


def csv_cell(value: Any) -> Any:
    """A value for a cell of a CSV file: text is text in every spreadsheet, numbers stay numbers. `cell_text` reads it back."""
    if not isinstance(value, str):
        return value
    text = shown(value, keep="")
    return f"'{text}" if _like_formula(text) and not _NUMBER.fullmatch(text) else text


def cell_text(cell: str) -> str:
    """The text that stands in a cell, without the apostrophe that `csv_cell` gave it."""
    return cell[1:] if cell[:1] == "'" and _like_formula(cell) else cell


def _like_formula(text: str) -> bool:
    """Whether `text` begins like a formula, after any apostrophes."""
    return text.lstrip("'")[:1] in tuple(_FORMULA)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
