"""The zip around a `.pt2` file: members by name, as they are stored, each read once and by this reader alone.

torch stores members uncompressed, so none can be larger than the file; a compressed one is refused, whatever size it claims. A file
that two zip readers could read in two ways (names twice, bytes before or behind the archive) is refused too.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import FormatError

SAFER = "Re-export the model with torch.export.save from tensors alone, or load it yourself if you trust it and pass the ExportedProgram"
MEMBERS = 200_000
JSON_BYTES = 128 << 20
DAMAGE = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError, NotImplementedError,
    OverflowError,
)  # fmt: skip


class Archive:
    """The members of one `.pt2` file under its one top folder. `label`: its name in messages."""

    def __init__(self, archive: zipfile.ZipFile, label: str):
        self._zip = archive
        self.label = label
        self._infos: dict[str, zipfile.ZipInfo] = {}
        self._index(archive.infolist())

    def _index(self, infos: list[zipfile.ZipInfo]) -> None:
        if len(infos) > MEMBERS:
            raise FormatError(f"{self.label} holds {len(infos):,} members; {MEMBERS:,} are read at most")
        names = [info.filename for info in infos]
        if len({name.lower() for name in names}) != len(names):
            raise FormatError(f"{self.label} names a member twice, so two readers may see different contents. {SAFER}")
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
                raise FormatError(
                    f"{self.label}: member {info.filename!r} is compressed or encrypted, which torch.export.save never does. {SAFER}"
                )
        roots = {name.split("/", 1)[0] for name in names}
        self._infos = {name.split("/", 1)[1]: info for name, info in zip(names, infos, strict=True) if "/" in name}
        if len(roots) != 1 or not any(name.startswith("models/") and name.endswith(".json") for name in self._infos):
            raise FormatError(f"{self.label} is not a .pt2 archive of this torch: it has no single folder with models/*.json. {SAFER}")

    def names(self) -> list[str]:
        """All member names, without the top folder."""
        return list(self._infos)

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def size(self, name: str) -> int:
        """Bytes of a member."""
        return self._info(name).file_size

    def read(self, name: str) -> bytes:
        """The bytes of a member, checked against its sum. Raises `FormatError` when it is not there or damaged."""
        info = self._info(name)
        try:
            return self._zip.read(info)
        except DAMAGE as error:
            raise FormatError(f"{self.label} is not a .pt2 archive or is cut short: {error}") from error

    def json(self, name: str) -> dict[str, Any]:
        """A member as a JSON object. Raises `FormatError` when it is none, or too large to be one."""
        if self.size(name) > JSON_BYTES:
            raise FormatError(f"{self.label}: {name} has {self.size(name):,} bytes; a program is read up to {JSON_BYTES:,}")
        try:
            value = json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{self.label}: {name} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise FormatError(f"{self.label}: {name} is not a JSON object")
        return value

    def _info(self, name: str) -> zipfile.ZipInfo:
        if name not in self._infos:
            raise FormatError(f"{self.label} has no member {name!r}; torch.export.save writes one")
        return self._infos[name]


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Archive]:
    """The archive at `path`. Raises `FormatError` when it is missing, damaged, or no `.pt2` file."""
    path = Path(path)
    label = f"{path.name!r}"
    if not path.is_file():
        raise FormatError(f"exported program {str(path)!r} {'is a folder' if path.is_dir() else 'does not exist'}")
    try:
        with zipfile.ZipFile(path) as archive:
            yield Archive(archive, label)
    except DAMAGE as error:
        raise FormatError(f"{label} is not a .pt2 archive or is cut short: {' '.join(str(error).split())}") from error
