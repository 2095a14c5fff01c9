"""Arguments and results of backends: one recurrence, its states and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.pytorch import constant
from lightning_lrnn.gates import IDENTITY, state_is_complex

__all__ = [
    "Gradients",
    "Problem",
    "States",
    "lie_as_chunks",
    "problem_of",
    "sequence",
    "sequence_dtype",
]


def sequence(pre: Sequence[Tensor]) -> Tensor:
    """The first pre-activation that varies over time: it has the shape (B, T, D) of the problem."""
    for p in pre:
        if p.ndim == 3:
            return p
    raise ValueError("none of the inputs is a sequence (B, T, D)")


def sequence_dtype(x: Tensor, *, is_complex: bool) -> torch.dtype:
    """Dtype of results of a gate or readout: that of the sequences, not of parameters."""
    if not is_complex or x.is_complex():
        return x.dtype
    return torch.promote_types(x.dtype, torch.complex64)  # which torch.compile can trace


def lie_as_chunks(tensors: Sequence[Tensor]) -> bool:
    """Whether these may be `chunk(len(tensors), -1)` of one tensor: by shape, strides and dtype."""
    first, *others = tensors
    shape, strides, dtype = first.shape, first.stride(), first.dtype
    *sizes, width = shape
    if strides[-1] != 1:
        return False
    for size, stride in zip(sizes, strides, strict=False):
        if size > 1 and stride < len(tensors) * width:
            return False
    for x in others:
        if x.shape != shape or x.stride() != strides or x.dtype != dtype:
            return False
    return True


class Problem(NamedTuple):
    """A gated recurrence, whose arguments fit together.

    Attributes:
        gate: program from `pre` to decay and impulse; `gates.IDENTITY` for the plain recurrence.
        readout: program from the state and `pre` to the output; "" if that is the state.
        pre: pre-activations, sequences (B, T, D) of any strides and parameters (D,) or (B, D).
        h0: initial state (B, D) in the dtype of the state, or None for zeros.
        lengths: int64 (B,), or None; steps t >= lengths[b] are padding.
        reset: bool (B, T), True where a document starts, or None.
        reverse: whether the scan runs from the last step to the first.
        exclusive: whether the hidden states are those before each step.
    """

    gate: str
    readout: str
    pre: Sequence[Tensor]
    h0: Tensor | None
    lengths: Tensor | None
    reset: Tensor | None
    reverse: bool
    exclusive: bool

    @property
    def x(self) -> Tensor:
        """The first sequence of `pre`: it has the shape (B, T, D)."""
        return sequence(self.pre)

    @property
    def is_plain(self) -> bool:
        """Whether decays and impulses are given, and the output is the state."""
        return self.gate == IDENTITY and not self.readout

    @property
    def hidden_dtype(self) -> torch.dtype:
        """Dtype of the hidden states."""
        complex_inputs = tuple([p.is_complex() for p in self.pre])
        return sequence_dtype(self.x, is_complex=_state_is_complex(self.gate, complex_inputs))

    @property
    def state_dtype(self) -> torch.dtype:
        """Dtype of h0 and of the final state, in which the recurrence is computed."""
        return state_dtype(self.hidden_dtype)

    def dense(self) -> Problem:
        """Returns the problem with contiguous h0, lengths and reset, and lengths as int64."""
        gate, readout, pre, h0, lengths, reset, reverse, exclusive = self
        if h0 is None and lengths is None and reset is None:
            return self
        h0 = None if h0 is None else h0.contiguous()
        lengths = None if lengths is None else lengths.to(torch.int64).contiguous()
        reset = None if reset is None else reset.contiguous()
        return Problem(gate, readout, pre, h0, lengths, reset, reverse, exclusive)

    @property
    def optional(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The initial state, lengths and reset."""
        return self.h0, self.lengths, self.reset

    def form(self) -> tuple[object, ...]:
        """All that a `Prepared` backend may depend on: its key in caches.

        Programs, flags, layouts of tensors, and the number of threads that share the work.
        """
        gate, readout, pre, h0, lengths, reset, reverse, exclusive = self
        form: list[object] = [gate, readout, reverse, exclusive, torch.get_num_threads()]
        for x in (h0, lengths, reset, *pre):
            if x is None:
                form.append(None)
            else:  # a tuple, since two of torch.Size compare slowly
                form += (tuple(x.shape), x.stride(), x.dtype, x.device, x.is_conj(), x.is_neg())
        return tuple(form)


problem_of: Callable[[tuple[Any, ...]], Problem] = partial(tuple.__new__, Problem)
"""The problem of all fields in their order, in half the time of `Problem`."""


class States(NamedTuple):
    """Results of a forward pass.

    Attributes:
        y: the output (B, T, D), contiguous, 0 at padded steps.
        h: the hidden states (B, T, D), which the backward pass reads; `y` itself without a readout.
        final: the state after the last step (B, D).
    """

    y: Tensor
    h: Tensor
    final: Tensor


class Gradients(NamedTuple):
    """Arguments of a backward pass, beside the problem and its hidden states.

    Attributes:
        y: gradient of the output (B, T, D), any strides.
        final: gradient of the final state (B, D), or None for zeros.
        out: where the gradients of `pre` go, if not into new tensors: (B, T, D) of equal strides,
            that of D 1; None in the places of parameters.
    """

    y: Tensor
    final: Tensor | None
    out: Sequence[Tensor | None] | None = None


@constant
def _state_is_complex(gate: str, complex_inputs: tuple[bool, ...]) -> bool:
    return state_is_complex(gate, complex_inputs)
