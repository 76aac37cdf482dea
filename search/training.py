"""Training one candidate on images: the schedule, the precision, checkpoints after every epoch, and how good it became.

The same network, data, settings and seed give the same weights, whether or not the training was broken off and taken up again
(on one machine, with the same number of threads).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..compiler.errors import SourceError
from .augmentation import Augmentation
from .weights import load_weights, save_weights

if TYPE_CHECKING:
    import torch

    from .data import ImageData, Part

Precision = Literal["fp32", "bf16", "auto"]
RECALIBRATION_IMAGES = 2_000


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How a candidate is trained. Defaults are MemNet's for CIFAR-10 (section 4) but for `epochs` and `precision`.

    `schedule`: "cosine" to zero over all epochs; "sgdr", cosine with warm restarts after `restart` epochs and twice as many each time
    (Loshchilov and Hutter 2017); "constant". `warmup`: epochs of linear rise first. `images`: images of an epoch, None for all.
    `augment`: images are padded, cropped and flipped; `random_resized_crop`, `brightness`, `contrast`, `saturation`: see `Augmentation`.
    `resolution`: side to which images are resized, None as they are. `precision` "auto" times both and keeps the faster.
    `head_width`: a last linear layer that reads more features than this learns slower in proportion, so that one rate serves narrow and
    wide networks (output weights of Yang et al. 2021, table 3); None for one rate.
    """

    epochs: int = 60
    batch: int = 128
    lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_norms: bool = True
    schedule: Literal["cosine", "sgdr", "constant"] = "sgdr"
    restart: int = 4
    warmup: float = 0.0
    label_smoothing: float = 0.0
    augment: bool = True
    random_resized_crop: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    cutout: int = 0
    images: int | None = None
    resolution: int | None = None
    precision: Precision = "auto"
    head_width: int | None = None

    def __post_init__(self) -> None:
        _ = self.augmentation  # which refuses what it cannot draw

    @property
    def augmentation(self) -> Augmentation:
        """What is done to training images."""
        return Augmentation(self.augment, self.random_resized_crop, self.brightness, self.contrast, self.saturation)

    def rate(self, epoch: float) -> float:
        """Learning rate at a moment, in epochs from the start."""
        if epoch < self.warmup:
            return self.lr * (epoch + 1e-3) / self.warmup
        if self.schedule == "constant":
            return self.lr
        done, whole = epoch - self.warmup, self.epochs - self.warmup
        if self.schedule == "sgdr":
            whole = float(self.restart)
            while done >= whole:
                done, whole = done - whole, whole * 2
        return self.lr / 2 * (1 + math.cos(math.pi * min(1.0, done / whole)))


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training gave. `accuracy`: percent on the validation part; `loss`: mean of the last epoch; `images`: shown in all."""

    accuracy: float
    loss: float
    epochs: int
    images: int
    seconds: float
    precision: str


def train(
    module: torch.nn.Module,
    data: ImageData,
    settings: TrainSettings,
    *,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    loss: Callable[[torch.nn.Module, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Trained:
    """Train `module` in place by SGD and measure it on the validation part.

    `checkpoint`: a file that is written after every epoch and taken up from when it is there (`SourceError` when it is of another
    training). `loss(module, inputs, labels)`: cross-entropy if None. `progress(epoch, mean loss)` after every epoch.
    """
    import torch
    from torch.nn.utils import convert_conv2d_weight_memory_format

    settings = replace(settings, precision=pick_precision(module, data, settings)) if settings.precision == "auto" else settings
    convert_conv2d_weight_memory_format(module, torch.channels_last)
    optimizer = torch.optim.SGD(
        _groups(module, settings), lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov and settings.momentum > 0
    )
    state = _State(Path(checkpoint), module, optimizer, settings, seed) if checkpoint is not None else None
    start, seconds, mean = state.take_up() if state is not None else (0, 0.0, math.nan)
    begin = time.perf_counter() - seconds
    images = min(settings.images or len(data.train[1]), len(data.train[1]))
    steps = math.ceil(images / settings.batch)
    criterion = loss or _cross_entropy(settings.label_smoothing)
    for epoch in range(start, settings.epochs):
        module.train()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        total = 0.0
        batches = data.batches("train", settings.batch, resolution=settings.resolution, generator=generator,
                               augment=settings.augmentation, cutout=settings.cutout, images=images)  # fmt: skip
        for step, (inputs, labels) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = group["scale"] * settings.rate(epoch + step / steps)
            optimizer.zero_grad(set_to_none=True)
            with autocast(settings.precision):
                value = criterion(module, inputs, labels)
            value.backward()
            optimizer.step()
            total += float(value.detach()) * len(labels)
        mean = total / images
        if state is not None:
            state.save(epoch + 1, time.perf_counter() - begin, mean)
        if progress is not None:
            progress(epoch + 1, mean)
    accuracy = evaluate(module, data, "val", resolution=settings.resolution, precision=settings.precision)
    return Trained(accuracy, mean, settings.epochs, images * settings.epochs, time.perf_counter() - begin, settings.precision)


def evaluate(
    module: torch.nn.Module,
    data: ImageData,
    part: Part = "val",
    *,
    resolution: int | None = None,
    precision: str = "fp32",
    batch: int = 256,
    images: int | None = None,
) -> float:
    """Percent of the images of a part (the first `images` of it) that `module`, in evaluation mode, labels rightly."""
    import torch

    training = module.training
    module.eval()
    right = seen = 0
    with torch.inference_mode(), autocast(precision):
        for inputs, labels in data.batches(part, batch, resolution=resolution, images=images):
            right += int((module(inputs).argmax(1) == labels).sum())
            seen += len(labels)
    module.train(training)
    return 100.0 * right / seen


def recalibrate(
    module: torch.nn.Module,
    data: ImageData,
    *,
    images: int = RECALIBRATION_IMAGES,
    resolution: int | None = None,
    precision: str = "fp32",
    batch: int = 250,
) -> None:
    """Take the statistics of every BatchNorm of `module` anew: means over `images` training images (Once-for-All, for each subnet)."""
    import torch

    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta, training = [m.momentum for m in norms], module.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    module.train()
    with torch.no_grad(), autocast(precision):
        for inputs, _ in data.batches("train", batch, resolution=resolution, images=images, generator=torch.Generator().manual_seed(0)):
            module(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.train(training)


def pick_precision(module: torch.nn.Module, data: ImageData, settings: TrainSettings, *, steps: int = 3) -> Literal["fp32", "bf16"]:
    """The faster of the two for this network here, found by training a copy of it for a few steps."""
    import copy

    import torch
    from torch.nn.utils import convert_conv2d_weight_memory_format

    inputs, labels = next(iter(data.batches("train", settings.batch, resolution=settings.resolution)))
    criterion = _cross_entropy(0.0)
    best: dict[str, float] = {}
    for precision in ("fp32", "bf16"):
        trial = convert_conv2d_weight_memory_format(copy.deepcopy(module), torch.channels_last).train()
        for _ in range(steps):
            begin = time.perf_counter()
            with autocast(precision):
                value = criterion(trial, inputs, labels)
            value.backward()
            best[precision] = min(best.get(precision, math.inf), time.perf_counter() - begin)
    return "bf16" if best["bf16"] < best["fp32"] else "fp32"


def autocast(precision: str) -> AbstractContextManager[Any]:
    """The context in which a forward pass runs in `precision`."""
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def _cross_entropy(smoothing: float) -> Callable[[torch.nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]:
    from torch.nn.functional import cross_entropy

    return lambda module, inputs, labels: cross_entropy(module(inputs), labels, label_smoothing=smoothing)


def _groups(module: torch.nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Parameters by weight decay, of which vectors (biases and norms) have none without `decay_norms`, and by the `scale` of their rate."""
    slow, scale = _wide_head(module, settings.head_width)
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for p in module.parameters():
        if p.requires_grad:
            decay = settings.weight_decay if settings.decay_norms or p.dim() > 1 else 0.0
            groups.setdefault((decay, scale if p is slow else 1.0), []).append(p)
    return [{"params": params, "weight_decay": decay, "scale": scale} for (decay, scale), params in groups.items()]


