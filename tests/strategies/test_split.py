"""A project's own module shares its sequences, where SwitchRNN says what is time in its batches.

Seen to fail: layers without the group; a batch that every rank gets the same segment of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import processes
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from modules_without_ranks import STEPS, Rows, Steps, batches, fit, new_module
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader

from lightning_lrnn import SwitchRNN, replace_rnn
from lightning_lrnn.modules import LanguageModel
from lightning_lrnn.nn import GILRLSTM
from lightning_lrnn.strategies import SequenceParallelStrategy
from lightning_lrnn.strategies.split import Cut, check_layers, chunk_of

CLOSE = {"rel": 1e-5}


def as_one(rank: int, folder: Path) -> None:
    """Losses, validation, predictions and parameters, with whole and with divided parameters."""
    torch.set_num_threads(1)
    for kind, sharded, chunk in ((Steps, False, None), (Rows, False, 4), (Steps, True, None)):
        data, options = batches(kind), {"checkpoint_time": chunk}
        whole = new_module(kind)
        alone = fit(whole, kind.split, data, options=options)
        shared = new_module(kind)
        strategy = SequenceParallelStrategy(2, fully_shard=sharded)
        trainer = fit(shared, kind.split, data, strategy, options=options)
        assert len(whole.losses) == STEPS
        assert shared.losses == pytest.approx(whole.losses, **CLOSE)
        actual, wanted = (t.callback_metrics["val_loss"].item() for t in (trainer, alone))
        assert actual == pytest.approx(wanted, **CLOSE)
        with processes.world(rank, 2):
            trainer.save_checkpoint(folder / "switched.ckpt")
            given = DataLoader(data[:1], batch_size=None)
            (part,) = trainer.predict(shared, given) if kind is Steps else [None]
        dist.barrier()
        # The project's own class, without the callback.
        loaded = kind.load_from_checkpoint(folder / "switched.ckpt", weights_only=True)
        for p, q in zip(loaded.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
        if part is not None:
            y = whole.output(data[0][0]).chunk(2, 1)[rank]
            torch.testing.assert_close(part, y, rtol=1e-4, atol=1e-5)
        dist.barrier()


def refusals(rank: int, folder: Path) -> None:
    """Each on every rank, with the reason."""
    torch.set_num_threads(1)
    data = batches(Steps)
    packed = [[pack_sequence(list(x)), y] for x, y in data]
    mixing = new_module(Steps)
    mixing.extra = nn.MultiheadAttention(8, 2)
    for match, model, split, given in (
        (r"say it by the callback SwitchRNN\(split=...\)", new_module(Steps), None, data),
        ("extra, MultiheadAttention, mixes time steps", mixing, [1, 1], data),
        (r"the batch\[0\] has 5 steps in dimension 2", new_module(Steps), [2, 1], data),
        (
            r"the batch\[0\] is a PackedSequence",
            new_module(Steps),
            [1, 1],
            packed if rank else data,
        ),
    ):
        with pytest.raises(ValueError, match=match):
            fit(model, split, given, SequenceParallelStrategy(2))


def all_of(rank: int, folder: Path) -> None:
    for part in (as_one, refusals):
        part(rank, folder)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_a_module_of_a_project(tmp_path: Path) -> None:
    processes.spawn(all_of, tmp_path, tmp_path)


class Pair(NamedTuple):
    x: Any
    y: Any


def test_the_segments_of_a_batch() -> None:
    x, y = torch.arange(24).view(2, 4, 3), torch.arange(2)
    here = x[:, 2:]
    assert torch.equal(Cut(1, 2).of(1, x), here) and torch.equal(Cut(1, 2).of(-2, x), here)
    assert Cut(1, 2).of(None, Pair(x, y)).x is x
    batch = {"pair": Pair(x, y), "rest": [x.movedim(1, 0), "a"]}
    actual = Cut(1, 2).of({"pair": [1, None], "rest": (0, None)}, batch)
    assert isinstance(actual["pair"], Pair) and torch.equal(actual["pair"].x, here)
    assert actual["pair"].y is y and actual["rest"][1] == "a" and isinstance(actual["rest"], list)
    assert torch.equal(actual["rest"][0], x.movedim(1, 0)[2:])
    assert batch["pair"].x is x
    steps = torch.arange(20)
    assert Cut(1, 2, 8).of(0, steps).tolist() == [4, 5, 6, 7, 12, 13, 14, 15, 18, 19]


def test_layers_with_other_chunks() -> None:
    layers = [GILRLSTM(8, 8, checkpoint_time=size) for size in (4, None)]
    assert chunk_of(layers[0]) == 4 and chunk_of(nn.Linear(2, 2)) is None
    with pytest.raises(ValueError, match="must have the same `checkpoint_time`"):
        chunk_of(nn.Sequential(*layers))


@pytest.mark.parametrize(
    ("split", "match"),
    [
        (1, r"`split` says 1 of the batch, which is a tuple of 2"),
        ([1], r"`split` says \[1\] of the batch, which is a tuple of 2"),
        ({"x": 1}, r"`split` says {'x': 1} of the batch, which is a tuple of 2"),
        ([3, 1], r"`split` says 3 of the batch\[0\], which is a tensor of shape \(4, 5\)"),
        ([None, {"z": 1}], r"{'z': 1} of the batch\[1\], which is a dict with 'y'"),
        ([1, None], r"the batch\[0\] has 5 steps in dimension 1, .* shared by 2 ranks: let"),
        ([0, {"y": 1}], r"`split` says 1 of the batch\[1\]\['y'\], which is a str"),
    ],
)
def test_a_batch_that_cannot_be_cut(split: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Cut(0, 2).of(split, (torch.zeros(4, 5), {"y": "word"}))


@pytest.mark.parametrize("split", [[], {}, [None], [True, 1], {"x": "1"}, 1.5])
def test_a_split_that_cannot_be(split: Any) -> None:
    with pytest.raises(ValueError, match="`split` must"):
        SwitchRNN(split=split)


MIXING = [
    nn.MultiheadAttention(8, 2),
    nn.TransformerEncoderLayer(8, 2),
    nn.Conv1d(8, 8, 3),
    nn.ConvTranspose1d(8, 8, 2),
    nn.AvgPool1d(2),
    nn.InstanceNorm1d(8),
    nn.BatchNorm1d(8),
    nn.GRUCell(8, 8),
    nn.GRU(8, 8),
]


@pytest.mark.parametrize("layer", MIXING, ids=lambda layer: type(layer).__name__)
def test_layers_that_mix_time_steps(layer: nn.Module) -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.Conv1d(8, 8, 1), GILRLSTM(8, 8), layer)
    with pytest.raises(ValueError, match=r"^3.*mixes time steps, of which each rank"):
        check_layers(module, foreign=True, synchronised=False)
    if not isinstance(layer, nn.GRU):
        check_layers(module, foreign=False, synchronised=False)
    check_layers(module[:3], foreign=True, synchronised=False)
    check_layers(nn.Sequential(nn.BatchNorm1d(8)), foreign=True, synchronised=True)


def test_layers_of_torch_in_a_module_of_this_package() -> None:
    model = LanguageModel(rnn=nn.LSTM)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"rnns\.0, TorchRNN, .* name a layer of lightning_lrnn"
        ):
            check_layers(model, foreign=False, synchronised=False)
        # It cuts at the resets of a segment, which are others on another rank.
        replace_rnn(model)


def test_two_splits() -> None:
    callbacks = [SwitchRNN(split=[1, 1]), SwitchRNN(split=[1, None])]
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy=SequenceParallelStrategy(),
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
    )
    module = new_module(Steps)
    callbacks[0].setup(trainer, module, "fit")
    callbacks[0].setup(trainer, module, "fit")
    with pytest.raises(ValueError, match="`split` is said twice"):
        callbacks[1].setup(trainer, module, "fit")
