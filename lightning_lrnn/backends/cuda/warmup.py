"""Kernels compiled, loaded and run once, before the first call that needs them."""

from __future__ import annotations

import torch

from lightning_lrnn.backends.cuda import plan
from lightning_lrnn.backends.cuda.availability import missing
from lightning_lrnn.backends.cuda.launch import backend
from lightning_lrnn.backends.cuda.plan import MAX_COLUMNS, SEGMENT, THREADS, columns
from lightning_lrnn.core.dtypes import state_dtype
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
        if plan.PACKED:
            widths.append(2 * MAX_COLUMNS)
    segment = SEGMENT // state_dtype(dtype).itemsize
    for width in widths:
        tile = segment * THREADS // columns(width)
        # The last step of one tile, which is walked, of two, chained, and of three, folded.
        ends = [16, 2 * tile, 3 * tile] if parallel else [16]
        for end in ends:
            _run_once(x.new_zeros((1, end - 15, width), dtype=dtype), parallel=parallel)
            if width == 1:  # steps side by side, ahead or behind
                for reverse in (False, True):
                    a = x.new_zeros((1, end, width), dtype=dtype)
                    _run_once(a, parallel=parallel, reverse=reverse)
            elif width % MAX_COLUMNS == 0 and end > 16:  # whole tiles
                _run_once(x.new_zeros((1, end, width), dtype=dtype), parallel=parallel)


def _run_once(a: torch.Tensor, *, parallel: bool, reverse: bool = False) -> None:
    """A launch loads the code into the device's context, which loading alone leaves for later."""
    problem = Problem(IDENTITY, "", (a, a), None, None, None, reverse, False)
    kernels = backend(problem, parallel=parallel)
    h = kernels.forward(problem).h
    kernels.backward(problem, h, Gradients(a, None))
