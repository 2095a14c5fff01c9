"""What RecurrenceMonitor costs: the time in its hooks, and what steps that it measures take longer.

In processor time of one thread, which other programs on the machine disturb least. The overhead is
of training without the monitor: of every step's time but for what the monitor took of it.

python benchmarks/monitor.py [PERIODS]

Writes benchmarks/results/monitor.json, with every sample.
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
from lightning_lrnn.callbacks.recurrence_monitor import FIRST
from lightning_lrnn.data import ByteText
from lightning_lrnn.modules import LanguageModel

RESULTS = Path(__file__).parent / "results" / "monitor.json"
STEPS = 200
"""Between two measurements of the monitor, its default."""
MEASURED = (0, FIRST, STEPS - 1)
"""Steps of a period in which it looks at decays (the last, or the first) and at layers."""
CASES = {
    # rnn, hidden size, batch size, window
    "GILRLSTM 32, (8, 32)": ("GILRLSTM", 32, 8, 32),
    "GILRLSTM 128, (16, 64)": ("GILRLSTM", 128, 16, 64),
    "torch.nn.LSTM 128, (16, 64)": ("torch.nn.LSTM", 128, 16, 64),
}


class Timed(pl.Callback):
    """Hands the hooks on, and times them and the rest of every step."""

    def __init__(self, monitor: RecurrenceMonitor) -> None:
        self.monitor = monitor
        self.hooks: list[float] = []
        self.rest: list[float] = []
        self._last = 0.0

    def on_train_start(self, *arguments: Any) -> None:
        self.monitor.on_train_start(*arguments)
        self._last = time.process_time()

    def on_train_batch_start(self, *arguments: Any) -> None:
        start = time.process_time()
        self.monitor.on_train_batch_start(*arguments)
        self.hooks.append(time.process_time() - start)

    def on_train_batch_end(self, *arguments: Any) -> None:
        start = time.process_time()
        self.monitor.on_train_batch_end(*arguments)
        now = time.process_time()
        self.hooks[-1] += now - start
        self.rest.append(now - self._last - self.hooks[-1])
        self._last = now


def train(rnn: str, hidden_size: int, batch_size: int, window: int, periods: int) -> Timed:
    torch.manual_seed(0)
    timed = Timed(RecurrenceMonitor(every_n_steps=STEPS))
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=STEPS * (periods + 1),
            max_epochs=-1,
            logger=CSVLogger(folder),
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[timed],
        )
        model = LanguageModel(rnn=rnn, hidden_size=hidden_size)
        trainer.fit(model, ByteText(batch_size=batch_size, window=window, max_bytes=2_000_000))
    return timed


def main(periods: int) -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"{'case':30}{'ms per step':>12}{'hooks, %':>10}{'measured, %':>13}{'overhead, %':>13}")
    cases = {}
    for case, sizes in CASES.items():
        timed = train(*sizes, periods)
        # The first period compiles and allocates.
        hooks, rest = timed.hooks[STEPS:], timed.rest[STEPS:]
        step = statistics.median(rest)
        of_hooks = 100 * statistics.fmean(hooks) / step
        # A step that is measured is longer by more than what is in the hooks; the median over the
        # periods.
        measured = [statistics.median(rest[k::STEPS]) - step for k in MEASURED]
        of_measured = 100 * sum(measured) / (STEPS * step)
        overhead = of_hooks + of_measured
        print(f"{case:30}{1e3 * step:12.2f}{of_hooks:10.2f}{of_measured:13.2f}{overhead:13.2f}")
        cases[case] = {
            "overhead_percent": round(overhead, 3),
            "hooks_ms": [round(1e3 * seconds, 4) for seconds in hooks],
            "rest_ms": [round(1e3 * seconds, 3) for seconds in rest],
        }
    versions = {"torch": torch.__version__, "pytorch-lightning": pl.__version__}
    result = {"machine": platform.machine(), "threads": 1, "versions": versions, "steps": STEPS}
    RESULTS.write_text(json.dumps({**result, "cases": cases}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
