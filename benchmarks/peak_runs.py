"""Runs many models through a worker process that may die on one of them, and remembers what was found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .peak_models import ROOT, zoo_python


def run_all(module: str, options: Sequence[str], cases: Sequence[str], label: str, resume: str | None = None) -> dict[str, dict[str, Any]]:
    """The answer to each case from `python -m module *options`, which reads a case a line and prints `result JSON` for each.

    A worker that ends without an answer is started anew for the next case. `resume`: JSON-lines file of earlier answers under `label`.
    """
    store = Path(resume) if resume else None
    found: dict[str, dict[str, Any]] = {}
    if store and store.exists():
        for line in store.read_text().splitlines():
            row = json.loads(line)
            if row["label"] == label and row["case"] in cases:
                found[row["case"]] = row["answer"]
    missing = [case for case in cases if case not in found]
    worker: subprocess.Popen[str] | None = None
    try:
        for i, case in enumerate(missing):
            if worker is None:
                worker = subprocess.Popen(
                    [zoo_python(), "-m", module, *options],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
                )  # fmt: skip
            answer = _ask(worker, case)
            if answer is None:
                answer = {"error": f"the process ended with status {worker.wait()}"}
                worker = None
            found[case] = answer
            if store:
                with store.open("a") as stream:
                    stream.write(json.dumps({"label": label, "case": case, "answer": answer}) + "\n")
            print(f"{label} [{i + 1}/{len(missing)}] {case}: {_summary(answer)}", file=sys.stderr, flush=True)
    finally:
        if worker is not None:
            worker.kill()
            worker.wait()
    return {case: found[case] for case in cases}


def _ask(worker: subprocess.Popen[str], case: str) -> dict[str, Any] | None:
    assert worker.stdin is not None and worker.stdout is not None
    try:
        worker.stdin.write(case + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return None
    for line in worker.stdout:
        if line.startswith("result "):
            return json.loads(line[len("result ") :])
    return None


def _summary(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return str(answer["error"])
    return ", ".join(f"{k} {v}" for k, v in answer.items() if isinstance(v, int | float))


def serve(compare: Callable[[str], dict[str, Any]], threads: int) -> int:
    """The worker's side: answer each case on standard input with one line of JSON, on `threads` threads of torch."""
    import torch

    torch.set_num_threads(threads)
    for line in sys.stdin:
        try:
            answer = compare(line.strip())
        except Exception as error:  # a model that cannot be built, traced or run is a result, too
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print("result", json.dumps(answer), flush=True)
    return 0
