"""TVM's own description of a device, out of the `[tvm]` table of a target file, whose keys only TVM knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm

from ...compiler.errors import FormatError


def machine(spec: Mapping[str, Any]) -> tvm.target.Target:
    """The TVM target that `spec` describes. Raises `FormatError` with TVM's reason when it describes none."""
    try:
        return tvm.target.Target(dict(spec))
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FormatError(f"the [tvm] table of the target, {dict(spec)!r}, is none that TVM takes: {reason}") from None
