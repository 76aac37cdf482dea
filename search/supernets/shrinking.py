"""Progressive shrinking: from a trained teacher to a supernet all of whose subnets work, one kind of choice after another.

(Once-for-All, section 3.2, and MOOFA, appendix A.) In every phase random subnets of what is open learn from the labels and from the
teacher. Channels are sorted by importance once, before the first phase that opens expansions, so that what later phases cut off first
is what matters least; Once-for-All's program sorts at its second expansion phase again, within the groups that are there.

The same data, schedule and seed give the same weights, whether or not the training was broken off (on one machine and with as many
threads). Under torch.distributed every process trains on its share of each batch, on the same subnets, and gradients are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import convert_conv2d_weight_memory_format

from ...compiler.errors import SourceError
from ..data import ImageData
from ..space import Architecture
from ..spaces.ofa import OFAMobileNetV3
from ..training import evaluate, recalibrate
from ..weights import load_weights, save_weights
from .elastic import ElasticSupernet, load_supernet, sort_channels
from .phases import Phase, Schedule, image_sizes, phase_rows


def shrink(
    space: OFAMobileNetV3,
    data: ImageData,
    schedule: Schedule,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[str, int, float], None] | None = None,
) -> ElasticSupernet:
    """Train a supernet of `space` by every phase of `schedule`.

    folder: where `supernet.safetensors` is written after every epoch and taken up from, and `teacher.safetensors` after the first
    phase. In a process group only rank 0 writes; the others need to see the same folder. device: where it is trained; it comes back
    on the CPU. `progress(phase, epochs done, mean loss)`.
    Raises `SourceError` when the folder's checkpoint is of another training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        supernet = ElasticSupernet(space)
    convert_conv2d_weight_memory_format(supernet, torch.channels_last).to(device)
    files = None if folder is None else _Files(Path(folder), {"space": space.describe(), "schedule": asdict(schedule), "seed": seed})
    at, done, momenta = (0, 0, {}) if files is None else files.take_up(supernet)
    teacher = None
    if at > 0 and files is not None:
        teacher = _frozen(files.teacher(space)).to(device)
    for index, phase in enumerate(schedule.phases):
        if index < at:
            continue
        if index == 1 and teacher is None:
            teacher = _frozen(_copy(supernet)).to(device)
        if phase.expands > 1 and schedule.phases[index - 1].expands == 1 and done == 0:
            sort_channels(supernet)
        optimizer = _optimizer(supernet, schedule, momenta)
        for epoch in range(done, phase.epochs):
            loss = _epoch(supernet, teacher, data, schedule, phase, optimizer, epoch, [seed, index, epoch])
            if files is not None and _rank() == 0:
                files.save(supernet, optimizer, index, epoch + 1)
            if progress is not None:
                progress(phase.name, epoch + 1, loss)
        if files is not None and index == 0 and _rank() == 0:
            files.save_teacher(supernet)
        done, momenta = 0, {}
        _wait()
    return supernet.cpu()


def subnet_accuracy(supernet: ElasticSupernet, arch: Architecture, data: ImageData, *, recalibration: int = 2_000,
                    images: int | None = None, precision: str = "fp32") -> float:  # fmt: skip
    """Percent of the validation part (the first `images` of it) that a subnet labels rightly, with batch statistics of its own."""
    return evaluate(
        take_out(supernet, arch, data, recalibration=recalibration), data, "val", resolution=side_of(supernet.space, arch, data),
        images=images, precision=precision,
    )  # fmt: skip


def take_out(supernet: ElasticSupernet, arch: Architecture, data: ImageData, *, recalibration: int = 2_000) -> nn.Module:
    """A subnet as a plain module with batch statistics of its own, taken from `recalibration` training images."""
    module = supernet.extract(arch).eval()
    recalibrate(module, data, images=recalibration, resolution=side_of(supernet.space, arch, data))
    return module


def side_of(space: OFAMobileNetV3, arch: Architecture, data: ImageData) -> int | None:
    """The side that images are resized to for `arch`, None when they have it."""
    side = space.input_shape(arch)[-1]
    return None if side == data.shape[-1] else side


