"""Augmentation: what crops, flips and colours are drawn, and that training draws them by its seed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from neaptide.compiler.errors import SourceError
from neaptide.search.augmentation import Augmentation, color_jitter, crop_boxes, pad_and_crop, random_resized_crop
from neaptide.search.data import ImageData
from neaptide.search.training import TrainSettings, train

PLAIN = TrainSettings(epochs=1, batch=32, lr=0.1, schedule="cosine", augment=False, precision="fp32")


@pytest.fixture
def data() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    part = (torch.randint(0, 256, (192, 1, 8, 8), generator=generator, dtype=torch.uint8), torch.arange(192) % 2)
    return ImageData("noise", part, part, None, (0.5,), (0.3,), ("a", "b"))


def test_crops_are_windows_of_the_padded_image_and_flips():
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).repeat(200, 1, 1, 1)
    padded = torch.nn.functional.pad(images[0, 0], (1, 1, 1, 1))
    windows = {bytes(w.contiguous().numpy().tobytes()) for a in range(3) for b in range(3) for w in
               (padded[a : a + 8, b : b + 8], padded[a : a + 8, b : b + 8].flip(1))}  # fmt: skip
    got = {bytes(i[0].contiguous().numpy().tobytes()) for i in pad_and_crop(images, torch.Generator().manual_seed(0))}
    assert got <= windows and len(got) > 12


def test_crop_boxes_have_the_areas_and_ratios_asked_for():
    top, left, high, wide = crop_boxes(4_000, 64, 48, 0.08, torch.Generator().manual_seed(0)).T
    assert (top >= 0).all() and (left >= 0).all() and (top + high <= 64).all() and (left + wide <= 48).all()
    share, ratio = high * wide / (64 * 48), wide / high
    assert 0.07 < share.min() < 0.09 and share.max() > 0.95 and 0.4 < share.mean() < 0.6
    assert ratio.min() > 0.7 and ratio.max() < 1.45 and abs(ratio.log().mean()) < 0.05
    for free in (top[high < 40], left[wide < 30]):
        assert free.min() == 0 and len(free.unique()) > 20


@pytest.mark.parametrize("shape, box", [((10, 100), [0, 43, 10, 13]), ((100, 10), [43, 0, 13, 10]), ((10, 11), [0, 0, 10, 11])])
def test_a_crop_that_never_fits_is_the_greatest_in_the_middle(shape, box):
    """At a share of 1 a crop fits only when its ratio is that of the image to a pixel, which here it is not."""
    assert crop_boxes(3, shape[0], shape[1], 1.0, torch.Generator().manual_seed(0)).tolist() == [box] * 3


def test_random_resized_crops_are_parts_of_the_image_resized_and_flipped():
    """Of a ramp from left to right, a part is a ramp too, whose ends tell which part."""
    ramp = (4 * torch.arange(48, dtype=torch.uint8)).view(1, 1, 1, 48).repeat(64, 3, 48, 1)
    out = random_resized_crop(ramp, 0.2, (24, 32), torch.Generator().manual_seed(5))
    assert out.shape == (64, 3, 24, 32) and torch.allclose(out, out[:, :1, :1].expand_as(out), atol=1e-3)
    boxes = crop_boxes(64, 48, 48, 0.2, torch.Generator().manual_seed(5))
    flipped = 0
    for row, (_, left, _, wide) in zip(out[:, 0, 0], boxes.tolist(), strict=True):
        turned = bool(row[-1] < row[0])
        flipped += turned
        due = 4 * (left + (torch.arange(32) + 0.5) * wide / 32 - 0.5)
        assert torch.allclose((row.flip(0) if turned else row)[3:-3], due[3:-3], atol=0.5)
    assert 20 < flipped < 44


def test_colors_are_jittered_image_by_image_within_their_bounds():
    images = torch.randint(60, 120, (200, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def jitter(brightness, contrast, saturation):
        return color_jitter(images, brightness, contrast, saturation, torch.Generator().manual_seed(1))

    def grey(x):
        return (0.2989 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]).flatten(1)

    factors = (jitter(0.5, 0, 0) / images).flatten(1)
    assert torch.allclose(factors, factors[:, :1].expand_as(factors)) and len(factors[:, 0].unique()) > 190
    assert 0.5 <= factors.min() < 0.53 and 1.47 < factors.max() <= 1.5
    contrast, saturation = jitter(0, 0.4, 0), jitter(0, 0, 0.5)
    assert torch.allclose(grey(contrast).mean(1), grey(images).mean(1), atol=0.1)
    spread = grey(contrast).std(1) / grey(images).std(1)
    assert 0.6 <= spread.min() < 0.63 and 1.37 < spread.max() < 1.401
    assert torch.allclose(grey(saturation), grey(images), atol=0.1) and not torch.allclose(saturation, images.float(), atol=1)
    assert torch.allclose(color_jitter(images[:, :1], 0, 0, 0.5, torch.Generator()), images[:, :1].float())
    whole = jitter(1.0, 1.0, 1.0)
    assert whole.min() >= 0 and whole.max() <= 255 and (whole == 0).any()


def test_batches_have_the_sizes_and_shares_asked_for(data):
    def batches(**more):
        return list(data.batches("train", 64, generator=torch.Generator().manual_seed(0), **more))

    assert [inputs.shape[-1] for inputs, _ in batches(resolution=[4, 8, 12])] == [4, 8, 12]
    cropped = batches(resolution=[4, 8, 12], augment=Augmentation(random_resized_crop=0.5))
    assert [inputs.shape for inputs, _ in cropped] == [(64, 1, side, side) for side in (4, 8, 12)]
    whole, shares = batches(), [batches(share=(k, 3)) for k in range(3)]
    for batch, (inputs, labels) in enumerate(whole):
        for k in range(3):
            assert torch.equal(shares[k][batch][0], inputs[k::3]) and torch.equal(shares[k][batch][1], labels[k::3])


@pytest.mark.parametrize("option", [{"augment": True}, {"random_resized_crop": 0.3}, {"brightness": 0.2}, {"contrast": 0.2}])
def test_training_augments_as_it_is_told_and_by_its_seed(data, option):
    def trained(seed, **settings):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        train(module, data, replace(PLAIN, **settings), seed=seed)
        return module.state_dict()["1.weight"]

    first = trained(0, **option)
    assert torch.equal(first, trained(0, **option)) and not torch.equal(first, trained(0))


@pytest.mark.parametrize(
    "option, said",
    [({"random_resized_crop": 1.5}, "random_resized_crop 1.5 is no share"), ({"contrast": -0.1}, "contrast -0.1 is below 0")],
)
def test_what_cannot_be_drawn_is_refused_before_training(option, said):
    with pytest.raises(SourceError, match=said):
        replace(PLAIN, **option)
    with pytest.raises(SourceError, match=said):
        Augmentation(**option)
