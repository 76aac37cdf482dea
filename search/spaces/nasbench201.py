"""NAS-Bench-201: 15,625 cells of four nodes whose six edges each carry one of five operations.

Xuanyi Dong and Yi Yang, arXiv 2001.00326. The network is the benchmark's: a 3 x 3 stem, three stages of N equal cells of C, 2C and 4C
channels, a residual block of stride 2 between stages, batch norm, ReLU, global pool, linear classifier. An edge `none` adds zeros in the
benchmark; here it is left out of its sum, which changes neither the result nor the multiply-adds nor the parameters. A node whose edges
are all `none` is zeros. Layers that lead nowhere are kept, as the benchmark counts and runs them.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...compiler.errors import SourceError
from ..space import Architecture, Slot, Space
from .nasbench201_graph import EDGES, INCOMING, OPERATIONS, GraphMaker

if TYPE_CHECKING:
    from torch import nn

    from ...compiler.graph import Graph


class NASBench201(Space):
    """One gene an edge, an index into `OPERATIONS`. `C`: channels of the first stage; `N`: cells a stage.

    The benchmark's own networks are (C=16, N=5): `num_classes` 10 and 100 at `resolution` 32 (CIFAR), 120 at 16 (ImageNet16-120).
    """

    name = "nasbench201"
    cardinalities = (len(OPERATIONS),) * len(EDGES)

    def __init__(self, C: int = 16, N: int = 5, num_classes: int = 10, resolution: int = 32):
        if min(C, N, num_classes) < 1 or resolution < 4 or resolution % 4:
            raise SourceError(
                f"nasbench201 takes C, N and num_classes of at least 1 and a resolution divisible by 4, not C={C}, N={N}, "
                f"num_classes={num_classes}, resolution={resolution}"
            )
        self.C, self.N, self.num_classes, self.resolution = C, N, num_classes, resolution

    def input_shape(self, arch: Architecture) -> tuple[int, ...]:
        return (1, 3, self.resolution, self.resolution)

    def describe(self) -> dict[str, Any]:
        options = {"C": self.C, "N": self.N, "num_classes": self.num_classes, "resolution": self.resolution}
        return {"name": self.name, "options": options}

    def text(self, arch: Architecture) -> str:
        """The benchmark's form: `|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|avg_pool_3x3~1|none~2|`."""
        nodes = ["".join(f"{OPERATIONS[arch.genes[e]]}~{source}|" for e, source in edges) for edges in INCOMING]
        return "+".join(f"|{node}" for node in nodes)

    def parse(self, text: str) -> Architecture:
        nodes = text.strip().split("+")
        if len(nodes) != len(INCOMING):
            raise SourceError(f"a nasbench201 cell has 3 nodes joined by '+', not the {len(nodes)} of {text!r}")
        genes = []
        for node, edges in zip(nodes, INCOMING, strict=True):
            parts = node.split("|")
            if len(parts) != len(edges) + 2 or parts[0] or parts[-1]:
                raise SourceError(f"node {node!r} of a nasbench201 cell should list {len(edges)} edges between bars")
            for part, (_, source) in zip(parts[1:-1], edges, strict=True):
                operation, _, read = part.partition("~")
                if operation not in OPERATIONS or read != str(source):
                    raise SourceError(
                        f"edge {part!r} of a nasbench201 cell: expected OPERATION~{source} with one of {', '.join(OPERATIONS)}"
                    )
                genes.append(OPERATIONS.index(operation))
        return self.architecture(genes)

    def slots(self) -> tuple[Slot, ...]:
        genes = tuple(range(len(EDGES)))
        between = [Slot(f"cells.{k}", genes if k % (self.N + 1) < self.N else ()) for k in range(3 * self.N + 2)]
        return Slot("stem", ()), *between, Slot("lastact|global_pooling|flatten|classifier", ())

    def module(self, arch: Architecture) -> nn.Module:
        from .cell_modules import NetworkOf201

        edges = [(source, to, OPERATIONS[gene]) for (source, to), gene in zip(EDGES, arch.genes, strict=True)]
        return NetworkOf201(edges, self.C, self.N, self.num_classes)

    def graph(self, arch: Architecture) -> Graph:
        return self._graphs.make(arch.genes)

    @cached_property
    def _graphs(self) -> GraphMaker:
        return GraphMaker(self.C, self.N, self.num_classes, self.resolution)
