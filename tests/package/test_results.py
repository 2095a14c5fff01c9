"""The figures in docs are those of the committed results, as benchmarks print them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

TEXTS = {name: (ROOT / "docs" / name).read_text() for name in ("results.md", "performance.md")}
BLOCKS = {
    name: re.findall(r"^```\n\$ python (.*)\n([\s\S]*?)^```$", text, re.M)
    for name, text in TEXTS.items()
}
PRINTED = {
    "results.md": {"long_memory", "memory", "paper", "long_context", "tasks"},
    "performance.md": {
        "layer_times",
        "stand_in_times",
        "equal_time",
        "recurrence",
        "threads",
        "step",
    },
}


@pytest.mark.parametrize("name", TEXTS)
def test_there_is_a_block_for_every_section(name: str) -> None:
    commands = {shlex.split(command)[0] for command, _ in BLOCKS[name]}
    assert commands == {f"benchmarks/{script}.py" for script in PRINTED[name]}
    for figure in re.findall(r"\]\(\.\./(benchmarks/results/[^)]*)\)", TEXTS[name]):
        assert (ROOT / figure).exists(), figure


@pytest.mark.parametrize(("command", "shown"), [b for blocks in BLOCKS.values() for b in blocks])
def test_a_block_is_what_its_command_prints(command: str, shown: str, tmp_path: Path) -> None:
    # They draw, too.
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    printed = subprocess.run(
        [sys.executable, *shlex.split(command)],
        cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert printed.stdout == shown


def test_the_gpus_table_is_of_the_committed_samples() -> None:
    path = ROOT / "benchmarks" / "results" / "nvidia-h200" / "bench.json"
    samples = json.loads(path.read_text())["samples_in_seconds"]
    row = r"^\| (float32|bfloat16), (forward|backward) \| (\d+) \| (\d+) \| (\d+) \|$"
    rows = re.findall(row, TEXTS["performance.md"], re.M)
    assert len(rows) == 4
    for dtype, step, *shown in rows:
        case = samples["(8, 4096, 2048)" + (", bfloat16" if dtype == "bfloat16" else "")]
        names = f"scan {step}", f"copy for {step}"
        ours, copy = (1e6 * statistics.median(case[name]) for name in names)
        assert [f"{x:.0f}" for x in (ours, copy, 100 * copy / ours)] == shown
