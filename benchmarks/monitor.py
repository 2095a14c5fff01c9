"""What RecurrenceMonitor costs: in one training it is there for 200 steps, then away for 200.

In processor time of one thread, which other programs on the machine disturb least; a step's is the
median over all blocks of the steps at that place in the block.

python benchmarks/monitor.py [PAIRS]

Writes benchmarks/results/monitor.json, with the time of every step.
"""

from __future__ import annotations

import json
import logging
import platform
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger

from lightning_lrnn.callbacks import RecurrenceMonitor
from lightning_lrnn.data import ByteText
from lightning_lrnn.modules import LanguageModel

RESULTS = Path(__file__).parent / "results" / "monitor.json"
STEPS = 200
CASES = {
    # rnn, hidden size, batch size, window
    "GILRLSTM 32, (8, 32)": ("GILRLSTM", 32, 8, 32),
    "GILRLSTM 128, (16, 64)": ("GILRLSTM", 128, 16, 64),
    "torch.nn.LSTM 128, (16, 64)": ("torch.nn.LSTM", 128, 16, 64),
}


class Alternating(pl.Callback):
    """Hands the hooks of odd blocks of steps on, and times every step."""

    def __init__(self, monitor: RecurrenceMonitor) -> None:
        self.monitor = monitor
        self.times: list[float] = []
        self._last = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.monitor.on_train_start(trainer, pl_module)
        self._last = time.process_time()

    def on_train_batch_start(self, *arguments: Any) -> None:
        if len(self.times) // STEPS % 2:
            self.monitor.on_train_batch_start(*arguments)

    def on_train_batch_end(self, *arguments: Any) -> None:
        if len(self.times) // STEPS % 2:
            self.monitor.on_train_batch_end(*arguments)
        now = time.process_time()
        self.times.append(now - self._last)
        self._last = now


def steps(rnn: str, hidden_size: int, batch_size: int, window: int, pairs: int) -> list[float]:
    """Seconds of every step, the first two blocks left out."""
    torch.manual_seed(0)
    alternating = Alternating(RecurrenceMonitor(every_n_steps=STEPS))
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=STEPS * 2 * (pairs + 1),
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
    return alternating.times[2 * STEPS :]


def block(times: list[float], first: int) -> float:
    """Seconds of a block of which every step takes its median over the blocks."""
    return sum(statistics.median(times[first + k :: 2 * STEPS]) for k in range(STEPS))


def main(pairs: int) -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"{'case':30}{'ms per step':>12}{'with it':>10}{'overhead, %':>14}")
    cases = {}
    for case, sizes in CASES.items():
        times = steps(*sizes, pairs)
        without, monitored = block(times, 0), block(times, STEPS)
        of_step = [1e3 * seconds / STEPS for seconds in (without, monitored)]
        overhead = 100 * (monitored / without - 1)
        print(f"{case:30}{of_step[0]:12.2f}{of_step[1]:10.2f}{overhead:14.2f}", flush=True)
        samples = [round(1e3 * seconds, 3) for seconds in times]
        cases[case] = {"overhead_percent": round(overhead, 3), "milliseconds": samples}
    versions = {"torch": torch.__version__, "pytorch-lightning": pl.__version__}
    result = {"machine": platform.machine(), "threads": 1, "versions": versions, "steps": STEPS}
    RESULTS.write_text(json.dumps({**result, "cases": cases}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
