"""Kernels for NVIDIA GPUs: `cuda_src`, compiled by NVRTC, launched through cuda-python."""

from __future__ import annotations

from lightning_lrnn.backends.base import Backend
from lightning_lrnn.core.problem import Problem

__all__ = ["backend"]


def backend(problem: Problem, *, parallel: bool) -> Backend:
    """The backend for problems of this form."""
    from lightning_lrnn.backends.cuda import launch  # cuda-python takes a while

    return launch.backend(problem, parallel=parallel)
