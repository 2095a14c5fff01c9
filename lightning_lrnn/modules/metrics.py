"""Metrics that torchmetrics does not have."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["BitsPerByte"]


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
        self.nats = self.nats + (nats.double() if nats.device.type != "mps" else nats) * count
        self.count = self.count + count

    def compute(self) -> Tensor:
        """Bits per byte; NaN without bytes."""
        return (self.nats / self.count / math.log(2)).float()
