"""The cost database of a command whose purpose is another: it keeps what was measured, and what is wrong with it costs no measurement."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ..compiler.cache_folder import warn_once
from ..compiler.errors import NeaptideError
from .database import CostDatabase, OperatorRow, Row

Found = TypeVar("Found")


class SideCosts(CostDatabase):
    """A `CostDatabase` at `path`, or where that is None the user's own, which any measurement can do without.

    The user's own, when it cannot be used, is replaced by one in memory, with a warning. One that was named raises as `CostDatabase`
    does, except that rows which cannot be written are put off: `raise_lost` raises that error once the results are out.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None):
        self._named = path is not None
        self._lost: NeaptideError | None = None
        try:
            super().__init__(path)
        except NeaptideError as error:
            if self._named:
                raise
            self._live_in_memory(error)

    def put_all(self, rows: Iterable[Row]) -> int:
        """As `CostDatabase.put_all`; 0 for rows that the file did not take."""
        rows = list(rows)
        try:
            return super().put_all(rows)
        except NeaptideError as error:
            if not self._named:
                self._live_in_memory(error)
                return super().put_all(rows)
            self._lost = self._lost or error
            return 0

    def raise_lost(self) -> None:
        """Raise the first error of writing, if there was one."""
        if self._lost is not None:
            raise NeaptideError(f"what was measured is not kept: {self._lost}")

    def counts(self) -> list[tuple[str, str, int, int]]:
        """As `CostDatabase.counts`."""
        return self._read(super().counts)

    def rows(
        self, kind: type[Row] = OperatorRow, *, target: str | None = None, toolchain: str | None = None, like: str | None = None
    ) -> Iterator[Row]:
        """As `CostDatabase.rows`."""
        chosen = super().rows
        return iter(self._read(lambda: list(chosen(kind, target=target, toolchain=toolchain, like=like))))

    def _one(self, kind: type[Any], *key: str) -> Any:
        one = super()._one
        return self._read(lambda: one(kind, *key))

    def _read(self, read: Callable[[], Found]) -> Found:
        try:
            return read()
        except NeaptideError as error:
            if self._named:
                raise
            self._live_in_memory(error)
            return read()

    def _live_in_memory(self, error: NeaptideError) -> None:
        warn_once("costs", f"what is measured is not kept: {error}")
        super().__init__(":memory:")

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path if self._named else None}
