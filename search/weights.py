"""Trained weights on disk, as safetensors, and from one network to another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compiler.errors import FormatError, MissingExtraError, SourceError, WriteError
from ..compiler.output_files import write_bytes

if TYPE_CHECKING:
    import torch


def save_weights(path: str | Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any] | None = None) -> None:
    """Write `tensors` and `facts` (JSON values) as one safetensors file that is there whole or not at all, whenever the writer dies."""
    safetensors = _safetensors("saving weights")
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot write {str(path)!r}: {error.strerror}") from None
    whole = safetensors.torch.save(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata={"facts": json.dumps(dict(facts or {}))}
    )
    write_bytes(path, whole)


def load_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and facts of a file that `save_weights` wrote. Raises `SourceError` when it is absent, `FormatError` when broken."""
    safetensors = _safetensors("loading weights")
    path = Path(path)
    if not path.is_file():
        raise SourceError(f"no weights at {path}")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (safetensors.SafetensorError, json.JSONDecodeError, OSError) as error:
        raise FormatError(f"{path} is no safetensors file: {error}") from error


def inherit(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> int:
    """Copy into `module` what it shares by name with `tensors`, and of what differs in channels the corner both have; numbers copied.

    A network grown from another starts with what that one had learned (MemNet's trainer copies overlapping slices in the same way). Weights
    of a layer that reads more channels than before are zero for the new ones, so that where nothing but new channels came, the grown
    network computes what the other did (as Net2Net does, Chen et al. 2016). Kernels of another size, and a depthwise kernel in place of a
    dense one, are another layer's and stay as they are.
    """
    import torch

    copied = 0
    with torch.no_grad():
        for name, own in module.state_dict().items():
            theirs = tensors.get(name)
            if theirs is None or theirs.dim() != own.dim() or theirs.dtype != own.dtype or theirs.shape[2:] != own.shape[2:]:
                continue
            if own.dim() > 2 and (own.shape[1] == 1) != (theirs.shape[1] == 1):
                continue
            corner = tuple(slice(0, min(a, b)) for a, b in zip(own.shape, theirs.shape, strict=True))
            own[corner].copy_(theirs[corner])
            if own.dim() > 1 and own.shape[1] > theirs.shape[1]:
                own[: theirs.shape[0], theirs.shape[1] :] = 0
            copied += own[corner].numel()
    return copied


def _safetensors(purpose: str) -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise MissingExtraError("safetensors", "search", purpose) from error
    return safetensors
