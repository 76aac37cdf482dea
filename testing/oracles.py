"""The brute-force answers that passes are judged by: exhaustive, obvious, slow, and independent of `passes`.

All of them follow one sentence. While node v runs, memory holds every storage born at or before v and used at or after v,
plus v's workspace; outputs of the graph are used forever; weights never count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..compiler.errors import NeaptideError
from ..compiler.graph import Graph


def brute_force_peak(graph: Graph, order: Sequence[int] | None = None, *, inputs: str = "planned") -> int:
    """Peak bytes when a naive interpreter runs `graph` in `order` (traced order if None).

    The interpreter allocates a storage when the node that gives birth to it starts, and frees it once no node still to run
    touches it. With `inputs="planned"` the storages of graph inputs are there before the first node, if anything needs them;
    with `"caller"` they are not counted. O(nodes * uses).
    """
    order = list(range(len(graph.nodes))) if order is None else list(order)
    needs = [_touched(graph, v) for v in range(len(graph.nodes))]
    born = _births(graph)
    held = _external(graph, inputs)
    peak = 0
    for step, v in enumerate(order):
        held |= born[v]
        later = set().union(*(needs[w] for w in order[step:]), graph.pinned)
        alive = {s for s in held if s in later or s in born[v]}
        peak = max(peak, sum(graph.storages[s].nbytes for s in alive) + graph.nodes[v].workspace)
        held = alive & set().union(*(needs[w] for w in order[step + 1 :]), graph.pinned)
    return peak


def brute_force_optimum(graph: Graph, *, inputs: str = "planned", max_nodes: int = 16) -> int:
    """Least peak bytes over all topological orders of `graph`, by trying every down-set.

    What a node needs depends only on the set of nodes that ran before it, so the best peak of each set follows from the sets
    one node smaller. O(2^nodes); refuses graphs of more than `max_nodes` nodes with `NeaptideError`.
    """
    n = len(graph.nodes)
    if n > max_nodes:
        raise NeaptideError(f"brute_force_optimum tries every down-set: {n} nodes are more than max_nodes={max_nodes}")
    before = [sum(1 << u for u in preds) for preds in graph.dependencies()]
    born = _births(graph)
    size = {s.id: s.nbytes for s in graph.storages}
    users = {s: sum(1 << v for v in range(n) if s in _touched(graph, v)) for s in size}
    external = _external(graph, inputs)
    birth_bit = {s: 1 << v for v in range(n) for s in born[v]}
    counted = [*external, *birth_bit]
    done = (1 << n) - 1

    def held(ran: int) -> int:
        """Bytes that a set of finished nodes leaves behind for the others, or for the caller."""
        return sum(size[s] for s in counted if (s in external or birth_bit[s] & ran) and (s in graph.pinned or users[s] & ~ran & done))

    best = {0: 0}
    for _ in range(n):
        grown: dict[int, int] = {}
        for ran, peak in best.items():
            kept = held(ran)
            for v in range(n):
                if not ran >> v & 1 and before[v] & ~ran == 0:
                    need = kept + sum(size[s] for s in born[v]) + graph.nodes[v].workspace
                    after = ran | 1 << v
                    grown[after] = min(max(peak, need), grown.get(after, max(peak, need)))
        best = grown
    return best[done]


def brute_force_height(blocks: Iterable[tuple[int, int, int]], *, alignment: int = 1) -> int:
    """Least arena that holds `blocks`, each `(lower, upper, size)` and alive over the half-open [lower, upper).

    Some order of placing every block at the lowest free offset gives an optimal layout, so all orders are tried. Sizes and
    therefore offsets are rounded up to `alignment`. O(n!): up to about seven blocks.
    """
    sized = [(lower, upper, -(-size // alignment) * alignment) for lower, upper, size in blocks if size]
    load = max((sum(s for lo, up, s in sized if lo <= t < up) for t, _, _ in sized), default=0)
    best = sum(s for _, _, s in sized)

    def place(left: frozenset[int], placed: list[tuple[int, int, int]], height: int) -> None:
        nonlocal best
        if best == load or (left and height >= best):
            return
        if not left:
            best = min(best, height)
        for i in sorted(left):
            lower, upper, size = sized[i]
            top = max((t for lo, up, t in placed if lo < upper and lower < up), default=0) + size
            place(left - {i}, [*placed, (lower, upper, top)], max(height, top))

    place(frozenset(range(len(sized))), [], 0)
    return best


def _touched(graph: Graph, v: int) -> set[int]:
    node = graph.nodes[v]
    return {graph.tensors[t].storage for t in (*node.inputs, *node.outputs)} | set(node.writes)


def _births(graph: Graph) -> list[set[int]]:
    """Per node: the storages it gives birth to. The first node of the traced order to touch one does, unless it exists before."""
    external = {"input", "parameter", "buffer", "constant"}
    known = {s.id for s in graph.storages if s.role in external}
    births = []
    for v, node in enumerate(graph.nodes):
        read = {graph.tensors[t].storage for t in node.inputs} | set(node.writes)
        births.append(_touched(graph, v) - known - read)
        known |= _touched(graph, v)
    return births


def _external(graph: Graph, inputs: str) -> set[int]:
    """Storages that are counted and exist before the first node."""
    if inputs not in ("planned", "caller"):
        raise NeaptideError(f"inputs is {inputs!r}; it is 'planned' (they live in the plan) or 'caller' (they are not counted)")
    if inputs == "caller":
        return set()
    used = set(graph.pinned).union(*(_touched(graph, v) for v in range(len(graph.nodes))))
    return {s.id for s in graph.storages if s.role == "input" and s.id in used}
