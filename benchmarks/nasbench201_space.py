"""Every cell of NAS-Bench-201: parameters and multiply-adds of `graph(arch)` against the benchmark's tables.

`python -m benchmarks.nasbench201_space [--quick] [--json PATH]`. Reads `data/nasbench201.npz` under $NEAPTIDE_SHARED (or `../shared`):
for each of the 15,625 cells and each of three data sets, the parameters of the network (batch norm's weights among them) and the
multiply-adds of its convolutions and its classifier.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from benchmarks.figures import Figure, finish, shared_folder
from neaptide.compiler.count import count
from neaptide.search.spaces.nasbench201 import NASBench201

DATA_SETS = {"cifar10": (10, 32), "cifar100": (100, 32), "imagenet16": (120, 16)}
REACH_SECONDS = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(description="Parameters and multiply-adds of all NAS-Bench-201 cells.")
    parser.add_argument("--quick", action="store_true", help="every 25th cell")
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    step = 25 if options.quick else 1
    with np.load(shared_folder() / "data" / "nasbench201.npz") as table:
        columns = {key: table[key][::step] for key in table.files if key not in ("op_names", "edge_names")}
    rows, figures = [], []
    for name, (classes, resolution) in DATA_SETS.items():
        right, read, seconds = _compare(NASBench201(num_classes=classes, resolution=resolution), name, columns)
        cells = len(columns["ops"])
        rows.append([name, f"{cells:,}", f"{read:,}", f"{right:,}", f"{seconds:.2f}", f"{seconds / cells * 1e6:.0f}"])
        figures.append(Figure(f"{name}: cells whose parameters and MACs equal the table", f"all {cells:,}", f"{right:,}", right == cells))
        if name == "cifar10":
            figures.append(
                Figure(
                    "graph(arch) and count of the whole space, CPU seconds of one core",
                    f"<= {REACH_SECONDS:g}",
                    f"{seconds * step:.2f}",
                    seconds * step <= REACH_SECONDS,
                )
            )
    notes = ["params: bytes of the graph's parameters over 4; MACs: count(graph).macs. Each graph is built and counted anew."]
    heads = ["data set", "cells", "strings read back", "equal to the table", "CPU s", "us a cell"]
    return finish("NAS-Bench-201: the whole space", figures, heads, rows, notes=notes, json_path=options.json)


def _compare(space: NASBench201, name: str, columns: dict[str, Any]) -> tuple[int, int, float]:
    """Cells with the table's numbers, cells with the table's string both ways, and the CPU seconds of building and counting."""
    archs = space.decode(columns["ops"])
    got = []
    start = time.process_time()
    for arch in archs:
        graph = space.graph(arch)
        got.append((graph.bytes_by_role()["parameter"] // 4, count(graph).macs))
    seconds = time.process_time() - start
    wanted = np.stack([columns[f"params_{name}"], columns[f"flops_{name}"]], axis=1)
    read = sum(space.text(a) == s.decode() and space.parse(s.decode()) == a for a, s in zip(archs, columns["arch_str"], strict=True))
    return int((np.asarray(got) == wanted).all(axis=1).sum()), read, seconds


if __name__ == "__main__":
    raise SystemExit(main())
