"""The search spaces by name, each made when it is first asked for."""

from __future__ import annotations

import importlib.util
import sys
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from ...compiler.errors import SourceError
from ..own_files import own_file, remember
from ..space import Space

_CLASSES = {
    "nasbench201": ("nasbench201", "NASBench201"),
    "nasbench_macro": ("nasbench_macro", "NASBenchMacro"),
    "darts": ("darts", "DARTS"),
    "memnet": ("memnet", "MemNet"),
    "ofa_mbv3": ("ofa", "OFAMobileNetV3"),
    "compofa": ("ofa", "CompOFA"),
    "moofa": ("ofa", "MOOFA"),
    "proxyless_mbconv": ("proxyless", "ProxylessMBConv"),
    "proxyless_tree": ("proxyless_tree", "ProxylessTree"),
    "fbnetv2": ("fbnetv2", "FBNetV2"),
}


def list_spaces() -> tuple[str, ...]:
    """Names of the spaces that come with Neaptide."""
    return tuple(_CLASSES)


def load_space(name: str, **options: Any) -> Space:
    """The space called `name`, made with `options`; `FILE.py:CLASS` makes a space of the user's own.

    Raises `SourceError` for an unknown name, option or class.
    """
    if name in _CLASSES:
        module, attribute = _CLASSES[name]
        made = getattr(import_module(f".{module}", __name__), attribute)
    elif own_file(name) is not None:
        made = _own_class(name)
    else:
        raise SourceError(f"no search space {name!r}; there are {', '.join(_CLASSES)}, or your own as FILE.py:CLASS")
    parameters = signature(made).parameters.values()
    unknown = [o for o in options if o not in [p.name for p in parameters]]
    if unknown and not any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        raise SourceError(f"space {name} has no option {unknown[0]!r}; it has {', '.join(p.name for p in parameters) or 'none'}")
    try:
        space = made(**options)
    except TypeError as error:
        raise SourceError(f"space {name}: {error}") from error
    if not isinstance(space, Space):
        raise SourceError(f"{name} makes a {type(space).__name__}, which is no neaptide.search.Space")
    return space


def _own_class(name: str) -> Any:
    """The class that `FILE.py:CLASS` names, from the source that is remembered as run: never from compiled code that lies beside it."""
    file, _, attribute = name.rpartition(":")
    path = Path(file)
    if path.suffix != ".py":
        raise SourceError(f"{file} is no Python file to take the search space {attribute} from")
    spec = importlib.util.spec_from_file_location(f"space_of_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SourceError(f"no file {file} to take the search space {attribute} from")
    module = importlib.util.module_from_spec(spec)
    try:
        source = path.read_bytes()
        code = compile(source, str(path), "exec", dont_inherit=True)
        sys.modules[spec.name] = module
        exec(code, module.__dict__)
    except Exception as error:
        raise SourceError(f"{file} does not load: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        raise SourceError(f"{file} has no {attribute}")
    remember(path.absolute(), source)
    return getattr(module, attribute)
