"""Models by path, opened in one place and without running anything in them: `load_model`.

Every command and function that takes the path of a model comes through here (or through `Graph.from_onnx` and
`Graph.from_exported_program`, which read with the same two readers). What is handed on is in memory, whole: neither TVM nor
onnxruntime nor torch opens a file that a model names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .errors import SourceError

SUFFIXES = (".onnx", ".pt2")


def load_model(given: Any) -> Any:
    """The model at a path, as a `torch.export.ExportedProgram` (.pt2) or an `onnx.ModelProto` (.onnx) with all its weights in it.

    Anything but a path comes back as it is, an ONNX model only if it holds all its weights. Raises `FormatError` for a file that is
    missing, damaged or could run code, `SourceError` for another kind of file, `MissingExtraError` without onnx.
    """
    if isinstance(given, (str, os.PathLike)):
        suffix = Path(given).suffix.lower()
        if suffix == ".pt2":
            from .pt2_files import load_pt2

            return load_pt2(given)
        if suffix == ".onnx":
            from .onnx_files import inlined

            return inlined(given)
        raise SourceError(f"{os.fspath(given)!r} is neither .onnx nor .pt2; pass a torch module, an exported program or an ONNX model")
    if is_onnx(given):
        from .onnx_files import inlined

        return inlined(given)
    return given


def is_onnx(model: Any) -> bool:
    """Whether `model` is an `onnx.ModelProto`."""
    return hasattr(model, "graph") and hasattr(model, "opset_import")


def model_name(given: Any) -> str:
    """What a model is called that nobody named: its file without the suffix, or its class."""
    return Path(given).stem if isinstance(given, (str, os.PathLike)) else type(given).__name__
