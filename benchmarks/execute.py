"""Real models run in their arena, in five orders each, against eager execution: bit for bit.

`python -m benchmarks.execute [--json PATH] [--quick] [--resume FILE] [--only NAME ...]`. Orders: as planned, as traced, and three drawn at
random. The arena is poisoned first and whenever a storage dies, so an order, a lifetime, an alias or an offset that is wrong shows in the
outputs. Norms get random statistics; images are small, which changes sizes and no graph. One thread: some kernels round otherwise on two.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import replace
from typing import Any

from .figures import Figure, finish
from .peak_models import build, names
from .peak_runs import run_all, serve

QUICK = 8
SIDE = 96
REACH = 40
LIMIT = 5.0  # seconds for each schedule and each allocation


def main() -> int:
    parser = argparse.ArgumentParser(description="Models run in their arena in five orders, bit for bit eager's results.")
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK} models")
    parser.add_argument("--resume", help="keep results in this file and go on from them")
    parser.add_argument("--only", nargs="+", help="just these models")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return serve(_run, 1)
    chosen = options.only or (names()[:: len(names()) // QUICK] if options.quick else names())
    found = run_all("benchmarks.execute", ["--worker"], chosen, "execute", options.resume)
    ran = {name: r for name, r in found.items() if "orders" in r}
    judged = {name: r for name, r in ran.items() if r["deterministic"]}
    equal = [name for name, r in judged.items() if all(d is None for d in r["orders"].values())]
    full = not options.quick and not options.only
    figures = [
        Figure(
            "models whose five orders in the arena all equal eager bit for bit",
            f"all of >= {REACH}" if full else "all of the chosen models",
            f"{len(equal)} of {len(judged)}, {len(judged) * 5} runs",
            len(equal) == len(judged) and len(judged) >= (REACH if full else 1),
        )
    ]
    notes = [f"{name}: {r['error']}" for name, r in found.items() if "error" in r]
    notes += [f"{name}: left out, two eager runs of it differ" for name, r in ran.items() if not r["deterministic"]]
    notes += [f"{name}, {order}: {d}" for name, r in judged.items() for order, d in r["orders"].items() if d is not None]
    rows = [
        [name, r["nodes"], sum(d is None for d in r["orders"].values()), f"{r['arena']:,}", f"{r['arena'] / max(r['bound'], 1):.4f}",
         f"{r['transient']:,}", f"{r['native']}/{r['kernels']}", r["seconds"]]
        for name, r in ran.items()
    ]  # fmt: skip
    columns = ["model", "nodes", "orders equal", "arena, planned order", "over bound", "transient", "native out", "s"]
    return finish("execute", figures, columns, rows, threads=1, notes=notes, json_path=options.json)


def _run(name: str) -> dict[str, Any]:
    import torch

    from neaptide.compiler.structure import tensors_in
    from neaptide.compiler.trace import trace
    from neaptide.passes.allocate import allocate
    from neaptide.passes.execute import execute_in_arena
    from neaptide.passes.schedule import schedule
    from neaptide.testing.generate import random_order

    started = time.perf_counter()
    model, args, kwargs = build(name, side=SIDE)
    model.eval()
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), torch.Tensor):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    graph = trace(model, args, kwargs)
    with torch.no_grad():
        eager = []
        for _ in range(2):
            torch.manual_seed(0)
            eager.append(model(*args, **kwargs))
    orders: dict[str, Any] = {"planned": schedule(graph, time_limit=LIMIT).order, "traced": None}
    orders |= {f"random {seed}": random_order(random.Random(seed).randrange, graph) for seed in range(3)}
    out: dict[str, Any] = {"nodes": len(graph.nodes), "orders": {}}
    for label, order in orders.items():
        plan = allocate(graph, order, time_limit=LIMIT if label == "planned" else 0.5)
        run = execute_in_arena(graph, plan, args, kwargs)
        out["orders"][label] = run.difference(eager[0])
        if label == "planned":
            out |= {"arena": plan.arena, "bound": plan.lower_bound, "transient": run.transient_bytes, "native": run.native}
            out["deterministic"] = replace(run, outputs=tuple(t for _, t in tensors_in(eager[0]))).matches(eager[1])
    out["kernels"] = sum(not graph.is_view(node) for node in graph.nodes)
    out["seconds"] = round(time.perf_counter() - started, 1)
    return out


if __name__ == "__main__":
    sys.exit(main())
