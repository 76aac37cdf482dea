"""Networks in emulated microcontrollers: error, arena, instructions, agreement of the emulators, time from a module to its cost.

`python -m benchmarks.mcu [--quick] [--json PATH]`. Needs `neaptide[mcu]`; M55 and the comparison need qemu-system-arm.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from statistics import median

from neaptide.targets.cost import Cost
from neaptide.targets.mcu.measure import measure_network
from neaptide.targets.mcu.network import Network, prepare
from neaptide.targets.mcu.qemu_run import has_qemu

from .figures import Figure, finish
from .mcu_models import NETWORKS, network

CORES = ("cortex-m3", "cortex-m4f", "cortex-m7", "cortex-m33", "cortex-m55")
MOBILENET = "MobileNetV2-0.35 at 64"
BASELINE = 467_350 * 40  # the same network through LLVM with one schedule for every shape, 467,350 ticks of 40 instructions
ERROR, AGREEMENT, COLD_S, WARM_S = 1e-4, 1e-3, 15.0, 3.0
RUNS, WARM_RUNS = 10, 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two networks on two cores")
    parser.add_argument("--json", help="write results to this file")
    options = parser.parse_args()
    qemu = has_qemu()
    cores = CORES[1:3] if options.quick else CORES if qemu else CORES[:-1]
    names = (MOBILENET, "DS-CNN") if options.quick else tuple(NETWORKS)
    cold, warm = _seconds()
    rows, costs, apart = [], [], []
    prepared: dict[str, Network] = {}
    for name in names:
        model, x = network(name)
        prepared[name] = prepare(model, (x,), name=name)
        for core in cores:
            cost = measure_network(prepared[name], target=core)
            costs.append(cost)
            difference = "-"
            if qemu and core != "cortex-m55":
                other = measure_network(prepared[name], target=core, emulator="qemu")
                apart.append(abs((other.instructions or 0) / (cost.instructions or 1) - 1))
                difference = f"{apart[-1]:.4%}"
            rows.append(_row(cost, difference, prepared[name].found.saved))
    counts = _under_load(prepared["DS-CNN"])
    mobilenet = next(c for c in costs if c.name == MOBILENET and c.target == "cortex-m4f")
    objects = measure_network(prepared[MOBILENET], target="cortex-m4f", codegen="llvm")
    ratio = BASELINE / (mobilenet.instructions or 1)
    worst = max(c.max_error or 0.0 for c in (*costs, objects))
    equal = sum(c.arena == c.plan for c in costs)
    figures = [
        Figure("networks end to end, fp32", f"{len(names)} on {len(CORES)} cores, error <= {ERROR:g}",
               f"{len(names)} on {len(cores)} cores, error <= {worst:.1e}", worst <= ERROR and (options.quick or len(cores) == len(CORES))),
        Figure("arena in the ELF against the plan", "equal to the byte, all", f"{equal} of {len(costs)} equal", equal == len(costs)),
        Figure(f"instruction count over {RUNS} runs under load", "identical", f"{len(counts)} distinct", len(counts) == 1),
        Figure("QEMU against Unicorn", f"within {AGREEMENT:.1%}", f"within {max(apart):.3%}" if apart else "QEMU not installed",
               bool(apart) and max(apart) <= AGREEMENT),
        Figure(f"{MOBILENET} on M4, fewer instructions", ">= 1.5 x", f"{ratio:.2f} x ({mobilenet.instructions:,})", ratio >= 1.5,
               f"{BASELINE:,} through LLVM with one schedule for every shape"),
        _time(f"{MOBILENET}: torch module to cost, operators new", cold, COLD_S),
        _time(f"{MOBILENET}: torch module to cost, operators cached", warm, WARM_S),
    ]  # fmt: skip
    columns = (
        "network",
        "core",
        "instructions",
        "cycles, estimated",
        "arena B",
        "saved in place B",
        "stack B",
        "flash B",
        "error",
        "QEMU apart",
    )
    notes = (
        f"{MOBILENET} on M4 with LLVM's objects in place of C: {objects.instructions:,} instructions, error {objects.max_error:.1e}.",
        "Times are of new processes that have torch and the module and import the rest; processor time is that of all their processes, "
        "and the smaller of the two counts: other work on the machine lengthens the elapsed one.",
    )
    return finish("mcu", figures, columns, rows, threads=1, notes=notes, json_path=options.json)


def _time(what: str, seconds: tuple[float, float], reach: float) -> Figure:
    elapsed, processor = seconds
    return Figure(what, f"<= {reach:g} s", f"{elapsed:.1f} s, {processor:.1f} s of processor time", min(seconds) <= reach)


def _row(cost: Cost, difference: str, saved: int) -> tuple[str, ...]:
    numbers = (cost.instructions, cost.cycles, cost.arena, saved, cost.stack, cost.flash)
    return (cost.name, cost.target, *(f"{n:,}" for n in numbers), f"{cost.max_error:.1e}", difference)


def _under_load(ready: Network) -> set[tuple[int | None, ...]]:
    """Distinct per-operator counts of repeated runs, half of them beside a busy process."""
    distinct = set()
    busy = None
    try:
        for run in range(RUNS):
            if run == RUNS // 2:
                busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            cost = measure_network(ready, target="cortex-m4f")
            distinct.add(tuple(op.instructions for op in cost.per_op))
    finally:
        if busy:
            busy.kill()
            busy.wait()
    return distinct


def _seconds() -> tuple[tuple[float, float], tuple[float, float]]:
    """Elapsed and processor seconds from a torch module to its cost, each in a new process: with operators that are new, then known.

    The compiler has built another network before, so that its own libraries are there. Of the warm runs, the medians.
    """
    program = (
        "import sys, time, torch; from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage\n"
        "from benchmarks.mcu_models import network\n"
        "torch.set_num_threads(1)\n"
        "model, x = network(sys.argv[1])\n"
        "def now(): return time.perf_counter(), sum(sum(getrusage(who)[:2]) for who in (RUSAGE_SELF, RUSAGE_CHILDREN))\n"
        "start = now()\n"
        "from neaptide.targets.mcu.measure import measure_mcu\n"
        "measure_mcu(model, (x,), target='cortex-m4f')\n"
        "end = now(); print(end[0] - start[0], end[1] - start[1])"
    )
    with tempfile.TemporaryDirectory() as folder:
        caches = dict.fromkeys(("NEAPTIDE_CACHE", "ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"), folder)
        environment = {**os.environ, **caches, "OMP_NUM_THREADS": "1"}

        def run(name: str) -> tuple[float, float]:
            done = subprocess.run([sys.executable, "-c", program, name], capture_output=True, text=True, check=True, env=environment)
            elapsed, processor = map(float, done.stdout.split()[-2:])
            return elapsed, processor

        run("SE net")
        cold = run(MOBILENET)
        warm = [run(MOBILENET) for _ in range(WARM_RUNS)]
    return cold, (median(t[0] for t in warm), median(t[1] for t in warm))


if __name__ == "__main__":
    start = time.perf_counter()
    code = main()
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    sys.exit(code)
