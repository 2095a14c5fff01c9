"""Checkpoint files: read as data, not as code; written as a whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.utilities.cloud_io import get_filesystem
from torch import Tensor

from lightning_lrnn.core.checks import UserError

__all__ = ["CheckpointError", "CheckpointFiles", "check", "read", "settle"]

REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://|[a-z0-9]+::", re.IGNORECASE)
FOREIGN = re.compile(r"GLOBAL (\S+)")
"""PyTorch's message on a class or function that a file of plain data may not name."""
SIZES = {
    "": ("num_layers", "hidden_size", "num_features", "num_classes", "horizon", "num_targets"),
    "rnn.": ("num_layers", "window", "blocks"),
}
"""Options of a model and its layer that are at most the number of its parameters."""
REMEDY = "give a file that `lightning-lrnn fit` wrote"


class CheckpointError(UserError):
    """A checkpoint cannot be read, used or written; the message is one sentence."""


class CheckpointFiles(TorchCheckpointIO):
    """Reads and writes checkpoints in place of Lightning's own plugin.

    Lightning's reads a URL as code; it writes into the folder of temporary files, and moves, which
    between two file systems is a copy: a process that is killed in it leaves half a file.
    """

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a file; one that a strategy writes for other processes has weights alone."""
        contents: dict[str, Any] = _contents(str(path), weights_only is not False, map_location)
        return contents

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Writes beside the file, to the disk, and renames.

        Raises:
            CheckpointError: if that fails; the former file is unchanged.
        """
        if REMOTE.match(str(path)):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            _sync_folder(target.parent)
        except BaseException as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            if not isinstance(error, OSError):
                raise
            raise CheckpointError(
                f"the checkpoint {target} cannot be written ({error.strerror or error}); make room "
                f"or choose another folder, `trainer.default_root_dir` or the logger's `save_dir`"
            ) from error


def read(path: str, weights_only: bool = True) -> dict[str, Any]:
    """Returns the contents of a checkpoint.

    Args:
        path: a file, or a URL that fsspec knows.
        weights_only: tensors and plain data only; False runs whatever code the file names.

    Raises:
        CheckpointError: if it does not exist or is not a checkpoint.
    """
    contents = _contents(path, weights_only, "cpu")
    check(contents, path)
    assert isinstance(contents, dict)
    return contents


def _contents(path: str, weights_only: bool, map_location: Any) -> Any:
    try:
        if not REMOTE.match(path) and not Path(path).is_file():
            reason = "is not a file" if os.path.exists(path) else "is not there"
            raise CheckpointError(
                f"there is no checkpoint {path}, it {reason}; `lightning-lrnn fit` writes them "
                f"into the folder `checkpoints` beside its logs"
            )
        opened = get_filesystem(path).open if REMOTE.match(path) else open
        with opened(path, "rb") as file:
            return torch.load(file, map_location=map_location, weights_only=weights_only)
    except CheckpointError:
        raise
    # For a damaged file torch.load may raise any exception.
    except Exception as error:
        raise CheckpointError(_sentence(path, error)) from error


def settle(contents: dict[str, Any]) -> None:
    """Has Lightning go on where a run was: inside an epoch, or with the next one.

    Lightning counts an epoch that `max_steps`, a Timer or an early stop ended half way as over; and
    with `max_steps` it goes on after an epoch with another one, of no batches.

    Args:
        contents: of a checkpoint, whose counts are changed.
    """
    loop = (contents.get("loops") or {}).get("fit_loop") or {}
    epochs, batches = loop.get("epoch_progress"), loop.get("epoch_loop.batch_progress")
    if not epochs or not batches or not batches["current"]["ready"]:
        return
    if epochs["current"]["started"] < epochs["current"]["ready"]:
        return  # the next epoch has begun, and none of its batches
    now = batches["current"]
    # The last batch may have been begun, and have failed.
    over = batches["is_last_batch"] and now["processed"] == now["ready"]
    batches["is_last_batch"] = False
    for counts in (epochs["total"], epochs["current"]):
        counts["processed"] = counts["completed"] = counts["ready"] - (not over)
    if over:
        if now["completed"] < now["ready"]:
            # Saved before loggers were told that the batch was over.
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
        batches["total"] = dict.fromkeys(now, batches["total"]["ready"])
        batches["current"] = dict.fromkeys(now, 0)


