"""Labelled images out of the files people keep them in: torchvision's folders, folders of pictures, and `.npz`.

Nothing is unpickled: the batches of CIFAR's "python version", which are pickles, are read by an interpreter that knows arrays and
containers and no other class. Images come as uint8 arrays (n, height, width, channels), labels as int64.
"""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.errors import FormatError, MissingExtraError, SourceError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
PICTURES = ("PNG", "JPEG", "BMP", "WEBP")  # whatever a file is called: Pillow would hand PostScript to an interpreter
_NAMED = 8  # arrays of a file that an error names
_TRAIN, _TEST = ("train", "training"), ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class ImageFiles:
    """What a file or folder holds. `train`, `test`: (images, labels); `test` is None where the files have no such part."""

    name: str
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray] | None
    classes: tuple[str, ...]


def read_images(path: Path, *, size: int | None = None) -> ImageFiles:
    """The labelled images under `path`; `size` resizes a folder of pictures, which is needed when they differ.

    Raises `SourceError` when nothing known is there, and `FormatError` naming the file that is broken.
    """
    if path.is_file():
        return _from_npz(path)
    for folder in (path, path / "cifar-10-batches-py"):
        if (folder / "data_batch_1").is_file():
            return _cifar_python(folder)
    for folder in (path, path / "cifar-10-batches-bin"):
        if (folder / "data_batch_1.bin").is_file():
            return _cifar_binary(folder)
    for folder in (path, path / "raw", path / "FashionMNIST" / "raw", path / "MNIST" / "raw"):
        if (found := _idx_file(folder, "train-images")) is not None:
            return _idx(folder, found)
    parts = {child.name.lower(): child for child in sorted(path.iterdir()) if child.is_dir()} if path.is_dir() else {}
    if any(_pictures(child) for child in parts.values()) or any(name in parts for name in _TRAIN):
        return _pictures_by_class(path, parts, size)
    raise SourceError(
        f"no labelled images in {path}: expected cifar-10-batches-py or -bin, FashionMNIST/raw, a folder for each class (or train/ and"
        " test/ of such folders), or an .npz with x_train and y_train"
    )


# ---- .npz -----------------------------------------------------------------------------------------------------------


def _from_npz(path: Path) -> ImageFiles:
    arrays = read_npz(path)
    if "train_bytes" in arrays:
        parts = {part: (_jpegs(arrays, part), arrays[f"y_{part}"].astype(np.int64)) for part in ("train", "test")}
    elif "x_train" in arrays and "y_train" in arrays:
        parts = {p: (arrays[f"x_{p}"], arrays[f"y_{p}"].astype(np.int64)) for p in ("train", "test") if f"x_{p}" in arrays}
    else:
        names = [*arrays][:_NAMED] + ([f"{len(arrays) - _NAMED} more"] if len(arrays) > _NAMED else [])
        raise SourceError(f"{path} holds {', '.join(names) or 'nothing'}; labelled images are x_train, y_train, x_test, y_test")
    train = _checked(path, *parts["train"])
    test = _checked(path, *parts["test"]) if "test" in parts else None
    return ImageFiles(path.stem, train, test, _class_names(arrays.get("class_names"), train[1]))


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, none of them pickled. Raises `FormatError` naming the file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FormatError(f"{path} is no .npz of plain arrays: {error}") from error


def _jpegs(arrays: dict[str, np.ndarray], part: str) -> np.ndarray:
    image = _pillow()
    prefix, data = arrays["prefix"].tobytes(), arrays[f"{part}_bytes"].tobytes()
    ends = np.cumsum(arrays[f"{part}_len"], dtype=np.int64)
    starts = ends - arrays[f"{part}_len"]
    return np.stack([np.asarray(image.open(io.BytesIO(prefix + data[a:b]), formats=PICTURES)) for a, b in zip(starts, ends, strict=True)])


def _checked(path: Path, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise FormatError(f"{path}: images are {images.dtype} {images.shape}; expected uint8 (n, height, width[, 1 or 3])")
    if labels.shape != images.shape[:1] or (labels.size and labels.min() < 0):
        raise FormatError(f"{path}: {len(images)} images have labels of shape {labels.shape}; expected one number >= 0 each")
    return images, labels


def _class_names(names: np.ndarray | Sequence[str] | None, labels: np.ndarray) -> tuple[str, ...]:
    count = int(labels.max()) + 1 if labels.size else 0
    return tuple(map(str, names)) if names is not None and len(names) >= count else tuple(map(str, range(count)))


# ---- torchvision's folders --------------------------------------------------------------------------------------------


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds containers, strings, numbers and numpy arrays; any other class in the pickle is refused by name."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.zeros(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data set needs")


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding}")
    return text.encode("latin1")


