"""A class for every sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_lrnn.core.checks import check_choice, check_counts, check_numbers
from lightning_lrnn.core.ranks import gathered
from lightning_lrnn.data.sequences import SequenceBatch
from lightning_lrnn.modules.class_loss import (
    check_classes,
    class_weights_of,
    weighted_cross_entropy,
)
from lightning_lrnn.modules.metrics import MacroAUROC
from lightning_lrnn.modules.residual import State
from lightning_lrnn.modules.sequence_module import (
    SequenceModule,
    from_rank,
    last_step,
    unpacked,
    valid_steps,
)
from lightning_lrnn.nn import GILRLSTM
from lightning_lrnn.nn.checkpointing import check_checkpoint_time, in_chunks
from lightning_lrnn.nn.layer import LayerClass

__all__ = ["SequenceClassifier"]


class SequenceClassifier(SequenceModule):
    """Predicts the class of a whole sequence.

        x = blocks(encoder(inputs))                 see `ResidualModule`
        logits = head(x pooled over time)

    Sequences are independent: no state is carried from batch to batch. Logged are the cross entropy
    in nats and the accuracy, in validation and test also the macro F1 and the area under the ROC
    curve, one class against the rest. Predictions are probabilities, (B, num_classes).

    Args:
        num_features: features of a step; of an index, how many there are.
        num_classes: classes, numbered from 0.
        rnn: the recurrent layer, as `LanguageModel` takes it; it may be bidirectional, and must
            take `lengths=` if batches have rows of different lengths.
        hidden_size: features everywhere.
        num_layers: residual blocks.
        dropout: on the output of each block.
        pooling: "last" for x at the last valid step, with a bidirectional layer also x at the
            first, where the second direction ends; "mean" for the mean over the valid steps.
        class_weights: factor of each class in the loss, such as the data module's `class_weights`;
            None for 1.
        logit_scale: factor of the logits; the minimised loss is divided by it. Far below 1 every
            gradient is that of the margin between the classes: what all classes have in common,
            over a long sequence far more than their difference, enters the loss by its square only.
            For memories of very many steps.
        checkpoint_time: time steps of a chunk, for sequences that do not fit into memory: all from
            the encoder to the pooling runs chunk by chunk, and the backward pass computes each
            again; see `lightning_lrnn.nn.checkpointing.in_chunks`. Memory then hardly grows
            with the steps. Not with a bidirectional layer, which has its own `checkpoint_time`.

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
        pooling: Literal["last", "mean"] = "last",
        class_weights: Sequence[float] | None = None,
        logit_scale: float = 1.0,
        checkpoint_time: int | None = None,
        backend: str = "auto",
        lr: float = 5e-3,
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
        check_choice(("last", "mean"), pooling=pooling)
        check_counts(num_features=num_features)
        check_counts(2, num_classes=num_classes)
        check_numbers(0, logit_scale=logit_scale)
        if logit_scale == 0:
            raise ValueError(f"`logit_scale` must be a number above 0, got {logit_scale}")
        self.logit_scale = logit_scale
        check_checkpoint_time(checkpoint_time)
        self.checkpoint_time = checkpoint_time
        self.class_weights = class_weights_of(class_weights, num_classes)
        self.num_features, self.num_classes, self.pooling = num_features, num_classes, pooling
        self.make_blocks(rnn, hidden_size, num_layers, dropout)
        if checkpoint_time and self.directions > 1:
            raise ValueError(
                "`checkpoint_time` needs a layer of one direction; a bidirectional one has an "
                "option of this name: set it in `rnn`"
            )
        self.keep("class_weights", self.class_weights)
        ends = self.directions if pooling == "last" else 1
        self.head = nn.Linear(ends * hidden_size, num_classes)
        # At first all classes are equally probable.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        inputs: Tensor | PackedSequence,
        state: State = None,
        reset: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Logits of the classes.

        Args:
            inputs: (B, T, num_features) or indices (B, T), or packed rows.
            state: that of a call before, one entry per layer; None for zeros.
            reset: bool (B, T), True where a document starts.
            lengths: integers (B,), the valid steps of each row; None for all.

        Returns:
            Logits (B, num_classes) and the state after the last step.
        """
        inputs, lengths = unpacked(inputs, reset, lengths)

        def chunk(x: Tensor, carry: Any, lengths: Tensor | None, reset: Tensor | None) -> Any:
            pooled, state = carry
            x, lengths, state = self.features(x, state, reset, lengths)
            valid = None if lengths is None else self.lengths_here(lengths, x.shape[1])
            return None, (self.pool(x, valid, pooled), state)

        local_steps, ranks = inputs.shape[1], self.group
        shared = 1 if ranks is None else ranks.size
        size = None if self.checkpoint_time is None else self.checkpoint_time // shared
        if size is None or local_steps <= size:
            _, (pooled, state) = chunk(inputs, (None, state), lengths, reset)
        else:
            carry = None, state
            _, carry = in_chunks(chunk, inputs, carry, lengths, reset, size, ranks=ranks)
            pooled, state = carry
        if self.pooling == "mean":
            if self.group is not None:
                pooled = gathered(pooled, self.group).sum(0)
            steps = local_steps * shared if lengths is None else lengths.clamp(min=1)[:, None]
            pooled = pooled / steps
        elif self.directions == 1:
            pooled = self.of_end(pooled, lengths, local_steps)
        elif self.group is not None:
            last, first = pooled.chunk(2, -1)
            at_first = torch.full(first.shape[:1], self.group.rank == 0, device=first.device)
            first = from_rank(first, at_first, self.group)
            pooled = torch.cat([self.of_end(last, lengths, local_steps), first], -1)
        return self.logit_scale * self.head(pooled), state

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The logged loss, divided by `logit_scale`, to be minimised."""
        return super().training_step(batch, batch_idx) / self.logit_scale

    def pool(self, x: Tensor, lengths: Tensor | None, before: Tensor | None = None) -> Tensor:
        """Pools x and earlier windows to a vector per row; zeros for a row without steps.

        Args:
            x: (B, T, hidden_size), a window.
            lengths: integers (B,), its valid steps in each row; None for all.
            before: the result for the windows before; None for the first window.

        Returns:
            The sum over the valid steps, or the ends, (B, ·).
        """
        if self.pooling == "mean":
            if lengths is not None:
                x = x.masked_fill(~valid_steps(lengths, x.shape[1])[..., None], 0)
            return x.sum(1) if before is None else before + x.sum(1)
        last = last_step(x, lengths)
        if self.directions == 1:
            if before is None or lengths is None:
                # Not a view, which would keep x alive as long as the next window's.
                return last.clone()
            return torch.where((lengths > 0)[:, None], last, before)
        first = x[:, 0]
        if lengths is not None:
            first = first.masked_fill((lengths == 0)[:, None], 0)
        return torch.cat([last, first], -1)

    def check(self, batch: SequenceBatch) -> None:
        """See `check_classes`."""
        super().check(batch)
        rows = batch.targets.shape[:1]
        check_classes(batch.targets, self.num_classes, rows, "a class for each row")

    def loss(self, output: Tensor, batch: SequenceBatch) -> Tensor:
        """Cross entropy in nats, each row times the weight of its class."""
        return weighted_cross_entropy(output, batch.targets, self.class_weights)

    def make_metrics(self) -> MetricCollection:
        """Returns the accuracy over all rows."""
        accuracy = MulticlassAccuracy(self.num_classes, average="micro", validate_args=False)
        return MetricCollection({"accuracy": accuracy})

    def make_evaluation_metrics(self) -> MetricCollection:
        """The macro F1 and the area under the ROC curve."""
        return MetricCollection(
            {
                "macro_f1": MulticlassF1Score(
                    self.num_classes, average="macro", validate_args=False
                ),
                "auroc": MacroAUROC(self.num_classes),
            }
        )

    def measure(
        self, metrics: MetricCollection, output: Any, batch: SequenceBatch, loss: Tensor
    ) -> None:
        """Updates the metrics with the probabilities."""
        metrics.update(self.prediction(output.detach(), batch), batch.targets)

    def prediction(self, output: Tensor, batch: SequenceBatch) -> Tensor:
        """Probabilities (B, num_classes)."""
        return output.float().softmax(-1)
