"""One recurrence over the ranks of a group, each of which holds a consecutive segment of time.

A segment maps the state that comes in to A * h + B, whatever h is (`backends.pairs`). So every rank
computes its A and B, all ranks get those of all by one collective, and each folds those of the
ranks before it into the state that comes in: then it runs its segment as ever. The gradient of the
state goes the other way in the same manner, c -> conj(A) * c + C, with the same A. A chain of sends
would make each rank wait for all before it.

A reset is a border that no state passes. A = 0 says that for finite states only, and a border at
the first step of a segment stops, in reverse, the state that leaves it. So the ranks exchange both
kinds of border beside A and B.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_lrnn.backends import pairs
from lightning_lrnn.backends.recipes import Recipe
from lightning_lrnn.core.masks import padding_mask
from lightning_lrnn.core.problem import Gradients, Problem
from lightning_lrnn.core.pytorch import constant, plain_eager
from lightning_lrnn.core.ranks import Ranks, all_gather
from lightning_lrnn.gates import derivative
from lightning_lrnn.ops import schema
from lightning_lrnn.ops.eager import compute
from lightning_lrnn.ops.first_order import first_order_gradients, zeros_of_output

__all__ = ["run"]


def run(ranks: Ranks, name: str, problem: Problem) -> tuple[Tensor, Tensor]:
    """The output of this rank's segment, and the final state of the whole sequence.

    The loss is the sum of the losses of all ranks, so that the gradients of the final state are
    added over them. The gradient of h0 is on the rank that is scanned first; on the others it is 0.

    Args:
        ranks: in order of time.
        name: of the backend.
        problem: this rank's segment: lengths and resets within it, h0 that of the whole sequence.
    """
    gate, readout, pre, h0, lengths, reset, reverse, exclusive = problem
    options = gate, readout, h0, lengths, reset, reverse, exclusive
    y, final = _over_ranks(*ranks, name, *options, *pre)
    return y, final


class _OverRanks(torch.autograd.Function):
    """Tensors by position: torch.compile looks into this function, and sees the collectives."""

    @staticmethod
    def forward(
        ctx: Any, group: str, rank: int, size: int, name: str, *arguments: Any
    ) -> tuple[Tensor, Tensor]:
        ranks = Ranks(group, rank, size)
        gate, readout, h0, lengths, reset, reverse, exclusive, *pre = arguments
        problem = Problem(gate, readout, tuple(pre), h0, lengths, reset, reverse, exclusive)
        A, B, given = _pair(name, problem)
        borders = _borders(ranks, problem)
        of_ranks, borders = _exchange(ranks, [A, B], borders)
        segments = _Segments(of_ranks[0], of_ranks[1], borders)
        h0 = torch.zeros_like(B) if h0 is None else h0
        h_in, final = _fold(segments, h0, rank, reverse=reverse)
        y, h = _states(name, problem._replace(h0=h_in), given)

        needed = _needed(gate, readout, tuple([p.is_complex() for p in pre]))
        saved = [p if p.ndim < 3 or n else None for p, n in zip(pre, needed, strict=True)]
        ctx.dtypes = [p.dtype for p in pre]
        ctx.ranks, ctx.name, ctx.has_h0 = ranks, name, arguments[2] is not None
        ctx.options = gate, readout, reverse, exclusive
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved, h, h_in, lengths, reset, of_ranks[0], borders)
        return y, final

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dh_final: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a recurrence over ranks has no second derivative: its gradient is asked for with "
                "`create_graph=True`; leave `group` out"
            )
        *saved, h, h_in, lengths, reset, A, borders = ctx.saved_tensors
        gate, readout, reverse, exclusive = ctx.options
        pre = [
            h.new_empty((), dtype=dtype).expand(h.shape) if p is None else p
            for p, dtype in zip(saved, ctx.dtypes, strict=True)
        ]
        problem = Problem(gate, readout, pre, h_in, lengths, reset, reverse, exclusive)
        dy = zeros_of_output(problem, h) if dy is None else dy
        dh_final = torch.zeros_like(h_in) if dh_final is None else dh_final
        C, given = _adjoint_impulse(ctx.name, problem, h, dy)
        of_ranks, _ = _exchange(ctx.ranks, [C, dh_final], None)
        segments = _Segments(A.conj(), of_ranks[0], borders)
        rank, size = ctx.ranks.rank, ctx.ranks.size
        c_in = _fold_back(segments, of_ranks[1].sum(0), rank, reverse=reverse)
        dpre, dh_in = _gradients(ctx.name, problem, h, Gradients(dy, c_in), given)
        dh0 = None
        if ctx.has_h0:
            dh0 = dh_in if rank == (size - 1 if reverse else 0) else torch.zeros_like(dh_in)
        return (*[None] * 6, dh0, *[None] * 4, *dpre)


_over_ranks: Callable[..., tuple[Tensor, Tensor]] = _OverRanks.apply


class _Segments(NamedTuple):
    """The affine maps of the state, A h + B, by the segments of all ranks, (size, B, D).

    `borders` (size, B, 2) is None without resets; True where the state starts anew in the segment,
    and where none leaves it.
    """

    A: Tensor
    B: Tensor
    borders: Tensor | None

    def apply(self, rank: int, h: Tensor) -> Tensor:
        """A h + B. A product of many decays overflows where the state, 0, would not."""
        A, B = self.A[rank], self.B[rank]
        after = torch.where(h == 0, B, A * h + B)
        return after if self.borders is None else torch.where(self.borders[rank, :, :1], B, after)

    def stopped(self, rank: int, h: Tensor) -> Tensor:
        """In reverse, the state beyond a segment's first step: 0 where a document starts."""
        return h if self.borders is None else h.masked_fill(self.borders[rank, :, 1:], 0)


