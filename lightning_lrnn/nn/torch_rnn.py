"""The recurrent layers of PyTorch as baselines: the same call as the layers of this package."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_map

from lightning_lrnn.core.masks import padding_mask
from lightning_lrnn.nn.checks import check_steps
from lightning_lrnn.nn.memory import Memory, check_memory, memory_bias_

__all__ = ["MemoryLSTM", "TorchRNN"]


class MemoryLSTM(nn.LSTM):
    """A `torch.nn.LSTM` initialised as a `GILRLSTM` with a `memory`: a baseline for it.

    Biases of forget gates b_f = log u, u uniform in [shortest, longest], of input gates -b_f / 2
    (`SurrogateRNNCell.reset_parameters` says why), others 0; and U = 0, so that at first the gates
    see the input alone: a state that sums thousands of steps would close and open them at random.

    Args:
        args: of `torch.nn.LSTM`, as `kwargs`.
        memory: shortest and longest expected memory in steps; None to start as `torch.nn.LSTM`.

    Raises:
        ValueError: for a memory that cannot be, or one of a layer without biases.
    """

    def __init__(self, *args: Any, memory: Memory = None, **kwargs: Any) -> None:
        check_memory(memory)
        super().__init__(*args, **kwargs)
        if memory is not None and not self.bias:
            raise ValueError(f"memory={memory} is in biases, and this layer has bias=False")
        self.memory = memory
        if memory is not None:
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialises as `torch.nn.LSTM`; with a memory, biases and U as described above."""
        super().reset_parameters()
        # The constructor of `torch.nn.LSTM` calls this too, before `memory` is set.
        if getattr(self, "memory", None) is None:
            return
        for name, parameter in self.named_parameters():
            if name.startswith(("bias", "weight_hh")):
                parameter.zero_()
            if name.startswith("bias_ih"):
                of_input, of_forget, *_ = parameter.chunk(4)
                memory_bias_(of_forget, self.memory)
                of_input.copy_(-of_forget / 2)


class TorchRNN(nn.Module):
    """A `torch.nn.LSTM`, `GRU` or `RNN`, batch first, with `lengths` and `reset`.

    Padded rows are packed. A sequence is cut where any row starts anew, since the layer cannot
    forget inside of one; the segments are computed one after the other.

    Args:
        rnn: the layer; made batch first.
    """

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        rnn.batch_first = True
        self.rnn = rnn

    def forward(
        self,
        input: Tensor,
        hx: Any = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Runs over a window.

        Args:
            input: (B, T, input_size).
            hx: the layer's state, a tensor (num_layers * directions, B, hidden_size) or two; zeros
                if None.
            lengths: integers (B,), 0 <= lengths <= T: steps from lengths[b] on are padding. Their
                output is 0 and their values, NaN too, have no effect. A row of length 0 keeps its
                state.
            reset: bool (B, T), True where a document starts.

        Returns:
            The output (B, T, directions * hidden_size) and the state after the last step.

        Raises:
            ValueError: for lengths that cannot be, or for a reset within the window of a
                bidirectional layer, whose second direction comes from the steps after it.
        """
        check_steps(input, True, lengths, reset)
        if lengths is not None and ((lengths < 0) | (lengths > input.shape[1])).any():
            raise ValueError(
                f"`lengths` must be from 0 to T={input.shape[1]}, got {lengths.tolist()}"
            )
        # oneDNN's LSTM on a CPU has no bfloat16 with gradients; cuDNN's on a GPU has.
        enabled = input.device.type != "cpu" and torch.is_autocast_enabled(input.device.type)
        with torch.autocast(input.device.type, enabled=enabled):
            if not enabled:
                input = input.to(next(self.parameters()).dtype)
            hx = tree_map(lambda state: state.to(input.dtype), hx) if hx is not None else None
            if lengths is not None:
                # Rows of length 0 are masked too: a packed row needs at least one step.
                outside = padding_mask(lengths, input)
                input = input.masked_fill(outside, 0)
                reset = None if reset is None else reset & ~outside[..., 0]
            cuts = [] if reset is None else reset.any(0).nonzero().flatten().tolist()
            if not cuts:
                return self._segment(input, hx, lengths)
            if self.rnn.bidirectional and (hx is not None or cuts != [0]):
                raise ValueError(
                    f"a bidirectional torch.nn.{type(self.rnn).__name__} cannot start anew within "
                    f"a window, and `reset` is True at step {cuts[-1]}: give each document as a "
                    f"row of its own, or take a layer of lightning_lrnn.nn"
                )
            assert reset is not None
            outputs = []
            for start, end in pairwise(sorted({0, *cuts, input.shape[1]})):
                if hx is not None:
                    new = reset[:, start, None]
                    hx = tree_map(lambda state, new=new: state.masked_fill(new, 0), hx)
                valid = None if lengths is None else (lengths - start).clamp(0, end - start)
                output, hx = self._segment(input[:, start:end], hx, valid)
                outputs.append(output)
            return torch.cat(outputs, 1), hx

    def _segment(self, input: Tensor, hx: Any, lengths: Tensor | None) -> tuple[Tensor, Any]:
        """Runs over a segment, which has no reset after its first step."""
        if lengths is None:
            output, state = self.rnn(input, hx)
            return output, state
        valid = lengths.cpu()
        packed = pack_padded_sequence(
            input, valid.clamp(min=1), batch_first=True, enforce_sorted=False
        )
        output, state = self.rnn(packed, hx)
        output, _ = pad_packed_sequence(output, batch_first=True, total_length=input.shape[1])
        if (valid == 0).any():
            output = output.masked_fill(padding_mask(lengths, output), 0)
            empty = (lengths == 0)[:, None]
            before = tree_map(torch.zeros_like, state) if hx is None else hx
            state = tree_map(lambda new, old: torch.where(empty, old, new), state, before)
        return output, state
