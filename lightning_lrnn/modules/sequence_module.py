"""The base class of models of feature sequences: encoding of padded and packed batches."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lightning_lrnn.core.ranks import Ranks, gathered, part_of
from lightning_lrnn.data.sequences import SequenceBatch
from lightning_lrnn.modules.residual import ResidualModule, State

__all__ = ["SequenceModule"]


class SequenceModule(ResidualModule):
    """A ResidualModule over sequences of features, (B, T, num_features), of different lengths.

    A step may be an index in place of features, (B, T) integers: k stands for the one-hot vector
    with a 1 at k, which is never made.

    A subclass calls `make_blocks` in its constructor, `features` in `forward`, and says the loss.
    Batches are `lightning_lrnn.data.SequenceBatch` or look like one. Values behind the end of
    a row, NaN too, have no effect.

    Attributes:
        num_features: features of a step.
        encoder: maps a step to the width of the blocks; override `encode` for another encoder.
    """

    num_features: int
    encoder: nn.Module
    checkpoint_time: int | None = None
    """Steps of a chunk that is computed again in the backward pass; None for all at once."""

    def make_blocks(self, rnn: Any, hidden_size: int, num_layers: int, dropout: float) -> None:
        """Makes the encoder as well; needs `num_features`."""
        self.encoder = nn.Linear(self.num_features, hidden_size)
        super().make_blocks(rnn, hidden_size, num_layers, dropout)

    def encode(self, inputs: Tensor) -> Tensor:
        """The input of the blocks, (B, T, hidden_size).

        Args:
            inputs: (B, T, num_features), or indices (B, T), 0 at padding.

        Raises:
            ValueError: if there are more or fewer features. IndexError: on a CPU, for an index that
                is not in 0 to num_features - 1; see `check`.
        """
        if are_indices(inputs):
            columns = cast("nn.Linear", self.encoder)
            return F.embedding(inputs, columns.weight.T + columns.bias)
        self._check_features(inputs)
        encoded: Tensor = self.encoder(inputs.to(next(self.encoder.parameters()).dtype))
        return encoded

    def _check_features(self, inputs: Tensor) -> None:
        if inputs.ndim != 3 or inputs.shape[-1] != self.num_features:
            raise ValueError(
                f"`inputs` have {inputs.shape[-1]} features, the model was made for "
                f"{self.num_features}: set `model.num_features`"
                if inputs.ndim == 3
                else f"`inputs` must be (B, T, {self.num_features}), or integers (B, T), got "
                f"{str(inputs.dtype).removeprefix('torch.')} {tuple(inputs.shape)}"
            )

    def check(self, batch: SequenceBatch) -> None:
        """Raises for features, or indices of them, that the model does not have.

        Subclasses check the targets, too.
        """
        inputs = batch.inputs
        rows = padded(inputs)[0] if isinstance(inputs, PackedSequence) else inputs
        if not are_indices(rows):
            self._check_features(rows)
        else:
            low, high = (int(k) for k in inputs.data.aminmax())
            if low < 0 or high >= self.num_features:
                raise ValueError(
                    f"`inputs` must be indices of 0 to {self.num_features - 1}, as the model was "
                    f"made for {self.num_features} features, got {low if low < 0 else high}: set "
                    "`model.num_features`"
                )

    def features(
        self,
        inputs: Tensor | PackedSequence,
        state: State = None,
        reset: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, State]:
        """The backbone: encoder and blocks.

        Args:
            inputs: (B, T, num_features) or indices (B, T), or packed rows.
            state: that of a call before; None for zeros.
            reset: bool (B, T), True where a document starts.
            lengths: integers (B,), the valid steps of each row; None for all, and for packed rows.

        Returns:
            x (B, T, hidden_size), lengths as given or as packed, and the state after the last step.

        Raises:
            ValueError: for shapes that do not fit.
        """
        inputs, lengths = unpacked(inputs, reset, lengths)
        if lengths is not None:
            outside = ~valid_steps(self.lengths_here(lengths, inputs.shape[1]), inputs.shape[1])
            # The gradient of a weight multiplies an input by 0 there, and NaN times 0 is NaN.
            inputs = inputs.masked_fill(outside.view(*outside.shape, *[1] * (inputs.ndim - 2)), 0)
        # Under autocast the sum over the blocks has the dtype of the parameters.
        x = self.encode(inputs).to(self.norm.weight.dtype)
        x, state = self.blocks(x, state, lengths=lengths, reset=reset)
        return x, lengths, state

    # Where ranks share each sequence.

    def segment(self, batch: SequenceBatch, rank: int, size: int) -> SequenceBatch:
        """Consecutive steps of every row, of as many as `size` divides; lengths stay of whole rows.

        With `checkpoint_time`, the module's or its layers', it is the rank's part of each chunk of
        so many steps, one after the other: all ranks work on the same chunk.
        """
        inputs, lengths = batch.inputs, batch.lengths
        if isinstance(inputs, PackedSequence):
            inputs, lengths = padded(inputs)
        if lengths is None and inputs.shape[1] % size:
            lengths = torch.full(inputs.shape[:1], inputs.shape[1])
        reset = None if batch.reset is None else self.part(batch.reset, rank, size, fill=False)
        inputs = self.part(inputs, rank, size)
        return batch._replace(inputs=inputs, lengths=lengths, reset=reset)

    def part(self, x: Tensor, rank: int, size: int, fill: Any = 0) -> Tensor:
        """This rank's part of (B, T, ·), see `segment`; padded with `fill` at the end."""
        if more := -x.shape[1] % size:
            x = torch.cat([x, x.new_full((len(x), more, *x.shape[2:]), fill)], 1)
        return part_of(x, rank, size, self.chunk)

    @property
    def chunk(self) -> int | None:
        """Time steps that the ranks share at a time, by `checkpoint_time`; None for all."""
        own, of_layers = self.checkpoint_time, self.chunk_of_layers
        if own and of_layers:
            raise ValueError(
                f"ranks share chunks either of the model's `checkpoint_time`, {own}, or of that of "
                f"its layers, {of_layers}: set one of them to None"
            )
        return own or of_layers

    def lengths_here(self, lengths: Tensor, steps: int) -> Tensor:
        """The valid steps of each row on this rank, (B,), by lengths of whole rows."""
        if self.group is None:
            return lengths
        return self.group.within(lengths, steps, self.chunk_of_layers)

    def of_end(self, x: Tensor, lengths: Tensor | None, steps: int) -> Tensor:
        """x (B, ·) of the rank with the last valid step of each row; 0 if a row has none.

        Args:
            x: from `last_step` on this rank, or on its last chunk with a step of the row.
            lengths: of whole rows; None if all their steps are valid.
            steps: number of steps on this rank.
        """
        ranks = self.group
        if ranks is None:
            return x
        if lengths is None:
            lengths = torch.full((len(x),), steps * ranks.size)
        lengths = lengths.to(x.device)
        is_here = (lengths > 0) & (ranks.of_last(lengths, steps, self.chunk) == ranks.rank)
        return from_rank(x, is_here, ranks)


