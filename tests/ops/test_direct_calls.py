"""The library's operators called directly, with wrong arguments: each is told, none is computed.

Seen to fail: each check left out (most of these calls then read or write foreign memory, or end
the process); devices of `a` and `b` not compared.
"""

from __future__ import annotations

import pytest
import torch

import lightning_lrnn as lrnn
from lightning_lrnn import gates

B, T, D = 3, 5, 4
GATE = gates.trace(lambda f, z, w: (torch.sigmoid(f), z * w))
READOUT = gates.trace(lambda h, f, z, w: h * f)
OPERATORS = torch.ops.lightning_lrnn
WRONG = (TypeError, ValueError, lrnn.BackendError)


def x(*shape, dtype=torch.float32, device="cpu"):
    return torch.rand(shape or (B, T, D), device=device).to(dtype)


def resized(*shape):
    """A tensor whose storage was taken away, as sharding does."""
    tensor = x(*shape)
    tensor.untyped_storage().resize_(0)
    return tensor


def lengths(*shape, dtype=torch.int64):
    return torch.full(shape or (B,), T, dtype=dtype)


def reset(*shape, dtype=torch.bool):
    return torch.zeros(shape or (B, T), dtype=dtype)


def forward(**changes):
    arguments = {
        "gate": GATE, "readout": READOUT, "pre": [x(), x(), x(D)], "h0": x(B, D),
        "lengths": lengths(), "reset": reset(), "reverse": False, "exclusive": False,
        "backend": "scan",
    }  # fmt: skip
    return OPERATORS.gated_recurrence(*(arguments | changes).values())


def gated_backward(**changes):
    arguments = {
        "gate": GATE, "readout": READOUT, "pre": [x(), x(), x(D)], "h": x(), "h0": x(B, D),
        "dy": x(), "dh_final": x(B, D), "lengths": lengths(), "reset": reset(),
        "reverse": False, "exclusive": False, "backend": "scan",
    }  # fmt: skip
    return OPERATORS.gated_backward(*(arguments | changes).values())


def backward(**changes):
    arguments = {
        "a": x(), "y": x(), "h0": x(B, D), "dy": x(), "dh_final": x(B, D), "lengths": lengths(),
        "reset": reset(), "reverse": False, "exclusive": False, "backend": "scan",
    }  # fmt: skip
    return OPERATORS.recurrence_backward(*(arguments | changes).values())


def wrong_tensors(*shape):
    """For a tensor of a shape: its wrong forms."""
    return {
        "shorter": x(*shape[:-1], shape[-1] - 1),
        "fewer rows": x(shape[0] - 1, *shape[1:]),
        "of more dimensions": x(*shape, 1),
        "without dimensions": x(1)[0],
        "empty": x(0),
        "double": x(*shape, dtype=torch.float64),
        "half": x(*shape, dtype=torch.float16),
        "complex": x(*shape, dtype=torch.complex64),
        "integers": x(*shape, dtype=torch.int64),
        "on another device": x(*shape, device="meta"),
        "sparse": x(*shape).to_sparse(),
        "without storage": resized(*shape),
    }


