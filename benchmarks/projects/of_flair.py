"""Flair's sequence tagger with its own settings, on words of Python's source."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import torch
from flair.data import Corpus, Dictionary, Sentence
from flair.datasets import FlairDatapointDataset
from flair.embeddings import CharacterEmbeddings, OneHotEmbeddings, StackedEmbeddings
from flair.models import SequenceTagger
from flair.trainers import ModelTrainer
from flair.trainers.plugins import TrainerPlugin

from projects.project import Project, Watch, variants
from projects.python_words import sentences


class Steps(TrainerPlugin):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch, self.loss = watch, 0.0

    @TrainerPlugin.hook
    def metric_recorded(self, record: Any) -> None:
        if str(record.name) == "train/batch_loss":
            self.loss = record.value

    @TrainerPlugin.hook
    def after_training_batch(self, **_: Any) -> None:
        self.watch.step(self.loss)


class Tagger(Project):
    """A CRF on 256 units in both directions; of words, and of their letters in an LSTM."""

    package = "flair"

    def fit(self) -> None:
        logging.getLogger("flair").setLevel(logging.ERROR)
        spoken = []
        for words in itertools.islice(sentences(), 32 * 200 + 200):
            sentence = Sentence([word for word, _ in words])
            for token, (_, tag) in zip(sentence, words, strict=True):
                token.set_label("part", tag)
            spoken.append(sentence)
        held_out, spoken = spoken[:200], spoken[200:]
        data = [FlairDatapointDataset(part) for part in (spoken[: 32 * self.steps], held_out)]
        corpus = Corpus(*data, sample_missing_splits=False)
        embeddings: list[Any] = [OneHotEmbeddings.from_corpus(corpus)]
        if self.cell == "LSTM":
            letters = Dictionary()
            for letter in map(chr, range(32, 127)):
                letters.add_item(letter)
            embeddings.append(CharacterEmbeddings(letters))
        self.tagger = SequenceTagger(
            # Flair concatenates in the order of the embeddings' names, and loads one-hot ones
            # without the number that a stack puts before them: letters would then come first.
            StackedEmbeddings(embeddings, overwrite_names=False),
            corpus.make_label_dictionary("part", add_unk=True),
            "part",
            rnn_type=self.cell,
        )
        self.watch.switch(self.tagger)
        trainer, self.held_out = ModelTrainer(self.tagger, corpus), data[1]
        epochs = -(-32 * self.steps // len(data[0]))
        off = {"save_final_model": False, "create_file_logs": False, "create_loss_file": False}
        trainer.train(
            self.folder,
            max_epochs=epochs,
            plugins=[Steps(self.watch)],
            use_final_model_for_eval=True,
            **off,
        )

    def validation(self) -> float:
        return float(self.tagger.evaluate(self.held_out, gold_label_type="part").loss)

    def output(self) -> torch.Tensor:
        words = [word for sentence in itertools.islice(sentences(), 5) for word, _ in sentence]
        with torch.no_grad():
            self.tagger.eval()
            return self.tagger(*self.tagger._prepare_tensors([Sentence(words)]))[0]

    def reload(self) -> None:
        path = self.folder / "tagger.pt"
        self.tagger.save(path)
        self.tagger = SequenceTagger.load(path)


PROJECTS = variants(
    Tagger,
    Flair_tagger_LSTM={"cell": "LSTM"},
    Flair_tagger_GRU={"cell": "GRU"},
    Flair_tagger_RNN={"cell": "RNN"},
)
