"""The devices and dtypes to sweep, and the tolerances."""

from __future__ import annotations

import pytest
import torch

DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)

# Against a loop in float64 (complex128) over inputs already rounded to the dtype.
TOLERANCE = {
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.complex64: {"rtol": 2e-5, "atol": 2e-5},
    torch.complex128: {"rtol": 1e-12, "atol": 1e-12},
}


def devices() -> list:
    """The devices of a sweep; a GPU's part carries the marker `gpu`."""
    return ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
