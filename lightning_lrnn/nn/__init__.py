"""Recurrent layers with the interface of `torch.nn.LSTM` and `torch.nn.GRU`, parallel over time."""

from lightning_lrnn.nn.cell import Cell, GatedCell
from lightning_lrnn.nn.cells.gilr import GILR, GILRCell
from lightning_lrnn.nn.cells.gilr_lstm import (
    GILRGRU,
    GILRLSTM,
    GILRRNN,
    GILRGRUCell,
    GILRLSTMCell,
    GILRRNNCell,
)
from lightning_lrnn.nn.cells.hgrn import HGRN, HGRNCell
from lightning_lrnn.nn.cells.lru import LRU, LRUCell
from lightning_lrnn.nn.cells.min_gru import MinGRU, MinGRUCell
from lightning_lrnn.nn.cells.min_lstm import MinLSTM, MinLSTMCell
from lightning_lrnn.nn.cells.qrnn import QRNN, QRNNCell
from lightning_lrnn.nn.cells.rg_lru import RGLRU, RGLRUCell
from lightning_lrnn.nn.cells.s5 import S5, S5Cell
from lightning_lrnn.nn.cells.sru import SRU, SRUCell
from lightning_lrnn.nn.cells.surrogate import SurrogateRNN, SurrogateRNNCell
from lightning_lrnn.nn.cells.t_gru import TGRU, TGRUCell
from lightning_lrnn.nn.cells.t_lstm import TLSTM, TLSTMCell
from lightning_lrnn.nn.cells.t_rnn import TRNN, TRNNCell
from lightning_lrnn.nn.memory import memory_bias_
from lightning_lrnn.nn.stack import Stack
from lightning_lrnn.nn.torch_rnn import MemoryLSTM

_LAYERS = (
    *(GILR, GILRGRU, GILRLSTM, GILRRNN, HGRN, LRU, MinGRU, MinLSTM, QRNN, RGLRU, S5, SRU),
    *(SurrogateRNN, TGRU, TLSTM, TRNN),
)

CELLS: dict[str, type[Stack]] = {layer.__name__: layer for layer in _LAYERS}
"""Every layer by the name that a config uses."""

__all__ = [
    "CELLS",
    "GILR",
    "GILRGRU",
    "GILRLSTM",
    "GILRRNN",
    "HGRN",
    "LRU",
    "QRNN",
    "RGLRU",
    "S5",
    "SRU",
    "TGRU",
    "TLSTM",
    "TRNN",
    "Cell",
    "GILRCell",
    "GILRGRUCell",
    "GILRLSTMCell",
    "GILRRNNCell",
    "GatedCell",
    "HGRNCell",
    "LRUCell",
    "MemoryLSTM",
    "MinGRU",
    "MinGRUCell",
    "MinLSTM",
    "MinLSTMCell",
    "QRNNCell",
    "RGLRUCell",
    "S5Cell",
    "SRUCell",
    "Stack",
    "SurrogateRNN",
    "SurrogateRNNCell",
    "TGRUCell",
    "TLSTMCell",
    "TRNNCell",
    "memory_bias_",
]
