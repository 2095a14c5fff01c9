"""A table of predictions as a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from lightning_lrnn.core.files import write_whole
from lightning_lrnn.data.errors import DataError, why
from lightning_lrnn.data.paths import check_path

__all__ = ["check_csv_path", "refuse_several_processes", "write_csv"]


def check_csv_path(path: str) -> None:
    """Raises DataError for a path that is none, or names another kind of file than a CSV table."""
    check_path(path)
    if Path(path).suffix.lower() != ".csv":
        raise DataError(f"`path` must end in .csv, for a CSV table is written, got {path!r}")


def refuse_several_processes(trainer: pl.Trainer, outputs: str) -> None:
    """Raises DataError where no process has all predictions.

    Args:
        trainer: that predicts.
        outputs: name of the predictions, such as "forecasts".
    """
    if trainer.world_size > 1:
        raise DataError(
            f"each of {trainer.world_size} processes has a part of the {outputs}: predict with "
            "`trainer.devices: 1`"
        )


def write_csv(path: str, columns: Mapping[str, Sequence[Any]], name: str) -> Path:
    """Writes columns of the same length, in the place of an older file when all is written.

    Args:
        path: of the file; folders above it are made.
        columns: by their names.
        name: of the table, for the message.

    Returns:
        The path.

    Raises:
        DataError: if it cannot be written.
    """
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(columns)
    rows.writerows(zip(*columns.values(), strict=True))
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, text.getvalue())
    except OSError as error:
        raise DataError(f"the {name} {target} cannot be written ({why(error)})") from error
    return target
