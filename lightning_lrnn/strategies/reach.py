"""Checks which shared recurrences a loss depends on, as their backward passes are collectives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_lrnn.core.ranks import Ranks, check_together
from lightning_lrnn.nn.stack import Stack

__all__ = ["Watch", "shared_nodes"]

SHARED = ("_OverRanksBackward", "_GatheredBackward", "CompiledFunctionBackward")
"""Nodes of autograd that wait for other ranks; compiled functions may contain such nodes."""

NAME = "The number of shared recurrences and gathers that a loss is made of"
ADVICE = "where a segment has nothing to learn from, take `0 * output.sum()` as the loss"


class Watch:
    """Checks that the losses of all ranks depend on the same shared recurrences.

    If the loss of a rank leaves one out, the other ranks wait for its backward pass. At the first
    batch of each form the ranks compare their losses; later each checks its own, without exchange.

    Args:
        module: with layers of this package.
        ranks: that share each sequence.
    """

    def __init__(self, module: nn.Module, ranks: Ranks) -> None:
        self._ranks = ranks
        self._called = False
        self._reached: dict[object, bool] = {}
        layers = [layer for layer in module.modules() if isinstance(layer, Stack)]
        self._hooks = [layer.register_forward_hook(self._record_call) for layer in layers]

    def begin(self) -> None:
        """Starts the watch of a training step."""
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
            count = shared_nodes(loss)
            try:
                check_together(self._ranks, None, lambda: {NAME: count})
            except ValueError as error:
                raise ValueError(f"{error}: {ADVICE}") from None
            self._reached[form] = count > 0
        elif self._reached[form] and self._called and not shared_nodes(loss, enough=1):
            raise ValueError(
                f"the loss of rank {self._ranks.rank} of those that share a sequence is made of no "
                f"recurrence, and the others wait for it in their backward passes: {ADVICE}"
            )

    def stop(self) -> None:
        """Removes the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _record_call(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            leaves = tree_leaves(output)
            self._called |= any(isinstance(y, Tensor) and y.requires_grad for y in leaves)


def shared_nodes(loss: Tensor, enough: int = 0) -> int:
    """The number of nodes of a loss's graph whose backward passes wait for other ranks.

    Args:
        loss: of one rank.
        enough: a number at which to stop; 0 for none.
    """
    count = 0
    pending = [] if loss.grad_fn is None else [loss.grad_fn]
    # Nodes, not their `id`, which another object may get when a node is freed.
    seen = set(pending)
    while pending and not 0 < enough <= count:
        node = pending.pop()
        count += type(node).__name__ in SHARED
        for input_node, _ in node.next_functions:
            if input_node is not None and input_node not in seen:
                seen.add(input_node)
                pending.append(input_node)
    return count
