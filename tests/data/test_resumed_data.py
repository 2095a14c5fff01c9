"""A run that was stopped inside an epoch, and resumed, has the losses of one that was not.

Bit by bit.

Seen to fail: without the place; without `settle`, where Lightning takes an epoch for over or has
one of no batches; with a place that counts whatever Lightning does; with the next epoch's order for
the rest; with an iterator that begins before Lightning says which epoch it is, or has loaded where
it was; with Lightning's own sampler; without a look at what the place was one of.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import ModelCheckpoint, Timer

from lightning_lrnn.data import Adding, ByteText, SequenceData, SequenceRow, SequenceTable
from lightning_lrnn.modules import Forecaster, LanguageModel, SequenceClassifier
from lightning_lrnn.strategies import SequenceParallelStrategy

pytestmark = [
    # The resumed run saves nothing.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    # Of forks beside threads.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

BATCHES = 6
"""Of an epoch, of all data here."""
SMALL: dict[str, Any] = {"rnn": "MinGRU", "hidden_size": 4, "num_layers": 1, "warmup_steps": 2}


class Rows(SequenceData):
    """Rows of some lengths, no two alike."""

    classes = ("even", "odd")
    count = 23
    steps = (8, 7, 9)

    def make_parts(self) -> dict[str, Any]:
        drawn = torch.Generator().manual_seed(0)
        made = [
            SequenceRow(
                torch.randn(self.steps[i % len(self.steps)], 2, generator=drawn),
                torch.tensor(i % 2),
            )
            for i in range(self.count + 8)
        ]
        n = self.count
        return {"train": made[:n], "val": made[n : n + 4], "test": made[n + 4 :]}


class Even(Rows):
    """Rows that processes can share."""

    steps = (8,)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, as CSV and as Parquet in row groups, and a text."""
    folder: Path = tmp_path_factory.mktemp("data")
    sold = np.random.default_rng(0).normal(size=(2, 40)).round(3)
    rows = [f"{shop},{hour},{sold[i, hour]}" for i, shop in enumerate("ab") for hour in range(40)]
    (folder / "t.csv").write_text("shop,hour,sold\n" + "\n".join(rows))
    (folder / "text").write_text("\n".join(f"x{i} = {i * i}" for i in range(30)))
    return folder


