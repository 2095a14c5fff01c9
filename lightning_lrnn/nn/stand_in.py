"""A layer of this package that stands in for one of PyTorch, also for one with methods of its own.

Its class derives from both: `isinstance` says so, and in the method resolution order the layer of
this package comes just before `torch.nn.LSTM`. So a subclass of that keeps its methods, and its
`super().forward(...)` is the new layer's.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from lightning_lrnn.nn.stack import Stack

__all__ = ["SwitchError", "stand_in", "stand_in_class", "standing_in"]

BASES = (nn.LSTM, nn.GRU, nn.RNN)
WEIGHTS = {"_flat_weights", "_flat_weights_names", "_flat_weight_refs", "_all_weights"}
"""Attributes of a layer of PyTorch that say where its weights are."""


class SwitchError(ValueError):
    """A layer cannot be replaced as asked; the message says which, why, and what to do."""


def stand_in(old: nn.RNNBase, new: Stack) -> Stack:
    """Lets a new layer stand in for an old one, with all that a subclass has added to it.

    Raises:
        SwitchError: if the old layer has an attribute of its own by a name that the new one needs.
    """
    base: Any = _base(type(old))
    of_base = vars(base(1, 1)).keys()
    own = {k: v for k, v in vars(old).items() if k not in of_base}
    if clash := own.keys() & vars(new).keys():
        raise SwitchError(
            f"its class {type(old).__qualname__} has attributes by names that "
            f"{type(new).__name__} uses: {', '.join(sorted(clash))}"
        )
    kept = {k: v for k, v in vars(old).items() if k not in WEIGHTS}
    made = _blank(type(old), type(new))
    # Of hooks the old dictionaries: their handles know in which one they are.
    vars(made).update(kept | {k: v for k, v in vars(new).items() if "hook" not in k})
    made._non_persistent_buffers_set = set(old._non_persistent_buffers_set)
    own = {k: p for k, p in old._parameters.items() if k not in old._flat_weights_names}
    made._parameters = {**own, **new._parameters}
    made._buffers = {**old._buffers, **new._buffers}
    made._modules = {**old._modules, **new._modules}
    return made


def standing_in(module: nn.Module) -> bool:
    """Whether a module stands in for a layer of PyTorch."""
    return isinstance(module, Stack) and isinstance(module, nn.RNNBase)


def stand_in_class(module: Stack) -> type[Stack]:
    """The class of this package of a layer that stands in."""
    classes = type(module).__mro__
    return next(c for c in classes if issubclass(c, Stack) and not issubclass(c, nn.RNNBase))


def _base(kind: type[nn.Module]) -> type[nn.RNNBase]:
    return next(base for base in BASES if issubclass(kind, base))


@functools.cache
def _class(old: Any, new: Any) -> type[Stack]:
    base = _base(old)
    # What torch.nn.RNNBase overrides of torch.nn.Module is about its weights.
    plain = {
        name: getattr(nn.Module, name)
        for name in vars(nn.RNNBase)
        if name in vars(nn.Module) and name not in vars(Stack)
    }

    def reduce(self: Stack, protocol: Any) -> Any:
        # For pickle, which cannot find a class that is made here by its name.
        return _blank, (old, new), vars(self)

    # A local class: of two with one path, a short name in a config would mean neither.
    name = f"stand_in.<locals>.{new.__name__}"
    body = {**plain, "__module__": new.__module__, "__qualname__": name}
    body |= {"__doc__": new.__doc__, "__reduce_ex__": reduce}
    made: type[Stack] = type(new.__name__, (new, base), body)
    if old is not base:
        body = {"__module__": old.__module__, "__qualname__": old.__qualname__}
        made = type(old)(old.__name__, (old, made), body)
    return made


def _blank(old: Any, new: Any) -> Stack:
    kind = _class(old, new)
    return kind.__new__(kind)
