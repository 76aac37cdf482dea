"""Shared fixtures: where public benchmark data lies, and a skip with a reason where it is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of public benchmark inputs: $NEAPTIDE_SHARED, or `shared` beside the repository."""
    path = Path(os.environ.get("NEAPTIDE_SHARED") or ROOT.parent / "shared")
    if not (path / "bench").is_dir():
        pytest.skip(f"benchmark inputs are not at {path}; set NEAPTIDE_SHARED to the folder that holds bench/ and data/")
    return path
