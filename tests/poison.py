"""Results that start as NaN, so that what a backend does not write is seen."""

from __future__ import annotations

import pytest
import torch

from lightning_lrnn.core import pytorch


def poison(patch: pytest.MonkeyPatch) -> None:
    """Until the patch ends, of backends that are prepared from now on; on a CPU."""
    allocate = pytorch.empty_strided["cpu"]

    def poisoned(*form: object) -> torch.Tensor:
        return allocate(*form).fill_(torch.nan)

    patch.setitem(pytorch.empty_strided, "cpu", poisoned)
