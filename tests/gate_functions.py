"""Gates of the literature and of every operation, as Python functions, and random programs."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch.nn import functional as F

from lightning_lrnn import gates
from lightning_lrnn.nn.cells.gilr import gilr
from lightning_lrnn.nn.cells.min_gru import min_gru
from lightning_lrnn.nn.cells.min_lstm import min_lstm
from lightning_lrnn.nn.cells.rg_lru import rg_lru as clipped_rg_lru
from lightning_lrnn.nn.cells.sru import highway, sru
from lightning_lrnn.nn.cells.surrogate import lstm, output_identity, output_tanh
from lightning_lrnn.nn.cells.t_rnn import t_rnn

REAL = {
    "arithmetic": lambda x, y: (x + y - 2 * x / (y * y + 1), -x),
    "number in front": lambda x, y: (1 / (2 + x * x), 2**y),
    "powers": lambda x, y: (x**2, (y * y + 1) ** -0.5),
    "functions": lambda x, y: (x.exp() + torch.log(y.abs() + 1), torch.sin(x) * y.cos()),
    "activations": lambda x, y: (
        torch.relu(x) + torch.nn.functional.silu(y),
        torch.nn.functional.gelu(x),
    ),
    "softplus": lambda x, y: (torch.nn.functional.softplus(x), torch.sigmoid(y)),
    "clamp": lambda x, y: (x.clamp(min=-0.5), torch.clamp(y, -0.1, 0.2)),
    "clamp above": lambda x, y: (x.clamp(max=0.5), y),
    "where": lambda x, y: (torch.where(x > y, x, y * 2), torch.where(x <= 0, 0.0, x)),
    "extremes": lambda x, y: (torch.minimum(x, y), torch.maximum(x, y)),
    "roots": lambda x, y: ((x * x + 1).sqrt(), torch.rsqrt(y * y + 1)),
    "detach": lambda x, y: (x.detach() * y, y),
}

NAN, INF = float("nan"), float("inf")


def fo_pool(f, z, o):
    a = torch.sigmoid(f)
    return a, (1 - a) * torch.tanh(z)


def sru_with_bias(x, f, bias):
    a = torch.sigmoid(f + bias)
    return a, (1 - a) * x


def rg_lru(r, i, x, decay):
    log_a = -8 * torch.sigmoid(r) * F.softplus(decay)
    a = torch.exp(log_a)
    return a, torch.sqrt(torch.clamp(1 - torch.exp(2 * log_a), min=1e-6)) * torch.sigmoid(i) * x


def rotating(size, angle, x):
    return torch.polar(torch.sigmoid(size), angle), x * torch.sqrt(1 - torch.sigmoid(size) ** 2)


def cartesian(x, y):
    z = torch.complex(x, y)
    return z.conj() * torch.exp(z), z.real * z / (1 + z * z.conj())


def modulus(z, w):
    return torch.abs(z) * w, torch.sgn(w.detach()) * torch.tanh(z) + torch.sin(w) * z.imag


def roots(z, w):
    return torch.sqrt(z) / torch.rsqrt(w), torch.log(z) - torch.cos(w) + z**3 + torch.sigmoid(z)


FUNCTIONS = {
    **{f"real: {name}": (function, "rr") for name, function in REAL.items()},
    "gilr": (gilr, "rr"),
    "gilr of complex": (gilr, "rc"),
    "lstm": (lstm, "rrrr"),
    "readout tanh": (output_tanh, "rrrrr"),
    "readout identity": (output_identity, "rrrrr"),
    "qrnn": (fo_pool, "rrr"),
    "sru": (sru, "rrrr"),
    "sru readout": (highway, "rrrrr"),
    "sru with bias": (sru_with_bias, "rrr"),
    "T-RNN": (t_rnn, "rr"),
    "minGRU": (min_gru, "rr"),
    "minLSTM": (min_lstm, "rrr"),
    "RG-LRU": (rg_lru, "rrrr"),
    "RG-LRU, clipped": (clipped_rg_lru, "rrrr"),
    "rotating": (rotating, "rrc"),
    "cartesian": (cartesian, "rr"),
    "modulus": (modulus, "cc"),
    "roots": (roots, "cc"),
    "error function": (lambda x, y: (torch.erf(x) * y, torch.special.erf(y)), "rr"),
}


@st.composite
def programs(draw):
    """Random programs of two or three inputs that use any of the real operations."""
    inputs = draw(st.integers(2, 3))
    values = [f"x{i}" for i in range(inputs)]
    steps = []
    for _ in range(draw(st.integers(1, 8))):
        value = st.sampled_from(values)
        number = st.sampled_from([0.5, -1.5, 2, 1])
        kind = draw(st.sampled_from(["unary", "binary", "where", "clamp", "pow", "number"]))
        if kind == "unary":
            # Sums and products of these stay finite, so that rounding errors stay comparable.
            step = draw(
                st.sampled_from(["sigmoid", "tanh", "sin", "cos", "softplus", "erf", "abs"])
            )
            step = gates.Step(step, (draw(value),))
        elif kind == "binary":
            operation = draw(st.sampled_from(["add", "sub", "mul", "minimum", "maximum"]))
            step = gates.Step(operation, (draw(value), draw(value)))
        elif kind == "number":
            operation = draw(st.sampled_from(["add", "sub", "mul"]))
            step = gates.Step(operation, (draw(number), draw(value)))
        elif kind == "where":
            steps.append(gates.Step("lt", (draw(value), draw(value))))
            step = gates.Step("where", (f"t{len(steps) - 1}", draw(value), draw(value)))
        elif kind == "clamp":
            step = gates.Step("clamp", (draw(value), -1, draw(st.sampled_from([None, 0.5]))))
        else:
            step = gates.Step("pow", (draw(value), draw(st.sampled_from([1, 2, 3]))))
        steps.append(step)
        values.append(f"t{len(steps) - 1}")
    outputs = (values[-1], draw(st.sampled_from(values)))
    return str(gates.Program(inputs, tuple(steps), outputs))
