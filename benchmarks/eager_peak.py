"""Predicted eager peak against the profiler's, inference on the CPU, to the byte, at 1 and at 2 threads.

The graph is that of a model's first call, so that call is profiled, its kernels warmed up by a twin of the model. A second call is
profiled too: models that keep tensors from their first call (cached attention biases) then need less.

`python -m benchmarks.eager_peak [--json PATH] [--quick] [--resume FILE] [--only NAME ...]`. One process per thread count runs the models
one after another; with `--resume` what it found is kept in FILE (JSON lines) and not asked again.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from .figures import Figure, finish
from .peak_models import build, names
from .peak_runs import run_all, serve

QUICK = 12


def main() -> int:
    parser = argparse.ArgumentParser(description="Predicted eager peak against the profiler's, inference, to the byte.")
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK} models")
    parser.add_argument("--resume", help="keep results in this file and go on from them")
    parser.add_argument("--only", nargs="+", help="just these models")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return serve(compare, options.worker)
    chosen = options.only or (names()[:: len(names()) // QUICK] if options.quick else names())
    results = {t: run_all("benchmarks.eager_peak", ["--worker", str(t)], chosen, f"{t} threads", options.resume) for t in options.threads}
    figures, rows, notes = [], [], []
    for threads, found in results.items():
        exact = sum(r.get("predicted") == r.get("truth", -1) for r in found.values())
        off = [(name, r) for name, r in found.items() if r.get("predicted") != r.get("truth", -1)]
        share = exact / max(len(found), 1)
        figures.append(
            Figure(
                f"eager peak equals the profiler's to the byte, {threads} thread{'s' * (threads > 1)}",
                ">= 95 % of >= 60 models" if not options.quick and not options.only else ">= 95 % of the chosen models",
                f"{exact} of {len(found)} ({share:.1%})",
                share >= 0.95 and (len(found) >= 60 or options.quick or bool(options.only)),
            )
        )
        second = sum(r.get("predicted") == r.get("second_call", r.get("truth", -1)) for r in found.values())
        figures.append(Figure(f"the same at the model's second call, {threads} thread(s)", "stated", f"{second} of {len(found)}", True))
        notes += [f"missed at {threads} thread(s): {name}: {_why(r)}" for name, r in off]
    for name in chosen:
        row: list[object] = [name]
        for found in results.values():
            r = found[name]
            row += [f"{r['predicted']:,}", f"{r['truth']:,}", r["predicted"] - r["truth"]] if "truth" in r else ["-", "-", "-"]
        first = next(iter(results.values()))[name]
        rows.append([*row, f"{first['fake']:,}" if "fake" in first else "-", first.get("trace_s", "-"), first.get("oracle_s", "-")])
    columns = ["model"]
    for threads in results:
        columns += [f"predicted, {threads} thr", f"profiler, {threads} thr", "off"]
    columns += ["without oracle", "trace s", "oracle s"]
    return finish("eager_peak", figures, columns, rows, threads=" and ".join(map(str, results)), notes=notes, json_path=options.json)


def _why(result: dict[str, Any]) -> str:
    if "error" in result:
        return str(result["error"])
    off = result["predicted"] - result["truth"]
    at = " > ".join(result["truth_at"][-3:])
    unmeasured = f"; not measured: {result['unmeasured']}" if result["unmeasured"] else ""
    return f"off by {off:,} B; predicted at {result['predicted_at']}, profiler at {at}{unmeasured}"


def compare(name: str) -> dict[str, Any]:
    """Prediction and truth of one model at torch's current thread count."""
    import torch

    from neaptide.compiler.oracle import with_workspace
    from neaptide.compiler.trace import trace
    from neaptide.passes.liveness import eager_liveness

    from .ground_truth import profiled_peak

    model, args, kwargs = build(name)
    model.eval()
    began = time.perf_counter()
    traced = trace(model, args, kwargs)
    between = time.perf_counter()
    graph = with_workspace(traced)
    done = time.perf_counter()
    lifetimes = eager_liveness(graph)
    twin, args, kwargs = build(name)
    with torch.no_grad():
        twin.eval()(*args, **kwargs)
        truth = profiled_peak(lambda: model(*args, **kwargs))
        again = profiled_peak(lambda: model(*args, **kwargs))
    return {
        "predicted": lifetimes.peak,
        "truth": truth.nbytes,
        "second_call": again.nbytes,
        "fake": eager_liveness(traced).peak,
        "predicted_at": graph.nodes[lifetimes.peak_step].op,
        "truth_at": truth.at,
        "unmeasured": graph.meta["kernels"]["unmeasured"],
        "trace_s": round(between - began, 2),
        "oracle_s": round(done - between, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
