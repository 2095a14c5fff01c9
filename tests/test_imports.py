"""Importing the package is cheap and imports nothing that is not needed yet.

Proved against: `import llvmlite` at the top of `ops/call.py` (the first test fails),
`time.sleep(0.4)` in `lightning_lrnn/__init__.py` (test_import_is_quick fails), and the parser of
`generate` in `configs` (the last fails).
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

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
SECONDS = 0.3

PROBE = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.process_time()
{statement}
seconds = time.process_time() - start
print(json.dumps([seconds, sorted(set(sys.modules) - before)]))
"""


COMMAND = """
import sys
for package in ("jsonargparse", "pytorch_lightning", "lightning"):
    sys.modules[package] = None
from lightning_lrnn.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The command where neither jsonargparse nor Lightning is installed."""


def imported_by(statement: str) -> tuple[float, set[str]]:
    """Processor seconds of a statement in a new process after `import torch`, and its imports."""
    result = subprocess.run(
        [sys.executable, "-c", PROBE.format(statement=statement)],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds, modules = json.loads(result.stdout)
    return seconds, set(modules)


def lazy_in(modules: set[str]) -> list[str]:
    return [name for name in LAZY if name in modules]


def test_import_is_lazy() -> None:
    _, modules = imported_by("import lightning_lrnn, lightning_lrnn.cli")
    assert {"lightning_lrnn", "lightning_lrnn.cli"} <= modules
    assert lazy_in(modules) == []


def test_the_test_above_can_fail() -> None:
    _, modules = imported_by("import lightning_lrnn, llvmlite, jsonargparse")
    assert lazy_in(modules) == ["llvmlite", "jsonargparse"]


def test_import_is_quick() -> None:
    # The least disturbed: what others do on the machine adds to a process's time, too.
    seconds = min(imported_by("import lightning_lrnn")[0] for _ in range(5))
    assert seconds < SECONDS


@pytest.mark.parametrize("words", ["backends", "cells", "configs list", "cache info"])
def test_an_installation_can_be_looked_at_with_pytorch_alone(words: str) -> None:
    command = [sys.executable, "-c", COMMAND, *words.split()]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert result.stdout and not result.stderr
