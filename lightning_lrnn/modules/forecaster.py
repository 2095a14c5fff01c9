"""The next values of a series, as a distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection

from lightning_lrnn.core.checks import check_choice, check_counts, check_flags
from lightning_lrnn.data.sequences import SequenceBatch
from lightning_lrnn.modules.forecast_heads import HEADS, check_levels
from lightning_lrnn.modules.metrics import CRPS, PinballLoss
from lightning_lrnn.modules.residual import State
from lightning_lrnn.modules.sequence_module import SequenceModule, last_step
from lightning_lrnn.nn import GILRLSTM
from lightning_lrnn.nn.layer import LayerClass

__all__ = ["Forecaster"]


class Forecaster(SequenceModule):
    """Predicts the distribution of the next `horizon` values of one or several targets.

        x = blocks(encoder(inputs))                 see `ResidualModule`
        forecast = head(x at the last valid step)   all steps ahead at once
                   head(x at the last `horizon` steps), each by itself, with `ahead`

    Windows are independent: no state is carried from batch to batch. Targets that are NaN count
    nowhere. Logged are the loss, of scaled targets, and, in the units of the user, by the offset
    and the scale of the batch: the mean absolute error (mae) and the root of the mean square error
    (rmse) of the median, in validation and test also the pinball loss of the quantiles (pinball)
    and the continuous ranked probability score (crps), all of them means over steps ahead and
    targets. Predictions are quantiles in the units of the user, (B, horizon, num_targets, levels).

    Args:
        num_features: features of a step; of an index, how many there are.
        horizon: steps ahead.
        num_targets: values to predict at each of them.
        head: what describes the distribution of a value: "quantiles" (the loss is the pinball loss;
            quantiles do not cross), or the parameters of a "normal", "laplace" or "student_t" (the
            loss is the negative log likelihood); see `lightning_lrnn.modules.forecast_heads`.
        quantiles: levels that are predicted, rising; 0.5 must be among them. The CRPS of the head
            "quantiles" is the better the more there are.
        ahead: whether the last `horizon` steps of the inputs are those ahead, with what is known of
            them; see `known` of `lightning_lrnn.data.SequenceTable`.
        rnn: the recurrent layer, as `LanguageModel` takes it.
        hidden_size: features everywhere.
        num_layers: residual blocks.
        dropout: on the output of each block.

    Raises:
        ValueError: if there is no such layer, or for options of it or of this class that cannot be.
    """

    fixed_options: ClassVar[dict[str, tuple[Any, str]]] = {
        **SequenceModule.fixed_options,
        "bidirectional": (False, "only the last step is read; leave it out"),
    }

    def __init__(
        self,
        num_features: int,
        horizon: int,
        num_targets: int = 1,
        head: Literal["quantiles", "normal", "laplace", "student_t"] = "quantiles",
        quantiles: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        rnn: LayerClass = GILRLSTM,
        hidden_size: int = 64,
        num_layers: int = 2,
        dropout: float = 0.1,
        ahead: bool = False,
        backend: str = "auto",
        lr: float = 3e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 50,
        total_steps: int | None = None,
        final_lr: float = 0.05,
    ) -> None:
        super().__init__(
            backend=backend,
            carry_state=False,
            lr=lr,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            total_steps=total_steps,
            final_lr=final_lr,
        )
        check_counts(num_features=num_features, horizon=horizon, num_targets=num_targets)
        check_choice(HEADS, head=head)
        levels = check_levels(quantiles)
        self.num_features, self.horizon, self.num_targets = num_features, horizon, num_targets
        check_flags(ahead=ahead)
        self.quantiles, self.ahead = levels, ahead
        self.make_blocks(rnn, hidden_size, num_layers, dropout)
        self.keep("quantiles", levels)
        self.head = HEADS[head](hidden_size, 1 if ahead else horizon, num_targets, levels)

    def forward(
        self,
        inputs: Tensor | PackedSequence,
        state: State = None,
        reset: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """A description of the distribution, which `self.head` reads.

        Args:
            inputs: (B, T, num_features) or indices (B, T), or packed rows.
            state: that of a call before, one entry per layer; None for zeros.
            reset: bool (B, T), True where a document starts.
            lengths: integers (B,), the valid steps of each row; None for all.

        Returns:
            (B, horizon, num_targets, ·), of scaled targets, and the state after the last step.
        """
        x, lengths, state = self.features(inputs, state, reset, lengths)
        steps = x.shape[1]
        valid = None if lengths is None else self.lengths_here(lengths, steps)
        if self.ahead:
            return self._step_by_step(x, valid), state
        return self.head(self.of_end(last_step(x, valid), lengths, steps)), state

    def _step_by_step(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """The head's output for each of the last `horizon` valid steps, (B, horizon, ·, ·)."""
        ends = x.new_full((len(x),), x.shape[1]).long() if lengths is None else lengths.long()
        steps = ends[:, None] - self.horizon + torch.arange(self.horizon, device=x.device)
        rows = torch.arange(len(x), device=x.device)[:, None]
        output: Tensor = self.head(x[rows, steps.clamp(min=0)].flatten(0, 1))
        return output.view(len(x), self.horizon, *output.shape[2:])

    def segment(self, batch: SequenceBatch, rank: int, size: int) -> SequenceBatch:
        """See `SequenceModule.segment`; not with `ahead`."""
        if self.ahead:
            raise ValueError(
                "a forecast with `ahead` reads the last steps of its inputs, which one rank alone "
                "would have: take the strategy `ddp`"
            )
        return super().segment(batch, rank, size)

    def check(self, batch: SequenceBatch) -> None:
        """Raises for targets of another shape."""
        super().check(batch)
        _, *shape = batch.targets.shape
        if shape != [self.horizon, self.num_targets]:
            beside = f"; beside a checkpoint on the command line, `--model.horizon {shape[0]}`"
            raise ValueError(
                f"`targets` must be (B, {self.horizon}, {self.num_targets}), got "
                f"{tuple(batch.targets.shape)}: set `model.horizon` and `model.num_targets`"
                f"{beside if shape[0] != self.horizon else ''}"
            )

    def loss(self, output: Tensor, batch: SequenceBatch) -> Tensor:
        """The head's loss, the mean over the targets that are known; 0 without any."""
        known = ~batch.targets.isnan()
        losses = self.head.losses(output, batch.targets.float().masked_fill(~known, 0))
        mean: Tensor = (losses * known).sum() / known.sum().clamp(min=1)
        return mean

    def weight(self, batch: SequenceBatch) -> int:
        """Returns the number of targets that are known."""
        return int((~batch.targets.isnan()).sum())

    def make_metrics(self) -> MetricCollection:
        """Returns the mean absolute error "mae" and the root mean square error "rmse"."""
        return MetricCollection(
            {"mae": MeanAbsoluteError(), "rmse": MeanSquaredError(squared=False)},
            compute_groups=False,
        )

    def make_evaluation_metrics(self) -> MetricCollection:
        """Returns the pinball loss and the CRPS."""
        return MetricCollection(
            {"pinball": PinballLoss(self.quantiles), "crps": CRPS()}, compute_groups=False
        )

    def measure(
        self, metrics: MetricCollection, output: Any, batch: SequenceBatch, loss: Tensor
    ) -> None:
        """In the user's units, of the targets that are known; each metric takes what it needs."""
        output, targets = output.detach(), batch.targets.float()
        known = ~targets.isnan()
        scale = self._scale(batch).expand(targets.shape)[known]
        offset = self._offset(batch).expand(targets.shape)[known]
        raw, target = output[known], targets[known]
        values = {
            "preds": offset + scale * self.head.point(raw),
            "target": offset + scale * target,
        }
        if not self.training:
            quantiles = self.head.quantiles(raw)
            values["quantiles"] = offset[:, None] + scale[:, None] * quantiles
            values["crps"] = scale * self.head.crps(raw, target)
        metrics.update(**values)

    def prediction(self, output: Tensor, batch: SequenceBatch) -> Tensor:
        """Quantiles in the user's units, (B, horizon, num_targets, levels)."""
        quantiles = self.head.quantiles(output)
        return self._offset(batch)[..., None] + self._scale(batch)[..., None] * quantiles

    def _offset(self, batch: SequenceBatch) -> Tensor:
        """The offsets of the targets, (·, 1, num_targets); 0 where the batch has none."""
        return self._of_targets(batch.offset, 0.0)

    def _scale(self, batch: SequenceBatch) -> Tensor:
        """The scales of the targets, (·, 1, num_targets); 1 where the batch has none."""
        return self._of_targets(batch.scale, 1.0)

    def _of_targets(self, values: Tensor | None, default: float) -> Tensor:
        if values is None:
            return torch.full((1, 1, self.num_targets), default, device=self.device)
        # In the dtype that they have: in float32 a meter reading of 2e9 is off by a hundred.
        return values
