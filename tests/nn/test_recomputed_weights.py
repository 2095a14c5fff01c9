"""Weights that are made of other parameters before each call, in layers of this package.

Seen to fail: the dtype asked of a weight that was made before its parameters were cast.
"""

from __future__ import annotations

import pytest
import torch
from layers import H, M, every_cell, make
from torch import nn
from torch.nn.utils import prune


@every_cell
@pytest.mark.parametrize("how", ["prune", "spectral_norm"])
def test_they_may_be_cast(name, how):
    rnn = make(name, batch_first=True)
    cell = rnn.cells[0]
    weight = next(n for n, p in cell.named_parameters() if p.ndim == 2 or n == cell.sampled)
    if how == "prune":
        prune.l1_unstructured(cell, weight, 0.3)
    else:
        nn.utils.spectral_norm(cell, weight)
    x = torch.randn(2, 4, M)
    expected, _ = rnn.eval()(x)
    y, _ = rnn.double()(x.double())
    assert y.dtype == torch.float64 and y.shape == (2, 4, H)
    torch.testing.assert_close(y.float(), expected, rtol=1e-4, atol=1e-4)
