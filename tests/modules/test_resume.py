"""A run that was interrupted has the losses, bit by bit, of one that was not.

Seen to fail: the carried state dropped when an epoch cut by `max_steps` goes on (`by`), a
position taken as over because Lightning counts that epoch as over (`by`), a position kept when the
epoch is over (`epoch` with `limit_train_batches`), the random numbers not restored (`5`), a state
that keeps the precision it was saved in (`64-true`), what does not fit not looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_lrnn.data import ByteText
from lightning_lrnn.modules import LanguageModel
from lightning_lrnn.modules.base import ResumeError

pytestmark = [
    # The resumed run saves nothing.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Files of uneven length, so that documents start in the middle of windows."""
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(10):
        lines = (f"def f{i}_{j}(x):\n    return x + {i * j}\n" for j in range(1 + i % 4))
        (folder / f"{i}.py").write_text("".join(lines))
    return folder


def make_data(text: Path) -> ByteText:
    return ByteText(str(text), batch_size=2, window=8, val_fraction=0.1, test_fraction=0.1)


def make_model(seed: int) -> LanguageModel:
    """With dropout, whose random numbers must go on too."""
    torch.manual_seed(seed)
    return LanguageModel(
        hidden_size=8, num_layers=2, dropout=0.2, warmup_steps=4, total_steps=60, backend="serial"
    )


class Losses(pl.Callback):
    """The loss of every training step, by the number of steps then made."""

    def __init__(self) -> None:
        self.by_step: dict[int, float] = {}

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.by_step[trainer.global_step] = float(outputs["loss"])


def fit(
    text: Path, *callbacks: pl.Callback, resume: Path | None = None, **options: Any
) -> tuple[pl.Trainer, dict[int, float]]:
    losses = Losses()
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[losses, *callbacks],
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=text.parent,
        **({"max_epochs": 2} | options),
    )
    # What a resumed run began with must not matter.
    model, data = make_model(seed=1 if resume else 0), make_data(text)
    trainer.fit(model, data, ckpt_path=resume, weights_only=True if resume else None)
    return trainer, losses.by_step


@pytest.mark.parametrize("options", [{}, {"limit_train_batches": 7}, {"val_check_interval": 3}])
@pytest.mark.parametrize("at", ["5", "epoch"])
def test_resumed_after_any_step(text: Path, at: str, options: dict[str, Any]) -> None:
    epoch = min(len(make_data(text).train_dataloader()), options.get("limit_train_batches", 1000))
    folder = text.parent / "saved"
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    _, whole = fit(text, saving, **options)
    assert len(set(whole.values())) == len(whole) == 2 * epoch
    step = epoch if at == "epoch" else int(at)
    _, rest = fit(text, resume=folder / f"step={step}.ckpt", **options)
    assert rest == {k: loss for k, loss in whole.items() if k > step}


@pytest.mark.parametrize("by", ["save_checkpoint", "epoch_end", "validation_end"])
def test_run_that_max_steps_ended_goes_on(text: Path, by: str) -> None:
    _, whole = fit(text, max_steps=9)
    folder = text.parent / "saved"
    saving: list[pl.Callback] = []
    options: dict[str, Any] = {"max_steps": 6}
    if by == "epoch_end":
        saving = [ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True)]
    elif by == "validation_end":
        saving = [ModelCheckpoint(folder, filename="last", monitor="val/loss")]
        options["val_check_interval"] = 3
    trainer, first = fit(text, *saving, **options)
    if by == "save_checkpoint":
        trainer.save_checkpoint(folder / "last.ckpt")
    _, rest = fit(text, resume=folder / "last.ckpt", max_steps=9)
    assert first | rest == whole


@pytest.mark.parametrize(("first", "then"), [("32-true", "64-true"), ("64-true", "bf16-true")])
def test_a_run_goes_on_in_another_precision(text: Path, first: str, then: str) -> None:
    trainer, _ = fit(text, max_steps=6, precision=first)
    trainer.save_checkpoint(text.parent / "last.ckpt")
    _, rest = fit(text, resume=text.parent / "last.ckpt", max_steps=8, precision=then)
    assert list(rest) == [7, 8]


@pytest.mark.parametrize(
    ("name", "value", "answer"),
    [
        ("carried_state", [[torch.zeros(7, 7, 7)]], "the state that it carries over does not fit"),
        ("carried_state", 3, "`carried_state` is no list"),
        ("random_state", [{"cpu": torch.zeros(3).byte()}], "`random_state` is none of random"),
    ],
)
def test_what_does_not_fit_is_told(text: Path, name: str, value: Any, answer: str) -> None:
    trainer, _ = fit(text, max_steps=2)
    path = text.parent / "last.ckpt"
    trainer.save_checkpoint(path)
    torch.save({**torch.load(path, weights_only=True), name: value}, path)
    with pytest.raises(ResumeError, match=answer):
        fit(text, resume=path, max_steps=4)
