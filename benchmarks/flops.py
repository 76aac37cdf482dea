"""FLOPs against hand counts: every op kind and three networks, with the FLOP counters people use beside Neaptide.

`python -m benchmarks.flops [--no-peers] [--quick] [--json PATH]`. Exits 1 unless every count of Neaptide equals its hand count.
The peers run in their own environment (`make bench` makes it), in the same run; `--quick` leaves the networks out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import Figure, finish
from benchmarks.flops_cases import Case, network_cases, op_cases
from benchmarks.flops_peers import TOOLS
from neaptide.compiler.count import Counts, count
from neaptide.compiler.trace import trace

ROOT = Path(__file__).resolve().parent.parent


def ours(case: Case) -> tuple[int, Counts]:
    """Neaptide's number for `case`, comparable with its hand count, and all counts."""
    counts = count(trace(case.module().train(case.training), case.args()), causal="half" if case.causal else None)
    return (counts.elementwise_flops if case.elementwise else counts.macs), counts


def peers(python: Path) -> dict[str, dict[str, Any]]:
    """`{"version", "results"}` per tool, each in a process of its own; a tool that cannot start has no results."""
    found = {}
    for tool in TOOLS:
        run = subprocess.run(
            [str(python), "-W", "ignore", "-m", "benchmarks.flops_peers", tool],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            print(f"{tool} ended with exit code {run.returncode}: {run.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            found[tool] = {"version": "", "results": {}}
        else:
            found[tool] = json.loads(run.stdout.strip().splitlines()[-1])
    return found


def ratio(value: float | str | None, hand: int) -> str:
    """`value` over `hand` to four digits; exactly 1 only when they are equal; what failed, or a dash."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return "fails"
    if value == hand:
        return "1"
    text = f"{value / hand:.4g}"
    return f"{value / hand:.6f}" if text == "1" else text


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", help="write the results here")
    parser.add_argument("--quick", action="store_true", help="op kinds only, no networks")
    parser.add_argument("--no-peers", action="store_true", help="Neaptide alone")
    parser.add_argument("--peers-python", default=str(ROOT / ".venv-peers" / "bin" / "python"), help="interpreter of the peers")
    options = parser.parse_args()
    torch.set_num_threads(1)

    python = Path(options.peers_python)
    beside = {} if options.no_peers else peers(python) if python.exists() else {}
    notes = ["Numbers are reported multiply-adds over the hand count: 1 is right. Rows marked FLOPs hold no multiply-adds; each tool has"]
    notes[0] += " its own convention for them, so only Neaptide's stands against the hand count."
    if beside:
        notes.append("Peers: " + ", ".join(f"{tool} ({TOOLS[tool][1]} {p['version']})" for tool, p in beside.items()))
    if not options.no_peers and not beside:
        notes.append(f"no peers: {python} does not exist; `make .venv-peers/.ready` makes it")

    kinds, networks = op_cases(), [] if options.quick else network_cases()
    rows, exact, unknown = [], {}, 0
    for case in [*kinds, *networks]:
        got, counts = ours(case)
        unknown += sum(counts.unknown.values())
        exact[case.name] = got == case.hand and not counts.unknown
        rows.append(
            [case.name, f"{case.hand:,}", ratio(got, case.hand), *(ratio(p["results"].get(case.name), case.hand) for p in beside.values())]
        )

    right = sum(exact[c.name] for c in kinds)
    compared = [c for c in kinds if not (c.elementwise or c.causal)]
    best = max((sum(p["results"].get(c.name) == c.hand for c in compared), tool) for tool, p in beside.items()) if beside else None
    peer = f"{best[1]}, right on {best[0]} of the {len(compared)} kinds with multiply-adds" if best else ""
    figures = [
        Figure("op kinds whose count equals the hand count", f"all {len(kinds)}", f"{right} of {len(kinds)}", right == len(kinds), peer)
    ]
    for case in networks:
        said = [
            f"{tool} {p['results'][case.name] / 1e9:.4f}"
            for tool, p in beside.items()
            if isinstance(p["results"].get(case.name), (int, float))
        ]
        got, _ = ours(case)
        figures.append(Figure(f"{case.name}, GMAC", f"{case.hand / 1e9:.4f}", f"{got / 1e9:.4f}", exact[case.name], ", ".join(said)))
    figures.append(Figure("ops of unknown work", "0", str(unknown), unknown == 0))
    columns = ["op kind", "hand count", "Neaptide", *beside]
    return finish("FLOPs against hand counts", figures, columns, rows, notes=notes, json_path=options.json)


if __name__ == "__main__":
    sys.exit(main())
