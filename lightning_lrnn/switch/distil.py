"""Distillation: a new layer learns from the one that it replaced, on the inputs of the project."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from lightning_lrnn.core.checks import check_counts
from lightning_lrnn.nn.cells.surrogate import SurrogateRNNCell
from lightning_lrnn.nn.checks import check_module
from lightning_lrnn.nn.stack import Stack

__all__ = ["Distillation", "carry_weights", "fit_surrogate"]

TEACHER = "_teacher"
"""Attribute with the replaced layer: in a list, so that it is no submodule of a `state_dict`."""
LEARNING_RATE = 1e-2
"""At a relative error of 1. It goes down as the error's root: so do distances of parameters."""
REPEATS = 20
"""Updates in each step, by the calls of this step and of those before in turn."""
RECENT = 5
"""Steps whose calls are learned from."""
REMEMBERED = 64
"""Calls whose final states are recognised as inputs; older states start anew."""


def carry_weights(old: nn.RNNBase, new: Stack) -> None:
    """Copies the matrices and biases that both layers have, and keeps the old layer to learn from.

    The matrices W and U of a `SurrogateRNN` with the old layer's function, by name and shape; of
    another layer nothing. The surrogate learns in `Distillation`.
    """
    suffixes = [f"_l{k}{end}" for k in range(old.num_layers) for end in ("", "_reverse")]
    suffixes = suffixes if old.bidirectional else suffixes[::2]
    for cell, suffix in zip(new._cells(), suffixes, strict=True):
        if not isinstance(cell, SurrogateRNNCell) or not cell.is_surrogate_of(old):
            continue
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"):
            ours, theirs = getattr(cell, name), getattr(old, name + suffix, None)
            if ours is not None and theirs is not None and ours.shape == theirs.shape:
                ours.detach().copy_(theirs.detach())
    vars(new)[TEACHER] = [old.requires_grad_(False)]


class _Call(NamedTuple):
    """A call of a new layer, with the old layer's output as the target."""

    layer: Stack
    input: Any
    state: Any
    options: dict[str, Any]
    autocast: torch.autocast
    target: Any

    def run(self) -> tuple[Tensor, Any]:
        """The relative error of the new layer's outputs, without dropout, and its state."""
        was_training = self.layer.training
        try:
            with self.autocast:
                # Not the layer's own `forward`, which calls the old one as long as it learns.
                forward = type(self.layer).forward
                y, state = forward(self.layer.train(False), self.input, self.state, **self.options)
        finally:
            self.layer.train(was_training)
        return _relative_error(y, self.target), state


