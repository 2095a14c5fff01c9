"""Which file `--ckpt_path` means."""

from __future__ import annotations

import re
from pathlib import Path

from jsonargparse import Namespace
from pytorch_lightning.utilities import rank_zero_info

from lightning_lrnn.core.checks import UserError

__all__ = ["checkpoint_file", "last_checkpoint"]


def checkpoint_file(command: str, config: Namespace) -> str | None:
    """Returns the path of the checkpoint, None to start from nothing.

    Args:
        command: one of Lightning's subcommands.
        config: its options.

    Raises:
        UserError: if there is none and there has to be one.
    """
    path: str | None = config.get("ckpt_path")
    if path is not None and not path.strip():
        raise UserError("`--ckpt_path` is empty: give a file, or leave it out")
    if path == "best":
        raise UserError(
            "`--ckpt_path best` is the best of a training in the same process, and there was none; "
            "give the file, from the folder `checkpoints` beside the logs"
        )
    if path == "hpc":
        return _hpc_checkpoint(Path(config.trainer.get("default_root_dir") or ".")) or path
    if path != "last":
        return path
    file, where = last_checkpoint(config.trainer)
    if file is None and command != "fit":
        raise UserError(
            f"there is no last checkpoint, no {where}; `fit` writes one with `save_last: true` of "
            f"a ModelCheckpoint, or give another file"
        )
    if file is None:
        # As a job does that is submitted with this option from the start.
        rank_zero_info(f"There is no last checkpoint yet, no {where}: training starts anew.")
        return None
    rank_zero_info(f"The last checkpoint is {file}.")
    return str(file)


def _hpc_checkpoint(folder: Path) -> str | None:
    """The checkpoint with the highest number that Lightning wrote before a job was requeued."""
    numbered = [
        (int(number[1]), str(file))
        for file in folder.glob("hpc_ckpt_*.ckpt")
        if (number := re.search(r"_(\d+)\.ckpt$", file.name))
    ]
    return max(numbered)[1] if numbered else None


def last_checkpoint(trainer: Namespace) -> tuple[Path | None, str]:
    """Returns the newest `last.ckpt` of the runs that write into the same folder.

    Args:
        trainer: the trainer's options.

    Returns:
        The file, None if there is none yet; and where it was looked for, in words.
    """
    patterns = _patterns(trainer)
    files = [file for folder, pattern in patterns for file in folder.glob(pattern)]
    # A run may end, and its files go, while another looks.
    dated = [(file.stat().st_mtime, str(file)) for file in files if file.is_file()]
    where = " and ".join(str(folder / pattern) for folder, pattern in patterns)
    return (Path(max(dated)[1]) if dated else None), where


def _patterns(trainer: Namespace) -> list[tuple[Path, str]]:
    """Folders, and patterns of the names of `last` checkpoints in them."""
    root = Path(trainer.get("default_root_dir") or ".")
    callbacks = trainer.get("callbacks") or []
    named = []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        inner = (callback.get("init_args") if isinstance(callback, Namespace) else None) or {}
        if str(callback.get("class_path", "")).endswith("ModelCheckpoint") and inner.get("dirpath"):
            named.append((Path(inner["dirpath"]), "last*.ckpt"))
    if named:
        return named
    logger = trainer.get("logger")
    logger = logger[0] if isinstance(logger, list) and logger else logger
    if logger is False:
        return [(root, "checkpoints/last*.ckpt")]
    inner = (logger.get("init_args") if isinstance(logger, Namespace) else None) or {}
    # The name of a WandbLogger is the run's; its folder has the project's.
    name = inner.get("project") or inner.get("name") or "lightning_logs"
    save_dir = Path(inner.get("save_dir") or inner.get("root_dir") or root)
    patterns = ("checkpoints/last*.ckpt", "*/checkpoints/last*.ckpt")
    return [(save_dir / str(name), pattern) for pattern in patterns]
