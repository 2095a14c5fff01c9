"""Where gates are compiled into the recurrence: each backend that fuses, with its device."""

from __future__ import annotations

import contextlib

import emulated
import pytest
import torch
from host_kernel import needs_compiler

from lightning_lrnn import backends, gates
from lightning_lrnn.backends.cpu import launch


@contextlib.contextmanager
def in_parts_of_time():
    """On a CPU time is divided, into parts of 32 steps, however little there is to do."""
    before = launch.PART, launch.DIVIDED
    launch.PART, launch.DIVIDED = 1, 0
    try:
        assert launch.pieces(torch.empty(2, 129, 9), 8, True)[0] == 32
        yield
    finally:
        launch.PART, launch.DIVIDED = before


PLACES = [
    pytest.param(("emulated", "cpu"), marks=needs_compiler, id="emulated"),
    *(pytest.param((name, "cpu"), id=f"{name} on a CPU") for name in ("scan", "serial")),
    pytest.param(("scan", "cpu", in_parts_of_time), id="scan on a CPU in parts of time"),
    *(pytest.param((name, "cuda"), marks=pytest.mark.gpu, id=name) for name in ("scan", "serial")),
]

compiled_walks: list = []
"""The steps of every walk by a CPU's compiled gates so far."""


@pytest.fixture(params=PLACES)
def place(request, monkeypatch):
    """A backend that fuses and its device; with the kernel on the host among the backends."""
    code = launch.code

    def noted(gate, readout, *arguments):
        found = code(gate, readout, *arguments)
        if found and (gate, readout) != (gates.IDENTITY, ""):
            compiled_walks.append(found)
        return found

    monkeypatch.setattr(launch, "code", noted)
    modules = {**backends._modules(), "emulated": "emulated"}
    monkeypatch.setattr(backends, "_modules", lambda: modules)
    for cached in (backends.load, backends._resolved, backends._fuses_here):
        cached.cache_clear()
    emulated.launches.clear()
    name, device, *parts = request.param
    with parts[0]() if parts else contextlib.nullcontext():
        yield name, device
    for cached in (backends.load, backends._resolved, backends._fuses_here):
        cached.cache_clear()


only_emulated = pytest.mark.parametrize("place", PLACES[:1], indirect=True)

without_a_gpu = pytest.mark.parametrize("place", PLACES[:4], indirect=True)
