"""An analysis as a Graphviz graph: operators boxed by module, filled by what they hold at the peak, edges as wide as their bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..compiler.foreign_text import shown
from .table import short_op
from .units import format_bytes, format_shape

if TYPE_CHECKING:
    from .result import Analysis

TOP_FILL = (0xC0, 0x39, 0x2B)


def to_dot(a: Analysis) -> str:
    """DOT text; run `dot -Tsvg` on it. Operators in the order in use are numbered."""
    return "\n".join(["digraph neaptide {", *("  " + line for line in _body(a)), "}", ""])


def _body(a: Analysis) -> Iterator[str]:
    title = f"{a.name}: peak {format_bytes(a.planned_peak)}, {'proven optimal' if a.optimal else 'best found'}"
    yield f"graph [label={quoted(title)}, labelloc=t, fontname=Helvetica, compound=true];"
    yield "node [shape=box, style=filled, fillcolor=white, fontname=Helvetica, fontsize=10];"
    yield "edge [color=gray40, fontname=Helvetica, fontsize=8];"
    held: dict[int, int] = {}
    for r in a.at_peak:
        held[r.node] = held.get(r.node, 0) + r.nbytes
    most = max(held.values(), default=0)
    step = {v: i for i, v in enumerate(a.schedule.order)}
    labels: dict[int, str] = {}
    members: dict[str, list[int]] = {}
    for node in a.graph.nodes:
        shapes = ", ".join(format_shape(a.graph.tensors[t].shape) for t in node.outputs)
        holds = f"\n{format_bytes(held[node.id])} at the peak" if node.id in held else ""
        label = f"{step[node.id]}. {short_op(node.op)}\n{shapes}{holds}"
        style = f', fillcolor="{_fill(held[node.id] / most)}"' if held.get(node.id) else ""
        style += ", penwidth=3" if node.id == a.peak_node else ""
        labels[node.id] = f"n{node.id} [label={quoted(label)}, tooltip={quoted(node.source or node.scope or node.op)}{style}];"
        members.setdefault(node.scope, []).append(node.id)
    for i, (scope, ids) in enumerate(members.items()):
        if scope:
            yield f"subgraph cluster_{i} {{ label={quoted(scope)}; color=gray70; fontsize=9;"
            yield from (f"  {labels[v]}" for v in ids)
            yield "}"
        else:
            yield from (labels[v] for v in ids)
    storage_of = [t.storage for t in a.graph.tensors]
    for node in a.graph.nodes:
        carried: dict[int, int] = {}
        for t in node.inputs:
            source = a.graph.definer[t]
            if source >= 0:
                carried[source] = carried.get(source, 0) + a.graph.storages[storage_of[t]].nbytes
        for source, nbytes in carried.items():
            width = 1 + math.log10(max(1, nbytes)) / 3
            yield f"n{source} -> n{node.id} [label={quoted(format_bytes(nbytes))}, penwidth={width:.1f}];"


def quoted(text: str) -> str:
    """`text` as a DOT string."""
    escaped = shown(text.replace("\r", ""), keep="\n").replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _fill(share: float) -> str:
    """From white to `TOP_FILL` with the share of the largest holder."""
    mixed = (round(255 + (c - 255) * (0.15 + 0.6 * share)) for c in TOP_FILL)
    return "#" + "".join(f"{c:02x}" for c in mixed)
