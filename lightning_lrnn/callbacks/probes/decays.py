"""The decays of a training step, recorded from the inputs and states that the layers have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lrnn.nn.scan_context import GateFunction, Readout, ScanContext, decays_of
from lightning_lrnn.nn.stack import Stack

__all__ = ["RecordedDecays"]


class RecordedDecays:
    """Records decays from its construction until `stop`, by hooks on the cells.

    `Stack.decays` runs a layer once more, without dropout. These are of the run that trains, and
    therefore of the valid time steps alone.

    Args:
        module: any module that contains layers of this package.
    """

    def __init__(self, module: nn.Module) -> None:
        self._decays: dict[str, Tensor] = {}
        self._handles = [
            cell.register_forward_pre_hook(self._hook(path))
            for path, layer in module.named_modules()
            if isinstance(layer, Stack)
            for cell in layer.cells
        ]

    def stop(self) -> dict[str, Tensor]:
        """Removes the hooks.

        Returns:
            By "<path of the layer>.<path of the scan>", such as "rnn.0.layer0.forward.cell": a, or
            |a| where it is complex, (N, ·) with the N valid time steps of all rows of the layer's
            first call.
        """
        self.remove()
        return self._decays

    def remove(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, layer: str) -> Callable[..., tuple[Any, ...]]:
        def hook(cell: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            # Not the single step of a cell that is called by itself.
            return tuple(
                self._recording(layer, arg) if type(arg) is ScanContext else arg for arg in args
            )

        return hook

    def _recording(self, layer: str, context: ScanContext) -> ScanContext:
        def record(
            path: str, gate: GateFunction, readout: Readout | None, pre: Sequence[Tensor]
        ) -> None:
            path = f"{layer}.{path}" if layer else path
            if path not in self._decays:
                self._decays[path] = _valid(decays_of(gate, pre), context)

        return replace(context, recorder=record)


def _valid(a: Tensor, context: ScanContext) -> Tensor:
    """The valid time steps of a (B, T, ·), (N, ·), those that are here."""
    lengths = context.within(a.shape[1])
    if lengths is not None:
        a = a[torch.arange(a.shape[1], device=a.device) < lengths[:, None]]
    return a.flatten(0, -2)
