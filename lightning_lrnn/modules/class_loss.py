"""Cross entropy with weights of classes, in a form whose mean over batches is exact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lrnn.core.checks import plain_numbers
from lightning_lrnn.data.text.windows import IGNORE

__all__ = ["check_classes", "class_weights_of", "weighted_cross_entropy"]


def class_weights_of(weights: Iterable[Any] | None, num_classes: int) -> list[float] | None:
    """Weights as plain data.

    Raises:
        ValueError: unless there is a number for every class, none of them negative.
    """
    if weights is None:
        return None
    plain = plain_numbers(weights)
    fits = plain is not None and len(plain) == num_classes
    if not fits or not all(0 <= weight < float("inf") for weight in plain or ()):
        raise ValueError(
            f"`class_weights` must be {num_classes} numbers, one for each class and none negative, "
            f"got {weights if plain is None else plain}"
        )
    return plain


def weighted_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Sequence[float] | None
) -> Tensor:
    """Mean over the targets of weight[target] * -log p(target), in nats; 0 without targets.

    `torch.nn.functional.cross_entropy` divides by the sum of the weights in the batch instead, so
    that a batch with rare classes counts less than its share.

    Args:
        logits: (N, C).
        targets: classes (N,), `IGNORE` for none.
        weights: one for each of C classes; None for 1.
    """
    logits = logits.float()
    weight = None if weights is None else logits.new_tensor(weights)
    total = F.cross_entropy(logits, targets, weight, ignore_index=IGNORE, reduction="sum")
    return total / (targets != IGNORE).sum().clamp(min=1)


def check_classes(targets: Tensor, num_classes: int, shape: torch.Size, steps: str) -> None:
    """Raises for targets of another shape, or of a class that the model does not have."""
    if targets.shape != shape or targets.is_floating_point():
        raise ValueError(
            f"`targets` must be int64 of shape {tuple(shape)}, {steps}, "
            f"got {tuple(targets.shape)} of {targets.dtype}"
        )
    known = targets[targets != IGNORE]
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < num_classes:
        wrong = int(known.max()) if int(known.max()) >= num_classes else int(known.min())
        raise ValueError(
            f"`targets` have class {wrong}, the model was made for {num_classes}, numbered from 0: "
            f"set `model.num_classes`"
        )
