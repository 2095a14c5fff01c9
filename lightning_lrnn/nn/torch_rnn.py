"""The recurrent layers of PyTorch as baselines: the same call as the layers of this package."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

__all__ = ["TorchRNN"]


class TorchRNN(nn.Module):
    """A `torch.nn.LSTM`, `GRU` or `RNN`, batch first, with `reset`.

    A sequence is cut where any row starts anew, since the layer cannot forget inside of one; the
    pieces are computed one after the other.

    Args:
        rnn: the layer; made batch first.
    """

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        rnn.batch_first = True
        self.rnn = rnn

    def forward(
        self, input: Tensor, hx: Any = None, *, reset: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Runs over a window.

        Args:
            input: (B, T, input_size).
            hx: the layer's state, a tensor (num_layers, B, hidden_size) or two; zeros if None.
            reset: bool (B, T), True where a document starts.

        Returns:
            The output (B, T, hidden_size) and the state after the last step.
        """
        # oneDNN's LSTM on a CPU has no bfloat16 with gradients; cuDNN's on a GPU has.
        enabled = input.device.type != "cpu" and torch.is_autocast_enabled(input.device.type)
        with torch.autocast(input.device.type, enabled=enabled):
            if not enabled:
                input = input.to(next(self.parameters()).dtype)
            hx = tree_map(lambda part: part.to(input.dtype), hx) if hx is not None else None
            if reset is None:
                output, hx = self.rnn(input, hx)
                return output, hx
            cuts = reset.any(0).nonzero().flatten().tolist()
            outputs = []
            for start, end in pairwise(sorted({0, *cuts, input.shape[1]})):
                if hx is not None:
                    new = reset[:, start, None]
                    hx = tree_map(lambda part, new=new: part.masked_fill(new, 0), hx)
                output, hx = self.rnn(input[:, start:end], hx)
                outputs.append(output)
            return torch.cat(outputs, 1), hx
