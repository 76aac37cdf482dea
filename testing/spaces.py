"""What every search space keeps to, as checks that raise `AssertionError` with the architecture that breaks a rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..compiler.count import count
from ..compiler.graph import WEIGHT_ROLES, Graph
from ..passes.schedule import schedule
from ..search.space import Architecture, Slot, Space


def check_space(space: Space, *, networks: int = 3, seed: int = 0) -> None:
    """Hold `space` to its contract, on `networks` random networks: genes and text, moves, graphs against traces, slots. Needs torch."""
    rng = np.random.default_rng(seed)
    check_genes(space, rng)
    for _ in range(networks):
        arch = space.sample(rng)
        check_moves(space, arch, rng)
        check_graph(space, arch)
        check_slots(space, arch, rng)


def check_genes(space: Space, rng: np.random.Generator) -> None:
    """Samples are canonical, and come back from rows, text and digests."""
    rows = space.sample_rows(rng, 50)
    assert rows.dtype == np.int16 and rows.shape == (50, len(space.cardinalities)), "sample_rows gives int16 (n, genes)"
    drawn = rng.integers(0, space.cardinalities, rows.shape, dtype=np.int16)
    before = drawn.copy()
    again = space.canonical_rows(space.canonical_rows(drawn))
    assert (drawn == before).all(), "canonical_rows changes its argument"
    assert (again == space.canonical_rows(drawn)).all() and (space.canonical_rows(rows) == rows).all(), "canonical twice is canonical once"
    archs = space.decode(rows)
    assert all(is_canonical(space, a) for a in archs) and space.decode(space.encode(archs)) == archs, "rows round-trip"
    texts = [space.text(a) for a in archs]
    for arch, text in zip(archs, texts, strict=True):
        assert space.parse(text) == arch, f"{text!r} does not parse back"
    assert len(set(texts)) == len(set(archs)) == len({a.digest for a in archs}), "texts or digests collide"


def is_canonical(space: Space, arch: Architecture) -> bool:
    """Whether `arch` is of `space`, in range and its own canonical form."""
    in_range = len(arch.genes) == len(space.cardinalities) and all(0 <= g < c for g, c in zip(arch.genes, space.cardinalities, strict=True))
    return arch.space == space.name and in_range and space.architecture(arch.genes) == arch


def check_moves(space: Space, arch: Architecture, rng: np.random.Generator) -> None:
    """Neighbours are different, canonical and mutual where one gene tells them apart; mutation and crossover stay inside."""
    around = space.neighbours(arch)
    assert around and len(set(around)) == len(around) and arch not in around, f"neighbours of {space.text(arch)}"
    own_moves = type(space).neighbours is not Space.neighbours
    for other in (around[i] for i in rng.permutation(len(around))[:8]):
        assert is_canonical(space, other), f"a neighbour of {space.text(arch)} is not canonical"
        if not own_moves and sum(a != b for a, b in zip(arch.genes, other.genes, strict=True)) == 1:
            assert arch in space.neighbours(other), f"{space.text(other)} is next to {space.text(arch)} but not the other way round"
    seed = int(rng.integers(2**32))
    one, two = (space.mutate(arch, np.random.default_rng(seed)) for _ in range(2))
    assert one == two != arch and is_canonical(space, one), f"mutations of {space.text(arch)}"
    other = space.sample(rng)
    child = space.crossover(arch, other, rng)
    assert is_canonical(space, child) and space.crossover(arch, arch, rng) == arch, f"crossover of {space.text(arch)}"
    assert all(g in (p, q, 0) for g, p, q in zip(child.genes, arch.genes, other.genes, strict=True)), (
        "crossover takes genes from its parents"
    )


def check_graph(space: Space, arch: Architecture) -> None:
    """`graph(arch)` is the trace of `module(arch)`: storages, bytes, structure, work, parameters, scheduled peak."""
    import torch

    from ..compiler.trace import trace

    module = space.module(arch).eval()
    ours, traced = space.graph(arch).check(), trace(module, (torch.zeros(space.input_shape(arch)),))
    text = space.text(arch)
    assert sorted((s.role, s.nbytes, s.name) for s in ours.storages) == sorted((s.role, s.nbytes, s.name) for s in traced.storages), text
    for left, right in zip(structure(ours), structure(traced), strict=True):
        assert left == right, text
    a, b = count(ours), count(traced)
    assert (a.macs, a.elementwise_flops, a.unknown) == (b.macs, b.elementwise_flops, b.unknown), text
    assert parameters(ours) == sum(p.numel() for p in module.parameters()), text
    assert schedule(ours, time_limit=5).peak == schedule(traced, time_limit=5).peak, text


def parameters(graph: Graph) -> int:
    """Elements of all parameters."""
    return sum(t.numel for t in graph.tensors if t.name and graph.storages[t.storage].role == "parameter")


def structure(graph: Graph) -> tuple[Any, ...]:
    """What a graph is but for the numbering of its tables: tensors and storages numbered as nodes first touch them."""
    tensors: dict[int, int] = {}
    storages: dict[int, int] = {}

    def seen(t: int) -> int:
        storages.setdefault(graph.tensors[t].storage, len(storages))
        return tensors.setdefault(t, len(tensors))

    inputs = [seen(t) for t in graph.inputs]
    nodes = [
        (n.op, n.scope, dict(n.attrs), [seen(t) for t in n.inputs], [seen(t) for t in n.outputs], sorted(storages[s] for s in n.writes))
        for n in graph.nodes
    ]
    outputs = [seen(t) for t in graph.outputs]
    table = [(x.shape, x.dtype, storages[x.storage], x.offset, x.strides, x.name) for x in (graph.tensors[t] for t in tensors)]
    held = [replace(graph.storages[s], id=0) for s in storages]
    return inputs, nodes, outputs, table, held


def check_slots(space: Space, arch: Architecture, rng: np.random.Generator) -> None:
    """Slots hold every node, in order, one tensor's storage alone between them, and nothing of a slot follows other genes than its own."""
    slots = space.slots()
    if not slots:
        return
    nodes, text = _by_slot(space, arch), space.text(arch)
    graph = space.graph(arch)
    owner = [_slot_of(slots, node.scope) for node in graph.nodes]
    for at in sorted(set(owner))[1:]:
        before = {s for v, touched in enumerate(graph.touches) if owner[v] < at for s in touched}
        after = {s for v, touched in enumerate(graph.touches) if owner[v] >= at for s in touched}
        crossing = {s for s in before & after if graph.storages[s].role not in WEIGHT_ROLES}
        assert len(crossing) == 1, f"{len(crossing)} storages are alive between what comes before {slots[at].scope!r} and after, in {text}"
    other = space.sample(rng)
    for i in rng.permutation(len(slots))[:4]:
        genes = [a if g in slots[i].genes else b for g, (a, b) in enumerate(zip(arch.genes, other.genes, strict=True))]
        mixed = space.architecture(genes)
        assert all(mixed.genes[g] == arch.genes[g] for g in slots[i].genes), f"genes of {slots[i].scope!r} hang on others, from {text}"
        found = _by_slot(space, mixed)[i]
        assert found == nodes[i], f"{slots[i].scope!r} depends on more than its genes: {text} and {space.text(mixed)} differ there"


def _slot_of(slots: tuple[Slot, ...], scope: str) -> int:
    """The slot that a module path belongs to."""
    owners = [i for i, s in enumerate(slots) for part in s.scope.split("|") if scope == part or scope.startswith(part + ".")]
    assert len(owners) == 1, f"a node of {scope!r} is in {len(owners)} slots"
    return owners[0]


def _by_slot(space: Space, arch: Architecture) -> list[list[Any]]:
    """Signatures of an architecture's nodes by slot."""
    graph, slots = space.graph(arch), space.slots()
    found: list[list[Any]] = [[] for _ in slots]
    at = 0
    for node in graph.nodes:
        i = _slot_of(slots, node.scope)
        assert i >= at, f"a node of {node.scope!r} runs after slot {slots[at].scope!r}, in {space.text(arch)}"
        at = i
        shapes = [[(graph.tensors[t].shape, graph.tensors[t].dtype) for t in ts] for ts in (node.inputs, node.outputs)]
        found[i].append((node.op, node.scope, dict(node.attrs), shapes))
    return found
