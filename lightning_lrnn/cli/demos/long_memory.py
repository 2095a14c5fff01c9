"""`lightning-lrnn demo long-memory`: one symbol, recalled thousands of steps later.

A GILR-LSTM and a torch.nn.LSTM of the same size, with the same forget gates at first, learn the
task of Martin & Cundy (ICLR 2018), each until it has solved it: until it is right about every one
of 200 sequences that it has not seen.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_lrnn.callbacks import StopWhenSolved
from lightning_lrnn.cli.demos.figure import LAST, draw_long_memory
from lightning_lrnn.cli.demos.quiet import quiet_lightning
from lightning_lrnn.cli.tables import counted
from lightning_lrnn.data import LongMemory
from lightning_lrnn.modules import SequenceClassifier
from lightning_lrnn.nn import GILRLSTM, MemoryLSTM

__all__ = ["main"]


class _Budget(pl.Callback):
    """Trains until the time is over, and prints the progress.

    Attributes:
        curve: (seconds, share of right answers) of every batch.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.curve: list[tuple[float, float]] = []
        self._start, self._next_line = 0.0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
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
        """Records the accuracy."""
        seconds = time.perf_counter() - self._start
        accuracy = float(trainer.callback_metrics["train/accuracy"])
        self.curve.append((seconds, accuracy))
        over = seconds >= self.seconds
        if over or seconds >= self._next_line:
            # One line that is rewritten in a terminal, a line now and then in a file.
            self._next_line = seconds + (1 if sys.stdout.isatty() else 10)
            right = mean([right for _, right in self.curve[-LAST:]])
            line = f"  {seconds:4.0f} s   step {len(self.curve):5,}   {right:4.0%} right"
            print(line, end="\n" if over or not sys.stdout.isatty() else "\r", flush=True)
        trainer.should_stop = trainer.should_stop or over


def main(
    steps: int = 4096, seconds: float = 60.0, folder: str = "runs/demo-long-memory", seed: int = 0
) -> dict[str, Any]:
    """Runs the demo and leaves a figure and what was measured in a folder.

    Args:
        steps: T of every sequence.
        seconds: training time of each model; it ends sooner when the task is learned.
        folder: for figure and results.
        seed: of weights and of the training sequences.

    Returns:
        The contents of the folder's results.json.
    """
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    quiet_lightning()
    data = LongMemory(
        steps, sampling="paired", batch_size=2, epoch_rows=10**6, held_out=200, seed=seed
    )
    print(
        f"Task      the first of {steps:,} symbols is +e_1 or -e_1, all others are any of 128;\n"
        "          after the last it is asked which one the first was\n"
        f"Machine   {counted(torch.get_num_threads(), 'thread')}, PyTorch {torch.__version__}\n"
        f"Models    two residual layers of 16, at most {seconds:.0f} s of training each; both\n"
        f"          start with forget gates for {steps // 2:,} to {2 * steps:,} steps"
    )
    memory = (steps / 2, 2 * steps)
    models = {
        "GILR-LSTM": partial(GILRLSTM, memory=memory, output_activation="identity"),
        "torch.nn.LSTM": partial(MemoryLSTM, memory=memory),
    }
    results: dict[str, Any] = {"steps": steps, "seconds": seconds, "seed": seed, "models": {}}
    for name, rnn in models.items():
        print(f"\n{name}", flush=True)
        results["models"][name] = _train(rnn, data, seconds, seed)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    figure = draw_long_memory(results, out / "demo.png")
    print(
        f"\n{_conclusion(results['models'], steps)}\n\n"
        f"Figure    {figure or 'none: pip install matplotlib'}\n"
        "Next      lightning-lrnn configs copy long_memory_8192\n"
        "          lightning-lrnn fit --config long_memory_8192.yaml"
    )
    return results


def _conclusion(models: dict[str, Any], steps: int) -> str:
    """Results of both models: whether and when solved, and the time of an update."""
    lines = []
    for name, model in models.items():
        updates, (seconds, _) = len(model["curve"]), model["curve"][-1]
        did = f"solved it in {seconds:.0f} s" if model["solved"] else f"not within {seconds:.0f} s"
        each = f"{updates:,} updates of {1e3 * seconds / updates:.0f} ms"
        lines.append(f"{name:13}  {did}, {each}")
    lines.append(
        f"A GILR-LSTM computes all {steps:,} steps at once, a torch.nn.LSTM one after the other."
    )
    return "\n".join(lines)


def _train(rnn: Any, data: LongMemory, seconds: float, seed: int) -> dict[str, Any]:
    """Trains one model, and evaluates it on held-out sequences."""
    pl.seed_everything(seed, verbose=False)
    model = SequenceClassifier(
        data.num_features,
        data.num_classes,
        rnn=rnn,
        hidden_size=16,
        dropout=0.0,
        logit_scale=3e-3,
        lr=4e-3,
        weight_decay=0.0,
        warmup_steps=10,
        total_steps=10**6,
    )
    # Compiles the kernels before training is timed.
    model(torch.zeros(1, 2, dtype=torch.long))[0].sum().backward()
    model.zero_grad()
    budget, solved = _Budget(seconds), StopWhenSolved()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=1.0,
        callbacks=[solved, budget],
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    right = round(float(trainer.callback_metrics["val/accuracy"]) * data.held_out)
    end, _ = budget.curve[-1]
    when = f": solved after {end:.0f} s" if solved.solved else ""
    print(f"  held out: {right} of {data.held_out} right{when}")
    return {
        "solved": solved.solved,
        "right": right,
        "held_out": data.held_out,
        "parameters": sum(p.numel() for p in model.parameters()),
        "curve": budget.curve,
    }