def from_rank(x: Tensor, is_here: Tensor, ranks: Ranks) -> Tensor:
    """The rows of x (B, ·) from the rank on which `here` (B,) is True; 0 if on none."""
    return gathered(x.masked_fill(~is_here[:, None], 0), ranks).sum(0)


def are_indices(inputs: Tensor) -> bool:
    """Whether they are (B, T) integers, which stand for one-hot vectors."""
    return inputs.ndim == 2 and not (inputs.is_floating_point() or inputs.is_complex())


def unpacked(
    inputs: Tensor | PackedSequence, reset: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Inputs (B, T, ·) and lengths (B,) or None, of packed rows their own."""
    if not isinstance(inputs, PackedSequence):
        return inputs, lengths
    if lengths is not None or reset is not None:
        raise ValueError(
            "packed `inputs` have lengths of their own, and no `reset`: give the padded tensor "
            "with `lengths` and `reset`"
        )
    return padded(inputs)


def padded(rows: PackedSequence) -> tuple[Tensor, Tensor]:
    """(B, T, ·), in the order in which the rows were before they were packed, and lengths (B,)."""
    tensor, lengths = pad_packed_sequence(rows, batch_first=True)
    return tensor, lengths.to(tensor.device)


def steps_of(batch: SequenceBatch) -> Tensor | None:
    """The valid steps of each row of a batch, (B,), padded or packed; None for all."""
    inputs, lengths = batch.inputs, batch.lengths
    return padded(inputs)[1] if isinstance(inputs, PackedSequence) else lengths


def valid_steps(lengths: Tensor, steps: int) -> Tensor:
    """True before the end of each row, bool (B, steps)."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def last_step(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x (B, T, ·) at the last valid step of each row, (B, ·); zeros where there is none."""
    if lengths is None:
        return x[:, -1]
    rows = torch.arange(len(x), device=x.device)
    last = x[rows, (lengths.long() - 1).clamp(min=0)]
    return last.masked_fill((lengths == 0)[:, None], 0)
