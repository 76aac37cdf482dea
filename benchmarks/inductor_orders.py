"""The peer for orders: TorchInductor's own three heuristics (`torch._inductor.memory`), run on our graphs.

They expect Inductor's scheduler nodes; the stand-ins here carry just what they read. Sizes, frees and dependencies are the
ones that `neaptide.passes.liveness` counts, so the orders compare on equal terms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from neaptide.compiler.graph import Graph
from neaptide.passes.liveness import counted_storages


@dataclass(eq=False)
class _Facts:
    """Stands for MemoryPlanningInfoForNode and, with `size_free`, for MemoryPlanningInfoForBuffer."""

    index: int = 0
    size: int = 0
    size_free: int = 0
    pred_buffers: list[Any] = field(default_factory=list)
    pred_nodes: list[Any] = field(default_factory=list)
    succ_nodes: list[Any] = field(default_factory=list)


@dataclass(eq=False)
class _Buffer:
    name: str
    mpi_buffer: _Facts

    def get_name(self) -> str:
        return self.name


@dataclass(eq=False)
class _Operation:
    mpi_node: _Facts
    outputs: list[_Buffer] = field(default_factory=list)
    unmet_dependencies: list[_Buffer] = field(default_factory=list)

    def get_outputs(self) -> list[_Buffer]:
        return self.outputs

    def get_buffer_names(self) -> list[str]:
        return [b.name for b in self.outputs]


def inductor_orders(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Orders of `graph` by Inductor's lpmf, bfs and dfs sorts, graph inputs counted from the start."""
    from torch._inductor import memory

    counted = counted_storages(graph, "planned")
    operations = [_Operation(_Facts(index=v)) for v in range(len(graph.nodes))]
    buffers = [_Buffer(f"s{s.id}", _Facts(size_free=s.nbytes if counted[s.id] else 0)) for s in graph.storages]
    inputs = {}
    for v, touched in enumerate(graph.touches):
        facts = operations[v].mpi_node
        for s in touched:
            if graph.birth[s] == v:
                operations[v].outputs.append(buffers[s])
                facts.size += graph.storages[s].nbytes
            elif counted[s]:
                facts.pred_buffers.append(buffers[s])
                buffers[s].mpi_buffer.succ_nodes.append(operations[v])
                if graph.birth[s] < 0:
                    inputs[buffers[s].name] = buffers[s]
        for u in graph.dependencies()[v]:
            facts.pred_nodes.append(operations[u])
            operations[u].mpi_node.succ_nodes.append(operations[v])
            operations[v].unmet_dependencies += operations[u].outputs
    born = {b.name: b for op in operations for b in op.outputs}
    pinned = [f"s{s}" for s in graph.pinned]
    sorts: dict[str, Any] = {
        "lpmf": lambda: memory.topological_sort_lpmf(operations, inputs, born, pinned),  # pyright: ignore[reportArgumentType]
        "bfs": lambda: memory.topological_sort_bfs(operations),  # pyright: ignore[reportArgumentType]
        "dfs": lambda: memory.topological_sort_dfs(operations),  # pyright: ignore[reportArgumentType]
    }
    return {name: tuple(op.mpi_node.index for op in sort()) for name, sort in sorts.items()}
