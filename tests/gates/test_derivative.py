"""The derivative of programs, against torch.func.vjp of the same function in float64.

Seen to fail: each rule of `OPERATIONS` replaced by one that returns zeros; `maximum` that
gives a tie to its first argument; `where` by multiplication; a gradient not accumulated.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from gate_functions import FUNCTIONS, INF, programs
from hypothesis import given, settings
from hypothesis import strategies as st

import lightning_lrnn as lrnn
from lightning_lrnn import gates
from lightning_lrnn.gates import derivative
from lightning_lrnn.nn.cells.gilr import gilr
from lightning_lrnn.nn.cells.min_gru import min_gru
from lightning_lrnn.nn.cells.surrogate import lstm


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
        functions = [lambda x, y: (gates.OPERATIONS[operation].meaning(x), y)]
    else:
        functions = [lambda x, y: (gates.OPERATIONS[operation].meaning(x, y), x)]
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


def test_a_real_decay_of_a_complex_input():
    """Its gradient comes as a complex number, as the state is one."""

    def function(z, scale):
        return torch.sigmoid(z.imag), z * scale

    z = torch.randn(2, 7, 5, dtype=torch.complex64, requires_grad=True)
    scale = torch.randn(5, requires_grad=True)
    actual, expected = (
        torch.autograd.grad(
            lrnn.gated_recurrence(gate, z, scale, backend="scan")[0].abs().sum(), (z, scale)
        )
        for gate in (lrnn.gate(function), function)
    )
    torch.testing.assert_close(actual, expected)


@settings(max_examples=150)
@given(programs(), st.integers(0, 2**31))
def test_agrees_on_random_programs(program, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = gates.parse(program).inputs
    # Few values, so that ties occur.
    pre = [torch.randint(-4, 5, (30,), generator=generator).double() / 4 for _ in range(inputs)]
    check(program, pre)


def test_what_does_not_matter_has_gradient_zero():
    program = gates.trace(lambda x, y: (x, x.detach() * 2))
    assert derivative.pullback(program, (False, False)) == "x0 x1 x2 x3 -> -> x2 0"
