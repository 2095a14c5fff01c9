"""SequenceTable by row groups: the windows of a table in memory, no more read than needed."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from processes import run, spawn

from lightning_lrnn.data import DataError, SequenceTable
from lightning_lrnn.data.scaling import Moments
from lightning_lrnn.data.splits import PARTS
from lightning_lrnn.data.tables import row_groups, streamed

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow"),
    pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="needs pandas"),
    # "e", which a test of its own is about.
    pytest.mark.filterwarnings("ignore:.*series have fewer steps than a window"),
]
LENGTHS = {"a": 61, "b": 40, "c": 90, "d": 57, "e": 4, "f": 70}


def table(seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    rows = sum(LENGTHS.values())
    sold = random.normal(50, 9, rows)
    sold[[7, 200]] = np.nan
    # The future of c.
    sold[186:191] = np.nan
    return {
        "shop": np.repeat(list(LENGTHS), list(LENGTHS.values())),
        "hour": np.concatenate([np.arange(n) for n in LENGTHS.values()]).astype("datetime64[s]"),
        "sold": sold,
        "open": random.integers(0, 2, rows),
        "heat": random.normal(1e6, 1, rows).astype(np.float32),
    }


def write(path: Path, columns: dict[str, Any], row_group_size: int = 23) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


@pytest.fixture
def sales(tmp_path: Path) -> Path:
    return write(tmp_path / "sales.parquet", table())


def make(path: Path, **options: Any) -> SequenceTable:
    given = {
        "target": "sold",
        "group": "shop",
        "time": "hour",
        "window": 9,
        "horizon": 3,
        "missing": "mean",
        "val_fraction": 0.2,
        "test_fraction": 0.2,
        "in_memory": False,
    }
    return SequenceTable(str(path), "forecast", **(given | options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 4, "scaling": "none"},
        {"split_by": "group"},
        {"target": ["heat", "sold"], "features": ["open"]},
    ],
)
def test_windows_are_those_in_memory(sales: Path, options: dict[str, Any]) -> None:
    large, small = make(sales, **options), make(sales, **options, in_memory=True)
    for part in PARTS:
        rows, wanted = large.part(part), small.part(part)
        assert len(rows) == len(wanted)
        for i in range(len(rows)):
            for value, expected in zip(rows[i], wanted[i], strict=True):
                torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert large.describe() == small.describe()
    assert large.fitted.keys() == small.fitted.keys()


def test_files_of_a_folder_and_a_model_s_scaling(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.parquet", table(i))
    large, small = make(tmp_path), make(tmp_path, in_memory=True)
    small.setup()
    # By the same scaling the windows are the same to the bit.
    large.load_state_dict(small.state_dict())
    for part in PARTS:
        rows, wanted = large.part(part), small.part(part)
        for i in range(len(wanted)):
            assert all(
                torch.equal(a.nan_to_num(9e9), b.nan_to_num(9e9))
                for a, b in zip(rows[i], wanted[i], strict=True)
            )
    assert [extent.name for extent in rows.extents] == [one.name for one in small._known]  # type: ignore[attr-defined]


def order(data: SequenceTable, part: str, epoch: int = 0, **sampler: int) -> list[int]:
    data.trainer = SimpleNamespace(distributed_sampler_kwargs=sampler)  # type: ignore[assignment]
    loader = getattr(data, f"{part}_dataloader")()
    loader.sampler.set_epoch(epoch)
    return list(loader.sampler)


def test_the_order_is_that_of_seed_and_epoch(sales: Path, monkeypatch) -> None:
    # Two row groups of three columns at a time.
    monkeypatch.setattr(row_groups, "POOL", 2 * 23 * 3 * 8)
    monkeypatch.setattr(streamed, "POOL", 2 * 23 * 3 * 8)
    monkeypatch.setattr(row_groups, "KEPT", 4 * 23 * 3 * 8)
    data = make(sales)
    rows = data.part("train")
    one = order(data, "train")
    assert sorted(one) == list(range(len(rows))) != one
    assert one == order(make(sales), "train") != order(data, "train", epoch=1)
    assert one != order(make(sales, seed=1), "train")
    assert order(data, "val") == list(range(len(data.part("val"))))
    # No row group is read again before those of a pool are done.
    read: list[int] = []
    values = row_groups.RowGroups.read
    monkeypatch.setattr(
        row_groups.RowGroups,
        "read",
        lambda self, block, names: read.append(block.group) or values(self, block, names),
    )
    for i in one:
        rows[i]
        assert sum(x.nbytes for x in rows.reader._kept.values()) <= row_groups.KEPT  # type: ignore[attr-defined]
    assert len(read) <= 2 * 3 * len(rows.blocks)  # type: ignore[attr-defined]


def test_a_process_reads_its_own_part(sales: Path, monkeypatch) -> None:
    data = make(sales)
    count = len(data.part("train"))
    shares = [order(data, "train", num_replicas=3, rank=rank) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(3 * (count // 3)))
    read: set[tuple[int, int]] = set()
    values = row_groups.RowGroups.read
    monkeypatch.setattr(
        row_groups.RowGroups,
        "read",
        lambda self, block, names: read.add(block) or values(self, block, names),
    )
    blocks = []
    for share in shares:
        assert max(share) - min(share) < count // 3
        reader = row_groups.RowReader(data.part("train").reader.table, ["sold", "open", "heat"])  # type: ignore[attr-defined]
        monkeypatch.setattr(data.part("train"), "reader", reader)
        read.clear()
        for i in share:
            data.part("train")[i]
        blocks.append(len(read))
    assert max(blocks) < 0.6 * len(data.part("train").blocks)  # type: ignore[attr-defined]
    held_out = [order(data, "val", num_replicas=3, rank=rank) for rank in range(3)]
    assert {len(share) for share in held_out} == {-(-len(data.part("val")) // 3)}
    assert {i for share in held_out for i in share} == set(range(len(data.part("val"))))


def test_workers_and_copies(sales: Path) -> None:
    data = make(sales, num_workers=1)
    data.part("train")[0]
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again.part("train")[5].inputs, data.part("train")[5].inputs)
    for batch, other in zip(data.val_dataloader(), make(sales).val_dataloader(), strict=True):
        assert torch.equal(batch.inputs, other.inputs)


def test_moments_of_parts() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(1e8, [1, 1e-3, 0, 1], (500, 4)) * [1, 1, 1, 1e250]
    rows[random.random(rows.shape) < 0.1] = np.nan
    rows[:200, 1] = np.nan
    parts = [Moments.of(part) for part in np.split(rows, [10, 10, 150, 400])]
    for actual, wanted in zip(Moments.together(parts), Moments.of(rows), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)
    none = Moments.together([Moments.of(np.full((3, 1), np.nan))])
    assert none.known == 0 and none.scaling().std == 1 and none.scaling().mean == 0


def together(rank: int, path: Path, broken: Path, wanted: dict[str, Any]) -> None:
    read: set[int] = set()
    values = row_groups.RowGroups.read

    def noted(self: Any, block: Any, names: Any) -> Any:
        read.add(block.group)
        return values(self, block, names)

    row_groups.RowGroups.read = noted  # type: ignore[method-assign]
    data = make(path)
    data.trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    data.setup("fit")
    blocks = len(data.part("train").reader.table.blocks)  # type: ignore[attr-defined]
    half = blocks // 2
    assert read == set(range(half) if rank == 0 else range(half, blocks))
    for key in ("inputs", "outputs"):
        assert torch.equal(data.fitted[key]["mean"], wanted[key]["mean"])
        assert torch.equal(data.fitted[key]["std"], wanted[key]["std"])
    data = make(broken)
    data.trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    # Only one process reads the row, and all are told.
    with pytest.raises(DataError, match="does not rise at row 2 of"):
        data.setup("fit")


def test_processes_share_out_what_is_fitted(tmp_path: Path, sales: Path) -> None:
    hours = HOURS.copy()
    hours[1] = hours[0]
    broken = write(tmp_path / "broken.parquet", changed(hour=hours))
    data = make(sales)
    data.setup()
    spawn(together, tmp_path, sales, broken, data.fitted)


def changed(**columns: Any) -> dict[str, Any]:
    return table() | columns


HOURS = table()["hour"]
SHOPS = table()["shop"]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"shop": np.roll(SHOPS, 30)},
            {"time": None, "features": ["heat"]},
            "the series 'f' goes on after another at row 283 of",
        ),
        ({"hour": HOURS[::-1]}, {}, "column 'hour' does not rise at row 2 of"),
        (
            {"hour": HOURS + (np.arange(322) < 23) * 999},
            {},
            "column 'hour' does not rise at row 24 of",
        ),
        ({"hour": [str(h) for h in HOURS]}, {}, "is no column of numbers or times"),
        ({"hour": [None, *HOURS.tolist()[1:]]}, {}, "has no time"),
        ({"shop": ["", *SHOPS[1:]]}, {}, "column 'shop' has no value at row 1 of"),
        ({"heat": np.full(len(HOURS), np.nan)}, {}, "'heat' has no value in the training part"),
        ({"heat": [" h" for h in HOURS]}, {}, "' h' where a number is wanted"),
        ({"open": np.where(HOURS == HOURS[50], np.inf, 0)}, {}, "step 5 of 23, row 51"),
        ({}, {"features": ["price"]}, "has no column 'price'"),
        ({}, {"window": 80}, "no window of 80 steps with 3 to forecast"),
    ],
)
def test_bad_tables(tmp_path: Path, columns: Any, options: Any, message: str) -> None:
    path = write(tmp_path / "t.parquet", changed(**columns))
    with pytest.raises(DataError) as raised:
        make(path, **options).setup()
    assert message in str(raised.value)


def test_gaps_are_told_when_they_are_read(sales: Path) -> None:
    with pytest.raises(
        DataError, match=r"column 'sold' of series 'a' has no value at step 8 of 61"
    ):
        make(sales, missing="error").part("train")[0]


@pytest.mark.parametrize(
    "options",
    [{"scaling": "group"}, {"predict": "future"}, {"bucket": 4}],
)
def test_what_needs_a_table_in_memory(options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="needs a table in memory"):
        make(Path("t.parquet"), **options)
    with pytest.raises(DataError, match="`task: tag` needs a table in memory"):
        SequenceTable("t.parquet", "tag", "x", in_memory=False)
    with pytest.raises(DataError, match="needs one in memory"):
        make(Path("t.parquet")).forecast_table([], [])


def test_files_that_are_no_such_tables(tmp_path: Path, sales: Path, monkeypatch) -> None:
    (tmp_path / "t.csv").write_text("sold\n1\n")
    for path in (tmp_path, tmp_path / "t.csv"):
        with pytest.raises(DataError, match=r"is for Parquet tables, `path` has .*t.csv: write"):
            make(path).setup()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="`path` has none"):
        make(tmp_path / "empty").setup()
    (tmp_path / "broken.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"broken.parquet cannot be read"):
        make(tmp_path / "broken.parquet").setup()
    write(tmp_path / "none.parquet", {name: x[:0] for name, x in table().items()})
    with pytest.raises(DataError, match=r"none.parquet is empty"):
        make(tmp_path / "none.parquet").setup()
    data = make(sales)
    data.setup()
    # A copy keeps nothing that was read.
    data = pickle.loads(pickle.dumps(data))
    write(sales, table(1), row_group_size=29)
    with pytest.raises(DataError, match="has changed since"):
        data.part("train")[0]
    sales.unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        data.part("train")[0]
    monkeypatch.setattr(row_groups, "LARGEST", 500)
    write(sales, table())
    with pytest.raises(DataError, match=r"has 23 rows of 3 columns.*`row_group_size="):
        make(sales).setup()


ROWS, GROUPS, COLUMNS = 2**17, 64, 16
"""Decoded 1.1 GB, of few values, so that the file is small."""
TRAINED = f"""
import numpy as np
import pyarrow as pa
import pytorch_lightning as pl
from pyarrow import parquet
from lightning_lrnn.core.process_memory import process_peak, resident
from lightning_lrnn.data import SequenceTable
from lightning_lrnn.modules import Forecaster

