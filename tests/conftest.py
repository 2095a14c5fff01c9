"""What all tests share: the devices and backends to sweep, and the tolerances."""

from __future__ import annotations

import contextlib
import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from lightning_lrnn import backends, gates
from lightning_lrnn.backends import Request
from lightning_lrnn.backends.cpu import plan
from lightning_lrnn.backends.cpu.operands import STORAGE, Operand
from lightning_lrnn.backends.cuda.codegen import Fused, fused

# They need the command line interface, which a machine for the GPU's tests need not have.
collect_ignore = (
    []
    if find_spec("jsonargparse")
    else [
        "test_bad_inputs_command_line.py",
        "test_checkpoint.py",
        "test_cli.py",
        "test_compare.py",
        "test_configs.py",
        "test_stop.py",
        "test_sweeps.py",
        "test_write_forecast.py",
    ]
)

DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)

# Against a loop in float64 (complex128) over inputs already rounded to the dtype.
TOLERANCE = {
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.complex64: {"rtol": 2e-5, "atol": 2e-5},
    torch.complex128: {"rtol": 1e-12, "atol": 1e-12},
}


def plain(dtype: torch.dtype, step: str) -> tuple[Fused, tuple[Operand, ...]]:
    """The gate of the plain recurrence as CUDA compiles it, and its operands."""
    operands = (Operand(STORAGE[dtype], True),) * 2
    return fused(gates.IDENTITY, "", operands, step), operands


def devices() -> list:
    """The devices of a sweep; a GPU's part carries the marker `gpu`."""
    return ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU (run by `make gpu`)")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(params=devices())
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[name for name in backends.names() if name != "cudnn"])
def backend(request: pytest.FixtureRequest, device: str) -> str:
    """Every backend on every device; skipped with its own reasons.

    But for `cudnn`, which takes the gates of a few cells and no others: tests/test_cudnn.py.
    """
    if reasons := backends.reasons(request.param, Request(torch.device(device), torch.float32)):
        pytest.skip("; ".join(reasons))
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@contextlib.contextmanager
def in_parts_of_time():
    """On a CPU time is divided, into parts of 32 steps, however little there is to do."""
    before = plan.PART, plan.DIVIDED
    plan.PART, plan.DIVIDED = 1, 0
    backends.forget()
    try:
        assert plan.divided(torch.empty(2, 129, 9), 8, parallel=True).chunk == 32
        yield
    finally:
        plan.PART, plan.DIVIDED = before
        backends.forget()


@pytest.fixture(params=[False, True], ids=["whole", "in parts of time"])
def parts(request):
    """Whole rows, or parts of them."""
    with in_parts_of_time() if request.param else contextlib.nullcontext():
        yield


@pytest.fixture
def benchmark_script(monkeypatch):
    """Imports a script of benchmarks/ by its name.

    Its modules, whose names are everyday words, go when the test ends.
    """
    folder = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
