"""Common arguments of a cell's scans: direction, lengths, resets, backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.evaluation import operands
from lightning_lrnn.core.problem import sequence, sequence_dtype
from lightning_lrnn.core.ranks import Ranks, gathered
from lightning_lrnn.recurrence import gated_recurrence

__all__ = ["Recorder", "ScanContext", "StepContext", "decays_of", "select_rank"]

GateFunction = Callable[..., tuple[Tensor, Tensor]]
Readout = Callable[..., Tensor]
Recorder = Callable[[str, GateFunction, Readout | None, Sequence[Tensor]], None]
"""Called before a scan with its path, its gate, its readout and its pre-activations."""


@dataclass(frozen=True)
class ScanContext:
    """The arguments of a scan beside the cell's equations, for one direction over a batch.

    Attributes:
        reverse: whether the scan runs from the last time step to the first.
        lengths: valid time steps of each row, (B,); over ranks those of the whole sequence.
        reset: True where a document starts, (B, T).
        backend: "auto" or a name.
        ranks: the ranks that hold the sequence, in order of time; None if one process holds it.
        chunk: time steps that the ranks share at a time, see `lightning_lrnn.core.ranks.part_of`;
            None if this rank's time steps are consecutive, as they are in every scan.
        prefix: path of the cell in its stack, such as "layer0.forward".
        recorder: called before every scan; None for none.
        dropout: whether dropout and zoneout act.
        scan_name: replaces the name that the cell gives its scans; "" keeps it.
        exclusive: whether every scan returns the states before its time steps.
    """

    reverse: bool = False
    lengths: Tensor | None = None
    reset: Tensor | None = None
    backend: str = "auto"
    ranks: Ranks | None = None
    chunk: int | None = None
    prefix: str = ""
    recorder: Recorder | None = None
    dropout: bool = True
    scan_name: str = ""
    exclusive: bool = False

    def path(self, name: str) -> str:
        """The path of a scan in its stack: "layer0.forward.cell"."""
        return ".".join(part for part in (self.prefix, self.scan_name or name) if part)

    def within(self, steps: int) -> Tensor | None:
        """The valid time steps of each row among the `steps` of this rank, (B,)."""
        if self.ranks is None or self.lengths is None:
            return self.lengths
        return self.ranks.within(self.lengths, steps, self.chunk)

    def scan(
        self,
        name: str,
        gate: GateFunction,
        *pre: Tensor,
        h0: Tensor | None,
        readout: Readout | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`gated_recurrence` in this context; `name` is the last part of the scan's path."""
        if self.recorder is not None:
            self.recorder(self.path(name), gate, readout, pre)
        return gated_recurrence(
            gate,
            *pre,
            h0=h0,
            readout=readout,
            reverse=self.reverse,
            exclusive=self.exclusive,
            lengths=self.lengths,
            reset=self.reset,
            backend=self.backend,
            group=self.ranks,
        )

    def previous(self, s: Tensor, before: Tensor | None) -> Tensor:
        """The output before each time step: 0 where a document starts, `before` at the first.

        Args:
            s: all outputs, (B, T, ·).
            before: the output before the first time step, (B, ·); zeros if None.
        """
        B, T, D = s.shape
        if T == 0:
            return s
        first = s.new_zeros(B, 1, D) if before is None else before[:, None].to(s.dtype)
        if self.ranks is not None:
            first = self._previous_rank_output(self.ranks, s, first)
        parts = [s[:, 1:], first] if self.reverse else [first, s[:, :-1]]
        previous = torch.cat(parts, 1)
        if self.reset is not None:
            starts = F.pad(self.reset[:, 1:], (0, 1)) if self.reverse else self.reset
            previous = previous.masked_fill(starts[..., None], 0)
        if self.reverse and self.lengths is not None and before is not None:
            steps = torch.arange(T, device=s.device)
            if self.ranks is not None:
                steps = steps + self.ranks.start(T)
            is_first = steps == self.lengths[:, None] - 1
            previous = torch.where(is_first[..., None], before[:, None].to(s.dtype), previous)
        return previous

    def _previous_rank_output(self, ranks: Ranks, s: Tensor, first: Tensor) -> Tensor:
        """The last output of the rank whose segment is scanned before this one, (B, 1, ·)."""
        border = s[:, :1] if self.reverse else s[:, -1:]
        if self.reverse and self.reset is not None and ranks.rank > 0:
            # Where a document starts, no output passes to the segment before.
            border = border.masked_fill(self.reset[:, :1, None], 0)
        whole = gathered(border, ranks)
        before = ranks.before(reverse=self.reverse)
        # Every rank uses `whole`: its gradient is a collective, in which all must take part.
        return torch.where(_flag(before is None, s), first, whole[before or 0])

    def last(self, y: Tensor, before: Tensor | None) -> Tensor:
        """The output (B, ·) at the last time step of the scan; of an empty row that before it.

        Args:
            y: all outputs, (B, T, ·).
            before: the output before the first time step; zeros if None.
        """
        B, T, D = y.shape
        before = y.new_zeros(B, D) if before is None else before.to(y.dtype)
        if T == 0:
            return before
        lengths = self.lengths if self.ranks is None else self.within(T)
        if lengths is None:
            last = y[:, 0] if self.reverse else y[:, -1]
            if self.ranks is None:
                return last
            return gathered(last, self.ranks)[0 if self.reverse else -1]
        last = y[:, 0]
        if not self.reverse:
            t = (lengths.long() - 1).clamp(0, T - 1)
            last = y.gather(1, t[:, None, None].expand(B, 1, D))[:, 0]
        if self.ranks is not None:
            last = select_rank(gathered(last, self.ranks), self.ends(T))
        assert self.lengths is not None
        return torch.where((self.lengths > 0)[:, None], last, before)

    def ends(self, steps: int) -> Tensor:
        """The rank on which the scan of each row ends, (B,); each rank holds `steps` steps."""
        assert self.lengths is not None
        if self.reverse:
            return torch.zeros_like(self.lengths, dtype=torch.int64)
        return self.last_ranks(steps)

    def last_ranks(self, steps: int) -> Tensor:
        """The rank with the last valid step of each row (B,); the first where there is none."""
        assert self.lengths is not None and self.ranks is not None
        return self.ranks.of_last(self.lengths, steps, self.chunk)