values = np.random.default_rng(0).integers(0, 4, {ROWS}).astype(float)
writer = None
for i in range({GROUPS}):
    columns = {{"x" + str(c): values for c in range({COLUMNS})}}
    columns["shop"] = np.full({ROWS}, i // 4)
    columns["hour"] = np.arange({ROWS}) + i % 4 * {ROWS}
    table = pa.table(columns)
    writer = writer or parquet.ParquetWriter("t.parquet", table.schema)
    writer.write_table(table)
writer.close()
del table, columns, writer
pa.default_memory_pool().release_unused()
data = SequenceTable(
    "t.parquet", "forecast", "x0", group="shop", time="hour", window=16, horizon=4, stride=16,
    in_memory=False,
)
before = resident()
data.setup()
rows = data.part("train")
order = list(data.train_dataloader().sampler)
for i in order[:: len(order) // 2000]:
    rows[i]
read = process_peak() - before
trainer = pl.Trainer(
    max_steps=3, limit_val_batches=2, accelerator="cpu", logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(Forecaster(num_features={COLUMNS}, horizon=4, hidden_size=8, num_layers=1), data)
print(read, process_peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="how much a process has is read from /proc")
def test_a_large_table_is_trained_on_in_little_memory(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINED)
    read, peak = map(int, run("train.py", folder=tmp_path).stdout.split()[-2:])
    (tmp_path / "t.parquet").unlink()
    size = 8 * ROWS * GROUPS * COLUMNS
    assert read < size // 3
    assert peak < size


def test_series_without_a_window_are_told(sales: Path) -> None:
    """Seen to fail: they were left out without a word."""
    for in_memory in (True, False):
        data = make(sales, in_memory=in_memory)
        with pytest.warns(UserWarning, match="1 series have fewer steps .* left out: 'e' with 4"):
            data.setup()