def _fold(segments: _Segments, h: Tensor, rank: int, *, reverse: bool) -> tuple[Tensor, Tensor]:
    """The states before this rank's segment and after all."""
    order = range(len(segments.A))
    h_in = h
    for other in reversed(order) if reverse else order:
        if other == rank:
            h_in = h
        h = segments.stopped(other, segments.apply(other, h))
    return h_in, h


def _fold_back(segments: _Segments, c: Tensor, rank: int, *, reverse: bool) -> Tensor:
    """The gradient of the state after this rank's segment."""
    order = range(len(segments.A))
    for other in order if reverse else reversed(order):
        c = segments.stopped(other, c)
        if other == rank:
            return c
        c = segments.apply(other, c)
    return c


def _borders(ranks: Ranks, problem: Problem) -> Tensor | None:
    """(B, 2): whether the state starts anew in the segment, and whether none leaves it."""
    reset, lengths, reverse = problem.reset, problem.lengths, problem.reverse
    if reset is None:
        return None
    if lengths is not None:
        reset = reset & ~padding_mask(lengths, reset)[..., 0]
    if not reverse:
        anew = reset.any(1)
        return torch.stack([anew, torch.zeros_like(anew)], 1)
    # In reverse a document is entered from its end: a reset at the first step of the segment is
    # the border to the segment before, of which there is none before the first.
    at_first = reset[:, :1].any(1) if ranks.rank > 0 else reset.new_zeros(reset.shape[:1])
    return torch.stack([reset[:, 1:].any(1), at_first], 1)


def _exchange(
    ranks: Ranks, states: Sequence[Tensor], borders: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """States (B, D) and borders of all ranks, by one collective.

    Returns:
        (len(states), size, B, D) and (size, B, 2).
    """
    like = states[0]
    parts = [torch.view_as_real(s).flatten(1) if s.is_complex() else s for s in states]
    if borders is not None:
        parts.append(borders.to(parts[0].dtype))
    whole = all_gather(torch.cat(parts, 1), ranks)
    if borders is not None:
        whole, borders = whole[..., :-2], whole[..., -2:] != 0
    of_states = whole.unflatten(-1, (len(states), -1)).movedim(2, 0)
    if like.is_complex():
        of_states = torch.view_as_complex(of_states.unflatten(-1, (-1, 2)).contiguous())
    return of_states.contiguous(), borders


@constant
def _needed(gate: str, readout: str, complex_inputs: tuple[bool, ...]) -> tuple[bool, ...]:
    return derivative.needed(gate, readout, complex_inputs)


def _pair(name: str, problem: Problem) -> tuple[Tensor, Tensor, Tensor | None]:
    gate, readout, pre, _, lengths, reset, reverse, _ = problem
    if plain_eager(*pre, *problem.optional):
        return pairs.pair(name, problem)
    A, B, given = schema.pair(gate, readout, pre, lengths, reset, reverse, name)
    return A, B, given


def _adjoint_impulse(
    name: str, problem: Problem, h: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor | None]:
    gate, readout, pre, _, *rest = problem
    if plain_eager(*pre, h, dy):
        return pairs.adjoint_impulse(name, problem, h, dy)
    C, given = schema.adjoint_impulse(gate, readout, pre, h, dy, *rest, name)
    return C, given


def _states(name: str, problem: Problem, given: Tensor | None) -> tuple[Tensor, Tensor]:
    """The output and the hidden states, with what `_pair` has given."""
    if plain_eager(*problem.pre, *problem.optional):
        y, h, _ = compute(name, pairs.after(name, problem, given), problem)
        return y, h
    gate, readout, pre, *arguments = problem
    y, h, _ = schema.recurrence(gate, readout, pre, *arguments, name, given)
    return y, h if readout else y


def _gradients(
    name: str, problem: Problem, h: Tensor, gradients: Gradients, given: Tensor | None
) -> tuple[Sequence[Tensor], Tensor]:
    """Of the pre-activations and of h0, with what `_adjoint_impulse` has given."""
    if plain_eager(*problem.pre, h, gradients.y):
        recipe = Recipe(name, pairs.after(name, problem, given))
        return first_order_gradients(recipe, problem, h, gradients)
    gate, readout, pre, h0, *rest = problem
    dy, c_in, _ = gradients
    dpre, dh0 = schema.gated_backward(gate, readout, pre, h, h0, dy, c_in, *rest, name, given)
    return dpre, dh0
