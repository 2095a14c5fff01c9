"""`lightning-lrnn demo text`: trains a byte language model on real text and shows what it learned.

The text is the source of the running Python's standard library. A torch.nn.LSTM and what
`rnn: auto` puts in its place get as many training steps as fit into the same time, by steps that
are timed in turn; both are validated on files that neither has seen.
"""

from __future__ import annotations

import functools
import gzip
import json
import lzma
import statistics
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
from lightning_lrnn.cli.demos.steps import ROUNDS, Schedule, fitting, in_turn, stepper
from lightning_lrnn.cli.tables import counted
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


class DemoModel(LanguageModel):
    """A language model whose learning rate a `Schedule` sets."""

    def make_schedule(self, optimizer: torch.optim.Optimizer) -> None:
        return None


def main(seconds: float = 35.0, folder: str = "runs/demo", seed: int = 0) -> dict[str, Any]:
    """Runs the demo and leaves logs, checkpoints and a figure in a folder.

    Args:
        seconds: training time of each model: it makes as many steps as fit.
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
        f"Machine   {counted(torch.get_num_threads(), 'thread')}, PyTorch {torch.__version__}; "
        f"backends that run here: {', '.join(runs)}\n"
        f"Models    two residual layers, 1.2 M parameters, {seconds:g} s of training each",
        flush=True,
    )
    samples = step_seconds(data)
    steps = fitting(seconds, samples)
    listed = (
        f"{name} {1e3 * statistics.median(times):.0f} ms, of which {steps[name]:,} fit"
        for name, times in samples.items()
    )
    print(f"Steps     timed in turn: {'; '.join(listed)}")
    results: dict[str, Any] = {"seconds": seconds, "seed": seed, "models": {}}
    for name, options in MODELS.items():
        print(f"\n{name}", flush=True)
        results["models"][name] = train(options, data, steps[name], out / name, seed)
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


def step_seconds(data: ByteText, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of training steps of each model, in turn."""
    steps = {}
    for name, options in MODELS.items():
        pl.seed_everything(0, verbose=False)
        steps[name] = stepper(DemoModel(**options), data, CLIP)
    return in_turn(steps, rounds)


def train(
    options: dict[str, Any], data: ByteText, steps: int, folder: Path, seed: int
) -> dict[str, Any]:
    """Trains one model, of these options, and validates it on the held-out files."""
    pl.seed_everything(seed, verbose=False)
    model = DemoModel(**options)
    schedule, horizon = Schedule(model.lr, steps), MemoryHorizon()
    loggers: list[Logger] = [CSVLogger(folder, name="csv")]
    if find_spec("wandb"):
        import wandb

        settings = wandb.Settings(silent=True, disable_git=True)
        project: dict[str, Any] = {"project": "lightning_lrnn-demo", "settings": settings}
        loggers.append(WandbLogger(save_dir=folder, offline=True, **project))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        gradient_clip_val=CLIP,
        logger=loggers,
        log_every_n_steps=20,
        callbacks=[schedule, horizon, Throughput(), BackendReport()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
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
        "curve": schedule.curve,
        "horizons": {name: taus.tolist() for name, taus in horizon.latest.items()},
    }


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
    """The better model, and the advantage of the surrogate RNN in any case, a line each."""
    ours, theirs = (results["models"][name] for name in (OURS, THEIRS))
    fewer = theirs["bits_per_byte"] - ours["bits_per_byte"]
    times = ours["steps"] / theirs["steps"]
    return (
        f"{OURS if fewer > 0 else THEIRS} is ahead after {results['seconds']:g} s: "
        f"{abs(fewer):.2f} bits per byte less, with as many parameters.\n"
        f"Why a {OURS}: it computes all steps of a window at once, which counts the more the "
        f"longer the window\n"
        f"is (last table). Here, with {WINDOW} steps, it made {times:.2f} times as many training "
        f"steps."
    )


def _sample(checkpoint: Path, seed: int) -> str:
    model = DemoModel.load_from_checkpoint(checkpoint, weights_only=True)
    generator = torch.Generator().manual_seed(seed)
    sample = b"".join(model.generate(PROMPT, 300, temperature=0.7, generator=generator))
    return (PROMPT + sample).decode("utf-8", "replace")