def _wide_head(module: torch.nn.Module, width: int | None) -> tuple[torch.Tensor | None, float]:
    """The weights of the last linear layer, where it reads more than `width` features, and the scale of their rate."""
    import torch

    heads = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    if width is None or not heads or heads[-1].in_features <= width:
        return None, 1.0
    return heads[-1].weight, width / heads[-1].in_features


class _State:
    """A training's weights and momenta in one file."""

    def __init__(self, path: Path, module: torch.nn.Module, optimizer: torch.optim.Optimizer, settings: TrainSettings, seed: int):
        self._path, self._module, self._optimizer = path, module, optimizer
        self._key = {"settings": asdict(settings), "seed": seed}

    def take_up(self) -> tuple[int, float, float]:
        """Epochs done, seconds they took and their last loss; the module and optimizer as they were then."""
        if not self._path.is_file():
            return 0, 0.0, math.nan
        tensors, facts = load_weights(self._path)
        if facts.get("key") != self._key:
            raise SourceError(f"{self._path} is of a training with other settings; remove it or give another file")
        self._module.load_state_dict({name[2:]: t for name, t in tensors.items() if name.startswith("m.")})
        for i, parameter in enumerate(self._parameters()):
            if (buffer := tensors.get(f"o.{i}")) is not None:
                self._optimizer.state[parameter]["momentum_buffer"] = buffer
        return int(facts["epoch"]), float(facts["seconds"]), float(facts["loss"])

    def save(self, epoch: int, seconds: float, loss: float) -> None:
        tensors = {f"m.{name}": t for name, t in self._module.state_dict().items()}
        for i, parameter in enumerate(self._parameters()):
            buffer = self._optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                tensors[f"o.{i}"] = buffer
        save_weights(self._path, tensors, {"key": self._key, "epoch": epoch, "seconds": seconds, "loss": loss})

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]
