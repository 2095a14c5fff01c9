"""Optimizers made before a switch, which hold parameters that are in no model any more.

They get the new parameters in the same groups, or raise when they step: a layer that no optimizer
trains looks like one that learns badly.
"""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

from lightning_lrnn.switch.subclass import SwitchError

__all__ = ["exchange", "exchange_all", "left_behind", "replaced"]


@dataclass(frozen=True)
class _Weight:
    """The replacement of a parameter.

    Attributes:
        name: of the old parameter in its layer.
        layer: the new layer.
        names: of the new layer's parameters that replace those of the old one.
    """

    name: str
    layer: weakref.ref[nn.Module]
    names: tuple[str, ...]


_weights: Any = WeakIdKeyDictionary()
"""Replacements by old parameter, as long as there is a reference to it."""


def replaced(before: Mapping[str, nn.Parameter], layer: nn.Module) -> None:
    """Records that `layer` has new parameters in the place of old ones.

    `before`: the old ones by name, of this layer or of the one that it replaces.
    """
    after = dict(layer.named_parameters())
    unchanged = {id(p) for p in before.values()} & {id(p) for p in after.values()}
    layer_ref = weakref.ref(layer)
    names = tuple(n for n, p in after.items() if id(p) not in unchanged)
    for name, parameter in before.items():
        if id(parameter) not in unchanged:
            _weights[parameter] = _Weight(name, layer_ref, names)
    _watch_steps()


def exchange_all() -> None:
    """`exchange` in every optimizer that there is."""
    if len(_weights):
        # By type, since `isinstance` reads `__class__`, which makes lazy proxies load.
        alive = [o for o in gc.get_objects() if issubclass(type(o), Optimizer)]
        exchange(alive)


def exchange(optimizers: Iterable[Any]) -> None:
    """Replaces old parameters by new ones in their groups, and deletes the old ones' state.

    New matrices go where the old layer's matrices were, new vectors where its vectors were. If a
    layer's matrices, or its vectors, were in several groups, nothing is replaced, as the group of a
    new one is unknown.
    """
    for optimizer in optimizers:
        groups = optimizer.param_groups
        old = {id(w.layer()): w for group in groups for p in group["params"] if (w := _of(p))}
        for weight in old.values():
            if (layer := weight.layer()) is not None:
                _exchange(optimizer, layer, weight.names)


def left_behind(optimizer: Any) -> list[str]:
    """Names of old parameters that an optimizer still has and that get no gradient."""
    if not len(_weights):
        return []
    # An old layer that is still in use by itself has gradients.
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is None]
    return [w.name for p in params if (w := _of(p))]


def _of(parameter: Tensor) -> _Weight | None:
    weight: _Weight | None = _weights.get(parameter)
    return weight


def _exchange(optimizer: Any, layer: nn.Module, names: tuple[str, ...]) -> None:
    def old(parameter: Tensor) -> bool:
        weight = _of(parameter)
        return weight is not None and weight.layer() is layer

    groups = optimizer.param_groups
    held = {id(p) for group in groups for p in group["params"]}
    homes: dict[bool, set[int]] = {True: set(), False: set()}
    for k, group in enumerate(groups):
        for p in group["params"]:
            if old(p):
                homes[p.ndim >= 2].add(k)
    if any(len(home) > 1 for home in homes.values()):
        return
    parameters = dict(layer.named_parameters())
    additions: dict[int, list[tuple[str, Tensor]]] = {}
    for name in (name for name in names if name in parameters):
        matrix = parameters[name].ndim >= 2
        (k,) = homes[matrix] or homes[not matrix]
        if id(parameters[name]) not in held:
            additions.setdefault(k, []).append((name, parameters[name]))
    for k in set().union(*homes.values()):
        group, entries = groups[k], []
        labels = group.get("param_names", [""] * len(group["params"]))
        for label, p in zip(labels, group["params"], strict=True):
            if not old(p):
                entries.append((label, p))
                continue
            optimizer.state.pop(p, None)
            prefix = label.removesuffix(_of(p).name)  # type: ignore[union-attr]
            entries += [(prefix + name, new) for name, new in additions.pop(k, [])]
        # In place: others may hold the list.
        group["params"][:] = [p for _, p in entries]
        if "param_names" in group:
            group["param_names"][:] = [label for label, _ in entries]


def _refuse_left_behind(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if names := left_behind(optimizer):
        raise SwitchError(
            f"{type(optimizer).__name__} was made before the switch and has parameters that are in "
            f"no model any more ({', '.join(names)}), in several of its groups or where they could "
            f"not be found: make it after the switch, in `configure_optimizers` for instance, from "
            f"the parameters that the module has then"
        )


@functools.cache
def _watch_steps() -> None:
    """Registers the check of every optimizer's steps, at the first switch."""
    register_optimizer_step_pre_hook(_refuse_left_behind)