def _epoch(
    supernet: ElasticSupernet,
    teacher: nn.Module | None,
    data: ImageData,
    schedule: Schedule,
    phase: Phase,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    seeds: list[int],
) -> float:
    """One epoch of a phase; the mean loss of a subnet, over this process's images.

    A last batch with fewer than two images for a process is left out: batch statistics need two.
    """
    world, rank, space, device = _world(), _rank(), supernet.space, next(supernet.parameters()).device
    rng = np.random.default_rng(seeds)
    shuffled, dropout = (int(s) for s in rng.integers(2**31, size=2))
    images = min(schedule.images or len(data.train[1]), len(data.train[1]))
    size = schedule.batch * world
    if images > size and images % size < 2 * world:
        images -= images % size
    steps = math.ceil(images / size)
    subnets = [phase_rows(space, phase, rng, phase.subnets) for _ in range(steps)]
    sizes = image_sizes(space, np.stack([rows[0] for rows in subnets]), rng if schedule.continuous_sizes else None)
    total, seen = 0.0, 0
    supernet.train()
    with _seeded(dropout + rank, device):
        batches = data.batches(
            "train", size, resolution=sizes, generator=torch.Generator().manual_seed(shuffled), augment=schedule.augmentation,
            images=images, share=(rank, world), device=device,
        )  # fmt: skip
        for step, ((inputs, labels), rows) in enumerate(zip(batches, subnets, strict=True)):
            for group in optimizer.param_groups:
                group["lr"] = phase.rate(epoch + step / steps) * world
            soft = None
            if teacher is not None and schedule.kd:
                with torch.no_grad(), _autocast(schedule.precision, device):
                    soft = teacher(inputs).float().softmax(1)
            optimizer.zero_grad(set_to_none=True)
            for arch in space.decode(rows):
                supernet.active = arch
                with _autocast(schedule.precision, device):
                    logits = supernet(inputs)
                    loss = functional.cross_entropy(logits, labels, label_smoothing=schedule.smoothing)
                    if soft is not None:
                        loss = loss + schedule.kd * functional.cross_entropy(logits, soft)
                loss.backward()
                total, seen = total + float(loss.detach()) * len(labels), seen + len(labels)
            _average_gradients(supernet)
            optimizer.step()
    _share_statistics(supernet)
    return total / max(1, seen)


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def _optimizer(supernet: ElasticSupernet, schedule: Schedule, momenta: dict[str, torch.Tensor]) -> torch.optim.SGD:
    """Nesterov SGD; norms and biases do not decay. `momenta`: buffers by parameter name, of the epoch that was taken up."""
    named = dict(supernet.named_parameters())
    groups = [
        {"params": [p for p in named.values() if p.dim() > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in named.values() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=schedule.phases[0].lr, momentum=schedule.momentum, nesterov=True)
    for name, buffer in momenta.items():
        optimizer.state[named[name]]["momentum_buffer"] = buffer.to(named[name].device)
    return optimizer


def _frozen(supernet: ElasticSupernet) -> ElasticSupernet:
    """The teacher: no dropout, norms by the statistics of each batch (images come in several sizes), which it does not keep."""
    convert_conv2d_weight_memory_format(supernet, torch.channels_last).eval().requires_grad_(False)
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 0.0
    return supernet


def _copy(supernet: ElasticSupernet) -> ElasticSupernet:
    return load_supernet(supernet.space, {name: t.clone() for name, t in supernet.state_dict().items()})


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@dataclass
class _Files:
    """Checkpoints of one training; `key` says which."""

    folder: Path
    key: dict[str, Any]

    def take_up(self, supernet: ElasticSupernet) -> tuple[int, int, dict[str, torch.Tensor]]:
        """Phase, epochs of it that are done, and momenta; the supernet's weights as they were then."""
        path = self.folder / "supernet.safetensors"
        if not path.is_file():
            return 0, 0, {}
        tensors, facts = load_weights(path)
        if facts.get("key") != _plain(self.key):
            raise SourceError(f"{path} is of a supernet of another space, schedule or seed; remove it or give another folder")
        with torch.no_grad():
            for name, own in supernet.state_dict().items():
                own.copy_(tensors[f"m.{name}"])
        return facts["phase"], facts["epoch"], {name[2:]: t for name, t in tensors.items() if name.startswith("o.")}

    def save(self, supernet: ElasticSupernet, optimizer: torch.optim.Optimizer, phase: int, epoch: int) -> None:
        tensors = {f"m.{name}": t for name, t in supernet.state_dict().items()}
        for name, parameter in supernet.named_parameters():
            if (buffer := optimizer.state.get(parameter, {}).get("momentum_buffer")) is not None:
                tensors[f"o.{name}"] = buffer
        save_weights(self.folder / "supernet.safetensors", tensors, {"key": self.key, "phase": phase, "epoch": epoch})

    def save_teacher(self, supernet: ElasticSupernet) -> None:
        save_weights(self._teacher, supernet.state_dict(), {"key": self.key})

    def teacher(self, space: OFAMobileNetV3) -> ElasticSupernet:
        tensors, facts = load_weights(self._teacher)
        if facts.get("key") != _plain(self.key):
            raise SourceError(f"{self._teacher} is of another training; remove it or give another folder")
        return load_supernet(space, tensors)

    @property
    def _teacher(self) -> Path:
        return self.folder / "teacher.safetensors"


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


# ---- several processes ------------------------------------------------------------------------------------------------


def _world() -> int:
    return torch.distributed.get_world_size() if _grouped() else 1


def _rank() -> int:
    return torch.distributed.get_rank() if _grouped() else 0


def _grouped() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _wait() -> None:
    if _grouped():
        torch.distributed.barrier()


def _average_gradients(module: nn.Module) -> None:
    """Every gradient the mean over the processes, in one message. The processes ran the same subnets, so the same ones are there."""
    if not _grouped():
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= _world()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view(gradient.shape))


def _share_statistics(module: nn.Module) -> None:
    """Batch statistics of rank 0 in every process."""
    if _grouped():
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)
