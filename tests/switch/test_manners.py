"""The layers that a switch takes by default behave as those of `torch.nn` that they replace.

What code does with a layer and its states is done to both, the stock layer and the one in its
place: those that `rnn: auto` chooses, and the surrogate layers by name.
"""

from __future__ import annotations

import copy
import pickle
import random
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves, tree_map

from lightning_lrnn import SwitchError, replace_rnn
from lightning_lrnn.nn.stack import Stack
from lightning_lrnn.switch.recommended import SMALL, recommended

close = torch.testing.assert_close
B, T = 4, 6
F64 = torch.float64
KINDS = ["LSTM", "GRU", "RNN"]
NAMES = ["auto", "GILRLSTM", "GILRGRU", "GILRRNN", "SurrogateRNN"]
LARGE = [recommended(nn.LSTM(1, SMALL + 1, layers)).plain() for layers in (1, 2)]
"""What `rnn: auto` has for LSTMs of many units, here at few: for one layer, and for several."""


def sizes(kind, name):
    """Eight sets of arguments, hidden sizes of 1 and odd ones among them."""
    draw = random.Random(f"{kind} {name}")
    smallest = 1 if name in ("auto", *LARGE) else 2
    for n in range(8):
        hidden = [smallest, 3, 5][n] if n < 3 else draw.randint(smallest, 9)
        options = {"bias": draw.random() < 0.7, "batch_first": n % 2 == 0}
        options |= {"num_layers": 1 + n % 3, "bidirectional": draw.random() < 0.5}
        if kind == "LSTM" and hidden > 1 and draw.random() < 0.5:
            options["proj_size"] = draw.randint(1, hidden - 1)
        if kind == "RNN" and draw.random() < 0.5:
            options["nonlinearity"] = "relu"
        yield draw.randint(1, 6), hidden, options


PAIRS = [(kind, name) for kind in KINDS for name in NAMES] + [("LSTM", name) for name in LARGE]
# In `make test` the first of eight sizes, whose first three are one unit, and odd ones: all numbers
# of layers, both orders of the batch, and of every kind and name.
CASES = [
    (n >= 3, kind, name, *size) for kind, name in PAIRS for n, size in enumerate(sizes(kind, name))
]


def at_night(values, late):
    return pytest.param(*values, marks=[pytest.mark.nightly] * late)


places = pytest.mark.parametrize(
    "kind, name, size, hidden, options",
    [at_night(case, late) for late, *case in CASES],
    ids=str,
)
by_kind = pytest.mark.parametrize("kind", KINDS)


def both(kind, name, size, hidden, options):
    """A layer of `torch.nn`, and the one that a switch puts in the place of its like."""
    old = getattr(nn, kind)(size, hidden, **options)
    new = nn.ModuleDict({"rnn": copy.deepcopy(old)})
    replace_rnn(new, name)
    assert isinstance(new["rnn"], Stack) and isinstance(new["rnn"], getattr(nn, kind))
    return old, new["rnn"]


def one_way(options):
    return {**options, "bidirectional": False}


def batch(rnn, steps=T, rows=B):
    shape = (rows, steps) if rnn.batch_first else (steps, rows)
    return torch.randn(*shape, rnn.input_size, dtype=next(rnn.parameters()).dtype)


def time(rnn):
    return 1 if rnn.batch_first else 0


def some_state(rnn, rows=(B,), **options):
    """As a project makes it for `torch.nn`."""
    options = {"dtype": next(rnn.parameters()).dtype, **options}
    parts = rnn.num_layers * (2 if rnn.bidirectional else 1)
    h = torch.randn(parts, *rows, rnn.proj_size or rnn.hidden_size, **options)
    if rnn.mode != "LSTM":
        return h
    return h, torch.randn(parts, *rows, rnn.hidden_size, **options)


def seen(outcome):
    """The form, the shapes and the dtypes of what a layer gives."""
    return tree_map(lambda v: (v.shape, v.dtype), outcome)


def loss(*outcomes):
    return sum(
        (v * torch.linspace(1, 2, v.numel(), dtype=F64).view_as(v)).sum()
        for v in tree_leaves(outcomes)
    )


# A quarter of them in `make test`: each size in one dtype, each dtype with every kind and name.
WITH_DTYPES = [
    at_night((*case, dtype), i % 4 != j)
    for i, (_, *case) in enumerate(CASES)
    for j, dtype in enumerate((torch.float32, F64, torch.bfloat16, torch.float16))
]


