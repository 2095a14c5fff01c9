"""Surrogate RNNs: a gate of one's own, what is refused, old checkpoints, the outputs before.

Seen to fail: rows of a gate in another order; a size of 1.5 or infinity taken; a readout as a gate;
the rows f, i, o, z of an old checkpoint kept; both biases of one filled; a border in the direction
of the walk ignored; the initial state at the last step of padded rows forgotten, or its gradient
lost; a phase of a single last column; a gradient at an odd place seen as complex numbers; phases of
an LRU up to pi, or drawn one by one, or in the order of the radii.
"""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import lightning_lrnn as lrnn
from lightning_lrnn.nn import GILRLSTM, SurrogateRNN
from lightning_lrnn.nn.cells.lru import LRUStateCell
from lightning_lrnn.nn.cells.surrogate import SURROGATES
from lightning_lrnn.nn.scan_context import ScanContext, StepContext
from lightning_lrnn.switch.distil import carry_weights
from lightning_lrnn.switch.recommended import SMALL, recommended

F64 = torch.float64
close = torch.testing.assert_close


@lrnn.gate
def leaky(f, z, w):
    """Three pre-activations, in the order of the rows of W and U."""
    return torch.sigmoid(f), (z - w) / 2


@lrnn.gate
def readout_alone(h):
    return torch.tanh(h)


@pytest.mark.parametrize("options", [{}, {"surrogate_size": 2}, {"bias": False}], ids=str)
def test_a_gate_of_ones_own(options, backend):
    rnn = SurrogateRNN(4, 5, cell=leaky, backend=backend, dtype=F64, **options)
    cell = rnn.cells[0]
    x = torch.randn(6, 3, 4, dtype=F64)
    y, state = rnn(x)
    h, s, loop = *(torch.zeros(3, n, dtype=F64) for n in cell.parts), []
    bias = cell.bias_ih + cell.bias_hh if cell.bias_ih is not None else 0
    for x_t in x:
        f, z, w = (x_t @ cell.weight_ih.T + s @ cell.weight_hh.T + bias).chunk(3, -1)
        h = f.sigmoid() * h + (z - w) / 2
        s = cell.surrogate[0](x_t, s)
        loop.append(torch.cat([h, s], -1) if options.get("surrogate_size") else h)
    close(y, torch.stack(loop))
    close(state[0], torch.cat([h, s], -1))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cell": "LSTN"}, "`cell` must be one of LSTM, .* got 'LSTN'"),
        ({"cell": ["LSTM"]}, "`cell` must be one of LSTM, .* got \\['LSTM'\\]"),
        ({"cell": torch.tanh}, "`cell` must be one of LSTM, .* or a gate"),
        ({"cell": readout_alone}, "`cell` must map pre-activations to decay and impulse"),
        ({"surrogate": "LSTM"}, "`surrogate` must be one of .* got 'LSTM'"),
        ({"surrogate": None}, "`surrogate` must be one of .* got None"),
        ({"surrogate_layers": 0}, "`surrogate_layers` must be a whole number .* got 0"),
        ({"surrogate_layers": 1.5}, "`surrogate_layers` must be a whole number .* got 1.5"),
        ({"surrogate_layers": "2"}, "`surrogate_layers` must be a whole number .* got '2'"),
        *(
            ({"surrogate_size": size}, f"`surrogate_size` must .* hidden_size=5 .* got {size!r}")
            for size in (0, -1, 1.5, 5, float("inf"), float("nan"), "2", True)
        ),
        ({"surrogate_size": 3, "surrogate_layers": 2}, "surrogate_layers=2, got 3"),
        ({"surrogate": "S5", "surrogate_size": 2}, "state of S5 is not its output"),
        *(
            ({"passes": passes}, f"`passes` must be a whole number of at least 1, got {passes!r}")
            for passes in (0, 1.5, "3", True, None)
        ),
        ({"passes": 2, "surrogate_size": 2}, "passes=2 needs .* leave `surrogate_size` out, got 2"),
    ],
    # Addresses differ between the processes of `make test WORKERS=2`.
    ids=lambda value: re.sub(r" at 0x\w+", "", str(value)),
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SurrogateRNN(4, 5, **options)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("layers", [1, 2])
def test_any_surrogate_continues_in_steps(surrogate, layers):
    rnn = SurrogateRNN(4, 5, cell="GRU", surrogate=surrogate, surrogate_layers=layers, dtype=F64)
    x = torch.randn(6, 3, 4, dtype=F64)
    state, steps = None, []
    for x_t in x:
        y_t, state = rnn.step(x_t, state)
        steps.append(y_t)
    close(rnn(x), (torch.stack(steps), state))
    assert set(rnn.decays(x)) == {
        "layer0.forward.cell",
        *(f"layer0.forward.surrogate{k if layers > 1 else ''}" for k in range(layers)),
    }


