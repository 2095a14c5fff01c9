"""Stanza's character language model, smaller than its own, on the topics of Python's help."""

from __future__ import annotations

import pydoc_data.topics

import torch
from stanza.models import charlm
from stanza.models.common.char_model import (
    CharacterLanguageModel,
    CharacterLanguageModelTrainer,
    build_charlm_vocab,
)

from projects.project import Project


class Letters(Project):
    """128 units instead of 1,024; 20 rows of 100 letters instead of 100 of 250; SGD with 5."""

    package, cell, steps = "stanza", "LSTM", 300

    def fit(self) -> None:
        text = "\n".join(pydoc_data.topics.topics.values())
        for name, part in {"train": text[:-20_000], "held_out": text[-20_000:]}.items():
            (self.folder / f"{name}.txt").write_text(part, encoding="utf-8")
        sizes = ["--char_hidden_dim=128", "--batch_size=20", "--bptt_size=100"]
        self.args = charlm.parse_args(sizes) | {"device": "cpu"}
        self.vocab = {"char": build_charlm_vocab(str(self.folder / "train.txt"), cutoff=5)}
        model = CharacterLanguageModel(self.args, self.vocab)
        self.watch.switch(model)
        params = list(model.parameters())
        optimizer = torch.optim.SGD(params, lr=self.args["lr0"])
        criterion = torch.nn.CrossEntropyLoss()
        self.trainer = CharacterLanguageModelTrainer(model, params, optimizer, criterion, None)
        letters = charlm.batchify(self.read("train"), self.args["batch_size"], "cpu")
        model.train()
        hidden, start = None, 0
        for _ in range(self.steps):
            if start + 101 > letters.size(1):
                hidden, start = None, 0
            data, target = charlm.get_batch(letters, start, 100)
            optimizer.zero_grad()
            _, hidden, decoded = model(data, [data.size(1)] * len(data), hidden)
            loss = criterion(decoded.view(-1, decoded.size(-1)), target)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, self.args["max_grad_norm"])
            optimizer.step()
            hidden, start = charlm.repackage_hidden(hidden), start + 100
            self.watch.step(loss)

    def read(self, name: str) -> torch.Tensor:
        return charlm.load_file(str(self.folder / f"{name}.txt"), self.vocab, "forward")

    def validation(self) -> float:
        trainer, data = self.trainer, self.read("held_out")
        return charlm.evaluate_epoch(self.args, self.vocab, data, trainer.model, trainer.criterion)

    def output(self) -> torch.Tensor:
        model = self.trainer.model
        model.eval()
        with torch.no_grad():
            return model(self.read("held_out")[:100].reshape(2, 50), [50, 50])[2]

    def reload(self) -> None:
        path = str(self.folder / "charlm.pt")
        self.trainer.save(path, full=False)
        self.trainer = CharacterLanguageModelTrainer.load(self.args, path)


PROJECTS = {"Stanza-charlm": Letters}
