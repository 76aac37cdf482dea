"""The oracle: exactness against the full pipeline, throughput beside a forward-hook logger, and published peaks.

    python -m benchmarks.oracle [--quick] [--json PATH] [--networks 1000] [--traced 50] [--spaces NAME ...]

For each space, `--networks` random architectures: planned peak, arena, parameters and MACs of the oracle against `schedule`, `allocate` and
`count` of each network's own graph; of the first `--traced` of them that graph is `trace(module(arch))`, of the others `graph(arch)`, which
the tests hold equal to it. Throughput is that of one core in CPU seconds, warm, in batches of 10,000. The published numbers are those
of the data folder, $NEAPTIDE_SHARED or `../shared`; without it those figures are left out.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.figures import Figure, finish, shared_folder
from neaptide.compiler.count import count
from neaptide.compiler.graph import Graph
from neaptide.passes.allocate import allocate
from neaptide.passes.attribution import parameter_elements
from neaptide.passes.schedule import schedule
from neaptide.search.oracle import Oracle
from neaptide.search.space import Architecture, Space
from neaptide.search.spaces import list_spaces, load_space

BATCH = 10_000
FROM_ROWS, FROM_OBJECTS, FROM_GRAPHS = 1_000_000, 100_000, 10_000
PUBLISHED = {"ofa_mbv3": "mit_ofa", "moofa": "moofa", "compofa": "compofa"}
PEAKS = {
    "moofa": (305280, 313344, 381120, 440640, 475776, 583200, 686976, 696192),
    "ofa_mbv3": (262912, 329280, 328704, 330816, 410368, 590592, 722448, 740416),
}
SCHEDULE_S = 2.0
Row = tuple[object, ...]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 networks of each space, and throughput on few distinct ones")
    parser.add_argument("--networks", type=int, default=1000)
    parser.add_argument("--traced", type=int, default=50)
    parser.add_argument("--spaces", nargs="+", choices=list_spaces(), default=list_spaces())
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    networks, traced = (5, 1) if options.quick else (options.networks, min(options.traced, options.networks))
    figures: list[Figure] = []
    rows: list[Row] = []
    for name in options.spaces:
        figure, row = exactness(load_space(name), networks, traced)
        figures.append(figure)
        rows.append(row)
    if "ofa_mbv3" in options.spaces:
        figures += throughput_ofa(few=options.quick)
    if "nasbench201" in options.spaces:
        figures.append(throughput(load_space("nasbench201"), of_nasbench201(few=options.quick)))
    if "darts" in options.spaces:
        figures.append(throughput(load_space("darts"), of_darts(few=options.quick)))
    figures += published_peaks(options.spaces)
    notes = (
        f"Equal: peak, parameters and MACs, and the arena where both plans are proved smallest; {traced} networks of each space traced "
        "from their modules. Proved: peaks that no order undercuts. Whole: architectures that went through the scheduler whole.",
        f"Warm: every segment solved before; one core, CPU seconds, batches of {BATCH:,}.",
    )
    heads = ("space", "networks", "equal", "arena equal", "arena lower", "proved", "whole", "cold ms each")
    return finish("oracle", figures, heads, rows, notes=notes, json_path=options.json)


# ---- exactness ------------------------------------------------------------------------------------------------------


def exactness(space: Space, networks: int, traced: int) -> tuple[Figure, Row]:
    """Random architectures of one space, by the oracle and by the passes."""
    rows = space.sample_rows(np.random.default_rng(2026), networks)
    oracle = Oracle(space, memory=False, time_limit=SCHEDULE_S)
    started = time.process_time()
    costs = oracle.cost(rows, ("params", "macs", "peak", "arena"))
    cold = (time.process_time() - started) / networks
    equal = same_arena = lower = 0
    for i, arch in enumerate(space.decode(rows)):
        graph = traced_graph(space, arch) if i < traced else space.graph(arch)
        order = schedule(graph, time_limit=SCHEDULE_S)
        plan = allocate(graph, order)
        expected = {"params": sum(parameter_elements(graph).values()), "macs": count(graph).macs, "peak": order.peak}
        right = all(costs[name][i] == value for name, value in expected.items())
        equal += right
        if not right:
            print(f"{space.text(arch)}: {expected}, by the oracle {costs.values(i)}", file=sys.stderr)
        same_arena += int(costs["arena"][i] == plan.arena)
        lower += int(costs["arena"][i] < plan.arena)
    assert costs.proven is not None
    figure = Figure(
        f"{space.name}: peak, parameters and MACs of the oracle and of the full pipeline, random architectures",
        f"all {networks:,} equal",
        f"{equal:,} equal",
        equal == networks,
    )
    whole = oracle.solved_whole
    shown = (f"{same_arena:,}", f"{lower:,}", f"{costs.proven.mean():.1%}", f"{whole:,}", f"{cold * 1e3:.1f}")
    return figure, (space.name, f"{networks:,}", f"{equal:,}", *shown)


def traced_graph(space: Space, arch: Architecture) -> Graph:
    """The graph that `trace` records of the architecture's own module."""
    import torch

    from neaptide.compiler.trace import trace

    torch.set_num_threads(1)
    return trace(space.module(arch).eval(), (torch.zeros(space.input_shape(arch)),))


# ---- throughput -----------------------------------------------------------------------------------------------------