def select_rank(whole: Tensor, ranks: Tensor) -> Tensor:
    """Selects one rank per row, `ranks` (B,), of `whole` (size, B, ...): (B, ...)."""
    index = ranks.view(1, -1, *[1] * (whole.ndim - 2)).expand(1, *whole.shape[1:])
    return whole.gather(0, index)[0]


def _flag(value: bool, like: Tensor) -> Tensor:
    return torch.full((), value, dtype=torch.bool, device=like.device)


class StepContext(ScanContext):
    """The context of a single time step, computed by PyTorch's own operations.

    Other runtimes lack the operator that `ScanContext` calls. A step is exported without it and
    without a loop over time, and runs without a compiler.
    """

    def scan(
        self,
        name: str,
        gate: GateFunction,
        *pre: Tensor,
        h0: Tensor | None,
        readout: Readout | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One step h = a * h0 + b: its readout y (B, 1, D), of h0 if exclusive, and h (B, D)."""
        if self.recorder is not None:
            self.recorder(self.path(name), gate, readout, pre)
        inputs, x = operands(pre), sequence(pre)
        a, b = gate(*inputs)
        after = b.to(state_dtype(sequence_dtype(x, is_complex=a.is_complex() or b.is_complex())))
        before = torch.zeros_like(after) if h0 is None else h0[:, None]
        after = a.to(after.dtype) * before + after
        y = before if self.exclusive else after
        y = y if readout is None else readout(y, *inputs)
        # In the dtype of the sequences, as the recurrence returns it.
        return y.to(sequence_dtype(x, is_complex=y.is_complex())), after[:, 0]


def decays_of(gate: GateFunction, pre: Sequence[Tensor]) -> Tensor:
    """The decays that a gate makes of its pre-activations, without a gradient.

    Returns:
        a, or |a| where it is complex, (B, T, ·) in the dtype of the state: a bfloat16 close to 1 is
        too coarse for -1 / log a.
    """
    with torch.no_grad():
        a, b = gate(*operands(pre))
        return (a.abs() if a.is_complex() else a).expand(b.shape)
