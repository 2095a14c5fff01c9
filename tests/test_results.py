"""The figures in docs/results.md are those of the committed results, as benchmarks print them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "results.md").read_text()
BLOCKS = re.findall(r"^```\n\$ python (.*)\n([\s\S]*?)^```$", TEXT, re.M)


def test_there_is_a_block_for_every_section() -> None:
    commands = {shlex.split(command)[0] for command, _ in BLOCKS}
    names = ("long_memory", "memory", "paper", "long_context", "tasks")
    assert commands == {f"benchmarks/{name}.py" for name in names}
    for figure in re.findall(r"\]\(\.\./(benchmarks/results/[^)]*)\)", TEXT):
        assert (ROOT / figure).is_file(), figure


@pytest.mark.parametrize(("command", "shown"), BLOCKS, ids=[command for command, _ in BLOCKS])
def test_a_block_is_what_its_command_prints(command: str, shown: str, tmp_path: Path) -> None:
    # They draw, too.
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    printed = subprocess.run(
        [sys.executable, *shlex.split(command)],
        cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert printed.stdout == shown
