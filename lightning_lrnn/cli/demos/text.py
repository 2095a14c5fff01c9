"""`lightning-lrnn demo text`: trains a byte language model on real text and shows what it learned.

The text is the source of the running Python's standard library. A torch.nn.LSTM and what
`rnn: auto` puts in its place get the same time; both are validated on files that neither has seen.
"""

from __future__ import annotations

import functools
import gzip
import json
import lzma
import math
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from lightning_lrnn import backends
from lightning_lrnn.callbacks import BackendReport, MemoryHorizon, Throughput
from lightning_lrnn.cli.demos.figure import draw
from lightning_lrnn.cli.demos.quiet import quiet_lightning
from lightning_lrnn.cli.demos.speed import speed_table
from lightning_lrnn.data import ByteText
from lightning_lrnn.modules import LanguageModel
from lightning_lrnn.nn import SurrogateRNN

__all__ = ["main"]

OURS = "surrogate-RNN"  # a folder too, which a command that is shown names
THEIRS = "torch.nn.LSTM"
MODELS: dict[str, dict[str, Any]] = {
    OURS: {
        "rnn": functools.partial(SurrogateRNN, cell="GRU_WITHOUT_RESET", surrogate="LRU"),
        "hidden_size": 318,
        "lr": 3e-3,
    },
    THEIRS: {"rnn": torch.nn.LSTM, "hidden_size": 256, "lr": 5e-3},
}
"""Each with 1.2 million parameters; `benchmarks/equal_time.py --rates` tries learning rates."""
CLIP = 1.0
# The state is carried over windows.
BATCH_SIZE, WINDOW = 16, 128
PROMPT = b"def "


