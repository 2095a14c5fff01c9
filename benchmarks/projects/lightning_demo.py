"""The language model among Lightning's demos, on the topics of Python's help."""

from __future__ import annotations

import pydoc_data.topics
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.lstm import LightningLSTM
from pytorch_lightning.demos.transformer import WikiText2

from projects.project import Project, quiet


class Demo(Project):
    """4 layers of 512 units, batch 20, windows of 35 words, states carried, SGD with 20."""

    package, cell = "pytorch-lightning", "LSTM"
    steps = 200

    def fit(self) -> None:
        # It looks for its text there, and would download it.
        Path("data").mkdir(exist_ok=True)
        text = "\n".join(pydoc_data.topics.topics.values())
        Path("data", "wikitext-2.txt").write_text(text[:150_000], encoding="utf-8")
        self.words = len(WikiText2().dictionary)
        self.model = LightningLSTM(vocab_size=self.words)
        more = {"max_steps": self.steps, "max_epochs": -1, "enable_checkpointing": False}
        self.trainer = pl.Trainer(**quiet(self.watch, **more), gradient_clip_val=0.25)
        self.trainer.fit(self.model)

    def output(self) -> torch.Tensor:
        words = torch.arange(70).reshape(2, 35) % self.words
        model = self.model.eval().model
        with torch.no_grad():
            return model(words, model.init_hidden(2))[0]

    def reload(self) -> None:
        path = self.folder / "demo.ckpt"
        self.trainer.save_checkpoint(path)
        self.model = LightningLSTM.load_from_checkpoint(path, vocab_size=self.words)


PROJECTS = {"LightningLSTM": Demo}
