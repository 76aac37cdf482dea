"""Spaces of your own: name the choices, build the module; graphs, genes, text and sizes follow.

    class Small(OwnSpace):
        choices = {"width": (8, 16, 24), "depth": (1, 2), "second": Choice((3, 5), when=("depth", (2,)))}

        def build(self, choices):
            ...  # a torch.nn.Module; choices is {"width": 16, "depth": 2, "second": 3}

        def shape(self, choices):
            return (1, 3, 64, 64)

`neaptide search --space FILE.py:Small` searches it. A network's graph is the trace of its module, about 50 ms for a hundred layers, kept
for the networks last asked for. With `cuts` the oracle traces only to see a stretch of layers for the first time and composes the rest.
A space of MobileNet-like blocks that needs no trace at all subclasses `mobile.ChainSpace` instead.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...compiler.errors import SourceError
from ..space import Architecture, Slot, Space

if TYPE_CHECKING:
    import torch

    from ...compiler.graph import Graph

KEPT_GRAPHS = 256


@dataclass(frozen=True, slots=True)
class Choice:
    """`values`: what may be chosen: numbers, strings, booleans. `when`: (an earlier choice, values of it) where this one matters."""

    values: Sequence[Any]
    when: tuple[str, Sequence[Any]] | None = None


class OwnSpace(Space):
    """A space given by `choices` and `build`. Genes: one a choice, in order; an architecture's text is `width=16,depth=2,second=3`.

    `options`: what `load_space` may set, with defaults, reachable as `self.options`; an option `classes` follows the data of a search.
    `cuts`: module paths between which one tensor alone is alive, in order, each with the choices its layers depend on; the paths
    cover every layer. `neaptide.testing.check_space` proves that they do. A class without a `name` has its own.
    """

    choices: Mapping[str, Choice | Sequence[Any]]
    options: Mapping[str, Any] = {}
    cuts: Mapping[str, Sequence[str]] = {}

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def __init__(self, **options: Any):
        for option in options:
            if option not in self.options:
                known = ", ".join(self.options) or "none"
                raise SourceError(f"space {self.name} has no option {option!r}; it has {known}")
        self.options = {**self.options, **options}
        self._choices = {name: c if isinstance(c, Choice) else Choice(tuple(c)) for name, c in self.choices.items()}
        self._names = tuple(self._choices)
        self._words = tuple(tuple(map(str, c.values)) for c in self._choices.values())
        self._when: list[tuple[int, tuple[int, ...]] | None] = []
        for i, (name, choice) in enumerate(self._choices.items()):
            self._when.append(self._condition(i, name, choice))
            words = self._words[i]
            if not words or len(set(words)) < len(words) or not all(re.fullmatch(r"[^,=\s]+", w) for w in (name, *words)):
                raise SourceError(f"choice {name!r} of space {self.name} takes different values that hold no comma, '=' or blank: {words}")
        self.cardinalities = tuple(len(c.values) for c in self._choices.values())
        for path, names in self.cuts.items():
            for name in names:
                if name not in self._choices:
                    raise SourceError(f"cut {path!r} of space {self.name} names {name!r}, which is no choice")
        self._graphs: OrderedDict[tuple[int, ...], Graph] = OrderedDict()

    # ---- what a space of your own says ----------------------------------------------------------------------------

    @abstractmethod
    def build(self, choices: Mapping[str, Any]) -> torch.nn.Module:
        """The network with freshly initialised weights. `choices`: values by name, of the choices that matter alone."""

    @abstractmethod
    def shape(self, choices: Mapping[str, Any]) -> tuple[int, ...]:
        """Shape of one input, batch 1 included."""

    # ---- what follows ---------------------------------------------------------------------------------------------

    def chosen(self, arch: Architecture) -> dict[str, Any]:
        """Values by name, without the choices that do not matter."""
        matters = self._matter(np.asarray([arch.genes], np.int16))[0]
        return {n: c.values[g] for (n, c), g, m in zip(self._choices.items(), arch.genes, matters, strict=True) if m}

    def module(self, arch: Architecture) -> torch.nn.Module:
        """See `Space.module`."""
        return self.build(self.chosen(arch))

    def input_shape(self, arch: Architecture) -> tuple[int, ...]:
        """See `Space.input_shape`."""
        return tuple(self.shape(self.chosen(arch)))

    def graph(self, arch: Architecture) -> Graph:
        """The trace of `module(arch)`, built without weights. Raises `TraceError` with the line of the module that cannot be traced."""
        if arch.genes in self._graphs:
            self._graphs.move_to_end(arch.genes)
            return self._graphs[arch.genes]
        import torch

        from ...compiler.trace import trace

        traced = trace(lambda: self.module(arch).eval(), (torch.empty(self.input_shape(arch), device="meta"),))
        self._graphs[arch.genes] = graph = replace(traced, values={})
        if len(self._graphs) > KEPT_GRAPHS:
            self._graphs.popitem(last=False)
        return graph

    def text(self, arch: Architecture) -> str:
        """See `Space.text`."""
        return ",".join(f"{name}={value}" for name, value in self.chosen(arch).items())

    def parse(self, text: str) -> Architecture:
        """See `Space.parse`."""
        said: dict[str, str] = {}
        for part in text.strip().split(","):
            name, _, word = part.partition("=")
            if name not in self._choices or name in said:
                raise SourceError(
                    f"{part!r} of {text!r} is not one choice of {self.name} as NAME=VALUE, each once: {', '.join(self._names)}"
                )
            if word not in self._words[self._names.index(name)]:
                raise SourceError(f"{part!r} of {text!r}: {name} is one of {', '.join(self._words[self._names.index(name)])}")
            said[name] = word
        arch = self.architecture([w.index(said[n]) if n in said else 0 for n, w in zip(self._names, self._words, strict=True)])
        if said.keys() != self.chosen(arch).keys():
            odd = sorted(said.keys() ^ self.chosen(arch).keys())
            raise SourceError(f"{text!r} is no architecture of {self.name}: {', '.join(odd)} must be said where it matters and only there")
        return arch

    def canonical_rows(self, rows: np.ndarray) -> np.ndarray:
        """See `Space.canonical_rows`."""
        return np.where(self._matter(rows), rows, 0).astype(np.int16)

    def slots(self) -> tuple[Slot, ...]:
        """See `Space.slots`."""
        return tuple(Slot(path, self._with_conditions(names)) for path, names in self.cuts.items())

    @cached_property
    def size(self) -> int:
        """See `Space.size`."""
        total = 1
        for i, condition in enumerate(self._when):
            if condition is None:
                total *= self._ways(i)
        return total

    def describe(self) -> dict[str, Any]:
        """See `Space.describe`."""
        return {**super().describe(), "options": dict(self.options)}

    def _condition(self, i: int, name: str, choice: Choice) -> tuple[int, tuple[int, ...]] | None:
        """The gene and its values that `choice` waits for."""
        if choice.when is None:
            return None
        on, values = choice.when
        if on not in self._names[:i]:
            raise SourceError(f"choice {name!r} of space {self.name} waits for {on!r}, which is no earlier choice")
        offered = list(self._choices[on].values)
        if not values or any(v not in offered for v in values):
            raise SourceError(f"choice {name!r} of space {self.name} waits for {on} = {list(values)}; {on} takes {offered}")
        return self._names.index(on), tuple(offered.index(v) for v in values)

    def _matter(self, rows: np.ndarray) -> np.ndarray:
        """Which genes of `rows` matter, bool (n, genes)."""
        matter = np.ones(rows.shape, bool)
        for i, condition in enumerate(self._when):
            if condition is not None:
                on, values = condition
                matter[:, i] = matter[:, on] & np.isin(rows[:, on], values)
        return matter

    def _ways(self, i: int) -> int:
        """How many different ways gene `i` and what hangs on it can be set, where it matters."""
        waiting = [(c, condition[1]) for c, condition in enumerate(self._when) if condition is not None and condition[0] == i]
        total = 0
        for value in range(self.cardinalities[i]):
            ways = 1
            for child, values in waiting:
                ways *= self._ways(child) if value in values else 1
            total += ways
        return total

    def _with_conditions(self, names: Sequence[str]) -> tuple[int, ...]:
        """Genes of the choices `names` and of what those wait for."""
        genes: set[int] = set()
        for gene in map(self._names.index, names):
            step: int | None = gene
            while step is not None:
                genes.add(step)
                condition = self._when[step]
                step = condition[0] if condition else None
        return tuple(sorted(genes))
