"""Subclassing SequenceClassifier: a loss and a metric of one's own, on handwritten digits."""

import pytorch_lightning as pl
import torch.nn.functional as F
from torchmetrics.classification import MulticlassAccuracy

from lightning_lrnn.data import Digits
from lightning_lrnn.modules import SequenceClassifier


class SmoothedClassifier(SequenceClassifier):
    """Learns that no label is certain, and tells how often the digit is among its first two."""

    def __init__(self, num_features, num_classes, smoothing=0.1, **options):
        super().__init__(num_features, num_classes, **options)
        self.smoothing = smoothing

    def loss(self, output, batch):
        return F.cross_entropy(output, batch.targets, label_smoothing=self.smoothing)

    def make_evaluation_metrics(self):
        metrics = super().make_evaluation_metrics()
        metrics.add_metrics({"top2": MulticlassAccuracy(self.num_classes, top_k=2)})
        return metrics


def main(epochs=10):
    pl.seed_everything(0)
    model = SmoothedClassifier(8, 10, rnn="MinGRU", hidden_size=32)
    data = Digits(steps="rows")  # 8 steps of 8 pixels
    trainer = pl.Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    (found,) = trainer.test(model, data, verbose=False)
    for name, value in found.items():
        print(f"{name:14s} {value:.3f}")
    return found


if __name__ == "__main__":
    main()
