"""What RecurrenceMonitor costs: in one training it is there for 200 steps, then away for 200.

python benchmarks/monitor.py [PAIRS]
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import time
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger

from lightning_lrnn.callbacks import RecurrenceMonitor
from lightning_lrnn.data import ByteText
from lightning_lrnn.modules import LanguageModel

STEPS = 200
HOOKS = ("on_train_batch_start", "on_train_batch_end")
CASES = {
    # rnn, hidden size, batch size, window
    "GILRLSTM 32, (8, 32)": ("GILRLSTM", 32, 8, 32),
    "GILRLSTM 128, (16, 64)": ("GILRLSTM", 128, 16, 64),
    "torch.nn.LSTM 128, (16, 64)": ("torch.nn.LSTM", 128, 16, 64),
}


class Alternating(pl.Callback):
    """Hands the hooks of odd blocks of steps on, and times all blocks."""

    def __init__(self, monitor: RecurrenceMonitor) -> None:
        self.monitor = monitor
        self.times: list[float] = []
        self._step, self._start = 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.monitor.on_train_start(trainer, pl_module)

    def on_train_batch_start(self, *arguments: Any) -> None:
        if self._step % STEPS == 0:
            now = time.perf_counter()
            self.times.append(now - self._start)
            self._start = now
        if self._step // STEPS % 2:
            self.monitor.on_train_batch_start(*arguments)

    def on_train_batch_end(self, *arguments: Any) -> None:
        if self._step // STEPS % 2:
            self.monitor.on_train_batch_end(*arguments)
        self._step += 1


def blocks(rnn: str, hidden_size: int, batch_size: int, window: int, pairs: int) -> list[float]:
    """Seconds of every block, the first two left out."""
    torch.manual_seed(0)
    alternating = Alternating(RecurrenceMonitor(every_n_steps=STEPS))
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=STEPS * 2 * (pairs + 1) + 1,
            max_epochs=-1,
            logger=CSVLogger(folder),
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[alternating],
        )
        model = LanguageModel(rnn=rnn, hidden_size=hidden_size)
        trainer.fit(model, ByteText(batch_size=batch_size, window=window, max_bytes=2_000_000))
    return alternating.times[3:]


def main(pairs: int) -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    print(f"{'case':30}{'ms per step':>12}{'overhead, %: median':>22}{'quartiles':>18}")
    for case, sizes in CASES.items():
        times = blocks(*sizes, pairs)
        without, monitored = times[::2], times[1::2]
        ratios = [100 * (b / a - 1) for a, b in zip(without, monitored, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        step = 1e3 * statistics.median(without) / STEPS
        print(f"{case:30}{step:12.1f}{middle:22.2f}{low:11.2f} {high:6.2f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
