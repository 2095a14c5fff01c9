"""Processes that hold one sequence together, a segment of time each, and what they exchange."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lightning_lrnn.core.pytorch import collectives, group_named

__all__ = [
    "Ranks",
    "all_gather",
    "check_together",
    "checksum",
    "gathered",
    "part_of",
    "ranks_of",
]

FORMS = 4096
"""Most forms of arguments that are recorded as agreed on per group; then the record is cleared."""


class Ranks(NamedTuple):
    """A process group whose ranks hold consecutive segments of time, seen from one of them.

    Attributes:
        name: of the group, by which PyTorch finds it, also in compiled code.
        rank: of this process in the group.
        size: how many ranks there are, at least 2.
    """

    name: str
    rank: int
    size: int

    def start(self, steps: int) -> int:
        """The first time step of this rank's segment, where all have `steps` steps."""
        return self.rank * steps

    def within(self, lengths: Tensor, steps: int, chunk: int | None = None) -> Tensor:
        """The valid steps of each row on this rank, which are the first of its steps.

        Args:
            lengths: of the whole sequence, (B,).
            steps: number of steps on this rank.
            chunk: steps that the ranks share at a time, see `part_of`; None for all.
        """
        if chunk is None or steps * self.size <= chunk:
            return (lengths - self.start(steps)).clamp(0, steps)
        width = chunk // self.size
        first = torch.arange(0, steps, width, device=lengths.device)
        widths = (steps - first).clamp(max=width)
        starts = first * self.size + self.rank * widths
        return (lengths[:, None] - starts).clamp(min=0).minimum(widths).sum(1)

    def of_last(self, lengths: Tensor, steps: int, chunk: int | None = None) -> Tensor:
        """The rank that has the last valid step of each row (B,); the first where there is none.

        Arguments as those of `within`.
        """
        total = max(steps, 1) * self.size
        chunk = min(chunk or total, total)
        end = (lengths.long() - 1).clamp(min=0)
        begin = end.div(chunk, rounding_mode="floor") * chunk
        width = (total - begin).clamp(max=chunk).div(self.size, rounding_mode="floor")
        return (end - begin).div(width, rounding_mode="floor")

    def before(self, *, reverse: bool) -> int | None:
        """The rank that is scanned before this one; None for the first."""
        rank = self.rank + (1 if reverse else -1)
        return rank if 0 <= rank < self.size else None


def ranks_of(group: Any) -> Ranks | None:
    """The ranks of a ProcessGroup or of a DeviceMesh of one dimension.

    Returns:
        None for no group, and for one of a single process, which holds the whole sequence.

    Raises:
        TypeError: for what is none of them. ValueError: for a mesh of more dimensions, or a group
            that this process is not in.
    """
    if group is None or isinstance(group, Ranks):
        return group
    if hasattr(group, "get_group"):
        if group.ndim != 1:
            raise ValueError(
                f"`group` must have one dimension, which is that of time, got a mesh of "
                f"{group.ndim}: take one of it, `mesh[name]`"
            )
        group = group.get_group()
    if not hasattr(group, "group_name"):
        raise TypeError(
            f"`group` must be a ProcessGroup or a DeviceMesh of one dimension, got "
            f"{type(group).__name__}"
        )
    rank, size = group.rank(), group.size()
    if rank < 0:
        raise ValueError("`group` must be one that this process is in")
    return Ranks(group.group_name, rank, size) if size > 1 else None


def part_of(x: Tensor, rank: int, size: int, chunk: int | None = None) -> Tensor:
    """The part of a sequence (B, T, ·) that one of `size` ranks holds.

    Args:
        x: the sequence; `size` divides T.
        rank: whose part.
        size: how many ranks there are.
        chunk: None where each rank holds a consecutive segment. Else all ranks share `chunk` steps,
            then the next ones: its segments of all chunks, one after the other.

    Raises:
        ValueError: for a chunk that `size` does not divide.
    """
    if chunk is None or x.shape[1] <= chunk:
        return x.chunk(size, 1)[rank]
    if chunk % size:
        raise ValueError(
            f"chunks of {chunk} steps cannot be shared by {size} ranks: set `checkpoint_time` to a "
            f"multiple of {size}"
        )
    return torch.cat([whole.chunk(size, 1)[rank] for whole in x.split(chunk, 1)], 1)


