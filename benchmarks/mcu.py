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

from neaptide.targets.cost import Cost
from neaptide.targets.mcu.measure import measure_network
from neaptide.targets.mcu.network import Network, prepare
from neaptide.targets.mcu.qemu_run import has_qemu

from .figures import Figure, finish
from .mcu_models import NETWORKS, network

CORES = ("cortex-m3", "cortex-m4f", "cortex-m7", "cortex-m33", "cortex-m55")
MOBILENET = "MobileNetV2-0.35 at 64"
BASELINE = 467_350 * 40  # the same network through LLVM with one schedule for every shape, 467,350 ticks of 40 instructions
ERROR, AGREEMENT, COLD_S = 1e-4, 1e-3, 15.0
RUNS = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two networks on two cores")
    parser.add_argument("--json", help="write results to this file")
    options = parser.parse_args()
    qemu = has_qemu()
    cores = CORES[1:3] if options.quick else CORES if qemu else CORES[:-1]
    names = (MOBILENET, "DS-CNN") if options.quick else tuple(NETWORKS)
    cold = _cold_seconds()
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
            rows.append(_row(cost, difference))
    counts = _under_load(prepared["DS-CNN"])
    mobilenet = next(c for c in costs if c.name == MOBILENET and c.target == "cortex-m4f")
    ratio = BASELINE / (mobilenet.instructions or 1)
    worst = max(c.max_error or 0.0 for c in costs)
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
        Figure(f"{MOBILENET}: torch module to cost, nothing cached", f"<= {COLD_S:g} s", f"{cold:.1f} s", cold <= COLD_S),
    ]  # fmt: skip
    columns = ("network", "core", "instructions", "arena B", "stack B", "flash B", "error", "QEMU apart")
    return finish("mcu", figures, columns, rows, threads=1, json_path=options.json)


def _row(cost: Cost, difference: str) -> tuple[str, ...]:
    numbers = (cost.instructions, cost.arena, cost.stack, cost.flash)
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


def _cold_seconds() -> float:
    """Seconds from a torch module to its cost in a new process whose compiler has seen another network, but none of its operators."""
    program = (
        "import time; from benchmarks.mcu_models import network; from neaptide.targets.mcu.measure import measure_mcu\n"
        "def seconds(name):\n"
        "    model, x = network(name)\n"
        "    start = time.perf_counter()\n"
        "    measure_mcu(model, (x,), target='cortex-m4f')\n"
        "    return time.perf_counter() - start\n"
        f"seconds('SE net'); print(seconds({MOBILENET!r}))"
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    start = time.perf_counter()
    code = main()
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    sys.exit(code)
