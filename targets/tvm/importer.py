"""Models into Relax: torch through `torch.export`, ONNX directly, with BatchNorm folded into the convolutions before it.

BatchNorm is folded in the exported program, where every form of convolution is still one op: Relax's own pass misses
convolutions that have a bias.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from ...compiler.errors import MissingExtraError, SourceError

_FOLDABLE = {"aten.conv1d.default": False, "aten.conv2d.default": False, "aten.conv_transpose2d.input": True}


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

    fold_batch_norm(program)
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


def fold_batch_norm(program: Any) -> int:
    """Fold each BatchNorm of an exported program into the convolution that alone feeds it; returns how many were folded.

    Changes `program`, never the module it came from. With s = gamma / sqrt(var + eps): weight' = s * weight and
    bias' = (bias - mean) * s + beta; bias' takes the place of the running mean, which nothing else reads. A convolution
    whose weights serve a second op, or that has another user, keeps its BatchNorm.
    """
    import torch

    state = program.state_dict
    names = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}

    def value(node: Any) -> Any:
        return state.get(names.get(getattr(node, "name", None)))

    folded = 0
    for norm in list(program.graph.nodes):
        if str(norm.target) != "aten.batch_norm.default":
            continue
        conv, gamma, beta, mean, variance, training, _, epsilon = norm.args[:8]
        transposed = _FOLDABLE.get(str(getattr(conv, "target", "")))
        if transposed is None or training or len(conv.users) != 1 or (transposed and len(conv.args) > 6 and conv.args[6] != 1):
            continue
        weight = conv.args[1]
        bias = conv.args[2] if len(conv.args) > 2 else None
        known = [value(n) for n in (weight, mean, variance)]
        optional = [value(n) for n in (gamma, beta, bias) if n is not None]
        if any(v is None for v in (*known, *optional)) or len(weight.users) != 1 or len(mean.users) != 1:
            continue
        w, m, v = (t.detach().double() for t in known)
        scale = torch.rsqrt(v + epsilon) * (1.0 if gamma is None else value(gamma).detach().double())
        shift = (0.0 if bias is None else value(bias).detach().double()) - m
        shift = shift * scale + (0.0 if beta is None else value(beta).detach().double())
        along = [1] * w.dim()
        along[1 if transposed else 0] = -1
        state[names[weight.name]] = torch.nn.Parameter((w * scale.reshape(along)).to(known[0].dtype), requires_grad=False)
        state[names[mean.name]] = shift.to(known[1].dtype)
        conv.args = (*conv.args[:2], mean, *conv.args[3:])
        norm.replace_all_uses_with(conv)
        program.graph.erase_node(norm)
        folded += 1
    if folded:
        program.graph_module.recompile()
    return folded
