"""The backends `scan` and `serial`: compiled code on a CPU and on CUDA.

`scan` is parallel over time (Martin & Cundy 2018, section 2, Algorithm 1). `serial` takes one step
after the other, columns side by side: on CUDA one thread per column, the paper's baseline; where
there is no compiled code, a loop of PyTorch operations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch

from lightning_lrnn.backends.base import Prepared, Request
from lightning_lrnn.backends.unfused import LOOP
from lightning_lrnn.core.problem import Problem

__all__ = ["DTYPES", "SCAN", "SERIAL", "Compiled", "missing"]

DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)
DEVICES = "cpu", "cuda"
"""Kinds of devices that there is compiled code for, in a folder of that name."""


class Compiled:
    """A backend of compiled code.

    Args:
        parallel: over time, else one step after the other.
    """

    uses_autograd = False

    def __init__(self, *, parallel: bool) -> None:
        self.parallel = parallel

    def reasons(self, request: Request) -> list[str]:
        """The dtype; of `scan` also what the compiled code of the device lacks here."""
        reasons = []
        if request.dtype not in DTYPES:
            known = ", ".join(map(str, DTYPES))
            reasons.append(f"dtype {request.dtype} is not one of {known}")
        return reasons + (missing(request.device.type) if self.parallel else [])

    def fuses(self, request: Request) -> bool:
        """Whether gates are compiled into the loop: wherever there is compiled code."""
        return not missing(request.device.type)

    def prepared(self, problem: Problem) -> Prepared:
        """The code of the device for problems of this form."""
        device_type = problem.x.device.type
        if missing(device_type):
            return LOOP
        return _maker(device_type)(problem, parallel=self.parallel)

    def kept_words(self, problem: Problem, *, backward: bool) -> int:
        """See `base.GivesStates`: of `scan` on CUDA, where tiles have pairs."""
        if problem.x.device.type != "cuda" or not self.parallel:
            return 0
        launch = import_module(f"{__package__}.cuda.launch")
        words: int = launch.kept_words(problem, backward=backward)
        return words


SCAN, SERIAL = Compiled(parallel=True), Compiled(parallel=False)


def missing(device_type: str) -> list[str]:
    """Why there is no compiled code for a kind of device here; [] = there is."""
    if device_type not in DEVICES:
        return [f"no compiled code for {device_type} devices (there is for cpu and cuda)"]
    reasons: list[str] = import_module(f"{__package__}.{device_type}.availability").missing()
    return reasons


@cache
def _maker(device_type: str) -> Callable[..., Prepared]:
    maker: Callable[..., Prepared] = import_module(f"{__package__}.{device_type}").backend
    return maker
