"""A Trainer whose processes share each sequence trains as one process does.

Seen to fail: a loss that is not weighted by the valid steps of a segment; gradients that count
`sequence_size` times; data dealt out to all processes.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import processes
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from commands import OPTIONS, TINY
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_lrnn.callbacks import Throughput
from lightning_lrnn.cli.fit import run
from lightning_lrnn.data import ByteText
from lightning_lrnn.data.sequences import SequenceBatch
from lightning_lrnn.data.text.windows import IGNORE, TextBatch
from lightning_lrnn.modules import (
    Forecaster,
    LanguageModel,
    RecurrentModule,
    SequenceClassifier,
    SequenceTagger,
)
from lightning_lrnn.strategies import SequenceParallelStrategy

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

STEPS = 6
ROWS, WINDOW = 4, 32


class Seen(pl.Callback):
    """What a run logs, and which masks of dropout it draws."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.validated: list[float] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.losses.append(trainer.callback_metrics["train/loss"].item())

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        names = "val/loss", "val/bits_per_byte"
        self.validated = [trainer.callback_metrics[name].item() for name in names]


def train(
    folder: Path,
    name: str,
    rank: int = 0,
    size: int = 1,
    sequence: int = 1,
    steps: int = STEPS,
    resume: str = "",
    model_type: type[LanguageModel] = LanguageModel,
    window: int = WINDOW,
    text: str = "text",
    checkpoint_time: int | None = None,
) -> tuple[list[float], list[float], LanguageModel]:
    """Trains on all processes of the world, or on each by itself, and leaves a checkpoint."""
    with processes.world(rank, size):
        pl.seed_everything(1, verbose=False)
        model = model_type(hidden_size=8, num_layers=2, warmup_steps=1, total_steps=STEPS)
        for layer in model.recurrent_layers().values():
            layer.checkpoint_time = checkpoint_time
        rows = ROWS * sequence // size
        data = ByteText(f"{folder}/{text}", window=window, batch_size=rows)
        seen, throughput = Seen(), Throughput()
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=size,
            strategy=SequenceParallelStrategy(sequence) if size > 1 else "auto",
            max_steps=steps,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            callbacks=[seen, throughput],
            gradient_clip_val=0.5,
            log_every_n_steps=1,
            val_check_interval=steps,
            check_val_every_n_epoch=None,
            limit_val_batches=3,
        )
        trainer.fit(model, data, ckpt_path=f"{folder}/{resume}.ckpt" if resume else None)
        # A run of one process is that of every process here.
        own = name if size > 1 else f"{name}{rank}"
        trainer.save_checkpoint(f"{folder}/{own}.ckpt")
    assert model.group is None
    rates = [throughput.latest[f"train/{kind}_per_second"] for kind in ("tokens", "sequences")]
    assert rates[0] == pytest.approx(window * rates[1])
    return seen.losses, seen.validated, model


def weights(model: LanguageModel) -> list[torch.Tensor]:
    return [p.detach() for p in model.parameters()]