def all_gather(x: Tensor, ranks: Ranks) -> Tensor:
    """x of every rank, (size, *x.shape), without a gradient; x is real."""
    x = x.detach().contiguous()
    flat = collectives().all_gather_into_tensor(x, ranks.size, ranks.name)
    whole: Tensor = collectives().wait_tensor(flat)
    return whole.view(ranks.size, *x.shape)


def gathered(x: Tensor, ranks: Ranks) -> Tensor:
    """x of every rank, (size, *x.shape), differentiable: gradients of all ranks are added.

    The backward pass is a collective too: the loss must depend on the result on every rank or on
    none.
    """
    return _gathered(x, *ranks)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, rank: int, size: int) -> Tensor:
        ctx.ranks = name, rank, size
        if x.is_complex():
            return torch.view_as_complex(all_gather(torch.view_as_real(x), Ranks(name, rank, size)))
        return all_gather(x, Ranks(name, rank, size))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        name, rank, _ = ctx.ranks
        d = torch.view_as_real(gradient) if gradient.is_complex() else gradient
        total = collectives().wait_tensor(
            collectives().all_reduce(d.contiguous().clone(), "sum", name)
        )
        mine = total[rank]
        return torch.view_as_complex(mine) if gradient.is_complex() else mine, None, None, None


_gathered: Callable[..., Tensor] = _Gathered.apply

_agreed: WeakKeyDictionary[Any, set[object]] = WeakKeyDictionary()


def check_together(ranks: Ranks, form: object, check: Callable[[], Mapping[str, object]]) -> None:
    """Checks the first arguments of a form, and that all ranks of a group were given alike ones.

    If the check fails on one rank, all raise; else the others would wait for it. That takes an
    exchange of objects at the first call of each form; a compiled function does without.

    Args:
        ranks: of the group.
        form: of the arguments, all but their values; None to check them whatever went before.
        check: raises for arguments that cannot be; returns what must be the same on all ranks, by
            name.

    Raises:
        ValueError: where ranks differ, with what each of them has. Where another rank was refused,
            with its reason. And what `check` raises.
    """
    if torch.compiler.is_compiling():
        check()
        return
    group = group_named(ranks.name)
    known = _agreed.setdefault(group, set())
    if form is not None and form in known:
        return
    error: Exception | None = None
    mine: dict[str, object] = {}
    try:
        mine = dict(check())
    except Exception as e:
        error = e
    replies: list[Any] = [None] * ranks.size
    reason = None if error is None else f"{type(error).__name__}: {error}"
    torch.distributed.all_gather_object(replies, (reason, mine), group=group)
    if error is not None:
        raise error
    for rank, (reason, _) in enumerate(replies):
        if reason is not None:
            raise ValueError(f"rank {rank} of those that share the sequence was refused: {reason}")
    for name in mine:
        of_ranks = [theirs.get(name) for _, theirs in replies]
        if any(value != of_ranks[0] for value in of_ranks):
            raise ValueError(
                f"{name} must be the same on all ranks that share a sequence, got "
                f"{', '.join(map(str, of_ranks))} on ranks 0 to {ranks.size - 1}"
            )
    if len(known) >= FORMS:
        known.clear()
    if form is not None:
        known.add(form)


def checksum(x: Tensor | None) -> int | None:
    """The CRC-32 of a tensor's values, which are copied to the CPU; None for None."""
    if x is None:
        return None
    x = x.detach().resolve_conj()
    real = torch.view_as_real(x) if x.is_complex() else x
    return zlib.crc32(real.cpu().contiguous().view(torch.uint8).numpy().tobytes())