def test_a_whole_number_may_be_a_float():
    rnn = SurrogateRNN(4, 5, surrogate_size=2.0, surrogate_layers=2.0)
    assert rnn.cells[0].parts == [1, 2, 2]
    assert SurrogateRNN(4, 5, passes=3.0).cells[0].parts == [5, 5, 5, 5, 5, 5]


def pair_of(make, passes, backend="auto", **options):
    """A layer of PyTorch, and one with its weights."""
    old = make(4, 5, dtype=F64, **options)
    options.pop("nonlinearity", None)
    new = SurrogateRNN(4, 5, dtype=F64, cell=old.mode, passes=passes, backend=backend, **options)
    carry_weights(old, new)
    return old, new


KINDS = [
    (torch.nn.LSTM, {}),
    (torch.nn.LSTM, {"proj_size": 3}),
    (torch.nn.GRU, {}),
    (torch.nn.RNN, {"bias": False}),
    (torch.nn.RNN, {"nonlinearity": "relu"}),
]


@pytest.mark.parametrize("kind, options", KINDS, ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_as_many_passes_as_steps_are_the_layer_of_torch(kind, options, bidirectional, backend):
    """Also from a state of that layer; and so is the state of the cells."""
    more = {"num_layers": 2, "bidirectional": bidirectional}
    old, new = pair_of(kind, 6, backend, **options, **more)
    x = torch.randn(6, 3, 4, dtype=F64)
    for state in (None, tree_map(torch.randn_like, old(x)[1])):
        (y, end), (expected, last) = new(x, state), old(x, state)
        close(y, expected)
        close(tree_leaves(end)[-1][..., :5], tree_leaves(last)[-1])


@pytest.mark.parametrize("kind, options", KINDS, ids=str)
def test_a_pass_more_is_a_step_more_that_is_right(kind, options):
    x = torch.randn(5, 3, 4, dtype=F64)
    for passes in range(1, 5):
        old, new = pair_of(kind, passes, **options)
        state = tree_map(torch.randn_like, old(x)[1])
        # A single state says nothing of the surrogate's where there is one pass.
        start = state if passes > 1 or isinstance(state, tuple) else None
        wrong = (new(x, start)[0] - old(x, start)[0]).abs().amax((1, 2))
        assert (wrong[:passes] < 1e-12).all() and (wrong[passes:] > 1e-6).all()


@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
@pytest.mark.parametrize("pair", [False, True])
def test_passes_continue_with_the_state_of_another_layer(cell, pair):
    """A GRU whose state is (h, c), an LSTM whose state is one tensor: whole as in pieces."""
    rnn = SurrogateRNN(4, 5, cell=cell, passes=3, dtype=F64)
    rnn.cells[0].remembers_output = pair
    x = torch.randn(6, 3, 4, dtype=F64)
    y, end = rnn(x)
    first, middle = rnn(x[:2])
    second, last = rnn(x[2:], middle)
    close((torch.cat([first, second]), last), (y, end))
    h, c = (torch.randn(1, 3, 5, dtype=F64) for _ in range(2))
    s, state = (h if pair else torch.zeros_like(h)), (h, c) if pair else c
    if cell == "LSTM":
        wide = torch.cat([c, s, c, s, c, s], -1)
    else:
        wide = torch.cat([c, h, h], -1) if pair else torch.cat([c, c, c, c], -1)
    close(rnn(x, (h, wide) if pair else wide), rnn(x, state))


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"proj_size": 3}], ids=str)
def test_checkpoints_of_version_0_1(options):
    M, H, S = 4, 5, options.get("proj_size", 5)
    rnn = GILRLSTM(M, H, bidirectional=True, batch_first=True, dtype=F64, **options)
    old = {}
    for k in range(2):
        old[f"cells.{k}.weight_ih"] = torch.randn(2 * S + 4 * H, M, dtype=F64)
        old[f"cells.{k}.weight_hh"] = torch.randn(4 * H, S, dtype=F64)
        if options.get("bias", True):
            old[f"cells.{k}.bias"] = torch.randn(2 * S + 4 * H, dtype=F64)
        if S != H:
            old[f"cells.{k}.weight_hr"] = torch.randn(S, H, dtype=F64)
    rnn.load_state_dict(dict(old))
    x = torch.randn(2, 6, M, dtype=F64)
    for k, (y, steps) in enumerate(zip(rnn(x)[0].chunk(2, -1), (x, x.flip(1)), strict=True)):
        of = {name.split(".")[-1]: p for name, p in old.items() if f".{k}." in name}
        c, s, outputs = torch.zeros(2, H, dtype=F64), torch.zeros(2, S, dtype=F64), []
        for x_t in steps.unbind(1):
            pre = x_t @ of["weight_ih"].T + of.get("bias", 0)
            g, j, f, i, o, z = pre.split([S, S, H, H, H, H], -1)
            f, i, o, z = torch.cat([f, i, o, z], -1).add(s @ of["weight_hh"].T).chunk(4, -1)
            s = g.sigmoid() * s + (1 - g.sigmoid()) * j.tanh()
            c = f.sigmoid() * c + i.sigmoid() * z.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h @ of["weight_hr"].T if S != H else h)
        close(y.flip(1) if k else y, torch.stack(outputs, 1))


