"""Chunks of a projection, seen as one tensor again.

Seen to fail: strides not compared, overlapping rows accepted, offsets not compared.
"""

from __future__ import annotations

import pytest
import torch

from lightning_lrnn.ops import projections


@pytest.mark.parametrize("shape", [(3, 5, 12), (1, 5, 12), (3, 1, 12), (12,)])
def test_chunks_are_joined(shape):
    x = torch.randn(shape)
    for whole in (
        x,
        torch.randn(*shape[:-1], 20)[..., 4:16],
        x.mT.contiguous().mT if x.ndim > 1 else x,
    ):
        actual = projections.joined(whole.chunk(4, -1))
        if whole.stride(-1) == 1:
            assert torch.equal(actual, whole)
            assert actual.data_ptr() == whole.data_ptr()
        else:
            assert actual is None


def test_what_no_chunks_are():
    x = torch.randn(3, 8, 12)
    a, b, c = x.chunk(3, -1)
    steps = torch.randn(3, 9, 4)
    for other in (
        (b, a, c),  # not in order
        (a, c),
        (a, b, c.clone()),
        (a, b[:, :4]),
        (a, b.view(torch.int32)),
        (a[:, ::2], b[:, ::2], c[:, 1::2]),
        (steps[:, :-1], steps[:, 1:]),  # a step further is not beside
        (a[..., :2], b[..., :2]),
    ):
        assert projections.joined(other) is None


def test_gradients_apart_are_copied_together():
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 4, dtype=torch.float64)

    def product(x):
        a, b = projections.split(x, 2)
        return a * b.exp() * weight

    assert torch.autograd.gradcheck(product, x)
    assert torch.autograd.gradgradcheck(product, x)
    a, _ = projections.split(x, 2)  # only one is used
    (gradient,) = torch.autograd.grad(a, x, weight)
    assert torch.equal(gradient, torch.cat([weight, torch.zeros_like(weight)], -1))