def parquet(folder: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    csv, parquet = pytest.importorskip("pyarrow.csv"), pytest.importorskip("pyarrow.parquet")
    path = folder / "t.parquet"
    if not path.exists():
        parquet.write_table(csv.read_csv(folder / "t.csv"), path, row_group_size=9)
    assert pyarrow is not None
    return path


def table(path: Path, **options: Any) -> SequenceTable:
    how: dict[str, Any] = {"group": "shop", "time": "hour", "window": 6, "horizon": 2, "seed": 3}
    return SequenceTable(str(path), "forecast", "sold", batch_size=8, **how, **options)


def classifier() -> SequenceClassifier:
    model = SequenceClassifier(2, 2, **SMALL, dropout=0.2, total_steps=20)
    model.head.reset_parameters()  # of zeros nothing could be told
    return model


class Asking(Forecaster):
    """Asks for the steps, for which the trainer makes its loader before it is restored."""

    def configure_optimizers(self) -> Any:
        assert self.trainer.estimated_stepping_batches > 0
        return super().configure_optimizers()


def forecaster() -> Forecaster:
    return Asking(1, 2, **SMALL, dropout=0.2, total_steps=20)


KINDS: dict[str, tuple[Callable[[Path], Any], Callable[[], Any]]] = {
    "table": (lambda folder: table(folder / "t.csv"), forecaster),
    "streamed": (lambda folder: table(parquet(folder), in_memory=False), forecaster),
    "rows": (lambda _: Rows(batch_size=4), classifier),
    "workers": (lambda _: Rows(batch_size=4, num_workers=1), classifier),
    "buckets": (lambda _: Rows(batch_size=4, bucket=3), classifier),
    "task": (
        lambda _: Adding(steps=9, batch_size=4, epoch_rows=24, held_out=8),
        lambda: Forecaster(2, 1, **SMALL, total_steps=20),
    ),
    "text": (
        lambda folder: ByteText(str(folder / "text"), batch_size=3, window=13),
        lambda: LanguageModel(hidden_size=4, num_layers=1, warmup_steps=2, total_steps=20),
    ),
}


def places(turn: int) -> pytest.MarkDecorator:
    """Kinds, and steps within an epoch, at its end and within the next: each kind at one of them.

    In `make test`; "rows" and "streamed", whose order is drawn, at all, as all are at night.
    """
    cases = [
        pytest.param(kind, steps, marks=[pytest.mark.nightly] * late)
        for i, kind in enumerate(KINDS)
        for j, steps in enumerate((4, BATCHES, BATCHES + 2))
        for late in [kind not in ("rows", "streamed") and (i + j + turn) % 3 > 0]
    ]
    return pytest.mark.parametrize("kind, after", cases)


class Losses(pl.Callback):
    """Of every batch, with its epoch and its number."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int, float]] = []

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps.append((trainer.current_epoch, batch_idx, float(outputs["loss"])))


class Soon(Timer):
    """Time that passes by batches."""

    def __init__(self, batches: int) -> None:
        super().__init__(timedelta(seconds=batches))
        self.passed = 0

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.passed += 1
        super().on_train_batch_end(*args, **kwargs)

    def time_elapsed(self, stage: Any = None) -> float:
        return self.passed


def fit(
    kind: str, folder: Path, *callbacks: pl.Callback, resume: Path | None = None, **options: Any
) -> tuple[pl.Trainer, list[tuple[int, int, float]]]:
    losses = Losses()
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[losses, *callbacks],
        logger=False,
        enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )
    # What a resumed run began with must not matter.
    pl.seed_everything(9 if resume else 0, verbose=False)
    data, model = (make() if i else make(folder) for i, make in enumerate(KINDS[kind]))
    trainer.fit(model, data, ckpt_path=resume, weights_only=True if resume else None)
    return trainer, losses.steps


@cache
def through(kind: str, folder: Path, accumulate: int = 1) -> list[tuple[int, int, float]]:
    _, actual = fit(kind, folder, max_epochs=3, accumulate_grad_batches=accumulate)
    assert [place[:2] for place in actual] == [(e, k) for e in range(3) for k in range(BATCHES)]
    assert len({loss for *_, loss in actual}) == len(actual)
    return actual


@places(0)
def test_stopped_by_a_number_of_steps(kind: str, after: int, folder: Path, tmp_path: Path) -> None:
    trainer, first = fit(kind, folder, max_steps=after, max_epochs=3)
    trainer.save_checkpoint(tmp_path / "ckpt")
    for limit in ({"max_steps": 3 * BATCHES}, {}):
        _, rest = fit(kind, folder, resume=tmp_path / "ckpt", max_epochs=3, **limit)
        assert first + rest == through(kind, folder)


@places(1)
def test_saved_on_the_way(kind: str, after: int, folder: Path, tmp_path: Path) -> None:
    """By a process that was killed later: what it did after the checkpoint counts for nothing."""
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    fit(kind, folder, saving, max_steps=after + 1)
    for limit in ({"max_steps": 3 * BATCHES}, {}):
        _, rest = fit(kind, folder, resume=tmp_path / f"step={after}.ckpt", max_epochs=3, **limit)
        assert rest == through(kind, folder)[after:]


@pytest.mark.parametrize("after", [4, BATCHES + 2])
@pytest.mark.parametrize("kind", ["table", "buckets", "text"])
def test_stopped_by_a_timer(kind: str, after: int, folder: Path, tmp_path: Path) -> None:
    trainer, first = fit(kind, folder, Soon(after), max_epochs=3)
    trainer.save_checkpoint(tmp_path / "ckpt")
    _, rest = fit(kind, folder, resume=tmp_path / "ckpt", max_epochs=3)
    assert first + rest == through(kind, folder)


@pytest.mark.parametrize("kind", ["streamed", "rows"])
def test_stopped_twice_in_an_epoch(kind: str, folder: Path, tmp_path: Path) -> None:
    actual: list[Any] = []
    for after, before in ((8, None), (10, 8), (18, 10)):
        resume = None if before is None else tmp_path / f"{before}"
        trainer, losses = fit(kind, folder, resume=resume, max_steps=after)
        trainer.save_checkpoint(tmp_path / f"{after}")
        actual += losses
    assert actual == through(kind, folder)


@pytest.mark.parametrize("kind", ["table", "rows"])
def test_gradients_of_two_batches(kind: str, folder: Path, tmp_path: Path) -> None:
    two = {"accumulate_grad_batches": 2}
    for steps in (1, 3, 4):
        trainer, first = fit(kind, folder, max_steps=steps, **two)
        trainer.save_checkpoint(tmp_path / "ckpt")
        _, rest = fit(kind, folder, resume=tmp_path / "ckpt", max_epochs=3, **two)
        assert len(first) == 2 * steps and first + rest == through(kind, folder, 2)


@pytest.mark.parametrize("save", ["validation", "epoch"])
def test_saved_at_the_end_of_an_epoch(save: str, folder: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"save_on_train_epoch_end": save == "epoch", "filename": "last"}
    fit("rows", folder, ModelCheckpoint(tmp_path, monitor="val/loss", **how), max_epochs=1)
    for limit in ({"max_steps": 3 * BATCHES}, {}):
        _, rest = fit("rows", folder, resume=tmp_path / "last.ckpt", max_epochs=3, **limit)
        assert rest == through("rows", folder)[BATCHES:]


class Fails(pl.Callback):
    """At some batch of the second epoch, and saves, as OnExceptionCheckpoint does."""

    def __init__(self, at: int, path: Path) -> None:
        self.at, self.path = at, path

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        trainer.save_checkpoint(self.path)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == self.at:
            raise RuntimeError("failed")


@pytest.mark.parametrize("at", [0, 3, BATCHES - 1])
def test_saved_when_a_batch_failed(at: int, folder: Path, tmp_path: Path) -> None:
    """That batch was given out, and not trained on."""
    with pytest.raises(RuntimeError, match="failed"):
        fit("rows", folder, Fails(at, tmp_path / "ckpt"), max_epochs=3)
    for limit in ({"max_steps": 3 * BATCHES}, {}):
        _, rest = fit("rows", folder, resume=tmp_path / "ckpt", max_epochs=3, **limit)
        assert rest == through("rows", folder)[BATCHES + at :]


def test_a_fresh_run_does_not_go_on(folder: Path, tmp_path: Path) -> None:
    """Where the data module was told of a place by what validated a checkpoint."""
    trainer, _ = fit("rows", folder, max_steps=4)
    trainer.save_checkpoint(tmp_path / "ckpt")
    data, losses = Rows(batch_size=4), Losses()
    for _ in range(2):
        pl.seed_everything(0, verbose=False)
        model = classifier()
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, callbacks=[losses], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.validate(model, data, tmp_path / "ckpt", verbose=False, weights_only=True)
        losses.steps.clear()
        pl.seed_everything(0, verbose=False)
        trainer.fit(classifier(), data)
        assert losses.steps == through("rows", folder)[:BATCHES]


def test_other_data_begin_the_epoch_anew(folder: Path, tmp_path: Path) -> None:
    trainer, _ = fit("rows", folder, max_steps=4)
    trainer.save_checkpoint(tmp_path / "ckpt")
    KINDS["longer"] = (lambda _: Rows(batch_size=3), classifier)
    message = r"batch_size was 4, is 3\); the epoch that it interrupted begins anew"
    with pytest.warns(UserWarning, match=message):
        _, rest = fit("longer", folder, resume=tmp_path / "ckpt", max_epochs=2)
    # Lightning counts four batches of eight as done.
    assert [k for epoch, k, _ in rest if epoch == 0] == [4, 5, 6, 7]
    # After an epoch any data will do.
    trainer, _ = fit("rows", folder, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "ckpt")
    _, rest = fit("longer", folder, resume=tmp_path / "ckpt", max_epochs=2)
    assert [k for _, k, _ in rest] == list(range(8))


class Foreign(pl.LightningModule):
    """A module that is none of this package, with the losses of other data."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return (self.layer(batch.inputs[:, 0])[:, 0] - batch.targets).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """So that there is one."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_module_of_ones_own(folder: Path, tmp_path: Path) -> None:
    """Lightning calls the rest of an epoch that `max_steps` cut the next epoch."""
    KINDS["foreign"] = (lambda _: Rows(batch_size=4), Foreign)
    whole = [loss for *_, loss in through("foreign", folder)]
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    trainer, _ = fit("foreign", folder, saving, max_steps=4)
    trainer.save_checkpoint(tmp_path / "ckpt")
    _, rest = fit("foreign", folder, resume=tmp_path / "ckpt", max_steps=BATCHES)
    assert [loss for *_, loss in rest] == whole[4:BATCHES]
    _, rest = fit("foreign", folder, resume=tmp_path / "step=4.ckpt", max_epochs=3)
    assert [loss for *_, loss in rest] == whole[4:]


RUNS: list[tuple[str, Callable[[], Any], int]] = [
    ("even", lambda: "ddp", 6),
    ("streamed", lambda: "ddp", 3),
    ("task", lambda: "ddp", 3),
    ("even", lambda: SequenceParallelStrategy(1), 6),
    ("sequences", SequenceParallelStrategy, 6),
]
"""What is trained on, how processes share it, and how many batches an epoch of one has."""


def resumed(rank: int, folder: Path, saved: Path) -> None:
    """On two processes: rows dealt out to them, and sequences shared by them."""
    torch.set_num_threads(1)
    Even.count = 47
    KINDS["even"] = (lambda _: Even(batch_size=4), classifier)
    KINDS["sequences"] = (lambda _: Even(batch_size=8), classifier)
    for kind, strategy, batches in RUNS:
        actual: list[Any] = []
        whole: list[Any] = []
        for losses, after, before in (
            (whole, 9, None), (actual, 2, None), (actual, 7, 2), (actual, 9, 7)
        ):  # fmt: skip
            with processes.world(rank, 2):
                resume = saved / f"{kind}{before}" if before else None
                options: dict[str, Any] = {"devices": 2, "strategy": strategy()}
                trainer, some = fit(kind, folder, resume=resume, max_steps=after, **options)
                trainer.save_checkpoint(saved / f"{kind}{after}")
                losses += some
            dist.barrier()
        assert [place[:2] for place in whole] == [divmod(k, batches) for k in range(9)]
        assert actual == whole, kind


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_several_processes(folder: Path, tmp_path: Path) -> None:
    parquet(folder)
    processes.spawn(resumed, tmp_path, folder, tmp_path)
