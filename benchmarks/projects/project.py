"""The interface of a project, and the object that watches its steps."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import lightning_lrnn as lrnn
from lightning_lrnn.callbacks.callback import Callback


def sow(seed: int) -> None:
    """Every generator at the start that belongs to the seed."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Watch:
    """Makes the switch, and takes down the loss and the seconds of every step.

    Args:
        rnn: what to switch to; None for the project as it is.
        seed: of what is drawn after the switch, which itself draws parameters: so that the data
            come in the same order with and without it.
        turn: called after every step, untimed.
    """

    def __init__(self, rnn: Any, seed: int, turn: Callable[[], object] | None = None) -> None:
        self.rnn, self.seed, self._turn = rnn, seed, turn
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.report = ""
        self._since: float | None = None

    def __deepcopy__(self, memo: object) -> Watch:
        """Itself: projects copy their models, with the callbacks that they were given."""
        return self

    def switch(self, model: nn.Module) -> None:
        """For projects without Lightning; before their optimizer is made."""
        if self.rnn is not None:
            self.report = str(lrnn.replace_rnn(model, self.rnn))
        sow(self.seed)

    def step(self, loss: Any) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self.seconds.append(now - self._since)
        self.losses.append(float(torch.as_tensor(loss).detach()))
        if self._turn is not None:
            self._turn()
        self._since = time.perf_counter()

    def callbacks(self) -> list[Any]:
        """For a Trainer: the switch and the losses."""
        return [Steps(self)] if self.rnn is None else [lrnn.SwitchRNN(self.rnn), Steps(self)]


class Steps(Callback):
    """Of both packages of Lightning, and can be pickled: projects save their callbacks too."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        sow(self.watch.seed)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        # Dropout between layers may draw differently.
        sow(self.watch.seed + 1_000 * (1 + trainer.current_epoch))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for callback in trainer.callbacks:
            if isinstance(callback, lrnn.SwitchRNN):
                self.watch.report = str(callback.report)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.watch.step(outputs["loss"] if isinstance(outputs, dict) else outputs)


class Project:
    """A project in one run. It does what its users do, and seeds nothing.

    Attributes:
        package: on PyPI, whose version is noted.
        cell: what stands in it before the switch.
        steps: of a run.
        validates: what `validation` returns.
    """

    package: str
    cell: str
    steps = 200
    validates = "loss"

    def __init__(self, watch: Watch, steps: int, seed: int, folder: Path) -> None:
        self.watch, self.steps, self.seed, self.folder = watch, steps, seed, folder

    def fit(self) -> None:
        raise NotImplementedError

    def validation(self) -> float | None:
        """The loss on data that was not trained on; None where the project has none."""
        return None

    def output(self) -> torch.Tensor:
        """Of the trained model, the same if asked again."""
        raise NotImplementedError

    def reload(self) -> None:
        """Saves into the folder, and puts what is loaded from there in the model's place."""
        raise NotImplementedError


def variants(base: type[Project], **by_name: dict[str, Any]) -> dict[str, type[Project]]:
    """Classes of a project that differ in attributes, by name."""
    return {
        name.replace("_", "-"): type(base.__name__, (base,), attributes)
        for name, attributes in by_name.items()
    }


def quiet(watch: Watch, **more: Any) -> dict[str, Any]:
    """Options of a Trainer that only trains."""
    off = ("logger", "enable_progress_bar", "enable_model_summary")
    options = {"accelerator": "cpu", "callbacks": watch.callbacks()}
    return {**options, **dict.fromkeys(off, False), **more}
