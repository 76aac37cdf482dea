"""Optimizers that step while a recording runs, found as they do, and given back with the state they had."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .hollow import Hollows, unseen


@contextlib.contextmanager
def optimizers_lent(hollows: Hollows) -> Iterator[dict[int, torch.optim.Optimizer]]:
    """Inside: an optimizer that takes a step does so over stand-ins of its state. Yields those that did, by identity.

    After: their state, options and step counters are what they were.
    """
    met: dict[int, torch.optim.Optimizer] = {}
    before: list[tuple[torch.optim.Optimizer, Any, list[dict[str, Any]]]] = []

    def lend(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if id(optimizer) in met:
            return
        met[id(optimizer)] = optimizer
        before.append((optimizer, optimizer.state, [dict(group) for group in optimizer.param_groups]))
        with unseen():
            state: dict[Any, Any] = {
                p: {k: hollows.fresh(v) if isinstance(v, torch.Tensor) else v for k, v in kept.items()}
                for p, kept in optimizer.state.items()
            }
        optimizer.state = defaultdict(dict, state)

    hook = register_optimizer_step_pre_hook(lend)
    try:
        yield met
    finally:
        hook.remove()
        for optimizer, state, groups in before:
            optimizer.state = state
            for group, options in zip(optimizer.param_groups, groups, strict=False):
                group.clear()
                group.update(options)