@pytest.mark.parametrize(
    "reverse, padded, documents, begun", list(itertools.product([False, True], repeat=4))
)
@pytest.mark.parametrize("T", [0, 1, 5])
def test_outputs_before_are_those_of_a_loop(reverse, padded, documents, begun, T):
    B, D = 6, 2
    s = torch.randn(B, T, D, dtype=F64, requires_grad=True)
    before = torch.randn(B, D, dtype=F64, requires_grad=True) if begun else None
    lengths = (torch.arange(B) % (T + 1)) if padded else None
    reset = torch.rand(B, T) < 0.4 if documents else None
    context = ScanContext(reverse, lengths, reset)
    valid = torch.full((B,), T) if lengths is None else lengths
    rows = []
    for b in range(B):
        last = torch.zeros(D, dtype=F64) if before is None else before[b]
        steps = [torch.zeros(D, dtype=F64)] * T
        order = range(valid[b])
        for t in reversed(order) if reverse else order:
            border = t + 1 if reverse else t
            if reset is not None and border < valid[b] and reset[b, border]:
                last = torch.zeros(D, dtype=F64)
            steps[t] = last
            last = s[b, t]
        rows.append(torch.stack(steps) if T else s[b])
    expected = torch.stack(rows)
    inside = (torch.arange(T) < valid[:, None])[..., None]
    # As the layer has it: the outputs at padded steps are 0.
    actual = context.previous(s * inside, before) * inside
    close(actual, expected)
    leaves = [s] if before is None else [s, before]
    weights = torch.randn_like(expected)
    losses = [(y * weights).sum() + sum(0 * p.sum() for p in leaves) for y in (actual, expected)]
    close(*(torch.autograd.grad(loss, leaves) for loss in losses))


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 3])
def test_states_of_an_lru_of_any_size(size, batch, backend):
    cell = LRUStateCell(4, size, dtype=F64)
    x = torch.randn(batch, 6, 4, dtype=F64)
    start = torch.randn(batch, size, dtype=F64, requires_grad=True)
    y, end = cell.layer(x, start, ScanContext(backend=backend))
    steps, s = [], start
    for x_t in x.unbind(1):
        y_t, s = cell.layer(x_t[:, None], s, StepContext())
        steps.append(y_t)
    pairs = (y, end), (torch.cat(steps, 1), s)
    close(*pairs)
    # A gradient that is a part of another one, at an odd place.
    losses = [torch.cat([end[0, :1], y.flatten(), end.flatten()]).cos().sum() for y, end in pairs]
    close(*(torch.autograd.grad(loss, [start, *cell.parameters()]) for loss in losses))


