"""Fixtures of all tests: the devices and backends to sweep, and what stands for a GPU."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from durations import Durations
from fake_kernel import launches  # noqa: F401
from fusing_backends import fusing_backend, time_in_parts  # noqa: F401
from paths import BENCHMARKS
from sweeps import devices

from lightning_lrnn import backends
from lightning_lrnn.backends import Request

# So that threads share recurrences as small as those of tests, also in processes that they start
# (`have_cores` in `cpu/threads.py`).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# A second of every process that tests start: where an environment forbids it, each compiles the
# package's source anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# They need the command line interface, which a machine for the GPU's tests need not have.
collect_ignore = (
    []
    if find_spec("jsonargparse")
    else [
        "bad_inputs/test_bad_inputs_command_line.py",
        "cli/test_checkpoint.py",
        "cli/test_cli.py",
        "cli/test_compare.py",
        "cli/test_configs.py",
        "cli/test_plot_forecast.py",
        "cli/test_stop.py",
        "cli/test_sweeps.py",
        "callbacks/test_write_classes.py",
        "callbacks/test_write_forecast.py",
    ]
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu-durations", type=int, metavar="N", help="the N longest tests")


def pytest_configure(config: pytest.Config) -> None:
    if shown := config.getoption("--cpu-durations"):
        config.pluginmanager.register(Durations(shown), "cpu-durations")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Files with slow tests or many first: at the end no process waits for another's long file.
    count = Counter(item.path for item in items)
    slow = Counter(item.path for item in items if "slow" in item.keywords)
    items.sort(key=lambda item: (-slow[item.path], -count[item.path]))
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU (run by `make gpu`)")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    # What is imported stays, and need not be looked through by each collection of garbage, nor for
    # the optimizers that a switch changes.
    gc.freeze()


@pytest.fixture(params=devices())
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[name for name in backends.names() if name != "cudnn"])
def backend(request: pytest.FixtureRequest, device: str) -> str:
    """Every backend on every device; skipped with its own reasons.

    But for `cudnn`, which takes the gates of a few cells and no others: see test_cudnn.py.
    """
    if reasons := backends.reasons(request.param, Request(torch.device(device), torch.float32)):
        pytest.skip("; ".join(reasons))
    return request.param


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Offline, with every folder of its own inside the test's."""
    if find_spec("wandb") is None:
        pytest.skip("wandb is not installed")
    # Lightning's logger sets it too and leaves it set.
    monkeypatch.setenv("WANDB_MODE", "offline")
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    # It reads the environment once in a process, and a test before may have had another.
    wandb.teardown()
    yield wandb
    wandb.finish()
    wandb.teardown()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[False, True], ids=["whole", "in parts of time"])
def parts(request):
    """Whole rows, or parts of them."""
    with time_in_parts() if request.param else contextlib.nullcontext():
        yield


@pytest.fixture
def benchmark_script(monkeypatch):
    """Imports a script of benchmarks/ by its name.

    Its modules, whose names are everyday words, go when the test ends.
    """
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
