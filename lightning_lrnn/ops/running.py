"""A backend at work: who may call it directly, and what is noted of it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from lightning_lrnn.backends import Backend
from lightning_lrnn.core.problem import Problem, States
from lightning_lrnn.core.pytorch import dispatch_modes, functorch, profiler
from lightning_lrnn.ops import profiling

__all__ = ["compute", "computed_by", "last_backend", "unobserved"]


def unobserved(*tensors: Tensor | None) -> bool:
    """Whether nothing can tell an operator from the Python function behind it.

    Tracing, fake tensors and other subclasses, modes and the profiler see the operator.
    """
    if torch.compiler.is_compiling() or dispatch_modes() or profiler() or functorch():
        return False
    for x in tensors:
        if x is not None and type(x) is not Tensor and type(x) is not Parameter:
            return False
    return True


_last: str | None = None


def computed_by(backend: str | None) -> None:
    """Notes which backend computes a recurrence; None for none so far."""
    global _last
    _last = backend


def last_backend() -> str | None:
    """The backend that computed the most recent recurrence of this process, None before any."""
    return _last


def compute(name: str, backend: Backend, problem: Problem) -> States:
    """What a backend computes, noted as the last of this process."""
    global _last
    _last = name
    if profiling.observer is None:
        return backend.forward(problem)
    with profiling.observer():
        return backend.forward(problem)
