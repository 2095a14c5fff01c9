"""What a loss is made of: the shared recurrences in its graph, whose backward passes meet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_lrnn.core.ranks import Ranks, check_together
from lightning_lrnn.nn.stack import Stack

__all__ = ["Watch", "shared_nodes"]

SHARED = ("_OverRanksBackward", "_GatheredBackward", "CompiledFunctionBackward")
"""Nodes of autograd that wait for other ranks; what torch.compile has made may have some inside."""

WHAT = "The number of shared recurrences and gathers that a loss is made of"
ADVICE = "where a stretch has nothing to learn from, take `0 * output.sum()` as the loss"


class Watch:
    """Looks whether the losses of the ranks are made of the same shared recurrences.

    A rank whose loss leaves one out waits in no backward pass, and the others would wait for it.
    All compare the loss of the first batch of each form; later on each looks at its own, which
    costs no exchange.

    Args:
        module: with layers of this package.
        ranks: that share each sequence.
    """

    def __init__(self, module: nn.Module, ranks: Ranks) -> None:
        self._ranks = ranks
        self._called = False
        self._reached: dict[object, bool] = {}
        layers = [layer for layer in module.modules() if isinstance(layer, Stack)]
        self._hooks = [layer.register_forward_hook(self._note) for layer in layers]

    def begin(self) -> None:
        """A training step begins."""
        self._called = False

    def check(self, loss: Tensor, form: object) -> None:
        """Compares the loss of this step.

        Args:
            loss: before its backward pass.
            form: of the batch, all but its values.

        Raises:
            ValueError: on every rank, with what each has, where the losses of the first batch of a
                form differ; on this one if a later loss is made of none where layers were called.
        """
        if form not in self._reached:
            found = shared_nodes(loss)
            try:
                check_together(self._ranks, None, lambda: {WHAT: found})
            except ValueError as error:
                raise ValueError(f"{error}: {ADVICE}") from None
            self._reached[form] = found > 0
        elif self._reached[form] and self._called and not shared_nodes(loss, enough=1):
            raise ValueError(
                f"the loss of rank {self._ranks.rank} of those that share a sequence is made of no "
                f"recurrence, and the others wait for it in their backward passes: {ADVICE}"
            )

    def stop(self) -> None:
        """Takes the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _note(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            leaves = tree_leaves(output)
            self._called |= any(isinstance(y, Tensor) and y.requires_grad for y in leaves)


def shared_nodes(loss: Tensor, enough: int = 0) -> int:
    """How many nodes of its graph wait for other ranks in the backward pass.

    Args:
        loss: of one rank.
        enough: a number at which to stop; 0 for none.
    """
    found = 0
    left = [] if loss.grad_fn is None else [loss.grad_fn]
    # Nodes themselves, not their `id`: of what nobody holds it is given to others.
    seen = set(left)
    while left and not 0 < enough <= found:
        node = left.pop()
        found += type(node).__name__ in SHARED
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                left.append(before)
    return found