class Distillation:
    """Lets the layers of a module that have replaced others give the outputs of those.

    While it lasts a call of such a layer is a call of the old one: the module computes as before
    the switch. Beside it the new layer runs on the same input, and its relative error

        sum_t |y_t - y'_t|^2 / sum_t |y'_t|^2              y' the old layer's outputs

    is its loss: the mean over the calls of each layer, and over layers, in Adam with its own
    learning rate, without dropout. The final state of a call is recognised in a later call: windows
    of a sequence, or an encoder and a decoder, follow each other in both layers.

    Args:
        module: with layers that were replaced with `weights="carried"`.
        steps: of learning, for the learning rate, which falls to 0.

    Attributes:
        layers: those that learn.
        errors: the relative error of each step, before it was learned from.
        watches: whether calls are learned from; False during a validation.
    """

    def __init__(self, module: nn.Module, steps: int) -> None:
        self.layers = [m for m in module.modules() if isinstance(m, Stack) and TEACHER in vars(m)]
        self.errors: list[float] = []
        self.watches = True
        self._updates, self._all_updates = 0, steps * REPEATS
        self._calls: list[_Call] = []
        self._recent: deque[list[_Call]] = deque(maxlen=RECENT)
        self._states: dict[Any, tuple[Any, Any]] = {}
        if not self.layers:
            return
        parameters = {id(p): p for layer in self.layers for p in layer.parameters()}
        self.optimizer = torch.optim.Adam(parameters.values(), LEARNING_RATE)
        for layer in self.layers:
            vars(layer)["forward"] = MethodType(self._run_both, layer)

    def step(self, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """Learns from the calls since the last step, and again from those before.

        Args:
            reduce: the mean over processes of a tensor.
        """
        if not self._calls:
            return
        self._recent.append(self._calls)
        self._calls = []
        errors = [
            self._update(self._recent[-1 - k % len(self._recent)], reduce) for k in range(REPEATS)
        ]
        self.errors.append(errors[0])

    def _update(self, calls: list[_Call], reduce: Callable[[Tensor], Tensor] | None) -> float:
        """One update of Adam on calls; returns the error before it."""
        parameters = [p for p in self.optimizer.param_groups[0]["params"] if p.requires_grad]
        with torch.enable_grad():
            mean_error = _mean_error(calls)
        # Not `backward`: hooks of a module around had their gradients before, see `_reached`.
        gradients = torch.autograd.grad(mean_error, parameters, allow_unused=True)
        mean_error = mean_error.detach()
        if reduce is not None:
            mean_error = reduce(mean_error)
            gradients = tuple(None if g is None else reduce(g) for g in gradients)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(parameters, 1.0)
        self._updates += 1
        schedule = (1 + math.cos(math.pi * min(self._updates / self._all_updates, 1))) / 2
        loss = mean_error.item()
        self.optimizer.param_groups[0]["lr"] = LEARNING_RATE * schedule * min(1, math.sqrt(loss))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def finish(self) -> None:
        """Ends the learning: calls run the new layers, and the old ones are deleted."""
        for layer in self.layers:
            vars(layer).pop("forward", None)
            vars(layer).pop(TEACHER, None)
        self._calls.clear()
        self._recent.clear()
        self._states.clear()

    def _run_both(self, layer: Stack, input: Any, hx: Any = None, **options: Any) -> Any:
        (teacher,) = vars(layer)[TEACHER]
        _like(teacher, layer)
        # `forward`, not a call: the old layer's hooks are those of the new one too.
        output, state = teacher.forward(input, hx, **options)
        if not self.watches:
            return output, state
        ours = self._states.get(_identity(hx), (None, hx))[1]
        device = next(teacher.parameters()).device.type
        autocast = torch.autocast(
            device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        )
        # Copies: the project may write into the input and the output.
        call = _Call(layer, _copied(input), ours, options, autocast, _copied(output))
        with torch.no_grad():
            _, after = call.run()
        self._calls.append(call)
        self._remember(state, after)
        return _reached(output, layer), state

    def _remember(self, state: Any, ours: Any) -> None:
        # The old layer's state is kept too, so that no other tensor gets its address, the key.
        self._states[_identity(state)] = (state, ours)
        while len(self._states) > REMEMBERED:
            del self._states[next(iter(self._states))]


def fit_surrogate(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    steps: int = 5,
    call: Callable[[Any], Any] | None = None,
) -> list[float]:
    """Lets layers that were replaced with `weights="carried"` learn from those that they replaced.

    See `Distillation`. Nothing else of the module changes; its own training comes after.

    Args:
        module: any module, in which `replace_rnn` has replaced layers.
        batches: inputs of the project, run through again and again; not an iterator.
        steps: batches to learn from, from each several times.
        call: runs the module on a batch; `module(batch)`, or `module(*batch)` for a tuple or list,
            if None.

    Returns:
        The relative error of each step, before it was learned from.

    Raises:
        ValueError: if there is no batch, or no layer that has an old one to learn from, or for
            `steps` that cannot be. TypeError: if `module` is no module.
    """
    check_module(module)
    check_counts(steps=steps)
    distillation = Distillation(module, steps)
    if not distillation.layers:
        raise ValueError("no layer has an old one to learn from: replace with weights='carried'")
    run = call or (lambda b: module(*b) if isinstance(b, (tuple, list)) else module(b))
    try:
        while len(distillation.errors) < steps:
            before = len(distillation.errors)
            for batch in batches:
                with torch.no_grad():
                    run(batch)
                distillation.step()
                if len(distillation.errors) == steps:
                    break
            if len(distillation.errors) == before:
                raise ValueError("`batches` has no batch that reaches a layer that was replaced")
    finally:
        distillation.finish()
    return distillation.errors


def _mean_error(calls: list[_Call]) -> Tensor:
    """The mean over the calls of each layer, then over layers, however often each is called."""
    errors: dict[int, list[Tensor]] = {}
    for call in calls:
        errors.setdefault(id(call.layer), []).append(call.run()[0])
    return torch.stack([torch.stack(of_layer).mean() for of_layer in errors.values()]).mean()


def _relative_error(student: Any, output: Any) -> Tensor:
    y, target = (v.data if isinstance(v, PackedSequence) else v for v in (student, output))
    target = target.detach().float()
    error: Tensor = (y.float() - target).square().sum()
    return error / target.square().sum().clamp(min=1e-12)


def _reached(output: Any, layer: nn.Module) -> Any:
    """The old layer's output; with several processes also gradients of 0 for the new one.

    `DistributedDataParallel` waits for a gradient of every parameter.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not several or not torch.is_grad_enabled():
        return output
    zero = torch.stack([(0 * p).sum() for p in layer.parameters()]).sum()
    if isinstance(output, PackedSequence):
        return output._replace(data=output.data + zero)
    return output + zero


def _like(teacher: nn.Module, layer: nn.Module) -> None:
    """Moves the old layer to the new one's device and dtype, and turns its dropout off."""
    ours, theirs = next(layer.parameters()), next(teacher.parameters())
    if ours.device != theirs.device or ours.dtype != theirs.dtype:
        teacher.to(ours)
    teacher.eval()


def _identity(state: Any) -> Any:
    tensors = [x for x in tree_leaves(state) if isinstance(x, Tensor)]
    return tuple(x.untyped_storage().data_ptr() for x in tensors)


def _copied(value: Any) -> Any:
    if isinstance(value, PackedSequence):
        return value._replace(data=value.data.detach().clone())
    return value.detach().clone()
