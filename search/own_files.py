"""Python files that this user ran a search with: the only ones that a study may name for itself.

A study is a file that may come from anyone, and its space may be a class in a Python file, which taking the search up again would run.
So a file runs when the command names it, and from a study only when this user's own run named it before and it has not changed since.
What was run is kept in the user's data folder, never with a study.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from ..compiler.cache_folder import user_folder, warn_once
from ..compiler.errors import NeaptideError, SourceError
from ..compiler.output_files import write_text

FILE = "own-files.json"


def own_file(name: str) -> Path | None:
    """The file of a space named `FILE.py:CLASS`, None for another name."""
    file, _, _ = name.rpartition(":")
    return Path(file).absolute() if ".py:" in name else None


def remember(file: Path, source: bytes) -> None:
    """Keep that this user ran `file` when it held `source`. Where that cannot be kept a warning says so."""
    known = _known()
    if known.get(str(file)) == _digest(source):
        return
    try:
        place = _place()
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, json.dumps({**known, str(file): _digest(source)}, indent=1))
    except (OSError, NeaptideError) as error:
        warn_once(str(file), f"that {str(file)!r} was run is not remembered ({error}): to resume this search, give --space again")


def check_unchanged(name: str, study: str) -> None:
    """Raise `SourceError` unless the file of the space `name`, which a study names, is one this user ran and is as it was then."""
    if not isinstance(name, str):
        raise SourceError(f"{study} names no space; give --space")
    file = own_file(name)
    if file is None:
        return
    was = _known().get(str(file))
    try:
        now = _digest(file.read_bytes()) if file.is_file() else None
    except OSError as error:
        raise SourceError(f"{study} names the Python file {str(file)!r}, which cannot be read: {error.strerror or error}") from None
    if now is None:
        raise SourceError(f"{study} is of the space {name!r}, and there is no such file; put it back, or give --space FILE.py:CLASS")
    if was != now:
        why = "you have not run a search with it" if was is None else "it is not as it was when you ran it"
        raise SourceError(
            f"{study} would run the Python file {str(file)!r}, and {why}: a study may come from anyone. Look at the file, and if you "
            f"trust it say so: --space {name!r}"
        )


def _known() -> dict[str, str]:
    try:
        known = json.loads(_place().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, str)} if isinstance(known, dict) else {}


def _place() -> Path:
    return user_folder("data", "neaptide") / FILE


def _digest(source: bytes) -> str:
    return sha256(source).hexdigest()
