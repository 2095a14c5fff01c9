"""The same cells by others, where a package has them and runs on a CPU.

Seen to fail: gate and candidate exchanged; minLSTM's shares exchanged.
"""

from __future__ import annotations

import pytest
import torch

import lightning_lrnn as lrnn
from lightning_lrnn.nn.cells.min_gru import min_gru
from lightning_lrnn.nn.cells.min_lstm import min_lstm

F64 = torch.float64


def positive(v):
    """What minGRU's form in logarithms makes of a candidate (Feng et al. 2024, appendix B)."""
    return torch.where(v >= 0, v + 0.5, torch.sigmoid(v))


def test_min_gru():
    other = pytest.importorskip("minGRU_pytorch").minGRU(8).double()
    x = torch.randn(3, 50, 8, dtype=F64)
    v, z = other.to_hidden_and_gate(x).chunk(2, -1)
    y, _ = lrnn.gated_recurrence(min_gru, z, positive(v))
    torch.testing.assert_close(y, other(x))
    h0 = torch.rand(3, 8, dtype=F64) + 0.1
    y, _ = lrnn.gated_recurrence(min_gru, z, positive(v), h0=h0)
    torch.testing.assert_close(y, other(x, h0[:, None]))


def test_min_lstm():
    other = pytest.importorskip("minGRU_pytorch.minLSTM").minLSTM(8).double()
    x = torch.randn(3, 50, 8, dtype=F64)
    v, f, i = other.to_hidden_and_f_i_gate(x).chunk(3, -1)
    y, _ = lrnn.gated_recurrence(min_lstm, f, i, positive(v))
    torch.testing.assert_close(y, other(x))
