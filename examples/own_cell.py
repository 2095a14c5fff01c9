"""A recurrent cell of your own: three lines of pointwise PyTorch and one call."""

import torch

import lightning_lrnn as lrnn


@lrnn.gate
def leaky(f, z):
    a = torch.sigmoid(f)
    return a, (1 - a) * torch.relu(z)


class Leaky(torch.nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.projection = torch.nn.Linear(input_size, 2 * hidden_size)

    def forward(self, x, h0=None):
        f, z = self.projection(x).chunk(2, -1)  # read in place, never copied
        return lrnn.gated_recurrence(leaky, f, z, h0=h0)


y, state = Leaky(3, 8)(torch.randn(2, 100, 3))
y, state = Leaky(3, 8)(torch.randn(2, 100, 3), state)  # the next window continues
