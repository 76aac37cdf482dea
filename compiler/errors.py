"""The errors Neaptide raises: one hierarchy, each with the exit code that the command line gives it.

Every message names the thing, the value and the way out, in one paragraph.
"""

from __future__ import annotations


class NeaptideError(Exception):
    """Anything Neaptide refuses or cannot do. `exit_code` is what `neaptide` exits with."""

    exit_code = 1


class GraphError(NeaptideError):
    """A graph is not well formed: the message names the storage, tensor or node that breaks a rule."""

    exit_code = 2


class OrderError(NeaptideError):
    """An order is not a topological order of its graph: the message names the first node that runs too early."""


class PlanError(NeaptideError):
    """Offsets overlap, leave their arena, break their alignment, or do not fit a given capacity."""


class TraceError(NeaptideError):
    """A model could not be traced: the message names the op or the exception and the user's own line."""


class FormatError(NeaptideError):
    """A file or text is not what its format says: the message names the file and the place."""

    exit_code = 2


class WriteError(FormatError):
    """A file cannot be written: the message names it and what the system said."""

    exit_code = 1


class SourceError(NeaptideError):
    """A SOURCE or name given by the user does not resolve; the message suggests the nearest known one."""

    exit_code = 2


class BudgetError(NeaptideError):
    """A model needs more memory than its budget; the message lists the offenders."""

    exit_code = 3


class MissingExtraError(NeaptideError, ImportError):
    """An optional dependency is absent, and the message gives the `pip install` that brings it; or it is there and does not load, which
    the error that this one is raised from says.
    """

    exit_code = 2

    def __init__(self, package: str, extra: str, purpose: str):
        self._needs = f"{purpose} needs {package}"
        super().__init__(f"{self._needs}, which is not installed: pip install 'neaptide[{extra}]'")

    def __str__(self) -> str:
        cause = self.__cause__
        if isinstance(cause, ImportError) and not isinstance(cause, ModuleNotFoundError | MissingExtraError):
            return f"{self._needs}, which is installed and does not load here ({' '.join(str(cause).split())})"
        return super().__str__()
