"""`make bench`: run every figure, one after another on a quiet machine, and write docs/results.md from that one run.

`python -m benchmarks.run [--quick] [--resume] [--only NAME ...] [--out docs/results.md]`. Exits 1 when a figure is missed. Each benchmark
leaves its result in out/bench; `--resume` takes up a run that was broken off and does again only what has no result there. With `--only`,
what the page says of the others stays.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "out" / "bench"
RESUMABLE = ("trace_zoo", "eager_peak", "training_peak", "execute", "memnet_search", "moofa_supernet")

BENCHMARKS = {
    "order": "Orders: proven optima on the public graphs",
    "arena": "Offsets: arena over its lower bound",
    "large_graphs": "Analysis of graphs of 200,000 operators",
    "flops": "FLOPs against hand counts",
    "trace_time": "Trace time against torch.export",
    "trace_zoo": "Models traced",
    "eager_peak": "Eager peak against the profiler, inference",
    "training_peak": "Eager peak against the profiler, training",
    "formula": "Peaks as formulas",
    "execute": "Execution in the arena against eager",
    "fuzz": "Property tests against brute force",
    "mcu": "Networks as firmware on emulated microcontrollers",
    "cpu": "MobileNetV2 on this machine's CPU",
    "gpu": "CUDA GPUs: bounds and static facts, measured where one is",
    "cost_database": "The cost database",
    "predictors": "Predictors on published latencies",
    "predictor_mcu": "Predictor of microcontroller instructions",
    "predictor_cpu": "Predictor of latencies on this machine's CPU",
    "spaces": "Graphs of search spaces against traces of their modules",
    "published": "Published networks from their block tables",
    "nasbench201_space": "NAS-Bench-201: the whole space",
    "oracle": "The oracle against the full pipeline, and its throughput",
    "search_kill": "Searches killed and taken up again",
    "memnet_controller": "MemNet's ranking controller on NAS-Bench-201",
    "memnet_search": "MemNet against random search on CIFAR-10",
    "memnet_trained": "MemNet's ranking controller on networks trained here",
    "moofa_predictor": "Accuracy predictors on published accuracies",
    "moofa_search": "MOOFA: evolution under a hard limit on the peak",
    "moofa_supernet": "MOOFA: supernet against networks trained alone",
}


class Part(NamedTuple):
    """What the page says of one benchmark: rows of the table of figures, and lines of its section."""

    figures: list[str]
    section: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(description="Every figure, into docs/results.md.")
    parser.add_argument("--quick", action="store_true", help="reduced runs, for a look; the page says so")
    parser.add_argument("--resume", action="store_true", help="keep the results that are in out/bench")
    parser.add_argument("--only", nargs="+", choices=sorted(BENCHMARKS), help="run just these; the page also shows what is in out/bench")
    parser.add_argument("--out", default=str(ROOT / "docs" / "results.md"))
    options = parser.parse_args()
    if not (options.resume or options.only):
        shutil.rmtree(STORE, ignore_errors=True)
    STORE.mkdir(parents=True, exist_ok=True)
    page = Path(options.out)
    before = _parts(page.read_text()) if options.only and page.exists() else {}
    for name in options.only or BENCHMARKS:
        if not (options.resume and _stored(name)):
            _run(name, options.quick)
        _write(page, before, options.quick)
    results = [r for r in map(_stored, options.only or BENCHMARKS) if r]
    missed = [f for r in results for f in r["figures"] if not f["reached"]]
    broken = [r["name"] for r in results if not r["figures"]]
    count = sum(len(r["figures"]) for r in results)
    print(f"{count} figures, {len(missed)} missed, {len(broken)} benchmarks without a result: {options.out}")
    return 1 if missed or broken else 0


def _stored(name: str) -> dict[str, Any] | None:
    path = STORE / f"{name}.json"
    return {**json.loads(path.read_text()), "title": BENCHMARKS[name]} if path.exists() else None


def _run(name: str, quick: bool) -> None:
    print(f"== {BENCHMARKS[name]}", flush=True)
    path, started = STORE / f"{name}.json", time.perf_counter()
    fresh = path.with_suffix(".part")
    fresh.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(fresh), *(["--quick"] if quick else [])]
    if name in RESUMABLE:
        command += ["--resume", str(STORE / f"{name}.rows")]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if fresh.exists():
        result = json.loads(fresh.read_text())
    else:
        result = {"name": name, "figures": [], "columns": [], "rows": [], "notes": [f"ended with exit code {code} and no result"]}
    result |= {"seconds": round(time.perf_counter() - started, 1), "date": datetime.date.today().isoformat()}
    fresh.write_text(json.dumps(result, indent=1))
    fresh.replace(path)


def _write(path: Path, before: dict[str, Part], quick: bool) -> None:
    """The page of what is stored, and where nothing is, of what it said `before`."""
    stored = {name: result for name in BENCHMARKS if (result := _stored(name))}
    parts = before | {name: _part(name, result) for name, result in stored.items()}
    lines = [
        "# Results",
        "",
        f"Written by `make bench` on {datetime.date.today().isoformat()}; a run may be taken up with `--resume` where it broke off"
        + (" **of reduced size (`--quick`)**." if quick else "."),
        "Peaks and counts are exact; times are wall-clock on a shared machine, so ratios taken side by side matter more than seconds.",
        "",
        *_machine([r["environment"] for r in stored.values() if r.get("environment")], before),
        "| benchmark | figure | to reach | got | | beside it |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    shown = [parts[name] for name in BENCHMARKS if name in parts]
    for part in shown:
        lines += part.figures
    for part in shown:
        lines += ["", *part.section]
    path.write_text("\n".join(lines) + "\n")


def _machine(environments: list[dict[str, Any]], before: dict[str, Part]) -> list[str]:
    """One line on the machine, of the environment with most packages."""
    if "" in before:
        return before[""].section
    if not environments:
        return []
    e = max(environments, key=lambda e: len(e["versions"]))
    isa = next((x["isa"] for x in environments if x["isa"]), "")
    versions = ", ".join(f"{k} {v}" for k, v in e["versions"].items())
    return [f"Machine: {e['cpu']}, {e['cores']} cores{f', {isa}' if isa else ''}; Python {e['python']}; {versions}.", ""]


def _part(name: str, r: dict[str, Any]) -> Part:
    """What the page says of one result."""
    figures = [_row([name, f["what"], f["reach"], f["got"], "reached" if f["reached"] else "**missed**", f["peer"]]) for f in r["figures"]]
    lines = [f"## {r['title']}", ""]
    if r.get("command"):
        took = f"{r['seconds']} s, " if r.get("seconds") else ""
        lines += [f"`{r['command']}`: {took}threads: {r['environment']['threads']}.", ""]
    lines += [f"{note}\n" for note in r.get("notes", [])]
    if r["rows"]:
        lines += [_row(r["columns"]), _row(["---"] * len(r["columns"])), *map(_row, r["rows"])]
    return Part(figures, lines)


def _parts(page: str) -> dict[str, Part]:
    """A written page taken apart again, by benchmark; "" is the line on the machine."""
    head, *sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    texts = {section.splitlines()[0].removeprefix("## "): section.rstrip().splitlines() for section in sections}
    figures: dict[str, list[str]] = {}
    for line in head.splitlines():
        if (found := re.match(r"\| (\w+) \|", line)) and found[1] in BENCHMARKS:
            figures.setdefault(found[1], []).append(line)
    parts = {name: Part(figures.get(name, []), texts[title]) for name, title in BENCHMARKS.items() if title in texts}
    machine = [line for line in head.splitlines() if line.startswith("Machine: ")]
    return parts | ({"": Part([], [*machine, ""])} if machine else {})


def _row(cells: list[Any]) -> str:
    return "| " + " | ".join(_portable(str(c)).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def _portable(text: str) -> str:
    """`text` without the folders of this machine: what is installed is named from its package, what is ours from the root."""
    return re.sub(r"[^\s:]*/site-packages/", "", text).replace(f"{ROOT}/", "")


if __name__ == "__main__":
    sys.exit(main())
