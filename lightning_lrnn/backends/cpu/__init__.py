"""Compiled code for CPUs: LLVM IR made of gates, run on threads."""

from __future__ import annotations

from functools import partial

from lightning_lrnn.backends.base import Prepared
from lightning_lrnn.core.problem import Problem

__all__ = ["backend"]


def backend(problem: Problem, *, parallel: bool) -> Prepared:
    """What computes problems of this form.

    Of gates that there is no vector code for (`codegen.uncompiled`) PyTorch evaluates gate and
    readout around the plain recurrence.
    """
    from lightning_lrnn.backends.cpu.gated import gated  # llvmlite takes a while
    from lightning_lrnn.backends.cpu.plain import plain
    from lightning_lrnn.backends.unfused import Unfused

    if problem.is_plain:
        return plain(problem, parallel=parallel)
    return gated(problem, parallel=parallel) or Unfused(partial(plain, parallel=parallel))
