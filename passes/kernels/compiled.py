"""How kernels are compiled: by numba, once for all processes of a user, and kept on disk.

Processes that start together would each compile every kernel, and numba's cache may hand one the code that another wrote for other types:
it numbers files by what it has read before. So one compiles while the others wait and then read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import numba
from numba.core import config

from ...compiler.oracle_cache import default_cache_dir
from ...compiler.scratch import alone

LOCK = "kernels.lock"
Kernel = TypeVar("Kernel", bound=Callable[..., Any])

# numba also reads `.numba_config.yaml` in the working directory. Its caches hold pickles: a stranger's folder must not name one.
config.CACHE_DIR = os.environ.get("NUMBA_CACHE_DIR", "")  # pyright: ignore[reportAttributeAccessIssue]
_turn = threading.RLock()
_inside = False


def kernel(function: Kernel) -> Kernel:
    """`function` compiled when it is first called with arguments of new types; runs without the interpreter's lock."""
    dispatcher: Any = numba.njit(cache=True, nogil=True)(function)
    compile_for = dispatcher.compile

    def compile_alone(signature: Any) -> Any:
        global _inside
        with _turn, nullcontext() if _inside else alone(default_cache_dir() / LOCK):
            before, _inside = _inside, True
            try:
                return compile_for(signature)
            finally:
                _inside = before

    dispatcher.compile = compile_alone
    return dispatcher
