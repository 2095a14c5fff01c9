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

    In the place of an LSTM a GRU with an input gate, whose outputs start as small as an LSTM's. Its
    gates see the states of an LRU; h is the state of the GRU, and c that of the LRU. In the place
    of a GRU or RNN a GRU without reset gate; it and the LRU share the columns of the state, for
    which there must be two.
    """
    lstm = isinstance(old, nn.LSTM)
    if old.hidden_size == 1 and not (lstm and not old.proj_size):
        return Layer(GILR, {})
    cell = "GRU_WITH_INPUT_GATE" if lstm else "GRU_WITHOUT_RESET"
    return Layer(SurrogateRNN, {"cell": cell, "surrogate": "LRU"})


def of_the_same_function(old: nn.RNNBase) -> Layer:
    """The layer that takes over weights: fixed-point passes of the old layer's own function."""
    return Layer(SurrogateRNN, {"cell": old.mode, "surrogate": "LRU", "passes": PASSES})
