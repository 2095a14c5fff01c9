"""One run of a comparison, in a process of its own: `python -m lightning_lrnn.cli.compare.run fit`.

Lines of JSON on stdout report the progress and the result; all else goes to stderr, also what other
packages, their threads and their exit handlers write to stdout.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_lrnn import BackendError, last_backend
from lightning_lrnn.callbacks.callback import Callback
from lightning_lrnn.cli.fit import UserError, run
from lightning_lrnn.core.process_memory import process_memory, process_peak
from lightning_lrnn.data import DataError

__all__ = ["main"]

WARM_UP = 5
"""Steps whose time does not count: code is compiled, memory allocated."""
PAUSE = 0.5
"""Seconds between two lines of progress."""


class _Measure(Callback):
    """Times every step, until the device is idle, and reports the progress.

    Args:
        report: takes a dict, which is sent to the parent process.
    """

    def __init__(self, report: Callable[[dict[str, Any]], None]) -> None:
        self.times: list[float] = []
        self.memory_before: int | None = None
        self._report, self._start, self._reported = report, 0.0, 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Measures the memory before the first forward pass, of validation too."""
        if self.memory_before is None:
            self.memory_before = process_memory()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stops the clock, and reports the step."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        now = time.perf_counter()
        self.times.append(now - self._start)
        if now - self._reported > PAUSE:
            self._reported = now
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            self._report(
                {"step": trainer.global_step, "loss": None if loss is None else float(loss)}
            )


def main(args: list[str]) -> int:
    """Trains, validates and reports.

    Args:
        args: the words of `lightning-lrnn fit`.

    Returns:
        The exit status.
    """
    # The descriptor, not `sys.stdout` alone: wandb holds the old object, and writes at exit.
    out, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    os.dup2(2, 1)

    def report(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=out, flush=True)

    measure = _Measure(report)
    try:
        report({"result": _run(args, measure)})
    except Exception as error:
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0]
        is_sentence = isinstance(error, (UserError, BackendError, DataError)) and first
        name = type(error).__name__
        sentence = first if is_sentence else f"{name}: {first}".rstrip(": ")
        report({"error": sentence, "of_data": _is_of_data(error) and not measure.times})
        return 1
    return 0


def _is_of_data(error: BaseException | None) -> bool:
    """Whether it, or what caused it, is an error of the data."""
    while error is not None and not isinstance(error, DataError):
        error = error.__cause__
    return error is not None


def _run(args: list[str], measure: _Measure) -> dict[str, Any]:
    start = time.perf_counter()
    cli = run(args, [measure])
    seconds = time.perf_counter() - start
    backend = last_backend()
    trainer, model = cli.trainer, cli.model
    cuda = model.device.type == "cuda" or trainer.strategy.root_device.type == "cuda"
    memory = torch.cuda.max_memory_allocated() if cuda else _growth(measure.memory_before)
    metrics: Any = {name: float(value) for name, value in trainer.callback_metrics.items()}
    steps = trainer.global_step
    monitor, mode = _monitored(trainer)
    if trainer.enable_validation:
        # The model as it is now, on all validation data.
        (metrics,) = trainer.validate(model, datamodule=cli.datamodule, verbose=False) or [{}]
    times = measure.times[WARM_UP:] or measure.times
    return {
        "metrics": dict(metrics),
        "monitor": monitor if monitor in metrics else None,
        "mode": mode,
        "steps": steps,
        "seconds": seconds,
        "milliseconds": 1e3 * statistics.median(times) if times else None,
        "timed_steps": len(times),
        "parameters": sum(p.numel() for p in model.parameters()),
        "megabytes": None if memory is None else memory / 1e6,
        "backend": backend,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _monitored(trainer: pl.Trainer) -> tuple[str | None, str | None]:
    """The metric that the config's callbacks monitor, and whether "min" or "max" is better."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(name := getattr(callback, "monitor", None), str):
            return name, getattr(callback, "mode", None)
    return None, None


def _growth(before: int | None) -> int | None:
    after = process_peak()
    return None if before is None or after is None else max(after - before, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
