"""onnx's own cases of every operator: a model of one node, its inputs and its outputs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np


@lru_cache(maxsize=1)
def onnx_cases() -> Sequence[Any]:
    """All of them, as `onnx.backend.test.case.TestCase`s that hold a model. onnx collects them once in a process, as it is first asked."""
    from onnx.backend.test.case.node import collect_testcases

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(case for case in collect_testcases(None) if case.model is not None)
