"""Scaling of series by what is in the training part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.scaling import Scaling
from lightning_lrnn.data.table_files import Series
from lightning_lrnn.data.table_rows import Span

__all__ = ["Array", "fit_scalings", "refuse_gaps", "scaled_inputs"]

Array = NDArray[np.float64]


def fit_scalings(
    values: Sequence[Array], train: Sequence[Span], names: Sequence[str], scaling: str
) -> list[Scaling]:
    """The scaling of each series.

    Args:
        values: of each series, (T, F), NaN where there is none.
        train: the steps to fit on.
        names: of the columns, (F,).
        scaling: "standard", one for all series; "group", each series its own, but for columns that
            are without value in its training part: these have that of all; or "none".

    Raises:
        DataError: if a column has no value in the training part.
    """
    parts = {span.series: values[span.series][span.start : span.stop] for span in train}
    every = np.concatenate(list(parts.values()))
    empty = np.isnan(every).all(0)
    if empty.any():
        raise DataError(
            f"column {names[int(np.argmax(empty))]!r} has no value in the training part: leave it "
            "out, or make that part larger"
        )
    if scaling == "none":
        return [Scaling.none(len(names))] * len(values)
    common = Scaling.of([every])
    if scaling == "standard":
        return [common] * len(values)
    return [
        common.where(np.asarray(np.isnan(parts[i]).all(0)), Scaling.of([parts[i]]))
        for i in range(len(values))
    ]


def scaled_inputs(
    features: Sequence[Array], train: Sequence[Span], names: Sequence[str], scaling: str
) -> list[Tensor]:
    """The features of each series, (T, F) float32, with the mean in the place of NaN.

    The mean is that of the training part, also where nothing is scaled. The arguments are those of
    `fit_scalings`.
    """
    scalings = fit_scalings(features, train, names, scaling)
    means = fit_scalings(features, train, names, "standard" if scaling == "none" else scaling)
    return [
        torch.from_numpy(scalings[i](np.where(np.isnan(x), means[i].mean, x)))
        for i, x in enumerate(features)
    ]


def refuse_gaps(series: Sequence[Series], features: Sequence[Array], names: Sequence[str]) -> None:
    """Raises DataError if a feature is NaN anywhere."""
    for one, x in zip(series, features, strict=True):
        if np.isnan(x).any():
            step, column = np.argwhere(np.isnan(x))[0]
            raise DataError(
                f"column {names[column]!r} of {one.source} has no value at step {step + 1} of "
                f"{len(x)}: fill it, leave the column out of `features`, or set `missing: mean`"
            )