@pytest.mark.parametrize("kind, name, size, hidden, options, dtype", WITH_DTYPES, ids=str)
def test_shapes_and_dtypes(kind, name, size, hidden, options, dtype):
    old, new = both(kind, name, size, hidden, options)
    for layer in (old.to(dtype), new.to(dtype)):
        layer.eval()
    x, state = batch(old), some_state(old)
    alone, of_one = torch.randn(T, size, dtype=dtype), some_state(old, ())
    lengths = torch.tensor([2, T, 1, 3])
    packed = pack_padded_sequence(x, lengths, old.batch_first, enforce_sorted=False)
    for inputs in ((x,), (x, state), (alone,), (alone, of_one), (packed,), (packed, state)):
        (y, last), (expected, expected_last) = new(*inputs), old(*inputs)
        assert type(y) is type(expected) and type(last) is type(expected_last)
        assert seen((y[0], last)) == seen((expected[0], expected_last))
        with torch.inference_mode():
            assert seen(new(*inputs)[1]) == seen(expected_last)
        for part in last if kind == "LSTM" else (last,):
            nn.Linear(part.shape[-1], 2, dtype=dtype)(part[-1])


@places
def test_autocast(kind, name, size, hidden, options):
    old, new = both(kind, name, size, hidden, options)
    x, state = batch(old), some_state(old)
    expected, expected_last = old(x)  # oneDNN's LSTM has no bfloat16 with gradients everywhere
    with torch.autocast("cpu", torch.bfloat16):
        y, last = new(x)
        assert [v.shape for v in tree_leaves((y, last))] == [
            v.shape for v in tree_leaves((expected, expected_last))
        ]
        for part in tree_leaves(last):
            nn.Linear(part.shape[-1], 2)(part[-1])
        assert seen(new(x, state)) == seen(new(x, tree_map(torch.zeros_like, last)))
    loss(tree_map(torch.Tensor.double, (y, last))).backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in new.parameters())


@places
def test_whole_is_in_pieces_with_gradients(kind, name, size, hidden, options):
    for rnn in both(kind, name, size, hidden, one_way(options)):
        rnn.double()
        x, state = batch(rnn).requires_grad_(), some_state(rnn, requires_grad=True)
        leaves = [x, *tree_leaves(state), *rnn.parameters()]
        whole, last = rnn(x, state)
        gradients = torch.autograd.grad(loss(whole, last), leaves, materialize_grads=True)
        pieces, hx = [], state
        for piece in x.split([1, 3, 2], time(rnn)):
            y, hx = rnn(piece, hx)
            pieces.append(y)
        y = torch.cat(pieces, time(rnn))
        close((y, hx), (whole, last))
        close(torch.autograd.grad(loss(y, hx), leaves, materialize_grads=True), gradients)
        h = hx[0] if kind == "LSTM" else hx
        # A cell with a readout hands out in a GRU's place the state, and `replace_rnn` says so.
        if kind == "LSTM" or not isinstance(rnn, Stack) or rnn._cells()[0].output_is_state:
            close(h[-1], y.select(time(rnn), -1))


@places
def test_a_packed_batch_is_its_rows(kind, name, size, hidden, options):
    lengths = torch.tensor([2, T, 1, 3])
    for rnn in both(kind, name, size, hidden, options):
        rnn.double()
        x, state = batch(rnn).requires_grad_(), some_state(rnn, requires_grad=True)
        leaves = [x, *tree_leaves(state), *rnn.parameters()]
        packed = pack_padded_sequence(x, lengths, rnn.batch_first, enforce_sorted=False)
        y, last = rnn(packed, state)
        y, _ = pad_packed_sequence(y, rnn.batch_first)
        rows = y if rnn.batch_first else y.transpose(0, 1)
        gradients = torch.autograd.grad(loss(rows, last), leaves, materialize_grads=True)
        alone, ends = torch.zeros_like(rows), []
        for row, length in enumerate(lengths):
            steps = (x if rnn.batch_first else x.transpose(0, 1))[row, :length]
            one, end = rnn(steps, tree_map(lambda v, row=row: v[:, row], state))
            alone = alone.index_put((torch.tensor(row), torch.arange(length)), one)
            ends.append(end)
        end = tree_map(lambda *parts: torch.stack(parts, 1), *ends)
        close((rows, last), (alone, end))
        close(torch.autograd.grad(loss(alone, end), leaves, materialize_grads=True), gradients)


