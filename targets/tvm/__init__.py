"""Everything that talks to TVM: import and fusion through Relax, and operators as C that needs no TVM runtime.

Importing this package imports TVM (over a second); the rest of Neaptide imports it inside the functions that need it.
"""

import os
from pathlib import Path
from unittest import mock

from ...compiler.errors import MissingExtraError


def _cache_home() -> dict[str, str]:
    """What TVM is told while it is imported, which asks for the user's cache folder, by a user who has none."""
    try:
        Path.home()
    except RuntimeError:
        return {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", os.devnull)}
    return {}


try:
    with mock.patch.dict(os.environ, _cache_home()):
        import tvm
        import tvm.contrib.pickle_memoize  # noqa: F401
except ImportError as error:
    raise MissingExtraError("apache-tvm", "tvm", "compiling operators") from error
