"""`lightning-lrnn demo ranks`: one sequence over several processes of this machine, and over one.

Both runs are `lightning-lrnn fit` with a config that is written to the folder; the second one has a
strategy more.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lightning_lrnn.callbacks.callback import Callback
from lightning_lrnn.cli.tables import text_table
from lightning_lrnn.core.checks import UserError
from lightning_lrnn.core.process_memory import process_memory, process_peak

__all__ = ["Noted", "main"]

CONFIG = """\
seed_everything: {seed}
model:
  class_path: LanguageModel
  init_args: {{rnn: GILRLSTM, hidden_size: 32, num_layers: 2, dropout: 0, warmup_steps: 1}}
data:
  class_path: ByteText
  init_args: {{batch_size: 1, window: {window}}}
trainer:
  accelerator: cpu
  max_steps: {steps}
  limit_val_batches: 0
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_lrnn.cli.demos.ranks.Noted
"""
SHARED = """\
  devices: {ranks}
  strategy:
    class_path: lightning_lrnn.pl.SequenceParallelStrategy
"""


class Noted(Callback):
    """Writes the losses, the seconds of steps and the growth of memory of each process to a file.

    Args:
        folder: for rank0.json, rank1.json, ...
    """

    def __init__(self, folder: str = ".") -> None:
        self.folder = folder
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self._memory: int | None = None
        self._since = 0.0

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        """Starts the clock; before the first step also reads the memory in use."""
        if not self.losses:
            self._memory = process_memory()
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Records a step."""
        self.seconds.append(time.perf_counter() - self._since)
        self.losses.append(trainer.callback_metrics["train/loss"].item())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Writes the file."""
        peak = process_peak()
        measured = peak is not None and self._memory is not None
        growth = peak - self._memory if measured else None  # type: ignore[operator]
        record = {"losses": self.losses, "seconds": self.seconds, "bytes": growth}
        file = Path(self.folder, f"rank{trainer.global_rank}.json")
        file.write_text(json.dumps(record), encoding="utf-8")


def main(
    ranks: int = 2,
    window: int = 65_536,
    steps: int = 5,
    folder: str = "runs/demo-ranks",
    seed: int = 0,
) -> dict[str, Any]:
    """Runs the demo.

    Args:
        ranks: processes that share the sequence.
        window: its steps, a multiple of `ranks`.
        steps: updates of each run.
        folder: for configs and what the runs leave.
        seed: of weights and data.

    Returns:
        By "one" and "shared" a list with the record of each process.

    Raises:
        UserError: if the window cannot be shared, or a run fails.
    """
    if window % ranks:
        raise UserError(f"`window` must be a multiple of {ranks} ranks, got {window}")
    config = CONFIG.format(seed=seed, window=window, steps=steps)
    strategy = SHARED.format(ranks=ranks)
    print(
        f"A text of {window:,} bytes, a GILR-LSTM language model, {steps} updates; one thread for\n"
        f"each process. The second run has this more in its config:\n\n{strategy}",
        flush=True,
    )
    texts = {"one": config, "shared": config + strategy}
    records = {name: _run(Path(folder, name), text) for name, text in texts.items()}
    one, shared = records["one"], records["shared"]
    rows = [["update", "loss, one process", f"loss, {ranks} processes"]]
    for k, (a, b) in enumerate(zip(one[0]["losses"], shared[0]["losses"], strict=True), 1):
        rows.append([str(k), f"{a:.6f}", f"{b:.6f}"])
    print(text_table(rows, left=0) + "\n")
    rows = [["", "one process", f"each of {ranks}"]]
    if all(note["bytes"] is not None for notes in records.values() for note in notes):
        peaks = [max(note["bytes"] for note in notes) / 2**20 for notes in (one, shared)]
        share = f"{peaks[1]:.0f} ({peaks[1] / peaks[0]:.2f} of it)"
        rows.append(["peak memory, MiB", f"{peaks[0]:.0f}", share])
    slowest = [max(statistics.median(note["seconds"]) for note in notes) for notes in (one, shared)]
    rows.append(["seconds of an update", *(f"{s:.2f}" for s in slowest)])
    print(text_table(rows))
    print("\ndocs/ranks.md has more: several machines, layers without Lightning, what it costs")
    return records


def _run(folder: Path, config: str) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("rank*.json"):
        old.unlink()
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    words = [sys.executable, "-m", "lightning_lrnn", "fit", "--config", "config.yaml"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        (folder / "log.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise UserError(f"the run in {folder} failed, see log.txt there: {''.join(last)}")
    notes = sorted(folder.glob("rank*.json"), key=lambda path: int(path.stem[4:]))
    return [json.loads(note.read_text(encoding="utf-8")) for note in notes]
