"""Networks on CUDA GPUs: on a machine with one times and peaks, anywhere kernels compiled, what they take, and the least time.

python -m benchmarks.gpu
python -m benchmarks.gpu --quick --targets sm_90

With a GPU of a target's architecture, and torch built for CUDA: every distinct operator is tuned there (`--trials`), then Neaptide's
arena runs in turns with torch eager (TF32 off), and the bytes that each allocates at most are `torch.cuda.max_memory_allocated`. Without
one those columns say `unverified`. With --database the schedules are kept, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import Figure, finish
from benchmarks.mcu_models import NETWORKS, network
from neaptide.targets.database import CostDatabase
from neaptide.targets.nvcc import kernel_facts, nvcc_version
from neaptide.targets.spec import load_target

ERROR = 1e-4
UNVERIFIED = "unverified"
QUICK = ("ResNet8", "SE net", "transformer block")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=["sm_80", "sm_90"])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--quick", action="store_true", help="three networks")
    parser.add_argument("--trials", type=int, default=64, help="schedules to time per distinct operator, on a GPU")
    parser.add_argument("--database", metavar="FILE")
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = QUICK if options.quick else options.networks
    with tempfile.TemporaryDirectory() as scratch, CostDatabase(options.database or Path(scratch) / "costs.sqlite") as database:
        cases = [(_case(name, target, options.trials, database), name, target) for target in options.targets for name in names]
    measured = [case for case, _, _ in cases if case["kind"] == "measured"]
    spilled = sum(case["spilled"] or 0 for case, _, _ in cases)
    compiled = [case for case, _, _ in cases if case["registers"] is not None]
    kernels, beyond = sum(case["kernels"] for case, _, _ in cases), sum(len(case["beyond"]) for case, _, _ in cases)
    figures = [
        Figure("kernels within the threads and shared memory of a block", "all",
               f"{kernels - beyond} of {kernels}", kernels > 0 and not beyond),
        Figure("networks whose kernels nvcc compiles", "all where nvcc is", f"{len(compiled)} of {len(cases)}; {spilled} B spilled",
               not nvcc_version() or len(compiled) == len(cases)),
    ]  # fmt: skip
    if measured:
        worst = max(case["error"] for case in measured)
        below = [case for case in measured if case["latency"] < case["bound"]]
        figures += [
            Figure("relative error of outputs on the GPU", f"<= {ERROR:g}", f"{worst:.1e}", worst <= ERROR),
            Figure("networks faster than their bound", "0", f"{len(below)} of {len(measured)}", not below),
        ]
    notes = [f"nvcc {nvcc_version()}" if nvcc_version() else "nvcc is not installed: registers and spills are not known"]
    if len(measured) < len(cases):
        notes.append("no GPU of some targets' architecture was here: their times and peaks are unverified, their kernels never ran")
    columns = (
        "network",
        "target",
        "bound µs",
        "measured µs",
        "torch eager µs",
        "peak B",
        "torch peak B",
        "plan B",
        "registers",
        "shared B",
        "compile s",
    )
    return finish("gpu", figures, columns, [_row(*case) for case in cases], notes=notes, json_path=options.json)


def _case(name: str, target_name: str, trials: int, database: CostDatabase) -> dict[str, Any]:
    """Bound and facts of one network on one target, and what was measured where that is possible."""
    from neaptide.targets.tvm.cuda import bound_cost, compile_network, measure_cuda
    from neaptide.targets.tvm.cuda_run import gpu_name

    model, x = network(name)
    target = load_target(target_name)
    start = time.perf_counter()
    compiled = compile_network(model, (x,), target=target, name=name)
    facts = kernel_facts(compiled.source, target.tvm["arch"])
    seconds = time.perf_counter() - start
    peaks = target.roofline
    assert peaks is not None
    block = target.tvm["max_threads_per_block"]
    beyond = [f.kernel for f in facts.values() if f.shared > peaks.shared_memory_block or (f.threads or 0) > block]
    bound = bound_cost(compiled, facts)
    case: dict[str, Any] = {
        "kind": "bound",
        "beyond": beyond,
        "kernels": len(facts),
        "bound": bound.latency,
        "plan": bound.plan,
        "registers": max((f.registers for f in facts.values() if f.registers is not None), default=None),
        "spilled": sum(f.spilled or 0 for f in facts.values()),
        "shared": max((f.shared for f in facts.values()), default=0),
        "seconds": seconds,
    }
    if gpu_name(target) is None:
        return case
    cost = measure_cuda(model, (x,), target=target, name=name, trials=trials, database=database)
    measured = {"kind": "measured", "latency": cost.latency, "spread": cost.spread, "error": cost.max_error, "own_peak": cost.peak}
    return case | measured | {"eager": cost.peers["torch"], "peak": cost.peer_peaks["torch"]}


def _row(case: dict[str, Any], name: str, target: str) -> tuple[object, ...]:
    measured = case["kind"] == "measured"
    return (
        name,
        target,
        f"{case['bound'] * 1e6:.3f}",
        f"{case['latency'] * 1e6:,.1f} ± {case['spread']:.0%}" if measured else UNVERIFIED,
        f"{case['eager'] * 1e6:,.1f}" if measured else UNVERIFIED,
        f"{case['own_peak']:,}" if measured else UNVERIFIED,
        f"{case['peak']:,}" if measured else UNVERIFIED,
        f"{case['plan']:,}",
        "not known" if case["registers"] is None else case["registers"],
        f"{case['shared']:,}",
        f"{case['seconds']:.1f}",
    )


if __name__ == "__main__":
    sys.exit(main())
