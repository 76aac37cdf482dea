"""Random graphs, orders and lifetimes, built from a source of choices.

`choose(n)` returns an integer in [0, n); smaller always means simpler here, so that Hypothesis shrinks well. Pass
`random.Random(seed).randrange` for bulk runs: the same code then makes thousands of graphs a second.
"""

from __future__ import annotations

from collections.abc import Callable

from ..compiler.graph import Graph, GraphBuilder, Ref

Choose = Callable[[int], int]

SIZES = (1, 2, 3, 5, 8, 0, 13, 64, 100, 256)
FROM_OUTSIDE = ("parameter", "buffer", "constant", "gradient", "optimizer_state")


def random_graph(
    choose: Choose,
    *,
    min_nodes: int = 0,
    max_nodes: int = 10,
    views: bool = True,
    inplace: bool = True,
    multi_output: bool = True,
    workspace: bool = True,
    weights: bool = True,
    name: str = "random",
) -> Graph:
    """A well-formed Graph with `min_nodes` to `max_nodes` nodes over one-dimensional uint8 tensors.

    It always may hold graph inputs (unused ones, and ones that are outputs too), dead results, empty storages, elementwise
    aten ops with attributes, and pinned outputs on any kind of storage. The flags add views (also of views, and several at
    once when `multi_output`), in-place ops (also on inputs, weights and views) and ops that only write a zero-byte random
    state, nodes with several new outputs or none, or with a view and a new output, workspaces, and weights, among them gradients
    and optimizer states carried over from an earlier step.
    """
    b = GraphBuilder(name)
    for _ in range(choose(4)):
        b.inputs.append(b.tensor((SIZES[choose(len(SIZES))],), "uint8", role="input"))
    if weights:
        for _ in range(choose(3)):
            b.tensor((SIZES[choose(len(SIZES))],), "uint8", role=FROM_OUTSIDE[choose(5)])
    makers = [_fresh, _fresh, _elementwise]
    if views:
        makers.append(_view)
    if inplace:
        makers += [_inplace, _random]
    if multi_output:
        makers.append(_several)
    if multi_output and views:
        makers.append(_view_and_new)
    while len(b.nodes) < max_nodes and (len(b.nodes) < min_nodes or choose(2 * max_nodes + 2)):
        extra = {"workspace": SIZES[choose(len(SIZES))]} if workspace and choose(4) == 3 else {}
        makers[choose(len(makers))](choose, b, multi_output, extra)
    for _ in range(choose(4)):
        if b.tensors and (t := len(b.tensors) - 1 - choose(len(b.tensors))) not in b.outputs:
            b.outputs.append(t)
    return b.build()


def random_order(choose: Choose, graph: Graph) -> tuple[int, ...]:
    """A topological order of `graph`; the simplest choices give the traced order."""
    missing = [len(p) for p in graph.dependencies()]
    users = graph.successors()
    ready = [v for v, n in enumerate(missing) if n == 0]
    order = []
    while ready:
        v = ready.pop(choose(len(ready)) if len(ready) > 1 else 0)
        order.append(v)
        for w in users[v]:
            missing[w] -= 1
            if missing[w] == 0:
                ready.append(w)
        ready.sort()
    return tuple(order)


def random_lifetimes(
    choose: Choose, *, min_blocks: int = 0, max_blocks: int = 7, max_time: int = 8, max_size: int = 12
) -> list[tuple[int, int, int]]:
    """Blocks `(lower, upper, size)`: alive over the half-open [lower, upper), 0 <= lower < upper <= `max_time`, size 0 allowed."""
    blocks: list[tuple[int, int, int]] = []
    while len(blocks) < max_blocks and (len(blocks) < min_blocks or choose(2 * max_blocks + 2)):
        lower = choose(max_time)
        upper = lower + 1 + choose(max_time - lower)
        blocks.append((lower, upper, choose(max_size + 1)))
    return blocks


