"""How a cell walks over time: all of a scan that is not the cell's mathematics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lightning_lrnn._dtypes import state_dtype
from lightning_lrnn._operator import broadcastable
from lightning_lrnn.recurrence import gated_recurrence

__all__ = ["Walk"]


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
    """

    reverse: bool
    lengths: Tensor | None
    reset: Tensor | None
    backend: str
    prefix: str
    decays: dict[str, Tensor] | None

    def scan(
        self,
        name: str,
        gate: Callable[..., tuple[Tensor, Tensor]],
        *pre: Tensor,
        h0: Tensor | None,
        readout: Callable[..., Tensor] | None = None,
        exclusive: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """`gated_recurrence` along this walk; `name` says whose decays these are."""
        if self.decays is not None:
            # In the dtype of the state: a bfloat16 close to 1 knows nothing of -1 / log a.
            a, b = gate(*(broadcastable(p.to(state_dtype(p.dtype))) for p in pre))
            self.decays[f"{self.prefix}.{name}"] = a.expand_as(b)
        return gated_recurrence(
            gate,
            *pre,
            h0=h0,
            readout=readout,
            reverse=self.reverse,
            exclusive=exclusive,
            lengths=self.lengths,
            reset=self.reset,
            backend=self.backend,
        )
