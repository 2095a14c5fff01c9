"""Cuts batches of any LightningModule over time, and refuses layers that mix time steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_lrnn.core.ranks import part_of
from lightning_lrnn.nn.stack import Stack
from lightning_lrnn.nn.torch_rnn import TorchRNN

__all__ = ["Cut", "check_layers", "check_split", "chunk_of"]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Statistics of the batch, which are those of a segment where ranks do not share them."""

MIXING = (
    *(nn.RNNCellBase, nn.MultiheadAttention, nn.InstanceNorm1d),
    *(nn.MaxPool1d, nn.AvgPool1d, nn.LPPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d),
)


def check_split(split: Any) -> None:
    """Raises unless it has a dimension of time for at least one part of a batch."""
    if not any(isinstance(dim, int) for dim in _dims(split)):
        raise ValueError(
            f"`split` must say for the parts of a batch, by position or by key, which dimension "
            f"is time, and None for what is the same on every rank, such as [1, 1] or "
            f"{{'x': 1, 'y': None}}; got {split!r}"
        )


def _dims(split: Any) -> list[int | None]:
    if isinstance(split, Mapping | list | tuple):
        parts = split.values() if isinstance(split, Mapping) else split
        return [dim for part in parts for dim in _dims(part)]
    if split is not None and (isinstance(split, bool) or not isinstance(split, int)):
        raise ValueError(f"`split` must name dimensions by integers, got {split!r}")
    return [split]


def chunk_of(module: nn.Module) -> int | None:
    """The `checkpoint_time` of the layers of this package, which ranks share at a time.

    Raises:
        ValueError: where layers have different ones.
    """
    chunks = {m.checkpoint_time for m in module.modules() if isinstance(m, Stack)}
    if len(chunks) > 1:
        raise ValueError(
            f"layers that ranks share must have the same `checkpoint_time`, got "
            f"{', '.join(map(str, chunks))}"
        )
    return chunks.pop() if chunks else None


class Cut(NamedTuple):
    """Cuts one rank's segment out of a batch.

    Attributes:
        rank: of `size`, in order of time.
        size: how many ranks share the sequence.
        chunk: steps that they share at a time, see `part_of`; None for all.
    """

    rank: int
    size: int
    chunk: int | None = None

    def of(self, split: Any, batch: Any, where: str = "the batch") -> Any:
        """The segment of every tensor that has a dimension of time.

        Args:
            split: for a tensor its dimension of time, None for what is the same on every rank; for
                a list or tuple one for each entry, for a dict by key.
            batch: of the same structure.
            where: what the batch is a part of, for messages.

        Raises:
            ValueError: for another structure, or steps that `size` does not divide.
        """
        if split is None:
            return batch
        if isinstance(batch, PackedSequence):
            raise ValueError(
                f"{where} is a PackedSequence, whose time steps have no borders to cut it at: let "
                f"the data give padded tensors, and the layer `lengths`"
            )
        if isinstance(split, int):
            return self._segment(batch, split, where)
        if isinstance(split, Mapping):
            if not isinstance(batch, Mapping) or set(batch) != set(split):
                raise _differs(split, batch, where)
            parts: Any = copy.copy(batch)
            for key in split:
                parts[key] = self.of(split[key], batch[key], f"{where}[{key!r}]")
            return parts
        if not isinstance(batch, list | tuple) or len(batch) != len(split):
            raise _differs(split, batch, where)
        entries = [self.of(split[k], part, f"{where}[{k}]") for k, part in enumerate(batch)]
        return type(batch)(*entries) if hasattr(batch, "_fields") else type(batch)(entries)

    def _segment(self, x: Any, dim: int, where: str) -> Tensor:
        if not isinstance(x, Tensor) or not -x.ndim <= dim < x.ndim:
            raise _differs(dim, x, where)
        if x.shape[dim] % self.size:
            raise ValueError(
                f"{where} has {x.shape[dim]} steps in dimension {dim}, which cannot be shared by "
                f"{self.size} ranks: let the data cut or fill up sequences to a multiple of "
                f"{self.size}"
            )
        # Time as the second of at least two dimensions.
        rows = x.movedim(dim, 0)[None]
        return part_of(rows, *self)[0].movedim(0, dim)


def _differs(split: Any, batch: Any, where: str) -> ValueError:
    if isinstance(batch, Tensor):
        form = f"a tensor of shape {tuple(batch.shape)}"
    elif isinstance(batch, Mapping):
        form = f"a {type(batch).__name__} with {', '.join(map(repr, batch)) or 'nothing'}"
    else:
        entries = f" of {len(batch)}" if isinstance(batch, list | tuple) else ""
        form = f"a {type(batch).__name__}{entries}"
    return ValueError(f"`split` says {split!r} of {where}, which is {form}")


def check_layers(module: nn.Module, *, foreign: bool, synchronised: bool) -> None:
    """Raises for layers that mix time steps, and do not know that ranks share them.

    Args:
        module: a LightningModule. Inside of this package's layers nothing is looked at.
        foreign: whether it knows nothing of ranks: all layers are looked at, else only those of
            `torch.nn` that recur, and `TorchRNN`, which cuts its segment at resets.
        synchronised: whether statistics of a batch become those of all processes.

    Raises:
        ValueError: with the first such layer, and what to do.
    """
    shared = [f"{path}." for path, m in module.named_modules() if isinstance(m, Stack)]
    for path, layer in module.named_modules():
        if isinstance(layer, Stack) or path.startswith(tuple(shared)):
            continue
        advice = "take the strategy `ddp`"
        if isinstance(layer, TorchRNN):
            advice = f"name a layer of lightning_lrnn.nn as the model's `rnn`, or {advice}"
        elif isinstance(layer, nn.RNNBase):
            advice = f"let SwitchRNN replace it (its report says what it left), or {advice}"
        elif not foreign:
            continue
        elif isinstance(layer, NORMS) and not synchronised:
            advice = f"set `trainer.sync_batchnorm`, or {advice}"
        elif not isinstance(layer, MIXING) and not _wide(layer):
            continue
        raise ValueError(
            f"{path}, {type(layer).__name__}, mixes time steps, of which each rank has a segment "
            f"alone: {advice}"
        )


def _wide(layer: nn.Module) -> bool:
    """Whether it is a convolution over time that sees more than one step."""
    return isinstance(layer, nn.Conv1d | nn.ConvTranspose1d) and layer.kernel_size[0] > 1
