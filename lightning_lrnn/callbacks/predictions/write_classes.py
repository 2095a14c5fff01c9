"""Writes which classes `predict` finds, with their names and those of the sequences."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from lightning_lrnn.callbacks.callback import Callback
from lightning_lrnn.callbacks.predictions.csv_table import (
    check_csv_path,
    refuse_several_processes,
    write_csv,
)
from lightning_lrnn.callbacks.predictions.row_names import NumberedRows, names_of_rows
from lightning_lrnn.data.errors import DataError
from lightning_lrnn.modules.sequence_module import steps_of

__all__ = ["WriteClasses"]


class WriteClasses(Callback):
    """Writes the classes that `Trainer.predict`, or the command `predict`, finds as a CSV table.

    - Of a SequenceClassifier a row for each sequence: what it is called, its most probable class,
      and the probability of each class, "probability_<class>". Where the data cut series into
      windows, the column of `time` ("step" without one) says where a window starts.
    - Of a SequenceTagger a row for each step: what its sequence is called, its time, the most
      probable class and its probability. A step that is in several windows is written once, as the
      first of them has it, which has seen the most steps before it.

    Sequences of a `lightning_lrnn.data.SequenceTable` are called by the columns of `group`, or,
    where a series is a file, by "series"; those of other data are numbered, "row", in the order of
    the predictions. Rows and steps count from 1. Classes have the names of `data.classes`, or, of
    data without any, their numbers, which count from 0.

    Args:
        path: of the CSV (.csv), which is there when all of it is written, in the place of an older
            one.

    Raises:
        lightning_lrnn.data.DataError: for another suffix; in `predict`, for a model without
            classes, data with another number of them, several processes, or if the file cannot be
            written.
    """

    def __init__(self, path: str = "classes.csv") -> None:
        check_csv_path(path)
        self.path = path
        self._classes: list[str] = []
        self._table: dict[str, list[Any]] = {}
        self._names = NumberedRows()
        self._rows = 0
        self._written: dict[int, int] = {}

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises for models, data or processes whose classes could not be written."""
        count: Any = getattr(pl_module, "num_classes", None)
        if not isinstance(count, int):
            raise DataError(
                f"WriteClasses is for a SequenceClassifier or a SequenceTagger, not for "
                f"{type(pl_module).__name__}: leave it out"
            )
        refuse_several_processes(trainer, "classes")
        named = list(getattr(getattr(trainer, "datamodule", None), "classes", ()))
        if named and len(named) != count:
            raise DataError(
                f"the model has {count} classes, the data {len(named)} ({', '.join(named[:8])}"
                f"{', ...' if len(named) > 8 else ''}): predict with the data it was trained on"
            )
        self._classes = named or [str(number) for number in range(count)]
        self._names, self._rows = names_of_rows(trainer), 0
        self._table, self._written = {}, {}
        if taken := {"class", "probability"} & {*self._names.columns, self._names.step}:
            raise DataError(
                f"the table of classes has a column {taken.pop()!r} of its own: give that of "
                "`group` or `time` another name"
            )

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Tensor,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the classes of a batch: probabilities (B, C), or (B, T, C) with its lengths."""
        p = outputs.float().cpu()
        if p.ndim == 2:
            for row in p:
                self._add_sequence(row)
            return
        lengths = steps_of(batch)
        steps = [p.shape[1]] * len(p) if lengths is None else lengths.tolist()
        for row, length in zip(p, steps, strict=True):
            self._add_steps(row[:length])

    def _add_sequence(self, p: Tensor) -> None:
        """A row of the table, of probabilities (C,)."""
        names, row = self._names, self._rows
        self._rows += 1
        cells = dict(zip(names.columns, ([value] for value in names.of(row)), strict=True))
        if names.windows:
            _, first = names.position(row)
            cells[names.step] = list(names.steps(row, first, first + 1))
        cells["class"] = [self._classes[int(p.argmax())]]
        for name, value in zip(self._classes, _rounded(p), strict=True):
            cells[f"probability_{name}"] = [value]
        self._extend(cells)

    def _add_steps(self, p: Tensor) -> None:
        """A row for each step that is not there yet, of probabilities (T, C)."""
        names, row = self._names, self._rows
        self._rows += 1
        sequence, first = names.position(row)
        start, stop = max(first, self._written.get(sequence, 0)), first + len(p)
        self._written[sequence] = max(start, stop)
        best = p[start - first :].max(-1)
        cells = {
            name: [value] * len(best.values)
            for name, value in zip(names.columns, names.of(row), strict=True)
        }
        cells[names.step] = list(names.steps(row, start, stop))
        cells["class"] = [self._classes[number] for number in best.indices.tolist()]
        cells["probability"] = _rounded(best.values)
        self._extend(cells)

    def _extend(self, cells: dict[str, list[Any]]) -> None:
        for name, values in cells.items():
            self._table.setdefault(name, []).extend(values)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the classes of all batches as one table."""
        table, self._table, self._written = self._table, {}, {}
        target = write_csv(self.path, table, "table of classes")
        rank_zero_info(f"The classes are in {target}, {len(table.get('class', [])):,} rows.")


def _rounded(p: Tensor) -> list[float]:
    """Probabilities with the 6 digits of a float32."""
    return [float(f"{value:.6g}") for value in p.tolist()]
