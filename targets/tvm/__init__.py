"""Everything that talks to TVM: import and fusion through Relax, and operators as C that needs no TVM runtime.

Importing this package imports TVM (over a second); the rest of Neaptide imports it inside the functions that need it.
"""

from ...compiler.errors import MissingExtraError

try:
    import tvm  # noqa: F401
except ImportError as error:
    raise MissingExtraError("apache-tvm", "tvm", "compiling operators") from error
