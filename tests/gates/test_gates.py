"""Gates: tracing into the canonical program, its evaluation, and the gated recurrence.

Seen to fail: pruning that keeps dead steps; `sub` with its arguments swapped; evaluation without
the operator fallback for a number in front; a readout that is not masked at padded steps.
"""

from __future__ import annotations

import math
import pickle
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gate_functions import REAL

import lightning_lrnn as lrnn
from lightning_lrnn import gates
from lightning_lrnn.core import reference
from lightning_lrnn.gates.advice import INSTEAD


@lrnn.gate
def gilr(f, z):
    a = torch.sigmoid(f)
    return a, (1 - a) * torch.tanh(z)


@lrnn.gate
def biased(f, z, bias):
    a = torch.sigmoid(f + bias)
    return a, (1 - a) * torch.tanh(z)


@lrnn.gate
def gated_output(h, f, z, bias):
    return torch.sigmoid(z) * torch.tanh(h) + 1


def test_the_program_is_canonical():
    assert gilr.program == (
        "x0 x1 -> t0=sigmoid(x0); t1=sub(1,t0); t2=tanh(x1); t3=mul(t1,t2) -> t0 t3"
    )
    assert gates.trace(lambda a, b: (a, b)) == gates.IDENTITY

    def same(f, z):
        unused = torch.exp(z)
        a = f.sigmoid()
        return a, (1 - f.sigmoid()) * z.tanh() if unused is not None else a

    assert gates.trace(same) == gilr.program
    assert str(gates.parse(gilr.program)) == gilr.program


@pytest.mark.parametrize("function", REAL.values(), ids=REAL.keys())
def test_evaluation_is_the_function(function):
    inputs = [torch.randn(7, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    program = gates.trace(function)
    assert str(gates.parse(program)) == program
    expected, evaluated = function(*inputs), gates.evaluate(program, inputs)
    for left, right in zip(expected, evaluated, strict=True):
        assert torch.equal(left, right)
    gradients = [
        torch.autograd.grad(sum(o.sum() for o in out), inputs, allow_unused=True)
        for out in (expected, evaluated)
    ]
    for left, right in zip(*gradients, strict=True):
        assert (left is None and right is None) or torch.equal(left, right)


def test_complex_gates():
    def rotate(r, phase):
        z = torch.polar(torch.sigmoid(r), phase)
        return z, torch.complex(z.real, -z.imag).conj() * 2

    inputs = [torch.randn(5, dtype=torch.float64) for _ in range(2)]
    for left, right in zip(
        rotate(*inputs), gates.evaluate(gates.trace(rotate), inputs), strict=True
    ):
        assert torch.equal(left.resolve_conj(), right.resolve_conj())


def test_what_a_gate_may_not_do_is_named_with_its_line():
    def sums_over_time(f, z):
        total = torch.cumsum(f, 1)
        return total, z

    with pytest.raises(
        lrnn.GateError, match=r"sums_over_time uses cumsum.*test_gates.py, line \d+"
    ):
        lrnn.gate(sums_over_time)

    def branches(f, z):
        return (f, z) if f.sum() > 0 else (z, f)

    with pytest.raises(lrnn.GateError, match="branches"):
        lrnn.gate(branches)
    with pytest.raises(lrnn.GateError, match="by position"):
        lrnn.gate(lambda *x: (x[0], x[1]))


TWO, VALUES = torch.tensor(2.0), torch.arange(3.0)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda f, z: (f * torch.tensor(2.0), z), r"shape \(\) .* line \d+\),.* write 2.0, or"),
        (lambda f, z: (TWO * f, z), r"none of its arguments .*: write 2.0, or make it one more"),
        (lambda f, z: (torch.clamp(f, min=TWO), z), r"shape \(\) .*write 2.0"),
        (lambda f, z: (f + torch.ones(4), z), r"shape \(4,\) .*write 1.0, or"),
        (lambda f, z: (f, torch.zeros(3)), r"shape \(3,\) .*write 0.0, or"),
        (lambda f, z: (f + VALUES, z), r"shape \(3,\) .* compiled in: make it one more argument"),
        (lambda f, z: (f * torch.nn.Parameter(VALUES), z), r"shape \(3,\) .* one more argument"),
        (lambda f, z: (f * VALUES.numpy(), z), r"shape \(3,\) .* one more argument"),
        (lambda f, z: (torch.ones_like(f), z), r"uses ones_like.*line \d+\): write 1.0. A gate"),
        (
            lambda f, z: (F.softplus(f, beta=2), z),
            r"softplus with beta=2 .*F.softplus\(b \* x\) / b",
        ),
        (lambda f, z: (F.softplus(f, 2), z), r"softplus with 2 \(.*: with `beta=b` it is F.soft"),
        (lambda f, z: (F.gelu(f, approximate="tanh"), z), r"gelu with approximate='tanh' \("),
        (lambda f, z: (torch.add(f, z, alpha=2), z), r"add with alpha=2 .* takes 2 arguments"),
        (lambda f, z: (torch.where(f > z), z), r"where with 1 arguments .* takes 3 arguments"),
        (lambda f, z, k=2.0: (f * k, z), r"argument of a gate is a tensor, and k=2.0 would be one"),
        (lambda f, z, k=None: (f, z), r"and k=None would be one too: write the number inside"),
    ],
)
def test_what_is_no_tensor_of_the_gate_and_no_option_of_an_operation(function, message):
    """Seen to fail: `_tensor_constant0`, a second argument that the compiled code left out."""
    with pytest.raises(lrnn.GateError, match=message):
        lrnn.gate(function)


