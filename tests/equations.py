"""The equations of every cell, one step after the other, as the papers have them.

A loop takes x (B, T, m) and a carried state to outputs, the carried state and the decays.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from lightning_lrnn.nn.cells.surrogate import FUNCTIONS

sigmoid, tanh = torch.sigmoid, torch.tanh


class Result(NamedTuple):
    y: torch.Tensor
    carry: torch.Tensor
    decays: dict[str, torch.Tensor]


def one_state(step):
    """From a step, (cell, x_t, state) to (y_t, state, decay), to all of them."""

    def walk(cell, x, state):
        ys, decays = [], []
        for x_t in x.unbind(1):
            y, state, decay = step(cell, x_t, state)
            ys.append(y)
            decays.append(decay)
        return Result(torch.stack(ys, 1), state, {"state": torch.stack(decays, 1)})

    return walk


def projected(cell, x_t, weights, biases):
    """W x_t + b for each of a cell's matrices, of which the first ones have a bias."""
    W = cell.weight_ih.chunk(weights)
    b = cell.bias.chunk(biases) if cell.bias is not None else ()
    return [x_t @ W_k.T + b_k for W_k, b_k in itertools.zip_longest(W, b, fillvalue=0)]


@one_state
def gilr(cell, x_t, h):
    g, j = projected(cell, x_t, 2, 2)
    h = sigmoid(g) * h + (1 - sigmoid(g)) * tanh(j)
    return h, h, sigmoid(g)


def surrogate_rnn(cell, x, carry):
    """The surrogate first, then the cells, which see its last output, pass by pass."""
    before, outputs, after, decays = x, [], [], {}
    h, state = carry[:, : cell.cells], carry[:, cell.cells :]
    for k, layer in enumerate(cell.surrogate):
        name = type(layer).__name__.removesuffix("Cell")
        loop = lru_state if name == "LRUState" else EQUATIONS[name]
        start, state = state[:, : layer.state_size], state[:, layer.state_size :]
        y, s_n, of_layer = loop(layer, outputs[-1] if outputs else x, start)
        before = torch.cat([start[:, None, : layer.hidden_size], y[:, :-1]], 1)
        outputs.append(y)
        after.append(s_n)
        decays["surrogate" if len(cell.surrogate) == 1 else f"surrogate{k}"] = of_layer["state"]
    for k in range(1, cell.passes):
        start, state = state[:, : cell.cells], state[:, cell.cells :]
        y, c_n, decays[f"pass{k}"] = of_cells(cell, x, before, start)
        after.append(c_n)
        if not cell.reads_state:
            start, state = state[:, : cell.output_size], state[:, cell.output_size :]
            after.append(y[:, -1])
        before = torch.cat([start[:, None], y[:, :-1]], 1)
    y, h, decays["cell"] = of_cells(cell, x, before, h, outputs)
    return Result(y, torch.cat([h, *after], -1), decays)


def of_cells(cell, x, before, h, outputs=()):
    """Output, state and decays of the cells, whose gates see `before`."""
    function = next(name for name, f in FUNCTIONS.items() if f is cell.function)
    n = cell.function.matrices
    W, U = cell.weight_ih.chunk(n), cell.weight_hh.chunk(n)
    b_x, b_s = (b.chunk(n) if b is not None else [0] * n for b in (cell.bias_ih, cell.bias_hh))
    ys, of_cell = [], []
    for x_t, s in zip(x.unbind(1), before.unbind(1), strict=True):
        of_x = [x_t @ W_k.T + b for W_k, b in zip(W, b_x, strict=True)]
        of_s = [s @ U_k.T + b for U_k, b in zip(U, b_s, strict=True)]
        if function == "GRU":
            r, z = sigmoid(of_x[0] + of_s[0]), sigmoid(of_x[1] + of_s[1])
            h = z * h + (1 - z) * tanh(of_x[2] + r * of_s[2])
            y, decay = h, z
        elif function == "GRU_WITHOUT_RESET":
            z, n_t = sigmoid(of_x[0] + of_s[0]), tanh(of_x[1] + of_s[1])
            y = h = z * h + (1 - z) * n_t
            decay = z
        elif function == "GRU_WITH_INPUT_GATE":
            z, i = (sigmoid(p + q) for p, q in zip(of_x[:2], of_s[:2], strict=True))
            y = h = z * h + i * (1 - z) * tanh(of_x[2] + of_s[2])
            decay = z
        elif n == 4:
            i, f, g, o = (p + q for p, q in zip(of_x, of_s, strict=True))
            h = sigmoid(f) * h + sigmoid(i) * tanh(g)
            y, decay = sigmoid(o) * (tanh(h) if function == "LSTM" else h), sigmoid(f)
        else:
            p = of_x[0] + of_s[0]
            y = h = tanh(p) if function == "RNN_TANH" else torch.relu(p)
            decay = torch.zeros_like(h)
        ys.append(y)
        of_cell.append(decay)
    y = torch.stack(ys, 1)
    if cell.shares:
        y = torch.cat([y, *outputs], -1)
    y = y if cell.weight_hr is None else y @ cell.weight_hr.T
    return y, h, torch.stack(of_cell, 1)


