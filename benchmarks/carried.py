"""Trained models whose recurrent layers are replaced: steps until they are as good as before.

    python benchmarks/carried.py [--models NAME ...] [--arms "as it is" new carried] [--seed 0]
    python benchmarks/carried.py --table

Needs the dependency group `projects` of pyproject.toml. Each model is trained as it is, for its
steps. From there on, in the project's own loop, with its own optimizer, new, and at a constant
learning rate,

- "as it is": nothing is replaced, for ten looks at the validation loss. In such a loop it goes up
  and down; L is the mean of the ten, and not where it was at the end of the training;
- "new": its recurrent layers are replaced by `rnn: auto`, whose parameters start anew; the rest of
  the model is the trained one;
- "carried": the same with `weights: carried, state: carried`: fixed-point passes of the functions
  of the old layers. In the first 5 steps they learn to give the old layers' outputs, and nothing
  else changes; then all learn.

Steps are counted until the validation loss is at most 1.03 L, or 1 + the change over |L| is at most
1.03 where it may be below 0; those in which layers learn from old ones, too. It is looked at every
few steps. Writes benchmarks/results/carried.json; of what is not named it keeps what it has.
"""

from __future__ import annotations

import argparse
import glob
import json
import math
import os
import random
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from projects import find, sow
from projects.project import Project, Watch
from switch import GOAL, alone, quiet, ratio
from timing import about, environment
from torch import nn

import lightning_lrnn as lrnn
from lightning_lrnn.callbacks.callback import Callback
from lightning_lrnn.switch.distil import Distillation

RESULTS = Path(__file__).parent / "results" / "carried.json"
STEPS = {
    "bytes": 1500,
    "Stanza-charlm": 1200,
    "RecurrentNetwork-LSTM": 600,
    "Flair-tagger-LSTM": 400,
}
"""Of the models as they are, and the most that the others take."""
LOOKS = {
    "bytes": 20,
    "Stanza-charlm": 20,
    "RecurrentNetwork-LSTM": 5,
    "Flair-tagger-LSTM": 10,
}
"""Steps between two looks at the validation loss."""
AS_IT_IS = "as it is"
ARMS = (AS_IT_IS, "new", "carried")
OWN_LOOKS = 10
"""How often a run without a switch is validated."""
CARRY_STEPS = 5
"""Steps of distillation, the default of `SwitchRNN`."""


