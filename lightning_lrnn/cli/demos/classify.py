"""`lightning-lrnn demo classify`: an ordinary classifier of packed sequences, before and after.

The project knows nothing of this package: words, an embedding, a packed `torch.nn.LSTM`, a linear
layer, Adam. It learns which package of Python's standard library a function comes from. The second
run has one callback more.
"""

from __future__ import annotations

import ast
import json
import re
import sysconfig
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassF1Score

from lightning_lrnn.callbacks import SwitchRNN
from lightning_lrnn.callbacks.callback import Callback
from lightning_lrnn.cli.demos.figure import draw_classify
from lightning_lrnn.cli.demos.quiet import quiet_lightning
from lightning_lrnn.core.table import text_table

__all__ = ["main"]

PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest")
WORDS = (20, 150)
"""Of a function: the fewest, and after how many it is cut."""
WORD = re.compile(r"\w+|[^\w\s]")
HELD_OUT = 3
"""Every third file of a package: no function of it is trained on."""
BATCH_SIZE = 32
LR = 3e-3

Function = tuple[list[str], int]
"""Words, and the number of the package."""
Row = tuple[Tensor, int]


class Classifier(pl.LightningModule):
    """An LSTM over packed sequences of words, and a class from its last state."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 64)
        self.rnn = nn.LSTM(64, 128)
        self.head = nn.Linear(128, len(PACKAGES))
        self.f1 = MulticlassF1Score(len(PACKAGES))

    def forward(self, rows: list[Tensor]) -> Tensor:
        packed = pack_sequence([self.embedding(row) for row in rows], enforce_sorted=False)
        _, (h_n, _) = self.rnn(packed)
        logits: Tensor = self.head(h_n[-1])
        return logits

    def training_step(self, batch: tuple[list[Tensor], Tensor], batch_idx: int) -> Tensor:
        rows, classes = batch
        return F.cross_entropy(self(rows), classes)

    def validation_step(self, batch: tuple[list[Tensor], Tensor], batch_idx: int) -> None:
        rows, classes = batch
        self.f1(self(rows), classes)
        self.log("f1", self.f1, on_epoch=True, batch_size=len(rows))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=LR)


class _Progress(Callback):
    """Records seconds and the F1 after each epoch, and prints them.

    Attributes:
        curve: (seconds since the start of fit, F1 on held-out functions). All counts: compilation,
            validation, and the switch itself.
    """

    def __init__(self) -> None:
        self.curve: list[tuple[float, float]] = []
        self._start = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Records an epoch."""
        self.curve.append(
            (time.perf_counter() - self._start, float(trainer.callback_metrics["f1"]))
        )
        seconds, f1 = self.curve[-1]
        print(f"  epoch {len(self.curve):2}   {seconds:5.1f} s   F1 {f1:.3f}", flush=True)


def main(
    epochs: int = 6, folder: str = "runs/demo-classify", seed: int = 0, max_functions: int = 200
) -> dict[str, Any]:
    """Runs the demo and leaves a figure and what was measured in a folder.

    Args:
        epochs: of each run.
        folder: for figure and results.
        seed: of weights and order.
        max_functions: of a package, for training and again for validation at most.

    Returns:
        The contents of the folder's results.json.
    """
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    quiet_lightning()
    training, held_out = _functions(max_functions)
    vocabulary = _vocabulary(training)
    data = _rows(training, vocabulary), _rows(held_out, vocabulary)
    print(
        f"Task      by its words, which of {len(PACKAGES)} packages of Python a function is of\n"
        f"Data      {len(training):,} functions, and {len(held_out):,} of other files held out, up "
        f"to {WORDS[1]} words each\n"
        f"Machine   {torch.get_num_threads()} threads, PyTorch {torch.__version__}\n"
        f"Project   embedding, packed torch.nn.LSTM of 128 units, linear; Adam, {epochs} epochs"
    )
    results: dict[str, Any] = {"epochs": epochs, "seed": seed, "runs": {}}
    for name, callbacks in (("torch.nn.LSTM", []), ("SwitchRNN()", [SwitchRNN()])):
        print(f"\n{'Trainer(callbacks=[SwitchRNN()])' if callbacks else 'Trainer()'}", flush=True)
        results["runs"][name] = _run(data, len(vocabulary), epochs, seed, callbacks)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    figure = draw_classify(results, out / "demo.png")
    print(
        f"\n{_table(results)}\n\n{_verdict(results)}\n\n"
        f"Figure    {figure or 'none: pip install matplotlib'}\n"
        "Next      the same in your project: Trainer(callbacks=[lightning_lrnn.SwitchRNN()])"
    )
    return results