def _cifar_python(folder: Path) -> ImageFiles:
    def batch(name: str) -> tuple[np.ndarray, np.ndarray]:
        file = folder / name
        try:
            with file.open("rb") as stream:
                content = _ArraysOnly(stream, encoding="bytes").load()
            data = np.asarray(content[b"data"], np.uint8)
            labels = np.asarray(content[b"labels" if b"labels" in content else b"fine_labels"], np.int64)
        except (OSError, pickle.UnpicklingError, KeyError, TypeError, ValueError, EOFError, AttributeError, IndexError) as error:
            raise FormatError(f"{file} is no CIFAR batch: {error}") from error
        if data.ndim != 2 or data.shape[1] != 3072:
            raise FormatError(f"{file}: its data has shape {data.shape}; expected (n, 3072)")
        return _checked(file, data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)

    batches = [batch(f"data_batch_{i}") for i in range(1, 6) if (folder / f"data_batch_{i}").is_file()]
    test = batch("test_batch") if (folder / "test_batch").is_file() else None
    images, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    return ImageFiles("cifar10", (images, labels), test, _class_names(_CIFAR10, labels))


def _cifar_binary(folder: Path) -> ImageFiles:
    def batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
        raw = np.frombuffer(file.read_bytes(), np.uint8)
        if raw.size == 0 or raw.size % 3073:
            raise FormatError(f"{file}: {raw.size} bytes are not a number of CIFAR records of 3073")
        records = raw.reshape(-1, 3073)
        return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0].astype(np.int64)

    batches = [batch(file) for file in sorted(folder.glob("data_batch_*.bin")) if file.is_file()]
    test = batch(folder / "test_batch.bin") if (folder / "test_batch.bin").is_file() else None
    images, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    return ImageFiles("cifar10", (images, labels), test, _class_names(_CIFAR10, labels))


_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _idx_file(folder: Path, stem: str) -> Path | None:
    return next(
        (file for end in ("-idx3-ubyte", "-idx1-ubyte") for z in ("", ".gz") if (file := folder / f"{stem}{end}{z}").is_file()), None
    )


def _idx(folder: Path, train_images: Path) -> ImageFiles:
    def array(file: Path | None, what: str) -> np.ndarray:
        if file is None:
            raise SourceError(f"{folder} has {train_images.name} but no {what}")
        try:
            raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            zero, kind, dims = struct.unpack(">HBB", raw[:4])
            shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
            if zero or kind != 8:
                raise ValueError(f"its first bytes are {raw[:4].hex()}")
            return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)
        except (OSError, EOFError, struct.error, ValueError) as error:
            raise FormatError(f"{file} is no IDX file of bytes: {error}") from error

    def part(stem: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels = array(_idx_file(folder, f"{stem}-images"), "images"), array(_idx_file(folder, f"{stem}-labels"), f"{stem}-labels")
        return _checked(folder, images, labels.astype(np.int64))

    train = part("train")
    test = part("t10k") if _idx_file(folder, "t10k-images") else None
    return ImageFiles(folder.parent.name.lower(), train, test, _class_names(None, train[1]))


# ---- folders of pictures ----------------------------------------------------------------------------------------------


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def _pictures_by_class(path: Path, parts: dict[str, Path], size: int | None) -> ImageFiles:
    train_at = next((parts[name] for name in _TRAIN if name in parts), path)
    test_at = next((parts[name] for name in _TEST if name in parts), None) if train_at != path else None
    classes = tuple(sorted(child.name for child in train_at.iterdir() if child.is_dir()))
    if len(classes) < 2:
        raise SourceError(f"{train_at} has {len(classes)} folders of pictures; a class needs a folder, and there must be two of them")

    def part(folder: Path) -> tuple[np.ndarray, np.ndarray]:
        files = [(file, label) for label, name in enumerate(classes) if (folder / name).is_dir() for file in _pictures(folder / name)]
        images = [_picture(file, size) for file, _ in files]
        shapes = {image.shape for image in images}
        if len(shapes) != 1:
            raise SourceError(f"pictures in {folder} have {len(shapes)} different sizes; give one to resize them to")
        return np.stack(images), np.array([label for _, label in files], np.int64)

    return ImageFiles(path.name, part(train_at), None if test_at is None else part(test_at), classes)


def _picture(file: Path, size: int | None) -> np.ndarray:
    try:
        with _pillow().open(file, formats=PICTURES) as image:
            colour = image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB")
            if size is not None:
                short = min(colour.size)
                left, top = (colour.width - short) // 2, (colour.height - short) // 2
                colour = colour.resize((size, size), box=(left, top, left + short, top + short))
            array = np.asarray(colour)
    except (OSError, ValueError, SyntaxError) as error:
        raise FormatError(f"{file} is no picture that can be read: {error}") from error
    return array[..., None] if array.ndim == 2 else array


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "search", "reading pictures") from error
    return Image
