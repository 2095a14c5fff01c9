"""Series of a table that is not in memory: their rows, moments and windows."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from lightning_lrnn.data.errors import DataError
from lightning_lrnn.data.samplers import Order
from lightning_lrnn.data.scaling import Moments
from lightning_lrnn.data.sequences import SequenceRow
from lightning_lrnn.data.tables.columns import numbers
from lightning_lrnn.data.tables.files import group_name
from lightning_lrnn.data.tables.fitted import ColumnScaling, refuse_empty
from lightning_lrnn.data.tables.row_groups import POOL, Block, RowGroups, RowReader
from lightning_lrnn.data.tables.times import TimeError, to_times

__all__ = ["Extent", "PoolOrder", "StreamedForecasts", "find_series", "scaling_by", "train_moments"]

Result = TypeVar("Result")


class Extent(NamedTuple):
    """The rows of a table that a series has.

    Attributes:
        name: of the series.
        first: its first row in all files together.
        steps: its rows.
        known: steps up to the last one with a target.
    """

    name: str
    first: int
    steps: int
    known: int


class _Run(NamedTuple):
    """Rows of a row group that follow each other and belong to one series."""

    groups: tuple[str, ...]
    start: int
    rows: int
    known: int
    times: tuple[Any, Any] | None


def find_series(
    table: RowGroups, group: Sequence[str], time: str | None, targets: Sequence[str], shared: bool
) -> list[Extent]:
    """The series of a table whose rows are sorted by group and time, in the order of its rows.

    Args:
        table: of which the columns named here are read.
        group: columns that tell series apart; none if a file is a series.
        time: column that rises within a series; None if there is none.
        targets: columns of which a step is known.
        shared: every process of the group looks at its share; all of them must call this.

    Raises:
        DataError: if the rows are not sorted so.
    """
    runs_of_blocks = _over_row_groups(
        lambda i: _runs(table, table.blocks[i], group, time, targets), table, shared
    )
    extents: list[Extent] = []
    seen: dict[str, int] = {}
    before: tuple[int, tuple[str, ...]] | None = None
    last: Any = None
    for block, runs in zip(table.blocks, runs_of_blocks, strict=True):
        for run in runs:
            first = block.first + run.start
            if before == (block.file, run.groups):
                if run.times is not None and not last < run.times[0]:
                    _refuse(table, block, run.start, f"column {time!r} does not rise")
                so_far = extents[-1]
                known = so_far.steps + run.known if run.known else so_far.known
                extents[-1] = so_far._replace(steps=so_far.steps + run.rows, known=known)
            else:
                name = _name(table, block, run.groups)
                if name in seen:
                    _refuse(table, block, run.start, f"the series {name!r} goes on after another")
                seen[name] = first
                extents.append(Extent(name, first, run.rows, run.known))
            before, last = (block.file, run.groups), run.times and run.times[1]
    return extents


def _refuse(table: RowGroups, block: Block, row: int, why: str) -> None:
    raise DataError(
        f"{why} at row {block.start + row + 1} of {table.files[block.file]}: with "
        "`in_memory: false` rows are sorted by `group`, within it by `time`, without equal times; "
        "sort the table, or leave `in_memory` out"
    )


def _name(table: RowGroups, block: Block, groups: tuple[str, ...]) -> str:
    file = table.files[block.file]
    if table.root.is_file():
        return group_name(groups) if groups else file.stem
    inside = file.relative_to(table.root.absolute()).with_suffix("").as_posix()
    return f"{inside}/{group_name(groups)}" if groups else inside


def _runs(
    table: RowGroups, block: Block, group: Sequence[str], time: str | None, targets: Sequence[str]
) -> list[_Run]:
    codes, names = [], []
    for column in group:
        code, named = table.labels(block, column)
        if (empty := np.isin(code, np.flatnonzero(named == ""))).any():
            _refuse(table, block, int(np.argmax(empty)), f"column {column!r} has no value")
        codes.append(code)
        names.append(named)
    changes = np.zeros(block.rows - 1, dtype=bool)
    for code in codes:
        changes |= code[1:] != code[:-1]
    ends = [*(np.flatnonzero(changes) + 1).tolist(), block.rows]
    times = None if time is None else _times(table, block, time, changes)
    known = np.zeros(block.rows, dtype=bool)
    for target in targets:
        known |= ~np.isnan(numbers(table.read(block, [target]), [target], [target])[:, 0])
    last_known = np.maximum.accumulate(np.where(known, np.arange(1, block.rows + 1), 0))
    runs, start = [], 0
    for end in ends:
        groups = tuple(str(named[code[start]]) for code, named in zip(codes, names, strict=True))
        until = max(int(last_known[end - 1]) - start, 0)
        between = None if times is None else (times[start], times[end - 1])
        runs.append(_Run(groups, start, end - start, until, between))
        start = end
    return runs


def _times(table: RowGroups, block: Block, time: str, changes: NDArray[np.bool_]) -> NDArray[Any]:
    read = table.read(block, [time])
    if read.columns[time].dtype.kind not in "iufMm":
        raise DataError(
            f"column {time!r} of {read.source} is no column of numbers or times, which "
            "`in_memory: false` needs: write it as one, or leave `in_memory` out"
        )
    try:
        times = to_times(read.columns[time])
    except TimeError as error:
        step, problem = error.args
        where = "" if step is None else f" ({read.where(step)})"
        raise DataError(f"column {time!r} of {read.source}{where} {problem}") from error
    wrong = ~(times[1:] > times[:-1]) & ~changes
    if wrong.any():
        _refuse(table, block, int(np.argmax(wrong)) + 1, f"column {time!r} does not rise")
    return times


def train_moments(reader: RowReader, train: Sequence[tuple[int, int]], shared: bool) -> Moments:
    """What the columns have in the training part, of which one row group is read at a time.

    Args:
        reader: of the numbers (rows, C).
        train: first row, and that behind the last one, of each piece of the part, rising.
        shared: every process of the group reads its share; all of them must call this.
    """
    stops = [stop for _, stop in train]

    def moments(i: int) -> Moments:
        block = reader.table.blocks[i]
        in_part = np.zeros(block.rows, dtype=bool)
        for k in range(bisect_right(stops, block.first), len(train)):
            start, stop = train[k]
            if start >= block.first + block.rows:
                break
            in_part[max(start - block.first, 0) : stop - block.first] = True
        if not in_part.any():
            return Moments.of(np.empty((0, len(reader.names))))
        # Column by column, for less that is there twice.
        by_column = [Moments.of(column[in_part, None]) for column in reader.block(i).T]
        return Moments(*(np.concatenate(parts) for parts in zip(*by_column, strict=True)))

    return Moments.together(_over_row_groups(moments, reader.table, shared))


def scaling_by(
    moments: Moments, columns: Sequence[int], names: Sequence[str], how: str
) -> ColumnScaling:
    """The scaling of some columns (F,) by what they have in the training part.

    Raises:
        DataError: if a column has no value there.
    """
    chosen = Moments(*(values[list(columns)] for values in moments))
    refuse_empty(chosen.known == 0, names)
    return ColumnScaling(list(names), how, chosen.scaling(), {})


def _over_row_groups(look: Callable[[int], Result], table: RowGroups, shared: bool) -> list[Result]:
    """Results of `look` for each row group, gathered from all processes if the work is shared."""
    count = len(table.blocks)
    if not shared:
        return [look(i) for i in range(count)]
    rank, world = distributed.get_rank(), distributed.get_world_size()
    mine: list[Result] = []
    problem: str | None = None
    try:
        mine = [look(i) for i in range(rank * count // world, (rank + 1) * count // world)]
    except DataError as error:
        # All processes raise it: the others would wait for this one.
        problem = str(error)
    every: list[Any] = [None] * world
    distributed.all_gather_object(every, (mine, problem))
    for _, error_there in every:
        if error_there is not None:
            raise DataError(error_there)
    return [one for results, _ in every for one in results]


class StreamedForecasts:
    """Windows of series, and what comes next, which are read when they are asked for.

    Args:
        reader: of the numbers (rows, C).
        extents: the series, by the rows that they have.
        starts: series, and the first steps of its windows, in the order of rows.
        features: columns of the reader, (F,).
        inputs: their scaling.
        fill: the mean in the place of NaN, which is an error otherwise.
        targets: columns of the reader, (K,).
        outputs: their scaling.
        window: steps of the inputs.
        horizon: steps of the targets.

    Attributes:
        lengths: that all windows have.
        blocks: the numbers of the windows that begin in each row group.
        sizes: bytes of each row group.
    """

    def __init__(
        self,
        reader: RowReader,
        extents: Sequence[Extent],
        starts: Sequence[tuple[int, range]],
        features: Sequence[int],
        inputs: ColumnScaling,
        fill: bool,
        targets: Sequence[int],
        outputs: ColumnScaling,
        window: int,
        horizon: int,
    ) -> None:
        self.reader, self.extents = reader, extents
        self.starts = [(series, of_series) for series, of_series in starts if of_series]
        self.features, self.inputs, self.fill = features, inputs, fill
        self.targets, self.outputs = targets, outputs
        self.window, self.horizon = window, horizon
        self.lengths = [window]
        self._ends = list(accumulate(len(of_series) for _, of_series in self.starts))
        cuts = [*(self._before(block.first) for block in reader.table.blocks), len(self)]
        self.blocks = [range(*cut) for cut in pairwise(cuts)]
        self.sizes = [reader.size(block) for block in reader.table.blocks]

    def _before(self, row: int) -> int:
        """How many windows begin before a row."""
        i = bisect_left(self.starts, row, key=lambda one: self.extents[one[0]].first)
        if not i:
            return 0
        series, starts = self.starts[i - 1]
        within = bisect_left(starts, row - self.extents[series].first)
        return self._ends[i - 1] - len(starts) + within

    def __len__(self) -> int:
        """Number of windows."""
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> SequenceRow:
        """Returns the window with this index."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        i = bisect_right(self._ends, index)
        series, starts = self.starts[i]
        extent, start = self.extents[series], starts[index - self._ends[i]]
        first = extent.first + start
        values = self.reader.rows(first, first + self.window + self.horizon)
        x = values[: self.window, self.features]
        if not self.fill and np.isnan(x).any():
            step, column = np.argwhere(np.isnan(x))[0]
            raise DataError(
                f"column {self.inputs.names[column]!r} of series {extent.name!r} has no value at "
                f"step {start + step + 1} of {extent.steps}: fill it, leave the column out of "
                "`features`, or set `missing: mean`"
            )
        scaling = self.outputs.of(extent.name)
        return SequenceRow(
            self.inputs.inputs(extent.name, x),
            self.outputs.scaled(extent.name, values[self.window :, self.targets]),
            torch.from_numpy(scaling.mean[None]),
            torch.from_numpy(scaling.std[None]),
        )


