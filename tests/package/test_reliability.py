"""docs/reliability.md names tests that exist.

Seen to fail: a file and a function of another name; `from test_gates import REAL` in a test, and
in a script that a test writes.
"""

from __future__ import annotations

import ast
import re

from paths import ROOT, TESTS

PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(?:tests/)?(?:\w+/)?(\w+\.py)(?:::(\w+))?`", PAGE)


def test_every_test_that_is_named_exists() -> None:
    missing = []
    files = {path.name: path for path in TESTS.rglob("*.py")}
    for file, name in NAMED:
        there = ast.parse(files[file].read_text(encoding="utf-8")).body if file in files else []
        functions = {node.name for node in there if isinstance(node, ast.FunctionDef)}
        if not there or (name and name not in functions):
            missing.append(f"{file}::{name}")
    assert not missing


def test_every_promise_has_a_test() -> None:
    promises = PAGE.partition("## What is not promised")[0].split("\n- ")[1:]
    assert len(promises) >= 15
    assert [promise for promise in promises if "::test_" not in promise] == []


def test_no_test_imports_another() -> None:
    """Nor does a helper, or a script that a test writes."""
    pattern = re.compile(r"^\s*(?:from|import) +(test_\w+|conftest)\b", re.MULTILINE)
    actual = {path.name: pattern.findall(path.read_text()) for path in TESTS.rglob("*.py")}
    assert {name: imports for name, imports in actual.items() if imports} == {}