def sets(f, z):
    z[z > 0] = 0
    return f, z


def has_branches(f, z):
    if f > 0:
        return f, z
    return z, f


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda f, z: (math.exp(f), z), r"uses math.exp, .*line \d+\): write torch.exp\. A gate"),
        (lambda f, z: (math.fabs(f), z), r"uses math.fabs, .*: write torch.abs\. A gate"),
        (lambda f, z: (math.atan(f), z), r"uses math.atan, .*line \d+\)\. A gate may use"),
        (
            lambda f, z: (np.exp(f), z),
            r"test_gates.py, line \d+\) gives a tensor to NumPy: write",
        ),
        (lambda f, z: (f, np.where(z > 0, z, 0)), r"line \d+\) gives a tensor to NumPy"),
        (lambda f, z: (f * f.shape[-1], z), r"uses \.shape, .*take a number from around it"),
        (lambda f, z: (f * z.size(0), z), r"uses size, .*take a number from around it"),
        (lambda f, z: (f, z * float(z.max())), r"line \d+\) calls float of a tensor"),
        (lambda f, z: (f * len(z), z), r"line \d+\) calls len of a tensor"),
        (lambda f, z: tuple(x for x in f), r"line \d+\) loops over a tensor"),
        (sets, r"test_gates.py, line \d+\) sets elements .* z = torch.where\(z > 0, 0, z\)"),
        (has_branches, r"has_branches .*test_gates.py, line \d+\) branches .*use torch.where"),
        (lambda f, z: (max(f, z), z), r"line \d+\) branches .*torch.maximum"),
        (lambda f, z: (torch.where((f > 0) & (z > 0), f, z), z), r"uses &, .*torch.where\(c, tor"),
        (lambda f, z: (torch.where(~(f > 0), f, z), z), r"uses ~, .*write torch.where\(c, y, x\)"),
        (
            lambda f, z: (torch.softmax(f, -1), z),
            r"uses softmax.*`pre_activations`, or leave",
        ),
        (lambda f, z: (F.layer_norm(f, (3,)), z), r"uses layer_norm.*not pointwise: put it into"),
        (lambda f, z: (f.double(), z), r"uses double, .*evaluated in the dtype of the state"),
        (lambda f, z: (round(f), z), r"line \d+\) cannot be traced: .*__round__"),
    ],
)
def test_a_message_says_where_and_what_to_write(function, message):
    """Seen to fail: `exp`, which a gate may use; a hint on branches, without a line, of NumPy."""
    with pytest.raises(lrnn.GateError, match=message):
        lrnn.gate(function)


NUMBERS = {"full_like", "ones_like", "zeros_like"}


@pytest.mark.parametrize("name", sorted(INSTEAD.keys() - NUMBERS))
def test_what_a_message_says_to_write_is_a_gate_of_the_same_values(name):
    """Seen to fail: the formula of `sinh` with a plus."""
    function = getattr(torch, name, None) or getattr(F, name)
    count = 3 if name in ("addcmul", "lerp") else 2 if name in ("max", "min", "rsub") else 1
    names = ", ".join("xyw"[:count])
    inputs = [torch.rand(9, dtype=torch.float64) * 3 + 0.5 for _ in range(count)]
    if name not in ("log1p", "log2", "log10"):
        inputs = [x - 2 for x in inputs]
    with pytest.raises(lrnn.GateError, match=re.escape(f": write {INSTEAD[name]}. A gate may")):
        gates.trace(eval(f"lambda {names}: function({names})", {"function": function}))
    formula = eval(f"lambda {names}: {INSTEAD[name]}")
    (value,) = gates.evaluate(gates.trace(formula), inputs)
    torch.testing.assert_close(value, function(*inputs))


def test_numbers_of_numpy_and_truth_values_are_numbers():
    program = gates.trace(lambda f, z: (torch.where(f > np.float32(0.5), True, f), z * np.int64(2)))
    assert program == gates.trace(lambda f, z: (torch.where(f > 0.5, 1, f), z * 2))
    assert str(gates.parse(program)) == program


