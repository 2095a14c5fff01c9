"""The derivative of programs, against torch.func.vjp of the same function in float64.

Seen to fail: each rule of `derivative.RULES` replaced by one that returns zeros; `maximum` that
gives a tie to its first argument; `where` by multiplication; a gradient not accumulated.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gates import REAL
from torch.nn import functional as F

from lightning_lrnn import gates
from lightning_lrnn.gates import derivative as derivative
from lightning_lrnn.nn.cells.gilr import gilr
from lightning_lrnn.nn.cells.min_gru import min_gru
from lightning_lrnn.nn.cells.min_lstm import min_lstm
from lightning_lrnn.nn.cells.rg_lru import rg_lru as clipped_rg_lru
from lightning_lrnn.nn.cells.sru import highway, sru
from lightning_lrnn.nn.cells.surrogate import lstm, output_identity, output_tanh
from lightning_lrnn.nn.cells.t_rnn import t_rnn

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


def check(program: str, inputs: list[torch.Tensor]) -> None:
    """Ours against PyTorch's, with random gradients of the outputs."""
    parsed = gates.parse(program)

    def function(*x):
        return gates.evaluate(program, x)

    outputs, pullback = torch.func.vjp(function, *inputs)
    generator = torch.Generator().manual_seed(0)
    gradients = tuple(torch.randn(o.shape, dtype=o.dtype, generator=generator) for o in outputs)
    ours = derivative.pullback(program, tuple(x.is_complex() for x in inputs))
    assert str(gates.parse(ours)) == ours
    assert gates.parse(ours).inputs == parsed.inputs + len(outputs)
    got = gates.evaluate(ours, [*inputs, *gradients])
    for x, ours_x, theirs in zip(inputs, got, pullback(gradients), strict=True):
        # Outputs that are inputs have gradients of the gradients' own dtype.
        ours_x = torch.as_tensor(ours_x, dtype=x.dtype).expand(x.shape)
        torch.testing.assert_close(ours_x, theirs, rtol=1e-7, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize(("function", "kinds"), FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_agrees_with_pytorch(function, kinds):
    torch.manual_seed(0)
    dtypes = [torch.complex128 if kind == "c" else torch.float64 for kind in kinds]
    check(gates.trace(function), [torch.randn(50, dtype=d) for d in dtypes])


UNARY = ["neg", "sigmoid", "tanh", "exp", "log", "sin", "cos", "softplus", "relu", "silu", "gelu"]
UNARY += ["erf", "sqrt", "rsqrt", "abs", "detach"]
BINARY = ["add", "sub", "mul", "div", "minimum", "maximum"]
EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, 19.0, -19.0]


def power_of(exponent):
    return lambda x, y: (x**exponent, y)


def power_to(base):
    return lambda x, y: (base**x, y)


@pytest.mark.parametrize("operation", [*UNARY, *BINARY, "where", "clamp", "pow"])
def test_agrees_at_ties_saturation_and_zero(operation):
    if operation == "where":
        functions = [lambda x, y: (torch.where(x < y, x * y, x), torch.where(x == y, 1.0, y))]
    elif operation == "clamp":
        functions = [
            lambda x, y: (x.clamp(-1, 0.5), y.clamp(min=0)),
            lambda x, y: (x, y.clamp(max=1)),
        ]
    elif operation == "pow":
        functions = [
            *map(power_of, (0, 1, 2, 3, 0.5, 1.5, -1, -0.5)),
            *map(power_to, (1, 2, 0.5)),
        ]
    elif operation in UNARY:
        functions = [lambda x, y: (gates.OPERATIONS[operation](x), y)]
    else:
        functions = [lambda x, y: (gates.OPERATIONS[operation](x, y), x)]
    x, y = torch.tensor(list(product(EDGES, EDGES)), dtype=torch.float64).unbind(1)
    for function in functions:
        check(gates.trace(function), [x, y])


def test_saturated_gates_have_finite_gradients():
    # What a kernel computes in float32 at the ends of the range; the derivative is 0, not NaN.
    ends = torch.tensor([-INF, -1e4, -90.0, -20.0, 20.0, 90.0, 1e4, INF])
    for function, inputs in [(gilr, 2), (lstm, 4), (min_gru, 2)]:
        program = derivative.pullback(gates.trace(function), (False,) * inputs)
        pre = [ends] * (inputs - 1) + [torch.ones(8)]
        for gradient in gates.evaluate(program, [*pre, torch.ones(8), torch.ones(8)]):
            assert torch.as_tensor(gradient).isfinite().all()


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


@settings(max_examples=150)
@given(programs(), st.integers(0, 2**31))
def test_agrees_on_random_programs(program, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = gates.parse(program).inputs
    # Few values, so that ties occur.
    pre = [torch.randint(-4, 5, (30,), generator=generator).double() / 4 for _ in range(inputs)]
    check(program, pre)


def test_every_operation_has_a_rule_or_no_derivative():
    without = {"sgn", "detach", *gates.CONDITIONS}
    assert set(derivative.RULES) == set(gates.OPERATIONS) - without


def test_what_does_not_matter_has_gradient_zero():
    program = gates.trace(lambda x, y: (x, x.detach() * 2))
    assert derivative.pullback(program, (False, False)) == "x0 x1 x2 x3 -> -> x2 0"
