"""What a search learns from: labelled images in three parts, or a table of accuracies of networks trained once for all.

Of images, `train` is trained on and `val`, carved from the training part, is what a search and its predictors see; `test` is looked
at once, for the network that was chosen. Tables keep the same rule: see `TabularData`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..compiler.errors import FormatError, SourceError
from ..compiler.npz_files import Array, NpzFile, open_npz
from .image_files import ImageFiles, read_images

if TYPE_CHECKING:
    import torch

    from .augmentation import Augmentation
    from .space import Architecture, Space

Part = Literal["train", "val", "test"]


@dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled images. Each part is (uint8 tensor (n, channels, height, width), int64 tensor (n,)); `test` may be None.

    `mean`, `std`: per channel, of the training part, on the scale 0 to 1. `classes`: their names.
    """

    name: str
    train: tuple[torch.Tensor, torch.Tensor]
    val: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        c, h, w = self.train[0].shape[1:]
        return int(c), int(h), int(w)

    def part(self, name: Part) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of a part. Raises `SourceError` when these data have no held-out test part."""
        found = {"train": self.train, "val": self.val, "test": self.test}[name]
        if found is None:
            raise SourceError(
                f"{self.name} has no {name} part; put its images beside the training ones (test/, t10k-*, test_batch, x_test)"
            )
        return found

    def normalized(self, images: torch.Tensor, *, resolution: int | None = None) -> torch.Tensor:
        """Images, 0 to 255, as float32 with mean 0 and deviation 1, channels last in memory; resized bilinearly to `resolution` squared."""
        import torch

        out = images.to(torch.float32).contiguous(memory_format=torch.channels_last)
        shift = torch.tensor(self.mean, device=out.device).view(1, -1, 1, 1) * 255
        scale = torch.tensor(self.std, device=out.device).view(1, -1, 1, 1) * 255
        out = out.sub(shift).div_(scale)
        if resolution is not None and resolution != out.shape[-1]:
            out = torch.nn.functional.interpolate(out, (resolution, resolution), mode="bilinear", antialias=resolution < out.shape[-1])
        return out

    def batches(
        self, part: Part, size: int, *, resolution: int | Sequence[int] | None = None, generator: torch.Generator | None = None,
        augment: Augmentation | None = None, cutout: int = 0, images: int | None = None, share: tuple[int, int] = (0, 1),
        device: str | torch.device = "cpu",
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
        """(inputs, labels) of `size` images at a time, the last batch maybe smaller; `images`: stop after so many.

        `resolution`: one for all, or one for each batch. With `generator` the images come shuffled, and `augment` changes them at random;
        `cutout`: side of the square that is blanked. `share`: (k, m) gives each batch's images k, k + m, ... alone, for one of m
        processes. `device`: where the batches are made.
        """
        import torch

        source, labels = self.part(part)
        n = len(labels) if images is None else min(images, len(labels))
        order = torch.arange(len(labels)) if generator is None else torch.randperm(len(labels), generator=generator)
        for number, start in enumerate(range(0, n, size)):
            chosen = order[start : min(start + size, n)][share[0] :: share[1]]
            side = resolution[number] if isinstance(resolution, Sequence) else resolution
            batch = source[chosen].to(device)
            if augment is not None:
                batch = augment(batch, generator, side)
            inputs = self.normalized(batch, resolution=side)
            if cutout:
                _cut_out(inputs, cutout, generator)
            yield inputs, labels[chosen].to(device)

    def limited(self, images: int, *, seed: int = 0) -> ImageData:
        """With at most `images` training images, drawn evenly over the classes."""
        import torch

        keep = torch.from_numpy(_even(self.train[1].numpy(), min(images, len(self.train[1])), np.random.default_rng(seed)))
        return replace(self, train=(self.train[0][keep], self.train[1][keep]))


@dataclass(frozen=True, eq=False)
class TabularData:
    """Accuracies, in percent, of every network of a space, trained by those who published the table.

    `searched`: what a search may see; `held_out`: what the chosen network is reported with. NAS-Bench-201: validation accuracy after
    12 epochs, test accuracy after 200. NAS-Bench-Macro, which has test accuracies of three trainings alone: the first, and the mean
    of the other two. `index`: position in the table by the architecture's genes read as one number.
    """

    name: str
    space: str
    cardinalities: tuple[int, ...]
    index: np.ndarray
    searched: np.ndarray
    held_out: np.ndarray

    def accuracy(self, rows: np.ndarray, *, held_out: bool = False) -> np.ndarray:
        """Accuracy of each encoded architecture (n, genes), as float64."""
        code = np.zeros(len(rows), np.int64)
        for column, c in zip(np.asarray(rows).T, self.cardinalities, strict=True):
            code = code * c + column
        return (self.held_out if held_out else self.searched)[self.index[code]].astype(np.float64)

    def of(self, arch: Architecture, *, held_out: bool = False) -> float:
        """Accuracy of one architecture."""
        return float(self.accuracy(np.array([arch.genes]), held_out=held_out)[0])


def load_data(
    path: str | Path, *, val: int | None = None, seed: int = 0, size: int | None = None, limit: int | None = None, dataset: str = "cifar10"
) -> ImageData | TabularData:
    """Images or a table of accuracies from a folder or an `.npz` file.

    Folders: torchvision's `cifar-10-batches-py` (or `-bin`) and `FashionMNIST/raw` or their parent, or any folder of pictures with a
    folder for each class, with or without `train/` and `test/`. Files: images as `x_train, y_train, x_test, y_test`; the tables
    `nasbench201.npz` (`dataset`: cifar10, cifar100 or imagenet16) and `nasbench_macro.npz`.
    `val`: images carved evenly from the training part by `seed` (None: a tenth); `limit`: training images kept; `size`: pictures of
    a folder are cropped square and resized to it. Raises `SourceError` or `FormatError` naming the file.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise SourceError(f"no data at {path}")
    if not (path.is_file() or path.is_dir()):
        raise SourceError(f"{path} is neither a file nor a folder: data are read from files alone")
    if path.suffix == ".npz" and (table := _table(path, dataset)) is not None:
        return table
    data = _split(read_images(path, size=size), val, seed)
    return data if limit is None else data.limited(limit, seed=seed)


