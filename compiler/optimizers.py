"""Optimizers by name, class, function or example, over any list of parameters."""

from __future__ import annotations

import copy
import difflib
import inspect
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from .errors import SourceError, TraceError
from .fake import StandIn


def make_optimizer(spec: Any, parameters: Sequence[torch.Tensor], stand_in: StandIn | None = None) -> torch.optim.Optimizer | None:
    """The optimizer that `spec` describes, over `parameters`; None for None.

    `spec`: a name of `torch.optim` in any case, with options (`"adamw"`, `"adamw:fused"`, `"sgd:momentum=0.9,nesterov"`); a
    class; a function from a list of parameters; or an optimizer, of which a copy over `stand_in` of its tensors is made (the
    optimizer itself if `stand_in` is None). Raises `SourceError` for an unknown name or option.
    """
    if spec is None:
        return None
    if isinstance(spec, torch.optim.Optimizer):
        return spec if stand_in is None else _over(spec, stand_in)
    if not parameters:
        raise TraceError("the model has no parameter that needs gradients: there is nothing for an optimizer to do; leave optimizer= out")
    if isinstance(spec, str):
        return _by_name(spec, parameters)
    if callable(spec):
        made = spec(list(parameters))
        if isinstance(made, torch.optim.Optimizer):
            return made
        raise TraceError(f"optimizer= gave a {type(made).__name__}; a function given as optimizer= returns a torch.optim.Optimizer")
    raise TraceError(f"optimizer={spec!r} is a {type(spec).__name__}; give a name, a class, a function of parameters, or an optimizer")


def _by_name(text: str, parameters: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
    name, _, rest = text.partition(":")
    known = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    if name.lower() not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known ones: {', '.join(sorted(known))}."
        raise SourceError(f"no optimizer of torch.optim is named {name!r}. {hint}")
    cls = known[name.lower()]
    options = dict(_option(part) for part in rest.split(",") if part)
    accepted = [p for p in inspect.signature(cls).parameters if p not in ("self", "params")]
    for option in options:
        if option not in accepted:
            raise SourceError(f"{cls.__name__} has no option {option!r} (in {text!r}); it has {', '.join(accepted)}")
    return cls(list(parameters), **options)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        return name.strip(), True
    lowered = value.strip().lower()
    if lowered in ("true", "false"):
        return name.strip(), lowered == "true"
    try:
        return name.strip(), float(value)
    except ValueError:
        raise SourceError(f"optimizer option {text!r}: {value!r} is neither a number nor true or false") from None


def _over(optimizer: torch.optim.Optimizer, stand_in: StandIn) -> torch.optim.Optimizer:
    """A copy whose parameters and state stand in for the original's."""
    twin = copy.copy(optimizer)
    twin.param_groups = [{**group, "params": [stand_in(p) for p in group["params"]]} for group in optimizer.param_groups]
    twin.state = defaultdict(dict)
    for parameter, state in optimizer.state.items():
        twin.state[stand_in(parameter)] = {k: stand_in(v) if isinstance(v, torch.Tensor) else v for k, v in state.items()}
    return twin
