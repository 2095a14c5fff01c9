"""The processes of a run end their group before they exit."""

from __future__ import annotations

import atexit

import pytorch_lightning as pl
from torch import distributed

__all__ = ["ProcessGroup", "end_group"]


def end_group() -> None:
    """Destroys the group, if there is one, and with it the threads of gloo.

    A thread of gloo that is still there when the interpreter ends aborts the process now and then:
    a good run then has another status than 0, and the process that started it kills the others.
    Lightning ends groups of NCCL only. After an error the group stays: its threads may wait for
    processes that are gone.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


class ProcessGroup(pl.Callback):
    """Ends the group when the process exits after a good run.

    Not when the run ends: another may follow in the same process, and in the same group. A process
    that the strategy has started has no code of ours after the run.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ends the group at exit of each process of the run."""
        atexit.unregister(_end_if_finished)
        atexit.register(_end_if_finished, trainer)


def _end_if_finished(trainer: pl.Trainer) -> None:
    if trainer.state.finished:
        end_group()
