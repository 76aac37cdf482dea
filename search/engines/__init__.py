"""The search engines by name, each loaded when it is first asked for."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from types import MappingProxyType
from typing import Any

from ...compiler.errors import SourceError
from ..engine import Context, Engine

_CLASSES = {
    "random": ("random_search", "RandomSearch"),
    "evolution": ("evolution", "Evolution"),
    "nsga2": ("nsga2", "NSGA2"),
    "memnet": ("memnet", "MemNet"),
    "moofa": ("moofa", "MOOFA"),
}
PRESETS = ("smoke", "small", "paper")


def list_engines() -> tuple[str, ...]:
    """Names of the engines that come with Neaptide."""
    return tuple(_CLASSES)


def load_engine(name: str) -> Callable[[Context], Engine]:
    """What makes the engine called `name` from its context. Raises `SourceError` with the nearest name."""
    if name not in _CLASSES:
        near = difflib.get_close_matches(name, _CLASSES, n=1)
        raise SourceError(f"no engine {name!r}: " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_CLASSES)}"))
    module, attribute = _CLASSES[name]
    return getattr(import_module(f".{module}", __name__), attribute)


def engine_settings(name: str, context: Context, presets: dict[str, dict[str, Any]]) -> MappingProxyType[str, Any]:
    """The settings of the context's preset with the user's options over them, each of the type that the preset has.

    Raises `SourceError` for a preset or option that the engine does not have, or a value of another type.
    """
    if context.preset not in presets:
        raise SourceError(f"engine {name} has no preset {context.preset!r}; there are {', '.join(presets)}")
    settings = dict(presets[context.preset])
    for option, value in context.options.items():
        if option not in settings:
            raise SourceError(f"engine {name} has no option {option!r}; there are {', '.join(settings)}")
        wanted = type(settings[option])
        if isinstance(value, bool) != (wanted is bool) or not isinstance(value, (int, float) if wanted is float else wanted):
            raise SourceError(f"option {option} of engine {name} is {value!r}; wanted {wanted.__name__}, such as {settings[option]!r}")
        settings[option] = wanted(value)
    return MappingProxyType(settings)
