"""torch.nn.LSTM as a baseline: the same call as the layers of this package."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_lrnn.nn.memory import Memory, memory_bias_

__all__ = ["TorchLSTM"]


class TorchLSTM(nn.LSTM):
    """`torch.nn.LSTM`, batch first, with `reset` and `memory`.

    A sequence is cut where any row starts anew, since nn.LSTM cannot forget inside of one; the
    pieces are computed one after the other.

    Args:
        input_size: features of the input.
        hidden_size: features of the output.
        memory: expected memory of the units in steps, see `lightning_lrnn.nn.memory.memory_bias_`,
            with which the forget gates start here too; None for PyTorch's initialisation.
    """

    def __init__(self, input_size: int, hidden_size: int, memory: Memory = None) -> None:
        super().__init__(input_size, hidden_size, batch_first=True)
        if memory is not None:
            if not 0 < memory[0] <= memory[1]:
                raise ValueError(
                    f"`memory` must be (shortest, longest) steps, 0 < shortest <= longest, "
                    f"got {memory}"
                )
            biases = dict(self.named_parameters())
            # Of the two biases, which are added, in the order i, f, g, o.
            i, f, _, _ = biases["bias_ih_l0"].detach().chunk(4)
            memory_bias_(f, memory)
            i.copy_(-f)
            nn.init.zeros_(biases["bias_hh_l0"])

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Runs over a window.

        Args:
            input: (B, T, input_size).
            hx: (h_0, c_0), (1, B, hidden_size) each; zeros if None.
            reset: bool (B, T), True where a document starts.

        Returns:
            The output (B, T, hidden_size) and (h_n, c_n).
        """
        # oneDNN's LSTM on a CPU has no bfloat16 with gradients; cuDNN's on a GPU has.
        enabled = input.device.type != "cpu" and torch.is_autocast_enabled(input.device.type)
        with torch.autocast(input.device.type, enabled=enabled):
            if not enabled:
                input = input.to(next(self.parameters()).dtype)
            if hx is not None:
                hx = (hx[0].to(input.dtype), hx[1].to(input.dtype))
            if reset is None:
                output, hx = super().forward(input, hx)
                return output, hx
            if hx is None:
                zeros = input.new_zeros(1, input.shape[0], self.hidden_size)
                hx = (zeros, zeros)
            cuts = reset.any(0).nonzero().flatten().tolist()
            bounds = sorted({0, *cuts, input.shape[1]})
            outputs = []
            for start, end in pairwise(bounds):
                new = reset[:, start, None]
                hx = (hx[0].masked_fill(new, 0), hx[1].masked_fill(new, 0))
                output, hx = super().forward(input[:, start:end], hx)
                outputs.append(output)
            return torch.cat(outputs, 1), hx
