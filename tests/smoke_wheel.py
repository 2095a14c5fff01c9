"""Run by `make build` with the interpreter of an empty environment that has only the wheel."""

import importlib.resources

import torch

import lightning_lrnn

assert "site-packages" in lightning_lrnn.__file__, lightning_lrnn.__file__
sources = importlib.resources.files("lightning_lrnn.cuda_src")
assert (sources / "recurrence.cu").is_file()
assert (importlib.resources.files("lightning_lrnn.configs") / "byte_lm.yaml").is_file()
rnn = lightning_lrnn.nn.GILRLSTM(3, 5, num_layers=2, batch_first=True)
output, (h_n, c_n) = rnn(torch.randn(2, 100, 3))
output.sum().backward()
assert lightning_lrnn.last_backend() == "scan"
print("the installed wheel works:", tuple(output.shape), tuple(h_n.shape), tuple(c_n.shape))
