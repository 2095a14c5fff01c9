"""How a cell walks over time: all of a scan that is not the cell's mathematics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lrnn.backends import Request
from lightning_lrnn.core.dtypes import state_dtype
from lightning_lrnn.core.problem import sequence, sequence_dtype
from lightning_lrnn.core.unfused import operands
from lightning_lrnn.gates import Gate
from lightning_lrnn.recurrence import gated_recurrence

__all__ = ["Asking", "Step", "Walk"]


@dataclass(frozen=True)
class Walk:
    """One direction over the time steps of a batch.

    Attributes:
        reverse: from the last step to the first.
        lengths: valid steps of each row, (B,).
        reset: True where a document starts, (B, T).
        backend: "auto" or a name.
        prefix: place of the cell in its stack, such as "layer0.forward".
        decays: where to note the decays of every scan; None to note nothing.
        called: the name of every scan, in place of the one that the cell gives it; "" for that one.
        exclusive: whether every scan hands out the states before its steps.
    """

    reverse: bool = False
    lengths: Tensor | None = None
    reset: Tensor | None = None
    backend: str = "auto"
    prefix: str = ""
    decays: dict[str, Tensor] | None = None
    called: str = ""
    exclusive: bool = False

    @property
    def drops(self) -> bool:
        """Whether dropout and zoneout act: not where somebody only looks."""
        return self.decays is None

    def place(self, name: str) -> str:
        """Where a scan is in its stack: "layer0.forward.cell"."""
        return ".".join(part for part in (self.prefix, self.called or name) if part)

    def scan(
        self,
        name: str,
        gate: Callable[..., tuple[Tensor, Tensor]],
        *pre: Tensor,
        h0: Tensor | None,
        readout: Callable[..., Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`gated_recurrence` along this walk; `name` says whose decays these are."""
        if self.decays is not None:
            # In the dtype of the state: a bfloat16 close to 1 knows nothing of -1 / log a.
            a, b = gate(*operands(pre))
            self.decays[self.place(name)] = (a.abs() if a.is_complex() else a).expand(b.shape)
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
        )

    def previous(self, s: Tensor, before: Tensor | None) -> Tensor:
        """The output of the step before each: 0 where a document starts, and `before` at the first.

        Args:
            s: all outputs, (B, T, ·).
            before: the output before the first step, (B, ·); zeros if None.
        """
        B, T, D = s.shape
        if T == 0:
            return s
        first = s.new_zeros(B, 1, D) if before is None else before[:, None].to(s.dtype)
        parts = [s[:, 1:], first] if self.reverse else [first, s[:, :-1]]
        previous = torch.cat(parts, 1)
        if self.reset is not None:
            starts = F.pad(self.reset[:, 1:], (0, 1)) if self.reverse else self.reset
            previous = previous.masked_fill(starts[..., None], 0)
        if self.reverse and self.lengths is not None and before is not None:
            steps = torch.arange(T, device=s.device)
            is_first = steps == self.lengths[:, None] - 1
            previous = torch.where(is_first[..., None], first, previous)
        return previous

    def last(self, y: Tensor, before: Tensor | None) -> Tensor:
        """The output (B, ·) at the last step of the walk; in a row without steps that before it.

        Args:
            y: all outputs, (B, T, ·).
            before: the output before the first step; zeros if None.
        """
        B, T, D = y.shape
        before = y.new_zeros(B, D) if before is None else before.to(y.dtype)
        if T == 0:
            return before
        if self.lengths is None:
            return y[:, 0] if self.reverse else y[:, -1]
        last = y[:, 0]
        if not self.reverse:
            t = (self.lengths.long() - 1).clamp(0, T - 1)
            last = y.gather(1, t[:, None, None].expand(B, 1, D))[:, 0]
        return torch.where((self.lengths > 0)[:, None], last, before)


class Step(Walk):
    """A walk of one step, without the operator: PyTorch's own operations, which export anywhere."""

    def scan(
        self,
        name: str,
        gate: Callable[..., tuple[Tensor, Tensor]],
        *pre: Tensor,
        h0: Tensor | None,
        readout: Callable[..., Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """h = a * h0 + b, and the readout of it, or of h0; y (B, 1, D) and h (B, D)."""
        inputs, x = operands(pre), sequence(pre)
        a, b = gate(*inputs)
        after = b.to(state_dtype(sequence_dtype(x, a.is_complex() or b.is_complex())))
        before = torch.zeros_like(after) if h0 is None else h0[:, None]
        after = a.to(after.dtype) * before + after
        y = before if self.exclusive else after
        y = y if readout is None else readout(y, *inputs)
        # As the recurrence hands it out: in the dtype of the sequences.
        return y.to(sequence_dtype(x, y.is_complex())), after[:, 0]


@dataclass(frozen=True)
class Asking(Step):
    """A step that notes what it would ask a backend for.

    Attributes:
        asked: one request per scan.
    """

    asked: list[Request] = field(default_factory=list)

    @property
    def drops(self) -> bool:
        """No."""
        return False

    def scan(
        self, name: str, gate: Callable[..., Any], *pre: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """As a `Step`."""
        x = next(p for p in pre if p.ndim == 3)
        programs = (g.program for g in (gate, options.get("readout")) if isinstance(g, Gate))
        self.asked.append(Request(x.device, x.dtype, *programs))
        return super().scan(name, gate, *pre, **options)
