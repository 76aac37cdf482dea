"""What a search leaves behind: the front as CSV, and the chosen network as Python, ONNX and weights, measured on its target."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compiler.errors import BudgetError, MissingExtraError
from .engine import Context, Proposal
from .evaluate import weights_path
from .network_source import network_source
from .result import Candidate, SearchResult

if TYPE_CHECKING:
    import torch

    from ..targets.database import CostDatabase
    from ..targets.spec import Target
    from .space import Architecture


def write_front(result: SearchResult, path: str | Path) -> None:
    """The front as CSV, best first: a column for each metric, `measured` ones beside them, and the architecture last."""
    metrics = list(dict.fromkeys(name for c in result.front for name in c.values))
    measured = any(c.measured for c in result.front)
    columns = ["index", *metrics, *(["measured", "measured_arena", "measured_flash"] if measured else []), "origin", "architecture"]
    with Path(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for c in result.front:
            real = [c.measured.value, c.measured.arena, c.measured.flash] if c.measured else [None] * 3
            writer.writerow([c.index, *(c.values.get(m) for m in metrics), *(real if measured else []), c.origin, c.text])


def write_network(context: Context, candidate: Candidate, folder: str | Path, *, name: str = "network") -> Iterable[Path]:
    """Write `NAME.py`, which needs torch alone; `NAME.onnx`; and, where the search trained it, `NAME.safetensors`. The paths, as written.

    Raises `MissingExtraError` at the ONNX file without `neaptide[onnx]`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    module, trained = network(context, candidate.arch)
    source = folder / f"{name}.py"
    weights = folder / f"{name}.safetensors"
    shape = context.space.input_shape(candidate.arch)
    source.write_text(
        network_source(module, shape, title=f"{context.space.name}: {candidate.text}", weights=weights.name if trained else "")
    )
    yield source
    if trained:
        from .weights import save_weights

        save_weights(weights, module.state_dict(), {"space": context.space.describe(), "architecture": candidate.text})
        yield weights
    onnx = folder / f"{name}.onnx"
    write_onnx(module, shape, onnx)
    yield onnx


def network(context: Context, arch: Architecture) -> tuple[torch.nn.Module, bool]:
    """The network in evaluation mode, and whether it has the weights that the search trained."""
    import torch

    from .weights import load_weights

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        module = context.space.module(arch).eval()
    path = weights_path(context, Proposal(arch))
    trained = path.is_file()
    if trained:
        module.load_state_dict(load_weights(path)[0])
    return module, trained


def write_onnx(module: torch.nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """Export for inputs of `shape`. Raises `MissingExtraError` without `neaptide[onnx]`."""
    import contextlib
    import io
    import warnings

    import torch

    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("onnxscript", "onnx", f"writing {path}") from error
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.zeros(shape),), str(path), dynamo=True, verbose=False, external_data=False)


def measure_candidate(candidate: Candidate, context: Context, target: Target | None, database: CostDatabase | None) -> Candidate:
    """`candidate` with its cost on `target`, measured; or with a note that says why it cannot run there."""
    import torch

    from ..targets.measure import measure

    if target is None:
        return replace(candidate, note="not measured: no --target to run it on")
    module, _ = network(context, candidate.arch)
    example: Any = (torch.randn(context.space.input_shape(candidate.arch), generator=torch.Generator().manual_seed(0)),)
    try:
        return replace(candidate, measured=measure(module, example, target=target, name=candidate.arch.digest, database=database))
    except (BudgetError, MissingExtraError) as error:
        return replace(candidate, note=f"not measured: {error}")
