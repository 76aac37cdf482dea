"""`.npz` files from anyone, read against what the caller says they hold: names, dtypes, shapes and ranges, before a byte is believed.

An `.npz` is a zip of `.npy` arrays. Its directory is checked first (how many members, their names and sizes, what they would unpack to),
then the header of each array, and only then are the arrays that were asked for unpacked, each into exactly the bytes its header states.
Pickled objects and records are never read. Every fault is a `FormatError` that names file and array, what was expected and what is there.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

from .errors import FormatError

if TYPE_CHECKING:
    import numpy as np

MEMBERS = 4096  # arrays of one file
RATIO = 1100  # deflate makes 1032 bytes of one at most
RANKS = 8
KINDS = {"b": "bool", "i": "int", "u": "uint", "f": "float", "S": "bytes", "U": "str"}
_CHUNK = 1 << 20
# What Python's zip reader and numpy's reader of headers raise for bytes that are none.
_FAULTS = (
    OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, struct.error, SyntaxError, TokenError,
    TypeError,
)  # fmt: skip


@dataclass(frozen=True)
class Array:
    """What an array has to be. `kinds`: numpy's letters for its dtype, "iu" for integers; `dtype`: exactly this one where it is not "".

    `shapes`: one of these; a number is that size, None any size, and a name one size wherever it stands among the arrays read together.
    `least`, `most`: bounds of every number. Floats have to be finite. `required` False: it may be absent.
    """

    kinds: str
    shapes: tuple[tuple[int | str | None, ...], ...]
    dtype: str = ""
    least: float | None = None
    most: float | None = None
    required: bool = True

    def __str__(self) -> str:
        kinds = self.dtype or " or ".join(KINDS[kind] for kind in self.kinds)
        return f"{kinds} of shape {' or '.join(_spell(shape) for shape in self.shapes)}"


@dataclass(frozen=True)
class Header:
    """What the file says of one array: dtype, shape, whether columns come first, and where its numbers begin in the member."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    start: int


class NpzFile:
    """An open `.npz`. `headers`: what it says of each array, by name."""

    def __init__(self, archive: zipfile.ZipFile, label: str, members: Mapping[str, zipfile.ZipInfo]):
        self.label = label
        self._archive = archive
        self._members = dict(members)
        self.headers = {name: self._header(name, member) for name, member in members.items()}

    def read(self, wanted: Mapping[str, Array]) -> dict[str, np.ndarray]:
        """The arrays in `wanted`, those absent that may be left out. Raises `FormatError` naming the first that is not as described."""
        sizes: dict[str, tuple[int, str]] = {}
        for name, array in wanted.items():
            if name in self.headers:
                self._fits(name, array, sizes)
            elif array.required:
                raise FormatError(f"{self.label} has no array {name!r}, which should be {array}")
        found = {name: self._numbers(name) for name in wanted if name in self.headers}
        for name, numbers in found.items():
            self._in_range(name, wanted[name], numbers)
        return found

    def _header(self, name: str, member: zipfile.ZipInfo) -> Header:
        import numpy as np
        from numpy.lib import format as npy

        with self._open(name, member) as stream:
            version = npy.read_magic(stream)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"its format is version {version}")
            shape, fortran, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)
            start = stream.tell()
        if dtype.hasobject or dtype.names or dtype.subdtype or dtype.kind not in KINDS:
            raise FormatError(f"{self.label}: array {name!r} holds {_named(dtype)}; plain numbers and texts are read, nothing else is")
        if len(shape) > RANKS or any(type(d) is not int or d < 0 for d in shape):
            raise FormatError(f"{self.label}: array {name!r} says its shape is {_spell(shape[:RANKS])}; that is none")
        taken, stored = math.prod(shape) * dtype.itemsize, member.file_size - start
        if taken != stored:
            raise FormatError(
                f"{self.label}: array {name!r} of shape {_spell(shape)} takes {taken:,} bytes; the file holds {stored:,} for it"
            )
        return Header(np.dtype(dtype), tuple(shape), bool(fortran), start)

    def _fits(self, name: str, array: Array, sizes: dict[str, tuple[int, str]]) -> None:
        dtype, shape = self.headers[name].dtype, self.headers[name].shape
        wrong = dtype != array.dtype if array.dtype else dtype.kind not in array.kinds
        matching = [
            s for s in array.shapes if len(s) == len(shape) and all(type(w) is not int or w == d for w, d in zip(s, shape, strict=True))
        ]
        if wrong or not matching:
            raise FormatError(f"{self.label}: array {name!r} is {_named(dtype)} of shape {_spell(shape)}; it should be {array}")
        for known, size in zip(matching[0], shape, strict=True):
            if isinstance(known, str):
                same, other = sizes.setdefault(known, (size, name))
                if size != same:
                    raise FormatError(
                        f"{self.label}: array {name!r} has shape {_spell(shape)} where {other!r} has {known} = {same:,}; "
                        "the two belong together"
                    )

    def _numbers(self, name: str) -> np.ndarray:
        import numpy as np

        header = self.headers[name]
        nbytes = math.prod(header.shape) * header.dtype.itemsize
        raw = np.empty(nbytes, np.uint8)
        with self._open(name, self._members[name]) as stream:
            stream.read(header.start)
            at = 0
            while at < nbytes and (part := stream.read(min(_CHUNK, nbytes - at))):
                raw[at : at + len(part)] = np.frombuffer(part, np.uint8)
                at += len(part)
            if at < nbytes or stream.read(1):  # the last read also compares the checksum
                raise ValueError(f"it unpacks to other than {nbytes:,} bytes")
        flat = raw.view(header.dtype) if header.dtype.itemsize else np.zeros(math.prod(header.shape), header.dtype)
        shaped = flat.reshape(header.shape[::-1]).T if header.fortran else flat.reshape(header.shape)
        return np.ascontiguousarray(shaped, header.dtype.newbyteorder("=")).reshape(header.shape)

    def _in_range(self, name: str, array: Array, numbers: np.ndarray) -> None:
        import numpy as np

        if not numbers.size or numbers.dtype.kind not in "iuf":
            return
        low, high = numbers.min(), numbers.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise FormatError(f"{self.label}: array {name!r} holds a number that is not finite")
        for value, fine in ((low, array.least is None or low >= array.least), (high, array.most is None or high <= array.most)):
            if not fine:
                bounds = " and ".join(
                    [f"at least {array.least}"] * (array.least is not None) + [f"at most {array.most}"] * (array.most is not None)
                )
                raise FormatError(f"{self.label}: array {name!r} holds {value}; each number should be {bounds}")

    @contextmanager
    def _open(self, name: str, member: zipfile.ZipInfo) -> Iterator[Any]:
        try:
            with self._archive.open(member) as stream:
                yield stream
        except _FAULTS as error:
            raise FormatError(f"{self.label}: array {name!r} cannot be read: {_one_line(error)}") from None


