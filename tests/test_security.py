"""SECURITY.md: behind each promise stand tests that exist and are not skipped as a whole."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = (TESTS.parent / "SECURITY.md").read_text(encoding="utf-8")
PROMISES = re.findall(r"^\| (?!promise|---)(.+?) \| (.+) \|$", PAGE, re.MULTILINE)


def defined(file: str) -> dict[str, ast.FunctionDef]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_promises_are_found():
    assert len(PROMISES) == PAGE.count("\n| ") - 4 > 10


@pytest.mark.parametrize("promise, tests", PROMISES, ids=[promise[:50] for promise, _ in PROMISES])
def test_each_promise_has_its_tests(promise, tests):
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", tests)
    assert named and len(named) == tests.count("`") // 2, promise
    for file, name in named:
        function = defined(file)[name]
        assert any(isinstance(node, ast.Assert) or "raises" in ast.dump(node) for node in ast.walk(function)), (file, name)
        marks = " ".join(ast.dump(mark) for mark in function.decorator_list)
        assert "attr='skip'" not in marks and "xfail" not in marks, (file, name)
