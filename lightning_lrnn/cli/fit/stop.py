"""SIGTERM: every process ends after the same step, the command with the status of the signal."""

from __future__ import annotations

import atexit
import contextlib
import signal
import subprocess
import time
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from lightning_lrnn.cli.fit.process_group import end_group

__all__ = ["STATUS", "Stop"]

STATUS = 128 + signal.SIGTERM
"""The status that a shell reports for a process that ended by the signal."""
GRACE = 30.0
"""Seconds that other processes have to come to their end."""


class Stop(pl.Callback):
    """Stops a trainer after SIGTERM.

    Lightning's own handler starts a collective operation wherever the process is, which the others
    answer with another one, and wait; and training ends where only one process knows. Here the
    handler sets a flag, and the processes reduce their flags before each step of training, in place
    of Lightning's broadcast from the first of them.

    Args:
        trainer: whose handler is replaced.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer, self._asked = trainer, False
        self._children: list[subprocess.Popen[bytes]] = []
        signals: Any = trainer._signal_connector
        signals._sigterm_notifier_fn = self._note
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = (  # type: ignore[method-assign]
            self._agree
        )

    def _note(self, signum: Any, frame: Any) -> None:
        launcher: Any = self._trainer.strategy.launcher
        if not self._asked and hasattr(launcher, "kill"):
            launcher.kill(signum)
        self._asked = True
        if self._trainer.world_size == 1:
            self._trainer._signal_connector.received_sigterm = True

    def _agree(self) -> None:
        asked = torch.tensor([int(self._asked)], device=self._trainer.strategy.root_device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        if asked.item():
            # All processes are here, and none waits for another.
            atexit.register(end_group)
            self._end()

    def _look(self, trainer: pl.Trainer) -> None:
        # Evaluation asks nobody: processes may have different numbers of batches. Those of `fit`
        # end before the next step of training.
        if self._asked and trainer.state.fn != "fit":
            self._end()

    def _end(self) -> NoReturn:
        # Lightning kills the process whose children end with another status than 0.
        children = getattr(self._trainer.strategy.launcher, "procs", [])
        if all(isinstance(child, subprocess.Popen) for child in children):
            self._children += children
            children.clear()
        raise SIGTERMException

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Ends an evaluation."""
        self._look(trainer)

    def on_test_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Ends an evaluation."""
        self._look(trainer)

    def on_predict_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Ends a prediction."""
        self._look(trainer)

    def end_children(self) -> None:
        """Waits for the processes that the trainer has started, and kills those that do not end."""
        until = time.monotonic() + GRACE
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, until - time.monotonic()))
            if child.poll() is None:
                child.kill()
