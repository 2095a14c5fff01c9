"""Optimizers that were made before a switch hold parameters that are in no model any more.

They get the new ones in the same places, or end with an error when they step: a layer that is never
trained looks like one that learns badly.
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
    """What became of a parameter.

    Attributes:
        name: it had in its layer.
        layer: that is there now.
        names: of the parameters that it has in the place of the old layer's.
    """

    name: str
    layer: weakref.ref[nn.Module]
    names: tuple[str, ...]


_weights: Any = WeakIdKeyDictionary()
"""By parameter of a layer that was replaced, as long as somebody holds it."""


def replaced(before: Mapping[str, nn.Parameter], layer: nn.Module) -> None:
    """Notes that a layer has others in the place of parameters.

    Args:
        before: its parameters by name, or those of the layer that was in its place.
        layer: with the parameters of now.
    """
    now = dict(layer.named_parameters())
    kept = {id(p) for p in before.values()} & {id(p) for p in now.values()}
    there, names = weakref.ref(layer), tuple(n for n, p in now.items() if id(p) not in kept)
    for name, parameter in before.items():
        if id(parameter) not in kept:
            _weights[parameter] = _Weight(name, there, names)
    _watch_steps()


def exchange_all() -> None:
    """`exchange` in every optimizer that there is."""
    if len(_weights):
        # By type, since `isinstance` would ask objects that make themselves up when asked.
        found = [o for o in gc.get_objects() if issubclass(type(o), Optimizer)]
        exchange(found)


def exchange(optimizers: Iterable[Any]) -> None:
    """Puts the new parameters into the places of old ones, and forgets the state of those.

    New matrices go where the old layer's matrices were, new vectors where its vectors were. Left as
    it is where a layer's matrices, or its vectors, were in several groups: which of them a new one
    belongs to nobody can know.
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
    # An old layer that goes on by itself has gradients.
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
    there = {id(p) for group in groups for p in group["params"]}
    homes: dict[bool, set[int]] = {True: set(), False: set()}
    for k, group in enumerate(groups):
        for p in group["params"]:
            if old(p):
                homes[p.ndim >= 2].add(k)
    if any(len(home) > 1 for home in homes.values()):
        return
    found = dict(layer.named_parameters())
    news: dict[int, list[tuple[str, Tensor]]] = {}
    for name in (name for name in names if name in found):
        matrix = found[name].ndim >= 2
        (k,) = homes[matrix] or homes[not matrix]
        if id(found[name]) not in there:
            news.setdefault(k, []).append((name, found[name]))
    for k in set().union(*homes.values()):
        group, made = groups[k], []
        labels = group.get("param_names", [""] * len(group["params"]))
        for label, p in zip(labels, group["params"], strict=True):
            if not old(p):
                made.append((label, p))
                continue
            optimizer.state.pop(p, None)
            prefix = label.removesuffix(_of(p).name)  # type: ignore[union-attr]
            made += [(prefix + name, new) for name, new in news.pop(k, [])]
        # In place: others may hold the list.
        group["params"][:] = [p for _, p in made]
        if "param_names" in group:
            group["param_names"][:] = [label for label, _ in made]


def _look(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if names := left_behind(optimizer):
        raise SwitchError(
            f"{type(optimizer).__name__} was made before the switch and has parameters that are in "
            f"no model any more ({', '.join(names)}), in several of its groups or where they could "
            f"not be found: make it after the switch, in `configure_optimizers` for instance, from "
            f"the parameters that the module has then"
        )


@functools.cache
def _watch_steps() -> None:
    """Has every optimizer looked at before it steps, from the first switch on."""
    register_optimizer_step_pre_hook(_look)
