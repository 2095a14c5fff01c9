"""Recurrent layers with the interface of `torch.nn.LSTM` and `torch.nn.GRU`, parallel over time."""

from lightning_lrnn.nn.gilr import GILR
from lightning_lrnn.nn.gilr_lstm import GILRLSTM
from lightning_lrnn.nn.stack import Stack

CELLS: dict[str, type[Stack]] = {"GILR": GILR, "GILRLSTM": GILRLSTM}
"""Every layer by the name that a config uses."""

__all__ = ["CELLS", "GILR", "GILRLSTM"]
