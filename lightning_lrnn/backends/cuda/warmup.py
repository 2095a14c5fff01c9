"""Kernels compiled, loaded and run once, before the first call that needs them."""

from __future__ import annotations

import itertools

import torch

from lightning_lrnn.backends.cuda.availability import missing
from lightning_lrnn.backends.cuda.launch import backend
from lightning_lrnn.backends.cuda.plan import MAX_COLUMNS, SEGMENT, THREADS, WALK, columns
from lightning_lrnn.core.problem import Gradients, Problem
from lightning_lrnn.gates import IDENTITY

__all__ = ["warmup"]


def warmup(
    device: str | torch.device | int = "cuda",
    dtype: torch.dtype = torch.float32,
    features: int | None = None,
    *,
    parallel: bool = True,
) -> None:
    """Compiles, loads and runs once the kernels that calls on a device will need.

    Before a CUDA graph is captured, and wherever the first step shall not be the slow one: about
    0.4 s for a kernel that is compiled, some milliseconds for one from the disk. Those of the plain
    recurrence without `reset`; for others, and for layers, make one call of the shape to come.

    Args:
        device: a CUDA device; the current one if it has no index.
        dtype: of the sequences.
        features: D of the sequences; all kernels of the dtype if None.
        parallel: those of the backend `scan`, else those of `serial`.

    Raises:
        RuntimeError: if the kernels cannot be compiled or run; with the reasons.
    """
    if reasons := missing():
        raise RuntimeError(f"no kernels for {device}: {'; '.join(reasons)}")
    x = torch.empty(0, device=torch.device("cuda", device) if isinstance(device, int) else device)
    if features is not None:
        widths = [features]
    else:
        widths = [1 << power for power in range(MAX_COLUMNS.bit_length())] if parallel else [1]
    for width in widths:
        tile = SEGMENT // 4 * THREADS // columns(width)  # of no dtype more
        regimes = [(1, 0), (1, 2 * tile), (-(-WALK // width), 0)] if parallel else [(1, 0)]
        # Steps that lie apart and, in rows of one feature, side by side, ahead or behind.
        for (B, T), more in itertools.product(regimes, (1, 16) if width == 1 else (1,)):
            a = torch.zeros((B, T + more, width), dtype=dtype, device=x.device)
            _run_once(a, parallel=parallel, reverse=False)
            if more == 16:
                _run_once(a, parallel=parallel, reverse=True)


def _run_once(a: torch.Tensor, *, parallel: bool, reverse: bool) -> None:
    """A launch loads the code into the device's context, which loading alone leaves for later."""
    problem = Problem(IDENTITY, "", (a, a), None, None, None, reverse, False)
    kernels = backend(problem, parallel=parallel)
    h = kernels.forward(problem).h
    kernels.backward(problem, h, Gradients(a, None))
