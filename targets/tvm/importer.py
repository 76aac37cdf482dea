"""Models into Relax: torch through Neaptide's trace or `torch.export`, ONNX directly; BatchNorm of torch's models is folded."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import tvm
from tvm import relax

from ...compiler.errors import NeaptideError, SourceError, TraceError
from ...compiler.models import is_onnx, load_model
from .folding import fold_batch_norm
from .traced import Untranslated, traced_relax


def to_relax(model: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> tvm.IRModule:
    """Inference of `model` as a Relax module whose `main` takes its inputs alone; weights are constants of it.

    `model`: a `torch.nn.Module` (with example `args`, `kwargs`; its own mode is left as it was), a
    `torch.export.ExportedProgram`, an `onnx.ModelProto`, or the path of an `.onnx` or `.pt2` file. Shapes are those of the
    examples. Raises `SourceError` for anything else.
    """
    import torch

    model = load_model(model)
    if isinstance(model, torch.nn.Module):
        try:
            return traced_relax(model, args, kwargs)
        except (Untranslated, TraceError) as error:
            with _imported(type(model).__name__, error if isinstance(error, TraceError) else None):
                return _from_exported(_export(model, args, kwargs))
    if isinstance(model, torch.export.ExportedProgram):
        with _imported("the exported program"):
            return _from_exported(_own_copy(model))
    if is_onnx(model):
        return _from_onnx(model)
    raise SourceError(f"cannot import a {type(model).__name__}; pass a torch module, an exported program or an ONNX model")


@contextmanager
def _imported(called: str, traced: TraceError | None = None) -> Iterator[None]:
    """What torch.export or TVM's importer raises of a model becomes a sentence: that of `traced`, where Neaptide's own trace failed too."""
    try:
        yield
    except NeaptideError:
        raise
    except Exception as error:  # neither has an error type of its own
        said = " ".join(str(error).split())[:300] or "no message"
        raise traced or SourceError(f"{called} cannot be lowered through TVM: {type(error).__name__}: {said}") from error


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


def _own_copy(program: Any) -> Any:
    """A program over the same weights that may be changed. Raises `SourceError` for one that was saved without them."""
    missing = next((name for name, value in program.state_dict.items() if value.is_meta), None)
    if missing is not None:
        raise SourceError(f"weight {missing!r} of the exported program has no values: export the model with its weights")
    module = copy.deepcopy(program.graph_module)
    for ours, theirs in zip(module.graph.nodes, program.graph.nodes, strict=True):
        ours.name = theirs.name  # a copy gives names that are Python's own, such as "input", another ending
    return program._update(module, program.graph_signature, state_dict=dict(program.state_dict))


def _from_exported(program: Any) -> tvm.IRModule:
    from tvm.relax.frontend.torch import from_exported_program

    fold_exported(program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return from_exported_program(program, keep_params_as_input=False, unwrap_unit_return_tuple=True)


def _from_onnx(model: Any) -> tvm.IRModule:
    from tvm.relax.frontend.onnx import from_onnx

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