def check(contents: Any, path: str, resumes: bool = False) -> None:
    """Checks that the contents of a file have the form of a checkpoint.

    Args:
        contents: of the file.
        path: of the file, for messages.
        resumes: whether training continues from it, and not only its weights are used.

    Raises:
        CheckpointError: if they do not.
    """
    if not isinstance(contents, dict):
        name = type(contents).__name__
        raise CheckpointError(f"{path} is not a checkpoint but a {name}; {REMEDY}")
    wrong = _wrong_part(contents, resumes)
    if wrong:
        raise CheckpointError(f"{path} is not a checkpoint of Lightning: {wrong}; {REMEDY}")
    if resumes and "optimizer_states" not in contents:
        raise CheckpointError(
            f"{path} has weights only, from which training cannot go on; give one that was saved "
            f"without `save_weights_only`, or evaluate it with `lightning-lrnn test`"
        )


def _wrong_part(contents: dict[Any, Any], resumes: bool) -> str:
    """The part that is missing or of the wrong type; "" if none is."""
    state = contents.get("state_dict")
    if not isinstance(state, Mapping):
        return "it has no `state_dict`" if state is None else "its `state_dict` is no dict"
    for name, value in state.items():
        # A module may have other data there, under a key with this end.
        if not (isinstance(value, Tensor) or str(name).endswith("_extra_state")):
            return f"`state_dict` has a {type(value).__name__} at {name!r}"
    version = contents.get("pytorch-lightning_version")
    if not (isinstance(version, str) and re.match(r"\d+\.\d+", version)):
        return f"its `pytorch-lightning_version` is {version!r}"
    options = contents.get("hyper_parameters", {})
    if not (isinstance(options, Mapping) and all(isinstance(name, str) for name in options)):
        return "its `hyper_parameters` are not options by name"
    if size := _too_large(options, state):
        return f"{size}, and the file has not as many numbers"
    types: dict[str, type] = {"callbacks": dict, "loops": dict}
    if resumes:
        types |= {"epoch": int, "global_step": int, "optimizer_states": list, "lr_schedulers": list}
    for name, type_ in types.items():
        if name in contents and not isinstance(contents[name], type_):
            return f"its `{name}` is a {type(contents[name]).__name__}"
    return ""


def _too_large(options: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """A size option above the file's number of parameters: making the model could take forever."""
    numbers = sum(value.numel() for value in state.values() if isinstance(value, Tensor))
    rnn = options.get("rnn")
    inner = rnn.get("init_args") if isinstance(rnn, Mapping) else None
    for prefix, section in (("", options), ("rnn.", inner if isinstance(inner, Mapping) else {})):
        for name in SIZES[prefix]:
            value = section.get(name)
            if isinstance(value, int) and value > max(numbers, 1):
                return f"`{prefix}{name}` of its `hyper_parameters` is {value}"
    return ""


def _sentence(path: str, error: Exception) -> str:
    """Explains why a file cannot be read."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"the checkpoint {path} cannot be read ({error.strerror})"
    if foreign := FOREIGN.search(message):
        return (
            f"{path} is not read: it names {foreign[1]}, and would run it; {REMEDY}, or, if you "
            f"trust whoever made it with your machine, read it with `--weights_only=false`"
        )
    first = (message.strip().splitlines() or [type(error).__name__])[0]
    return f"{path} cannot be read as a checkpoint ({first.split('. ')[0]}); {REMEDY}"


def _sync_folder(folder: Path) -> None:
    """A renamed file is on the disk when its folder is; some systems have no such call."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
