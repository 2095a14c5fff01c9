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

import pytest
from paths import ROOT

NAMES = "results.md", "performance.md", "ranks.md", "forecasting.md"
TEXTS = {name: (ROOT / "docs" / name).read_text() for name in NAMES}
BLOCKS = {
    name: re.findall(r"^```\n\$ python (.*)\n([\s\S]*?)^```$", text, re.M)
    for name, text in TEXTS.items()
}
PRINTED = {
    "ranks.md": {"ranks"},
    "forecasting.md": {"forecast"},
    "results.md": {"long_memory", "memory", "paper", "long_context", "tasks"},
    "performance.md": {
        "layer_times",
        "stand_in_times",
        "equal_time",
        "host",
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


COMMANDS = [block for blocks in BLOCKS.values() for block in blocks]
RUN = """
import contextlib, io, json, os, runpy, shlex, sys
path, printed = list(sys.path), {}
for command in json.load(sys.stdin):
    sys.argv, out = shlex.split(command), io.StringIO()
    sys.path[:] = [os.path.dirname(os.path.abspath(sys.argv[0])), *path]
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, command
    printed[command] = out.getvalue()
print(json.dumps(printed))
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each command prints, one after the other in one process: PyTorch is imported once."""
    folder = tmp_path_factory.mktemp("results")
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks")  # they draw, too
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=folder, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, check=True,
        input=json.dumps([command for command, _ in COMMANDS]), capture_output=True, text=True,
    )  # fmt: skip
    actual: dict[str, str] = json.loads(done.stdout)
    return actual


@pytest.mark.slow
@pytest.mark.parametrize(("command", "shown"), COMMANDS)
def test_a_block_is_what_its_command_prints(
    command: str, shown: str, printed: dict[str, str]
) -> None:
    assert printed[command] == shown


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


def test_what_is_said_of_the_tuning_part_of_forecasts_is_of_the_record() -> None:
    path = ROOT / "benchmarks" / "results" / "forecast.json"
    tuned = [run for run in json.loads(path.read_text())["runs"] if run["part"] == "val"]
    ours, theirs = (
        min(run["crps"] for run in tuned if run["model"] == name)
        for name in ("Forecaster", "DeepAR")
    )
    said = f"DeepAR's CRPS was {theirs:.1f} and the `Forecaster`'s {ours:.1f}"
    assert said in TEXTS["forecasting.md"]
