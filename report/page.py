"""The frame of every HTML page: one file that holds its style, its script and its data, and asks no network.

Text of the user reaches a page through Jinja's autoescaping or through `textContent`, never as markup, and without characters that turn
what stands beside them around.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..compiler.foreign_text import shown, shown_in

TEMPLATES = Path(__file__).with_name("templates")
_UNSAFE = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def render_page(
    template: str, scripts: Sequence[str], *, title: str, versions: Mapping[str, str], data: Mapping[str, Any] | None = None, **values: Any
) -> str:
    """The page that `template`, which extends `page.html.j2`, makes of `values`; `scripts` are files beside it, run in order.

    `data`: for the scripts, as JSON. `versions`: what the footer names.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def read(name: str) -> str:
        return (TEMPLATES / name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: shown(value) if type(value) is str else value,
    )  # fmt: skip
    written = json.dumps(shown_in(data or {}), separators=(",", ":"), allow_nan=False).translate(_UNSAFE)
    return environment.get_template(template).render(
        title=title,
        versions=versions,
        style=Markup(read("report.css")),
        script=Markup("".join(map(read, scripts))),
        data=Markup(written),
        **values,
    )
