"""Optuna, imported when it is first needed, and kept from talking where Neaptide tells the user itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..compiler.errors import MissingExtraError


def import_optuna(purpose: str = "a search") -> Any:
    """The package. Raises `MissingExtraError` saying that `purpose` needs it."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("optuna", "search", purpose) from error
    return optuna


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's news of studies and trials, and its warnings of how constraints are given."""
    optuna = import_optuna()
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            for kind in (optuna.exceptions.ExperimentalWarning, FutureWarning):  # constraints_func: new in Optuna 4, deprecated in 5
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        optuna.logging.set_verbosity(level)