@contextmanager
def open_npz(path: str | os.PathLike[str], *, limit: int) -> Iterator[NpzFile]:
    """The `.npz` file at `path`, whose arrays together take at most `limit` bytes. Raises `FormatError` naming the file."""
    label = os.fspath(path)
    try:
        archive = zipfile.ZipFile(label)
    except _FAULTS as error:
        raise FormatError(f"{label} is no .npz of plain arrays: {_one_line(error)}") from None
    with archive:
        yield NpzFile(archive, label, _members(archive, label, limit))


def _members(archive: zipfile.ZipFile, label: str, limit: int) -> dict[str, zipfile.ZipInfo]:
    """The members by array name, once the directory has been found possible."""
    listed = archive.infolist()
    if len(listed) > MEMBERS:
        raise FormatError(f"{label} holds {len(listed):,} arrays; at most {MEMBERS:,} are read")
    size, found = os.path.getsize(label), {}
    for member in listed:
        name = member.filename.removesuffix(".npy")
        if name == member.filename or not name.isprintable():
            raise FormatError(f"{label} is no .npz of plain arrays: it holds {member.filename[:60]!r}")
        if name in found:
            raise FormatError(f"{label}: two arrays are called {name!r}")
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise FormatError(f"{label}: array {name!r} is encrypted or packed in a way that numpy does not write; save the file anew")
        if member.file_size > RATIO * member.compress_size:
            raise FormatError(f"{label}: array {name!r} is said to be {member.file_size:,} bytes out of {member.compress_size:,}")
        found[name] = member
    if (packed := sum(member.compress_size for member in listed)) > size:
        raise FormatError(f"{label}: its arrays are said to be {packed:,} bytes packed; the file has {size:,}")
    if (total := sum(member.file_size for member in listed)) > limit:
        raise FormatError(f"{label} unpacks to {total:,} bytes; at most {limit:,} of such a file are read")
    return found


def _named(dtype: Any) -> str:
    return "Python objects" if dtype.hasobject else str(dtype)


def _spell(shape: tuple[Any, ...]) -> str:
    return f"({', '.join('any' if d is None else str(d) for d in shape)})"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
