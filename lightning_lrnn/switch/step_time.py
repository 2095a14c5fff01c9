"""Measures the times of a training step of several layers, for comparison."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

__all__ = ["SIZES", "step_times"]

SIZES = (16, 128)
"""Rows and steps of the sequences that are timed."""
ROUNDS = 5


def step_times(*layers: Any) -> list[float]:
    """Milliseconds of forward and backward of each layer on `SIZES`: medians, taken in turns.

    The layers' gradients are left as they were. On CUDA the device is waited for.
    """
    B, T = SIZES
    times: list[list[float]] = [[] for _ in layers]
    for turn in range(ROUNDS + 1):
        for layer, of_layer in zip(layers, times, strict=True):
            parameters = list(layer.parameters())
            x = torch.zeros(B, T, layer.input_size).to(parameters[0])
            x = x if layer.batch_first else x.transpose(0, 1)
            _wait(x)
            start = time.perf_counter()
            with torch.enable_grad():
                trainable = [p for p in parameters if p.requires_grad]
                loss = layer(x.requires_grad_())[0].sum()
                torch.autograd.grad(loss, [x, *trainable], allow_unused=True)
            _wait(x)
            if turn:  # the first one compiles
                of_layer.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(of_layer) for of_layer in times]


def _wait(x: torch.Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
