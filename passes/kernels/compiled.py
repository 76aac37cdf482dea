"""How a hot loop is compiled: by numba, once on a machine, if what it compiles can be kept.

numba's own cache raises where there is no folder to write in, where the disk is full, and for ever after where a file of its is damaged.
Here the first two compile anew in each process, with a warning, and what is damaged (each file carries its digest) is made again.
Processes that start together would each compile every kernel, and numba's cache may hand one the code that another wrote for other types:
it numbers files by what it has read before. So one compiles while the others wait and then read.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

from numba import njit
from numba.core import config
from numba.core.caching import FunctionCache, IndexDataCacheFile

from ...compiler.cache_folder import warn_once
from ...compiler.scratch import once

DIGEST = hashlib.sha256().digest_size
LOCK = "kernels.lock"
Kernel = TypeVar("Kernel", bound=Callable[..., Any])

# numba also reads `.numba_config.yaml` in the working directory. Its caches hold pickles: a stranger's folder must not name one.
config.CACHE_DIR = os.environ.get("NUMBA_CACHE_DIR", "")  # pyright: ignore[reportAttributeAccessIssue]
_turn = threading.RLock()
_inside = False


def kernel(function: Kernel) -> Kernel:
    """`function` as machine code that needs no GIL, compiled or read from the cache when it is first called with arguments of new types."""
    dispatcher: Any = njit(nogil=True)(function)
    try:
        dispatcher._cache = _Cache(function)
    except (RuntimeError, OSError) as error:
        _not_kept(error)
    compile_for = dispatcher.compile

    def compile_alone(signature: Any) -> Any:
        global _inside
        with _turn, nullcontext() if _inside else once(LOCK):
            before, _inside = _inside, True
            try:
                return compile_for(signature)
            finally:
                _inside = before

    dispatcher.compile = compile_alone
    return dispatcher


class _Cache(FunctionCache):
    """numba's cache, which it asks before and tells after each compilation."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__(function)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except OSError as error:
            _not_kept(error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _not_kept(error)


class _Files(IndexDataCacheFile):
    """Index and data files whose contents follow their digest. A damaged one is as good as absent, and is then written over."""

    def _dump(self, obj: Any) -> bytes:
        content = super()._dump(obj)
        return hashlib.sha256(content).digest() + content

    def _load_index(self) -> dict[Any, str]:
        try:
            with open(self._index_path, "rb") as file:
                content = _checked(file.read())
        except FileNotFoundError:
            return {}
        version, stamp, overloads = (None, None, {}) if content is None else pickle.loads(content)
        return overloads if (version, stamp) == (self._version, self._source_stamp) else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        with self._open_for_write(self._index_path) as file:
            file.write(self._dump((self._version, self._source_stamp, overloads)))

    def _load_data(self, name: str) -> Any:
        with open(self._data_path(name), "rb") as file:
            content = _checked(file.read())
        return None if content is None else pickle.loads(content)


def _checked(written: bytes) -> bytes | None:
    digest, content = written[:DIGEST], written[DIGEST:]
    return content if hashlib.sha256(content).digest() == digest else None


def _not_kept(error: Exception) -> None:
    reason = getattr(error, "strerror", None) or "no folder to write in"
    text = f"compiled loops are not kept ({reason}), and each process compiles them: set NUMBA_CACHE_DIR to a folder to write in"
    warn_once("compiled loops", text)
