"""Two hundred steps of sequences that four processes share, one of which is killed on the way.

Seen to fail: the segment of the next rank; a gradient that counts four times.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
import torch.distributed as dist
from commands import OPTIONS, TINY

pytestmark = [
    pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo"),
    pytest.mark.nightly,
]

STEPS, EVERY, KILLED = 200, 20, 110
CONFIG = f"""
trainer:
  devices: 4
  max_steps: {STEPS}
  max_epochs: -1
  limit_val_batches: 0
  callbacks:
    - class_path: losses.Losses
    - class_path: pytorch_lightning.callbacks.ModelCheckpoint
      init_args:
        {{dirpath: kept, filename: "{{step}}", every_n_train_steps: {EVERY}, save_top_k: -1}}
  strategy:
    class_path: lightning_lrnn.pl.SequenceParallelStrategy
"""
LOSSES = f"""
import os, signal
import pytorch_lightning as pl

class Losses(pl.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_rank == 0:
            loss = trainer.callback_metrics["train/loss"].item()
            print("SEEN", trainer.global_step, "%.9f" % loss, flush=True)
        if trainer.global_rank == 2 and trainer.global_step == {KILLED} and "KILL" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def words(*more: str) -> list[str]:
    own = ("--data.path=text", "--data.window=64", "--data.batch_size=4", "--config=ranks.yaml")
    options = [
        word
        for word in OPTIONS
        if not word.startswith(("--data", "--trainer.max", "--trainer.limit_val"))
    ]
    return ["-m", "lightning_lrnn", "fit", *options, *TINY, *own, *more]


def losses(said: str) -> dict[int, float]:
    actual = re.findall(r"^SEEN (\d+) (\S+)$", said, re.M)
    return {int(step): float(loss) for step, loss in actual}


def test_a_run_of_four_is_that_of_one_and_goes_on_with_fewer(tmp_path: Path) -> None:
    lines = [f"def f{k}(x):\n    return x * {k * k} + {k % 7}\n" for k in range(2_000)]
    (tmp_path / "text").write_text("".join(lines))
    (tmp_path / "ranks.yaml").write_text(CONFIG)
    (tmp_path / "losses.py").write_text(LOSSES)
    alone = "--trainer.devices=1", "--trainer.strategy=auto"
    whole = losses(processes.run(*words(*alone), folder=tmp_path).stdout)
    assert sorted(whole) == list(range(1, STEPS + 1)) and whole[STEPS] < 0.8 * whole[1]

    for file in (tmp_path / "kept").iterdir():
        file.unlink()
    began = time.monotonic()
    killed = subprocess.run(
        [sys.executable, *words()],
        cwd=tmp_path, env=os.environ | {"KILL": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert killed.returncode not in (0, None), killed.stderr[-2000:]
    assert time.monotonic() - began < 250
    shared = losses(killed.stdout)
    assert max(shared) >= KILLED - 1
    assert shared == pytest.approx({step: whole[step] for step in shared}, rel=1e-5)

    last = KILLED // EVERY * EVERY
    kept = sorted((tmp_path / "kept").iterdir())
    assert f"step={last}.ckpt" in {file.name for file in kept} and len(kept) == last // EVERY
    rest = {step: whole[step] for step in range(last + 1, STEPS + 1)}
    for how in (alone, ("--trainer.devices=2",)):
        resumed = processes.run(*words(*how, f"--ckpt_path=kept/step={last}.ckpt"), folder=tmp_path)
        assert losses(resumed.stdout) == pytest.approx(rest, rel=1e-5)
