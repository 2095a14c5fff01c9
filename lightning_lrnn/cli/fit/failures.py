"""Which errors of a run are a mistake of the user, and the sentence for each."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.exceptions import MisconfigurationException

from lightning_lrnn.backends import BackendError
from lightning_lrnn.cli.fit.parser import one_sentence
from lightning_lrnn.modules.base import ResumeError

__all__ = ["is_of_lightning", "of_construction", "of_run"]

MONITOR = "Early stopping conditioned on metric"
UNUSABLE = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
"""Errors of the system where nothing can be written."""


def of_run(error: Exception, path: str | None, overruled: dict[str, Any]) -> str | None:
    """Explains an error of a trainer.

    Args:
        error: what it raised.
        path: of the checkpoint that it restored, if any.
        overruled: options that are typed and other than the checkpoint's.

    Returns:
        A sentence, or None for a bug.
    """
    if isinstance(error, ResumeError):
        return f"{path}: {error}"
    if path and _is_of_checkpoint(error):
        return _misfit(path, error, overruled)
    if is_of_lightning(error) or MONITOR in str(error):
        return one_sentence(str(error))
    if isinstance(error, UNUSABLE) and error.filename:
        return f"{error.filename} cannot be used ({error.strerror}); choose another folder"
    return None


def of_construction(error: Exception, options_of: str | None) -> str | None:
    """Explains an error of making a model, its data or its trainer.

    Args:
        error: what was raised.
        options_of: path of a checkpoint whose options are in use, if any.

    Returns:
        A sentence, or None for a bug.
    """
    refused = isinstance(error, RuntimeError) and "allocate" in str(error)
    if isinstance(error, MemoryError) or refused:
        return (
            f"there is not enough memory for this model ({one_sentence(str(error))[:200]}); make "
            f"it smaller, by `hidden_size` perhaps"
        )
    # jsonargparse's own error has the whole config in it; its cause is what a class said about its
    # arguments.
    causes = (ValueError, BackendError, *([TypeError] if options_of else []))
    if not isinstance(error, ValueError) or not isinstance(error.__cause__, causes):
        return None
    owner = f"{options_of} has options that do not fit: " if options_of else ""
    return one_sentence(f"{owner}{error.__cause__}")


def _is_of_checkpoint(error: BaseException) -> bool:
    """Whether an error was raised while a trainer restored a checkpoint, or by what it restored.

    Progress, schedules and states of optimizers are taken as they come and fail when they are used.
    """
    trace, file = error.__traceback__, Path()
    while trace is not None:
        code = trace.tb_frame.f_code
        file = Path(code.co_filename)
        if file.name == "checkpoint_connector.py" and code.co_name.lstrip("_").startswith("res"):
            return True
        trace = trace.tb_next
    return any(part in file.as_posix() for part in ("torch/optim/", "pytorch_lightning/loops/"))


def is_of_lightning(error: BaseException) -> bool:
    """Whether Lightning's trainer refused what is configured, with a message of its own."""
    if isinstance(error, MisconfigurationException):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1].filename.replace("\\", "/")
    inside = "/pytorch_lightning/" in last or "/lightning_fabric/" in last
    return inside and isinstance(error, (ValueError, TypeError))


def _misfit(path: str, error: Exception, overruled: dict[str, Any]) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Error(s) in loading state_dict"):
        lines = lines[1:]
    first = lines[0] if lines else type(error).__name__
    typed = ", ".join(f"--model.{name}" for name in overruled)
    remedy = (
        f"leave out {typed}, which the checkpoint has otherwise"
        if typed
        else "give a checkpoint of this model, data and trainer"
    )
    return f"{path} does not fit what is configured ({first[:300]}); {remedy}"
