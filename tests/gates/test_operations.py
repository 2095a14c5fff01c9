"""Every row of the table of operations: a rule or none, C++ and vector code of it and its rule.

Seen to fail: a row without rule; `pointwise::erf` renamed; `Lanes.silu` renamed; `exp` for real
numbers only.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import lightning_lrnn as lrnn
from lightning_lrnn import gates
from lightning_lrnn.backends.cpu import codegen as of_cpu
from lightning_lrnn.backends.cuda import codegen as of_cuda
from lightning_lrnn.backends.operands import Operand

POINTWISE = Path(of_cuda.__file__).parents[3] / "cuda_src/pointwise.cuh"

every_operation = pytest.mark.parametrize("name", gates.OPERATIONS)


def use_of(name: str):
    """A function of two tensors that uses an operation, and how many of them are complex."""
    meaning = gates.OPERATIONS[name].meaning
    if name == "clamp":
        return lambda x, y: meaning(x, -0.5, 0.5) * y
    if name == "pow":
        return lambda x, y: meaning(x, 1.5) * y + meaning(2, y)
    if name == "where":
        return lambda x, y: meaning(y.real > 0, x, y)
    if gates.OPERATIONS[name].compares:
        return lambda x, y: torch.where(meaning(x, y), x, y)
    if name == "imag":
        return lambda x, y: meaning(x) * y
    if name in ("complex", "polar"):
        return lambda x, y: (lambda z: z.real * z.imag)(meaning(x, y))
    if name in ("add", "sub", "mul", "div", "minimum", "maximum"):
        return meaning
    return lambda x, y: meaning(x) * y


def test_what_has_no_rule():
    without = {name for name, row in gates.OPERATIONS.items() if row.rule is None}
    assert without == {"sgn", "detach", "lt", "le", "gt", "ge", "eq", "ne"}


@every_operation
@pytest.mark.parametrize("storage", ["f32", "c64"])
def test_its_cpp_is_there(name, storage):
    operands = (Operand(storage, varies=True),) * 2
    use, there = use_of(name), set(re.findall(r"\b(\w+)\(", POINTWISE.read_text()))
    program = gates.trace(lambda x, y: (use(x, y), y))
    for step in ("forward", "backward"):
        if storage == "c64" and not gates.OPERATIONS[name].of_complex:
            with pytest.raises(gates.GateError, match=f"{name} is not defined for complex"):
                of_cuda.fused(program, "", operands, step)
        else:
            source = of_cuda.fused(program, "", operands, step).source
            assert set(re.findall(r"pointwise::(\w+)", source)) <= there


@every_operation
def test_its_vector_code_is_there(name):
    """A gate with it is compiled, forward and backward, and gives what PyTorch evaluates."""
    use = use_of(name)

    def function(x, y):
        return torch.sigmoid(x.real), use(x, y)

    dtype, storage = (torch.complex64, "c64") if name == "imag" else (torch.float32, "f32")
    operands = (Operand(storage, varies=True),) * 2
    if reasons := of_cpu.uncompiled(gates.trace(function), "", operands):
        assert name == "polar", reasons
        return
    pre = [torch.rand(2, 7, 5, dtype=dtype, requires_grad=True) for _ in range(2)]
    actual, _ = lrnn.gated_recurrence(lrnn.gate(function), *pre, backend="scan")
    # Without `@gate` PyTorch evaluates it.
    expected, _ = lrnn.gated_recurrence(function, *pre, backend="scan")
    torch.testing.assert_close(actual, expected)
    gradient = torch.rand(2, 7, 5, dtype=actual.dtype)
    ours, theirs = (torch.autograd.grad(y, pre, gradient) for y in (actual, expected))
    torch.testing.assert_close(ours, theirs)
