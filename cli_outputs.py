"""The files of a command: looked at before the work, written after it, and none of them stands between the results and the reader."""

from __future__ import annotations

from collections.abc import Callable

from .compiler.errors import NeaptideError, WriteError
from .report.console import note


class Outputs:
    """Files to be written to `paths` ("" is none). Raises `WriteError` now for one that could not be written later."""

    def __init__(self, *paths: str):
        self._failed: list[NeaptideError] = []
        from .compiler.output_files import check_writable

        for path in filter(None, paths):
            check_writable(path)

    def write(self, path: str, write: Callable[[str], object]) -> None:
        """Let `write(path)` write the file and say so; what keeps it from that is put off until `raise_failed`."""
        if not path:
            return
        try:
            write(path)
        except NeaptideError as error:
            self._failed.append(error)
        else:
            self.wrote(path)

    def wrote(self, path: str) -> None:
        """Say that a file is there."""
        note(f"wrote {path}")

    def failed(self, error: NeaptideError) -> None:
        """Put off `error` of something that the command keeps elsewhere."""
        self._failed.append(error)

    def raise_failed(self) -> None:
        """Once the results are out: raise what was put off."""
        if len(self._failed) == 1:
            raise self._failed[0]
        if self._failed:
            raise WriteError("; ".join(map(str, self._failed)))
