"""Subclassing SequenceTagger: an embedding for bytes, on the tokens of Python source."""

import pytorch_lightning as pl
import torch
from torch import nn

from lightning_lrnn.data import SourceTokens
from lightning_lrnn.modules import SequenceTagger


class ByteTagger(SequenceTagger):
    """Looks a byte up, where its base class maps its eight bits by a matrix."""

    def __init__(self, num_classes, hidden_size=64, **options):
        super().__init__(8, num_classes, hidden_size=hidden_size, **options)
        self.encoder = nn.Embedding(256, hidden_size)

    def encode(self, inputs):
        bits = 2 ** torch.arange(8, device=inputs.device)
        return self.encoder(((inputs > 0) * bits).sum(-1))


def main(steps=100):
    pl.seed_everything(0)
    data = SourceTokens(max_bytes=300_000, batch_size=16)
    model = ByteTagger(len(data.classes), rnn="QRNN", backend="scan", total_steps=steps)
    trainer = pl.Trainer(
        max_steps=steps,
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