SHARED = {
    "lengths": {
        "fewer": lengths(B - 1), "more": lengths(B + 1), "by step": lengths(B, T),
        "int32": lengths(dtype=torch.int32), "real": lengths(dtype=torch.float32),
        "on another device": lengths().to("meta"),
    },
    "reset": {
        "fewer": reset(B, T - 1), "fewer rows": reset(B - 1, T), "transposed": reset(T, B),
        "bytes": reset(dtype=torch.uint8), "real": reset(dtype=torch.float32),
        "on another device": reset().to("meta"),
    },
    "backend": {
        "auto": "auto", "unknown": "no such backend", "empty": "", "of another device": "cudnn",
    },
}  # fmt: skip
PRE = {
    "none": [],
    "one": [x()],
    "too many": [x()] * 4,
    "no sequence": [x(D)] * 3,
    "sequences that differ": [x(), x(B, T + 1, D), x(D)],
    "dtypes that differ": [x(), x(dtype=torch.float64), x(D)],
    "integers": [x(dtype=torch.int64)] * 3,
    "a parameter of integers": [x(), x(), x(D, dtype=torch.int64)],
    "a parameter that is short": [x(), x(), x(D - 1)],
    "a parameter of other rows": [x(), x(), x(B + 1, D)],
    "a parameter elsewhere": [x(), x(), x(D, device="meta")],
    "a sequence without storage": [x(), resized(B, T, D), x(D)],
    "four dimensions": [x(B, T, D, 1), x(), x(D)],
}
GATES = {
    "no program": "import os",
    "empty": "",
    "one value": "x0 x1 x2 -> -> x0",
    "of two inputs": gates.IDENTITY,
}
READOUTS = {
    "no program": "-> ->",
    "two values": "x0 x1 x2 x3 -> -> x0 x1",
    "of two": "x0 x1 -> -> x0",
}
STATE, SEQUENCE = wrong_tensors(B, D), wrong_tensors(B, T, D)
TABLE = {
    forward: {"gate": GATES, "readout": READOUTS, "pre": PRE, "h0": STATE, **SHARED},
    gated_backward: {
        "gate": GATES, "readout": READOUTS, "pre": PRE, "h": SEQUENCE, "h0": STATE,
        "dy": SEQUENCE, "dh_final": STATE, **SHARED,
    },
    backward: {
        "a": SEQUENCE, "y": SEQUENCE, "h0": STATE, "dy": SEQUENCE, "dh_final": STATE, **SHARED,
    },
}  # fmt: skip
CALLS = [
    pytest.param(call, name, value, id=f"{call.__name__}-{name}-{kind}")
    for call, arguments in TABLE.items()
    for name, values in arguments.items()
    for kind, value in values.items()
]


@pytest.mark.parametrize("call, name, value", CALLS)
def test_a_wrong_call_is_told(call, name, value):
    with pytest.raises(WRONG):
        call(**{name: value})


def test_right_calls_are_computed():
    assert len(CALLS) > 150
    for call in (forward, gated_backward, backward):
        outputs = [
            y for result in call() for y in (result if isinstance(result, list) else [result])
        ]
        assert all(y.isfinite().all() for y in outputs)
        call(h0=None, lengths=None, reset=None)
    empty = {"h0": x(0, D), "lengths": lengths(0), "reset": reset(0, T), "dy": None}
    gradients, dh0 = gated_backward(
        pre=[x(0, T, D), x(0, T, D), x(D)], h=x(0, T, D), dh_final=x(0, D), **empty
    )
    assert dh0.shape == (0, D) and not gradients[2].any()


@pytest.mark.parametrize("grad", [False, True])
def test_one_device(grad):
    here, elsewhere = x().requires_grad_(grad), x(device="meta").requires_grad_(grad)
    for a, b in ((here, elsewhere), (elsewhere, here), (elsewhere[0, 0], here)):
        with pytest.raises(TypeError, match="device"):
            lrnn.linear_recurrence(a, b)
    with pytest.raises(TypeError, match="is on"):
        lrnn.gated_recurrence(lambda f, z: (f, z), here, elsewhere)


def test_a_tensor_without_storage():
    for a, b in ((resized(B, T, D), x()), (x(), resized(B, T, D))):
        with pytest.raises(ValueError, match="storage"):
            lrnn.linear_recurrence(a, b, backend="scan")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_a_parameter_of_integers(dtype):
    gate = lrnn.gates.gate(lambda f, z, w: (torch.sigmoid(f), z * w))
    with pytest.raises(TypeError, match=r"pre\[2\].*floating"):
        lrnn.gated_recurrence(gate, x(), x(), torch.ones(D, dtype=dtype))


class Recurrence(torch.nn.Module):
    def forward(self, a, b, h0):
        return lrnn.linear_recurrence(a, b, h0, backend="scan")


def test_an_exported_program_given_other_dtypes():
    program = torch.export.export(Recurrence(), (x(), x(), x(B, D))).module(check_guards=False)
    program(x(), x(), x(B, D))
    for wrong in ((x(), x(), x(B, D).double()), (x().double(), x(), x(B, D))):
        with pytest.raises((*WRONG, AssertionError, RuntimeError)):
            program(*wrong)