def full_lifetimes(choose: Choose, *, max_blocks: int = 9, max_time: int = 8, max_load: int = 6) -> list[tuple[int, int, int]]:
    """Blocks `(lower, upper, size)` that fill the same load at every moment: the hard kind, which may need more than their load.

    At most `max_blocks` blocks over at most `max_time` steps; none is empty.
    """
    load = 1 + choose(max_load)
    blocks: list[tuple[int, int, int]] = []
    for t in range(max_time):
        free = load - sum(size for _, upper, size in blocks if upper > t)
        fill = []
        while free > 0:
            size = free - choose(min(free, 3))
            fill.append((t, min(max_time, t + 1 + choose(3)), size))
            free -= size
        if len(blocks) + len(fill) > max_blocks:
            return [(lower, min(upper, t), size) for lower, upper, size in blocks]
        blocks += fill
    return blocks


# ---- one node each: (choices, builder, may have several outputs, extra node fields) ---------------------------------


def _pick(choose: Choose, b: GraphBuilder) -> int:
    """A tensor, the latest one first."""
    return len(b.tensors) - 1 - choose(len(b.tensors))


def _operands(choose: Choose, b: GraphBuilder) -> list[int]:
    return [_pick(choose, b) for _ in range(choose(4))] if b.tensors else []


def _new(choose: Choose, b: GraphBuilder) -> int:
    return b.tensor((SIZES[choose(len(SIZES))],), "uint8")


def _fresh(choose: Choose, b: GraphBuilder, several: bool, extra: dict) -> None:
    inputs = _operands(choose, b)
    b.node("op", inputs, [_new(choose, b)], **extra)


def _several(choose: Choose, b: GraphBuilder, several: bool, extra: dict) -> None:
    inputs = _operands(choose, b)
    b.node("split", inputs, [_new(choose, b) for _ in range(choose(4))], **extra)


def _elementwise(choose: Choose, b: GraphBuilder, several: bool, extra: dict) -> None:
    if not b.tensors:
        return _fresh(choose, b, several, extra)
    x = _pick(choose, b)
    shape = b.tensors[x].shape
    if choose(2):
        alike = [t.id for t in b.tensors if t.shape == shape]
        y = alike[-1 - choose(len(alike))]
        b.node("aten.add.Tensor", [x, y], [b.tensor(shape, "uint8")], attrs={"args": [Ref(0), Ref(1)], "kwargs": {}}, **extra)
    else:
        b.node("aten.relu.default", [x], [b.tensor(shape, "uint8")], attrs={"args": [Ref(0)], "kwargs": {}}, **extra)
    return None


def _view(choose: Choose, b: GraphBuilder, several: bool, extra: dict) -> None:
    if not b.tensors:
        return _fresh(choose, b, several, extra)
    x = b.tensors[_pick(choose, b)]
    (n,) = x.shape
    windows = []
    for _ in range(1 + (choose(3) if several else 0)):
        start = choose(n + 1) if choose(2) else 0
        windows.append(b.tensor((n - start,), "uint8", x.storage, offset=x.offset + start))
    b.node("view", [x.id], windows, **extra)
    return None


def _view_and_new(choose: Choose, b: GraphBuilder, several: bool, extra: dict) -> None:
    """An op that reads a tensor and returns it again beside a new one."""
    if not b.tensors:
        return _fresh(choose, b, several, extra)
    x = b.tensors[_pick(choose, b)]
    again = b.tensor(x.shape, "uint8", x.storage, offset=x.offset)
    b.node("peek", [x.id], [again, _new(choose, b)], **extra)
    return None


def _inplace(choose: Choose, b: GraphBuilder, several: bool, extra: dict) -> None:
    if not b.tensors:
        return _fresh(choose, b, several, extra)
    x = b.tensors[_pick(choose, b)]
    inputs = [x.id, *_operands(choose, b)]
    outputs = [b.tensor(x.shape, "uint8", x.storage, offset=x.offset)]
    if several and choose(4) == 3:
        outputs.append(_new(choose, b))
    b.node("op_", inputs, outputs, writes=(x.storage,), **extra)
    return None


def _random(choose: Choose, b: GraphBuilder, several: bool, extra: dict) -> None:
    """A random op: fresh output, and a write on the one zero-byte storage that keeps random ops in order."""
    state = next((s.id for s in b.storages if s.name == "rng state"), None)
    if state is None:
        state = b.storage(0, "buffer", "rng state")
    b.node("rand", _operands(choose, b), [_new(choose, b)], writes=(state,), **extra)
