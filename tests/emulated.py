"""A backend that runs the CUDA kernels' own source on the host: fused gates without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
from host_kernel import Compiler, as_cuda

from lightning_lrnn import backends
from lightning_lrnn.backends.cuda import launch, plan

launches: list = []
"""(macros, traffic) of every launch so far."""


@cache
def compiler() -> Compiler:
    return Compiler()


class Emulated:
    uses_autograd = False
    given = None

    def reasons(self, request):
        return [] if request.device.type == "cpu" else ["runs on the host"]

    def fuses(self, request):
        return True

    def prepared(self, problem):
        return self

    def kept_words(self, problem, *, backward):
        return launch.kept_words(problem, backward=backward)

    def after(self, workspace):
        other = Emulated()
        other.given = workspace
        return other

    def forward(self, problem):
        return self._launched("forward", problem)

    def backward(self, problem, h, gradients):
        return self._launched("backward", problem, h, gradients)

    def pair(self, problem):
        return self._launched("pair", problem)

    def adjoint_impulse(self, problem, h, dy):
        return self._launched("adjoint_impulse", problem, h, dy)

    def _launched(self, method, problem, *tensors):
        with as_cuda(compiler()) as seen:
            kernels = launch.backend(problem, parallel=True)
            if self.given is not None:
                kernels = kernels.after(self.given)
            result = getattr(kernels, method)(problem, *tensors)
        launches.extend(seen)
        return result


BACKEND = Emulated()


@contextmanager
def small_tiles() -> Iterator[None]:
    """It is among the backends, with few threads: few steps make many tiles."""
    modules = {**backends._modules(), "emulated": "emulated:BACKEND"}
    cached = launch._planned, plan.steps, plan.macros

    def forget():
        for function in cached:
            function.cache_clear()
        backends.forget()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "_modules", lambda: modules)
        for name, value in {"THREADS": 64, "SEGMENT": 8, "SHORT": 0}.items():
            patch.setattr(plan, name, value)
        forget()
        yield
    forget()
