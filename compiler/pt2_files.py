"""`.pt2` files, read safely: what could run code is refused, and torch gets only what was read and checked here.

`torch.export.load` unpickles some members, evaluates the text of symbolic sizes, compiles guards and names of nodes, imports modules
that argument trees name, resolves call targets by attribute path and loads compiled libraries. A file from a stranger is read here
only if its pickles hold nothing but tensors and containers (torch's weights-only unpickler accepts them), its program passes
`pt2_schema`, and it holds no libraries. Weights are read by this module; none is larger than its bytes in the file.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
import warnings
import zipfile
from typing import Any

import torch
from torch._export.serde import schema

from .errors import FormatError
from .pt2_archive import SAFER, Archive, opened
from .pt2_schema import payload_of, program_of


def load_pt2(path: str | os.PathLike[str]) -> torch.export.ExportedProgram:
    """The program in the `.pt2` file at `path`. Raises `FormatError` when it is missing, damaged, or could run code."""
    with opened(path) as archive:
        for name in archive.names():
            _check_member(archive, name)
        models = [name for name in archive.names() if name.startswith("models/")]
        if len(models) != 1:
            raise FormatError(f"{archive.label} holds {len(models)} programs; save one program a file")
        model = models[0].removeprefix("models/").removesuffix(".json")
        program = program_of(archive.json(models[0]), archive.label, models[0])
        state = _tensors(archive, model, "weights")
        constants = _tensors(archive, model, "constants")
        examples = _unpickled(archive, f"data/sample_inputs/{model}.pt")
    return _deserialized(program, state, constants, examples, archive.label)


def _deserialized(program: schema.ExportedProgram, state: Any, constants: Any, examples: Any, label: str) -> torch.export.ExportedProgram:
    from torch._export.serde.serialize import ExportedProgramDeserializer

    if examples is not None and not (isinstance(examples, tuple) and len(examples) == 2):
        examples = None
    logger = logging.getLogger("torch._export.serde.serialize")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ExportedProgramDeserializer().deserialize(program, state, constants, examples)
    except Exception as error:  # torch's reader has no error type of its own
        raise FormatError(f"{label} is not an exported program that torch {torch.__version__} reads: {_last_line(error)}") from error
    finally:
        logger.disabled = before


def _last_line(error: Exception) -> str:
    """What went wrong, without the node and the trace that torch repeats around it."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def _check_member(archive: Archive, name: str) -> None:
    """Raise `FormatError` for members that loading would run, or that no reader here knows."""
    if name.startswith(("data/aotinductor/", "data/executorch/")) or name.endswith((".so", ".dll", ".dylib")):
        raise FormatError(f"{archive.label} holds a compiled library ({name}), which loading would run. {SAFER}")
    if re.match(r"data/constants/(custom_obj|opaque_obj)", name):
        raise FormatError(f"{archive.label} holds a pickled object ({name}), which loading would run. {SAFER}")
    if name.endswith(".pt"):
        _unpickled(archive, name)


def _unpickled(archive: Archive, name: str) -> Any:
    """The tensors and containers of a pickle; None where there is no such member or it is empty."""
    data = archive.read(name) if name in archive else b""
    if not data:
        return None
    try:
        _check_inner(data)
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # whatever the restricted unpickler dislikes, torch would then unpickle without restriction
        raise FormatError(
            f"{archive.label} holds a pickle ({name}) with more than tensors in it, which loading would run. {SAFER}"
        ) from error


def _check_inner(data: bytes) -> None:
    """Raise `ValueError` unless `data` is torch's zip of tensors, with nothing in it that grows when it is read."""
    with zipfile.ZipFile(io.BytesIO(data)) as inner:
        for info in inner.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data):
                raise ValueError(f"{info.filename} is compressed")


# ---- weights and constants ---------------------------------------------------------------------------------------------------


