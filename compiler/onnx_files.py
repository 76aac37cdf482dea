"""ONNX files, read safely: what is parsed, what is refused, and weights that stay on disk until someone asks.

A model file may name further files ("external data") that hold its weights. Only regular files inside the model's own
folder are ever opened: absolute paths, `..`, and links that lead out of the folder are refused by name. Analysis needs no
weight bytes, so none are read; `Weights` reads one tensor at a time, when it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FormatError, MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import torch

PROTOBUF_LIMIT = 2**31 - 1  # bytes; protobuf parses no more in one message

# IR names of onnx.TensorProto.DataType, by its numbers; the 4- and 2-bit types are kept as the bytes they are packed into.
DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8_e4m3fn",
    18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 24: "float8_e8m0fnu",
}  # fmt: skip
PACKED = {21: 2, 22: 2, 23: 2, 25: 4, 26: 4}  # uint4, int4, float4e2m1, uint2, int2: elements in a byte
ELEM_TYPES = {name: number for number, name in DTYPES.items()}


@dataclass(frozen=True)
class OnnxFile:
    """A parsed model, the folder its external data may lie in (None: given as bytes or proto), and its name in messages."""

    model: onnx.ModelProto
    folder: Path | None
    label: str


def require_onnx(purpose: str) -> None:
    """Raise `MissingExtraError` when the onnx package is absent."""
    import importlib.util

    if importlib.util.find_spec("onnx") is None:
        raise MissingExtraError("onnx", "onnx", purpose)


def read_model(source: Any) -> OnnxFile:
    """Parse `source`: a path, the bytes of a file, or a `ModelProto` (taken as it is).

    Raises `FormatError` for a file that is missing, over 2 GiB, truncated, or not ONNX. External data is checked, not read.
    """
    require_onnx("Reading ONNX")
    import onnx

    if isinstance(source, onnx.ModelProto):
        file = OnnxFile(source, None, "ModelProto")
    elif isinstance(source, (bytes, bytearray, memoryview)):
        file = OnnxFile(_parse(bytes(source), "ONNX bytes"), None, "ONNX bytes")
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        file = OnnxFile(_parse(_read(path), f"{path.name!r}"), path.resolve().parent, f"{path.name!r}")
    else:
        raise FormatError(f"an ONNX model is a path, bytes or an onnx.ModelProto, not {type(source).__name__}")
    _check_header(file)
    return file


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise FormatError(f"ONNX file {str(path)!r} {what}")
        size = path.stat().st_size
        if size > PROTOBUF_LIMIT:
            raise FormatError(
                f"ONNX file {str(path)!r} has {size:,} bytes; protobuf stops at {PROTOBUF_LIMIT:,}. Save it with "
                "onnx.save_model(..., save_as_external_data=True)"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise FormatError(f"ONNX file {str(path)!r} cannot be read: {error}") from error


def _parse(data: bytes, label: str) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise FormatError(f"{label} is not an ONNX model or is cut short: its {len(data):,} bytes do not parse as one") from error
    return model


def _check_text(message: Any, label: str) -> None:
    """Raise `FormatError` for a string that is not UTF-8, which protobuf hands over as bytes."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            for text in (value,) if isinstance(value, (str, bytes)) else value:
                if isinstance(text, bytes):
                    raise FormatError(f"{label} holds the {field.full_name} {text[:40]!r}, which is not UTF-8 text")
        elif field.type == field.TYPE_MESSAGE:
            for part in (value,) if hasattr(value, "ListFields") else value:
                _check_text(part, label)


def _check_header(file: OnnxFile) -> None:
    model = file.model
    _check_text(model, file.label)
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise FormatError(f"{file.label} is not an ONNX model: it holds no graph")
    if not model.opset_import:
        raise FormatError(f"{file.label} is not a complete ONNX model: it imports no operator set")
    for opset in model.opset_import:
        if not 1 <= opset.version < 2**31:
            raise FormatError(f"{file.label} imports version {opset.version} of operator set {opset.domain!r}; there is no such version")


# ---- tensors ----------------------------------------------------------------------------------------------------------


