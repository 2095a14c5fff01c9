"""Imported by every Python process that `processes.run` starts, and by those that these start."""

import atexit
import sys


def end_group() -> None:
    """Joins the threads of gloo after a good run; after a bad one they may wait for each other.

    A process of PyTorch with such threads aborts now and then when it exits.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed and not hasattr(sys, "last_value") and distributed.is_initialized():
        distributed.destroy_process_group()


atexit.register(end_group)