@one_state
def min_gru(cell, x_t, h):
    z, v = projected(cell, x_t, 2, 2)
    h = (1 - sigmoid(z)) * h + sigmoid(z) * v
    return h, h, 1 - sigmoid(z)


@one_state
def min_lstm(cell, x_t, h):
    f, i, v = projected(cell, x_t, 3, 3)
    f, i = sigmoid(f), sigmoid(i)
    h = f / (f + i) * h + i / (f + i) * v
    return h, h, f / (f + i)


@one_state
def t_rnn(cell, x_t, h):
    f, z = projected(cell, x_t, 2, 1)
    h = sigmoid(f) * h + (1 - sigmoid(f)) * z
    return h, h, sigmoid(f)


@one_state
def sru(cell, x_t, c):
    same = cell.input_size == cell.hidden_size
    f, r, v, *through = projected(cell, x_t, 3 if same else 4, 2)
    f, r = sigmoid(f), sigmoid(r)
    c = f * c + (1 - f) * v
    return r * tanh(c) + (1 - r) * (x_t if same else through[0]), c, f


@one_state
def rg_lru(cell, x_t, h):
    W_a, W_x = (torch.block_diag(*blocks) for blocks in cell.weight)
    b_a, b_x = cell.bias.chunk(2) if cell.bias is not None else (0, 0)
    u = x_t if cell.weight_in is None else x_t @ cell.weight_in.T
    r, i = sigmoid(u @ W_a.T + b_a), sigmoid(u @ W_x.T + b_x)
    a = torch.exp(-8 * torch.nn.functional.softplus(cell.rate) * r)
    h = a * h + torch.sqrt(1 - a**2) * i * u
    return h, h, a


def windowed(cell, x, begun):
    """The projections of the last inputs, (B, T, ·), from what is begun (B, ·), and that after."""
    window, N = cell.window, cell.weight_ih.shape[0]
    W = cell.weight_ih.split(cell.input_size, 1)
    b = cell.bias if cell.bias is not None else 0
    T = x.shape[1]
    begun = begun.unflatten(-1, (window - 1, N)).unbind(1) if window > 1 else ()

    def inputs(t):
        """What x and the steps before it give to step t."""
        seen = sum(x[:, t - j] @ W[j].T for j in range(window) if 0 <= t - j < T)
        return seen + (begun[t] if t < len(begun) else 0)

    after = [inputs(T + t) for t in range(window - 1)]
    return torch.stack([inputs(t) for t in range(T)], 1) + b, after


def of_last_inputs(step):
    """From a step, (cell, pre-activations of t, state) to (y_t, state, decay), to all of them."""

    def walk(cell, x, carry):
        n = cell.hidden_size
        pre, begun = windowed(cell, x, carry[:, n:])
        ys, state, decays = [], carry[:, :n], []
        for t in range(x.shape[1]):
            y, state, decay = step(cell, pre[:, t].split(n, -1), state)
            ys.append(y)
            decays.append(decay)
        return Result(
            torch.stack(ys, 1), torch.cat([state, *begun], -1), {"state": torch.stack(decays, 1)}
        )

    return walk


@of_last_inputs
def qrnn(cell, pre, c):
    f, *others, z = pre
    f, z = sigmoid(f), tanh(z)
    i = sigmoid(others[0]) if cell.pooling == "ifo" else 1 - f
    c = f * c + i * z
    return (c if cell.pooling == "f" else sigmoid(others[-1]) * c), c, f


@of_last_inputs
def t_gru(cell, pre, h):
    f, z, o = pre
    h = sigmoid(f) * h + z * tanh(o)
    return h, h, sigmoid(f)


@of_last_inputs
def t_lstm(cell, pre, c):
    f, z, o = pre
    c = sigmoid(f) * c + (1 - sigmoid(f)) * z
    return c * tanh(o), c, sigmoid(f)