@places
def test_states_are_edited_row_by_row(kind, name, size, hidden, options):
    order, mask = torch.tensor([2, 0, 3, 1]), torch.tensor([True, False, True, False])
    for rnn in both(kind, name, size, hidden, options):
        rnn.double()
        x, start = batch(rnn), some_state(rnn)
        rows = 1 - time(rnn)
        _, last = rnn(x, start)
        last = tree_map(torch.Tensor.detach, last)
        y, end = rnn(x, last)

        # Another order of the batch, and samples of each row.
        ordered = tree_map(lambda v: v.index_select(1, order), last)
        z, there = rnn(x.index_select(rows, order), ordered)
        close((z, there), (y.index_select(rows, order), tree_map(lambda v: v[:, order], end)))
        many = tree_map(lambda v: v.repeat_interleave(3, 1), last)
        z, _ = rnn(x.repeat_interleave(3, rows), many)
        close(z, y.repeat_interleave(3, rows))

        # Initial states back into final ones where a row had no step.
        def back(v, v_0):
            where = mask[None, :, None].expand_as(v)
            return v.masked_scatter(where, v_0[where])

        z, _ = rnn(x, tree_map(back, last, start))
        expected = torch.where(
            mask.view(-1, 1, 1) if rows == 0 else mask.view(1, -1, 1), rnn(x, start)[0], y
        )
        close(z, expected)

        # Kept layer by layer, and put together again; zeros are no state.
        kept = tree_map(lambda v: torch.stack([part.clone() for part in v]), last)
        close(rnn(x, kept), (y, end))
        close(rnn(x, tree_map(torch.zeros_like, start)), rnn(x))


@places
def test_rows_without_a_step_keep_their_state(kind, name, size, hidden, options):
    _, new = both(kind, name, size, hidden, options)
    x, state = batch(new), some_state(new)
    y, last = new(x, state, lengths=torch.tensor([0, T, 0, 2]))
    for part, part_0 in zip(tree_leaves(last), tree_leaves(state), strict=True):
        close(part[:, [0, 2]], part_0[:, [0, 2]])
    rows = y if new.batch_first else y.transpose(0, 1)
    assert not rows[[0, 2]].any() and rows[1].any()


@places
def test_copies_files_and_training(kind, name, size, hidden, options):
    # Units of a relu may be dead, and learn nothing.
    options = {key: value for key, value in options.items() if key != "nonlinearity"}
    old, new = both(kind, name, size, hidden, {**options, "num_layers": 2, "dropout": 0.5})
    x = batch(new, rows=32)
    for rnn in (old, new):
        assert rnn.flatten_parameters() is None
        assert not torch.equal(rnn(x)[0], rnn(x)[0])
        rnn.eval()
        close(rnn(x), rnn(x), rtol=0, atol=0)
        for other in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
            assert type(other) is type(rnn) and not other.training
            close(other(x), rnn(x), rtol=0, atol=0)
            for parameter in other.parameters():
                nn.init.normal_(parameter)
            assert not torch.equal(other(x)[0], rnn(x)[0])
            other.load_state_dict(rnn.state_dict())
            close(other(x), rnn(x), rtol=0, atol=0)
        before = {key: p.detach().clone() for key, p in rnn.named_parameters()}
        optimizer = torch.optim.Adam(rnn.parameters(), 1e-2)
        rnn(x)[0].square().sum().backward()
        optimizer.step()
        for key, parameter in rnn.named_parameters():
            assert not parameter.numel() or not torch.equal(parameter, before[key]), key


@places
def test_parameters_take_the_initialisation_of_a_project(kind, name, size, hidden, options):
    for rnn in both(kind, name, size, hidden, options):
        same = "input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size"
        assert all(hasattr(rnn, attribute) for attribute in same.split())
        assert options["bias"] or not any("bias" in key for key, _ in rnn.named_parameters())
        for key, parameter in rnn.named_parameters():
            if "weight" in key:
                nn.init.orthogonal_(parameter)
            elif "bias" in key:
                nn.init.zeros_(parameter)
                assert parameter.ndim == 1
        assert torch.isfinite(rnn(batch(rnn))[0]).all()


@by_kind
def test_torch_compile(kind):
    _, new = both(kind, "auto", 3, 5, {"batch_first": True, "num_layers": 2})
    x, state = batch(new), some_state(new)
    with warnings.catch_warnings():
        # A graph breaks at a layer of torch.nn, and PyTorch warns of what it traces inside.
        warnings.simplefilter("ignore")
        compiled = torch.compile(new, backend="eager")(x, state)
    close(compiled, new(x, state))


@pytest.mark.parametrize(
    "kind, name",
    # In the place of an LSTM the cells of a GRU or RNN are h, and the surrogate is c.
    [(k, n) for k in KINDS for n in NAMES[1:] if k != "LSTM" or n in ("GILRLSTM", "SurrogateRNN")],
)
def test_one_unit_cannot_be_shared(kind, name):
    holder = nn.ModuleDict({"rnn": getattr(nn, kind)(3, 1)})
    with pytest.raises(
        SwitchError, match=f"{name} cannot be made .*hidden_size=1 .*`state`: carried"
    ):
        replace_rnn(holder, name)
    assert replace_rnn(holder, name, state="carried").replaced
