"""Orders: proven optima on the public graphs, beside traced order, DFS and TorchInductor's heuristics; and large graphs.

`python -m benchmarks.order [--quick] [--json PATH]`. Reads `bench/graphs` under $NEAPTIDE_SHARED (or `../shared`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from neaptide.compiler.graph import Graph
from neaptide.passes.exact import compile_kernels
from neaptide.passes.heuristics import depth_first, reverse_post_order
from neaptide.passes.liveness import liveness
from neaptide.passes.problem import ordering_problem
from neaptide.passes.schedule import Schedule, schedule

from .figures import Figure, finish, shared_folder
from .synthetic_graphs import randwire, transformer_training

COLUMNS = ("graph", "ops", "optimum, B", "proven", "seconds", "traced", "reverse post-order", "DFS", "Inductor best", "order; bound")


def main() -> int:
    parser = argparse.ArgumentParser(description="Orders: proven optima on public graphs, beside other heuristics; and large graphs.")
    parser.add_argument("--quick", action="store_true", help="every fourth public graph, smaller synthetic ones")
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    folder = shared_folder() / "bench" / "graphs"
    optimum = json.loads((folder / "optimum.json").read_text())
    paths = sorted(p for p in folder.glob("*.json") if p.stem != "optimum")[:: 4 if options.quick else 1]

    started = time.perf_counter()
    compile_kernels()
    compiling = time.perf_counter() - started
    rows, results = [], {}
    for path in paths:
        graph = Graph.load_json(str(path))
        results[path.stem] = schedule(graph)
        rows.append(_row(path.stem, graph, results[path.stem]))

    listed = [n for n in results if n in optimum]
    unlisted = [n for n in results if n not in optimum]
    equal = sum(results[n].optimal and results[n].peak == optimum[n] for n in listed)
    proven = sum(results[n].optimal for n in unlisted)
    slowest = max(results, key=lambda n: results[n].seconds)
    traced = _reference_models(rows, quick=options.quick)
    large = _large(rows, quick=options.quick)
    cold = _cold_start(folder / "timm_resnet50.json")
    live = _liveness_milliseconds(large[0])
    worst_peer = max((float(r[8]) for r in rows if r[8]), default=1.0)
    figures = [
        Figure(
            "public graphs equal to optimum.json and proven",
            f"{len(listed)}",
            f"{equal}",
            equal == len(listed),
            f"Inductor, worst: {worst_peer:.3f}x the optimum",
        ),
        Figure("stored graphs without a listed optimum, proven", f"{len(unlisted)}", f"{proven}", proven == len(unlisted)),
        Figure("slowest of them, after compilation", "<= 1 s", f"{results[slowest].seconds:.3f} s", results[slowest].seconds <= 1.0),
        Figure(
            "reference models, inference and training step, proven",
            f"{len(traced)}",
            f"{sum(r.optimal for r in traced)}",
            all(r.optimal for r in traced),
        ),
        Figure("resnet50, optimal as traced, without numba", "<= 50 ms", f"{cold:.1f} ms", cold <= 50),
        Figure(f"liveness of {len(large[0].nodes)} nodes", "<= 10 ms", f"{live:.1f} ms", live <= 10),
        Figure(f"training step of {len(large[0].nodes)} ops proven", "<= 10 s", f"{large[1].seconds:.2f} s", large[1].optimal),
    ]
    notes = [
        "Ratios are peaks over the optimum (over the lower bound where not proven), weights apart.",
        "Inputs are planned in plain graphs and the caller's in traced models.",
        f"Kernels were ready in {compiling:.2f} s; seconds are of one schedule() call with its check, 10 s at most.",
        "Reverse post-order and DFS run on merged blocks, which favours them a little.",
        "Inductor best: least of traced order and its lpmf, bfs and dfs sorts (torch._inductor.memory).",
    ]
    return finish("order", figures, COLUMNS, rows, notes=notes, json_path=options.json)


def _row(name: str, graph: Graph, result: Schedule, *, peers: bool = True) -> list[str]:
    problem = ordering_problem(graph, result.inputs)

    def ratio(order: tuple[int, ...] | None) -> str:
        return f"{liveness(graph, order, inputs=result.inputs).peak / max(result.lower_bound, 1):.3f}"

    inductor = ""
    if peers:
        from .inductor_orders import inductor_orders

        inductor = min(ratio(order) for order in (None, *inductor_orders(graph).values()))
    return [
        name,
        str(len(graph.nodes)),
        f"{result.peak:,}",
        "yes" if result.optimal else f"gap {result.peak / result.lower_bound - 1:.1%}",
        f"{result.seconds:.3f}",
        ratio(None),
        ratio(problem.expand(reverse_post_order(problem))),
        ratio(problem.expand(depth_first(problem))),
        inductor,
        result.method,
    ]


def _reference_models(rows: list[list[str]], *, quick: bool) -> list[Schedule]:
    """Schedule the built-in models as traced, in inference and as a training step with Adam; inputs are the caller's."""
    import torch

    from neaptide.compiler.reference_models import REFERENCE_MODELS
    from neaptide.compiler.trace import trace

    torch.set_num_threads(1)
    results = []
    for name, reference in list(REFERENCE_MODELS.items())[:: 5 if quick else 1]:
        model, args = reference.module(), reference.args(batch=2)
        graphs = [trace(model, args)]
        adam = torch.optim.Adam(model.parameters())
        graphs.append(trace(model.train(), args, mode="training", loss=_first_sum, optimizer=adam))
        for mode, graph in zip(("inference", "training"), graphs, strict=True):
            results.append(schedule(graph, inputs="caller"))
            rows.append(_row(f"{name}, {mode}", graph, results[-1], peers=False))
    return results


def _first_sum(output: Any, *_: Any) -> Any:
    """A loss for any model: the sum of the first tensor of its output."""
    while not hasattr(output, "sum"):
        output = next(iter(output.values())) if hasattr(output, "values") else output[0]
    return output.float().sum()


def _large(rows: list[list[str]], *, quick: bool) -> tuple[Graph, Schedule]:
    """Schedule the synthetic graphs, add their rows, and give back the training step."""
    training = transformer_training(20 if quick else 120)
    networks = [randwire(32, stages=4)] if quick else [randwire(32, stages=14), randwire(100, stages=5)]
    result = schedule(training)
    rows.append(_row(training.name, training, result, peers=False))
    rows.extend(_row(graph.name, graph, schedule(graph), peers=False) for graph in networks)
    return training, result


def _cold_start(path: Path) -> float:
    """Milliseconds of the first schedule() of a process, which must not import numba."""
    script = (
        "import sys, time\n"
        "from neaptide.compiler.graph import Graph\n"
        "from neaptide.passes.schedule import schedule\n"
        "graph = Graph.load_json(sys.argv[1])\n"
        "t = time.perf_counter()\n"
        "assert schedule(graph).optimal\n"
        "print(1e3 * (time.perf_counter() - t))\n"
        "assert 'numba' not in sys.modules\n"
    )
    return float(subprocess.run([sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True).stdout)


def _liveness_milliseconds(graph: Graph) -> float:
    """Least of five."""
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        liveness(graph)
        best = min(best, 1e3 * (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    sys.setrecursionlimit(20_000)
    sys.exit(main())
