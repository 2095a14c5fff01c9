"""Drop-in subclasses: a layer of this package that is also one of PyTorch, or of a project's class.

Its class derives from both: `isinstance` says so, and in the method resolution order the layer of
this package comes just before `torch.nn.LSTM`. So a subclass of that keeps its methods, and its
`super().forward(...)` is the new layer's.
"""

from __future__ import annotations

import json
import threading
from typing import Any, TypeGuard

from torch import nn

from lightning_lrnn.nn.layer import Layer
from lightning_lrnn.nn.stack import Stack
from lightning_lrnn.switch.marker import GUARD, MARKER, marked, read, take, write

__all__ = ["CARRY", "SwitchError", "become", "drop_in", "is_drop_in", "kind_of", "layer_class"]

BASES = (nn.LSTM, nn.GRU, nn.RNN)
WEIGHTS = {"_flat_weights", "_flat_weights_names", "_flat_weight_refs", "_all_weights"}
"""Attributes of a layer of PyTorch that say where its weights are."""


CARRY = (
    "load_from_checkpoint, then fit without ckpt_path, with SwitchRNN(weights='carried'), so that "
    "the new layers learn from the old ones"
)
"""Advice: how to load a checkpoint of an unswitched model into a switched one."""


class SwitchError(ValueError):
    """A layer cannot be replaced as asked; the message says which, why, and what to do."""


class DropIn(nn.Module):
    """Base of drop-in subclasses: their `state_dict` says which layer they are, see `marked`."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        write(destination, prefix, _plan(self))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own, path = _plan(self), prefix.rstrip(".") or "the layer itself"
        if not marked(state_dict, prefix):
            # Not an error message, which would also raise where loading is not strict.
            missing_keys.append(
                f"{path}: {_name(own)} in the place of torch.nn.{kind_of(self)}, which was not "
                f"switched in the model of this state_dict; load it before the switch, and carry "
                f"its weights ({CARRY})"
            )
        elif (saved := read(state_dict, prefix)) != own:
            error_msgs.append(
                f"{path}: the state_dict is of {_name(saved)} with {saved.get('init_args')}, the "
                f"layer is {_name(own)} with {own['init_args']}; make the same switch, or load "
                f"it into a model that is not switched, which then gets the layers that were saved"
            )
        take(state_dict, prefix)
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )


# torch.distributed.checkpoint asks for an attribute by every key.
setattr(DropIn, MARKER, None)
setattr(DropIn, GUARD, None)


def _plan(module: Any) -> dict[str, Any]:
    """The plan in a mark: what `Layer.of` reads, the replaced class, the form of the state."""
    plain = Layer(layer_class(module), module.options).plain()
    state = "strict" if module.strict_state else "carried"
    # As JSON returns it, where a tuple is a list.
    plan: dict[str, Any] = json.loads(json.dumps(plain))
    return plan | {"replaces": kind_of(module), "state": state}


def _name(plan: dict[str, Any]) -> str:
    return str(plan.get("class_path", "a layer that is not named")).rpartition(".")[2]


def become(old: nn.RNNBase, new: Stack) -> None:
    """Turns an old layer into its drop-in subclass in place, for all who hold a reference to it.

    Raises:
        SwitchError: as `drop_in`.
    """
    layer = drop_in(old, new)
    vars(old).clear()
    object.__setattr__(old, "__class__", type(layer))
    vars(old).update(vars(layer))


def drop_in(old: nn.RNNBase, new: Stack) -> Stack:
    """Makes a drop-in layer of a new one, with all that a subclass has added to the old one.

    Raises:
        SwitchError: if the old layer has an attribute of its own by a name that the new one needs.
    """
    base: Any = _base(type(old))
    base_names = vars(base(1, 1)).keys()
    own = {k: v for k, v in vars(old).items() if k not in base_names}
    if clash := own.keys() & vars(new).keys():
        raise SwitchError(
            f"its class {type(old).__qualname__} has attributes by names that "
            f"{type(new).__name__} uses: {', '.join(sorted(clash))}"
        )
    inherited = {k: v for k, v in vars(old).items() if k not in WEIGHTS}
    layer = _blank(type(old), type(new))
    # The old dictionaries of hooks, to which the handles of hooks refer.
    vars(layer).update(inherited | {k: v for k, v in vars(new).items() if "hook" not in k})
    layer._non_persistent_buffers_set = set(old._non_persistent_buffers_set)
    own = {k: p for k, p in old._parameters.items() if k not in old._flat_weights_names}
    layer._parameters = {**own, **new._parameters}
    layer._buffers = {**old._buffers, **new._buffers}
    layer._modules = {**old._modules, **new._modules}
    return layer


def is_drop_in(module: nn.Module) -> TypeGuard[Stack]:
    """Whether a module is a drop-in subclass of a layer of PyTorch."""
    return isinstance(module, DropIn)


def kind_of(module: nn.Module) -> str:
    """The name of the layer of PyTorch that a module is, or is a drop-in for."""
    return _base(type(module)).__name__


def layer_class(module: Stack) -> type[Stack]:
    """The class of this package of a drop-in layer."""
    classes = type(module).__mro__
    return next(c for c in classes if issubclass(c, Stack) and not issubclass(c, nn.RNNBase))


def _base(cls: type[nn.Module]) -> type[nn.RNNBase]:
    return next(base for base in BASES if issubclass(cls, base))


_classes: dict[tuple[Any, Any], type[Stack]] = {}
_lock = threading.Lock()


def _class(old: Any, new: Any) -> type[Stack]:
    """The drop-in subclass of two classes, the same one in all threads."""
    with _lock:
        if (old, new) not in _classes:
            _classes[old, new] = _new_class(old, new)
        return _classes[old, new]


def _new_class(old: Any, new: Any) -> type[Stack]:
    base = _base(old)
    # Methods that torch.nn.RNNBase overrides for its flat weights, from torch.nn.Module instead.
    overrides = {
        name: getattr(nn.Module, name)
        for name in vars(nn.RNNBase)
        if name in vars(nn.Module) and name not in vars(Stack) and name not in vars(DropIn)
    }

    def reduce(self: Stack, protocol: Any) -> Any:
        # For pickle, which cannot find a class that is made here by its name.
        return _blank, (old, new), vars(self)

    # Named as a local class: two classes with one path would make a short name ambiguous.
    name = f"drop_in.<locals>.{new.__name__}"
    body = {**overrides, "__module__": new.__module__, "__qualname__": name}
    body |= {"__doc__": new.__doc__, "__reduce_ex__": reduce}
    drop_in_class: type[Stack] = type(new.__name__, (DropIn, new, base), body)
    if old is not base:
        body = {"__module__": old.__module__, "__qualname__": old.__qualname__}
        drop_in_class = type(old)(old.__name__, (old, drop_in_class), body)
    return drop_in_class


def _blank(old: Any, new: Any) -> Stack:
    cls = _class(old, new)
    return cls.__new__(cls)
