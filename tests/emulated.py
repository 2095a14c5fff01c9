"""A backend that runs the CUDA kernels' own source on the host: fused gates without a GPU."""

from __future__ import annotations

from functools import cache, partial

from host_kernel import Compiler, as_cuda

from lightning_lrnn.backends.cuda import launch

launches: list = []
"""(macros, traffic) of every launch so far."""


@cache
def compiler() -> Compiler:
    return Compiler()


def unsupported_reasons(request):
    return [] if request.device.type == "cpu" else ["runs on the host"]


def fuses(request):
    return True


def _call(function, *arguments, **options):
    with as_cuda(compiler()) as seen:
        result = function(*arguments, **options, parallel=True)
    launches.extend(seen)
    return result


run = partial(_call, launch.forward)
run_backward = partial(_call, launch.backward)
run_gated = partial(_call, launch.gated_forward)
run_gated_backward = partial(_call, launch.gated_backward)
