"""`lightning-lrnn demo classify`: an ordinary classifier of packed sequences, before and after.

Recordings of spoken digits, packed, and a LightningModule with a `torch.nn.LSTM` in two directions,
as one writes it. The second run has one callback more. Both learn at the rate that was the best for
the LSTM of 1e-3, 3e-3 and 1e-2.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torchmetrics.classification import MulticlassF1Score

from lightning_lrnn.callbacks import SwitchRNN
from lightning_lrnn.callbacks.callback import Callback
from lightning_lrnn.cli.demos.figure import draw_classify
from lightning_lrnn.cli.demos.quiet import quiet_lightning
from lightning_lrnn.cli.tables import counted, text_table
from lightning_lrnn.data import SpokenDigits
from lightning_lrnn.data.sequences import SequenceBatch

__all__ = ["main"]

BEFORE, AFTER = "torch.nn.LSTM", "SwitchRNN()"


class Classifier(pl.LightningModule):
    """A model that uses of this package only the form of a batch."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(features, 128, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * 128, classes)
        self.f1 = MulticlassF1Score(classes)

    def forward(self, recordings: PackedSequence) -> Tensor:
        """Logits (B, classes), from the last state of each direction."""
        _, (h, _) = self.rnn(recordings)
        logits: Tensor = self.head(torch.cat([h[-2], h[-1]], dim=-1))
        return logits

    def training_step(self, batch: SequenceBatch, index: int) -> Tensor:
        """The cross entropy of a batch."""
        assert isinstance(batch.inputs, PackedSequence)
        return F.cross_entropy(self(batch.inputs), batch.targets)

    def validation_step(self, batch: SequenceBatch, index: int) -> None:
        """The mean of the classes' F1."""
        self.f1(self(batch.inputs), batch.targets)
        self.log("f1", self.f1)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns Adam."""
        return torch.optim.Adam(self.parameters(), 3e-3)


class _Clock(Callback):
    """Takes the time of training steps, and prints a line after each epoch."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.curve: list[tuple[float, float]] = []
        self._since = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begins a step."""
        self._since = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Ends the step."""
        self.steps.append(time.perf_counter() - self._since)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the F1 of the model."""
        seconds, f1 = sum(self.steps), float(trainer.callback_metrics["f1"])
        self.curve.append((seconds, f1))
        print(f"  epoch {len(self.curve)}   {seconds:5.1f} s   F1 {f1:.3f}", flush=True)


def main(epochs: int = 4, folder: str = "runs/demo-classify", seed: int = 0) -> dict[str, Any]:
    """Runs the demo and leaves a figure and what was measured in a folder.

    Args:
        epochs: of each run.
        folder: for figure and results.
        seed: of the split, weights and order.

    Returns:
        The contents of the folder's results.json: of each run the "curve" of (seconds, F1 on the
        validation part), "f1" on the test part, "seconds" of training, "ms" per step and
        "parameters" of the layer.

    Raises:
        DataError: without the recordings, which are in a package.
    """
    quiet_lightning()
    warnings.filterwarnings("ignore")
    data = SpokenDigits(batch_size=32, packed=True, seed=seed)
    sizes = {name: len(data.part(name)) for name in ("train", "val", "test")}
    print(
        f"Data      3,000 recordings of spoken digits, 6 to 92 steps of {data.num_features} "
        f"coefficients: {sizes['train']:,} to train,\n"
        f"          {sizes['val']} after each epoch, {sizes['test']} at the end\n"
        f"Machine   {counted(torch.get_num_threads(), 'thread')}, PyTorch {torch.__version__}\n"
        "Project   a LightningModule with torch.nn.LSTM(13, 128, 2, bidirectional=True) on packed\n"
        "          sequences\n"
    )
    switch = SwitchRNN()
    runs = {}
    for name, heading in (
        (BEFORE, "Before"),
        (AFTER, "After     with Trainer(callbacks=[SwitchRNN()])"),
    ):
        print(heading, flush=True)
        runs[name] = _run(data, epochs, seed, [switch] if name == AFTER else [])
    before, after = runs.values()
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(runs, indent=2) + "\n")
    figure = draw_classify(runs, out / "demo.png")
    print(f"\n{switch.report}\n\n{_table(before, after)}\n\n{_conclusion(before, after)}\n")
    print(
        f"Figure    {figure or 'none: pip install matplotlib'}\n"
        "Next      lightning-lrnn configs copy spoken_digits\n"
        "          lightning-lrnn fit --config spoken_digits.yaml"
    )
    return runs


def _run(data: SpokenDigits, epochs: int, seed: int, callbacks: list[Any]) -> dict[str, Any]:
    pl.seed_everything(seed, verbose=False)
    model, clock = Classifier(data.num_features, len(data.classes)), _Clock()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        gradient_clip_val=1.0,
        callbacks=[clock, *callbacks],
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    (test,) = trainer.test(model, data, verbose=False)
    return {
        "parameters": sum(p.numel() for p in model.rnn.parameters()),
        "seconds": sum(clock.steps),
        "ms": 1e3 * statistics.median(clock.steps),
        "f1": test["f1"],
        "curve": clock.curve,
    }


def _table(before: dict[str, Any], after: dict[str, Any]) -> str:
    formats = {
        "parameters of the layer": "{parameters:,}",
        "ms per training step": "{ms:.0f}",
        "seconds of training": "{seconds:.1f}",
        "F1 on the test part": "{f1:.3f}",
    }
    cells = [[name, f.format(**before), f.format(**after)] for name, f in formats.items()]
    return text_table([["", "before", "after"], *cells])


def _conclusion(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The ratio of times and the difference of F1, as a sentence."""
    faster, change = before["seconds"] / after["seconds"], after["f1"] - before["f1"]
    time = f"{faster:.1f} times as fast" if faster >= 1 else f"{1 / faster:.1f} times as slow"
    return (
        f"One callback more: trained {time}, F1 {change:+.3f}.\n"
        "Packed rows of an LSTM are computed one step after the other; here all steps at once."
    )
