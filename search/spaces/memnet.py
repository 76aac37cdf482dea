"""The space of MemNet (arXiv 1907.09569): one cell of blocks grown in every position, and trims of single positions.

A network has five positions of widths w, w, 2w, 2w, 4w and strides 1, 2, 1, 2, 1, then a 2 x 2 max pool and a linear classifier. Every
position holds the same cell of up to `max_blocks` blocks. A block is the paper's 5-tuple (IP1, IP2, O1, O2, C): two layers with operations
O1 and O2 read locations IP1 and IP2 (0 is the cell's input, j the output of block j) and are added or concatenated (C). The cell's output
concatenates its blocks' outputs. In one position, a trim replaces one layer with an identity, or cuts one block off the cell's output.

Where the paper says nothing, the authors' code is followed: every convolution has batch norm and ReLU; a separable convolution is
depthwise, norm, 1 x 1, norm, ReLU; a pool comes behind a 1 x 1 convolution and norm; an output may be cut if another block reads the block.
Where neither says anything: in a position of stride 2 the layers that read the cell's input have the stride; consumers take whatever
width a concatenation has; and where an identity cannot be (another width, or stride 2), a 1 x 1 convolution and norm stand in for it,
the least layer that fits. Candidates are counted with |c| once: the paper's (1) squares it, while its 98 first networks are 7 x 7 x 2.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...compiler.errors import SourceError
from ..space import Architecture, Slot, Space
from .layers import LayerGraph

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ...compiler.graph import Graph

OPERATIONS = ("avg_pool_3x3", "max_pool_3x3", "dil_conv_3x3", "fac_conv_7x7", "dw_sep_5x5", "dw_sep_3x3", "conv_3x3")
JOINS = ("add", "cat")
POSITIONS = ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1))
"""Width in units of w, and stride, of each position."""
LOCATIONS = 15
"""Locations that the feature vector of a block can name: the cell's input and 14 blocks."""
FEATURES = 3 * LOCATIONS + 2 * len(OPERATIONS) + len(JOINS)

_BLOCK = 5
_TUPLE = re.compile(r"\((\d+),(\d+),(\w+),(\w+),(\w+)\)")
_SAMPLED_TRIMS = 0.05
_NORM = ("weight", "bias", "running_mean", "running_var")


class Block(NamedTuple):
    """A block as text and modules have it: `inputs` IP1 and IP2, `operations` O1 and O2, `join` C."""

    inputs: tuple[int, int]
    operations: tuple[str, str]
    join: str

    def channels(self, width: int) -> int:
        """Channels of its output when its layers have `width` each."""
        return width if self.join == "add" else 2 * width


@dataclass(frozen=True)
class Cell:
    """The cell of one position. `operations`: per block those of its layers, "identity" where trimmed; `ends`: the blocks (from 1)
    that its output joins; `width` and `stride` of its position.
    """

    blocks: tuple[Block, ...]
    operations: tuple[tuple[str, str], ...]
    ends: tuple[int, ...]
    width: int
    stride: int

    @property
    def channels(self) -> int:
        """Channels of its output."""
        return sum(self.blocks[j - 1].channels(self.width) for j in self.ends)


