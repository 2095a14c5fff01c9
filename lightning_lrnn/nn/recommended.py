"""Which layer replaces one of PyTorch where none is named; `benchmarks/switch.py` measures it."""

from __future__ import annotations

from torch import nn

from lightning_lrnn.nn.gilr import GILR
from lightning_lrnn.nn.layer import Layer
from lightning_lrnn.nn.surrogate import SurrogateRNN

__all__ = ["of_the_same_function", "recommended"]

PASSES = 3
"""With which a trained layer is reproduced, see `benchmarks/carried.py`."""


def recommended(old: nn.RNNBase) -> Layer:
    """The layer in the place of a `torch.nn.LSTM`, `GRU` or `RNN`.

    A GRU without reset gate whose gates see the states of an LRU. In the place of an LSTM h is the
    state of the GRU, and c that of the LRU; elsewhere they share the columns of the state, for
    which there must be two.
    """
    if old.hidden_size == 1 and not (isinstance(old, nn.LSTM) and not old.proj_size):
        return Layer(GILR, {})
    return Layer(SurrogateRNN, {"cell": "GRU_WITHOUT_RESET", "surrogate": "LRU"})


def of_the_same_function(old: nn.RNNBase) -> Layer:
    """The layer that takes over weights: fixed-point passes of the old layer's own function."""
    return Layer(SurrogateRNN, {"cell": old.mode, "surrogate": "LRU", "passes": PASSES})
