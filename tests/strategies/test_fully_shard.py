"""A Trainer whose processes have a part of each parameter trains as one process does.

Seen to fail: parameters that are not divided, or start as each process has made them; steps that
run outside of the call of the root; states of optimizers that are read whole, or not at all.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import processes
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from modules_without_ranks import Steps, batches, fit, new_module
from pytorch_lightning.plugins import MixedPrecision
from torch.distributed.device_mesh import init_device_mesh

from lightning_lrnn import SwitchError
from lightning_lrnn.callbacks import GradientNorm, RecurrenceMonitor
from lightning_lrnn.data import ByteText
from lightning_lrnn.data.sequences import SequenceBatch
from lightning_lrnn.modules import LanguageModel, SequenceClassifier, SequenceTagger
from lightning_lrnn.nn import CELLS
from lightning_lrnn.strategies import SequenceParallelStrategy
from lightning_lrnn.strategies.sharding import shard

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

STEPS = 20
ROWS, WINDOW = 4, 32
CLOSE = {"rel": 1e-5}


class Seen(pl.Callback):
    """The losses and norms of a run, and the share of all parameters that a process has."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.validated: list[float] = []
        self.shares: set[float] = set()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.losses.append(trainer.callback_metrics["train/loss"].item())
        self.norms.append(trainer.callback_metrics["train/gradient_norm"].item())

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        owned = [p for group in optimizer.param_groups for p in group["params"]]
        states = [x for of_one in optimizer.state.values() for x in of_one.values() if x.ndim]
        for tensors in (owned, [p.grad for p in owned], states):
            here = sum(getattr(x, "_local_tensor", x).numel() for x in tensors)
            self.shares.add(here / max(1, sum(x.numel() for x in tensors)))

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self.validated.append(trainer.callback_metrics["val/loss"].item())


def trainer_of(strategy: Any, steps: int, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=1 if strategy == "auto" else dist.get_world_size(),
        strategy=strategy,
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
        gradient_clip_val=0.5,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        val_check_interval=steps // 2,
        check_val_every_n_epoch=None,
        limit_val_batches=3,
        **options,
    )


def train(
    folder: Path, name: str, strategy: Any = "auto", steps: int = STEPS, resume: str = "", **options
) -> Seen:
    """Trains, and leaves a checkpoint of this name; of one process each has its own."""
    rank = dist.get_rank()
    size = 1 if strategy == "auto" else dist.get_world_size()
    rows = ROWS if size == 1 else ROWS * strategy.sequence_size // size
    with processes.world(rank, size):
        pl.seed_everything(1, verbose=False)
        model = LanguageModel(hidden_size=8, lr=0.02, warmup_steps=1, total_steps=STEPS)
        data = ByteText(f"{folder}/text", window=WINDOW, batch_size=rows)
        seen = Seen()
        monitor = RecurrenceMonitor(every_n_steps=4)
        trainer = trainer_of(strategy, steps, GradientNorm(), seen, monitor, **options)
        trainer.fit(model, data, ckpt_path=f"{folder}/{resume}.ckpt" if resume else None)
        own = name if size > 1 else f"{name}{rank}"
        trainer.save_checkpoint(f"{folder}/{own}.ckpt")
        assert "recurrence/layer_share" in monitor.latest
        assert monitor.horizon.latest and monitor.backend.report
        if size > 1:
            (actual,) = trainer.validate(model, data, verbose=False)
            assert actual["val/loss"] == pytest.approx(seen.validated.pop(), **CLOSE)
            assert len(trainer.predict(model, data.val_dataloader())) > 0
    dist.barrier()
    return seen


def runs(rank: int, folder: Path) -> None:
    """With sequences shared, and with different rows on each rank."""
    torch.set_num_threads(1)
    whole = train(folder, "one")
    assert whole.shares == {0, 1} and whole.losses[-1] < 0.8 * whole.losses[0]
    for sequence in (2, 1):
        actual = train(
            folder, f"by{sequence}", SequenceParallelStrategy(sequence, fully_shard=True)
        )
        if sequence == 2:
            assert actual.losses == pytest.approx(whole.losses, **CLOSE)
        assert actual.norms == pytest.approx(whole.norms, rel=1e-4)
        assert actual.validated == pytest.approx(whole.validated, **CLOSE)
        assert all(share == 0 or 0.45 < share < 0.55 for share in actual.shares), actual.shares


def resumed(rank: int, folder: Path, every: bool) -> None:
    """From any number of processes, divided or not, to any other; and read after a run.

    By `make test` without those to or from several that each have all parameters: their checkpoint
    is as that of one process.
    """
    torch.set_num_threads(1)
    half = STEPS // 2
    kinds = {
        "one": lambda: "auto",
        "ddp": lambda: SequenceParallelStrategy(2),
        "sharded": lambda: SequenceParallelStrategy(2, fully_shard=True),
    }
    for kind, strategy in kinds.items():
        if kind == "ddp" and not every:
            continue
        train(folder, f"half_{kind}", strategy(), half)
    wanted = train(folder, "straight").losses[half:]
    pairs = [("sharded", "one"), ("sharded", "ddp"), ("sharded", "sharded")]
    for before, after in [*pairs, ("ddp", "sharded"), ("one", "sharded")]:
        if "ddp" in (before, after) and not every:
            continue
        name = f"half_{before}" if before != "one" else "half_one0"
        actual = train(folder, f"{before}_{after}", kinds[after](), resume=name)
        assert actual.losses == pytest.approx(wanted, **CLOSE), (before, after)
    one, sharded = (
        torch.load(f"{folder}/{name}.ckpt", weights_only=True)
        for name in ("straight0", "sharded_sharded")
    )
    assert one["state_dict"].keys() == sharded["state_dict"].keys()
    for name, x in one["state_dict"].items():
        torch.testing.assert_close(x, sharded["state_dict"][name], rtol=1e-3, atol=1e-5)
    (before,), (after,) = (c["optimizer_states"] for c in (one, sharded))
    assert before["param_groups"] == after["param_groups"]
    for i, state in before["state"].items():
        torch.testing.assert_close(state["exp_avg"], after["state"][i]["exp_avg"])


