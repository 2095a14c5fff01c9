"""Windows over series: where they lie, and as rows of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lrnn.data.sequences import SequenceRow

__all__ = ["ForecastRows", "Span", "StepRows", "forecast_starts", "spans_by_time", "step_spans"]


class Span(NamedTuple):
    """Steps `start` to `stop` - 1 of a series."""

    series: int
    start: int
    stop: int


def spans_by_time(
    series: int, steps: int, val_fraction: float, test_fraction: float
) -> dict[str, Span]:
    """A series cut in three: train, then val, then test."""
    val = round(steps * (1 - val_fraction - test_fraction))
    test = round(steps * (1 - test_fraction))
    return {
        "train": Span(series, 0, val),
        "val": Span(series, val, test),
        "test": Span(series, test, steps),
    }


def forecast_starts(span: Span, window: int, horizon: int, stride: int) -> range:
    """First steps of the windows whose targets lie in a span, all of them.

    What lies before the span is known by then, so a window may reach back there.
    """
    return range(max(0, span.start - window), span.stop - window - horizon + 1, stride)


def step_spans(span: Span, window: int | None, stride: int) -> list[Span]:
    """Windows that cover a span; the last may be shorter. The span itself if `window` is None."""
    if window is None or span.stop - span.start <= window:
        return [span] if span.stop > span.start else []
    # No further one once the end is reached.
    starts = range(span.start, span.stop - window + stride, stride)
    return [Span(span.series, start, min(start + window, span.stop)) for start in starts]


class ForecastRows:
    """Windows, and what comes next. Slices of memory: windows that overlap cost nothing.

    Args:
        inputs: of each series, (T, F).
        targets: of each series, (T, K), scaled.
        starts: series and first step of each window.
        window: steps of the inputs.
        horizon: steps of the targets.
        offset: of each series, (1, K).
        scale: of each series, (1, K).
        known: bool (F,), the inputs that are known of the steps ahead; None to use none. Else a
            window goes on for these, with 0 for the others and a last column that is 1 there.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor],
        targets: Sequence[Tensor],
        starts: Sequence[tuple[int, int]],
        window: int,
        horizon: int,
        offset: Sequence[Tensor],
        scale: Sequence[Tensor],
        known: Tensor | None = None,
    ) -> None:
        self.known = known
        self.inputs, self.targets, self.starts = inputs, targets, starts
        self.window, self.horizon = window, horizon
        self.offset, self.scale = offset, scale

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.starts)

    def __getitem__(self, index: int) -> SequenceRow:
        """Returns the window with this index."""
        series, start = self.starts[index]
        middle = start + self.window
        inputs = self.inputs[series][start:middle]
        if self.known is not None:
            ahead = self.inputs[series][middle : middle + self.horizon] * self.known
            inputs = F.pad(torch.cat([inputs, ahead]), (0, 1))
            inputs[self.window :, -1] = 1
        return SequenceRow(
            inputs,
            self.targets[series][middle : middle + self.horizon],
            self.offset[series],
            self.scale[series],
        )


class StepRows:
    """Windows with the class of each, or of each of their steps.

    Args:
        inputs: of each series, (T, F).
        targets: of each series, () or (T,).
        spans: where the windows lie.
    """

    def __init__(
        self, inputs: Sequence[Tensor], targets: Sequence[Tensor], spans: Sequence[Span]
    ) -> None:
        self.inputs, self.targets, self.spans = inputs, targets, spans

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.spans)

    def __getitem__(self, index: int) -> SequenceRow:
        """Returns the window with this index."""
        series, start, stop = self.spans[index]
        target = self.targets[series]
        return SequenceRow(
            self.inputs[series][start:stop], target[start:stop] if target.ndim else target
        )