def test_an_lru_starts_with_slow_waves_of_every_frequency_and_memory():
    n = 12
    cell = LRUStateCell(4, 2 * n)
    turned = cell.theta.exp() / (math.pi / 2)
    kept = (-2 * cell.nu.exp()).exp()
    for spread in (turned, kept):
        assert sorted((n * spread).int().tolist()) == list(range(n))
    # Not in the same order: both would be slow and long, or fast and short.
    assert turned.argsort().tolist() != kept.argsort().tolist()


@pytest.mark.parametrize(
    ("old", "cell", "shares"),
    [
        (torch.nn.LSTM(3, SMALL + 1), "GRU_WITHOUT_RESET", False),
        (torch.nn.LSTM(3, SMALL + 1, 2), "GRU_WITH_INPUT_GATE", False),
        (torch.nn.LSTM(3, SMALL), "GRU_WITHOUT_RESET", True),
        (torch.nn.GRU(3, SMALL + 1), "GRU_WITHOUT_RESET", True),
        (torch.nn.RNN(3, 2), "RNN_TANH", True),
        (torch.nn.RNN(3, 2, nonlinearity="relu"), "RNN_RELU", True),
    ],
    ids=str,
)
def test_what_is_recommended(old, cell, shares):
    layer = recommended(old)
    options = layer.options
    assert (options["cell"], options["surrogate"]) == (cell, "LRU")
    assert ("surrogate_size" in options) is shares


def test_an_input_gate_starts_a_third_open():
    cell = SurrogateRNN(8, 400, cell="GRU_WITH_INPUT_GATE").cells[0]
    z, i, n = (cell.bias_ih + cell.bias_hh).detach().chunk(3)
    assert abs(i.sigmoid().mean() - 1 / 3) < 0.02
    assert abs(z.mean()) < 0.02 and abs(n.mean()) < 0.02


def test_a_class_of_cells_is_a_surrogate_as_one_by_name_is():
    """Seen to fail: "`surrogate` must be one of"."""
    rnns = []
    for surrogate in ("QRNN", lrnn.nn.QRNNCell):
        torch.manual_seed(0)
        rnns.append(lrnn.nn.SurrogateRNN(3, 4, surrogate=surrogate, surrogate_layers=2))
    x = torch.randn(7, 2, 3)
    assert torch.equal(rnns[0](x)[0], rnns[1](x)[0])
    with pytest.raises(ValueError, match="state of QRNN is not its output"):
        lrnn.nn.SurrogateRNN(3, 4, surrogate=lrnn.nn.QRNNCell, surrogate_size=2)
    with pytest.raises(ValueError, match=r"`surrogate` must be one of .*, or a class of cells"):
        lrnn.nn.SurrogateRNN(3, 4, surrogate=lrnn.nn.QRNN)
