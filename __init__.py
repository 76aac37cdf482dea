"""Neaptide: how much memory and work a network needs, proven; the order and layout that need least;
and what it costs on the device.

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
    from .compiler.count import Counts, count
    from .compiler.errors import NeaptideError
    from .compiler.graph import Graph, GraphBuilder, Node, Storage, Tensor
    from .compiler.oracle import with_workspace
    from .compiler.reference_models import reference_model
    from .compiler.trace import trace
    from .passes.allocate import Layout, Plan, allocate, allocate_lifetimes
    from .passes.execute import ArenaRun, execute_in_arena
    from .passes.formula import PeakFormula, peak_formula
    from .passes.inplace import inplace
    from .passes.lifetimes_csv import read_lifetimes
    from .passes.liveness import Lifetimes, eager_liveness, liveness
    from .passes.schedule import Schedule, schedule
    from .passes.verify import verify_graph, verify_order, verify_plan, verify_schedule
    from .targets.cost import Cost
    from .targets.database import CostDatabase
    from .targets.measure import measure
    from .targets.predictors.storage import load_predictor
    from .targets.spec import Target, list_targets, load_target

try:
    __version__ = version("neaptide")
except PackageNotFoundError:
    __version__ = "0+unknown"

__all__ = [
    "Analysis",
    "ArenaRun",
    "Cost",
    "CostDatabase",
    "Counts",
    "Graph",
    "GraphBuilder",
    "Layout",
    "Lifetimes",
    "NeaptideError",
    "Node",
    "PeakFormula",
    "Plan",
    "Schedule",
    "Storage",
    "Target",
    "Tensor",
    "__version__",
    "allocate",
    "allocate_lifetimes",
    "analyze",
    "count",
    "eager_liveness",
    "execute_in_arena",
    "inplace",
    "list_targets",
    "liveness",
    "load_predictor",
    "load_target",
    "measure",
    "peak_formula",
    "read_lifetimes",
    "reference_model",
    "schedule",
    "trace",
    "verify_graph",
    "verify_order",
    "verify_plan",
    "verify_schedule",
    "with_workspace",
]

_HOMES = {
    ".analysis": ("Analysis", "analyze"),
    ".compiler.count": ("Counts", "count"),
    ".compiler.errors": ("NeaptideError",),
    ".compiler.graph": ("Graph", "GraphBuilder", "Node", "Storage", "Tensor"),
    ".compiler.oracle": ("with_workspace",),
    ".compiler.reference_models": ("reference_model",),
    ".compiler.trace": ("trace",),
    ".passes.allocate": ("Layout", "Plan", "allocate", "allocate_lifetimes"),
    ".passes.execute": ("ArenaRun", "execute_in_arena"),
    ".passes.formula": ("PeakFormula", "peak_formula"),
    ".passes.inplace": ("inplace",),
    ".passes.lifetimes_csv": ("read_lifetimes",),
    ".passes.liveness": ("Lifetimes", "eager_liveness", "liveness"),
    ".passes.schedule": ("Schedule", "schedule"),
    ".passes.verify": ("verify_graph", "verify_order", "verify_plan", "verify_schedule"),
    ".targets.cost": ("Cost",),
    ".targets.database": ("CostDatabase",),
    ".targets.measure": ("measure",),
    ".targets.predictors.storage": ("load_predictor",),
    ".targets.spec": ("Target", "list_targets", "load_target"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_ROOMS = ("compiler", "passes", "targets", "search", "report", "testing")


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(import_module(_HOME_OF[name], __name__), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'neaptide' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, *_ROOMS})
