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
"""How a checkpoint of a model that was not switched gets into a switched one."""


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
        here, path = _plan(self), prefix.rstrip(".") or "the layer itself"
        if not marked(state_dict, prefix):
            # Not among the errors, which count where loading is not strict too.
            missing_keys.append(
                f"{path}: {_name(here)} in the place of torch.nn.{kind_of(self)}, which was not "
                f"switched in the model of this state_dict; load it before the switch, and carry "
                f"its weights ({CARRY})"
            )
        elif (there := read(state_dict, prefix)) != here:
            error_msgs.append(
                f"{path}: the state_dict is of {_name(there)} with {there.get('init_args')}, the "
                f"layer is {_name(here)} with {here['init_args']}; make the same switch, or load "
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
    """What `Layer.of` reads, which kind of layer was there before, and the form of the state."""
    plain = Layer(layer_class(module), module.options).plain()
    state = "strict" if module.strict_state else "carried"
    # As it is read again: a pair of numbers is a list.
    plan: dict[str, Any] = json.loads(json.dumps(plain))
    return plan | {"replaces": kind_of(module), "state": state}


def _name(plan: dict[str, Any]) -> str:
    return str(plan.get("class_path", "a layer that is not named")).rpartition(".")[2]


def become(old: nn.RNNBase, new: Stack) -> None:
    """Turns an old layer into its drop-in subclass in place, for all who hold a reference to it.

    Raises:
        SwitchError: as `drop_in`.
    """
    made = drop_in(old, new)
    vars(old).clear()
    object.__setattr__(old, "__class__", type(made))
    vars(old).update(vars(made))


def drop_in(old: nn.RNNBase, new: Stack) -> Stack:
    """Makes a drop-in layer of a new one, with all that a subclass has added to the old one.

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


def _base(kind: type[nn.Module]) -> type[nn.RNNBase]:
    return next(base for base in BASES if issubclass(kind, base))


_classes: dict[tuple[Any, Any], type[Stack]] = {}
_making = threading.Lock()


def _class(old: Any, new: Any) -> type[Stack]:
    """The drop-in subclass of two classes, the same one in all threads."""
    with _making:
        if (old, new) not in _classes:
            _classes[old, new] = _new_class(old, new)
        return _classes[old, new]


def _new_class(old: Any, new: Any) -> type[Stack]:
    base = _base(old)
    # What torch.nn.RNNBase overrides of torch.nn.Module is about its weights.
    plain = {
        name: getattr(nn.Module, name)
        for name in vars(nn.RNNBase)
        if name in vars(nn.Module) and name not in vars(Stack) and name not in vars(DropIn)
    }

    def reduce(self: Stack, protocol: Any) -> Any:
        # For pickle, which cannot find a class that is made here by its name.
        return _blank, (old, new), vars(self)

    # A local class: of two with one path, a short name in a config would mean neither.
    name = f"drop_in.<locals>.{new.__name__}"
    body = {**plain, "__module__": new.__module__, "__qualname__": name}
    body |= {"__doc__": new.__doc__, "__reduce_ex__": reduce}
    made: type[Stack] = type(new.__name__, (DropIn, new, base), body)
    if old is not base:
        body = {"__module__": old.__module__, "__qualname__": old.__qualname__}
        made = type(old)(old.__name__, (old, made), body)
    return made


def _blank(old: Any, new: Any) -> Stack:
    kind = _class(old, new)
    return kind.__new__(kind)
