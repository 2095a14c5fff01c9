"""docs/reliability.md names tests that exist.

Seen to fail: a file and a function of another name.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(\w+\.py)(?:::(\w+))?`", PAGE.replace("tests/", ""))


def test_every_test_that_is_named_exists() -> None:
    missing = []
    for file, name in NAMED:
        path = TESTS / file
        there = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
        functions = {node.name for node in there if isinstance(node, ast.FunctionDef)}
        if not there or (name and name not in functions):
            missing.append(f"{file}::{name}")
    assert not missing


def test_every_promise_has_a_test() -> None:
    promises = PAGE.partition("## What is not promised")[0].split("\n- ")[1:]
    assert len(promises) >= 15
    assert [promise for promise in promises if "::test_" not in promise] == []