def _tensors(archive: Archive, model: str, kind: str) -> dict[str, torch.Tensor]:
    """Tensors by name, on shared storages where the file shares them."""
    folder = f"data/{kind}"
    if f"{folder}/{model}.pt" in archive:
        return _legacy(archive, f"{folder}/{model}.pt")
    config = f"{folder}/{model}_{kind}_config.json"
    payload = payload_of(archive.json(config), archive.label, config)
    flat: dict[tuple[str, torch.dtype], torch.Tensor] = {}
    out: dict[str, torch.Tensor] = {}
    for name, meta in payload.items():
        if re.match(r"(custom_obj|opaque_obj)", meta.path_name):
            raise FormatError(f"{archive.label} holds a pickled object ({meta.path_name}), which loading would run. {SAFER}")
        if meta.use_pickle:
            out[name] = _pickled(archive, f"{folder}/{meta.path_name}", name)
        else:
            out[name] = _strided(archive, f"{folder}/{meta.path_name}", name, meta, flat)
        if meta.is_param:
            grad = meta.tensor_meta is not None and meta.tensor_meta.requires_grad
            floating = out[name].is_floating_point() or out[name].is_complex()
            out[name] = torch.nn.Parameter(out[name].detach(), requires_grad=grad and floating)
    return out


def _legacy(archive: Archive, name: str) -> dict[str, torch.Tensor]:
    """The tensors of a file from before weights were members of their own."""
    found = _unpickled(archive, name) or {}
    if not isinstance(found, dict) or not all(isinstance(t, torch.Tensor) and isinstance(n, str) for n, t in found.items()):
        raise FormatError(f"{archive.label}: {name} does not list tensors. {SAFER}")
    return found


def _pickled(archive: Archive, member: str, name: str) -> torch.Tensor:
    if member not in archive:
        raise FormatError(f"{archive.label}: {name!r} is to be in {member!r}, which the archive does not hold")
    found = _unpickled(archive, member)
    if not isinstance(found, torch.Tensor):
        raise FormatError(f"{archive.label}: {name!r} is a {type(found).__name__}, not a tensor. {SAFER}")
    return found


def _strided(
    archive: Archive, member: str, name: str, meta: schema.PayloadMeta, flat: dict[tuple[str, torch.dtype], torch.Tensor]
) -> torch.Tensor:
    """The tensor over the bytes of `member`; on the meta device where the file kept none of them."""
    from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

    where = f"{archive.label}: weight {name[:100]!r}"
    described = meta.tensor_meta
    dtype = None if described is None else _SERIALIZE_TO_TORCH_DTYPE.get(described.dtype)
    if described is None or dtype is None or described.layout != schema.Layout.Strided:
        raise FormatError(f"{where} does not say what tensor it is. {SAFER}")
    shape, strides = _numbers(described.sizes, where), _numbers(described.strides, where)
    (offset,) = _numbers([described.storage_offset], where)
    if len(shape) != len(strides):
        raise FormatError(f"{where} has {len(shape)} sizes and {len(strides)} strides")
    held = archive.size(member)
    span = 0 if 0 in shape else 1 + offset + sum((d - 1) * s for d, s in zip(shape, strides, strict=True))
    if held == 0 and math.prod(shape):
        return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    if held % dtype.itemsize or span * dtype.itemsize > held:
        raise FormatError(f"{where} of shape {list(shape)} reaches over {span * dtype.itemsize:,} bytes; the file holds {held:,} of it")
    if (member, dtype) not in flat:
        data = bytearray(archive.read(member))
        flat[member, dtype] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat[member, dtype].as_strided(shape, strides, offset)


def _numbers(sizes: list[schema.SymInt], where: str) -> tuple[int, ...]:
    found = tuple(size.value for size in sizes)
    if not all(isinstance(n, int) and 0 <= n < 2**48 for n in found) or math.prod(found[:64]) >= 2**200 or len(found) > 64:
        raise FormatError(f"{where} has sizes, strides or an offset that no tensor has")
    return found