def test_a_tensor_that_is_changed_in_place_is_refused():
    """Seen to fail: the result of the operation was taken, and the tensor as it was before."""

    def forgets(f, z):
        f.sigmoid_()
        return f, (1 - f) * z

    with pytest.raises(
        lrnn.GateError, match=r"forgets changes a tensor in place by sigmoid_ .*write sigmoid,"
    ):
        gates.trace(forgets)
    assert gates.trace(lambda f, z: (abs(f), f.__mul__(z))) == gates.trace(
        lambda f, z: (f.abs(), f * z)
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x0 -> t0=system(x0) -> t0",
        "x0 -> t0=exp(t1) -> t0",
        "x0 -> t1=exp(x0) -> t1",
        "x0 -> t0=exp(__import__) -> t0",
        "x0 ->  -> x1",
        "x0 -> t0=exp(x0,x0) -> t0",
    ],
)
def test_text_that_is_no_program_is_refused(text):
    with pytest.raises(lrnn.GateError, match="not a gate program"):
        gates.parse(text)


def test_gates_are_pickled_by_name():
    assert pickle.loads(pickle.dumps(gilr)) is gilr


def inputs_of(dtype=torch.float64, B=3, T=9, D=4):
    f, z = (torch.randn(B, T, D, dtype=dtype, requires_grad=True) for _ in range(2))
    bias = torch.randn(D, dtype=dtype, requires_grad=True)
    h0 = torch.randn(B, D, dtype=dtype, requires_grad=True)
    return f, z, bias, h0


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("masks", [False, True])
def test_gated_recurrence_is_gate_then_loop_then_readout(backend, device, exclusive, masks):
    f, z, bias, h0 = (x.detach().to(device).requires_grad_() for x in inputs_of())
    lengths = torch.tensor([0, 5, 9], device=device) if masks else None
    reset = (torch.rand(3, 9) < 0.3).to(device) if masks else None
    options = {"lengths": lengths, "reset": reset, "exclusive": exclusive}
    y, final = lrnn.gated_recurrence(
        biased, f, z, bias, h0=h0, readout=gated_output, backend=backend, **options
    )
    h, final_loop = reference.linear_recurrence(*biased(f, z, bias), h0, **options)
    expected = gated_output(h, f, z, bias)
    if masks:
        valid = torch.arange(9, device=device)[None, :, None] < lengths[:, None, None]
        expected = torch.where(valid, expected, 0)
    weights = torch.randn_like(y)
    outputs = [((y * weights).sum() + final.sum()), ((expected * weights).sum() + final_loop.sum())]
    torch.testing.assert_close(y, expected)
    gradients = [torch.autograd.grad(o, (f, z, bias, h0)) for o in outputs]
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right)

    op = torch.ops.lightning_lrnn.gated_recurrence
    y_op, _, final_op = op(
        biased.program, gated_output.program, [f, z, bias], h0, lengths, reset, False, exclusive,
        backend,
    )  # fmt: skip
    torch.testing.assert_close(y_op, y)
    through_op = torch.autograd.grad((y_op * weights).sum() + final_op.sum(), (f, z, bias, h0))
    for left, right in zip(through_op, gradients[0], strict=True):
        torch.testing.assert_close(left, right)


def test_nan_in_padded_pre_activations_reaches_nothing(backend):
    f, z, bias, h0 = (x.detach() for x in inputs_of())
    lengths = torch.tensor([0, 5, 9])
    results = []
    for poison in (0.0, float("nan")):
        leaves = [x.clone() for x in (f, z, bias, h0)]
        for x in leaves[:2]:
            x[0], x[1, 5:] = poison, poison
        leaves = [x.requires_grad_() for x in leaves]
        y, final = lrnn.gated_recurrence(
            biased,
            *leaves[:3],
            h0=leaves[3],
            readout=gated_output,
            lengths=lengths,
            backend=backend,
        )
        results.append([y, final, *torch.autograd.grad(y.sum() + final.sum(), leaves)])
    for left, right in zip(*results, strict=True):
        assert torch.equal(left, right)


def test_parameters_of_a_gate_may_differ_by_row(backend):
    f, z, _, h0 = inputs_of()
    rows = torch.randn(3, 4, dtype=torch.float64)
    y, _ = lrnn.gated_recurrence(biased, f, z, rows, h0=h0, backend=backend)
    for i in range(3):
        one, _ = lrnn.gated_recurrence(
            biased, f[i : i + 1], z[i : i + 1], rows[i], h0=h0[i : i + 1], backend=backend
        )
        torch.testing.assert_close(y[i : i + 1], one)