class Bytes(Project):
    """A byte language model on the standard library; 128 units, 16 rows, windows of 128, Adam."""

    package, cell, validates = "torch", "LSTM", "bits per byte"
    rows, window, size = 16, 128, 128

    def fit(self) -> None:
        train, self.held_out = self.text()
        self.model = model = Language(self.size)
        self.watch.switch(model)
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        state, start = None, 0
        for _ in range(self.steps):
            if start + self.window + 1 > train.shape[1]:
                state, start = None, 0
            steps = train[:, start : start + self.window + 1]
            start += self.window
            logits, state = model(steps[:, :-1], state)
            loss = F.cross_entropy(logits.flatten(0, 1), steps[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            state = tuple(part.detach() for part in state)
            self.watch.step(loss)

    def text(self) -> list[torch.Tensor]:
        """Of nine tenths of the files, and of the rest: (rows, ·), ASCII."""
        files = sorted(glob.glob(str(Path(os.__file__).parent / "*.py")))
        random.Random(0).shuffle(files)
        cut = len(files) // 10
        parts = []
        for some in (files[cut:], files[:cut]):
            text = bytearray(b"".join(Path(file).read_bytes() for file in some))
            codes = torch.frombuffer(text, dtype=torch.uint8).long().clamp(max=127)
            length = len(codes) // self.rows
            parts.append(codes[: length * self.rows].view(self.rows, length))
        return parts

    @torch.no_grad()
    def validation(self) -> float:
        text = self.held_out[:, :6001]
        logits, _ = self.model(text[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        return loss.item() / math.log(2)


class Language(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, size)
        self.rnn = nn.LSTM(size, size, batch_first=True)
        self.head = nn.Linear(size, 128)

    def forward(self, codes: torch.Tensor, state: Any = None) -> Any:
        y, state = self.rnn(self.embedding(codes), state)
        return self.head(y), state


class Reached(BaseException):
    """Ends a project's loop, which may catch any `Exception`."""


class Counted(Watch):
    """Puts the trained parameters in, replaces layers, and ends the run at the goal.

    Args:
        trained: parameters and buffers of the model as it was trained; None to train it.
        options: of `replace_rnn`; None to replace nothing.
        before: the validation loss that it is compared to.
        every: steps between two looks.
        carry_steps: in which the new layers learn from the old ones; 0 for none.
    """

    def __init__(
        self,
        trained: dict[str, torch.Tensor] | None = None,
        options: dict[str, str] | None = None,
        before: float = math.nan,
        every: int = 1,
        carry_steps: int = 0,
    ) -> None:
        super().__init__(None, 0)
        self.trained, self.options, self.before = trained, options, before
        self.every, self.carry_steps = every, carry_steps
        self.project: Project
        self.validation: list[tuple[int, float]] = []

    def switch(self, model: nn.Module) -> None:
        self.model = model
        if self.trained is not None:
            model.load_state_dict(self.trained)
            if self.options is not None:
                self.report = str(lrnn.replace_rnn(model, **self.options))
            self.distillation = Distillation(model, self.carry_steps or 1)
            learning = {id(p) for m in self.distillation.layers for p in m.parameters()}
            self.rest = [
                (p, p.detach().clone()) for p in model.parameters() if id(p) not in learning
            ]
        sow(self.seed)

    def callbacks(self) -> list[Any]:
        """For a Trainer; the switch is made before it asks for an optimizer."""
        return [Made(self), *super().callbacks()]

    def step(self, loss: Any) -> None:
        super().step(loss)
        if self.trained is None:
            return
        done = len(self.losses)
        if done <= self.carry_steps:
            self.distillation.step()
            with torch.no_grad():
                for parameter, before in self.rest:
                    parameter.copy_(before)
            if done == self.carry_steps:
                self.distillation.finish()
        if done >= self.carry_steps and (done - self.carry_steps) % self.every == 0:
            training, trainer = self.model.training, getattr(self.model, "_trainer", None)
            unseen = self.project.validation()
            self.model.train(training)
            if trainer is not None:  # that of a validation is another one
                self.model.trainer = trainer
            self.validation.append((done, round(unseen, 5)))
            if self.options is None:
                ends = len(self.validation) == OWN_LOOKS
            else:
                ends = ratio([self.before], [unseen]) <= GOAL
            if ends:
                raise Reached


class Made(Callback):
    """Has a module switched when it is set up for training."""

    def __init__(self, watch: Counted) -> None:
        self.watch = watch

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self.watch.switch(pl_module)


def run(project_class: type[Project], watch: Counted, steps: int, seed: int = 0) -> Project:
    """The project in an empty folder, with the same data as in every other run of the seed."""
    watch.seed = seed
    with alone(seed) as folder:
        watch.project = project = project_class(watch, steps, seed, folder)
        try:
            project.fit()
        except Reached:
            pass
        if watch.trained is None:
            watch.validation.append((steps, project.validation()))
    return project


def measure(name: str, arms: list[str], old: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    project_class = Bytes if name == "bytes" else find(name)
    steps, every = STEPS[name], LOOKS[name]
    stock = Counted()
    run(project_class, stock, steps, seed)
    trained = {key: value.detach().clone() for key, value in stock.model.state_dict().items()}
    before = stock.validation[-1][1]
    print(f"{name}: {before:.4f} after {steps} steps", file=sys.stderr, flush=True)
    record = {
        "package": project_class.package,
        "cell": project_class.cell,
        "validates": project_class.validates,
    }
    record |= {"steps": steps, "every": every, "loss": before}
    # Those of another trained model count no more.
    by_arm = old["arms"] if old.get("loss") == before else {}
    if AS_IT_IS not in by_arm and AS_IT_IS not in arms:
        arms = [AS_IT_IS, *arms]  # which the others are compared with
    for arm in arms:
        options = {AS_IT_IS: None, "new": {}}.get(arm, {"weights": "carried", "state": "carried"})
        mean = math.nan if options is None else statistics.fmean(own(by_arm))
        watch = Counted(trained, options, mean, every, CARRY_STEPS if arm == "carried" else 0)
        run(project_class, watch, steps, seed)
        by_arm[arm] = {"report": watch.report, "validation": watch.validation}
        if arm == "carried":
            by_arm[arm]["errors"] = watch.distillation.errors
        print(f"{name}, {arm}: {watch.validation}", file=sys.stderr, flush=True)
    return record | {"arms": by_arm}


def own(arms: dict[str, Any]) -> list[float]:
    """The losses of a model in its loop as it is."""
    return [loss for _, loss in arms[AS_IT_IS]["validation"]]


def reached(model: dict[str, Any], arm: str) -> int | None:
    """Steps to the goal; None if the run ended before."""
    mean = statistics.fmean(own(model["arms"]))
    looks = model["arms"][arm]["validation"]
    return next((step for step, loss in looks if ratio([mean], [loss]) <= GOAL), None)


def table(report: dict[str, Any]) -> Iterator[str]:
    """In Markdown: steps to the goal, and the share of those of new layers."""
    yield "| model | its steps | loss at the end | L, lowest to highest | new | carried |"
    yield "|---" * 6 + "|"
    for name, model in report["models"].items():
        losses = own(model["arms"])
        around = f"{statistics.fmean(losses):.3f}, {min(losses):.3f} to {max(losses):.3f}"
        new, carried = (reached(model, arm) for arm in ARMS[1:])
        most = f"more than {model['steps']:,}"
        if not carried:
            share = most
        elif new:
            share = f"{carried:,} ({carried / new:.2f})"
        else:
            share = f"{carried:,} (under {math.ceil(100 * carried / model['steps']) / 100:.2f})"
        head = f"{name}, {model['cell']} | {model['steps']:,} | {model['loss']:.3f} | {around}"
        alone = f"{new:,}" if new else most
        yield f"| {head} | {alone} | {share} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=STEPS, default=list(STEPS), metavar="NAME")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="of what is there, without measuring")
    options = parser.parse_args()
    if not options.table:
        quiet(threads=1)
        old = json.loads(options.json.read_text()) if options.json.is_file() else {"models": {}}
        models = old["models"]
        for name in options.models:
            key = f"{name}, seed {options.seed}" if options.seed else name
            models[key] = measure(name, options.arms, models.get(key, {}), options.seed)
        report = {**environment("cpu"), "models": models}
        options.json.write_text(json.dumps(report) + "\n")
    report = json.loads(options.json.read_text())
    print(about(report))
    for row in table(report):
        print(row)


if __name__ == "__main__":
    main()
