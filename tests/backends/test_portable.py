"""The recurrence by PyTorch's own operators is the one of the backends.

Seen to fail: no walk from the last step in reverse; padding walked over as other steps; the state
not kept at padded steps; resets left out, or taken where the padding starts; hidden states after
each step where those before it are asked for; the readout left out; the product of complex numbers
without the imaginary parts.
"""

from __future__ import annotations

import pytest
import torch
from layers import SINGLE_LAYERS, recurrences

import lightning_lrnn as lrnn
from lightning_lrnn.backends.portable import by_scan
from lightning_lrnn.core.problem import Problem
from lightning_lrnn.nn.cells.gilr import gilr

close = torch.testing.assert_close
B, T, D = 4, 7, 3


@lrnn.gate
def plain(a, b):
    return a, b


def check(gate, readout, pre, h0, reverse=False, exclusive=False, lengths=None, reset=None):
    flags = {"reverse": reverse, "exclusive": exclusive, "lengths": lengths, "reset": reset}
    expected = lrnn.gated_recurrence(gate, *pre, h0=h0, readout=readout, **flags)
    program = "" if readout is None else readout.program
    actual = by_scan(Problem(gate.program, program, pre, h0, lengths, reset, reverse, exclusive))
    close(actual, expected, rtol=1e-5, atol=1e-5)
    assert actual[0].is_contiguous()


@torch.no_grad()
@pytest.mark.parametrize("name, options", SINGLE_LAYERS, ids=str)
def test_every_recurrence_of_every_cell(name, options):
    for gate, readout, pre in recurrences(name, options):
        pre = [torch.randn_like(p) / 2 for p in pre]
        check(gate, readout, pre, None)
        check(gate, readout, pre, lrnn.gated_recurrence(gate, *pre)[1], reverse=True)


@torch.no_grad()
@pytest.mark.parametrize("parted", [False, True], ids=["whole", "parted"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("exclusive", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_all_flags(kind, reverse, exclusive, padded, parted):
    pre = [torch.rand(B, T, D, dtype=kind), torch.randn(B, T, D, dtype=kind)]
    lengths = torch.tensor([T, 3, 1, 0]) if padded else None
    if padded:
        for p in pre:
            p[1, 3:] = torch.nan
    reset = torch.rand(B, T) < 0.4 if parted else None
    for gate in [plain] if kind.is_complex else [plain, gilr]:
        check(gate, None, pre, torch.randn(B, D, dtype=kind), reverse, exclusive, lengths, reset)
        check(gate, None, pre, None, reverse, exclusive, lengths, reset)


@torch.no_grad()
def test_sixteen_bits_are_rounded_once():
    pre = [torch.randn(B, T, D, dtype=torch.bfloat16) for _ in range(2)]
    y, final = by_scan(Problem(gilr.program, "", pre, None, None, None, False, False))
    assert y.dtype == torch.bfloat16 and final.dtype == torch.float32
    close((y, final), lrnn.gated_recurrence(gilr, *pre))
