"""Neaptide: how much memory and work a network needs, proven; the order and layout that need least; and nets that fit.

    import neaptide
    analysis = neaptide.analyze(model, (x,))
    print(analysis.table())

The names below are loaded on first use, so `import neaptide` costs milliseconds and brings in no framework.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis import Analysis, analyze
    from .compiler.count import count
    from .compiler.errors import NeaptideError
    from .compiler.graph import Graph, GraphBuilder, Node, Storage, Tensor
    from .compiler.trace import trace
    from .passes.allocate import Plan, allocate, allocate_lifetimes
    from .passes.execute import execute_in_arena
    from .passes.formula import peak_formula
    from .passes.inplace import inplace
    from .passes.liveness import Lifetimes, eager_liveness, liveness
    from .passes.schedule import Schedule, schedule

try:
    __version__ = version("neaptide")
except PackageNotFoundError:
    __version__ = "0+unknown"

_HOMES = {
    "Analysis": ".analysis",
    "analyze": ".analysis",
    "count": ".compiler.count",
    "NeaptideError": ".compiler.errors",
    "Graph": ".compiler.graph",
    "GraphBuilder": ".compiler.graph",
    "Node": ".compiler.graph",
    "Storage": ".compiler.graph",
    "Tensor": ".compiler.graph",
    "trace": ".compiler.trace",
    "Plan": ".passes.allocate",
    "allocate": ".passes.allocate",
    "allocate_lifetimes": ".passes.allocate",
    "execute_in_arena": ".passes.execute",
    "peak_formula": ".passes.formula",
    "inplace": ".passes.inplace",
    "Lifetimes": ".passes.liveness",
    "eager_liveness": ".passes.liveness",
    "liveness": ".passes.liveness",
    "Schedule": ".passes.schedule",
    "schedule": ".passes.schedule",
}
_ROOMS = ("compiler", "passes", "targets", "search", "report", "testing")

__all__ = [*sorted(_HOMES), "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name], __name__), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'neaptide' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})
