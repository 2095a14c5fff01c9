"""The decays of a step, noted on the way, of the inputs and states that the layers really have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lrnn.core.unfused import operands
from lightning_lrnn.nn.scan_context import Walk
from lightning_lrnn.nn.stack import Stack

__all__ = ["NotedDecays"]


@dataclass(frozen=True)
class _Noting(Walk):
    """A walk that notes the decays of its valid steps, and is otherwise as it was."""

    layer: str = ""
    noted: dict[str, Tensor] = field(default_factory=dict)

    def scan(
        self, name: str, gate: Callable[..., tuple[Tensor, Tensor]], *pre: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor]:
        place = ".".join(part for part in (self.layer, self.place(name)) if part)
        if place not in self.noted:
            with torch.no_grad():
                a, b = gate(*operands(pre))
                a = (a.abs() if a.is_complex() else a).expand(b.shape)
                if self.lengths is not None:
                    a = a[torch.arange(a.shape[1], device=a.device) < self.lengths[:, None]]
                self.noted[place] = a.flatten(0, -2)
        return super().scan(name, gate, *pre, **options)


class NotedDecays:
    """Notes decays from its making until `stop`; what it hooks on is gone then.

    Args:
        module: anything with layers of this package inside.
    """

    def __init__(self, module: nn.Module) -> None:
        self._noted: dict[str, Tensor] = {}
        self._handles = [
            cell.register_forward_pre_hook(self._enter(path))
            for path, layer in module.named_modules()
            if isinstance(layer, Stack)
            for cell in layer.cells
        ]

    def stop(self) -> dict[str, Tensor]:
        """Ends the noting.

        Returns:
            By "<path of the layer>.<place>", such as "rnn.0.layer0.forward.cell": a, or |a| where
            it is complex, (N, ·) with the N valid steps of all rows of the layer's first call.
        """
        self.remove()
        return self._noted

    def remove(self) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _enter(self, path: str) -> Callable[..., tuple[Any, ...]]:
        def hook(cell: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(self._noting(path, arg) if type(arg) is Walk else arg for arg in args)

        return hook

    def _noting(self, path: str, walk: Walk) -> _Noting:
        as_it_is = {f.name: getattr(walk, f.name) for f in fields(walk)}
        return _Noting(**as_it_is, layer=path, noted=self._noted)
