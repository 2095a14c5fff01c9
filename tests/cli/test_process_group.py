"""`lightning-lrnn fit` on several processes of a CPU: no thread of gloo is left when they exit.

Seen to fail: no callback `ProcessGroup`. What such a thread does to a process that exits comes now
and then: it aborts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import OPTIONS, TINY

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")

THREADS = """
import atexit, json, os
from pathlib import Path
import pytorch_lightning as pl

seen = {}

def of_gloo():
    names = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]

def write():  # registered before all others, and so called after them
    if seen:
        Path(f"{seen['rank']}.json").write_text(json.dumps([seen["threads"], of_gloo()]))

atexit.register(write)

class Threads(pl.Callback):
    def __init__(self, breaks: bool = False):
        self.breaks = breaks

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.breaks and trainer.global_rank == 1:
            raise OSError("broken")

    def on_train_end(self, trainer, module):
        seen.update(rank=trainer.global_rank, threads=len(of_gloo()))
"""


def fit(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "text").write_text("def f(x):\n    return x + 1\n" * 800)
    (folder / "threads.py").write_text(THREADS)
    words = (*words, "--data.path=text", "--trainer.max_steps=2", "--trainer.limit_val_batches=0")
    words = ("--trainer.devices=2", "--trainer.callbacks+=threads.Threads", *words)
    return subprocess.run(
        [sys.executable, "-m", "lightning_lrnn", "fit", *OPTIONS, *TINY, *words],
        env={**os.environ, "PYTHONPATH": "."}, cwd=folder,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("ddp_spawn", marks=pytest.mark.nightly)])
def test_no_thread_of_gloo_outlives_a_good_run(strategy: str, tmp_path: Path) -> None:
    done = fit(tmp_path, f"--trainer.strategy={strategy}")
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in range(2):
        while_training, at_exit = json.loads((tmp_path / f"{rank}.json").read_text())
        assert while_training > 0
        assert at_exit == []


def test_a_run_that_breaks_in_one_process_has_another_status(tmp_path: Path) -> None:
    done = fit(tmp_path, "--trainer.strategy=ddp", "--trainer.callbacks.breaks=true")
    assert done.returncode not in (0, None)
    assert "broken" in done.stderr
