"""What calls of one form have in common: found by their tensors, made at the first of them.

A call is checked and planned where none of its form was before; after that, a look at types,
dtypes, devices, shapes and strides finds its recipe (`recurrence`). What depends on values is
checked every time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from lightning_lrnn.backends.base import Prepared
from lightning_lrnn.core.problem import Problem, lie_as_chunks
from lightning_lrnn.core.pytorch import any_requires_grad, guard_of
from lightning_lrnn.gates import derivative

__all__ = [
    "FORMS",
    "LastPass",
    "Recipe",
    "by_form",
    "by_guard",
    "clear",
    "guard",
    "keep",
    "of",
    "remember",
]

Pass = TypeVar("Pass")

FORMS = 4096
"""Forms of problems of which recipes are kept: shapes are many where lengths vary."""
GUARDS = 8
"""Forms of one gate with its options that are told apart without making a key of them."""


class Recipe(NamedTuple):
    """How problems of one form are computed.

    Attributes:
        name: of the backend.
        backend: prepared for problems of this form; None if only the name is known.
        unread: indices of the pre-activations that the backward pass does not read.
        dtypes: of the pre-activations; () if they are not known.
        chunks: whether all are read, and those that vary over time may be chunks of one projection,
            see `lie_as_chunks`.
        dense: whether h0, lengths and reset are as backends read them, see `Problem.dense`.
        wants_gradient: whether one of the tensors does, which a guard tells; None if not known.
    """

    name: str
    backend: Prepared | None = None
    unread: tuple[int, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    chunks: bool = True
    dense: bool = False
    wants_gradient: bool | None = None


def of(name: str, backend: Prepared | None, problem: Problem) -> Recipe:
    """The recipe of problems of the form of this one."""
    pre = problem.pre
    kinds = tuple([p.is_complex() for p in pre])
    needed = derivative.needed(problem.gate, problem.readout, kinds)
    unread = tuple([i for i, used in enumerate(needed) if not used and pre[i].ndim == 3])
    sequences = [p for p in pre if p.ndim == 3]
    chunks = not unread and len(sequences) > 1 and lie_as_chunks(sequences)
    return Recipe(name, backend, unread, tuple([p.dtype for p in pre]), chunks)


Key = tuple[object, ...]
by_form: dict[Key, Recipe] = {}
"""By the backend that is asked for, which may be "auto", and all of the form."""
by_guard: dict[Key, list[tuple[Callable[..., bool], Recipe]]] = {}
"""By what the form has beside its tensors: those of a few forms, which look at tensors faster."""


def guard(key: Key, tensors: Sequence[Tensor], recipe: Recipe) -> None:
    """From now on tensors like these are told by a guard, if there are not too many yet."""
    guards = by_guard.setdefault(key, [])
    if len(guards) < GUARDS and (check := guard_of(*tensors)) is not None:
        wants_gradient = any_requires_grad(*tensors)
        guards.append((check, recipe._replace(wants_gradient=wants_gradient)))
    if len(by_guard) > FORMS:
        by_guard.clear()


def keep(problem: Problem, backend: str, recipe: Recipe) -> None:
    """For problems of the form of this one, whose arguments were checked."""
    remember(by_form, (backend, problem.form()), recipe)


def remember(cache: dict[Key, Any], key: Key, value: Any) -> None:
    """Keeps a value by a key; all others are forgotten when there are too many."""
    if len(cache) >= FORMS:
        cache.clear()
    cache[key] = value


class LastPass(Generic[Pass]):
    """What computed the last backward pass of a form: it computes one whose tensors lie alike.

    Hooks of autograd may hand out gradients of other strides than the time before.
    """

    _last: tuple[tuple[int, ...], Callable[..., bool], Pass] | None = None

    def find(self, pre: Sequence[Tensor], h: Tensor, dy: Tensor) -> Pass | None:
        """None if none is kept, or the tensors lie otherwise."""
        if self._last is None:
            return None
        read, like_these, last = self._last
        return last if like_these(*[pre[i] for i in read], h, dy) else None

    def keep(self, pre: Sequence[Tensor], h: Tensor, dy: Tensor, last: Pass) -> None:
        """For tensors like these, wherever they lie.

        Args:
            pre: the pre-activations; `h` in the place of one that is not read.
            h: the hidden states.
            dy: gradient of the output.
            last: what computes the pass.
        """
        read = tuple([i for i, p in enumerate(pre) if p is not h])  # a guard takes none twice
        guard = guard_of(*[pre[i] for i in read], h, dy)
        self._last = None if guard is None else (read, guard, last)


def clear() -> None:
    """Removes all recipes."""
    by_form.clear()
    by_guard.clear()
