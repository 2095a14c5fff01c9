"""Metrics that torchmetrics does not have, or not in this form."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAUROC

from lightning_lrnn.modules.scores import pinball

__all__ = ["CRPS", "BitsPerByte", "LargestError", "MacroAUROC", "Perplexity", "PinballLoss"]


class BitsPerByte(Metric):
    """Mean cost of a byte in bits: sum of -log2 p(byte) / number of bytes.

    What an arithmetic coder with this model would write, so that it compares with gzip and xz. Sums
    are kept in float64 where the device has it: in float32 they stop growing at 2^24.
    """

    full_state_update = False
    higher_is_better = False
    nats: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("nats", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nats: Tensor, count: Tensor) -> None:
        """Adds a batch.

        Args:
            nats: mean cost of a byte in nats, a scalar: the cross entropy.
            count: number of bytes that it is the mean of.
        """
        self.nats = self.nats + _wide(nats) * count
        self.count = self.count + count

    def compute(self) -> Tensor:
        """Returns bits per byte; NaN without bytes."""
        return (self.nats / self.count / math.log(2)).float()


class Perplexity(BitsPerByte):
    """exp of the mean cost of a byte in nats, which is 2 to the power of bits per byte.

    Among how many bytes, all as probable, the model would have to guess; 256 for one that knows
    nothing.
    """

    def compute(self) -> Tensor:
        """Returns the perplexity; NaN without bytes."""
        return (self.nats / self.count).exp().float()


class MacroAUROC(MulticlassAUROC):
    """Area under the ROC curve, one class against the rest, the mean over the classes.

    A class of which there is no example, or no counterexample, has no curve and is left out of the
    mean; torchmetrics counts 0 for it, and warns. NaN if no class is left, as in a batch of one
    class.

    Args:
        num_classes: C.
        thresholds: None for the exact area, which keeps all predictions until `compute`; a number
            for as many thresholds and a memory that does not grow.
        ignore_index: target of what is not counted.
        kwargs: of `torchmetrics.Metric`.
    """

    support: Tensor

    def __init__(
        self,
        num_classes: int,
        thresholds: int | None = None,
        ignore_index: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, "none", thresholds, ignore_index, False, **kwargs)
        self.add_state("support", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds a batch.

        Args:
            preds: probabilities (N, C).
            target: classes (N,).
        """
        super().update(preds, target)
        known = target if self.ignore_index is None else target[target != self.ignore_index]
        self.support = self.support + torch.bincount(known, minlength=len(self.support))

    def compute(self) -> Tensor:  # type: ignore[override]
        """The mean over the classes that have a curve."""
        if not self.support.any():
            return self.support.sum() * torch.nan
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No (positive|negative) samples", UserWarning)
            areas: Tensor = super().compute()
        return areas[(self.support > 0) & (self.support < self.support.sum())].mean()


class LargestError(Metric):
    """The largest error of a probability, over all examples and classes.

        max |p_k - [k = target]|, which is max (1 - p_target), since probabilities add up to 1

    Args:
        ignore_index: target of what is not counted.
        kwargs: of `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = False
    largest: Tensor

    def __init__(self, ignore_index: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignore_index = ignore_index
        self.add_state("largest", torch.tensor(-torch.inf), dist_reduce_fx="max")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds a batch.

        Args:
            preds: probabilities (N, C).
            target: classes (N,).
        """
        if self.ignore_index is not None:
            known = target != self.ignore_index
            preds, target = preds[known], target[known]
        if len(target):
            errors = 1 - preds.float().gather(1, target[:, None])
            self.largest = torch.maximum(self.largest, errors.max())

    def compute(self) -> Tensor:
        """Returns the largest error; NaN without examples."""
        return self.largest.masked_fill(self.largest.isinf(), torch.nan)


class PinballLoss(Metric):
    """Mean pinball loss of predicted quantiles, over targets and levels.

        max(q (y - y_q), (q - 1) (y - y_q))         for the quantile y_q of level q

    A proper score of each quantile, in the units of y (Koenker & Bassett 1978). Half the absolute
    error at q = 1/2.

    Args:
        levels: q of each quantile.
        kwargs: of `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = False
    pinball_sum: Tensor
    pinball_count: Tensor

    def __init__(self, levels: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.levels = tuple(levels)
        self.add_state("pinball_sum", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("pinball_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, quantiles: Tensor, target: Tensor) -> None:
        """Adds a batch.

        Args:
            quantiles: (..., levels).
            target: (...), without NaN.
        """
        losses = pinball(quantiles, target, quantiles.new_tensor(self.levels))
        self.pinball_sum = self.pinball_sum + _wide(losses).sum()
        self.pinball_count = self.pinball_count + losses.numel()

    def compute(self) -> Tensor:
        """Returns the mean over all targets; NaN without targets."""
        return (self.pinball_sum / self.pinball_count).float()


class CRPS(Metric):
    """Mean continuous ranked probability score, which a forecast computes by itself.

        integral of (F(x) - [x >= y])^2 over x      for a forecast with distribution function F

    In the units of y; the absolute error, if F is a point (Gneiting & Raftery 2007, section 4.2).
    """

    full_state_update = False
    higher_is_better = False
    crps_sum: Tensor
    crps_count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("crps_sum", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("crps_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, crps: Tensor) -> None:
        """Adds the scores of a batch, of any shape."""
        self.crps_sum = self.crps_sum + _wide(crps).sum()
        self.crps_count = self.crps_count + crps.numel()

    def compute(self) -> Tensor:
        """Returns the mean over all scores; NaN without scores."""
        return (self.crps_sum / self.crps_count).float()


def _wide(x: Tensor) -> Tensor:
    return x.double() if x.device.type != "mps" else x
