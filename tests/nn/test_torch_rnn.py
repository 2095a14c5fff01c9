"""The baseline that starts with a memory. Seen to fail: U as in torch.nn, one layer alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_lrnn.nn import MemoryLSTM


def test_its_gates_start_with_the_memory_that_is_asked_for():
    torch.manual_seed(0)
    rnn = MemoryLSTM(3, 200, 2, bidirectional=True, memory=(10, 1000))
    for suffix in ("l0", "l0_reverse", "l1", "l1_reverse"):
        i, f, g, o = getattr(rnn, f"bias_ih_{suffix}").detach().chunk(4)
        steps = -1 / torch.log(torch.sigmoid(f.double()))
        assert 9 < steps.min() < 60 and 900 < steps.max() < 1002
        torch.testing.assert_close(i, -f / 2)
        rest = [g, o, getattr(rnn, f"bias_hh_{suffix}"), getattr(rnn, f"weight_hh_{suffix}")]
        assert not any(x.any() for x in rest)
        assert getattr(rnn, f"weight_ih_{suffix}").std() > 0


def test_without_a_memory_it_is_that_of_torch():
    layers = []
    for kind in (MemoryLSTM, nn.LSTM):
        torch.manual_seed(0)
        layers.append(kind(3, 5, 2))
    torch.testing.assert_close(*(dict(layer.named_parameters()) for layer in layers))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": (0, 5)}, r"0 < shortest <= longest, got \(0, 5\)"),
        ({"memory": (1, 5), "bias": False}, r"memory=\(1, 5\) is in biases"),
    ],
)
def test_a_memory_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        MemoryLSTM(3, 5, **options)
