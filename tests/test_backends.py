"""The registry: precedence, errors, third parties, what "auto" does.

Seen to fail: `use_backend` overriding a named backend; the environment before `use_backend`; auto
falling back without a warning; an entry point that replaces `serial`.
"""

from __future__ import annotations

import importlib.metadata
import sys
import types

import pytest
import torch
from plain_calls import PlainCalls

import lightning_lrnn as lrnn
from lightning_lrnn import backends
from lightning_lrnn.backends.compiled import SERIAL
from lightning_lrnn.backends.cpu import availability
from lightning_lrnn.backends.cpu.gated import Gated


def run(**options):
    x = torch.randn(2, 5, 3)
    lrnn.linear_recurrence(x, x, **options)
    return lrnn.last_backend()


@pytest.fixture
def fresh(monkeypatch):
    """The registry forgets what it resolved, before and after."""

    backends.forget()
    yield monkeypatch
    monkeypatch.undo()
    backends.forget()


def test_auto_takes_the_first_that_runs():
    assert run() == "scan"


def test_precedence(monkeypatch):
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "serial")
    assert run() == "serial"
    with lrnn.use_backend("scan"):
        assert run() == "scan"
        assert run(backend="serial") == "serial"
        with lrnn.use_backend("serial"):
            assert run() == "serial"
        assert run() == "scan"
    assert run() == "serial"
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE)
    assert run() == "scan"


def test_backward_uses_the_backend_of_its_forward(monkeypatch):
    used = []
    original = Gated.backward
    monkeypatch.setattr(Gated, "backward", lambda self, *a: used.append(self) or original(self, *a))
    x = torch.randn(2, 5, 3, requires_grad=True)
    with lrnn.use_backend("serial"):
        y, _ = lrnn.linear_recurrence(x, x)
    y.sum().backward()
    (backend,) = used
    assert not backend._parallel


def test_unknown_names_list_the_known_ones(monkeypatch):
    with pytest.raises(
        lrnn.BackendError, match="no backend 'scam'; known are: auto, scan, serial, cudnn"
    ):
        run(backend="scam")
    with pytest.raises(lrnn.BackendError, match="no backend 'scam'"), lrnn.use_backend("scam"):
        pass
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "scam")
    with pytest.raises(lrnn.BackendError, match="no backend 'scam'"):
        run()


def test_a_named_backend_is_never_replaced(fresh):
    fresh.setattr(availability, "missing", lambda: ["llvmlite is not installed"])
    with pytest.raises(
        lrnn.BackendError, match=r"'scan' cannot run on cpu.*llvmlite is not installed"
    ):
        run(backend="scan")
    with lrnn.use_backend("scan"), pytest.raises(lrnn.BackendError, match="llvmlite"):
        run()


def test_auto_says_once_that_it_leaves_compiled_code(fresh, recwarn):
    fresh.setattr(availability, "missing", lambda: ["llvmlite is not installed"])
    with pytest.warns(UserWarning, match="'auto' uses 'serial' on cpu.*llvmlite is not installed"):
        assert run() == "serial"
    recwarn.clear()
    assert run() == "serial" and not recwarn.list


def test_the_loop_of_last_resort_has_the_right_gradients(fresh):
    fresh.setattr(availability, "missing", lambda: ["llvmlite is not installed"])
    x = [torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda a, b: lrnn.linear_recurrence(a, b, backend="serial"), x)


def test_reasons_are_explained_per_device():
    reasons = backends.explain("cpu")
    assert reasons == {"scan": [], "serial": [], "cudnn": ["cuDNN runs on NVIDIA GPUs, not on cpu"]}
    assert "no compiled code for meta devices" in backends.explain("meta")["scan"][0]
    assert "torch.int64" in backends.explain("cpu", torch.int64)["serial"][0]


def test_a_third_party_backend_comes_through_an_entry_point(fresh):
    module = types.ModuleType("third_party_backend")
    module.unsupported_reasons = lambda request: []
    module.run = PlainCalls(SERIAL.prepared).run
    fresh.setitem(sys.modules, "third_party_backend", module)
    points = [
        importlib.metadata.EntryPoint(name, "third_party_backend", backends.ENTRY_POINT_GROUP)
        for name in ("mine", "serial")
    ]
    fresh.setattr(backends, "entry_points", lambda group: points)
    assert backends.names() == ("scan", "serial", "cudnn", "mine")
    assert backends.load("serial") is SERIAL
    x = [torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda a, b: lrnn.linear_recurrence(a, b, backend="mine"), x)
    assert lrnn.last_backend() == "mine"
