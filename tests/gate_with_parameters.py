"""A gate and a readout with parameters, and the results and gradients of a recurrence with them."""

from __future__ import annotations

import torch

import lightning_lrnn as lrnn


@lrnn.gate
def biased(x, f, bias, scale):
    a = torch.sigmoid(f * scale + bias)
    return a, (1 - a) * torch.tanh(x)


@lrnn.gate
def biased_output(h, x, f, bias, scale):
    return torch.tanh(h + bias) * torch.sigmoid(f) + x * scale


def results(pre, gate=biased, readout=biased_output, h0=None, **options):
    leaves = [p.detach().requires_grad_() for p in pre]
    # Detached they lie where they lay.
    assert all(p.stride() == leaf.stride() for p, leaf in zip(pre, leaves, strict=True))
    y, h_final = lrnn.gated_recurrence(
        gate, *leaves, h0=h0, readout=readout, backend="scan", **options
    )
    generator = torch.Generator().manual_seed(0)
    dy = torch.randn(y.shape, generator=generator).to(y.dtype)
    return [y, h_final, *torch.autograd.grad([y, h_final], leaves, [dy, torch.ones_like(h_final)])]


def operands(B, T, D, dtype=torch.float32):
    sizes = [(B, T, D), (B, T, D), (D,), (B, D)]
    return [torch.randn(size).to(dtype) for size in sizes]
