"""A backend that runs the CUDA kernels' own source on the host: fused gates without a GPU."""

from __future__ import annotations

from functools import cache

from host_kernel import Compiler, as_cuda

from lightning_lrnn.backends.cuda import launch

launches: list = []
"""(macros, traffic) of every launch so far."""


@cache
def compiler() -> Compiler:
    return Compiler()


class Emulated:
    uses_autograd = False

    def reasons(self, request):
        return [] if request.device.type == "cpu" else ["runs on the host"]

    def fuses(self, request):
        return True

    def prepared(self, problem):
        return self

    def forward(self, problem):
        return self._launched("forward", problem)

    def backward(self, problem, h, gradients):
        return self._launched("backward", problem, h, gradients)

    def pair(self, problem):
        return self._launched("pair", problem)

    def adjoint_impulse(self, problem, h, dy):
        return self._launched("adjoint_impulse", problem, h, dy)

    def _launched(self, method, problem, *given):
        with as_cuda(compiler()) as seen:
            result = getattr(launch.backend(problem, parallel=True), method)(problem, *given)
        launches.extend(seen)
        return result


BACKEND = Emulated()