def throughput_ofa(*, few: bool) -> list[Figure]:
    """Encoded rows and objects of `ofa_mbv3`, and a forward-hook logger beside them."""
    space = load_space("ofa_mbv3")
    rows = space.sample_rows(np.random.default_rng(7), BATCH)
    if few:
        rows = rows[np.arange(BATCH) % 50]
    oracle = Oracle(space)
    oracle.cost(rows)
    archs = space.decode(rows)
    hooks = hook_rate(space, archs[:2] if few else archs[:10])
    beside = f"a forward-hook logger {hooks:,.1f}/s"
    from_rows, from_objects = rate(lambda: oracle.cost(rows)), rate(lambda: oracle.cost(archs))
    what = "ofa_mbv3: peak, MACs and parameters a second, from"
    return [
        Figure(f"{what} encoded rows", f">= {FROM_ROWS:,}", f"{from_rows:,.0f}", from_rows >= FROM_ROWS, beside),
        Figure(f"{what} Architecture objects", f">= {FROM_OBJECTS:,}", f"{from_objects:,.0f}", from_objects >= FROM_OBJECTS, beside),
    ]


def throughput(space: Space, rows: np.ndarray) -> Figure:
    """Architectures a second, warm."""
    oracle = Oracle(space)
    oracle.cost(rows)
    reached = rate(lambda: oracle.cost(rows))
    what = f"{space.name}: planned peaks a second, warm, {len(np.unique(rows, axis=0)):,} different ones"
    return Figure(what, f">= {FROM_GRAPHS:,}", f"{reached:,.0f}", reached >= FROM_GRAPHS)


def of_nasbench201(*, few: bool) -> np.ndarray:
    """A batch out of the whole space; with `few`, of 40 architectures."""
    known = np.array(list(np.ndindex(*load_space("nasbench201").cardinalities)), np.int16)
    drawn = np.random.default_rng(8).permutation(len(known))[:BATCH]
    return known[drawn[np.arange(BATCH) % 40] if few else drawn]


def of_darts(*, few: bool) -> np.ndarray:
    """Every pair of 25 normal and 25 reduction cells, in turn; with `few`, of 4 and 4."""
    cells = load_space("darts").sample_rows(np.random.default_rng(8), 4 if few else 25)
    half = cells.shape[1] // 2
    pairs = np.array([np.concatenate([a[:half], b[half:]]) for a in cells for b in cells])
    return pairs[np.arange(BATCH) % len(pairs)]


def rate(price: Callable[[], Any], *, seconds: float = 1.0) -> float:
    """Architectures a CPU second of `price`, which prices a batch."""
    started, runs = time.process_time(), 0
    while (taken := time.process_time() - started) < seconds:
        price()
        runs += 1
    return runs * BATCH / taken


def hook_rate(space: Space, archs: list[Architecture]) -> float:
    """Architectures a CPU second of the usual way: build the module, hook every leaf, run it once, take the largest layer."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    started = time.process_time()
    for arch in archs:
        peaks: list[int] = []
        macs: list[int] = []

        def log(module: nn.Module, inputs: tuple[Any, ...], output: Any, peaks: list[int] = peaks, macs: list[int] = macs) -> None:
            weights = sum(p.numel() for p in module.parameters())
            peaks.append(inputs[0].numel() + output.numel() + weights)
            if isinstance(module, nn.Conv2d):
                macs.append(output.numel() * module.weight[0].numel())
            elif isinstance(module, nn.Linear):
                macs.append(module.weight.numel())

        net = space.module(arch).eval()
        for module in net.modules():
            if not list(module.children()):
                module.register_forward_hook(log)
        with torch.no_grad():
            net(torch.zeros(space.input_shape(arch)))
        assert max(peaks) and sum(macs) and sum(p.numel() for p in net.parameters())
    return len(archs) / (time.process_time() - started)


# ---- published ------------------------------------------------------------------------------------------------------


def published_peaks(spaces: list[str]) -> list[Figure]:
    """Peak elements of every configuration in `ofa_accuracy.npz`, and the peaks that the tables print."""
    from neaptide.search.spaces.ofa import Settings

    path = shared_folder() / "data" / "ofa_accuracy.npz"
    if not path.exists():
        print(f"{path} is missing: published peaks are left out", file=sys.stderr)
        return []
    data = np.load(path)
    figures, found = [], {}
    for name, key in PUBLISHED.items():
        if name not in spaces:
            continue
        space: Any = load_space(name)
        rows = space.rows(Settings(*(data[f"{key}_{field}"] for field in ("r", "d", "ks", "e"))))
        oracle = Oracle(space, accounting="moofa-published")
        peaks, expected = oracle.cost(rows, ("peak",))["peak"] // 4, data[f"{key}_peakmem_elems"]
        equal = int((peaks == expected).sum())
        what = f"{name}: published peak elements, accounting moofa-published"
        figures.append(Figure(what, f"all {len(rows):,} equal", f"{equal:,} equal", equal == len(rows)))
        if name not in PEAKS:
            continue
        drawn = oracle.cost(np.concatenate([space.sample_rows(np.random.default_rng(9), 100_000), near_least(space)]), ("peak",))
        found[name] = set(peaks.tolist()) | set((drawn["peak"] // 4).tolist())
    for name, printed in PEAKS.items():
        if name in found:
            reached = [peak for peak in printed if peak in found[name]]
            what = f"{name}: peaks printed in MOOFA's tables that its published configurations, or others of the space, have"
            figures.append(Figure(what, f"all {len(printed)}", f"{len(reached)}", len(reached) == len(printed)))
    return figures


def near_least(space: Space) -> np.ndarray:
    """Architectures up to two genes away from the smallest at each resolution: chance hardly ever draws any."""
    found: set[Architecture] = set()
    for resolution in range(space.cardinalities[0]):
        least = space.architecture([resolution, *[0] * (len(space.cardinalities) - 1)])
        for one in space.neighbours(least):
            found.update((one, *space.neighbours(one)))
    return space.encode(list(found))


if __name__ == "__main__":
    sys.exit(main())
