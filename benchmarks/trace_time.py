"""Trace time against `torch.export`, in one run, model by model, interleaved; resnet50 and a Llama of 7 billion parameters alone.

`python -m benchmarks.trace_time [--quick] [--json PATH]`. Each model is built once (not timed) and traced by both in turn, REPEATS
times; the least time of each counts, so both have their caches warm. Beside it stand the first calls on each model, where Neaptide goes
first and leaves torch's caches warm for the export. Llama-7B (bfloat16, 2,048 tokens) is given as a factory in a
process of its own: building and tracing are timed together, and the process' largest resident set is read. Needs
`make zoo`. Exits 1 when a figure is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import Figure, finish
from benchmarks.zoo import ZOO

REPEATS = 3
FASTER, RESNET50_SECONDS, LLAMA_SECONDS, LLAMA_GIBIBYTES = 8.0, 0.25, 6.0, 1.0
MODELS = """
torchvision:resnet50 torchvision:mobilenet_v2 torchvision:vit_b_16 torchvision:densenet121 torchvision:efficientnet_b0
torchvision:convnext_tiny torchvision:swin_t torchvision:shufflenet_v2_x1_0 torchvision:regnet_y_400mf torchvision:r3d_18
timm:mixer_s16_224 timm:xcit_small_12_p16_224 timm:ghostnet_050 timm:caformer_s18 timm:repvit_m0_9 timm:hrnet_w18_small
transformers:bert transformers:gpt2 transformers:distilbert transformers:electra transformers:vit transformers:deberta
transformers:roberta transformers:convnextv2
diffusers:UNet2DModel diffusers:DiTTransformer2DModel
""".split()  # noqa: SIM905


def main() -> int:
    parser = argparse.ArgumentParser(description="Trace time against torch.export.")
    parser.add_argument("--quick", action="store_true", help="six models, one repeat")
    parser.add_argument("--json")
    parser.add_argument("--llama", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.llama:
        print(json.dumps(_llama()))
        return 0
    repeats = 1 if options.quick else REPEATS
    _compare("torchvision:alexnet", 1)
    rows = [_compare(name, repeats) for name in (MODELS[::4] if options.quick else MODELS)]
    llama = json.loads(
        subprocess.run([sys.executable, "-m", "benchmarks.trace_time", "--llama"], check=True, stdout=subprocess.PIPE).stdout
    )
    ratios = [r["export"] / r["trace"] for r in rows if r["export"] is not None]
    ratio = statistics.median(ratios)
    resnet50 = next(r["trace"] for r in rows if r["name"] == "torchvision:resnet50")
    least = 1 if options.quick else 20
    figures = [
        Figure("models compared", f">= {least}", str(len(ratios)), len(ratios) >= least),
        Figure("median speed-up over torch.export", f">= {FASTER:g}x", f"{ratio:.1f}x", ratio >= FASTER, "torch.export 1x"),
        Figure(
            "resnet50",
            f"<= {RESNET50_SECONDS} s",
            f"{resnet50:.3f} s",
            resnet50 <= RESNET50_SECONDS,
            f"torch.export {rows[0]['export']:.2f} s",
        ),
        Figure("Llama-7B, built and traced", f"<= {LLAMA_SECONDS:g} s", f"{llama['seconds']:.2f} s", llama["seconds"] <= LLAMA_SECONDS),
        Figure("Llama-7B, resident set", f"<= {LLAMA_GIBIBYTES:g} GiB", f"{llama['gib']:.2f} GiB", llama["gib"] <= LLAMA_GIBIBYTES),
    ]
    table = [
        (r["name"], r["nodes"], f"{r['trace']:.3f}", "failed" if r["export"] is None else f"{r['export']:.2f}",
         "" if r["export"] is None else f"{r['export'] / r['trace']:.1f}", f"{r['first']:.3f}",
         "" if r["export"] is None else f"{r['first_export'] / r['first']:.1f}")
        for r in rows
    ]  # fmt: skip
    columns = ("model", "ops", "trace s", "torch.export s", "times faster", "first trace s", "times faster")
    firsts = statistics.median(r["first_export"] / r["first"] for r in rows if r["export"] is not None)
    notes = [
        f"first calls: median {firsts:.1f}x",
        f"Llama-7B: {llama['nodes']} ops, {llama['weights_gib']:.2f} GiB of weights that are never allocated",
    ]
    return finish("trace_time", figures, columns, table, threads=1, notes=notes, json_path=options.json)


def _compare(name: str, repeats: int) -> dict[str, Any]:
    """Seconds of both tracers: the first call of each, and the least of `repeats` further turns."""
    from neaptide.compiler.trace import trace

    model = ZOO[name].build().eval()
    args, kwargs = ZOO[name].inputs()
    nodes = 0

    def ours() -> None:
        nonlocal nodes
        nodes = len(trace(model, args, kwargs).nodes)

    def theirs() -> None:
        with torch.no_grad():
            torch.export.export(model, args, kwargs, strict=False)

    first, their_first = _timed(ours), None
    try:
        their_first = _timed(theirs)
    except Exception as error:
        print(f"{name}: torch.export fails: {' '.join(str(error).split())[:120]}", file=sys.stderr)
    ours_seconds, their_seconds = [], []
    for _ in range(repeats):
        ours_seconds.append(_timed(ours))
        if their_first is not None:
            their_seconds.append(_timed(theirs))
    row = {
        "name": name,
        "nodes": nodes,
        "trace": min(ours_seconds),
        "export": min(their_seconds, default=None),
        "first": first,
        "first_export": their_first,
    }
    print(row, file=sys.stderr, flush=True)
    return row


def _timed(call: Callable[[], None]) -> float:
    gc.collect()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _resident_peak() -> int:
    """Largest resident set of this process in KiB; getrusage would count what the parent held when it forked."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def _llama() -> dict[str, Any]:
    import benchmarks.torchvision_shim  # noqa: F401, I001
    from transformers import LlamaConfig, LlamaForCausalLM

    from neaptide.compiler.trace import trace

    tokens = torch.zeros(1, 2048, dtype=torch.int64)
    trace(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    started = time.perf_counter()
    graph = trace(lambda: LlamaForCausalLM._from_config(LlamaConfig(), dtype=torch.bfloat16), (), {"input_ids": tokens})
    return {
        "seconds": time.perf_counter() - started,
        "gib": _resident_peak() / (1 << 20),
        "nodes": len(graph.nodes),
        "weights_gib": graph.bytes_by_role()["parameter"] / (1 << 30),
    }


if __name__ == "__main__":
    sys.exit(main())
