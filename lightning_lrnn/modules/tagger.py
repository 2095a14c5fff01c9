"""A class for every step of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_lrnn.core.checks import check_choice, check_counts
from lightning_lrnn.data.sequences import SequenceBatch
from lightning_lrnn.data.text.windows import IGNORE
from lightning_lrnn.modules.class_loss import (
    check_classes,
    class_weights_of,
    weighted_cross_entropy,
)
from lightning_lrnn.modules.metrics import LargestError, MacroAUROC
from lightning_lrnn.modules.residual import State
from lightning_lrnn.modules.sequence_module import SequenceModule, padded, steps_of, valid_steps
from lightning_lrnn.nn import GILRLSTM
from lightning_lrnn.nn.layer import LayerClass

__all__ = ["SequenceTagger"]

THRESHOLDS = 200


class SequenceTagger(SequenceModule):
    """Predicts the class of every step.

        x = blocks(encoder(inputs))                 see `ResidualModule`
        logits = head(x)

    Steps whose target is `lightning_lrnn.data.IGNORE` are left out. Logged are the cross entropy
    in nats and the accuracy, over steps, in validation and test also the macro F1 and the area
    under the ROC curve, one class against the rest, by 200 thresholds, so that its memory does not
    grow with the steps; see `metrics_at`. Predictions are probabilities, (B, T, num_classes), 0
    behind the end of a row.

    Args:
        num_features: features of a step; of an index, how many there are.
        num_classes: classes, numbered from 0.
        rnn: the recurrent layer, as `LanguageModel` takes it; it may be bidirectional, and must
            take `lengths=` if batches have rows of different lengths.
        hidden_size: features everywhere.
        num_layers: residual blocks.
        dropout: on the output of each block.
        class_weights: factor of each class in the loss, such as the data module's `class_weights`;
            None for 1.
        metrics_at: "steps" for metrics over all steps; "end" for metrics over the last valid step
            of each row alone, for tasks that only then can be right, and for one more: end_error,
            the largest error of any probability there, see `LargestError`. The loss is over all
            steps in both.
        carry_state: each batch continues the one before, row by row: for windows of long sequences.
            Otherwise sequences are independent.

    Raises:
        ValueError: if there is no such layer, or for options of it or of this class that cannot be.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        rnn: LayerClass = GILRLSTM,
        hidden_size: int = 64,
        num_layers: int = 2,
        dropout: float = 0.1,
        class_weights: Sequence[float] | None = None,
        metrics_at: Literal["steps", "end"] = "steps",
        carry_state: bool = False,
        backend: str = "auto",
        lr: float = 5e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 50,
        total_steps: int | None = None,
        final_lr: float = 0.05,
    ) -> None:
        super().__init__(
            backend=backend,
            carry_state=carry_state,
            lr=lr,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            total_steps=total_steps,
            final_lr=final_lr,
        )
        check_choice(("steps", "end"), metrics_at=metrics_at)
        check_counts(num_features=num_features)
        check_counts(2, num_classes=num_classes)
        self.metrics_at = metrics_at
        self.class_weights = class_weights_of(class_weights, num_classes)
        self.num_features, self.num_classes = num_features, num_classes
        self.make_blocks(rnn, hidden_size, num_layers, dropout)
        if carry_state and self.directions > 1:
            raise ValueError(
                "`carry_state` needs a layer of one direction: what a bidirectional one carries "
                "backwards comes from the batch after"
            )
        self.keep("class_weights", self.class_weights)
        self.head = nn.Linear(hidden_size, num_classes)

    def forward(
        self,
        inputs: Tensor | PackedSequence,
        state: State = None,
        reset: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Logits of the classes at every step.

        Args:
            inputs: (B, T, num_features) or indices (B, T), or packed rows.
            state: that of a call before, one entry per layer; None for zeros.
            reset: bool (B, T), True where a document starts.
            lengths: integers (B,), the valid steps of each row; None for all.

        Returns:
            Logits (B, T, num_classes), of no meaning behind the end of a row, and the state after
            the last step.
        """
        x, _, state = self.features(inputs, state, reset, lengths)
        return self.head(x), state

    def check(self, batch: SequenceBatch) -> None:
        """See `check_classes`."""
        super().check(batch)
        x = batch.inputs
        shape = (padded(x)[0] if isinstance(x, PackedSequence) else x).shape[:2]
        check_classes(batch.targets, self.num_classes, shape, "a class for each step")

    def segment(self, batch: SequenceBatch, rank: int, size: int) -> SequenceBatch:
        """The steps of a rank, and their classes."""
        targets = self.part(batch.targets, rank, size, IGNORE)
        return super().segment(batch, rank, size)._replace(targets=targets)

    def loss(self, output: Tensor, batch: SequenceBatch) -> Tensor:
        """Cross entropy in nats, each step times the weight of its class."""
        return weighted_cross_entropy(
            output.flatten(0, 1), batch.targets.flatten(), self.class_weights
        )

    def weight(self, batch: SequenceBatch) -> int:
        """Returns the number of steps that have a class."""
        return int((batch.targets != IGNORE).sum())

    def make_metrics(self) -> MetricCollection:
        """Accuracy, and at the end of rows the largest error."""
        accuracy = MulticlassAccuracy(
            self.num_classes, average="micro", ignore_index=IGNORE, validate_args=False
        )
        metrics = MetricCollection({"accuracy": accuracy})
        if self.metrics_at == "end":
            metrics.add_metrics({"end_error": LargestError(IGNORE)})
        return metrics

    def make_evaluation_metrics(self) -> MetricCollection:
        """The macro F1 and the area under the ROC curve."""
        return MetricCollection(
            {
                "macro_f1": MulticlassF1Score(
                    self.num_classes, average="macro", ignore_index=IGNORE, validate_args=False
                ),
                "auroc": MacroAUROC(self.num_classes, THRESHOLDS, IGNORE),
            }
        )

    def measure(
        self, metrics: MetricCollection, output: Any, batch: SequenceBatch, loss: Tensor
    ) -> None:
        """Updates the metrics with the probabilities at all steps, or at the last of each row."""
        output, targets = output.detach(), batch.targets
        if self.metrics_at == "end":
            lengths, (B, steps), ranks = steps_of(batch), targets.shape, self.group
            if lengths is None:
                lengths = targets.new_full((B,), steps * (1 if ranks is None else ranks.size))
            absent = lengths == 0
            if ranks is not None:
                end = ranks.of_last(lengths, steps, self.chunk_of_layers)
                absent = absent | (end != ranks.rank)
            last = self.lengths_here(lengths, steps).long() - 1
            rows, columns = torch.arange(B, device=targets.device), last.clamp(min=0)
            output = output[rows, columns, None]
            targets = targets[rows, columns].masked_fill(absent, IGNORE)[:, None]
        p = output.float().softmax(-1)
        metrics.update(p.flatten(0, 1), targets.flatten())

    def prediction(self, output: Tensor, batch: SequenceBatch) -> Tensor:
        """Probabilities (B, T, num_classes), 0 behind the end of a row."""
        p = output.float().softmax(-1)
        lengths = steps_of(batch)
        if lengths is None:
            return p
        return p * valid_steps(self.lengths_here(lengths, p.shape[1]), p.shape[1])[..., None]
