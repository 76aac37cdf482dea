"""What training does to images at random: crops, flips, colours. Same generator, same images: the same result.

Random numbers are drawn on the CPU, wherever the images are, so that a device does not change which crops there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..compiler.errors import SourceError

if TYPE_CHECKING:
    import torch

TRIES = 10
ASPECT = 4 / 3


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How training images are changed.

    `random_resized_crop`: least share of an image's area that a crop keeps, which is then resized (Szegedy et al. 2015; ImageNet's is
    0.08); 0: `pad_and_crop` instead, if asked for. Either flips half of the images. `brightness`, `contrast`, `saturation`: factors are
    drawn from 1 - x to 1 + x, as in torchvision's `ColorJitter`; Once-For-All's "tf" colour distortion is (32 / 255, 0, 0.5).
    Raises `SourceError` for a share outside 0 to 1, or an amount of colour below 0.
    """

    pad_and_crop: bool = True
    random_resized_crop: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.random_resized_crop <= 1:
            raise SourceError(f"random_resized_crop {self.random_resized_crop:g} is no share of an image's area: 0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            if not getattr(self, name) >= 0:
                raise SourceError(f"{name} {getattr(self, name):g} is below 0")

    def __call__(self, images: torch.Tensor, generator: torch.Generator | None, resolution: int | None = None) -> torch.Tensor:
        """`images` (n, channels, height, width), uint8, changed: uint8, or float32 on the same scale, 0 to 255. Random resized crops
        have `resolution` squared, where it is given; other images keep their size.
        """
        if self.random_resized_crop:
            size = images.shape[-2:] if resolution is None else (resolution, resolution)
            images = random_resized_crop(images, self.random_resized_crop, (int(size[0]), int(size[1])), generator)
        elif self.pad_and_crop:
            images = pad_and_crop(images, generator)
        if self.brightness or self.contrast or self.saturation:
            images = color_jitter(images, self.brightness, self.contrast, self.saturation, generator)
        return images


def pad_and_crop(images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Images padded by an eighth, cropped at a random place and flipped at random (MemNet, section 4: CIFAR's 32 to 40 and back)."""
    import torch

    n, _, h, w = images.shape
    pad = max(1, h // 8)
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    top = torch.randint(0, 2 * pad + 1, (n, 1, 1), generator=generator)
    left = torch.randint(0, 2 * pad + 1, (n, 1, 1), generator=generator)
    flip = torch.rand((n, 1, 1), generator=generator) < 0.5
    across = torch.arange(w).view(1, 1, w)
    columns = left + torch.where(flip, w - 1 - across, across)
    rows = top + torch.arange(h).view(1, h, 1)
    place = [index.to(images.device) for index in (torch.arange(n).view(n, 1, 1), rows, columns)]
    return padded[place[0], :, place[1], place[2]].permute(0, 3, 1, 2)


def random_resized_crop(
    images: torch.Tensor, least: float, size: tuple[int, int], generator: torch.Generator | None
) -> torch.Tensor:  # fmt: skip
    """A random part of each image, resized bilinearly to `size` (height, width) and flipped at random; float32. See `crop_boxes`."""
    import torch

    n, c, h, w = images.shape
    boxes = crop_boxes(n, h, w, least, generator).tolist()
    flip = torch.rand((n, 1, 1, 1), generator=generator) < 0.5
    out = torch.empty((n, c, *size), device=images.device)
    for i, (top, left, high, wide) in enumerate(boxes):
        part = images[i : i + 1, :, top : top + high, left : left + wide].to(torch.float32)
        out[i] = torch.nn.functional.interpolate(part, size, mode="bilinear", antialias=True)[0]
    return torch.where(flip.to(out.device), out.flip(3), out)


def crop_boxes(n: int, height: int, width: int, least: float, generator: torch.Generator | None) -> torch.Tensor:
    """Top, left, height and width of `n` crops, int64 (n, 4).

    A crop has `least` to all of the area and sides in a ratio of 3:4 to 4:3, even in its logarithm; if `TRIES` of that kind do not fit,
    it is the greatest one in the middle whose ratio is within them. (As torchvision's `RandomResizedCrop` draws them.)
    """
    import torch

    area = height * width * (least + (1 - least) * torch.rand((n, TRIES), generator=generator))
    aspect = torch.exp(math.log(ASPECT) * (2 * torch.rand((n, TRIES), generator=generator) - 1))
    wide, high = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
    first = fits.long().argmax(1, keepdim=True)
    there = fits.any(1)
    wide = torch.where(there, wide.gather(1, first)[:, 0], min(width, round(height * ASPECT)))
    high = torch.where(there, high.gather(1, first)[:, 0], min(height, round(width * ASPECT)))
    place = torch.rand((2, n), generator=generator)
    top = torch.where(there, (place[0] * (height - high + 1)).long().clamp(max=height - high), (height - high) // 2)
    left = torch.where(there, (place[1] * (width - wide + 1)).long().clamp(max=width - wide), (width - wide) // 2)
    return torch.stack([top, left, high, wide], dim=1)


def color_jitter(
    images: torch.Tensor, brightness: float, contrast: float, saturation: float, generator: torch.Generator | None
) -> torch.Tensor:  # fmt: skip
    """Each image mixed with black, with the mean of its grey and with its grey, in an order drawn for all, by factors of its own.

    `images`: 0 to 255, (n, 1 or 3, height, width); float32 on that scale. Grey is ITU-R 601's luma, as torchvision has it.
    """
    import torch

    out = images.to(torch.float32)
    weights = torch.tensor([0.2989, 0.587, 0.114] if out.shape[1] == 3 else [1.0], device=out.device).view(1, -1, 1, 1)
    for step in torch.randperm(3, generator=generator).tolist():
        amount = (brightness, contrast, saturation)[step]
        if amount:
            drawn = 2 * torch.rand((len(out), 1, 1, 1), generator=generator) - 1
            factor = (1 + amount * drawn).clamp_(min=0).to(out.device)
            grey = (out * weights).sum(1, keepdim=True)
            other = (torch.zeros_like(grey), grey.mean((2, 3), keepdim=True), grey)[step]
            out = (factor * out + (1 - factor) * other).clamp_(0, 255)
    return out
