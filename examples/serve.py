"""Serving: a byte language model continues a text as it is asked for, one byte at a time.

    python examples/serve.py [CHECKPOINT] [PROMPT]

Without a checkpoint it first trains a model for some seconds on the source of Python's library.
"""

import sys
import tempfile
import time
from pathlib import Path

import pytorch_lightning as pl
import torch

import lightning_lrnn as lrnn
from lightning_lrnn.data import ByteText
from lightning_lrnn.modules import LanguageModel


def train(path, steps):
    pl.seed_everything(0)
    trainer = pl.Trainer(
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(LanguageModel(), ByteText(max_bytes=1_000_000, batch_size=16, window=128))
    trainer.save_checkpoint(path)


class Server:
    """One session: what was said stays in the state of the recorded step."""

    def __init__(self, model):
        self.model = model
        start = torch.zeros(1, 1, dtype=torch.long)
        self.step = lrnn.RecordedStep(model, start)
        self.step(start)  # the byte that stands before the first of a document

    @torch.inference_mode()
    def stream(self, prompt, length, temperature=0.5):
        """Yields one byte at a time; the prompt goes through the model in parallel."""
        logits, self.step.state = self.model(torch.tensor([list(prompt)]), self.step.state)
        for _ in range(length):
            p = (logits[0, -1] / temperature).softmax(-1)
            byte = torch.multinomial(p, 1)
            logits = self.step(byte[None])
            yield bytes([int(byte)])


def printed(title, source, length):
    """What a generator yields, as it comes; bytes per second."""
    print(f"\n--- {title}")
    start = time.perf_counter()
    for byte in source:
        print(byte.decode("latin-1"), end="", flush=True)
    speed = length / (time.perf_counter() - start)
    print(f"\n--- {speed:,.0f} bytes per second")
    return speed


def main(checkpoint=None, prompt="def ", steps=60, length=400):
    with tempfile.TemporaryDirectory() as folder:
        if checkpoint is None:
            checkpoint = Path(folder) / "model.ckpt"
            train(checkpoint, steps)
        model = LanguageModel.load_from_checkpoint(checkpoint, weights_only=True).eval()
    prompt = prompt.encode()
    plain = printed("model.generate", model.generate(prompt, length, 0.5), length)
    recorded = printed("RecordedStep", Server(model).stream(prompt, length), length)
    return {"plain": plain, "recorded": recorded}


if __name__ == "__main__":
    main(*sys.argv[1:])
