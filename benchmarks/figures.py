"""How every benchmark says what it reached: figures, one table, and the circumstances they were taken under.

A script builds `Figure`s and rows, calls `finish`, and exits with what it returns; `benchmarks.run` collects the JSON into docs/results.md.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "numba", "onnx", "onnxscript", "networkx", "timm", "torchvision", "transformers", "diffusers")


@dataclass(frozen=True)
class Figure:
    """One figure: what was counted, what was to be reached, what was got, whether that reaches it, and the peer beside it."""

    what: str
    reach: str
    got: str
    reached: bool
    peer: str = ""


def shared_folder() -> Path:
    """Where the public benchmark data lie: $NEAPTIDE_SHARED, or `shared` beside the repository."""
    return Path(os.environ.get("NEAPTIDE_SHARED") or Path(__file__).resolve().parent.parent.parent / "shared")


def environment(threads: int | str) -> dict[str, Any]:
    """CPU model, ISA, cores, threads, Python and package versions of this run."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    isa = ""
    if "torch" in sys.modules:
        isa = sys.modules["torch"].backends.cpu.get_cpu_capability()
    return {
        "cpu": _cpu_model(),
        "isa": isa,
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": versions,
    }


def finish(
    name: str,
    figures: Sequence[Figure],
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    threads: int | str = 1,
    notes: Sequence[str] = (),
    json_path: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> int:
    """Print the table and the figures, write JSON if asked; returns 0 when every figure is reached, else 1."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    table = Table(title=name)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)
    for note in notes:
        console.print(f"[dim]{note}[/dim]", highlight=False)
    for f in figures:
        mark = "[green]reached[/green]" if f.reached else "[red]missed[/red]"
        console.print(f"{mark}  {f.what}: {f.got} (to reach: {f.reach}){f'; beside it: {f.peer}' if f.peer else ''}", highlight=False)
    if json_path:
        document = {
            "name": name,
            "command": "python -m " + " ".join([_module_name(), *_shown(sys.argv[1:])]),
            "environment": environment(threads),
            "figures": [asdict(f) for f in figures],
            "columns": list(columns),
            "rows": [[str(c) for c in row] for row in rows],
            "notes": list(notes),
            **(extra or {}),
        }
        Path(json_path).write_text(json.dumps(document, indent=1))
    return 0 if all(f.reached for f in figures) else 1


def _module_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).name


def _shown(arguments: Sequence[str]) -> list[str]:
    """The command line without `--json PATH` and `--resume PATH`, which change nothing about the figures."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in ("--json", "--resume"):
            skip = True
        else:
            kept.append(argument)
    return kept


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