def runs(rank: int, size: int, folder: Path) -> None:
    """On all ranks as on one, with data parallel beside it, and on from another number of ranks."""
    torch.set_num_threads(1)
    close: dict[str, float] = {"rel": 2e-6}
    half = STEPS // 2
    whole = train(folder, "one")
    assert len(whole[0]) == STEPS and whole[0][-1] < whole[0][0]
    for sequence in {2, size}:
        shared = train(folder, f"by{sequence}", rank, size, sequence)
        if sequence == size:
            assert shared[0] == pytest.approx(whole[0], **close)
        assert shared[1] == pytest.approx(whole[1], **close)
        for actual, wanted in zip(weights(shared[2]), weights(whole[2]), strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=2e-6)

    chunked = train(folder, "chunked", rank, size, size, checkpoint_time=WINDOW // 2)
    assert chunked[0] == pytest.approx(whole[0], **close)
    assert chunked[1] == pytest.approx(whole[1], **close)

    train(folder, "half", rank, size, size, half)
    dist.barrier()
    on_one = train(folder, "on_one", resume="half")
    assert on_one[0] == pytest.approx(whole[0][half:], **close)
    train(folder, "first", steps=half)
    dist.barrier()
    on_all = train(folder, "on_all", rank, size, size, resume="first0")
    assert on_all[0] == pytest.approx(whole[0][half:], **close)


def padding(rank: int, size: int, folder: Path) -> None:
    """A segment that is all padding has no loss, and takes part in the backward pass."""
    torch.set_num_threads(1)
    targets = torch.randint(0, 256, (2, 8 * size), generator=torch.Generator().manual_seed(0))
    targets[:, 8 * size - 12 :] = IGNORE
    inputs = targets.clamp(min=0).roll(1, 1)
    batch = TextBatch(inputs, targets, torch.zeros(targets.shape, dtype=torch.bool))
    torch.manual_seed(0)
    model = LanguageModel(hidden_size=8, carry_state=False)
    whole = model.loss(model.run(batch, None)[0], batch)
    whole.backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.group = dist.group.WORLD
    here = model.segment(batch, rank, size)
    output, _ = model.run(here, None)
    loss, of_all, steps = model._shared(model.group, model.loss(output, here), output, here)
    assert steps == int((targets != IGNORE).sum()) and loss.isfinite()
    torch.testing.assert_close(of_all, whole.detach())
    loss.backward()
    for p, gradient in zip(model.parameters(), wanted, strict=True):
        dist.all_reduce(p.grad)
        torch.testing.assert_close(p.grad / size, gradient, rtol=1e-4, atol=1e-6)


def masks(rank: int, size: int, folder: Path) -> None:
    """Random numbers differ between processes, and are the same again from the same state."""

    class Draws(LanguageModel):
        def step(self, batch: Any, stage: str) -> torch.Tensor:
            if stage == "train":
                self.drawn.append(torch.rand(()).item())
            return super().step(batch, stage)

    drawn = []
    for _ in range(2):
        Draws.drawn = []
        train(folder, "draws", rank, size, size, 2, model_type=Draws)
        drawn.append(Draws.drawn)
    assert drawn[0] == drawn[1]
    of_ranks: list[Any] = [None] * size
    dist.all_gather_object(of_ranks, drawn[0][0])
    assert len(set(of_ranks)) == size


def refusals(rank: int, size: int, folder: Path) -> None:
    """Each is refused on every process, with the reason."""
    with pytest.raises(ValueError, match="`sequence_size` must divide the number of processes"):
        train(folder, "none", rank, size, 3)
    with pytest.raises(ValueError, match="to a multiple of"):
        train(folder, "none", rank, size, size, window=WINDOW + 1)
    with pytest.raises(ValueError, match="The contents of a batch"):
        train(folder, "none", rank, size, size, text=f"text{rank % 2}")
    with pytest.raises(ValueError, match="loss of Classifier is none of single time steps"):
        train(folder, "none", rank, size, size, model_type=Classifier)


def batches(kind: str) -> list[SequenceBatch]:
    """Rows of 22 steps, which 4 ranks cannot share evenly; with lengths and resets, and packed."""
    made = torch.Generator().manual_seed(0)
    rows, steps = 5, 22
    x = torch.randn(rows, steps, 5, generator=made)
    lengths, reset = torch.tensor([22, 0, 7, 13, 4]), torch.rand(rows, steps, generator=made) < 0.1
    of_rows = torch.tensor([1, 0, 2, 1, 0])
    of_steps = torch.randint(0, 3, (rows, steps), generator=made)
    ahead = torch.randn(rows, 2, 1, generator=made)
    targets = {"classifier": of_rows, "tagger": of_steps, "forecaster": ahead}[kind]
    if kind == "tagger":
        targets_of_lengths = targets.masked_fill(torch.arange(steps) >= lengths[:, None], IGNORE)
    else:
        targets_of_lengths = targets
    packed = pack_padded_sequence(x, torch.tensor([22, 3, 7, 13, 4]), True, enforce_sorted=False)
    return [
        SequenceBatch(x, targets),
        SequenceBatch(x, targets_of_lengths, lengths),
        SequenceBatch(x, targets_of_lengths, lengths, reset),
        *([SequenceBatch(packed, targets)] if kind != "tagger" else []),
    ]


def other_modules(rank: int, size: int, folder: Path) -> None:
    """Loss, metrics and gradients of each module are those of one process."""
    torch.set_num_threads(1)
    both: dict[str, Any] = {"class_path": "GILR", "init_args": {"bidirectional": True}}
    by_chunks = {"checkpoint_time": 8}
    chunked = {"rnn": {"class_path": "GILR", "init_args": by_chunks}}
    both_chunked = {"rnn": {"class_path": "GILR", "init_args": {**both["init_args"], **by_chunks}}}
    options: dict[str, list[dict[str, Any]]] = {
        "classifier": [{}, {"pooling": "mean"}, by_chunks, {"rnn": both}, chunked, both_chunked],
        "tagger": [{}, {"metrics_at": "end"}, {"metrics_at": "end"} | chunked, both_chunked],
        "forecaster": [{}, chunked],
    }
    classes = {"classifier": SequenceClassifier, "tagger": SequenceTagger, "forecaster": Forecaster}
    sizes: dict[str, tuple[int, ...]] = {"forecaster": (5, 2)}
    for kind, make in classes.items():
        for more, batch in itertools.product(options[kind], batches(kind)):
            torch.manual_seed(0)
            model = make(*sizes.get(kind, (5, 3)), hidden_size=8, dropout=0.0, **more)
            for p in model.parameters():
                torch.nn.init.normal_(p, std=0.3)
            output, _ = model.run(batch, None)
            whole = model.loss(output, batch)
            whole.backward()
            wanted = [p.grad.clone() for p in model.parameters()]
            model.zero_grad()
            metrics = model.make_metrics()
            model.measure(metrics, output, batch, whole.detach())
            model.group = dist.group.WORLD
            here = model.segment(batch, rank, size)
            model.check(here)
            output, _ = model.run(here, None)
            loss, of_all, _ = model._shared(model.group, model.loss(output, here), output, here)
            torch.testing.assert_close(of_all, whole.detach(), rtol=2e-6, atol=1e-6)
            loss.backward()
            for p, gradient in zip(model.parameters(), wanted, strict=True):
                dist.all_reduce(p.grad)
                torch.testing.assert_close(p.grad / size, gradient, rtol=1e-4, atol=2e-6)
            shared = model.make_metrics()
            model.measure(shared, output, here, of_all)
            for (name, actual), one in zip(shared.items(), metrics.values(), strict=True):
                torch.testing.assert_close(actual.compute(), one.compute(), msg=name)


class Classifier(LanguageModel):
    """Says nothing of segments."""

    segment = RecurrentModule.segment


def all_of(rank: int, size: int, folder: Path) -> None:
    for part in (padding, runs, other_modules, *((masks, refusals) if size == 2 else ())):
        part(rank, size, folder)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_processes_share_sequences(size: int, tmp_path: Path) -> None:
    write_texts(tmp_path)
    processes.spawn(all_of, tmp_path, size, tmp_path, count=size)


def write_texts(folder: Path) -> None:
    (folder / "text").write_text("def f(x):\n    return x + 1\n" * 300)
    for k in range(2):
        (folder / f"text{k}").write_text(f"def f{k}(x):\n    return x + {k}\n" * 300)


@pytest.mark.parametrize("size", [0, True, 1.5, "all"])
def test_a_size_that_cannot_be(size: Any) -> None:
    with pytest.raises(ValueError, match="`sequence_size` must be 'auto' or a number"):
        SequenceParallelStrategy(size)


CONFIG = """
trainer:
  devices: 2
  max_steps: 2
  strategy:
    class_path: lightning_lrnn.pl.SequenceParallelStrategy
    init_args: {sequence_size: 2}
"""


class Losses(pl.Callback):
    """And the shapes of the batches."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, i: int
    ) -> None:
        self.seen.append((*batch.inputs.shape, f"{trainer.callback_metrics['train/loss']:.5f}"))


def by_config(rank: int, folder: Path) -> None:
    seen = []
    sharded = "--trainer.strategy.init_args.fully_shard=true"
    common = [f"--data.path={folder}/text", f"--data.window={WINDOW}"]
    common += [f"--trainer.default_root_dir={folder}"]
    for size, words in (
        (2, ()), (2, (sharded,)), (1, ("--trainer.devices=1", "--trainer.strategy=auto"))
    ):  # fmt: skip
        losses = Losses()
        with processes.world(rank, size):
            run(
                ["fit", f"--config={folder}/ranks.yaml", *OPTIONS, *TINY, *common, *words], [losses]
            )
        seen.append(losses.seen)
    shared, in_parts, alone = seen
    assert len(shared) == len(alone) == 2 and in_parts == shared
    assert [shape for *shape, _ in shared + alone] == 2 * [[2, 16]] + 2 * [[2, 32]]
    assert [loss for *_, loss in shared] == [loss for *_, loss in alone]


def test_the_strategy_by_a_config(tmp_path: Path) -> None:
    write_texts(tmp_path)
    (tmp_path / "ranks.yaml").write_text(CONFIG)
    processes.spawn(by_config, tmp_path, tmp_path)
