"""How many training steps of each model fit into a time, and a schedule over that number.

If two models train one after the other, the load of the machine may differ between them. So their
steps are timed in turn, and each model makes as many as fit.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils._pytree import tree_map

from lightning_lrnn.data import ByteText
from lightning_lrnn.modules import LanguageModel

__all__ = ["Schedule", "fitting", "in_turn", "stepper"]

WARM_UP, ROUNDS = 3, 15
PAUSE_S = 0.01
"""Pause before a timed step: idle OpenMP threads of the other model occupy cores for so long."""


class Schedule(pl.Callback):
    """A number of steps: their learning rates, a line of progress, a curve.

    Args:
        lr: learning rate, the highest.
        steps: of training.

    Attributes:
        curve: bits per byte of the training text after each step, smoothed.
    """

    def __init__(self, lr: float, steps: int) -> None:
        self.lr, self.steps = lr, steps
        self.curve: list[float] = []
        self._start: float | None = None
        self._next_line = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Linear warm-up in 3 % of the steps, then a cosine to 2 %."""
        self._start = self._start or time.perf_counter()
        done = len(self.curve) / self.steps
        rate = min(1.0, done / 0.03 + 0.01) * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.lr * rate

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Records the loss, and prints it."""
        assert self._start is not None
        seconds = time.perf_counter() - self._start
        bits = float(outputs["loss"]) / math.log(2)
        if self.curve:
            bits = 0.95 * self.curve[-1] + 0.05 * bits
        self.curve.append(bits)
        done = len(self.curve)
        if seconds >= self._next_line or done == self.steps:
            # One line that is rewritten in a terminal, a line now and then in a file.
            self._next_line = seconds + (1 if sys.stdout.isatty() else 15)
            line = f"  {seconds:4.0f} s   step {done:5,} of {self.steps:,}   {bits:5.2f}"
            end = "\r" if sys.stdout.isatty() else "\n"
            print(f"{line} bits per byte", end=end, flush=True)


def stepper(model: LanguageModel, data: ByteText, clip: float) -> Callable[[], None]:
    """A training step of a model, on one window of the text after the other."""
    data.setup()
    optimizer, windows, state = model.make_optimizer(), iter(data.train_dataloader()), None

    def step() -> None:
        nonlocal state, windows
        batch = next(windows, None)
        if batch is None:
            windows = iter(data.train_dataloader())
            batch = next(windows)
        optimizer.zero_grad()
        output, after = model.run(batch, state)
        state = tree_map(torch.Tensor.detach, after)
        model.loss(output, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()

    return step


def in_turn(
    steps: Mapping[str, Callable[[], None]], rounds: int = ROUNDS, warm_up: int = WARM_UP
) -> dict[str, list[float]]:
    """Seconds of the steps of each model, timed in turn."""
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for count in range(warm_up + rounds):
        for name, step in steps.items():
            time.sleep(PAUSE_S)
            start = time.perf_counter()
            step()
            if count >= warm_up:
                samples[name].append(time.perf_counter() - start)
    return samples


def fitting(seconds: float, samples: Mapping[str, list[float]]) -> dict[str, int]:
    """The number of steps of each model that fit into the seconds, by the median; at least 1."""
    return {
        name: max(1, round(seconds / statistics.median(times))) for name, times in samples.items()
    }
