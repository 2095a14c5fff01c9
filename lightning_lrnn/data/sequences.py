"""Sequences of features with their targets, one by one and in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_sequence

from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.text.windows import IGNORE

__all__ = ["SequenceBatch", "SequenceRow", "SequenceRows", "collate"]


class SequenceRow(NamedTuple):
    """One sequence. T = steps, F = features, H = steps ahead, K = forecast columns.

    Attributes:
        inputs: (T, F) float, or (T,) int64, the indices of one-hot vectors; T at least 1.
        targets: () int64, the class of the sequence; or (T,) int64, the class of each step,
            `IGNORE` where it has none; or (H, K) float, what comes next, NaN where unknown.
        offset: (1, K), of a forecast: value in the units of the user = offset + scale * target;
            float64 where these have more digits than float32.
        scale: (1, K), ".
    """

    inputs: Tensor
    targets: Tensor
    offset: Tensor | None = None
    scale: Tensor | None = None


class SequenceRows(Protocol):
    """What a data set has to have: a list of rows will do."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def __getitem__(self, index: int, /) -> SequenceRow:
        """Returns the row with this index."""
        ...


class SequenceBatch(NamedTuple):
    """Several sequences. B = rows, T = steps of the longest.

    Attributes:
        inputs: (B, T, F) float or (B, T) int64, 0 behind the end of a row; or packed rows, in any
            order.
        targets: (B,) int64; or (B, T) int64, `IGNORE` behind the end; or (B, H, K) float.
        lengths: (B,) int64, the steps of each row; None if all have T, and for packed rows, which
            have their own.
        reset: (B, T) bool, True where a document starts; None for nowhere.
        offset: (B, 1, K) or (1, 1, K), as in `SequenceRow`.
    """

    inputs: Tensor | PackedSequence
    targets: Tensor
    lengths: Tensor | None = None
    reset: Tensor | None = None
    offset: Tensor | None = None
    scale: Tensor | None = None


def collate(
    rows: Sequence[SequenceRow], packed: bool = False, single: bool = False
) -> SequenceBatch:
    """A batch of rows, in their order.

    Args:
        rows: at least one.
        packed: pack the inputs; otherwise they are padded.
        single: offset and scale in float32 whatever they are, for a device without float64.

    Raises:
        DataError: if the rows do not fit together.
    """
    inputs = [row.inputs for row in rows]
    shapes = sorted({tuple(x.shape[1:]) for x in inputs})
    lengths = torch.tensor([len(x) for x in inputs])
    indices = not inputs[0].is_floating_point()
    if len(shapes) > 1 or len(shapes[0]) != (0 if indices else 1) or not int(lengths.min()):
        raise DataError(
            "the inputs of every row must be (T, F), or integers (T,), with the same F and T at "
            f"least 1, got {', '.join(str(tuple(x.shape)) for x in inputs[:8])}"
        )
    equal = int(lengths.min()) == int(lengths.max())
    batch = SequenceBatch(
        inputs=(
            pack_sequence(inputs, enforce_sorted=False)
            if packed
            else pad_sequence(inputs, batch_first=True)
        ),
        targets=_targets([row.targets for row in rows], inputs),
        lengths=None if packed or equal else lengths,
    )
    offset = [row.offset for row in rows if row.offset is not None]
    scale = [row.scale for row in rows if row.scale is not None]
    if offset and scale:
        given = (torch.stack(offset), torch.stack(scale))
        offsets, scales = (x.float() if single else x for x in given)
        batch = batch._replace(offset=offsets, scale=scales)
    return batch


def _targets(targets: list[Tensor], inputs: list[Tensor]) -> Tensor:
    if targets[0].ndim != 1:
        return torch.stack(targets)
    for target, x in zip(targets, inputs, strict=True):
        if len(target) != len(x):
            raise DataError(
                f"a class for each step is wanted, got {len(target)} classes for {len(x)} steps"
            )
    return pad_sequence(targets, batch_first=True, padding_value=IGNORE)