class MemNet(Space):
    """Genes: blocks less one; IP1, IP2, O1, O2, C of each of `max_blocks` blocks; then for each position and block two genes that are 1
    where the layer is trimmed to an identity; then for each position and block one that is 1 where its way to the output is cut.

    `width`: w, the paper's 64 by default. `max_blocks`: the paper grows 5.
    """

    name = "memnet"

    def __init__(self, width: int = 64, max_blocks: int = 5, num_classes: int = 10, resolution: int = 32):
        if min(width, num_classes) < 1 or not 1 <= max_blocks < LOCATIONS or resolution < 8 or resolution % 8:
            raise SourceError(
                f"memnet takes width and num_classes of at least 1, max_blocks from 1 to {LOCATIONS - 1} and a resolution divisible by 8, "
                f"not width={width}, max_blocks={max_blocks}, num_classes={num_classes}, resolution={resolution}"
            )
        self.width, self.max_blocks, self.num_classes, self.resolution = width, max_blocks, num_classes, resolution
        blocks = [c for i in range(max_blocks) for c in (i + 1, i + 1, len(OPERATIONS), len(OPERATIONS), len(JOINS))]
        self.cardinalities = (max_blocks, *blocks, *[2] * (3 * len(POSITIONS) * max_blocks))
        self._identities = 1 + _BLOCK * max_blocks
        self._cuts = self._identities + 2 * len(POSITIONS) * max_blocks

    def input_shape(self, arch: Architecture) -> tuple[int, ...]:
        return (1, 3, self.resolution, self.resolution)

    def describe(self) -> dict[str, Any]:
        options = {"width": self.width, "max_blocks": self.max_blocks, "num_classes": self.num_classes, "resolution": self.resolution}
        return {"name": self.name, "options": options}

    # ---- genes ------------------------------------------------------------------------------------------------------

    def canonical_rows(self, rows: np.ndarray) -> np.ndarray:
        rows = rows.copy()
        blocks, identities, cuts = self._parts(rows)
        absent = np.arange(self.max_blocks) > rows[:, :1]
        blocks[absent] = 0
        identities[np.broadcast_to(absent[:, None], identities.shape[:3])] = 0
        cuts[np.broadcast_to(~self._read(rows)[:, None], cuts.shape)] = 0
        return rows

    def sample_rows(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Uniform numbers of blocks and uniform blocks; each trim with a probability of one in twenty, so that most layers stay."""
        rows = rng.integers(0, self.cardinalities, (n, len(self.cardinalities)), dtype=np.int16)
        rows[:, self._identities :] = rng.random((n, rows.shape[1] - self._identities)) < _SAMPLED_TRIMS
        return self.canonical_rows(rows)

    @cached_property
    def size(self) -> int:
        total, states = 0, Counter({0: 1})
        for i in range(self.max_blocks):
            grown: Counter[int] = Counter()
            for read, ways in states.items():
                for a in range(i + 1):
                    for b in range(i + 1):
                        grown[read | _bit(a) | _bit(b)] += ways * len(OPERATIONS) ** 2 * len(JOINS)
            states = grown
            trims = 4 ** (len(POSITIONS) * (i + 1))
            total += sum(ways * trims << len(POSITIONS) * read.bit_count() for read, ways in states.items())
        return total

    def _parts(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Windows on `rows`: blocks (n, blocks, 5), identities (n, positions, blocks, 2), cuts (n, positions, blocks)."""
        n, b, p = len(rows), self.max_blocks, len(POSITIONS)
        blocks = rows[:, 1 : self._identities].reshape(n, b, _BLOCK)
        identities = rows[:, self._identities : self._cuts].reshape(n, p, b, 2)
        return blocks, identities, rows[:, self._cuts :].reshape(n, p, b)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Which blocks another block reads: bool (n, blocks)."""
        blocks = self._parts(rows)[0]
        present = np.arange(self.max_blocks) <= rows[:, :1]
        locations = np.arange(1, self.max_blocks + 1)
        return ((blocks[:, :, :2, None] == locations) & present[:, :, None, None]).any(axis=(1, 2))

    def cells(self, arch: Architecture) -> tuple[Cell, ...]:
        """The cell of each position, trims applied."""
        row = np.asarray([arch.genes])
        blocks, identities, cuts = (part[0].tolist() for part in self._parts(row))
        count = arch.genes[0] + 1
        made = tuple(Block((a, b), (OPERATIONS[o], OPERATIONS[q]), JOINS[c]) for a, b, o, q, c in blocks[:count])
        cells = []
        for (times, stride), trimmed, cut in zip(POSITIONS, identities, cuts, strict=True):
            operations = tuple(
                ("identity" if first else block.operations[0], "identity" if second else block.operations[1])
                for block, (first, second) in zip(made, trimmed, strict=False)
            )
            ends = tuple(j for j in range(1, count + 1) if not cut[j - 1])
            cells.append(Cell(made, operations, ends, times * self.width, stride))
        return tuple(cells)

    # ---- moves ------------------------------------------------------------------------------------------------------

    def augment(self, arch: Architecture | None = None, *, distinct: bool = False) -> list[Architecture]:
        """`arch` with one more block, the same in every cell, in all (b + 1)^2 x 7^2 x 2 ways; trims stay. None: the first blocks, 98.

        `distinct` leaves out blocks that only swap their two layers. [] when `arch` has `max_blocks` blocks.
        """
        count = 0 if arch is None else arch.genes[0] + 1
        if count == self.max_blocks:
            return []
        at = 1 + _BLOCK * count
        kinds = np.indices(self.cardinalities[at : at + _BLOCK]).reshape(_BLOCK, -1).T
        if distinct:
            first, second = (kinds[:, 0], kinds[:, 2]), (kinds[:, 1], kinds[:, 3])
            kinds = kinds[(first[0] < second[0]) | ((first[0] == second[0]) & (first[1] <= second[1]))]
        rows = np.zeros((len(kinds), len(self.cardinalities)), np.int16)
        if arch is not None:
            rows[:] = arch.genes
        rows[:, 0] = count
        rows[:, at : at + _BLOCK] = kinds
        return self.decode(rows)

    def trim(self, arch: Architecture) -> list[Architecture]:
        """`arch` with one layer more replaced by an identity, or one block more cut off the output of its cell, in one position.

        2 x b x 5 of the first kind and N of the second, less what is trimmed already; N counts the connections of blocks that another
        block reads, so that no cell is left without output.
        """
        row = np.asarray([arch.genes], np.int16)
        kinds = self._parts(np.arange(len(arch.genes))[None])
        layers = kinds[1][0, :, : arch.genes[0] + 1].reshape(-1)
        connections = kinds[2][0][:, self._read(row)[0]].reshape(-1)
        places = [int(i) for i in (*layers, *connections) if not arch.genes[i]]
        rows = np.repeat(row, len(places), axis=0)
        rows[np.arange(len(places)), places] = 1
        return self.decode(rows)

    # ---- text and features ------------------------------------------------------------------------------------------

    def text(self, arch: Architecture) -> str:
        """The blocks as 5-tuples, then what is trimmed: `(0,0,conv_3x3,max_pool_3x3,add)(0,1,...) identity=2.1.1 cut=3.1`.

        `identity=P.B.L`: layer L of block B in position P; `cut=P.B`: block B's way to the output of position P; all count from 1.
        """
        _, identities, cuts = (part[0] for part in self._parts(np.asarray([arch.genes])))
        blocks = self.cells(arch)[0].blocks
        words = ["".join(f"({a},{b},{first},{second},{join})" for (a, b), (first, second), join in blocks)]
        for name, trims in (("identity", identities), ("cut", cuts)):
            if trims.any():
                words.append(f"{name}=" + ",".join(".".join(str(i + 1) for i in place) for place in np.argwhere(trims)))
        return " ".join(words)

    def parse(self, text: str) -> Architecture:
        written, *trims = text.split(" ")
        blocks = _TUPLE.findall(written)
        if not 1 <= len(blocks) <= self.max_blocks or "".join(f"({','.join(b)})" for b in blocks) != written:
            raise SourceError(f"{written!r} is not 1 to {self.max_blocks} blocks (IP1,IP2,O1,O2,C)")
        row = np.zeros((1, len(self.cardinalities)), np.int16)
        parts = self._parts(row)
        row[0, 0] = len(blocks) - 1
        for i, (a, b, first, second, join) in enumerate(blocks):
            known = first in OPERATIONS and second in OPERATIONS and join in JOINS
            if not known or max(int(a), int(b)) > i:
                raise SourceError(
                    f"block ({a},{b},{first},{second},{join}): locations go from 0 to {i}, operations are {', '.join(OPERATIONS)}, "
                    f"joins {' and '.join(JOINS)}"
                )
            parts[0][0, i] = int(a), int(b), OPERATIONS.index(first), OPERATIONS.index(second), JOINS.index(join)
        for word in trims:
            name, _, places = word.partition("=")
            trimmed = {"identity": parts[1][0], "cut": parts[2][0]}.get(name)
            if trimmed is None:
                raise SourceError(f"{word!r} is neither identity=P.B.L nor cut=P.B")
            for place in places.split(","):
                index = tuple(int(i) - 1 if i.isdecimal() else -1 for i in place.split("."))
                limits = (len(POSITIONS), len(blocks), 2)[: trimmed.ndim]
                if len(index) != trimmed.ndim or not all(0 <= i < limit for i, limit in zip(index, limits, strict=True)):
                    raise SourceError(f"{place!r} of {word!r}: counted from 1, to {'.'.join(map(str, limits))}")
                trimmed[index] = 1
        unread = parts[2].any(axis=(0, 1)) & ~self._read(row)[0]
        if unread.any():
            raise SourceError(f"block {int(unread.argmax()) + 1} is cut off the output, yet no block reads it")
        return self.architecture(row[0].tolist())

    def block_features(self, rows: np.ndarray) -> np.ndarray:
        """The sequences of blocks that MemNet's controller reads: float32 (n, positions x max_blocks, 61), top to bottom.

        Per block one-hot IP1, IP2 and OUT of 15 locations each, O1 and O2 of 7 operations, C of 2 joins. OUT is empty where the block's
        way to the output is cut, O1 or O2 where the layer is an identity. A cell with fewer blocks ends in rows of zeros.
        """
        blocks, identities, cuts = self._parts(rows)
        n, places, count = cuts.shape
        shared = np.broadcast_to(blocks[:, None], (n, places, count, _BLOCK))
        present = np.broadcast_to((np.arange(count) <= rows[:, :1])[:, None, :, None], (n, places, count, 1))
        out = np.where(cuts, -1, np.arange(1, count + 1))
        operations = np.where(identities, -1, shared[..., 2:4])
        columns = [
            *(shared[..., i, None] == np.arange(LOCATIONS) for i in (0, 1)),
            out[..., None] == np.arange(LOCATIONS),
            *(operations[..., i, None] == np.arange(len(OPERATIONS)) for i in (0, 1)),
            shared[..., 4, None] == np.arange(len(JOINS)),
        ]
        return (np.concatenate(columns, axis=3) & present).reshape(n, places * count, FEATURES).astype(np.float32)

    def blocks(self, arch: Architecture) -> np.ndarray:
        """`block_features` of one architecture: float32 (positions x max_blocks, 61)."""
        return self.block_features(self.encode([arch]))[0]

    # ---- networks ---------------------------------------------------------------------------------------------------

    def slots(self) -> tuple[Slot, ...]:
        numbers = np.arange(len(self.cardinalities))
        blocks, identities, cuts = (part[0] for part in self._parts(numbers[None]))
        wiring = blocks[:, (0, 1, 4)].ravel()
        made = []
        for p in range(len(POSITIONS)):
            before = cuts[p - 1] if p else cuts[:0]
            genes = np.concatenate([[0], blocks.ravel(), identities[p].ravel(), before.ravel(), cuts[p]])
            made.append(Slot(f"cells.{p}", tuple(sorted({int(g) for g in genes}))))
        last = np.concatenate([[0], wiring, cuts[-1]])
        return *made, Slot("pool|flatten|classifier", tuple(int(g) for g in last))

    def module(self, arch: Architecture) -> nn.Module:
        from .memnet_modules import NetworkOfMemNet

        return NetworkOfMemNet(self.cells(arch), self.resolution, self.num_classes)

    def carried(self, tensors: Mapping[str, torch.Tensor], parent: Architecture, child: Architecture) -> Mapping[str, torch.Tensor]:
        """Without what reads blocks that `child` cuts off a cell's output: those behind them move up."""
        made = dict(tensors)
        before, after = self.cells(parent), self.cells(child)
        for p, (old, new) in enumerate(zip(before, after, strict=True)):
            if set(old.ends) <= set(new.ends):
                continue
            widths = [old.blocks[j - 1].channels(old.width) for j in old.ends]
            kept = np.repeat([j in new.ends for j in old.ends], widths)
            for name, axis, times in self._readers(before, p):
                if name in made:
                    places = np.flatnonzero(np.repeat(kept, times))
                    made[name] = made[name][(slice(None),) * axis + (places.tolist(),)]
        return made

    def _readers(self, cells: Sequence[Cell], p: int) -> Iterator[tuple[str, int, int]]:
        """Tensors of the network with one entry, or `times` entries, for each channel of cell p's output: name, axis, times."""
        if p + 1 == len(cells):
            yield "classifier.weight", 1, (self.resolution // 8) ** 2
            return
        for i, (block, operations) in enumerate(zip(cells[p + 1].blocks, cells[p + 1].operations, strict=True)):
            for which, source, operation in zip(("first", "second"), block.inputs, operations, strict=True):
                inside = f"cells.{p + 1}.blocks.{i}.{which}"
                if source:
                    continue
                if not operation.startswith("dw_sep"):
                    yield f"{inside}.0.weight", 1, 1
                    continue
                yield from ((f"{inside}.{name}", 0, 1) for name in ("0.weight", *(f"1.{part}" for part in _NORM)))
                yield f"{inside}.2.weight", 1, 1

    def graph(self, arch: Architecture) -> Graph:
        net = LayerGraph("NetworkOfMemNet", self.input_shape(arch))
        x = net.input
        for p, cell in enumerate(self.cells(arch)):
            scope = f"cells.{p}"
            states = [x]
            for i, (block, operations) in enumerate(zip(cell.blocks, cell.operations, strict=True)):
                inside = f"{scope}.blocks.{i}"
                a, b = (
                    operation(net, name, states[source], cell.width, 1 if source else cell.stride, f"{inside}.{which}")
                    for name, source, which in zip(operations, block.inputs, ("first", "second"), strict=True)
                )
                states.append(net.add(a, b, inside) if block.join == "add" else net.cat([a, b], inside))
            outs = [states[j] for j in cell.ends]
            x = outs[0] if len(outs) == 1 else net.cat(outs, scope)
        x = net.flatten(net.max_pool(x, 2, "pool"), "flatten")
        return net.build(net.linear(x, self.num_classes, "classifier"))


def operation(net: LayerGraph, name: str, x: int, width: int, stride: int, scope: str) -> int:
    """One layer of a block on `x`, to `width` channels; `memnet_modules.layer` makes the same as a module."""
    channels = net.shape(x)[1]
    if name == "identity" and (channels, stride) == (width, 1):
        return x

    def conv(x: int, place: int, channels: int, kernel: int | tuple[int, int], stride: int = 1, dilation: int = 1, groups: int = 1) -> int:
        x = net.conv2d(x, channels, kernel, f"{scope}.{place}", stride=stride, dilation=dilation, groups=groups)
        return net.batch_norm(x, f"{scope}.{place + 1}")

    if name == "identity":
        return conv(x, 0, width, 1, stride)
    if name == "avg_pool_3x3":
        return net.avg_pool(conv(x, 0, width, 1), 3, f"{scope}.2", stride=stride, padding=1)
    if name == "max_pool_3x3":
        return net.max_pool(conv(x, 0, width, 1), 3, f"{scope}.2", stride=stride, padding=1)
    if name in ("conv_3x3", "dil_conv_3x3"):
        return net.relu(conv(x, 0, width, 3, stride, 2 if name == "dil_conv_3x3" else 1), f"{scope}.2", inplace=True)
    if name == "fac_conv_7x7":
        x = net.relu(conv(x, 0, width, 1, stride), f"{scope}.2", inplace=True)
        x = net.relu(conv(x, 3, width, (1, 7)), f"{scope}.5", inplace=True)
        return net.relu(conv(x, 6, width, (7, 1)), f"{scope}.8", inplace=True)
    x = conv(x, 0, channels, int(name[-1]), stride, groups=channels)
    return net.relu(conv(x, 2, width, 1), f"{scope}.4", inplace=True)


def _bit(location: int) -> int:
    """The set that holds the block at `location`; the empty set for the cell's input."""
    return 1 << location - 1 if location else 0
