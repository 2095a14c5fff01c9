"""The operators behind their schema: on real tensors, on fake ones, and their autograd.

torch.compile, torch.export and everything else that traces sees these, not the Python functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_lrnn.backends import Prepared, pairs
from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.evaluation import decays_and_impulses, read_out
from lightning_lrnn.core.problem import Gradients, Problem, sequence, sequence_dtype
from lightning_lrnn.core.pytorch import any_requires_grad, below_autograd, keys_below_autograd
from lightning_lrnn.gates import IDENTITY
from lightning_lrnn.ops import vmap as vmap  # registers
from lightning_lrnn.ops.direct_calls import (
    check_backward,
    check_forward,
    check_gated_backward,
    check_one_device,
)
from lightning_lrnn.ops.eager import compute
from lightning_lrnn.ops.first_order import compute_gradients, zeros_of_output
from lightning_lrnn.ops.functorch import differentiable
from lightning_lrnn.ops.schema import library, recurrence

__all__: list[str] = []


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    fields, name, given = arguments[:8], arguments[8], arguments[9:]
    problem = Problem(*fields)
    check_forward(problem, name)
    problem = problem.dense()
    y, h, final = compute(name, _after(name, problem, *given), problem)
    return y, h if problem.readout else y.new_empty(0), final


def _plain_backward(
    a: Tensor, h: Tensor, h0: Tensor | None, dy: Tensor | None, dh_final: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *flags, name = rest
    problem = Problem(IDENTITY, "", (a, a), h0, *flags)
    check_backward(problem, h, dy, dh_final, name)
    (da, db), dh0 = _gradients(name, problem, h, dy, dh_final)
    return da, db, dh0


def _gated_backward(
    gate: str, readout: str, pre: list[Tensor], h: Tensor, h0: Tensor | None, *rest: Any
) -> tuple[list[Tensor], Tensor]:
    (dy, dh_final, *flags), name, given = rest[:6], rest[6], rest[7:]
    problem = Problem(gate, readout, pre, h0, *flags)
    check_gated_backward(problem, h, dy, dh_final, name)
    return _gradients(name, problem, h, dy, dh_final, *given)


def _gradients(
    name: str,
    problem: Problem,
    h: Tensor,
    dy: Tensor | None,
    dh_final: Tensor | None,
    given: Tensor | None = None,
) -> tuple[list[Tensor], Tensor]:
    problem = problem.dense()
    backend = _after(name, problem, given, backward=True)
    dy = zeros_of_output(problem, h) if dy is None else dy
    return compute_gradients(backend, problem, h, Gradients(dy, dh_final))


def _after(
    name: str, problem: Problem, given: Tensor | None = None, *, backward: bool = False
) -> Prepared:
    """What computes a problem, perhaps with what `_pair` or `_adjoint_impulse` has given."""
    if given is not None and given.numel() > 0:
        words = pairs.kept_words(name, problem, backward=backward)
        found, device = (given.dtype, *given.shape), problem.x.device
        if found != (torch.int64, words) or given.device != device:
            raise ValueError(
                f"`given` must be what the pair of these steps has left, int64 ({words},) on "
                f"{device}, got {given.dtype} {tuple(given.shape)} on {given.device}"
            )
    return pairs.after(name, problem, given)


def _pair(gate: str, readout: str, pre: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    lengths, reset, reverse, name = rest
    problem = Problem(gate, readout, pre, None, lengths, reset, reverse, False)
    check_forward(problem, name)
    A, B, given = pairs.pair(name, problem.dense())
    return A, B, _or_nothing(given, B)


def _adjoint_impulse(
    gate: str, readout: str, pre: list[Tensor], h: Tensor, dy: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    *flags, name = rest
    problem = Problem(gate, readout, pre, None, *flags)
    check_gated_backward(problem, h, dy, None, name)
    C, given = pairs.adjoint_impulse(name, problem.dense(), h, dy)
    return C, _or_nothing(given, C)


def _or_nothing(given: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0, dtype=torch.int64) if given is None else given


def _forward_fake(
    gate: str, readout: str, pre: list[Tensor], *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    check_one_device(*pre, *rest[:3])
    x = sequence(pre)
    b = decays_and_impulses(gate, pre)[1]
    h = b.new_empty(x.shape, dtype=sequence_dtype(x, is_complex=b.is_complex()))
    final = b.new_empty((x.shape[0], x.shape[2]))
    if not readout:
        return h, h.new_empty(0), final
    return torch.empty_like(read_out(readout, h, pre, None)).contiguous(), h, final


def _plain_backward_fake(a: Tensor, h: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    check_one_device(a, h, *rest[:5])
    dh0 = h.new_empty((h.shape[0], h.shape[2]), dtype=state_dtype(h.dtype))
    return h.new_empty(h.shape), h.new_empty(h.shape), dh0


def _gated_backward_fake(
    gate: str, readout: str, pre: list[Tensor], h: Tensor, *rest: Any
) -> tuple[list[Tensor], Tensor]:
    check_one_device(*pre, h, *rest[:5])
    dh0 = h.new_empty((h.shape[0], h.shape[2]), dtype=state_dtype(h.dtype))
    return [p.new_empty(p.shape) for p in pre], dh0


def _pair_fake(
    gate: str, readout: str, pre: list[Tensor], *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    lengths, reset, reverse, name = rest
    check_one_device(*pre, lengths, reset)
    x = sequence(pre)
    b = decays_and_impulses(gate, pre)[1]
    A, B = (b.new_empty((x.shape[0], x.shape[2])) for _ in range(2))
    problem = Problem(gate, readout, pre, None, lengths, reset, reverse, False)
    words = pairs.kept_words(name, problem, backward=False)
    return A, B, x.new_empty(words, dtype=torch.int64)


def _adjoint_impulse_fake(
    gate: str, readout: str, pre: list[Tensor], h: Tensor, dy: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    *flags, name = rest
    check_one_device(*pre, h, dy, *flags[:2])
    C = h.new_empty((h.shape[0], h.shape[2]), dtype=state_dtype(h.dtype))
    problem = Problem(gate, readout, pre, None, *flags)
    words = pairs.kept_words(name, problem, backward=True)
    return C, h.new_empty(words, dtype=torch.int64)


def _autograd(
    keys: torch._C.DispatchKeySet, gate: str, readout: str, pre: list[Tensor], *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor]
    if torch.is_grad_enabled() and any_requires_grad(*pre, *arguments):
        result = differentiable(gate, readout, *arguments[:6], *pre)  # nothing depends on `given`
    else:
        with below_autograd():
            below = keys & keys_below_autograd
            result = recurrence.redispatch(below, gate, readout, pre, *arguments)
    return result


for _name, _function, _fake in (
    ("gated_recurrence", _forward, _forward_fake),
    ("recurrence_backward", _plain_backward, _plain_backward_fake),
    ("gated_backward", _gated_backward, _gated_backward_fake),
    ("pair", _pair, _pair_fake),
    ("adjoint_impulse", _adjoint_impulse, _adjoint_impulse_fake),
):
    library.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lightning_lrnn::{_name}", _fake, lib=library)
library.impl("gated_recurrence", _autograd, "Autograd", with_keyset=True)
