"""Graphs that spaces write without torch, against traces of the modules: `python -m benchmarks.spaces [--quick] [--json PATH]`.

Random architectures of every space at its published size: nodes, tensors, storages and bytes are compared, numbering apart, and what
writing and tracing one graph take. `--quick` draws 5 of each space, 100 otherwise.
"""

from __future__ import annotations

import argparse
import sys
import time
from statistics import median

import numpy as np
import torch

from benchmarks.figures import Figure, finish
from neaptide.compiler.trace import trace
from neaptide.search.space import Architecture, Space
from neaptide.search.spaces import list_spaces, load_space
from neaptide.testing.spaces import structure

# Networks of these two have thousands of nodes each; smaller ones hold the same cells.
OPTIONS = {"darts": {"layers": 8}, "proxyless_tree": {"B": 2, "F": 100}}


def main() -> int:
    parser = argparse.ArgumentParser(description="Graphs of spaces against traces.")
    parser.add_argument("--quick", action="store_true", help="5 architectures of each space")
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    torch.set_num_threads(1)
    each = 5 if options.quick else 100
    rows, equal = [], 0
    for name in list_spaces():
        space = load_space(name, **OPTIONS.get(name, {}))
        archs = space.decode(space.sample_rows(np.random.default_rng(11), each))
        space.graph(archs[0])
        compared = [_compare(space, arch) for arch in archs]
        same = sum(right for right, *_ in compared)
        nodes, writing, tracing = (median(column) for column in list(zip(*compared, strict=True))[1:])
        equal += same
        shown = f"{writing * 1e3:.2f}", f"{tracing * 1e3:.1f}", f"{tracing / writing:.0f}x"
        rows.append((name, f"{same} of {each}", f"{nodes:.0f}", *shown))
    total = each * len(rows)
    figure = Figure("graphs equal to the trace of their module", f"all {total:,}", f"{equal:,}", equal == total)
    columns = ("space", "equal", "nodes", "written, ms", "traced, ms", "faster")
    return finish(
        "spaces",
        [figure],
        columns,
        rows,
        notes=("medians; process time of one thread; traces of modules without weights",),
        json_path=options.json,
    )


def _compare(space: Space, arch: Architecture) -> tuple[bool, int, float, float]:
    """Whether both graphs are equal, nodes, seconds to write and to trace."""
    started = time.process_time()
    ours = space.graph(arch)
    written = time.process_time()
    traced = trace(lambda: space.module(arch).eval(), (torch.empty(space.input_shape(arch), device="meta"),))
    done = time.process_time()
    storages = [sorted((s.role, s.nbytes, s.name) for s in g.storages) for g in (ours, traced)]
    same = structure(ours) == structure(traced) and storages[0] == storages[1]
    return same, len(ours.nodes), written - started, done - written


if __name__ == "__main__":
    sys.exit(main())