def _functions(most: int) -> tuple[list[Function], list[Function]]:
    """Functions to train on, and to hold out."""
    library = Path(sysconfig.get_path("stdlib"))
    parts: tuple[list[Function], list[Function]] = ([], [])
    for number, package in enumerate(PACKAGES):
        of_package: tuple[list[Function], list[Function]] = ([], [])
        for k, file in enumerate(sorted((library / package).rglob("*.py"))):
            held_out = k % HELD_OUT == HELD_OUT - 1
            if "test" not in file.relative_to(library / package).parts:
                of_package[held_out].extend((words, number) for words in _words(file))
        for part, functions in zip(parts, of_package, strict=True):
            part += functions[:: max(1, len(functions) // most)][:most]
    return parts


def _words(file: Path) -> list[list[str]]:
    """The words and signs of each function in a file."""
    source = file.read_text(encoding="utf-8")
    lines = source.splitlines()
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    texts = ["\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in nodes]
    functions = [WORD.findall(text)[: WORDS[1]] for text in texts]
    return [words for words in functions if len(words) >= WORDS[0]]


def _vocabulary(functions: list[Function]) -> dict[str, int]:
    """A number for each word that comes twice, above 0, and 0 for all others."""
    counts = Counter(word for words, _ in functions for word in words)
    return {"": 0} | {w: k for k, w in enumerate((w for w, n in counts.items() if n > 1), 1)}


def _rows(functions: list[Function], vocabulary: dict[str, int]) -> list[Row]:
    return [(torch.tensor([vocabulary.get(w, 0) for w in words]), k) for words, k in functions]


def _collate(rows: list[Row]) -> tuple[list[Tensor], Tensor]:
    functions, classes = zip(*rows, strict=True)
    return list(functions), torch.tensor(classes)


def _run(
    data: tuple[list[Row], list[Row]],
    vocabulary: int,
    epochs: int,
    seed: int,
    callbacks: list[SwitchRNN],
) -> dict[str, Any]:
    pl.seed_everything(seed, verbose=False)
    model, progress = Classifier(vocabulary), _Progress()
    options: dict[str, Any] = {"batch_size": BATCH_SIZE, "collate_fn": _collate}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        gradient_clip_val=1.0,
        callbacks=[*callbacks, progress],
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # The data loader draws its order from a generator of its own, so that both runs see the same.
    order = torch.Generator().manual_seed(seed)
    trainer.fit(
        model,
        DataLoader(data[0], shuffle=True, generator=order, **options),  # type: ignore[arg-type]
        DataLoader(data[1], **options),  # type: ignore[arg-type]
    )
    kinds = [
        kind.__name__ for kind in type(model.rnn).__mro__ if "lightning_lrnn" in kind.__module__
    ]
    return {
        "layer": kinds[0] if kinds else "torch.nn.LSTM",
        "parameters": sum(p.numel() for p in model.rnn.parameters()),
        "curve": progress.curve,
    }


def _table(results: dict[str, Any]) -> str:
    before, after = results["runs"].values()
    formats: dict[str, Callable[[Any], str]] = {
        "layer": lambda run: run["layer"],
        "its parameters": lambda run: f"{run['parameters']:,}",
        "seconds of training": lambda run: f"{run['curve'][-1][0]:.1f}",
        "F1, last epoch": lambda run: f"{run['curve'][-1][1]:.3f}",
    }
    rows = [[name, form(before), form(after)] for name, form in formats.items()]
    return text_table([["", "before", "after"], *rows])


def _verdict(results: dict[str, Any]) -> str:
    """Time and quality, in a line each, whoever is ahead."""
    (before, f1_before), (after, f1_after) = (r["curve"][-1] for r in results["runs"].values())
    faster = after < before
    times = before / after if faster else after / before
    change = f1_after - f1_before
    quality = (
        "the same"
        if abs(change) < 0.005
        else f"{change:+.3f}, {'better' if change > 0 else 'worse'}"
    )
    return (
        f"Time: the switched run took {after:.0f} s instead of {before:.0f} s, "
        f"{times:.1f} times as {'fast' if faster else 'long'}, its compilation included.\n"
        f"Quality: F1 on functions of files that neither has seen: {quality} (one seed)."
    )
