"""What an architecture is, and what every search space can do with one.

An architecture is a vector of small integers, its **genes**. Gene i takes the values 0 to `cardinalities[i] - 1`; a gene that plays
no part (a block beyond its stage's depth) is 0, so that equal networks are equal architectures: `canonical` sees to it. Batches are
int16 arrays of shape (architectures, genes), which the oracle reads without making an object of each.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compiler.errors import SourceError

if TYPE_CHECKING:
    import torch

    from ..compiler.graph import Graph

ATTEMPTS = 10_000


@dataclass(frozen=True, slots=True)
class Architecture:
    """One point of the space called `space`: its genes, canonical. Compare and hash them freely; `digest` is the same in every process."""

    space: str
    genes: tuple[int, ...]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that depend on the space and the genes alone."""
        return blake2b(f"{self.space}:{','.join(map(str, self.genes))}".encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Slot:
    """A stretch of a space's networks between two cuts. `scope`: the module path of its nodes; several, joined by "|", stand in a row.
    `genes`: the genes its nodes depend on (and nothing else does); with equal values there, two architectures have equal nodes in it,
    which hand on the same result.
    """

    scope: str
    genes: tuple[int, ...]


class Space(ABC):
    """A set of architectures. Subclasses give `name`, `cardinalities`, `graph`, `module`, `input_shape`, `text`, `parse`, and what
    of the rest they know better: rules between genes in `canonical_rows`, cuts in `slots`.
    """

    name: str
    cardinalities: tuple[int, ...]

    # ---- what each space says of itself ---------------------------------------------------------------------------

    @abstractmethod
    def graph(self, arch: Architecture) -> Graph:
        """The network's inference graph at batch 1, built without torch: equal to `trace(module(arch).eval(), example)` in storages,
        bytes, FLOPs, parameters and peak; each node's `scope` is its module path.
        """

    @abstractmethod
    def module(self, arch: Architecture) -> torch.nn.Module:
        """The network with freshly initialised weights (from torch's global generator)."""

    @abstractmethod
    def input_shape(self, arch: Architecture) -> tuple[int, ...]:
        """Shape of one input, batch 1 included: (1, channels, height, width) for images."""

    @abstractmethod
    def text(self, arch: Architecture) -> str:
        """The canonical string, in the form the paper or benchmark of this space uses where it has one."""

    @abstractmethod
    def parse(self, text: str) -> Architecture:
        """The architecture that `text` writes. Raises `SourceError` that quotes the part it cannot read."""

    def canonical_rows(self, rows: np.ndarray) -> np.ndarray:
        """Equal networks to equal rows: genes without effect set to 0. `rows`: (n, genes); a new array, or `rows` itself."""
        return rows

    def slots(self) -> tuple[Slot, ...]:
        """The stretches between cut nodes, in order and covering every node; () where the networks of this space have no cuts."""
        return ()

    def parts(self) -> tuple[Slot, ...]:
        """Stretches that cover every node and depend on few genes each, for what adds up over nodes; they need not lie between cuts."""
        return self.slots()

    def stretches(self) -> tuple[Slot, ...]:
        """For spaces without cuts: slots that run one after another, every node in one, between which several tensors may pass."""
        return ()

    @cached_property
    def size(self) -> int:
        """Number of different architectures. Spaces with rules between genes count them themselves."""
        total = 1
        for c in self.cardinalities:
            total *= c
        return total

    def carried(self, tensors: Mapping[str, torch.Tensor], parent: Architecture, child: Architecture) -> Mapping[str, torch.Tensor]:
        """Weights `tensors` of `parent`'s network with their channels where `child`'s network has them, for it to inherit."""
        return tensors

    # ---- what follows from genes ----------------------------------------------------------------------------------

    def architecture(self, genes: Sequence[int]) -> Architecture:
        """The canonical architecture of `genes`. Raises `SourceError` naming the gene that is out of range."""
        if len(genes) != len(self.cardinalities):
            raise SourceError(f"an architecture of {self.name} has {len(self.cardinalities)} genes, not {len(genes)}")
        for i, (gene, c) in enumerate(zip(genes, self.cardinalities, strict=True)):
            if not 0 <= gene < c:
                raise SourceError(f"gene {i} of an architecture of {self.name} is {gene}; it takes 0 to {c - 1}")
        (row,) = self.canonical_rows(np.asarray([genes], np.int16)).tolist()
        return Architecture(self.name, tuple(row))

    def encode(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Their genes as an int16 array (n, genes)."""
        width = len(self.cardinalities)
        flat = np.fromiter((g for arch in archs for g in arch.genes), np.int16, len(archs) * width)
        return flat.reshape(len(archs), width)

    def decode(self, rows: np.ndarray) -> list[Architecture]:
        """The architectures whose genes stand in `rows` (n, genes), made canonical."""
        return [Architecture(self.name, tuple(row)) for row in self.canonical_rows(np.asarray(rows, np.int16)).tolist()]

    def sample_rows(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """`n` random architectures as canonical rows: every gene uniform, and then canonical."""
        return self.canonical_rows(rng.integers(0, self.cardinalities, (n, len(self.cardinalities)), dtype=np.int16))

    def sample(self, rng: np.random.Generator) -> Architecture:
        """One random architecture."""
        return self.decode(self.sample_rows(rng, 1))[0]

    def neighbours(self, arch: Architecture) -> list[Architecture]:
        """Every different architecture one gene away, each once, in a fixed order."""
        found: dict[Architecture, None] = {}
        for i, c in enumerate(self.cardinalities):
            for value in range(c):
                if value != arch.genes[i]:
                    other = self.architecture((*arch.genes[:i], value, *arch.genes[i + 1 :]))
                    if other != arch:
                        found[other] = None
        return list(found)

    def mutate(self, arch: Architecture, rng: np.random.Generator, *, rate: float | None = None) -> Architecture:
        """`arch` with each gene redrawn with probability `rate`, and different from it; by default exactly one gene is moved."""
        cards = np.asarray(self.cardinalities)
        for _ in range(ATTEMPTS):
            genes = np.asarray(arch.genes)
            which = rng.random(len(genes)) < rate if rate is not None else np.arange(len(genes)) == rng.integers(len(genes))
            moved = np.where(which, rng.integers(0, cards), genes)
            other = self.architecture(moved.tolist())
            if other != arch:
                return other
        raise SourceError(f"space {self.name} has nothing next to {self.text(arch)}")

    def crossover(self, a: Architecture, b: Architecture, rng: np.random.Generator) -> Architecture:
        """Each gene from one parent or the other with equal chance, made canonical."""
        take = rng.random(len(a.genes)) < 0.5
        return self.architecture(np.where(take, a.genes, b.genes).tolist())

    def enumerate(self) -> Iterator[Architecture]:
        """Every architecture once, genes counting up with the last fastest; for spaces small enough to be walked."""
        seen: set[tuple[int, ...]] = set()
        for index in np.ndindex(*self.cardinalities):
            arch = self.architecture(index)
            if arch.genes not in seen:
                seen.add(arch.genes)
                yield arch

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Genes one-hot, float32 (n, sum of cardinalities): what predictors read by default."""
        columns = [np.equal.outer(rows[:, i], np.arange(c)) for i, c in enumerate(self.cardinalities)]
        return np.concatenate(columns, axis=1).astype(np.float32)

    def describe(self) -> dict[str, Any]:
        """JSON values that make this space again through `load_space`: `name`, which is FILE.py:CLASS for a class of the user's own,
        and the `options` it was made with.
        """
        own = type(self)
        file = getattr(sys.modules.get(own.__module__), "__file__", None)
        if file is None or own.__module__.startswith(f"{__package__}."):
            return {"name": self.name, "options": {}}
        return {"name": f"{Path(file).absolute()}:{own.__qualname__}", "options": {}}
