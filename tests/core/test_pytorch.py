"""What stands in for PyTorch's private names where a version lacks them.

Seen to fail: the dtype left out, sizes in the place of strides.
"""

from __future__ import annotations

import pytest
import torch

from lightning_lrnn.core import pytorch


@pytest.mark.parametrize("lacks", [False, True])
def test_an_allocation_has_its_form(lacks, monkeypatch):
    if lacks:
        monkeypatch.delattr(torch._C._dynamo.guards, "_empty_strided_cpu")
    x = pytorch._inductors("cpu")((2, 3), (1, 2), torch.bfloat16)
    assert (x.shape, x.stride(), x.dtype) == ((2, 3), (1, 2), torch.bfloat16)
    assert x.device == torch.device("cpu") and not x.requires_grad
