"""`lightning-lrnn demo switch`: a project that knows nothing of this package, before and after.

The project is Lightning's own demo `LightningLSTM`: four layers of `torch.nn.LSTM`, a state that is
carried and detached, SGD. Nothing of it is changed; the second run has one callback more.
"""

from __future__ import annotations

import contextlib
import os
import pydoc_data.topics
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.lstm import LightningLSTM
from pytorch_lightning.demos.transformer import WikiText2

from lightning_lrnn.callbacks import SwitchRNN, load_switched
from lightning_lrnn.callbacks.callback import Callback
from lightning_lrnn.cli.demos.quiet import quiet_lightning
from lightning_lrnn.cli.tables import counted, text_table

__all__ = ["main"]

LAST = 10
"""Number of last steps whose mean is the final loss."""


class _Progress(Callback):
    """Records losses and times, and prints a line every ten steps."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.marks: list[float] = []

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Records a step."""
        self.losses.append(float(outputs["loss"]))
        self.marks.append(time.perf_counter())
        step = len(self.losses)
        if step % 10 == 0 or step == trainer.max_steps:
            mean = statistics.fmean(self.losses[-LAST:])
            end = "\r" if sys.stdout.isatty() and step != trainer.max_steps else "\n"
            print(f"  step {step:3}   loss {mean:6.3f}", end=end, flush=True)


def main(
    rnn: str = "auto", steps: int = 50, folder: str = "runs/demo-switch", seed: int = 0
) -> dict[str, Any]:
    """Runs the demo.

    Args:
        rnn: the layer to switch to, or "auto".
        steps: training steps of each run.
        folder: for the text and the checkpoint.
        seed: of weights, dropout and order.

    Returns:
        By "before" and "after": "loss" at the end, "ms" per step, "parameters" of the layer.

    Raises:
        ValueError: if there is no such layer, or it cannot replace an LSTM.
    """
    switch = SwitchRNN(rnn)
    quiet_lightning()
    warnings.filterwarnings("ignore")
    text = "\n".join(pydoc_data.topics.topics.values())
    (Path(folder) / "data").mkdir(parents=True, exist_ok=True)
    (Path(folder) / "data" / "wikitext-2.txt").write_text(text, encoding="utf-8")
    with _inside(folder):
        words = len(WikiText2().dictionary)
        print(
            f"Project   pytorch_lightning.demos.lstm.LightningLSTM, as it is installed\n"
            f"Text      the topics of Python's help: {len(text):,} characters, {words:,} words\n"
            f"Machine   {counted(torch.get_num_threads(), 'thread')}, PyTorch {torch.__version__}\n"
        )
        print(f"Before    {steps} steps", flush=True)
        before, _ = _run(words, steps, seed, None)
        callback = f"SwitchRNN({rnn!r})"
        print(f"\nAfter     {steps} steps with Trainer(callbacks=[{callback}])", flush=True)
        after, trainer = _run(words, steps, seed, switch)
        trainer.save_checkpoint("switched.ckpt")
        loaded = load_switched(LightningLSTM, "switched.ckpt", vocab_size=words)
        same = all(
            torch.equal(a, b)
            for a, b in zip(loaded.parameters(), trainer.lightning_module.parameters(), strict=True)
        )
    print(f"\n{switch.report}\n")
    print(_table(before, after))
    checkpoint = Path(folder) / "switched.ckpt"
    print(
        f"\nCheckpoint  {checkpoint}: load_switched(LightningLSTM, path) has "
        f"{'the same' if same else 'OTHER'} parameters\n"
        "Next        the same by YAML:\n\n"
        "    trainer:\n"
        "      callbacks:\n"
        "        - class_path: lightning_lrnn.SwitchRNN\n"
        f"          init_args: {{rnn: {rnn}, backend: auto}}"
    )
    return {"before": before, "after": after}


def _run(
    words: int, steps: int, seed: int, switch: SwitchRNN | None
) -> tuple[dict[str, Any], pl.Trainer]:
    pl.seed_everything(seed, verbose=False)
    model, progress = LightningLSTM(vocab_size=words), _Progress()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        gradient_clip_val=0.25,
        callbacks=[progress, *([switch] if switch else [])],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model)
    # The first step compiles, where anything is compiled.
    times = [b - a for a, b in zip(progress.marks, progress.marks[1:], strict=False)]
    rnn = model.model.rnn
    result = {
        "layer": next(k.__name__ for k in type(rnn).__mro__ if "lightning_lrnn" in k.__module__)
        if switch
        else f"torch.nn.{type(rnn).__name__}",
        "parameters": sum(p.numel() for p in rnn.parameters()),
        "first": progress.losses[0],
        "loss": statistics.fmean(progress.losses[-LAST:]),
        "ms": 1e3 * statistics.median(times) if times else float("nan"),
    }
    return result, trainer


def _table(before: dict[str, Any], after: dict[str, Any]) -> str:
    formats = {
        "layer": "{layer}",
        "its parameters": "{parameters:,}",
        "loss, first step": "{first:.3f}",
        f"loss, last {LAST} steps": "{loss:.3f}",
        "ms per step": "{ms:.0f}",
    }
    cells = [[name, f.format(**before), f.format(**after)] for name, f in formats.items()]
    return text_table([["", "before", "after"], *cells])


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    """Changes the working directory: the project reads its text from ./data."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
