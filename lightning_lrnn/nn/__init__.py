"""Recurrent layers with the interface of `torch.nn.LSTM` and `torch.nn.GRU`, parallel over time."""

from lightning_lrnn.nn.gilr import GILR
from lightning_lrnn.nn.gilr_lstm import GILRLSTM
from lightning_lrnn.nn.min_gru import MinGRU
from lightning_lrnn.nn.min_lstm import MinLSTM
from lightning_lrnn.nn.rg_lru import RGLRU
from lightning_lrnn.nn.sru import SRU
from lightning_lrnn.nn.stack import Stack
from lightning_lrnn.nn.t_rnn import TRNN

CELLS: dict[str, type[Stack]] = {
    cell.__name__: cell for cell in (GILR, GILRLSTM, MinGRU, MinLSTM, RGLRU, SRU, TRNN)
}
"""Every layer by the name that a config uses."""

__all__ = ["CELLS", "GILR", "GILRLSTM", "RGLRU", "SRU", "TRNN", "MinGRU", "MinLSTM"]
