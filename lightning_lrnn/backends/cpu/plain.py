"""The plain recurrence on a CPU, where it is computed in another way than a gated one.

Rows are computed by the compiled steps of the gate that is the identity (`gated`), of 16 bits in
float32. With one or two features four steps of time, or eight, are combined in one vector (`fold`).
What is divided, and how, depends on the shape alone: the bits of a result depend neither on the
number of threads nor on their timing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightning_lrnn.backends.base import Pairs, Prepared
from lightning_lrnn.backends.cpu.gated import empty, gated
from lightning_lrnn.backends.cpu.huge_pages import resolved
from lightning_lrnn.backends.cpu.launch import Launch, spread
from lightning_lrnn.backends.cpu.plan import Code, Direction, code, divided, operations
from lightning_lrnn.backends.operands import STORAGE
from lightning_lrnn.core.problem import Gradients, Problem, States
from lightning_lrnn.gates import IDENTITY

__all__ = ["plain"]

SIXTEEN_BIT = (torch.float16, torch.bfloat16)
LONG = 1 << 15
"""Steps of all rows from which a vector of several pays for one more call."""
FOLD = 32
"""Bytes of the real parts of a vector that holds several steps: whatever registers the processor
has, so that bits do not depend on those."""
OF_FOLDED = 3
"""Times the operations of a step that is alone."""


def plain(problem: Problem, *, parallel: bool) -> Prepared:
    """What computes plain recurrences of this form."""
    if problem.x.dtype in SIXTEEN_BIT:
        return _Widened(problem, parallel=parallel)
    if parallel and parts(problem, problem.x.shape[1], backwards=problem.reverse):
        return _Folded()
    backend = gated(problem, parallel=parallel)
    assert backend is not None
    return backend


class _Widened:
    """16-bit sequences in float32, rounded once."""

    def __init__(self, problem: Problem, *, parallel: bool) -> None:
        self._inner = plain(_widened(problem), parallel=parallel)

    def forward(self, problem: Problem) -> States:
        h, _, final = self._inner.forward(_widened(problem))
        h = h.to(problem.x.dtype)
        return States(h, h, final)

    def backward(
        self, problem: Problem, h: Tensor, gradients: Gradients
    ) -> tuple[list[Tensor], Tensor]:
        a = problem.pre[0].float()
        wide = Gradients(gradients.y.float(), gradients.final)
        # The impulses may have no values.
        dpre, dh0 = self._inner.backward(problem._replace(pre=(a, a)), h.float(), wide)
        return [g.to(h.dtype) for g in dpre], dh0

    def pair(self, problem: Problem) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """See `Pairs`; in float32, as the state is."""
        inner = self._inner
        return inner.pair(_widened(problem)) if isinstance(inner, Pairs) else None

    def adjoint_impulse(
        self, problem: Problem, h: Tensor, dy: Tensor
    ) -> tuple[Tensor, Tensor | None] | None:
        """See `Pairs`; in float32, as the state is."""
        if not isinstance(self._inner, Pairs):
            return None
        a = problem.pre[0].float()
        return self._inner.adjoint_impulse(problem._replace(pre=(a, a)), h.float(), dy.float())


def _widened(problem: Problem) -> Problem:
    return problem._replace(pre=tuple(p.float() for p in problem.pre))


class _Folded:
    """Several steps in a vector, and what is left over step by step."""

    def forward(self, problem: Problem) -> States:
        a, b = map(resolved, problem.pre)
        reverse, exclusive = bool(problem.reverse), bool(problem.exclusive)
        h0, y = problem.h0, _empty(b)
        forward = Direction(backward=False, reverse=reverse, inside=True)
        final = b.new_zeros(b.shape[0], b.shape[2]) if h0 is None else h0.clone()
        for folds, steps in parts(problem, b.shape[1], backwards=reverse):
            inputs, output = [a[:, steps], b[:, steps]], y[:, steps]
            if folds:
                _fold_pass(inputs, [output], final, forward, exclusive=exclusive)
            else:
                _row_pass([*inputs, None, output], [3], final, forward, exclusive=exclusive)
        return States(y, y, final)

    def backward(
        self, problem: Problem, h: Tensor, gradients: Gradients
    ) -> tuple[list[Tensor], Tensor]:
        a, y, dy = resolved(problem.pre[0]), resolved(h), spread(resolved(gradients.y))
        reverse, exclusive = bool(problem.reverse), bool(problem.exclusive)
        da, db, h0 = _empty(y), _empty(y), problem.h0
        adjoint = Direction(backward=True, reverse=reverse, inside=exclusive)
        c = y.new_zeros(y.shape[0], y.shape[2])
        first = c.clone() if h0 is None else h0
        c = c if gradients.final is None else gradients.final.clone()
        # The first step of the forward pass finds the state before it in h0, no other does.
        whole = [(False, slice(None))]
        for folds, steps in parts(problem, y.shape[1] - 1, backwards=not reverse) or whole:
            inputs, outputs = [a[:, steps], dy[:, steps]], [da[:, steps], db[:, steps]]
            if folds:
                shift = 0 if exclusive else 1 if reverse else -1
                before = y[:, steps.start + shift : steps.stop + shift]
                _fold_pass([*inputs, before], outputs, c, adjoint, exclusive=exclusive)
            else:
                tensors = [inputs[0], None, inputs[1], y[:, steps], first, *outputs]
                _row_pass(tensors, [5, 6], c, adjoint, exclusive=exclusive)
        return [da, db], c


def _empty(like: Tensor) -> Tensor:
    B, T, D = like.shape
    return empty((B, T, D), (T * D, D, 1), like.dtype)


def parts(problem: Problem, most: int, *, backwards: bool) -> list[tuple[bool, slice]]:
    """Parts of the work, in order: whether a vector holds several steps, and which steps.

    Args:
        problem: a plain recurrence; with padding or resets there is no such part.
        most: steps, from the first one of the pass, that may be folded.
        backwards: whether the pass is from the last step to the first.

    Returns:
        [] if nothing is folded.
    """
    B, T, D = problem.x.shape
    columns = _columns(problem.x)
    several = columns // D
    possible = problem.lengths is None and problem.reset is None and several > 2
    if not possible or columns % D or B * T < LONG or most < several:
        return []
    end = most // several * several

    def steps(begin: int, end: int) -> slice:
        return slice(T - end, T - begin) if backwards else slice(begin, end)

    return [(True, steps(0, end))] + [(False, steps(end, T))] * (end < T)


def _row_pass(
    tensors: Sequence[Tensor | None],
    written: Sequence[int],
    h: Tensor,
    direction: Direction,
    *,
    exclusive: bool,
) -> None:
    """Step by step, with the steps of the gate that is the identity."""
    x, a = tensors[written[0]], tensors[0]
    assert x is not None and a is not None
    backward = direction.backward
    division = divided(x, operations(IDENTITY, "", backward=backward), parallel=True)
    compiled = code((IDENTITY, ""), [a, a], division, backward=backward, exclusive=exclusive)
    assert compiled is not None
    Launch(compiled, division, direction, tensors, written, h)(tensors, h, h)


def _columns(x: Tensor) -> int:
    """Of a vector that holds several steps."""
    return FOLD // (x.itemsize // 2 if x.is_complex() else x.itemsize)


@cache
def _fold(dtype: torch.dtype, *how: Any) -> Code:
    from lightning_lrnn.backends.cpu import fold, llvm  # llvmlite takes a while

    address = fold.address(fold.Fold(STORAGE[dtype], *how))
    return Code(address, llvm.vector_bytes(), dtype, dtype)


def _fold_pass(
    inputs: list[Tensor],
    outputs: list[Tensor],
    h: Tensor,
    direction: Direction,
    *,
    exclusive: bool,
) -> None:
    """All steps (B, T, D) as steps of W columns.

    Args:
        inputs: in the order of `fold`.
        outputs: likewise; written.
        h: state (B, D) before the walk; replaced by that after it.
        direction: of the pass.
        exclusive: of the forward pass.
    """
    B, T, D = outputs[0].shape
    W = _columns(h)

    def folded(x: Tensor) -> Tensor:
        if x.stride(1) != D or (D > 1 and x.stride(2) != 1):
            x = x.contiguous()
        return x.as_strided((B, T * D // W, W), (x.stride(0), W, 1))

    inputs, outputs = [folded(x) for x in inputs], [folded(x) for x in outputs]
    backward, reverse, _ = direction
    work = OF_FOLDED * operations(IDENTITY, "", backward=backward)
    division = divided(outputs[0], work, parallel=True)
    in_parts, rises = division.chunk < T * D // W, reverse is backward
    compiled = _fold(h.dtype, W, D, backward, exclusive, rises, in_parts)
    tensors, written = [*inputs, *outputs], range(len(inputs), len(inputs) + len(outputs))
    state = torch.cat([h] * (W // D), 1)
    whole = direction._replace(inside=True)
    Launch(compiled, division, whole, tensors, written, state)(tensors, state, state)
    h.copy_(state[:, :D])
