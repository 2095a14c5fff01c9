"""Importing the package is cheap and imports nothing that is not needed yet.

Seen to fail: `import llvmlite` at the top of `ops/call.py` (the first test fails), `import pandas`
there (test_import_is_small), and the parser of `generate` in `configs` (the last fails).
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from paths import ROOT

LAZY = (
    "llvmlite",
    "cuda",
    "wandb",
    "jsonargparse",
    "lightning",
    "pytorch_lightning",
    "matplotlib",
    "torch._dynamo",
)
OTHERS = 20
"""Modules of others, beside those of `import torch`; 7 today."""

PROBE = """
import json, sys
import torch
before, imported = set(sys.modules), []
for statement in json.load(sys.stdin):
    exec(statement, {})
    imported.append(sorted(set(sys.modules) - before))
print(json.dumps(imported))
"""


COMMANDS = """
import sys
for package in ("jsonargparse", "pytorch_lightning", "lightning"):
    sys.modules[package] = None
from lightning_lrnn.cli import main
for words in sys.argv[1:]:
    print("\\f" + words, flush=True)
    assert not main(words.split()), words
"""
"""Commands where neither jsonargparse nor Lightning is installed."""


STATEMENTS = {
    "package": "import lightning_lrnn",
    "dir": """
import importlib.util, lightning_lrnn
shown = {name for name in dir(lightning_lrnn) if not name.startswith("_")}
modules = {"nn", "backends", "pl", *(["L"] if importlib.util.find_spec("lightning") else [])}
assert shown == {*lightning_lrnn.__all__, *modules}, shown
assert {"__version__", "__doc__", "__all__"} <= {*dir(lightning_lrnn)}
""",
    "command": "import lightning_lrnn.cli",
    "others": "import llvmlite, jsonargparse",
    "every": """
import lightning_lrnn, lightning_lrnn.callbacks
for name in dir(lightning_lrnn):
    getattr(lightning_lrnn, name)
assert "callbacks" in dir(lightning_lrnn)
""",
}
"""One after the other in one new process, as `import torch` takes seconds."""


@pytest.fixture(scope="module")
def imported() -> dict[str, set[str]]:
    """What each statement and those before it have imported after `import torch`."""
    result = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps([*STATEMENTS.values()]),
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(zip(STATEMENTS, map(set, json.loads(result.stdout)), strict=True))


def lazy_in(modules: set[str]) -> list[str]:
    return [name for name in LAZY if name in modules]


def test_import_is_lazy(imported: dict[str, set[str]]) -> None:
    modules = imported["command"]
    assert {"lightning_lrnn", "lightning_lrnn.cli"} <= modules
    assert lazy_in(modules) == []


def test_the_test_above_can_fail(imported: dict[str, set[str]]) -> None:
    assert lazy_in(imported["others"]) == ["llvmlite", "jsonargparse"]


def test_dir_shows_what_is_public_and_imports_nothing(imported: dict[str, set[str]]) -> None:
    """Seen to fail: without `__dir__`, which left out SwitchRNN and had TYPE_CHECKING."""
    assert lazy_in(imported["dir"]) == []
    assert "pytorch_lightning" in imported["every"]


def test_import_is_small(imported: dict[str, set[str]]) -> None:
    modules = imported["package"]
    assert sum(not name.startswith("lightning_lrnn") for name in modules) <= OTHERS


def test_an_installation_can_be_looked_at_with_pytorch_alone() -> None:
    words = ["backends", "cells", "configs list", "cache info"]
    command = [sys.executable, "-c", COMMANDS, *words]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert not result.stderr
    shown = [part.split("\n", 1) for part in result.stdout.split("\f")[1:]]
    assert [name for name, _ in shown] == words and all(text for _, text in shown)


def test_the_wheel_has_every_package():
    """Seen to fail: without `lightning_lrnn.data.text`, as it was; an editable install has it."""
    tomllib = pytest.importorskip("tomllib")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "lightning_lrnn").rglob("__init__.py")
    }
    assert folders | {"lightning_lrnn.configs", "lightning_lrnn.cuda_src"} == set(listed)
