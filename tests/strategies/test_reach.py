"""A rank whose loss leaves out the layer that ranks share ends with an error, not with waiting.

Seen to fail: without the comparison the processes wait for each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import processes
import pytest
import torch
import torch.distributed as dist
from modules_without_ranks import Steps, batches, fit, new_module
from torch import Tensor
from torch.multiprocessing.spawn import ProcessRaisedException

from lightning_lrnn.strategies import SequenceParallelStrategy

pytestmark = [
    pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo"),
    pytest.mark.slow,
]


class Constant(Steps):
    """On some ranks a step has a loss that is made of the head alone."""

    at = 0
    ranks: tuple[int, ...] = (1,)
    reaches = False

    def loss(self, batch: Any) -> Tensor:
        here = self.training and self.trainer.global_step == self.at
        if not here or dist.get_rank() not in self.ranks:
            return super().loss(batch)
        output = self.output(batch[0])
        return 0 * (output.sum() if self.reaches else self.head.weight.sum() + self.head.bias[0])


def first(rank: int, folder: Path) -> None:
    """In the first step all ranks say so; what is the same everywhere, or reaches it, is right."""
    torch.set_num_threads(1)
    data = batches(Steps)[:3]
    counted = r"that a loss is made of must be the same .* got [1-9]\d*, 0 on ranks 0 to 1: where"
    with pytest.raises(ValueError, match=counted):
        fit(new_module(Constant), [1, 1], data, SequenceParallelStrategy(2))
    for reaches, at, ranks in ((True, 0, (1,)), (True, 2, (1,)), (False, 0, (0, 1))):
        model = new_module(Constant)
        model.reaches, model.at, model.ranks = reaches, at, ranks
        # Where no loss is made of them, DDP must know that parameters may have no gradient.
        strategy = SequenceParallelStrategy(2, find_unused_parameters=not reaches)
        fit(model, [1, 1], data, strategy)
        assert len(model.losses) == len(data)


def later(rank: int, folder: Path) -> None:
    model = new_module(Constant)
    model.at = 2
    fit(model, [1, 1], batches(Steps), SequenceParallelStrategy(2))


def test_in_the_first_step(tmp_path: Path) -> None:
    processes.spawn(first, tmp_path, tmp_path)


def test_in_a_later_step(tmp_path: Path) -> None:
    with pytest.raises(ProcessRaisedException, match=r"loss of rank 1 .* made of no recurrence"):
        processes.spawn(later, tmp_path, tmp_path)