def hgrn(cell, x, h, bound=0):
    W_f, W_i, W_g = cell.weight_ih.chunk(3)
    b_f = cell.bias if cell.bias is not None else 0
    silu = torch.nn.functional.silu
    ys, decays = [], []
    for x_t in x.unbind(1):
        decay = bound + (1 - bound) * sigmoid(x_t @ W_f.T + b_f)
        h = decay * h + (1 - decay) * silu(x_t @ W_i.T)
        normal = h / torch.sqrt((h**2).mean(-1, keepdim=True) + 1e-5) * cell.norm
        ys.append((normal * silu(x_t @ W_g.T)) @ cell.weight_out.T)
        decays.append(decay)
    return Result(torch.stack(ys, 1), h, {"state": torch.stack(decays, 1)})


def diagonal(transition):
    """From the (a, scale) of a cell to its outputs, with complex numbers throughout."""

    def walk(cell, x, h):
        B, C = torch.complex(cell.B[:, 0], cell.B[:, 1]), torch.complex(*cell.C.unbind(-1))
        a, scale = transition(cell)
        ys = []
        for x_t in x.unbind(1):
            h = a * h + scale * (x_t.to(B.dtype) @ B.T)
            ys.append((h @ C.T).real + x_t @ cell.D.T)
        return Result(torch.stack(ys, 1), h, {"state": a.abs().expand(*x.shape[:2], -1)})

    return walk


@diagonal
def lru(cell):
    a = torch.exp(-torch.exp(cell.nu) + 1j * torch.exp(cell.theta))
    return a, torch.exp(cell.gamma)


@diagonal
def s5(cell):
    eigenvalue = torch.complex(cell.rate.clamp(max=-1e-4), cell.frequency)
    a = torch.exp(eigenvalue * torch.exp(cell.log_step))
    return a, (a - 1) / eigenvalue


@one_state
def lru_state(cell, x_t, h):
    """Columns 2 k and 2 k + 1 turn and shrink together; a last single one shrinks."""
    radius, scale = torch.exp(-torch.exp(cell.nu)), torch.exp(cell.gamma)
    phase = torch.cat([torch.exp(cell.theta), torch.zeros(cell.hidden_size % 2).to(cell.theta)])
    u = x_t @ cell.B.T
    columns = []
    for k, (r, p, g) in enumerate(zip(radius, phase, scale, strict=True)):
        real, imaginary = h[:, 2 * k], h[:, 2 * k + 1 : 2 * k + 2].sum(-1)
        columns.append(r * (torch.cos(p) * real - torch.sin(p) * imaginary) + g * u[:, 2 * k])
        if 2 * k + 1 < cell.hidden_size:
            turned = r * (torch.sin(p) * real + torch.cos(p) * imaginary)
            columns.append(turned + g * u[:, 2 * k + 1])
    h = torch.stack(columns, -1)
    return h, h, radius.expand(len(x_t), -1)


EQUATIONS = {
    "GILR": gilr,
    "GILRGRU": surrogate_rnn,
    "GILRLSTM": surrogate_rnn,
    "GILRRNN": surrogate_rnn,
    "HGRN": hgrn,
    "LRU": lru,
    "MinGRU": min_gru,
    "MinLSTM": min_lstm,
    "QRNN": qrnn,
    "RGLRU": rg_lru,
    "S5": s5,
    "SRU": sru,
    "SurrogateRNN": surrogate_rnn,
    "TGRU": t_gru,
    "TLSTM": t_lstm,
    "TRNN": t_rnn,
}


def bound_of(rnn, layer, direction):
    """HGRN: the sum of the softmax over layers up to this one, less that of the first."""
    parts = torch.stack([cell.bound for cell in rnn.cells[direction :: rnn.directions]])
    shares = torch.exp(parts) / torch.exp(parts).sum(0)
    return shares[: layer + 1].sum(0) - shares[0]


def reference(rnn, x, carry_0):
    """Output, last outputs, carried states and decays of a batch-first stack, by the equations."""
    loop = EQUATIONS[type(rnn).__name__]
    h_n, carry_n, decays = [], [], {}
    for layer in range(rnn.num_layers):
        outputs = []
        for reverse in range(rnn.directions):
            k = len(h_n)
            of_all = {"bound": bound_of(rnn, layer, reverse)} if loop is hgrn else {}
            flipped = x.flip(1) if reverse else x
            y, carry, of_layer = loop(rnn.cells[k], flipped, carry_0[k], **of_all)
            h_n.append(y[:, -1])
            carry_n.append(carry)
            outputs.append(y.flip(1) if reverse else y)
            for which, a in of_layer.items():
                place = f"layer{layer}.{'reverse' if reverse else 'forward'}.{which}"
                decays[place] = a.flip(1) if reverse else a
        x = torch.cat(outputs, -1)
    return x, torch.stack(h_n), torch.stack(carry_n), decays
