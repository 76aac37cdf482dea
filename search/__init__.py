"""Search for architectures with the oracle as judge: spaces, engines, studies. Calling the package is calling `search`.

import neaptide
result = neaptide.search("nasbench201", "evolution", target="stm32f746", data="nasbench201.npz")
print(result.best.text)
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .constraints import Constraint, Constraints
    from .costs import Costs
    from .data import ImageData, TabularData, load_data
    from .engine import Context, Engine, Objective, Outcome, Proposal
    from .engines import list_engines, load_engine
    from .oracle import Oracle
    from .published import from_published
    from .result import Candidate, SearchResult
    from .run import search
    from .space import Architecture, Slot, Space
    from .spaces import list_spaces, load_space
    from .spaces.own import Choice, OwnSpace

__all__ = [
    "Architecture",
    "Candidate",
    "Choice",
    "Constraint",
    "Constraints",
    "Context",
    "Costs",
    "Engine",
    "ImageData",
    "Objective",
    "Oracle",
    "Outcome",
    "OwnSpace",
    "Proposal",
    "SearchResult",
    "Slot",
    "Space",
    "TabularData",
    "from_published",
    "list_engines",
    "list_spaces",
    "load_data",
    "load_engine",
    "load_space",
    "search",
]

_HOMES = {
    ".constraints": ("Constraint", "Constraints"),
    ".costs": ("Costs",),
    ".data": ("ImageData", "TabularData", "load_data"),
    ".engine": ("Context", "Engine", "Objective", "Outcome", "Proposal"),
    ".engines": ("list_engines", "load_engine"),
    ".oracle": ("Oracle",),
    ".published": ("from_published",),
    ".result": ("Candidate", "SearchResult"),
    ".run": ("search",),
    ".space": ("Architecture", "Slot", "Space"),
    ".spaces": ("list_spaces", "load_space"),
    ".spaces.own": ("Choice", "OwnSpace"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(import_module(_HOME_OF[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})


class _Callable(ModuleType):
    """The package itself, called: `neaptide.search(...)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from .run import search

        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