def _split(files: ImageFiles, val: int | None, seed: int) -> ImageData:
    import torch

    images, labels = files.train
    n = len(labels)
    wanted = n // 10 if val is None else val
    if not 0 < wanted < n:
        raise SourceError(f"{files.name}: {wanted} validation images cannot be carved from {n}")
    held = np.zeros(n, bool)
    held[_even(labels, wanted, np.random.default_rng(seed))] = True

    def part(images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), torch.from_numpy(labels)

    train = images[~held]
    sample = train[:: max(1, len(train) // 10_000)] / np.float32(255)
    mean, std = sample.mean((0, 1, 2)), sample.std((0, 1, 2))
    return ImageData(
        files.name,
        part(train, labels[~held]),
        part(images[held], labels[held]),
        None if files.test is None else part(*files.test),
        tuple(map(float, mean)),
        tuple(max(float(s), 1e-3) for s in std),
        files.classes,
    )


def _even(labels: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `n` items, as evenly over the labels as there are, in random order."""
    order = rng.permutation(len(labels))
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        rank[mine] = np.arange(len(mine))
    return order[np.argsort(rank[order], kind="stable")][:n]


def _cut_out(inputs: torch.Tensor, side: int, generator: torch.Generator | None) -> None:
    import torch

    n, _, h, w = inputs.shape
    y = torch.randint(0, h, (n, 1), generator=generator)
    x = torch.randint(0, w, (n, 1), generator=generator)
    rows = (torch.arange(h) - y).abs() * 2 <= side
    columns = (torch.arange(w) - x).abs() * 2 <= side
    inputs.masked_fill_((rows.view(n, 1, h, 1) & columns.view(n, 1, 1, w)).to(inputs.device), 0.0)


# ---- tables -----------------------------------------------------------------------------------------------------------

TABLE_LIMIT = 16 << 30  # bytes of a file whose arrays may be images as well
_NASBENCH201 = {"cifar10": "cifar10valid_val_12", "cifar100": "cifar100_val_12", "imagenet16": "imagenet16_val_12"}


def _table(path: Path, dataset: str) -> TabularData | None:
    with open_npz(path, limit=TABLE_LIMIT) as file:
        if "cifar10_test_200" in file.headers:
            if dataset not in _NASBENCH201:
                raise SourceError(f"NAS-Bench-201 has no data set {dataset!r}; it has {', '.join(_NASBENCH201)}")
            return _nasbench201(file, dataset)
        if "test_acc" in file.headers and "arch" in file.headers:
            return _nasbench_macro(file)
    return None


def _nasbench201(file: NpzFile, dataset: str) -> TabularData:
    space, searched, held_out = _space("nasbench201"), _NASBENCH201[dataset], f"{dataset}_test_200"
    found = file.read({"arch_str": Array("SU", (("networks",),)), searched: _percent("networks"), held_out: _percent("networks")})
    texts = found["arch_str"].astype("S").tolist() if found["arch_str"].dtype.kind == "S" else found["arch_str"].tolist()
    genes = np.array([_genes(file, space, text) for text in texts], np.int64).reshape(len(texts), -1)
    return _by_genes(f"NAS-Bench-201 on {dataset}", space, genes, found[searched], found[held_out])


def _genes(file: NpzFile, space: Space, text: str | bytes) -> tuple[int, ...]:
    try:
        return space.parse(text.decode() if isinstance(text, bytes) else text).genes
    except (SourceError, UnicodeDecodeError) as error:
        raise FormatError(f"{file.label}: array 'arch_str' holds {text[:60]!r}, which is no network of {space.name}: {error}") from None


def _nasbench_macro(file: NpzFile) -> TabularData:
    space = _space("nasbench_macro")
    shape = ("networks", len(space.cardinalities))
    wanted = {"arch": Array("iu", (shape,), least=0, most=max(space.cardinalities) - 1), "test_acc": _percent("networks", 3)}
    found = file.read(wanted)
    genes, runs = found["arch"].astype(np.int64), found["test_acc"]
    if (genes >= np.array(space.cardinalities)).any():
        raise FormatError(f"{file.label}: array 'arch' holds a choice that {space.name} does not have")
    return _by_genes("NAS-Bench-Macro on cifar10", space, genes, runs[:, 0], runs[:, 1:].mean(1))


def _percent(*shape: int | str) -> Array:
    return Array("f", (shape,), least=0, most=100)


def _by_genes(name: str, space: Space, genes: np.ndarray, searched: np.ndarray, held_out: np.ndarray) -> TabularData:
    code = np.zeros(len(genes), np.int64)
    for column, c in zip(genes.T, space.cardinalities, strict=True):
        code = code * c + column
    index = np.full(int(np.prod(space.cardinalities)), -1, np.int64)
    index[code] = np.arange(len(genes))
    if (index < 0).any():
        raise SourceError(f"{name}: the table has {len(genes)} networks of {space.name}'s {len(index)}")
    return TabularData(name, space.name, tuple(space.cardinalities), index, searched, held_out)


def _space(name: str) -> Any:
    from .spaces import load_space

    return load_space(name)
