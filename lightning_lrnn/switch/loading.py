"""Loads the `state_dict` of a switched model into one that is not switched.

The `state_dict` has a mark for every switched layer, see `marker`. While any caller of
`nn.Module.load_state_dict` loads it, a `torch.nn.LSTM`, `GRU` or `RNN` at the same path becomes
that layer. Without this such loading fails; a `state_dict` without marks is loaded as ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lightning_lrnn.nn.layer import Layer
from lightning_lrnn.nn.stack import Stack
from lightning_lrnn.switch import optimizers
from lightning_lrnn.switch.marker import marked, read, take
from lightning_lrnn.switch.replace import FIXED, SwitchError, _make
from lightning_lrnn.switch.subclass import DropIn, become, kind_of

__all__: list[str] = []

_load_unmarked: Any = nn.RNNBase._load_from_state_dict


def _load(self: Any, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    if marked(state_dict, prefix):
        errors: list[str] = args[-1]
        try:
            _become(self, read(state_dict, prefix))
        except ValueError as error:
            path = prefix.rstrip(".") or "the layer itself"
            errors.append(f"{path} was switched by lightning_lrnn where it was saved: {error}")
            take(state_dict, prefix)
        else:
            DropIn._load_from_state_dict(self, state_dict, prefix, *args)
            return
    _load_unmarked(self, state_dict, prefix, *args)


def _become(old: Any, plan: Mapping[str, Any]) -> None:
    """Makes a layer of PyTorch the one that a mark names."""
    if not plan:
        raise SwitchError("this state_dict does not say as what, or has lost most of its keys")
    if (replaces := plan.get("replaces")) != kind_of(old):
        raise SwitchError(f"in the place of torch.nn.{replaces}, here is a torch.nn.{kind_of(old)}")
    if any(type(p) is not nn.Parameter for p in old.parameters()):
        raise SwitchError(
            "here its weights are divided among devices already; switch it before, by "
            "lightning_lrnn.SwitchRNN or replace_rnn"
        )
    layer = Layer.of({k: v for k, v in plan.items() if k not in ("replaces", "state")}, FIXED)
    if not issubclass(layer.layer_class, Stack):
        raise SwitchError(f"{layer.path} is no layer of lightning_lrnn.nn")
    before, weight = dict(old.named_parameters()), next(old.parameters())
    # Loading draws no random numbers, whatever the new layer starts with.
    with torch.random.fork_rng([weight.device] if weight.is_cuda else []):
        become(old, _make(old, layer, "auto", plan.get("state", "carried")))
    optimizers.replaced(before, old)
    del before, weight
    optimizers.exchange_all()


nn.RNNBase._load_from_state_dict = _load  # type: ignore[method-assign,assignment]
