"""Models into Relax: torch through Neaptide's trace or `torch.export`, ONNX directly; BatchNorm of torch's models is folded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from ...compiler.errors import MissingExtraError, SourceError, TraceError
from .folding import fold_batch_norm
from .traced import Untranslated, traced_relax


def to_relax(model: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> tvm.IRModule:
    """Inference of `model` as a Relax module whose `main` takes its inputs alone; weights are constants of it.

    `model`: a `torch.nn.Module` (with example `args`, `kwargs`; its own mode is left as it was), a
    `torch.export.ExportedProgram`, an `onnx.ModelProto`, or the path of an `.onnx` or `.pt2` file. Shapes are those of the
    examples. Raises `SourceError` for anything else.
    """
    import torch

    if isinstance(model, (str, Path)):
        path = Path(model)
        if path.suffix == ".onnx":
            return _from_onnx(path)
        if path.suffix == ".pt2":
            return _from_exported(torch.export.load(str(path)))
        raise SourceError(f"{path} is neither .onnx nor .pt2; pass a torch module, an exported program or an ONNX model")
    if isinstance(model, torch.nn.Module):
        try:
            return traced_relax(model, args, kwargs)
        except (Untranslated, TraceError):
            return _from_exported(_export(model, args, kwargs))
    if isinstance(model, torch.export.ExportedProgram):
        return _from_exported(model)
    if hasattr(model, "graph") and hasattr(model, "opset_import"):
        return _from_onnx(model)
    raise SourceError(f"cannot import a {type(model).__name__}; pass a torch module, an exported program or an ONNX model")


def _export(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Any:
    import torch

    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            return torch.export.export(module, tuple(args), dict(kwargs or {}))
    finally:
        for part, training in modes:
            part.training = training


def _from_exported(program: Any) -> tvm.IRModule:
    from tvm.relax.frontend.torch import from_exported_program

    fold_exported(program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return from_exported_program(program, keep_params_as_input=False, unwrap_unit_return_tuple=True)


def _from_onnx(model: Any) -> tvm.IRModule:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "onnx", "reading ONNX models") from error
    from tvm.relax.frontend.onnx import from_onnx

    if isinstance(model, Path):
        model = onnx.load(str(model))
    mod = from_onnx(model, keep_params_in_input=False)
    return relax.transform.DecomposeOpsForInference()(mod)


def fold_exported(program: Any) -> int:
    """`fold_batch_norm` in a `torch.export.ExportedProgram`: changes `program`, never the module it came from."""
    import torch

    state = program.state_dict
    names = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    known = {placeholder: state[name] for placeholder, name in names.items() if name in state}
    values = dict(known)
    folded = fold_batch_norm(program.graph, values)
    for placeholder, value in values.items():
        if value is not known[placeholder]:
            parameter = isinstance(known[placeholder], torch.nn.Parameter)
            state[names[placeholder]] = torch.nn.Parameter(value, requires_grad=False) if parameter else value
    if folded:
        program.graph_module.recompile()
    return folded
