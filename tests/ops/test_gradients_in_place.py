"""Gradients that take the place of the pre-activations which a layer gives away, on a CPU.

Seen to fail: in place although the graph is kept; although nobody gave them away; not at all.
"""

from __future__ import annotations

import pytest
import torch
from layers import CASES, H, M, make, random_state, weighted
from torch.utils.checkpoint import checkpoint

import lightning_lrnn as lrnn
from lightning_lrnn.nn.cells.gilr import gilr
from lightning_lrnn.ops import projections as _chunks

B, T = 3, 40


@pytest.fixture
def projections(monkeypatch):
    """What layers give away, and whether its gradient came in its place."""
    seen: list[list[bool]] = []
    split = _chunks.split

    def noted(x, n):
        there, actual = x.detach(), []  # which keeps its memory from being used again
        if x.requires_grad:
            x.register_hook(lambda g: actual.append(g.data_ptr() == there.data_ptr()))
        seen.append(actual)
        return split(x, n)

    monkeypatch.setattr(_chunks, "split", noted)
    return seen


def results(rnn, x, keep, **options):
    y = weighted(rnn(x, random_state(rnn, x), **options))
    leaves = [x, *rnn.parameters()]
    first = torch.autograd.grad(y, leaves, retain_graph=keep)
    return [first, torch.autograd.grad(y, leaves)] if keep else [first]


@pytest.mark.parametrize("hidden", [5, 20])
@pytest.mark.parametrize("backend", ["scan", "serial"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_the_last_backward_pass_gives_the_same(name, options, backend, hidden):
    """With lengths and documents, from a state; the one before left everything as it was."""
    rnn = make(name, hidden=hidden, **options, batch_first=True, backend=backend)
    x = torch.randn(B, T, M, requires_grad=True)
    given = {"lengths": torch.tensor([T, 7, 0]), "reset": torch.rand(B, T) < 0.1}
    actual = []
    for keep in (True, False):
        torch.manual_seed(1)
        actual += results(rnn, x, keep, **given)
    for other in actual[1:]:
        assert all(map(torch.equal, other, actual[0]))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("name", ["GILR", "GILRLSTM", "MinGRU", "QRNN"])
def test_where_gradients_are(name, keep, projections):
    rnn = make(name, hidden=16, batch_first=True, backend="scan")
    x = torch.randn(B, T, M)
    y = weighted(rnn(x))
    torch.autograd.grad(y, list(rnn.parameters()), retain_graph=keep)
    assert projections and all(actual == [not keep] for actual in projections)


def test_inputs_of_the_function_stay():
    """Nobody has given those away."""
    projection = torch.randn(B, T, 2 * H, requires_grad=True)
    kept = projection.detach().clone()
    f, z = projection.chunk(2, -1)
    y, _ = lrnn.gated_recurrence(gilr, f, z, backend="scan")
    y.sum().backward()
    assert torch.equal(projection, kept)


@pytest.mark.parametrize("reentrant", [True, False])
def test_within_a_checkpoint(reentrant):
    rnn = make("GILRLSTM", num_layers=2, batch_first=True)
    x = torch.randn(B, T, M, requires_grad=True)
    actual = []
    for run in (rnn, lambda x: checkpoint(rnn, x, use_reentrant=reentrant)):
        y, _ = run(x)
        actual.append(torch.autograd.grad(y.sum(), [x]) if run is rnn or not reentrant else None)
        if actual[-1] is None:
            y.sum().backward()
            actual[-1] = [x.grad]
    assert torch.equal(actual[0][0], actual[1][0])


def test_the_gradient_of_the_gradient():
    rnn = make("GILRLSTM", batch_first=True, dtype=torch.float64)
    x = torch.randn(1, 4, M, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: rnn(x)[0], x)
