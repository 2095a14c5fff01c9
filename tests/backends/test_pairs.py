"""What a stretch does to the state that comes in: compiled code as the recurrences themselves.

Seen to fail: parts folded in the wrong order; an odd part left out; A taken for B; resets not
passed on; the adjoint of the other direction; what is not finite not left to the recurrences.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from lightning_lrnn import backends
from lightning_lrnn.backends import pairs
from lightning_lrnn.backends.base import Pairs
from lightning_lrnn.core.problem import Problem
from lightning_lrnn.gates import IDENTITY, trace
from lightning_lrnn.nn.cells.gilr import gilr
from lightning_lrnn.nn.cells.surrogate import lstm, output_tanh

SHAPES = (2, 50, 5), (1, 1, 1), (1, 40_000, 33), (3, 9_000, 8)
"""The third is divided in parts of time."""
READOUT = trace(lambda h, a, b: h.tanh() * b)
PROGRAMS = {
    "plain": (IDENTITY, ""),
    "gilr": (gilr.program, READOUT),
    "lstm": (lstm.program, output_tanh.program),
}


def made(kind, shape, dtype, masks, *, reverse, exclusive):
    gate, readout = PROGRAMS[kind]
    B, T, D = shape
    inputs = 4 if kind == "lstm" else 2
    pre = [torch.randn(B, T, D, dtype=dtype) for _ in range(inputs)]
    if kind == "plain":
        pre[0] = pre[0] / pre[0].abs().clamp(min=1)
    lengths = torch.randint(0, T + 1, (B,)) if masks else None
    reset = torch.rand(B, T) < 0.3 / T if masks else None
    return Problem(gate, readout, tuple(pre), None, lengths, reset, reverse, exclusive)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("plain", torch.float64), ("plain", torch.complex128), ("plain", torch.float32),
        ("plain", torch.bfloat16), ("gilr", torch.float64), ("gilr", torch.bfloat16),
        ("lstm", torch.float64),
    ],
    ids=str,
)  # fmt: skip
def test_pairs_are_those_of_the_recurrences(kind, dtype, shape, masks, monkeypatch):
    torch.manual_seed(0)
    exact = dtype in (torch.float64, torch.complex128)
    near = {"rtol": 1e-9, "atol": 1e-12} if exact else {"rtol": 2e-4, "atol": 2e-5}
    for reverse, exclusive in itertools.product((False, True), repeat=2):
        problem = made(kind, shape, dtype, masks, reverse=reverse, exclusive=exclusive)
        backend = backends.prepared("scan", problem)
        pair = backend.pair(problem) if isinstance(backend, Pairs) else None
        if pair is None:
            assert kind == "plain" and shape[2] < 8
            continue
        _, h, _ = backend.forward(problem)
        dy = torch.randn(shape, dtype=h.dtype)
        found = (*pair, backend.adjoint_impulse(problem, h, dy))
        with monkeypatch.context() as patch:
            patch.setattr(pairs, "Pairs", ())
            expected = (
                *pairs.pair("scan", problem),
                pairs.adjoint_impulse("scan", problem, h, dy),
            )
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, **near)


def test_what_is_not_finite_is_left_to_the_recurrences():
    T = 40_000
    a, b = torch.full((1, T, 33), 2.0), torch.zeros(1, T, 33)
    b[:, -1] = 3.0
    problem = Problem(IDENTITY, "", (a, b), None, None, None, False, False)
    assert backends.prepared("scan", problem).pair(problem) is None
    A, B = pairs.pair("scan", problem)
    assert A.isinf().all() and torch.equal(B, torch.full((1, 33), 3.0))
