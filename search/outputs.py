"""What a search leaves behind: the front as CSV, and the chosen network as Python, ONNX and weights, measured on its target."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compiler.errors import BudgetError, MissingExtraError, WriteError
from ..compiler.foreign_text import csv_cell
from ..compiler.output_files import write_bytes, write_text
from .engine import Context
from .evaluate import weights_path
from .metrics import METRICS, format_amount
from .network_source import network_source
from .result import Candidate, SearchResult
from .weights import load_weights, save_weights

if TYPE_CHECKING:
    import torch

    from ..targets.cost import Cost
    from ..targets.database import CostDatabase
    from ..targets.spec import Target
    from .constraints import Constraint
    from .space import Space


def write_front(result: SearchResult, path: str | Path) -> None:
    """The front as CSV, best first: a column for each metric, `measured` ones beside them, and the architecture last."""
    metrics = list(dict.fromkeys(name for c in result.front for name in c.values))
    measured = any(c.measured for c in result.front)
    columns = ["index", *metrics, *(["measured", "measured_arena", "measured_flash"] if measured else []), "origin", "architecture"]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(map(csv_cell, columns))
    for c in result.front:
        real = [c.measured.value, c.measured.arena, c.measured.flash] if c.measured else [None] * 3
        row = [c.index, *(c.values.get(m) for m in metrics), *(real if measured else []), c.origin, c.text]
        writer.writerow(map(csv_cell, row))
    write_text(path, text.getvalue())


def write_network(result: SearchResult, candidate: Candidate, folder: str | Path, *, name: str = "network") -> Iterator[Path]:
    """Write `NAME.py`, which needs torch alone; where the search trained it, `NAME.safetensors`; and `NAME.onnx`, its nodes in the
    order that needs least memory. Yields each path once it is written.

    Raises `MissingExtraError` at the ONNX file without `neaptide[onnx]`, `WriteError` for a file that cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot write the network in {str(folder)!r}: {error.strerror}") from None
    module, trained = network(result.space, candidate, result.folder)
    source, weights, onnx = (folder / f"{name}.{suffix}" for suffix in ("py", "safetensors", "onnx"))
    shape = result.space.input_shape(candidate.arch)
    text = network_source(module, shape, title=f"{result.space.name}: {candidate.text}", weights=weights.name if trained else "")
    write_text(source, text)
    yield source
    if trained:
        save_weights(weights, module.state_dict(), {"space": result.space.describe(), "architecture": candidate.text})
        yield weights
    write_bytes(onnx, _onnx(module, shape))
    yield onnx


def network(space: Space, candidate: Candidate, folder: str | Path) -> tuple[torch.nn.Module, bool]:
    """The network in evaluation mode, and whether it has the weights that the search in `folder` trained; else they are drawn by seed 0."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = space.module(candidate.arch).eval()
    path = weights_path(folder, candidate.proposal)
    trained = path.is_file()
    if trained:
        module.load_state_dict(load_weights(path)[0])
    return module, trained


def _onnx(module: torch.nn.Module, shape: tuple[int, ...]) -> bytes:
    import torch

    from ..compiler.trace import trace
    from ..passes.schedule import schedule

    graph = trace(module, (torch.zeros(shape),))
    return graph.to_onnx(schedule(graph).order).SerializeToString()


def measure_candidate(candidate: Candidate, context: Context, target: Target | None, database: CostDatabase | None) -> Candidate:
    """`candidate` with its cost on `target`, measured, and a note of the limits that it breaks; or with one that says why it cannot run."""
    import torch

    from ..targets.measure import measure

    if target is None:
        return replace(candidate, note="not measured: no --target to run it on")
    module, _ = network(context.space, candidate, context.folder)
    example: Any = (torch.randn(context.space.input_shape(candidate.arch), generator=torch.Generator().manual_seed(0)),)
    try:
        cost = measure(module, example, target=target, name=candidate.arch.digest, database=database)
    except (BudgetError, MissingExtraError) as error:
        return replace(candidate, note=f"not measured: {error}")
    return replace(candidate, measured=cost, note=over_limits(cost, context.constraints))


def over_limits(cost: Cost, constraints: Iterable[Constraint]) -> str:
    """Which limits a real cost breaks that the oracle's numbers keep, in words; "" for none. Its arena is held to limits of the peak."""
    real = {name: getattr(cost, "arena" if name == "peak" else name) for name in ("instructions", "latency", "flash", "arena", "peak")}
    over = [c for c in constraints if real.get(c.metric) is not None and c.excess(real[c.metric])]
    return "; ".join(f"{cost.kind} {format_amount(real[c.metric], METRICS[c.metric].unit)}, over {c.text}" for c in over)
