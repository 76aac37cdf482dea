"""What a batch of architectures costs: one array per metric, and how each is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from ..compiler.errors import SourceError

METRICS: Mapping[str, str] = MappingProxyType(
    {
        "params": "elements of all parameters",
        "macs": "multiply-adds",
        "flops": "two for each multiply-add",
        "weight_bytes": "bytes of parameters, buffers and constants",
        "flash": "bytes of weights, and of code where it was measured",
        "peak": "bytes of memory at the worst moment, by the oracle's accounting",
        "arena": "bytes of one static arena that holds every activation",
        "latency": "seconds of one inference on the target",
        "instructions": "instructions of one inference on the target",
    }
)
CostsKind = Literal["exact", "predicted", "measured", "bound"]


@dataclass(frozen=True, eq=False)
class Costs:
    """Costs of n architectures, each metric an array (n,), None where it was not asked for. Units as in `METRICS`.

    `kinds`, per metric: "exact"; "predicted" from measurements of others; "measured"; "bound" where a peak or arena is one that an
    order or plan attains, while of some architectures it is not proved that none is lower. `proven` (n,): which peaks are proved least;
    `peak_bound`, `arena_bound` (n,): bytes that no order, and no plan of the order chosen, undercuts. `errors`: expected relative
    errors (n,) of predicted metrics, NaN where unknown.
    """

    n: int
    params: np.ndarray | None = None
    macs: np.ndarray | None = None
    flops: np.ndarray | None = None
    weight_bytes: np.ndarray | None = None
    flash: np.ndarray | None = None
    peak: np.ndarray | None = None
    arena: np.ndarray | None = None
    latency: np.ndarray | None = None
    instructions: np.ndarray | None = None
    peak_bound: np.ndarray | None = None
    arena_bound: np.ndarray | None = None
    proven: np.ndarray | None = None
    kinds: Mapping[str, CostsKind] = field(default_factory=lambda: MappingProxyType({}))
    errors: Mapping[str, np.ndarray] = field(default_factory=lambda: MappingProxyType({}))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, metric: str) -> np.ndarray:
        """The array of `metric`. Raises `SourceError` for one that is unknown or was not asked for."""
        check_metrics([metric])
        values = getattr(self, metric)
        if values is None:
            raise SourceError(f"these costs have no {metric!r}; ask for it: cost(archs, metrics=({metric!r}, ...))")
        return values

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that are here, in the order of `METRICS`."""
        return tuple(name for name in METRICS if getattr(self, name) is not None)

    def values(self, i: int) -> dict[str, Any]:
        """Metrics of architecture `i` as plain numbers."""
        return {name: getattr(self, name)[i].item() for name in self.metrics}


def check_metrics(metrics: Any) -> tuple[str, ...]:
    """`metrics` as a tuple. Raises `SourceError` that lists the known ones."""
    for name in metrics:
        if name not in METRICS:
            raise SourceError(f"no metric {name!r}; there are {', '.join(METRICS)}")
    return tuple(metrics)