class PoolOrder(Order):
    """The windows of one process, which lie side by side, so that it reads no others.

    In training row groups come in an order that depends on nothing but the seed and the epoch, and
    the windows of as many as are in memory together in such an order too.

    Args:
        rows: the windows.
        seed: at least 0; None for the order of the table.
        rank: number of this process.
        world_size: how many processes there are.
        repeat: all processes have as many windows: in training the last ones are left out, without
            a seed the last one comes again.
    """

    rows: StreamedForecasts

    def __init__(
        self,
        rows: StreamedForecasts,
        seed: int | None,
        rank: int,
        world_size: int,
        repeat: bool = True,
    ) -> None:
        super().__init__(rows, seed or 0, rank, world_size)
        self.shuffle = seed is not None
        count = len(rows)
        share = -(-count // world_size) if seed is None else count // world_size
        if not share:
            raise DataError(f"{count} windows are too few for {world_size} processes")
        stop = (rank + 1) * share
        self.own = range(rank * share, stop if repeat else min(stop, count))

    def __len__(self) -> int:
        """Number of windows of an epoch."""
        return len(self.own)

    def form(self) -> dict[str, int]:
        """What the order depends on, beside the epoch."""
        return {**super().form(), "row_groups": len(self.rows.blocks)}

    def order(self) -> Iterator[int]:
        """Yields the numbers of the windows."""
        last = len(self.rows) - 1
        if not self.shuffle:
            yield from (min(i, last) for i in self.own)
            return
        random = np.random.default_rng([self.seed, self.epoch])
        pool: list[NDArray[np.int64]] = []
        size = 0
        for i in random.permutation(len(self.rows.blocks)).tolist():
            windows = self.rows.blocks[i]
            start, stop = max(windows.start, self.own.start), min(windows.stop, self.own.stop)
            if start >= stop:
                continue
            if pool and size + self.rows.sizes[i] > POOL:
                yield from random.permutation(np.concatenate(pool)).tolist()
                pool, size = [], 0
            pool.append(np.arange(start, stop))
            size += self.rows.sizes[i]
        if pool:
            yield from random.permutation(np.concatenate(pool)).tolist()
