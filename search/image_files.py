"""Labelled images out of the files people keep them in: torchvision's folders, folders of pictures, and `.npz`.

Nothing is unpickled: the batches of CIFAR's "python version", which are pickles, are read by an interpreter that knows arrays and
containers and no other class. Images come as uint8 arrays (n, height, width, channels), labels as int64.
"""

from __future__ import annotations

import gzip
import io
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.errors import FormatError, MissingExtraError, SourceError
from ..compiler.npz_files import Array, NpzFile, open_npz

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
PICTURES = ("PNG", "JPEG", "BMP", "WEBP")  # whatever a file is called: Pillow would hand PostScript to an interpreter
LIMIT = 16 << 30  # bytes of all images of a file
_IMAGES = (("n", "height", "width"), ("n", "height", "width", 1), ("n", "height", "width", 3))
CLASSES = 100_000  # of one data set, at most
_LABELS = Array("iu", (("n",),), least=0, most=CLASSES - 1)
# What Pillow raises for a file that is no picture, or one that is meant to fill the memory.
_PICTURE_FAULTS = (OSError, ValueError, SyntaxError, EOFError, struct.error, IndexError, TypeError, KeyError, OverflowError, Warning)
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
    with open_npz(path, limit=LIMIT) as file:
        if "train_bytes" in file.headers:
            parts = {part: _jpegs(file, part) for part in ("train", "test")}
        elif "x_train" in file.headers and "y_train" in file.headers:
            parts = {part: _arrays(file, part) for part in ("train", "test") if f"x_{part}" in file.headers}
        else:
            names = [*file.headers][:_NAMED] + ([f"{len(file.headers) - _NAMED} more"] if len(file.headers) > _NAMED else [])
            raise SourceError(f"{path} holds {', '.join(names) or 'nothing'}; labelled images are x_train, y_train, x_test, y_test")
        names = file.read({"class_names": Array("SU", (("classes",),), required=False)}).get("class_names")
    train = _checked(path, *parts["train"])
    test = _checked(path, *parts["test"]) if "test" in parts else None
    if test is not None and (test[0].shape[1:] != train[0].shape[1:] or test[1].max() > train[1].max()):
        raise FormatError(
            f"{path}: images to test on are {test[0].shape[1:]} with labels up to {test[1].max()}; those to train on {train[0].shape[1:]} "
            f"with labels up to {train[1].max()}: sizes should be equal, and labels known"
        )
    return ImageFiles(path.stem, train, test, _class_names(names, train[1]))


def _arrays(file: NpzFile, part: str) -> tuple[np.ndarray, np.ndarray]:
    found = file.read({f"x_{part}": Array("u", _IMAGES, "uint8"), f"y_{part}": _LABELS})
    return found[f"x_{part}"], found[f"y_{part}"].astype(np.int64)


def _jpegs(file: NpzFile, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images that are kept as JPEGs: what they all begin with, the rest of each one after the other, and how long each rest is."""
    data, lengths, labels = f"{part}_bytes", f"{part}_len", f"y_{part}"
    text = Array("u", (("bytes",),), "uint8")
    prefix = file.read({"prefix": text})["prefix"].tobytes()
    found = file.read({data: text, lengths: Array("iu", (("n",),), least=1), labels: _LABELS})
    ends = np.cumsum(found[lengths], dtype=np.float64)  # exact to 2^53, and without the overflow of whole numbers
    if not len(ends) or ends[-1] != len(found[data]):
        raise FormatError(
            f"{file.label}: the images of {lengths!r} are {ends[-1] if len(ends) else 0:,.0f} bytes; {data!r} has {len(found[data]):,}"
        )
    packed, images = found[data].tobytes(), None
    for i, (end, length) in enumerate(zip(ends.astype(np.int64).tolist(), found[lengths].tolist(), strict=True)):
        picture = _decoded(prefix + packed[end - length : end], f"{file.label}: image {i} of {data!r}", images, len(ends))
        images = np.empty((len(ends), *picture.shape), np.uint8) if images is None else images
        images[i] = picture
    assert images is not None
    return images, found[labels].astype(np.int64)


def _decoded(raw: bytes, called: str, images: np.ndarray | None, n: int) -> np.ndarray:
    """One picture, which has to be of the size of the ones before; its header alone is believed until that is known."""
    try:
        with _pillow().open(io.BytesIO(raw), formats=PICTURES) as image:
            width, height = image.size
            if images is not None and images.shape[1:3] != (height, width):
                raise ValueError(f"it is {width} x {height}, the ones before {images.shape[2]} x {images.shape[1]}")
            if (total := n * width * height * len(image.getbands())) > LIMIT:
                raise ValueError(f"{n:,} of {width} x {height} are {total:,} bytes; at most {LIMIT:,} are read")
            picture = np.asarray(image)
            if picture.dtype != np.uint8 or (images is not None and picture.shape != images.shape[1:]):
                raise ValueError(f"it has other colours ({image.mode}) than the ones before, or than 8 bits hold")
            return picture
    except (*_PICTURE_FAULTS, _pillow().DecompressionBombError) as error:
        raise FormatError(f"{called} is no picture that can be read: {' '.join(str(error).split())}") from error


def _checked(path: Path, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise FormatError(f"{path}: images are {images.dtype} {images.shape}; expected uint8 (n, height, width[, 1 or 3])")
    if labels.shape != images.shape[:1] or (labels.size and not (labels.min() >= 0 and labels.max() < CLASSES)):
        raise FormatError(
            f"{path}: {len(images)} images have labels of shape {labels.shape}; expected one number each, 0 to {CLASSES - 1:,}"
        )
    if not images.size:
        raise FormatError(f"{path}: there are no images in an array of shape {images.shape}")
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
    except (*_PICTURE_FAULTS, _pillow().DecompressionBombError) as error:
        raise FormatError(f"{file} is no picture that can be read: {error}") from error
    return array[..., None] if array.ndim == 2 else array


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "search", "reading pictures") from error
    return Image
