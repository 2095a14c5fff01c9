"""Initial biases of forget gates, by expected memory in time steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_lrnn.core.dtypes import state_dtype

__all__ = ["Memory", "check_memory", "is_pair", "memory_bias_"]

Memory = tuple[float, float] | None
"""Shortest and longest expected memory in steps; None for the default of `memory_bias_`."""

DEFAULT_LONGEST = 64.0


@torch.no_grad()
def memory_bias_(bias: Tensor, memory: Memory) -> Tensor:
    """Fills the bias of a forget gate so that its units remember for different numbers of steps.

    A gate at a = sigmoid(b) forgets by a factor e in -1 / log a = 1 / log(1 + exp(-b)) steps, which
    is exp(b) + 1/2 within 4 % from b = 0 on. With `memory=(shortest, longest)`: b = log u, u
    uniform in [shortest, longest] (chrono initialisation: Tallec & Ollivier, "Can recurrent neural
    networks warp time?", ICLR 2018, arXiv 1804.11188). None: u log-uniform in [1, 64], as many
    units for every octave, since nothing is known of the task; at a bias of 0 every unit would
    start with the same memory of one and a half steps.

    Args:
        bias: written in place, any shape.
        memory: steps, 0 < shortest <= longest, or None.

    Returns:
        `bias`.

    Raises:
        ValueError: for other steps.
    """
    check_memory(memory)
    # Drawn in the dtype of a state: in 16 bits a draw is exactly 0 every few hundred times.
    b = torch.empty_like(bias, dtype=state_dtype(bias.dtype))
    if memory is None:
        b.uniform_(0, math.log(DEFAULT_LONGEST))
    else:
        b.uniform_(*memory).log_()
    return bias.copy_(b)


def check_memory(memory: Any) -> None:
    """Raises ValueError for what is neither None nor (shortest, longest) steps."""
    if memory is not None and not (is_pair(memory) and 0 < memory[0] <= memory[1] < math.inf):
        raise ValueError(
            f"`memory` must be (shortest, longest) steps, 0 < shortest <= longest, got {memory}"
        )


def is_pair(value: Any) -> bool:
    """Whether a value is two numbers."""
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    )
