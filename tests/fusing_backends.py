"""The backends that compile gates into the recurrence, each with its device."""

from __future__ import annotations

import contextlib

import emulated
import pytest
import torch
from host_kernel import needs_compiler

from lightning_lrnn import backends
from lightning_lrnn.backends.cpu import plan
from lightning_lrnn.backends.cpu.gated import Gated
from lightning_lrnn.backends.cuda import launch
from lightning_lrnn.backends.cuda import plan as cuda_plan


@contextlib.contextmanager
def time_in_parts():
    """Divides time on a CPU into parts of 32 steps, however few operations and threads."""
    before = plan.BYTES_OF_A_PART, plan.OPERATIONS_TO_DIVIDE, plan.THREADS_OF_A_PART
    plan.BYTES_OF_A_PART, plan.OPERATIONS_TO_DIVIDE, plan.THREADS_OF_A_PART = 1, 0, 0
    backends.forget()
    try:
        assert plan.divided(torch.empty(2, 129, 9), 8, parallel=True).chunk == 32
        yield
    finally:
        plan.BYTES_OF_A_PART, plan.OPERATIONS_TO_DIVIDE, plan.THREADS_OF_A_PART = before
        backends.forget()


FUSING_BACKENDS = [
    pytest.param(("emulated", "cpu"), marks=needs_compiler, id="emulated"),
    *(pytest.param((name, "cpu"), id=f"{name} on a CPU") for name in ("scan", "serial")),
    pytest.param(("scan", "cpu", time_in_parts), id="scan on a CPU in parts of time"),
    *(pytest.param((name, "cuda"), marks=pytest.mark.gpu, id=name) for name in ("scan", "serial")),
]


compiled_passes: list = []
"""The backend of every pass by a CPU's compiled gates so far."""


@pytest.fixture(params=FUSING_BACKENDS)
def fusing_backend(request, monkeypatch):
    """A backend that fuses and its device; with the kernel on the host among the backends."""
    forward = Gated.forward

    def noted(self, problem):
        if not problem.is_plain:
            compiled_passes.append(self)
        return forward(self, problem)

    monkeypatch.setattr(Gated, "forward", noted)
    modules = {**backends._modules(), "emulated": "emulated:BACKEND"}
    monkeypatch.setattr(backends, "_modules", lambda: modules)
    monkeypatch.setattr(cuda_plan, "SHORT", 0)  # few steps are scanned too
    launch._planned.cache_clear()
    backends.forget()
    emulated.launches.clear()
    name, device, *parts = request.param
    with parts[0]() if parts else contextlib.nullcontext():
        yield name, device
    launch._planned.cache_clear()
    backends.forget()


only_emulated = pytest.mark.parametrize("fusing_backend", FUSING_BACKENDS[:1], indirect=True)


without_a_gpu = pytest.mark.parametrize("fusing_backend", FUSING_BACKENDS[:4], indirect=True)
