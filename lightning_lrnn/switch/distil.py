"""Distillation: a new layer learns from the one that it replaced, on the inputs of the project."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map

from lightning_lrnn.core.checks import check_counts
from lightning_lrnn.nn.cells.surrogate import SurrogateRNNCell
from lightning_lrnn.nn.checks import check_module
from lightning_lrnn.nn.stack import Stack

__all__ = ["Distillation", "carry_weights", "fit_surrogate"]

TEACHER = "_teacher"
"""Where a layer has the one that it replaced: no submodule, so that no `state_dict` has it."""
LEARNING_RATE = 3e-3
REMEMBERED = 64
"""Calls whose final states are known again; a state that is older starts anew."""


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


class Distillation:
    """Lets the layers of a module that have replaced others give the outputs of those.

    While it lasts a call of such a layer is a call of the old one: the module computes as before
    the switch. Beside it the new layer runs on the same input, and its relative error

        sum_t |y_t - y'_t|^2 / sum_t |y'_t|^2              y' the old layer's outputs

    is what it learns by, in Adam with a learning rate of its own. Nothing is dropped out meanwhile.
    The final state of a call is known again, so that windows of a sequence, or an encoder and a
    decoder, follow each other in both layers.

    Args:
        module: with layers that were replaced with `weights="carried"`.
        steps: of learning, for the learning rate, which falls to 0.

    Attributes:
        layers: those that learn.
        errors: the mean of the relative errors, of each step.
    """

    def __init__(self, module: nn.Module, steps: int) -> None:
        self.layers = [m for m in module.modules() if isinstance(m, Stack) and TEACHER in vars(m)]
        self.errors: list[float] = []
        self._losses: list[Tensor] = []
        self._states: dict[Any, tuple[Any, Any]] = {}
        if not self.layers:
            return
        parameters = {id(p): p for layer in self.layers for p in layer.parameters()}
        self.optimizer = torch.optim.Adam(parameters.values(), LEARNING_RATE)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        for layer in self.layers:
            vars(layer)["forward"] = MethodType(self._both, layer)

    def step(self, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """Learns from the calls since the last step.

        Args:
            reduce: the mean over processes of a gradient.
        """
        if not self._losses:
            return
        loss = torch.stack(self._losses).mean()
        self._losses.clear()
        parameters = [p for p in self.optimizer.param_groups[0]["params"] if p.requires_grad]
        # Not `backward`: hooks of a module around had their gradients before, see `_reached`.
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
            if reduce is not None and gradient is not None:
                parameter.grad = reduce(gradient)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.errors.append(loss.item())

    def finish(self) -> None:
        """From now on the new layers are called, and the old ones are gone."""
        for layer in self.layers:
            vars(layer).pop("forward", None)
            vars(layer).pop(TEACHER, None)
        self._losses.clear()
        self._states.clear()

    def _both(self, layer: Stack, input: Any, hx: Any = None, **options: Any) -> Any:
        (teacher,) = vars(layer)[TEACHER]
        _like(teacher, layer)
        # Without the hooks of the old layer, which are those of the new one too.
        output, state = teacher.forward(input, hx, **options)
        ours = self._states.get(_identity(hx), (None, hx))[1]
        was_training = layer.training
        try:
            with torch.enable_grad():
                run = type(layer).forward
                found, after = run(layer.train(False), _detached(input), ours, **options)
                self._losses.append(_relative_error(found, output))
        finally:
            layer.train(was_training)
        self._remember(state, _detached(after))
        return _reached(output, layer), state

    def _remember(self, state: Any, ours: Any) -> None:
        # The old layer's state is kept too: its memory, which names it, is not given to another.
        self._states[_identity(state)] = (state, ours)
        while len(self._states) > REMEMBERED:
            del self._states[next(iter(self._states))]


def fit_surrogate(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    steps: int = 100,
    call: Callable[[Any], Any] | None = None,
) -> list[float]:
    """Lets layers that were replaced with `weights="carried"` learn from those that they replaced.

    See `Distillation`. Nothing else of the module changes; its own training comes after.

    Args:
        module: any module, in which `replace_rnn` has replaced layers.
        batches: inputs of the project, run through again and again; not an iterator.
        steps: batches to learn from.
        call: runs the module on a batch; `module(batch)`, or `module(*batch)` for a tuple or list,
            if None.

    Returns:
        The relative error of each step.

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


def _relative_error(found: Any, output: Any) -> Tensor:
    y, target = (v.data if isinstance(v, PackedSequence) else v for v in (found, output))
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
    """Moves the old layer to where the new one is; without dropout, whose outputs nobody learns."""
    ours, theirs = next(layer.parameters()), next(teacher.parameters())
    if ours.device != theirs.device or ours.dtype != theirs.dtype:
        teacher.to(ours)
    teacher.eval()


def _identity(state: Any) -> Any:
    parts = [part for part in tree_leaves(state) if isinstance(part, Tensor)]
    return tuple(part.untyped_storage().data_ptr() for part in parts)


def _detached(value: Any) -> Any:
    if isinstance(value, PackedSequence):
        return value._replace(data=value.data.detach())
    return tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, value)
