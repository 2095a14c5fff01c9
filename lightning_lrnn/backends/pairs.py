"""What a segment of time does to the state that comes in, h -> A h + B.

What a backend has prepared may compute that (`base.Pairs`). Else A and B are final states, B of the
recurrence from 0 and A of its decays alone from 1. Backward, the gradient c of the state goes
through the same segment the other way, c -> conj(A) * c + C.

A backend may keep pairs of parts of the segment, and is given them when it runs the segment
(`base.GivesStates`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_lrnn.backends import load, prepared
from lightning_lrnn.backends.base import GivesStates, Pairs, Prepared
from lightning_lrnn.core.problem import Gradients, Problem
from lightning_lrnn.gates import parse, pruned

__all__ = ["adjoint_impulse", "after", "kept_words", "pair"]


def pair(name: str, problem: Problem) -> tuple[Tensor, Tensor, Tensor | None]:
    """A and B (B, D) of a segment, in the dtype of the state, and what `after` takes for forward.

    A row in which the state starts anew has A = 0; one without valid steps has A = 1 and B = 0.

    Args:
        name: of the backend.
        problem: the segment; values of h0, readout and `exclusive` have no influence.
    """
    problem = problem._replace(h0=None)
    backend = prepared(name, problem)
    own = backend.pair(problem) if isinstance(backend, Pairs) else None
    if own is not None:
        return own
    alone = problem._replace(readout="", exclusive=False)
    B = prepared(name, alone).forward(alone).final
    decays = _decays(alone)
    ones = torch.ones(B.shape, dtype=decays.state_dtype, device=B.device)
    decays = decays._replace(h0=ones)
    A = prepared(name, decays).forward(decays).final
    return A.to(B.dtype), B, None


def adjoint_impulse(
    name: str, problem: Problem, h: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor | None]:
    """C (B, D): the gradient of the state that came in, were the final state of no influence.

    And what `after` takes for backward.

    Args:
        name: of the backend.
        problem: the segment, as in the forward pass.
        h: its hidden states.
        dy: gradient of its output.
    """
    backend = prepared(name, problem)
    own = backend.adjoint_impulse(problem, h, dy) if isinstance(backend, Pairs) else None
    if own is not None:
        return own
    return backend.backward(problem, h, Gradients(dy, None))[1], None


def after(name: str, problem: Problem, given: Tensor | None) -> Prepared:
    """What runs a segment, of which `pair` or, for backward, `adjoint_impulse` has left `given`."""
    backend = prepared(name, problem)
    if given is None or given.numel() == 0:  # an operator's word for None
        return backend
    assert isinstance(backend, GivesStates)
    return backend.after(given.contiguous())


def kept_words(name: str, problem: Problem, *, backward: bool) -> int:
    """The length of what `pair` or, backward, `adjoint_impulse` leaves; 0 for nothing.

    Args:
        name: of the backend.
        problem: of which nothing but shapes and dtypes is read.
        backward: which of them.
    """
    words: Callable[..., int] | None = getattr(load(name), "kept_words", None)
    if words is None or problem.x.numel() == 0:
        return 0
    return words(problem, backward=backward)


def _decays(problem: Problem) -> Problem:
    """The same decays with impulses of 0."""
    x, pre = problem.x, problem.pre
    zeros = x.new_zeros(x.shape[2])
    if problem.is_plain:
        return problem._replace(pre=(pre[0], zeros.expand(x.shape)))
    program = parse(problem.gate)
    outputs = program.outputs[0], f"x{program.inputs}"
    gate = pruned(program._replace(inputs=program.inputs + 1, outputs=outputs))
    return problem._replace(gate=str(gate), pre=(*pre, zeros))