def packed_size(elem_type: int, dims: tuple[int, ...]) -> tuple[str, tuple[int, ...], int]:
    """(IR dtype, shape, bytes) of a tensor; a packed one (int4, ...) becomes the uint8 bytes that hold it."""
    from .graph import ITEMSIZE

    count = 1
    for d in dims:
        count *= d
    if elem_type in PACKED:
        nbytes = -(-count // PACKED[elem_type])
        return "uint8", (nbytes,), nbytes
    dtype = DTYPES[elem_type]
    return dtype, dims, count * ITEMSIZE[dtype]


def check_tensor(tensor: onnx.TensorProto, file: OnnxFile) -> None:
    """Raise `FormatError` if `tensor` has an impossible type, shape or length, or external data it may not have."""
    if tensor.data_type not in DTYPES and tensor.data_type not in PACKED:
        raise FormatError(f"{file.label}: tensor {tensor.name!r} has unknown element type {tensor.data_type}")
    if any(d < 0 for d in tensor.dims):
        raise FormatError(f"{file.label}: tensor {tensor.name!r} has a negative dimension in {list(tensor.dims)}")
    _, _, nbytes = packed_size(tensor.data_type, tuple(tensor.dims))
    if tensor.data_location == tensor.EXTERNAL:
        path, offset, length = _external_entry(tensor, file)
        if length is not None and length != nbytes:
            raise FormatError(f"{file.label}: external data of {tensor.name!r} is said to be {length:,} bytes; its shape takes {nbytes:,}")
        if path is not None and path.exists() and path.stat().st_size < offset + nbytes:
            raise FormatError(
                f"{file.label}: external data of {tensor.name!r} ends at byte {offset + nbytes:,} of {path.name!r}, "
                f"which has only {path.stat().st_size:,}"
            )
    elif tensor.HasField("raw_data") and len(tensor.raw_data) != nbytes:
        raise FormatError(
            f"{file.label}: tensor {tensor.name!r} of shape {list(tensor.dims)} takes {nbytes:,} bytes, not {len(tensor.raw_data):,}"
        )
    elif not tensor.HasField("raw_data") and any(len(getattr(tensor, name)) for name in NUMBERS) and not fills(tensor):
        raise FormatError(f"{file.label}: tensor {tensor.name!r} of shape {list(tensor.dims)} holds more or fewer numbers than that")


# Where a tensor that is not raw bytes keeps its numbers.
NUMBERS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_KEPT_IN = {1: 0, 14: 0, 7: 2, 11: 3, 15: 3, 12: 4, 13: 4, 8: 5}  # element type -> place in NUMBERS; any other in int32_data


def fills(tensor: onnx.TensorProto) -> bool:
    """Whether `tensor`, of an element type that exists, holds exactly the numbers of its shape, in itself and nowhere else."""
    kind, count = tensor.data_type, 1
    if tensor.data_location == tensor.EXTERNAL or (kind not in DTYPES and kind not in PACKED) or any(d < 0 for d in tensor.dims):
        return False
    for d in tensor.dims:
        count *= d
    if tensor.HasField("raw_data"):
        return kind != 8 and len(tensor.raw_data) == packed_size(kind, tuple(tensor.dims))[2]
    held = len(getattr(tensor, NUMBERS[_KEPT_IN.get(kind, 1)]))
    return held == (-(-count // PACKED[kind]) if kind in PACKED else count * (2 if kind in (14, 15) else 1))


def _external_entry(tensor: onnx.TensorProto, file: OnnxFile) -> tuple[Path | None, int, int | None]:
    """(path or None without a folder, offset, length or None) of external data; raises if it would leave the model's folder."""
    entry = {e.key: e.value for e in tensor.external_data}
    location = entry.get("location", "")
    where = f"{file.label}: external data of {tensor.name!r} is at {location!r}"
    if not location or "\0" in location:
        raise FormatError(f"{file.label}: external data of {tensor.name!r} names no file")
    parts = location.replace("\\", "/").split("/")
    if location[0] in "/\\" or ".." in parts or ":" in parts[0]:
        raise FormatError(f"{where}, outside the model's folder; only files inside it are read. Move the file and edit its location")
    try:
        offset, length = int(entry.get("offset") or 0), int(entry["length"]) if entry.get("length") else None
    except ValueError:
        raise FormatError(f"{where} with offset {entry.get('offset')!r} and length {entry.get('length')!r}; both are byte counts") from None
    if offset < 0 or (length is not None and length < 0):
        raise FormatError(f"{where} with a negative offset or length")
    if file.folder is None:
        return None, offset, length
    path = file.folder / "/".join(parts)
    try:
        target = path.resolve()
        inside = target.is_relative_to(file.folder)
        regular = target.is_file() or not target.exists()
    except (OSError, RuntimeError) as error:
        raise FormatError(f"{where}, which cannot be resolved: {error}") from error
    if not inside:
        raise FormatError(f"{where}, a link to {str(target)!r} outside the model's folder; only files inside it are read")
    if not regular:
        raise FormatError(f"{where}, which is not a regular file")
    return target, offset, length


def has_values(tensor: onnx.TensorProto, file: OnnxFile) -> bool:
    """Whether the bytes of `tensor` are at hand: in the model, or in a file that exists."""
    if tensor.data_location != tensor.EXTERNAL:
        return True
    path, _, _ = _external_entry(tensor, file)
    return path is not None and path.exists()


def array_of(tensor: onnx.TensorProto, file: OnnxFile) -> np.ndarray:
    """The values of `tensor`, read from its file if they are external. Raises `FormatError` naming tensor and path."""
    import onnx
    from onnx import numpy_helper

    check_tensor(tensor, file)
    if tensor.data_location == tensor.EXTERNAL:
        raw = _external_bytes(tensor, file)
        tensor = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=raw)
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise FormatError(
            f"{file.label}: the values of tensor {tensor.name!r} do not fill its shape {list(tensor.dims)}: {error}"
        ) from error


def _external_bytes(tensor: onnx.TensorProto, file: OnnxFile) -> bytes:
    """The bytes of a checked tensor from its file. Raises `FormatError` naming tensor and path."""
    path, offset, _ = _external_entry(tensor, file)
    if path is None:
        raise FormatError(f"{file.label}: the values of {tensor.name!r} lie in an external file; load the model by its path")
    _, _, nbytes = packed_size(tensor.data_type, tuple(tensor.dims))
    try:
        with open(path, "rb") as stream:
            stream.seek(offset)
            raw = stream.read(nbytes)
    except OSError as error:
        raise FormatError(f"{file.label}: external data of {tensor.name!r} cannot be read from {path.name!r}: {error}") from error
    if len(raw) != nbytes:
        raise FormatError(f"{file.label}: external data of {tensor.name!r} is cut short: {len(raw):,} of {nbytes:,} bytes in {path.name!r}")
    return raw


def inlined(source: Any) -> onnx.ModelProto:
    """The model of `source` (as in `read_model`) with the values of every tensor in it, wherever in the model it stands.

    Whoever gets it has no file to open. Raises `FormatError` as `read_model` does, for external data that may not be read, and for
    more than protobuf holds.
    """
    import onnx

    file = read_model(source)
    outside = [tensor for tensor in _tensor_protos(file.model) if tensor.data_location == tensor.EXTERNAL]
    if not outside:
        return file.model
    for tensor in outside:
        check_tensor(tensor, file)
    total = file.model.ByteSize() + sum(packed_size(tensor.data_type, tuple(tensor.dims))[2] for tensor in outside)
    if total > PROTOBUF_LIMIT:
        raise FormatError(
            f"{file.label} has {total:,} bytes with its external data; a model that runs is one message of at most "
            f"{PROTOBUF_LIMIT:,}. It can be analysed; to measure it, give the torch model instead"
        )
    model = onnx.ModelProto()
    model.CopyFrom(file.model)
    for tensor in _tensor_protos(model):
        if tensor.data_location == tensor.EXTERNAL:
            tensor.raw_data = _external_bytes(tensor, file)
            del tensor.external_data[:]
            tensor.data_location = tensor.DEFAULT
    return model


def _tensor_protos(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor in a message: initializers, attributes, those of subgraphs and functions."""
    import onnx

    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in (value,) if hasattr(value, "ListFields") else value:
                if isinstance(part, onnx.TensorProto):
                    yield part
                else:
                    yield from _tensor_protos(part)


def to_torch(array: np.ndarray) -> torch.Tensor:
    """A torch tensor of its own memory; dtypes that numpy lacks (bfloat16, float8) go over their bits, int4 and the like become int8.

    Raises `FormatError` for strings and 4-bit floats.
    """
    import numpy as np
    import torch

    dtype = str(array.dtype)
    if array.dtype.kind in "OSU" or dtype == "float4_e2m1fn":
        raise FormatError(
            f"{'string' if array.dtype.kind in 'OSU' else dtype} tensors have no torch form: such a graph can be analysed, not run"
        )
    if dtype in ("int4", "int2", "uint4", "uint2"):
        array = array.astype(np.uint8 if dtype.startswith("u") else np.int8)
    array = np.array(array, order="C")
    if dtype in ITEM_KINDS or array.dtype.kind in "iu":
        return torch.from_numpy(array)
    bits = torch.from_numpy(array.view(f"u{array.dtype.itemsize}"))
    return bits.view(getattr(torch, dtype))


ITEM_KINDS = frozenset(
    (
        "bool",
        "uint8",
        "int8",
        "uint16",
        "int16",
        "uint32",
        "int32",
        "uint64",
        "int64",
        "float16",
        "float32",
        "float64",
        "complex64",
        "complex128",
    )
)


class Weights(Mapping[int, Any]):
    """Tensor id -> torch tensor of an ONNX model's initializers and constants, each decoded when first asked for."""

    def __init__(self, file: OnnxFile, protos: Mapping[int, onnx.TensorProto]):
        self.file = file
        self.protos = dict(protos)
        self._loaded: dict[int, torch.Tensor] = {}

    def __getitem__(self, tensor: int) -> torch.Tensor:
        if tensor not in self._loaded:
            self._loaded[tensor] = to_torch(array_of(self.protos[tensor], self.file))
        return self._loaded[tensor]

    def __iter__(self) -> Iterator[int]:
        return iter(self.protos)

    def __len__(self) -> int:
        return len(self.protos)

    def proto(self, tensor: int, name: str) -> onnx.TensorProto:
        """The tensor as an in-line `TensorProto` called `name`, external data read in."""
        import onnx
        from onnx import numpy_helper

        proto = self.protos[tensor]
        if proto.data_location == proto.EXTERNAL:
            proto = numpy_helper.from_array(array_of(proto, self.file), name)
        copy = onnx.TensorProto()
        copy.CopyFrom(proto)
        copy.name = name
        return copy
