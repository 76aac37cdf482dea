"""The built-in models as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.table import Table

from ..compiler.reference_models import ReferenceModel
from .units import format_count, format_shape


def models_table(models: Sequence[ReferenceModel]) -> Table:
    """One line a model: name, inputs, parameters, what it is."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bright_black", pad_edge=False)
    table.add_column("model", style="bold", no_wrap=True)
    table.add_column("input", no_wrap=True)
    table.add_column("params", justify="right", no_wrap=True)
    table.add_column("what it is", style="bright_black")
    for m in models:
        kind = " int64" if m.vocabulary else ""
        table.add_row(m.name, ", ".join(format_shape(s) + kind for s in m.inputs), format_count(m.params), m.description)
    return table


def models_json(models: Sequence[ReferenceModel]) -> str:
    """The same as JSON, a list of objects."""
    rows = []
    for m in models:
        dtype = "int64" if m.vocabulary else "float32"
        inputs = [list(shape) for shape in m.inputs]
        rows.append({"name": m.name, "description": m.description, "inputs": inputs, "dtype": dtype, "params": m.params})
    return json.dumps(rows, indent=2)