class _TimeBudget(pl.Callback):
    """Trains for a time: the learning rate follows the clock, and the clock ends the training.

    So a slow machine and a busy one get a whole schedule too, of fewer steps.

    Args:
        lr: learning rate, the highest.
        seconds: of training.
        steps: of training, in place of the time, where two models shall make as many.

    Attributes:
        curve: (seconds, bits per byte) of the training text, smoothed.
    """

    def __init__(self, lr: float, seconds: float, steps: int | None = None) -> None:
        self.lr, self.seconds, self.steps = lr, seconds, steps
        self.curve: list[tuple[float, float]] = []
        self._start: float | None = None
        self._next_line = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Linear warm-up in 3 % of the time, then a cosine to 2 %."""
        now = time.perf_counter()
        self._start = self._start or now
        done = self._done(now - self._start)
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
        """Notes the loss; stops when the time is over."""
        assert self._start is not None
        seconds = time.perf_counter() - self._start
        bits = float(outputs["loss"]) / math.log(2)
        if self.curve:
            bits = 0.95 * self.curve[-1][1] + 0.05 * bits
        self.curve.append((seconds, bits))
        over = self._done(seconds) >= 1
        if seconds >= self._next_line or over:
            # One line that is rewritten in a terminal, a line now and then in a file.
            self._next_line = seconds + (1 if sys.stdout.isatty() else 15)
            line = f"  {seconds:4.0f} s   step {len(self.curve):5,}   {bits:5.2f} bits per byte"
            print(line, end="\r" if sys.stdout.isatty() else "\n", flush=True)
        if over:
            trainer.should_stop = True

    def _done(self, seconds: float) -> float:
        """How much of the training is over, up to 1."""
        share = seconds / self.seconds if self.steps is None else len(self.curve) / self.steps
        return min(1.0, share)


class DemoModel(LanguageModel):
    """The clock sets the learning rate, not the number of steps."""

    def make_schedule(self, optimizer: torch.optim.Optimizer) -> None:
        return None


def main(seconds: float = 90.0, folder: str = "runs/demo", seed: int = 0) -> dict[str, Any]:
    """Runs the demo and leaves logs, checkpoints and a figure in a folder.

    Args:
        seconds: training time of each model.
        folder: where everything goes.
        seed: of weights and of the sample.

    Returns:
        What was measured, as in the folder's results.json.
    """
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    quiet_lightning()
    data = ByteText(batch_size=BATCH_SIZE, window=WINDOW, seed=seed)
    runs = [name for name, reasons in backends.explain("cpu").items() if not reasons]
    print(
        f"Text      the source of Python's standard library: {data.describe()}\n"
        f"Machine   {torch.get_num_threads()} threads, PyTorch {torch.__version__}; "
        f"backends that run here: {', '.join(runs)}\n"
        f"Models    two residual layers, 1.2 M parameters, {seconds:.0f} s of training each"
    )
    results: dict[str, Any] = {"seconds": seconds, "seed": seed, "models": {}}
    for name, options in MODELS.items():
        print(f"\n{name}", flush=True)
        results["models"][name] = train(options, data, seconds, out / name, seed)
    results["compressors"] = _compress(data.held_out())
    print("\n" + _comparison(results))

    checkpoint = out / OURS / "model.ckpt"
    print(f"\nWhat the {OURS} writes after {PROMPT.decode()!r}\n")
    print("    " + _sample(checkpoint, seed).replace("\n", "\n    "))
    figure = draw(results, out / "demo.png")

    print("\nWhy a parallel recurrence: the same tokens as ever longer sequences\n")
    print(speed_table())
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(
        f"\nFigure    {figure or 'none: pip install matplotlib'}\n"
        f"Logs      {out}/*/csv"
        + (f", and wandb offline in {out}/*/wandb" if find_spec("wandb") else "")
        + f"\nNext      lightning-lrnn generate {checkpoint} --prompt 'import ' --backend serial\n"
        "          lightning-lrnn configs copy byte_lm && lightning-lrnn fit --config byte_lm.yaml"
    )
    return results


def train(
    options: dict[str, Any],
    data: ByteText,
    seconds: float,
    folder: Path,
    seed: int,
    steps: int | None = None,
) -> dict[str, Any]:
    """Trains one model, of these options, for a time and validates it on the held-out files.

    Where `steps` are given they take the place of the time.
    """
    pl.seed_everything(seed, verbose=False)
    model = DemoModel(**options)
    budget, horizon = _TimeBudget(model.lr, seconds, steps), MemoryHorizon()
    loggers: list[Logger] = [CSVLogger(folder, name="csv")]
    if find_spec("wandb"):
        import wandb

        settings = wandb.Settings(silent=True, disable_git=True)
        project: dict[str, Any] = {"project": "lightning_lrnn-demo", "settings": settings}
        loggers.append(WandbLogger(save_dir=folder, offline=True, **project))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        gradient_clip_val=CLIP,
        logger=loggers,
        log_every_n_steps=20,
        callbacks=[budget, horizon, Throughput(), BackendReport()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    _compile(model)
    trainer.fit(model, data)
    trainer.save_checkpoint(folder / "model.ckpt")
    bits = _validate(model, data)
    print(f"\n  held out: {bits:.2f} bits per byte")
    if find_spec("wandb"):
        wandb.finish()
    return {
        "bits_per_byte": bits,
        "steps": trainer.global_step,
        "parameters": sum(p.numel() for p in model.parameters()),
        "curve": budget.curve,
        "horizons": {name: taus.tolist() for name, taus in horizon.latest.items()},
    }


def _compile(model: LanguageModel) -> None:
    """Lets the first use of compiled code not count as training."""
    inputs = torch.zeros(BATCH_SIZE, WINDOW, dtype=torch.long)
    logits, _ = model(inputs, reset=torch.zeros_like(inputs, dtype=torch.bool))
    logits.sum().backward()
    model.zero_grad()


def _validate(model: LanguageModel, data: ByteText) -> float:
    """Bits per byte of the same held-out files, in larger batches than were trained on."""
    wide = ByteText(data.path, batch_size=64, window=256, seed=data.seed)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (metrics,) = trainer.validate(model, wide, verbose=False)
    return float(metrics["val/bits_per_byte"])


def _compress(text: bytes) -> dict[str, float]:
    """Bits per byte of the compressors that every Python has."""
    return {
        "gzip -9": 8 * len(gzip.compress(text, 9)) / len(text),
        "xz -9": 8 * len(lzma.compress(text, preset=9)) / len(text),
    }


def _comparison(results: dict[str, Any]) -> str:
    rows = {name: m["bits_per_byte"] for name, m in results["models"].items()}
    rows |= results["compressors"]
    lines = ["Held-out files, bits per byte (less is better; plain text is 8)"]
    lines += [f"  {name:14}{bits:6.2f}  {'#' * round(15 * bits)}" for name, bits in rows.items()]
    steps = ", ".join(f"{name} {m['steps']:,}" for name, m in results["models"].items())
    lines.append(
        f"  Training steps: {steps}. The compressors learn from the very files they compress;\n"
        "  the models have never seen them."
    )
    return "\n".join([*lines, "", _verdict(results)])


def _verdict(results: dict[str, Any]) -> str:
    """Who is ahead, and why one would take ours whoever is, in a line each."""
    ours, theirs = (results["models"][name] for name in (OURS, THEIRS))
    fewer = theirs["bits_per_byte"] - ours["bits_per_byte"]
    times = ours["steps"] / theirs["steps"]
    return (
        f"{OURS if fewer > 0 else THEIRS} is ahead after {results['seconds']:g} s: "
        f"{abs(fewer):.2f} bits per byte less, with as many parameters.\n"
        f"Why a {OURS}: it computes all steps of a window at once. Here it made "
        f"{times:.2f} times as many\n"
        "training steps; the longer the windows, the more it is (last table)."
    )


def _sample(checkpoint: Path, seed: int) -> str:
    model = DemoModel.load_from_checkpoint(checkpoint, weights_only=True)
    generator = torch.Generator().manual_seed(seed)
    sample = b"".join(model.generate(PROMPT, 300, temperature=0.7, generator=generator))
    return (PROMPT + sample).decode("utf-8", "replace")
