"""The operation and a layer in a few lines; README shows this file."""

import torch

import lightning_lrnn as lrnn

a = torch.rand(2, 1000, 64, requires_grad=True)  # decays    (B, T, D)
b = torch.randn(2, 1000, 64, requires_grad=True)  # impulses  (B, T, D)
h, h_final = lrnn.linear_recurrence(a, b)  # h: (B, T, D), h_final: (B, D)

rnn = lrnn.nn.GILRLSTM(64, 128, num_layers=2, batch_first=True, backend="scan")
output, (h_n, c_n) = rnn(h)  # the call of torch.nn.LSTM
output.sum().backward()
