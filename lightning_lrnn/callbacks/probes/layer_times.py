"""The time of a training step in recurrent layers, measured by hooks for that step only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from lightning_lrnn.nn.cell import Cell
from lightning_lrnn.nn.stack import Stack
from lightning_lrnn.ops.profiling import observe

__all__ = ["LayerTimes", "recurrent_layers"]

RECURRENT = (Stack, Cell, nn.RNNBase, nn.RNNCellBase)


def recurrent_layers(module: nn.Module) -> dict[str, nn.Module]:
    """The recurrent layers of this package and of PyTorch in a module, by path, outermost only."""
    layers: dict[str, nn.Module] = {}
    for path, layer in module.named_modules():
        inside = any(path.startswith(f"{outer}." if outer else "") for outer in layers)
        if isinstance(layer, RECURRENT) and not inside:
            layers[path] = layer
    return layers


@dataclass
class _Call:
    """Points in time of one call of a layer: start and end of forward and of backward."""

    start: Any
    end: Any = None
    begun: list[Any] = field(default_factory=list)
    done: list[Any] = field(default_factory=list)
    has_end: bool = False


class LayerTimes:
    """Measures from its construction until `stop`, which removes its hooks.

    The backward of a layer lasts from the first node of autograd that gets the gradient of an
    output until the gradient of its input is complete, for which the input becomes a view of
    itself; of an input that needs none, until the layer's last parameter has its gradient. On CUDA
    the points in time are events on the stream, and `stop` waits for the last.

    Args:
        module: anything with recurrent layers inside.
        device: where it computes, a CPU or CUDA.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._calls: dict[nn.Module, list[_Call]] = {}
        self._recurrences: list[tuple[Any, Any]] = []
        self._handles: list[Any] = []
        for layer in recurrent_layers(module).values():
            self._calls[layer] = []
            # First in, last out, so that other hooks of the layer count as a part of it.
            enter = layer.register_forward_pre_hook(self._enter, prepend=True)
            self._handles += [enter, layer.register_forward_hook(self._leave)]
            accumulated = partial(self._accumulated, layer)
            for parameter in layer.parameters():
                if parameter.requires_grad and parameter.is_leaf:
                    self._handles.append(parameter.register_post_accumulate_grad_hook(accumulated))
        observe(self._around)
        self._origin = self._mark()

    def stop(self) -> dict[str, float]:
        """Ends the measurement, and removes the hooks.

        Returns:
            Shares of the time, from 0 to 1: "layer_share", the recurrent layers with all that is
            in them, and "share", the recurrences alone, without projections. A share is left out
            where no call was seen, as in a model that torch.compile has fused.
        """
        end = self._mark()
        self.remove()
        if self._cuda:
            end.synchronize()
        total = self._since(end)
        calls = [call for calls in self._calls.values() for call in calls if call.end is not None]
        shares = {}
        # A backward without an end would make the share too small.
        if calls and total > 0 and all(call.done or not call.begun for call in calls):
            shares["layer_share"] = self._covered(self._spans(calls)) / total
        if self._recurrences and total > 0:
            shares["share"] = self._covered(self._recurrences) / total
        return shares

    def remove(self) -> None:
        """Removes the hooks."""
        observe(None)
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _enter(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        call = _Call(self._mark())
        self._calls[layer].append(call)
        if not args or not torch.is_grad_enabled():
            return None
        first = args[0]
        x = first.data if isinstance(first, PackedSequence) else first
        if not (isinstance(x, Tensor) and x.requires_grad):
            return None
        x = x.view_as(x)
        assert x.grad_fn is not None
        call.has_end = True
        self._handles.append(x.grad_fn.register_prehook(lambda _: call.done.append(self._mark())))
        return (first._replace(data=x) if isinstance(first, PackedSequence) else x, *args[1:])

    def _leave(self, layer: nn.Module, args: Any, output: Any) -> None:
        call = next(call for call in reversed(self._calls[layer]) if call.end is None)
        call.end = self._mark()
        for y in tree_leaves(output):
            if isinstance(y, Tensor) and y.grad_fn is not None:
                self._handles.append(
                    y.grad_fn.register_prehook(lambda _: call.begun.append(self._mark()))
                )

    def _accumulated(self, layer: nn.Module, parameter: Tensor) -> None:
        for call in self._calls[layer]:
            if call.begun and not call.has_end:
                call.done = [self._mark()]

    @contextlib.contextmanager
    def _around(self) -> Iterator[None]:
        start = self._mark()
        yield
        self._recurrences.append((start, self._mark()))

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _since(self, mark: Any) -> float:
        """Time since the start, in seconds, or ms of CUDA events: shares do not depend on it."""
        since: float = self._origin.elapsed_time(mark) if self._cuda else mark - self._origin
        return since

    def _spans(self, calls: list[_Call]) -> list[tuple[Any, Any]]:
        spans = [(call.start, call.end) for call in calls]
        return spans + [(call.begun[0], call.done[-1]) for call in calls if call.begun]

    def _covered(self, spans: list[tuple[Any, Any]]) -> float:
        """The length of the union: a layer may be computed again inside of a backward."""
        covered, until = 0.0, 0.0
        for start, end in sorted((self._since(a), self._since(b)) for a, b in spans):
            covered += max(0.0, end - max(start, until))
            until = max(until, end)
        return covered
