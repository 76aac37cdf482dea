"""The stable text form of a Graph: for golden tests, diffs and eyes.

```
graph net(%0: float32[1,3,8,8] @0) {
  %2: float32[1,4,8,8] @2 = aten.convolution.default(%0, %1) workspace=64  # conv model.py:12
  %3: float32[1,4,8,8] @2! = aten.relu_.default(%2)
} -> (%3)
```
`@n` is the storage, `+b` its byte offset, `!` a storage that the node writes rather than bears; weights carry their names.
"""

from __future__ import annotations

from .foreign_text import shown
from .graph import Graph, Tensor


def graph_text(graph: Graph) -> str:
    """The whole graph as text, one line a node, ending in a newline."""
    inputs = ", ".join(_typed(graph, graph.tensors[t]) for t in graph.inputs)
    lines = [f"graph {graph.name}({inputs}) {{"]
    used = {t for node in graph.nodes for t in node.inputs} | set(graph.outputs)
    given = set(graph.inputs)
    for t in graph.tensors:
        if graph.definer[t.id] == -1 and t.id in used and t.id not in given:
            storage = graph.storages[t.storage]
            lines.append(f"  {_typed(graph, t)} = {storage.role} {t.name or storage.name or '-'}")
    for node in graph.nodes:
        written = set(node.writes)
        outs = ", ".join(_typed(graph, graph.tensors[t], graph.tensors[t].storage in written) for t in node.outputs)
        line = f"  {outs} = " if outs else "  "
        line += f"{node.op}({', '.join(f'%{t}' for t in node.inputs)})"
        seen = {graph.tensors[t].storage for t in node.outputs}
        hidden = [s for s in node.writes if s not in seen]
        if hidden:
            line += f" writes={','.join(f'@{s}' for s in hidden)}"
        if node.workspace:
            line += f" workspace={node.workspace}"
        if node.phase != "forward":
            line += f" phase={node.phase}"
        remark = " ".join(x for x in (node.scope, node.source) if x)
        lines.append(f"{line}  # {remark}" if remark else line)
    lines.append(f"}} -> ({', '.join(f'%{t}' for t in graph.outputs)})")
    return "\n".join(shown(line, keep="") for line in lines) + "\n"


def _typed(graph: Graph, t: Tensor, written: bool = False) -> str:
    at = f"@{t.storage}" + (f"+{t.offset}" if t.offset else "") + ("!" if written else "")
    strides = "" if t.strides is None else f" strides[{','.join(map(str, t.strides))}]"
    return f"%{t.id}: {t.dtype}[{','.join(map(str, t.shape))}]{strides} {at}"