def gradients(model: Any, batch: Any) -> list[torch.Tensor]:
    output, _ = model.run(batch, None)
    loss = model.loss(output, batch)
    if model.group is not None:
        loss, _, _ = model._shared(model.group, loss, output, batch)
    loss.backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def modules(rank: int, folder: Path) -> None:
    """Every cell, and a model that runs its layers chunk by chunk, backward again."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    mesh = init_device_mesh("cpu", (2,))
    x, y = (
        torch.randn(2, 16, 5, generator=generator),
        torch.randint(0, 3, (2, 16), generator=generator),
    )
    kinds = [(SequenceTagger, {"rnn": name}, y) for name in CELLS]
    kinds += [(SequenceClassifier, {"checkpoint_time": 8}, y[:, 0])]
    for kind, options, targets in kinds:
        batch = SequenceBatch(x, targets)
        models = []
        for _ in range(2):
            torch.manual_seed(0)
            models.append(kind(5, 3, hidden_size=8, dropout=0.0, **options))
        whole, divided = models
        shard(divided, mesh, torch.device("cpu"))
        divided.group = mesh
        actual = gradients(divided, divided.segment(batch, rank, 2))
        for theirs, ours in zip(gradients(whole, batch), actual, strict=True):
            ours = ours.full_tensor()
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=str(options))


def starts(rank: int, folder: Path) -> None:
    """From the first process's parameters, whatever the others have."""
    torch.manual_seed(rank)
    model = LanguageModel(hidden_size=8)
    before = [p.detach().clone() for p in model.parameters()]
    shard(model, init_device_mesh("cpu", (2,)), torch.device("cpu"))
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.full_tensor(), q) == (rank == 0 or bool((q == q.flatten()[0]).all()))


def refusals(rank: int, folder: Path) -> None:
    """Each on every rank, with the reason."""
    sharded = partial(SequenceParallelStrategy, 2, fully_shard=True)
    with pytest.raises(ValueError, match="whose place `fully_shard` takes: static_graph;"):
        sharded(static_graph=True)
    with pytest.raises(ValueError, match="`fully_shard` must be True or False"):
        SequenceParallelStrategy(fully_shard="yes")
    with pytest.raises(ValueError, match=r"`precision` of 32-true, .* got 16-mixed"):
        train(folder, "none", sharded(precision_plugin=MixedPrecision("16-mixed", "cpu")))

    class ByHand(Steps):
        automatic_optimization = False

    class Early(Steps):
        def __init__(self) -> None:
            super().__init__()
            self.optimizer = torch.optim.SGD(self.head.parameters(), 0.1)

        def configure_optimizers(self) -> Any:
            return self.optimizer

    data = batches(Steps)
    with pytest.raises(ValueError, match="ByHand optimizes by hand"):
        fit(new_module(ByHand), [1, 1], data, sharded(), None)
    with pytest.raises(ValueError, match="SGD has parameters that are not those of the model"):
        fit(new_module(Early), [1, 1], data, sharded())
    with pytest.raises(SwitchError, match="needs whole parameters"):
        fit(new_module(Steps), [1, 1], data, sharded(), weights="carried")
    with pytest.raises(SwitchError, match="needs whole sequences"):
        fit(new_module(Steps), [1, 1], data, SequenceParallelStrategy(2), weights="carried")


def precisions(rank: int, folder: Path) -> None:
    """In 16 bits, mixed or alone, the losses are nearly those of 32."""
    torch.set_num_threads(1)
    for precision in ("bf16-mixed", "bf16-true"):
        strategy = SequenceParallelStrategy(2, fully_shard=True)
        actual = train(folder, "short", strategy, 4, precision=precision).losses
        assert actual == pytest.approx(train(folder, "one", steps=4).losses, rel=2e-2)


def evaluated(rank: int, folder: Path) -> None:
    """A new model with a checkpoint of one process, and one that is divided already."""
    train(folder, "read", steps=4)
    path = f"{folder}/read0.ckpt"
    data = ByteText(f"{folder}/text", window=WINDOW, batch_size=ROWS)
    wanted = trainer_of("auto", 2).validate(LanguageModel(hidden_size=8), data, path, False)
    with processes.world(rank, 2):
        trainer = trainer_of(SequenceParallelStrategy(2, fully_shard=True), 2)
        model = LanguageModel(hidden_size=8)
        for other in (path, None, path):
            if other is None:
                trainer.fit(model, data)
                continue
            (actual,) = trainer.validate(model, data, other, verbose=False)
            assert actual["val/loss"] == pytest.approx(wanted[0]["val/loss"], **CLOSE)


def all_of(rank: int, folder: Path, every: bool) -> None:
    parts = (starts, modules, refusals, runs, partial(resumed, every=every), precisions, evaluated)
    for part in parts:
        part(rank, folder)


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_as_one_process(every: bool, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("def f(x):\n    return x + 1\n" * 300)
    processes.spawn(all_of, tmp_path, tmp_path, every)
