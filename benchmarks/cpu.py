"""MobileNetV2 at 224, fp32, on this machine's CPU with one thread: tuned operators beside torch eager and onnxruntime in one run.

`python -m benchmarks.cpu [--quick] [--trials N] [--database FILE] [--json PATH]`. Needs `neaptide[mcu,dev]`. Tuning takes minutes; the
database keeps it, so that a second run takes seconds and more `--trials` go on from there.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from neaptide.targets.cost import Cost
from neaptide.targets.database import CostDatabase
from neaptide.targets.measure import measure

from .figures import Figure, finish
from .mcu_models import mobilenet_v2

TRIALS, QUICK_TRIALS = 16, 6
RATIO, ERROR = 2.5, 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TRIALS} schedules per operator")
    parser.add_argument("--trials", type=int, help=f"schedules per operator (default {TRIALS})")
    parser.add_argument("--database", help="where schedules are kept (default: the user's cost database)")
    parser.add_argument("--json", help="write results to this file")
    options = parser.parse_args()
    trials = options.trials or (QUICK_TRIALS if options.quick else TRIALS)
    torch.manual_seed(0)
    model = _calibrated(mobilenet_v2(1.0, 1000))
    image = torch.randn(1, 3, 224, 224)
    start = time.perf_counter()
    with CostDatabase(options.database) as database:
        cost = measure(
            model, (image,), target="cpu", name="MobileNetV2 at 224", threads=1, trials=trials, database=database, progress=_progress
        )
    seconds = time.perf_counter() - start
    alone = sum(op.seconds or 0.0 for op in cost.per_op)
    notes = (f"{len({op.signature for op in cost.per_op})} distinct operators, {trials} schedules each, {seconds:.0f} s in all",
             f"operators alone take {alone * 1e3:.2f} ms together")  # fmt: skip
    return finish("cpu", _figures(cost), ("runtime", "version", "median ms", "half range"), _rows(cost), threads=1, notes=notes,
                  json_path=options.json)  # fmt: skip


def _calibrated(model: torch.nn.Module) -> torch.nn.Module:
    """`model` in inference mode with BatchNorm statistics of random images, without which random weights leave only the last bias."""
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(2, 3, 224, 224))
    return model.eval()


def _figures(cost: Cost) -> list[Figure]:
    ours, torch_s, onnx_s = cost.latency or float("inf"), cost.peers["torch"], cost.peers["onnxruntime"]
    error = float("inf") if cost.max_error is None else cost.max_error
    return [
        Figure("MobileNetV2 fp32 tuned, 1 thread, against torch eager", "faster", f"{torch_s / ours:.2f} x as fast", ours < torch_s,
               f"{torch_s * 1e3:.2f} ms"),
        Figure("the same against onnxruntime", f"within {RATIO} x", f"{ours / onnx_s:.2f} x its time", ours <= RATIO * onnx_s,
               f"{onnx_s * 1e3:.2f} ms"),
        Figure("its outputs against torch", f"error <= {ERROR:g}", f"{error:.1e}", error <= ERROR),
    ]  # fmt: skip


def _rows(cost: Cost) -> list[tuple[str, ...]]:
    timed = {"neaptide (TVM, tuned)": (cost.versions["apache-tvm"], cost.latency or float("inf"), cost.spread or 0.0)}
    timed |= {name: (cost.versions[name], seconds, cost.peer_spreads[name]) for name, seconds in cost.peers.items()}
    return [(name, version, f"{seconds * 1e3:.2f}", f"{spread:.1%}") for name, (version, seconds, spread) in timed.items()]


def _progress(stage: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {stage}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
