"""What calls of one form have in common: found by their tensors, made at the first of them.

A call is checked and planned where none of its form was before; after that, a look at types,
dtypes, devices, shapes and strides finds its recipe (`recurrence`). What depends on values is
checked every time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_lrnn.backends.base import Prepared
from lightning_lrnn.core.problem import Problem, lie_as_chunks
from lightning_lrnn.core.pytorch import any_requires_grad, guard_of
from lightning_lrnn.gates import derivative

__all__ = [
    "FORMS",
    "Recipe",
    "by_form",
    "by_guard",
    "clear",
    "guard",
    "keep",
    "of",
    "remember",
]

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


def clear() -> None:
    """Removes all recipes."""
    by_form.clear()
    by_guard.clear()
