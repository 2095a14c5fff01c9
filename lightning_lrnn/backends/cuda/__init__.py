"""Kernels for NVIDIA GPUs: `cuda_src`, compiled by NVRTC, launched through cuda-python."""

from __future__ import annotations

from lightning_lrnn.backends.base import Prepared
from lightning_lrnn.core.problem import Problem

__all__ = ["backend"]


def backend(problem: Problem, *, parallel: bool) -> Prepared:
    """What computes problems of this form."""
    from lightning_lrnn.backends.cuda import launch  # cuda-python takes a while

    return launch.backend(problem, parallel=parallel)
