"""Pointwise functions written once in PyTorch, and the canonical program each one stands for.

A gate maps pre-activations to the decay and impulse of a recurrence, a readout maps a state and the
same pre-activations to an output. `gate` traces such a function once into a *program*: one line of
text in static single assignment form,

    x0 x1 -> t0=sigmoid(x0); t1=sub(1,t0); t2=tanh(x1); t3=mul(t1,t2) -> t0 t3

Text passes through an operator's schema, `torch.compile` and `torch.export`; it is parsed, never
executed as Python. Two functions that compute the same in the same order have the same program.
"""

from lightning_lrnn.gates.operations import OPERATIONS
from lightning_lrnn.gates.program import (
    IDENTITY,
    SWAPPED,
    WANTED,
    Constant,
    GateError,
    Program,
    Step,
    check_outputs,
    complex_values,
    evaluate,
    inputs_of,
    parse,
    pruned,
    state_is_complex,
)
from lightning_lrnn.gates.tracing import Gate, gate, program_of, signature_of, trace

__all__ = [
    "IDENTITY",
    "OPERATIONS",
    "SWAPPED",
    "WANTED",
    "Constant",
    "Gate",
    "GateError",
    "Program",
    "Step",
    "check_outputs",
    "complex_values",
    "evaluate",
    "gate",
    "inputs_of",
    "parse",
    "program_of",
    "pruned",
    "signature_of",
    "state_is_complex",
    "trace",
]
