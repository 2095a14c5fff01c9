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
before = set(sys.modules)
{statement}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


COMMAND = """
import sys
for package in ("jsonargparse", "pytorch_lightning", "lightning"):
    sys.modules[package] = None
from lightning_lrnn.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The command where neither jsonargparse nor Lightning is installed."""


def imported_by(statement: str) -> set[str]:
    """What a statement imports in a new process after `import torch`."""
    result = subprocess.run(
        [sys.executable, "-c", PROBE.format(statement=statement)],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(json.loads(result.stdout))


def lazy_in(modules: set[str]) -> list[str]:
    return [name for name in LAZY if name in modules]


def test_import_is_lazy() -> None:
    modules = imported_by("import lightning_lrnn, lightning_lrnn.cli")
    assert {"lightning_lrnn", "lightning_lrnn.cli"} <= modules
    assert lazy_in(modules) == []


def test_the_test_above_can_fail() -> None:
    modules = imported_by("import lightning_lrnn, llvmlite, jsonargparse")
    assert lazy_in(modules) == ["llvmlite", "jsonargparse"]


def test_dir_shows_what_is_public_and_imports_nothing() -> None:
    """Seen to fail: without `__dir__`, which left out SwitchRNN and had TYPE_CHECKING."""
    statement = """
import importlib.util, lightning_lrnn
shown = {name for name in dir(lightning_lrnn) if not name.startswith("_")}
modules = {"nn", "backends", "pl", *(["L"] if importlib.util.find_spec("lightning") else [])}
assert shown == {*lightning_lrnn.__all__, *modules}, shown
assert {"__version__", "__doc__", "__all__"} <= {*dir(lightning_lrnn)}
"""
    assert lazy_in(imported_by(statement)) == []
    every = """
import lightning_lrnn, lightning_lrnn.callbacks
for name in dir(lightning_lrnn):
    getattr(lightning_lrnn, name)
assert "callbacks" in dir(lightning_lrnn)
"""
    assert "pytorch_lightning" in imported_by(every)


def test_import_is_small() -> None:
    modules = imported_by("import lightning_lrnn")
    assert sum(not name.startswith("lightning_lrnn") for name in modules) <= OTHERS


@pytest.mark.parametrize("words", ["backends", "cells", "configs list", "cache info"])
def test_an_installation_can_be_looked_at_with_pytorch_alone(words: str) -> None:
    command = [sys.executable, "-c", COMMAND, *words.split()]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert result.stdout and not result.stderr


def test_the_wheel_has_every_package():
    """Seen to fail: without `lightning_lrnn.data.text`, as it was; an editable install has it."""
    tomllib = pytest.importorskip("tomllib")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "lightning_lrnn").rglob("__init__.py")
    }
    assert folders | {"lightning_lrnn.configs", "lightning_lrnn.cuda_src"} == set(listed)
