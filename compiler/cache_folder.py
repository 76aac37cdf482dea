"""Where what can be made again is remembered, and what is said where it cannot be: everything runs without it, slower."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path
from typing import Literal


class NeaptideWarning(UserWarning):
    """Something to know about the machine or its disk that leaves every result right. The command line prints it as one line."""


def cache_folder() -> Path:
    """`$NEAPTIDE_CACHE`, else the user's cache folder. Raises `OSError` for a user who has no home folder."""
    override = os.environ.get("NEAPTIDE_CACHE")
    if override:
        return Path(override)
    return user_folder("cache", "neaptide")


def user_folder(kind: Literal["cache", "data"], name: str) -> Path:
    """Where this user keeps what a program called `name` caches, or its data. Raises `OSError` for a user who has no home folder."""
    import platformdirs

    try:
        found = Path((platformdirs.user_cache_dir if kind == "cache" else platformdirs.user_data_dir)(name, appauthor=False))
    except RuntimeError:  # of newer releases; older ones give a path that begins with a "~" which nothing replaced
        found = Path("~")
    if not found.is_absolute():
        raise FileNotFoundError(errno.ENOENT, "this user has no home folder", "~")
    return found


_said: set[str] = set()


def not_remembered(place: str | os.PathLike[str], why: object) -> None:
    """Warn, once in a process for each `place`, that nothing can be remembered there, and why."""
    reason = getattr(why, "strerror", None) or why
    way_out = "set NEAPTIDE_CACHE to a folder to write in"
    warn_once(str(place), f"nothing is remembered in {str(place)!r} ({reason}), and the next run does its work again: {way_out}")


def warn_once(about: str, text: str) -> None:
    """A `NeaptideWarning`, the first one in this process that is `about` something."""
    if about not in _said:
        _said.add(about)
        warnings.warn(text, NeaptideWarning, stacklevel=3)
