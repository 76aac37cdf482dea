"""The larger and the smaller of two numbers as torch means them: NaN where one of them is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm_ffi import structural_map


def with_nan(code: Any) -> Any:
    """A function or module whose `max` and `min` of floats are selections; TVM's own drop a NaN that stands first."""
    return structural_map(code, ((tirx.Max, _largest), (tirx.Min, _smallest)))


def _largest(node: tirx.Max) -> Any:
    """max(a, b) that is NaN where one of them is, as torch's is; comparing with a number costs nothing more."""
    return _extreme(node, lambda a, b: a > b)


def _smallest(node: tirx.Min) -> Any:
    return _extreme(node, lambda a, b: a < b)


def _extreme(node: Any, beyond: Callable[[Any, Any], Any]) -> Any:
    a, b = node.a, node.b
    if "float" not in str(node.ty):
        return node
    if isinstance(a, tirx.FloatImm):
        return tirx.Select(beyond(a, b), a, b)
    if isinstance(b, tirx.FloatImm):
        return tirx.Select(beyond(b, a), b, a)
    return tirx.Select(tirx.any(beyond(a, b), a != a), a, b)
