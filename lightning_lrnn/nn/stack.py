"""The stack: gives any linear cell the interface of `torch.nn.LSTM` or `torch.nn.GRU`."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_lrnn import backends
from lightning_lrnn._operator import padding_mask
from lightning_lrnn.nn.cell import Cell
from lightning_lrnn.nn.checks import check_input, check_options, check_steps
from lightning_lrnn.nn.memory import Memory
from lightning_lrnn.nn.state import State, last_output, pack, unpack
from lightning_lrnn.nn.walk import Walk

__all__ = ["Stack"]


class Stack(nn.Module):
    """Layers of one cell, in one direction or two. Subclasses name the cell.

    Args:
        input_size: features of the input.
        hidden_size: features of the hidden state.
        num_layers: layers on top of each other.
        bias: whether there are biases.
        batch_first: input and output are (B, T, ·), not (T, B, ·). Neither is copied.
        dropout: probability, on the outputs of each layer but the last, while training.
        bidirectional: a second direction, whose output is concatenated; nothing is flipped.
        proj_size: if not 0, outputs are projected to this size, where the cell allows it.
        backend: how the recurrences are computed: "auto" or a name of
            `lightning_lrnn.backends.names()`; see `lightning_lrnn.linear_recurrence`. It may be set
            at any time and is no part of the `state_dict`.
        memory: (shortest, longest) expected memory in steps, which sets the biases of the forget
            gates; see `lightning_lrnn.nn.memory.memory_bias_` for this and the default.
        device: of the parameters.
        dtype: of the parameters.
        options: what only this cell has.

    Attributes:
        cells: the layers, that of layer l and direction d at l * directions + d.
        options: what only this cell has, as given.

    Raises:
        ValueError: for arguments that cannot be, with their value.
    """

    cell_type: ClassVar[type[Cell]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        backend: str = "auto",
        memory: Memory = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        check_options(type(self).__name__, self.cell_type, sizes, proj_size, dropout, bias, memory)
        if dropout and num_layers == 1:
            warnings.warn(
                f"dropout={dropout} acts between layers and does nothing with num_layers=1",
                stacklevel=2,
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional, self.proj_size, self.memory = bidirectional, proj_size, memory
        self.directions = 2 if bidirectional else 1
        self.backend = backend
        self.options = dict(options)
        options |= {"bias": bias, "proj_size": proj_size, "memory": memory}
        options |= {"device": device, "dtype": dtype}
        width = self.directions * (proj_size or hidden_size)
        self.cells = nn.ModuleList(
            self.cell_type(width if layer else input_size, hidden_size, **options)
            for layer in range(num_layers)
            for _ in range(self.directions)
        )

    @property
    def backend(self) -> str:
        """How the recurrences are computed: "auto" or a name; an unknown name raises."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        backends.check_name(name)
        self._backend = name

    def reset_parameters(self) -> None:
        """Fills all parameters anew."""
        for cell in self.cells:
            cell.reset_parameters()  # type: ignore[operator]

    def forward(
        self,
        input: Tensor,
        hx: State = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        """Runs the layers over a sequence, or over one window of it.

        Args:
            input: (T, B, input_size), with `batch_first` (B, T, input_size), or without a batch
                (T, input_size). T = 1 is a step, T = 0 changes nothing.
            hx: the initial state in the form of the one returned; zeros if None.
            lengths: integers (B,), 0 <= lengths <= T: steps from lengths[b] on are padding. Their
                output is 0 and their values, NaN too, reach nothing. A row of length 0 keeps its
                state.
            reset: bool, True where a document starts; shaped as `input` without its features.

        Returns:
            The output, shaped as `input` with directions * (proj_size or hidden_size) features, and
            the final state, each part (num_layers * directions, B, ·), without B for an input
            without a batch. The state of a reverse direction is that after step 0.

        Raises:
            ValueError: for shapes that do not fit, TypeError: for dtypes or devices that do not.
            lightning_lrnn.BackendError: if the named backend cannot run.
        """
        return self._run(input, hx, lengths, reset, None)

    @torch.no_grad()
    def decays(
        self,
        input: Tensor,
        hx: State = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The decays a_t of every recurrence on an input; -1 / log a_t is a memory in steps.

        Arguments as in `forward`. Nothing is dropped out, no gradient is kept.

        Returns:
            By place ("layer0.forward.cell", "layer0.reverse.surrogate", ...) a (B, T, ·) in the
            dtype of the state. Values at padded steps mean nothing.
        """
        decays: dict[str, Tensor] = {}
        self._run(input, hx, lengths, reset, decays)
        return decays

    def _run(
        self,
        input: Tensor,
        hx: State,
        lengths: Tensor | None,
        reset: Tensor | None,
        decays: dict[str, Tensor] | None,
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        check_input(self, input)
        check_steps(self, input, lengths, reset)
        batched = input.ndim == 3
        x = input
        if not batched:
            x = input[None]
            lengths, reset = (None if v is None else v[None] for v in (lengths, reset))
        elif not self.batch_first:
            x, reset = input.transpose(0, 1), None if reset is None else reset.transpose(0, 1)
        if lengths is not None:
            # The gradient of a weight multiplies x by 0 there, and NaN times 0 is NaN.
            x = x.masked_fill(padding_mask(lengths, x), 0)
        h_0, carry_0 = unpack(self, hx, x, batched)
        h_n: list[Tensor] = []
        carry_n: list[Tensor] = []
        for layer in range(self.num_layers):
            outputs = []
            for reverse in (False, True)[: self.directions]:
                k = len(carry_n)
                place = f"layer{layer}.{'reverse' if reverse else 'forward'}"
                walk = Walk(reverse, lengths, reset, self.backend, place, decays)
                y, carry = self.cells[k](x, None if carry_0 is None else carry_0[k], walk)
                outputs.append(y)
                carry_n.append(carry)
                h_n.append(last_output(y, None if h_0 is None else h_0[k], walk))
            x = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
            if layer < self.num_layers - 1 and decays is None:
                x = F.dropout(x, self.dropout, self.training)
        output = x[0] if not batched else x if self.batch_first else x.transpose(0, 1)
        return output, pack(self, h_n, carry_n, batched)

    def extra_repr(self) -> str:
        """Sizes, what differs from the default, the cell's own options and the backend."""
        defaults: dict[str, Any] = {"num_layers": 1, "bias": True, "batch_first": False}
        defaults |= {"dropout": 0.0, "bidirectional": False, "proj_size": 0, "memory": None}
        shown = [f"{k}={getattr(self, k)}" for k, v in defaults.items() if getattr(self, k) != v]
        shown += [f"{k}={v!r}" for k, v in self.options.items()]
        shown += [f"backend={self.backend!r}"]
        return ", ".join([str(self.input_size), str(self.hidden_size), *shown])
